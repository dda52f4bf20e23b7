"""The interpreter rounds like the hardware, and its approximations are within documented bounds."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from machine_code import mufu, rounding
from machine_code.conversion import bfloat16, float16

F32_MAX = np.float32(np.inf)


def nearest(exact: Fraction, kind: type[np.floating]) -> np.floating:
    """Rounds a fraction once, to nearest with ties to even."""
    if exact == 0:
        return kind(0)
    digits, least = (24, -149) if kind is np.float32 else (53, -1074)
    exponent = exact.numerator.bit_length() - exact.denominator.bit_length()
    while abs(exact) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    while abs(exact) < Fraction(2) ** exponent:
        exponent -= 1
    unit = Fraction(2) ** max(exponent - digits + 1, least)
    return kind(float(round(exact / unit) * unit))  # round() rounds ties to even


def hard_sums(kind: type[np.floating]) -> tuple[np.ndarray, ...]:
    """Returns factors and addends for which a b + c is next to a tie, is subnormal, or cancels."""
    rng = np.random.default_rng(3)
    digits, low = (24, -126) if kind is np.float32 else (53, -1022)
    scale = 2.0 ** rng.integers(-20, 20, 2000)
    a = (rng.integers(1, 2**12, 2000) * scale).astype(kind)
    b = rng.integers(1, 2**11, 2000).astype(kind)
    tie = a.astype(np.float64) * b * 2.0**digits
    near = np.where(rng.random(2000) < 0.5, np.nextafter(tie.astype(kind), kind(0)), tie)
    c = (near * rng.choice([1, -1, 2.0**-digits, -(2.0**-digits)], 2000)).astype(kind)
    tiny = kind(2.0 ** (low // 2))
    return (
        np.concatenate([a, a * tiny, rng.standard_normal(2000).astype(kind)]),
        np.concatenate([b, b * tiny / kind(64), rng.standard_normal(2000).astype(kind)]),
        np.concatenate([c, c * tiny * tiny, rng.standard_normal(2000).astype(kind)]),
    )


@pytest.mark.parametrize(
    ("function", "kind"), [(rounding.fma32, np.float32), (rounding.fma64, np.float64)]
)
def test_a_fused_multiply_add_rounds_once(
    function: Callable[..., np.ndarray], kind: type[np.floating]
) -> None:
    a, b, c = hard_sums(kind)
    found = function(a, b, c)
    twice = (a * b + c).astype(kind)
    triples = zip(a.tolist(), b.tolist(), c.tolist(), strict=True)
    exact = [nearest(Fraction(x) * Fraction(y) + Fraction(z), kind) for x, y, z in triples]
    np.testing.assert_array_equal(found, np.array(exact, kind))
    assert (twice != found).sum() > 400  # otherwise these arguments would prove nothing
    special = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0], kind)
    x, y, z = (part.ravel() for part in np.meshgrid(special, special, special))
    with np.errstate(invalid="ignore"):
        expected = x * y + z
        got = function(x, y, z)
    np.testing.assert_array_equal(got, expected)
    finite = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(got[finite]), np.signbit(expected[finite]))


def test_directed_rounding_of_floats_is_on_its_side_and_next_to_the_exact_value() -> None:
    a, b, c = (x[::10] for x in hard_sums(np.float32))
    down, up = (rounding.directed32(a, b, c, upward) for upward in (False, True))
    for x, y, z, low, high in zip(a, b, c, down, up, strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        assert Fraction(float(low)) <= exact <= Fraction(float(high))
        assert high == low if Fraction(float(low)) == exact else high == np.nextafter(low, F32_MAX)
    assert (down != up).sum() > 200


def test_directed_rounding_is_on_its_side_and_next_to_the_exact_value() -> None:
    a, b, c = (x[::40] for x in hard_sums(np.float64))
    down, up = (rounding.directed64(a, b, c, upward, True) for upward in (False, True))
    for x, y, z, low, high in zip(a, b, c, down, up, strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        assert Fraction(float(low)) <= exact <= Fraction(float(high))
        assert high in (low, np.nextafter(low, np.inf))
    integers = np.array([0, 1, 2**24 + 1, 2**32 - 1, 2**31 + 129], np.uint32)
    assert (rounding.upward32(integers).astype(np.float64) >= integers).all()
    assert rounding.upward32(integers)[2] == 2**24 + 2
    exact = np.array([1 + 2.0**-30, -1 - 2.0**-30, 2 - 2.0**-40])
    expected = np.array([1, -1, np.nextafter(np.float32(2), np.float32(0))], np.float32)
    np.testing.assert_array_equal(rounding.toward_zero32(exact), expected)


def test_conversions_to_16_bits_round_to_even() -> None:
    x = np.array([1 + 2.0**-8, 1 + 3 * 2.0**-8, -1e38, 3.4e38, np.nan], np.float32)
    assert bfloat16(x).tolist() == [0x3F80, 0x3F82, 0xFE96, 0x7F80, 0x7FFF]
    y = np.array([1 + 2.0**-11, 65520, 2.0**-24, np.nan], np.float32)
    with np.errstate(over="ignore"):
        assert float16(y).tolist() == [0x3C00, 0x7C00, 1, 0x7FFF]


BOUNDS = {
    "RCP": lambda y: np.spacing(np.abs(y).astype(np.float32)).astype(np.float64),
    "SQRT": lambda y: 2.0**-23 * np.abs(y),
    "RSQ": lambda y: 2.0**-22.9 * np.abs(y),
    "EX2": lambda y: 2.0**-22 * np.abs(y),
    "LG2": lambda y: 2.0**-22 * np.maximum(np.abs(y), 1),
    "SIN": lambda y: 2.0**-20.5,
    "COS": lambda y: 2.0**-20.5,
}


@pytest.mark.parametrize("function", BOUNDS)
def test_approximations_differ_within_their_documented_error(function: str) -> None:
    rng = np.random.default_rng(5)
    x = np.exp(rng.uniform(-20, 3, 5000)).astype(np.float32)
    exact = mufu.FUNCTIONS[function][0](x.astype(np.float64))
    errors = []
    for _ in range(3):
        bits = mufu.mufu(function, x, lambda bits: rng.uniform(-1, 1, bits.shape))
        errors.append(np.abs(bits.view(np.float32).astype(np.float64) - exact))
    worst = np.max([error / BOUNDS[function](exact) for error in errors], axis=1)
    assert (worst <= 1).all() and (worst > 0.5).all()
    assert (errors[0] != errors[1]).any()


def test_approximations_flush_subnormals_and_know_powers_of_two() -> None:
    def still(bits: np.ndarray) -> np.ndarray:
        return np.zeros(bits.shape)

    with np.errstate(divide="ignore"):
        x = np.array([1e-40, -1e-40, np.inf], np.float32)
        found = mufu.mufu("RCP", x, still).view(np.float32)
        assert found.tolist() == [np.inf, -np.inf, 0]
        assert mufu.mufu("EX2", np.array([-130], np.float32), still)[0] == 0
        powers = mufu.mufu("EX2", np.array([-3, 5], np.float32), lambda bits: np.ones(bits.shape))
        assert powers.view(np.float32).tolist() == [0.125, 32]
        assert mufu.mufu("LG2", np.array([1e-40], np.float32), still).view(np.float32)[0] == -np.inf
        high = np.array([2.0]).view(np.uint64) >> np.uint64(32)
        assert mufu.mufu_high("RCP64H", high.astype(np.uint32), still)[0] == 0x3FE00000
