"""Log densities of real data and of data in an interval, elementwise and in nats.

As in ``vae_fused._formulas.likelihood``, E(v) = v - ln(1 + v) is :func:`log1p_excess`. The kernel
formulas in ``csrc/math/likelihood`` have the same derivations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vae_fused._formulas.gaussian import clamped
from vae_fused._formulas.special import (
    elementwise,
    log1p_excess,
    sigmoid,
    softplus,
    student_excess,
    student_excess_slope,
)

# With more degrees of freedom, the distribution equals a Gaussian to the last digit.
_MOST_DEGREES = 1e30


# --------------------------------------------------------------------------------------------------
# Student-t
# --------------------------------------------------------------------------------------------------


def student_t(
    distance: Tensor, sigma: Tensor, log_sigma: Tensor, df: Tensor, constants: bool
) -> Tensor:
    r"""The value ln p + 1/2 ln 2 pi for d = (x - mean) / sigma; ``distance`` is x - mean.

    .. math:: -\tfrac{n + 1}2 \ln(1 + d^2 / n) - \ln \sigma - k(n)

    where k(n) is the excess of the log normalizer over the Gaussian's 1/2 ln 2 pi
    (:func:`student_excess`). Without ``constants``, k(n) is omitted. Derivatives:

    .. math::
        \partial_d = -\frac{(n + 1)\,d}{n + d^2}, \qquad
        \partial_{\ln \sigma} = \frac{n (d^2 - 1)}{n + d^2}, \qquad
        \partial_n = -\tfrac12 E\Big(\frac{-d^2}{n + d^2}\Big) + \frac{d^2}{2 n (n + d^2)} - k'(n)

    Where |d| > 1, numerators and denominators are divided by d^2, which may overflow. The gradient
    reaches sigma only through ``log_sigma``. Only derivatives of the gradients pass through
    ``sigma`` itself.
    """
    return _student_t(distance, sigma, log_sigma, df, constants)


def _degrees(df: Tensor) -> Tensor:
    """Clamp df to a range in which quotients are finite. A negative df gives NaN."""
    inside = clamped(df, torch.finfo(df.dtype).tiny * 2.0**40, _MOST_DEGREES)
    return torch.where(df < 0.0, math.nan, inside)


def _log_growth(d: Tensor, n: Tensor) -> Tensor:
    """ln(1 + d^2 / n), even where d^2 / n overflows."""
    ratio = (d / n) * d
    far = 2.0 * torch.log(d.abs()) - torch.log(n)
    return torch.where(ratio > 1e20, far, torch.log1p(ratio))


def _student_t_value(
    distance: Tensor, sigma: Tensor, log_sigma: Tensor, df: Tensor, constants: bool
) -> Tensor:
    n = _degrees(df)
    value = -0.5 * (n + 1.0) * _log_growth(distance / sigma, n) - log_sigma
    return value - student_excess(n) if constants else value


def _student_t_slopes(
    needs_grad: Sequence[bool],
    distance: Tensor,
    sigma: Tensor,
    log_sigma: Tensor,
    df: Tensor,
    constants: bool,
) -> tuple[Tensor | None, ...]:
    d, n = distance / sigma, _degrees(df)
    far = d.abs() > 1.0
    near_d, per_d = torch.where(far, 0.0, d), 1.0 / torch.where(far, d, 1.0)
    one = torch.where(far, per_d * per_d, 1.0)
    square = torch.where(far, 1.0, near_d * near_d)
    whole = n * one + square
    by_distance = -(n + 1.0) * torch.where(far, per_d, near_d) / whole / sigma
    by_log_sigma = n * (square - one) / whole
    by_df = None
    if needs_grad[3]:
        share = square / whole
        excess = log1p_excess(-share, -_log_growth(d.detach(), n.detach()))
        by_df = -0.5 * (excess - share / n)
        if constants:
            by_df = by_df - student_excess_slope(n)
    return by_distance, None, by_log_sigma, by_df, None


_student_t = elementwise(_student_t_value, _student_t_slopes)


# --------------------------------------------------------------------------------------------------
# Continuous Bernoulli
# --------------------------------------------------------------------------------------------------

# Coefficients of ln(sinh(l/2) / (l/2)) in powers of l^2: (-1)^n zeta(2 n + 2) / ((n + 1)
# (2 pi)^(2 n + 2)). Up to |l| = 1, 5 terms are enough for float32 and 12 for float64.
_SINHC = (
    1 / 24, -1 / 2880, 5.5114638447971781305e-6, -1.0333994708994708995e-7,
    2.0876756987868098979e-9, -4.403491782239577654e-11, 9.558954664774770595e-13,
    -2.1185501852016142918e-14, 4.770034475709913647e-16, -1.0874343492790309365e-17,
    2.504092194709195234e-19, -5.8143602857552180586e-21,
)  # fmt: skip
_SINHC_TERMS = {torch.float32: 5, torch.float64: 12}


def continuous_bernoulli(x: Tensor, logit: Tensor) -> Tensor:
    r"""The value ln p = x l - ln((e^l - 1) / l), for a target x in [0, 1].

    Near l = 0, this is l (x - 1/2) - ln(sinh(l/2) / (l/2)), whose last term is a series. Elsewhere,
    it is -|l| w + ln(|l| / (1 - e^-|l|)), with w = 1 - x for l > 0 and w = x for l < 0.
    Derivatives:

    .. math:: \partial_l = (x - \tfrac12) - \tfrac12 \coth\tfrac l2 + \tfrac1l, \quad \partial_x = l
    """
    return _continuous_bernoulli(x, logit)


def _continuous_bernoulli_value(x: Tensor, logit: Tensor) -> Tensor:
    size = logit.abs()
    square = torch.where(size < 1.0, logit, 0.0) ** 2
    near = logit * (x - 0.5) - square * _sinhc(square, lambda n: 1.0)
    weight = torch.where(logit > 0.0, 1.0 - x, x)
    linear = torch.where(weight == 0.0, 0.0, size * weight)
    far = torch.log(size) - torch.log1p(-torch.exp(-size)) - linear
    far = torch.where((size == math.inf) & (weight != 0.0), -linear, far)
    return torch.where(size < 1.0, near, far)


def _continuous_bernoulli_slopes(_: Any, x: Tensor, logit: Tensor) -> tuple[Tensor, Tensor]:
    is_near = logit.abs() < 1.0
    near, far = torch.where(is_near, logit, 0.0), torch.where(is_near, 2.0, logit.abs())
    series = (x - 0.5) - near * _sinhc(near * near, lambda n: 2.0 * (n + 1))
    e = torch.exp(-far)
    rest = e / (1.0 - e) - 1.0 / far
    closed = torch.where(logit > 0.0, (x - 1.0) - rest, x + rest)
    return logit, torch.where(is_near, series, closed)


def _sinhc(square: Tensor, factor: Any) -> Tensor:
    series = torch.zeros_like(square)
    for n in range(_SINHC_TERMS[square.dtype] - 1, -1, -1):
        series = series * square + factor(n) * _SINHC[n]
    return series


_continuous_bernoulli = elementwise(_continuous_bernoulli_value, _continuous_bernoulli_slopes)


# --------------------------------------------------------------------------------------------------
# Discretized logistic
# --------------------------------------------------------------------------------------------------


def floored(log_scale: Tensor, least: float) -> Tensor:
    """Clamp the log scale to at least ``least``. The gradient is 0 below and passes at equality."""
    return clamped(log_scale, least)


def discretized_logistic(
    x: Tensor, mean: Tensor, log_scale: Tensor, bits: int, least: float
) -> Tensor:
    r"""Log probability of x on a grid of 2^bits values in [-1, 1].

    With h = 1 / (2^bits - 1), s the floored log scale, i = e^-s, p = i (x - m + h) and
    q = i (x - m - h):

    .. math::
        \ln p(x) = -\ln(1 + e^{-p}) - \ln(1 + e^q) + \ln(1 - e^{q - p})

    For the first value of the grid, only the first term is used, and for the last value, only the
    second. Derivatives, where S is the sigmoid and d = p - q:

    .. math::
        \partial_m = i (S(q) - S(-p)), \qquad \partial_s = q S(q) - p S(-p) - d / (e^d - 1)
    """
    return _discretized(x, mean, floored(log_scale, least), bits)


def _edges(x: Tensor, mean: Tensor, s: Tensor, bits: int) -> tuple[Tensor, ...]:
    half = 1.0 / (2**bits - 1)
    inverse, distance = torch.exp(-s), x - mean
    p, q = inverse * (distance + half), inverse * (distance - half)
    return inverse, p, q, 2.0 * half * inverse, x < half - 1.0, x > 1.0 - half


def _discretized_value(x: Tensor, mean: Tensor, s: Tensor, bits: int) -> Tensor:
    _, p, q, width, first, last = _edges(x, mean, s, bits)
    below, above = softplus(-p), softplus(q)
    small = width < torch.finfo(width.dtype).tiny * 2.0**24
    wide = s - math.log(2.0 / (2**bits - 1))
    within = torch.where(small, wide, -torch.log(-torch.expm1(-width)))
    within = torch.where(width > 1.0, -torch.log1p(-torch.exp(-width)), within)
    return -torch.where(first, below, torch.where(last, above, below + above + within))


def _discretized_slopes(
    _: Any, x: Tensor, mean: Tensor, s: Tensor, bits: int
) -> tuple[Tensor | None, ...]:
    inverse, p, q, width, first, last = _edges(x, mean, s, bits)
    below = torch.where(last, 0.0, sigmoid(-p))
    above = torch.where(first, 0.0, sigmoid(q))
    small = width < torch.finfo(width.dtype).tiny * 2.0**24
    d = torch.where(small, 1.0, width)
    within = torch.where(small, 1.0, d * torch.exp(-d) / -torch.expm1(-d))
    within = torch.where(first | last, 0.0, within)
    of_p = torch.where(below == 0.0, 0.0, p) * below
    of_q = torch.where(above == 0.0, 0.0, q) * above
    return None, inverse * (above - below), of_q - of_p - within, None


_discretized = elementwise(_discretized_value, _discretized_slopes)
