"""Compares csrc/math with float64, on the domains and within the bounds that its comments state."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

TWO_PI = 2 * np.pi


def philox(seed: int, counter: int) -> list[int]:
    """Computes Philox4x32-10 in Python integers, as described in the paper."""
    c = [counter & 0xFFFFFFFF, counter >> 32 & 0xFFFFFFFF, 0, 0]
    k = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [b >> 32 ^ c[1] ^ k[0], b & 0xFFFFFFFF, a >> 32 ^ c[3] ^ k[1], a & 0xFFFFFFFF]
        k = [k[0] + 0x9E3779B9 & 0xFFFFFFFF, k[1] + 0xBB67AE85 & 0xFFFFFFFF]
    return c


def ulps(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """|got - expected| in units in the last place of the expected float."""
    step = np.ldexp(1.0, np.maximum(np.frexp(expected)[1], -125) - 24)
    return np.abs(got.astype(np.float64) - expected) / step


def floats_between(low: float, high: float, n: int) -> np.ndarray:
    """Returns n floats whose bit patterns are evenly spaced, so that all exponents occur."""
    a, b = np.float32([low, high]).view(np.uint32).astype(np.int64)
    return np.linspace(a, b, n).round().astype(np.uint32).view(np.float32)


def test_philox_gives_the_known_answer(native: ModuleType) -> None:
    # D. E. Shaw Research, Random123, kat_vectors
    assert [hex(w) for w in native.philox(0, 0, 1)[0]] == [
        "0x6627e8d5", "0xe169c58d", "0xbc57ac4c", "0x9b00dbd8",
    ]  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1, 0x0123456789ABCDEF, 2**64 - 1])
@pytest.mark.parametrize("first", [0, 2**32 - 2, 2**64 - 4])
def test_philox_follows_the_paper(native: ModuleType, seed: int, first: int) -> None:
    assert native.philox(seed, first, 4).tolist() == [philox(seed, first + b) for b in range(4)]


def test_exponentials_are_within_2_ulp(native: ModuleType) -> None:
    x = floats_between(1e-30, 208, 1 << 20)
    for values in (x[x < 88.37], -x[x < 87.6]):
        assert ulps(native.exp(values)[:, 0], np.exp(values.astype(np.float64))).max() <= 2
    for values in (x[x < 176.7], -x[x < 175.3]):
        sigma = native.exponentials(values)[:, 0]
        assert ulps(sigma, np.exp(0.5 * values.astype(np.float64))).max() <= 2


def test_exponentials_are_0_or_inf_where_their_power_of_two_is(native: ModuleType) -> None:
    x = np.linspace(175.4, 208, 1 << 12, dtype=np.float32)
    np.testing.assert_array_equal(native.exponentials(-x)[:, 0], 0)
    np.testing.assert_array_equal(native.exponentials(x + 1.4)[:, 0], np.inf)
    far, inf, nan = np.float32(1e30), np.inf, np.nan
    ends = np.float32([0, 178, far, inf, -210, -far, -inf, nan])
    np.testing.assert_array_equal(native.exp(ends)[:, 0], [1, inf, inf, inf, 0, 0, 0, nan])
    g, h = [0, inf, inf, inf, 209, far, inf, nan], [0, inf, inf, inf, -1, -1, -1, nan]
    got = native.exponentials(ends).T
    for row, want in zip(got, ([1, inf, inf, inf, 0, 0, 0, nan], g, h, g, h), strict=True):
        np.testing.assert_array_equal(row, np.float32(want))


def test_log_is_within_2_ulp(native: ModuleType) -> None:
    x = floats_between(2.0**-33, 1, 1 << 20)[:-1]
    assert ulps(native.log(x)[:, 0], np.log(x.astype(np.float64))).max() <= 2
    assert native.log(np.float32([1]))[0, 0] == 0


def test_polar_is_within_its_bound(native: ModuleType) -> None:
    x = np.linspace(0, TWO_PI, 1 << 20, dtype=np.float32)
    exact = x.astype(np.float64)
    expected = np.stack([np.sin(exact), np.cos(exact)], axis=1)
    assert np.abs(native.polar(x) - expected).max() <= 1.6e-7


@pytest.mark.parametrize(("dtype", "bound"), [(np.float32, 1e-6), (np.float64, 2e-15)])
def test_the_excess_of_exp_keeps_its_relative_accuracy(
    native: ModuleType, dtype: type, bound: float
) -> None:
    positive = floats_between(1e-18, 20, 1 << 18).astype(dtype)
    x = np.concatenate([positive, -positive])
    exact = x.astype(np.longdouble)
    small = np.abs(exact) < 0.1
    terms = np.where(small, exact, 0)
    series, term = np.zeros_like(exact), terms
    for k in range(2, 16):
        term = term * terms / k
        series = series + term
    expected = np.where(small, series, np.expm1(exact) - exact)
    columns = native.exponentials(x).T.astype(np.float64)
    for g, h in (columns[1:3], columns[3:5]):
        assert (g >= 0).all()
        assert np.max(np.abs(g / expected - 1)) <= bound
        assert np.max(np.abs(h / np.expm1(exact) - 1)) <= bound


def test_normals_are_those_of_the_words(native: ModuleType) -> None:
    seed, offset, n = 1234, 5, 1 << 16
    words = native.philox(seed, offset, n // 4).astype(np.float64)
    u = words * 2.0**-32 + 2.0**-33
    r = np.sqrt(-2 * np.log(u[:, ::2]))
    expected = np.stack([r * np.cos(TWO_PI * u[:, 1::2]), r * np.sin(TWO_PI * u[:, 1::2])], axis=2)
    got = native.normals32(seed, offset, 0, n).reshape(-1, 2, 2)
    # Rounding u and 2 pi u to float, as PyTorch does too, contributes 1e-6.
    assert np.abs(got - expected).max() <= 4e-6


def test_coarse_normals_are_those_of_the_words(native: ModuleType) -> None:
    """The documented hardware errors apply even where u1 is near 1, and r is below 1e-3."""
    n = 1 << 22
    want = native.normals32(77, 0, 0, n).astype(np.float64)
    assert np.hypot(want[::2], want[1::2]).min() < 1e-3
    assert np.abs(native.probes.coarse_normals(77, n) - want).max() <= 1e-5


def test_coarse_exponentials_are_within_their_bound(native: ModuleType) -> None:
    """The KL of an element uses e^x - 1 - x for |x| <= 20, computed by a polynomial near 0."""
    near = floats_between(1e-4, 0.75, 1 << 16)
    x = np.concatenate([near, -near]).astype(np.longdouble)
    got = native.probes.coarse_exponentials(x.astype(np.float32))[:, 1]
    assert np.abs(got / (np.expm1(x) - x) - 1).max() <= 5e-7
    positive = floats_between(0.75, 20.0, 1 << 16)[1:]
    x = np.concatenate([positive, -positive])
    got, exact = native.probes.coarse_exponentials(x).astype(np.float64), x.astype(np.float64)
    assert np.abs(got[:, 0] / np.exp(exact / 2) - 1).max() <= 1.5e-6
    assert np.abs(got[:, 1] / (np.exp(exact) - 1 - exact) - 1).max() <= 4e-6
    ends = native.probes.coarse_exponentials(np.float32([-np.inf, np.inf, np.nan]))
    np.testing.assert_array_equal(ends, [[0, np.inf], [np.inf, np.inf], [np.nan, np.nan]])


def test_normals_in_double_are_those_of_the_words(native: ModuleType) -> None:
    seed, offset, n = 1234, 5, 1 << 12
    words = native.philox(seed, offset, n // 2).astype(np.float64)
    u = words[:, ::2] * 2.0**-32 + words[:, 1::2] * 2.0**-64 + 2.0**-65
    r = np.sqrt(-2 * np.log(u[:, 0]))
    expected = np.stack([r * np.cos(TWO_PI * u[:, 1]), r * np.sin(TWO_PI * u[:, 1])], axis=1)
    got = native.normals64(seed, offset, 0, n).reshape(-1, 2)
    assert np.abs(got - expected).max() <= 1e-14


@pytest.mark.parametrize("name", ["normals32", "normals64"])
def test_a_normal_depends_on_its_index_alone(native: ModuleType, name: str) -> None:
    normals = getattr(native, name)
    whole = normals(7, 3, 0, 64)
    for first in (1, 2, 3, 7, 30):
        np.testing.assert_array_equal(normals(7, 3, first, 20), whole[first : first + 20])


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("offset", [0, 2**32 - 100, 2**64 - 100])
def test_vectors_compute_what_the_formulas_say(native: ModuleType, bits: int, offset: int) -> None:
    """Both give the same bits, because one compiler built both without FMA. Counters may wrap."""
    seed, noise = 0x0123456789ABCDEF, getattr(native, f"noise{bits}")
    want = getattr(native, f"normals{bits}")(seed, offset, 0, 5000)
    for first in (0, 1, 2, 3, 4, 301):
        for n in (0, 1, 2, 3, 31, 32, 33, 64, 257, 2048, 2051):
            got = noise(seed, offset, first, n)
            np.testing.assert_array_equal(got, want[first : first + n])
    shuffled = np.random.default_rng(0).permutation(5000).astype(np.uint64)
    for n in (1, 2, 15, 16, 17, 5000):
        np.testing.assert_array_equal(noise(seed, offset, shuffled[:n]), want[shuffled[:n]])


@pytest.mark.parametrize(("name", "bits"), [("divide", 63), ("divide32", 31), ("divide_small", 31)])
def test_division_by_an_invariant_is_exact(native: ModuleType, name: str, bits: int) -> None:
    divide, rng, top = getattr(native, name), np.random.default_rng(0), 2**bits - 1
    divisors = [1, 2, 3, 5, 7, 641, 2048, 2**31 - 1, 2**32 + 1, 2**62 - 57, 2**62, top]
    divisors += [max(1, int(d) >> int(s)) for d, s in rng.integers(1, (top, bits), (200, 2))]
    for d in (d for d in divisors if d <= top):
        multiples = [q * d for q in (1, 2, top // d - 1, top // d) if q * d <= top]
        numerators = [0, top, *multiples, *(n - 1 for n in multiples if n)]
        numerators += map(int, rng.integers(0, top, 20))
        assert [divide(n, d) for n in numerators] == [n // d for n in numerators]
