"""Compares the bases of csrc/math/scale.h and their functions with mpmath and float64."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import mpmath
import numpy as np
import pytest

from .test_math import floats_between, ulps

ALL = np.concatenate([floats_between(1e-45, 3e38, 1 << 19), -floats_between(1e-45, 3e38, 1 << 19)])
ENDS = np.float32([0, np.inf, -np.inf, np.nan])


def test_log_of_any_argument_is_within_2_ulp(native: ModuleType) -> None:
    x = ALL[ALL > 0]
    assert ulps(native.log_any(x)[:, 0], np.log(x.astype(np.float64))).max() <= 2
    ends = native.log_any(np.concatenate([ENDS, np.float32([-1, -1e-40])]))[:, 0]
    np.testing.assert_array_equal(ends, [-np.inf, np.inf, np.nan, np.nan, np.nan, np.nan])


def test_log1p_is_within_2_ulp(native: ModuleType) -> None:
    x = floats_between(1e-38, 1, 1 << 20)
    assert ulps(native.log1p_unit(x)[:, 0], np.log1p(x.astype(np.float64))).max() <= 2
    assert native.log1p_unit(np.float32([0]))[0, 0] == 0


def test_tanh_and_its_derivative(native: ModuleType) -> None:
    x = ALL[np.abs(ALL) < 40]
    exact = x.astype(np.float64)
    value, derivative = native.tanh(x).T
    assert ulps(value, np.tanh(exact)).max() <= 3
    assert ulps(derivative, np.cosh(exact) ** -2.0).max() <= 6
    ends = native.tanh(ENDS)
    np.testing.assert_array_equal(ends[:, 0], [0, 1, -1, np.nan])
    np.testing.assert_array_equal(ends[:, 1], [1, 0, 0, np.nan])


def softplus(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def log_softplus(x: np.ndarray) -> np.ndarray:
    tiny = np.exp(np.minimum(x, 0))
    return np.where(x < -36, x - 0.5 * tiny, np.log(softplus(np.maximum(x, -36))))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(np.minimum(x, 0)) / (1 + np.exp(-np.abs(x)))


Formulas = tuple[Callable[[np.ndarray], np.ndarray], ...]
# For each base: the domain in which results are accurate to a few ulp, and the formulas for sigma,
# ln sigma^2 and their derivatives.
BASES: dict[str, tuple[float, float, Formulas]] = {
    "exp": (-87, 88, (np.exp, lambda x: 2 * x, np.exp, lambda x: 2 + 0 * x)),
    "identity": (
        1e-37, 1e38, (lambda x: x, lambda x: 2 * np.log(x), lambda x: 1 + 0 * x, lambda x: 2 / x),
    ),
    "sqrt": (1e-37, 1e38, (np.sqrt, np.log, lambda x: 0.5 / np.sqrt(x), lambda x: 1 / x)),
    "softplus": (
        -1e4, 1e4,
        (softplus, lambda x: 2 * log_softplus(x), sigmoid,
         lambda x: 2 * np.exp(np.log(np.maximum(sigmoid(np.maximum(x, -36)), 1e-300))
                              - log_softplus(np.maximum(x, -36)))),
    ),
    "sigmoid": (
        -1e4, 1e4,
        (sigmoid, lambda x: 2 * (np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x)))),
         lambda x: sigmoid(x) * sigmoid(-x), lambda x: 2 * sigmoid(-x)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("base", BASES)
def test_a_base_in_float(native: ModuleType, base: str) -> None:
    low, high, formulas = BASES[base]
    x = floats_between(max(low, 1e-37), high, 1 << 18)
    x = np.concatenate([x, -x, np.float32([0.0])]) if low < 0 else x
    x = x[(x >= low) & (x <= high)]
    got, exact = native.scale_base(base, x), x.astype(np.float64)
    for column, formula in enumerate(formulas):
        expected = formula(exact)
        # Near 0, the absolute accuracy of ln softplus^2 is limited by the rounding of softplus near
        # 1. A denormal sigma may be 0.
        slack = 0.2 if (base, column) == ("softplus", 1) else 2.4e-32
        error = np.abs(got[:, column] - expected) / (np.abs(expected) + slack)
        assert error.max() <= 1e-6, (column, x[error.argmax()])


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("x", [-700.0, -36.5, -1.0, -1e-3, 0.0, 1e-3, 0.3, 1.0, 20.0, 700.0])
def test_a_base_in_double(native: ModuleType, base: str, x: float) -> None:
    if base in ("identity", "sqrt") and x <= 0:
        assert np.isnan(native.scale_base(base, np.float64([x]))[0, 1]) or x == 0
        return
    mpmath.mp.dps = 340  # 1 + e^-700
    functions = {
        "exp": mpmath.exp,
        "identity": lambda t: t,
        "sqrt": mpmath.sqrt,
        "softplus": lambda t: mpmath.log1p(mpmath.exp(t)),
        "sigmoid": lambda t: 1 / (1 + mpmath.exp(-t)),
    }
    sigma = functions[base]
    expected = [
        sigma(mpmath.mpf(x)),
        2 * mpmath.log(sigma(mpmath.mpf(x))),
        mpmath.diff(sigma, x),
        mpmath.diff(lambda t: 2 * mpmath.log(sigma(t)), x),
    ]
    got = native.scale_base(base, np.float64([x]))[0]
    for g, e in zip(got, expected, strict=True):
        assert abs(g - e) <= 1e-14 * (abs(e) + mpmath.mpf("1e-300")) + (1e-15 if e else 0)


def test_a_negative_standard_deviation_is_nan(native: ModuleType) -> None:
    for base in ("identity", "sqrt"):
        for dtype in (np.float32, np.float64):
            assert np.isnan(native.scale_base(base, dtype([-0.5]))[0, :2]).all()


def test_sigma_at_the_ends(native: ModuleType) -> None:
    x = np.float32([-np.inf, np.inf, np.nan])
    for base, low, high in (("exp", 0, np.inf), ("softplus", 0, np.inf), ("sigmoid", 0, 1)):
        np.testing.assert_array_equal(native.scale_base(base, x)[:, 0], [low, high, np.nan])
