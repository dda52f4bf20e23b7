"""Log likelihoods, elementwise and in nats, in the dtype of the output (float32 or float64).

Count likelihoods use Loader's saddle-point form (Loader 2000, "Fast and accurate computation of
binomial probabilities"), which writes the log probability as a sum of terms with the same sign. It
keeps its relative accuracy where the textbook form subtracts log-gammas that are millions of times
larger than their difference. Counts need not be integers: the formulas interpolate as lgamma does.

In all formulas, E(v) = v - ln(1 + v) (:func:`log1p_excess`), and S is the error of Stirling's
formula (:func:`stirling_error`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vae_fused._formulas.gaussian import clamped
from vae_fused._formulas.special import (
    LOG_2PI,
    elementwise,
    log1p_excess,
    sigmoid,
    softplus,
    stirling_error,
    stirling_error_slope,
)

# At this theta, every negative binomial equals a Poisson distribution to the last digit. Products
# of this number with factors of up to 1e8 are still representable in float32.
LARGEST = 1e30


# --------------------------------------------------------------------------------------------------
# Front ends: a network's output -> a mean and its logarithm, or theta
# --------------------------------------------------------------------------------------------------


def mean_of(
    raw: Tensor, kind: str, library: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return the mean, and also its logarithm if ``kind`` provides one that does not underflow.

    If a logarithm is returned, the gradient of a likelihood passes through the logarithm alone, and
    the mean carries only derivatives of that gradient. Therefore, even a mean that underflows to 0
    has a gradient. Masked elements do not take part in a softmax.
    """
    if kind == "identity":
        return raw, None
    if kind == "softplus":
        return softplus(raw), log_softplus(raw)
    if kind == "softmax":
        if mask is not None:
            raw = torch.where(mask, raw, torch.finfo(raw.dtype).min)
        raw = torch.log_softmax(raw, dim=-1)
    log_mean = raw if library is None else raw + library
    return torch.exp(log_mean), log_mean


def log_softplus(u: Tensor) -> Tensor:
    """The logarithm of ln(1 + e^u). Below u = -37, it equals u up to rounding."""
    return torch.where(u < -37.0, u, torch.log(softplus(clamped(u, -37.0))))


def theta_of(raw: Tensor, kind: str, largest: float | None) -> Tensor:
    """The inverse dispersion, at most ``largest``.

    The gradient is 0 above ``largest`` and passes at equality. The argument of an exponential is
    bounded first, because its gradient would otherwise be 0 * inf.
    """
    if kind == "exp":
        low = math.log(torch.finfo(raw.dtype).tiny)
        raw = torch.exp(clamped(raw, low, math.log(LARGEST)))
    elif kind == "softplus":
        raw = softplus(clamped(raw, math.log(torch.finfo(raw.dtype).tiny)))
    return clamped(raw, None, largest)


# --------------------------------------------------------------------------------------------------
# Bernoulli
# --------------------------------------------------------------------------------------------------


def bernoulli(x: Tensor, logit: Tensor) -> Tensor:
    r"""The value ln p = -((1 - x) ln(1 + e^l) + x ln(1 + e^-l)), for a target x in [0, 1].

    This equals -(ln(1 + e^l) - x l), but both terms have the same sign. A term with the factor 0 is
    0. Logits of -inf and inf are therefore exact wherever the true value is finite. Derivatives:

    .. math:: \partial_l = x s(-l) - (1 - x) s(l), \quad \partial_x = l
    """
    return _bernoulli(x, logit)


def _bernoulli_value(x: Tensor, logit: Tensor) -> Tensor:
    y = 1.0 - x
    zero = torch.where(y == 0.0, 0.0, y * softplus(logit))
    one = torch.where(x == 0.0, 0.0, x * softplus(-logit))
    return -(zero + one)


def _bernoulli_slopes(_: Any, x: Tensor, logit: Tensor) -> tuple[Tensor, Tensor]:
    return logit, x * sigmoid(-logit) - (1.0 - x) * sigmoid(logit)


_bernoulli = elementwise(_bernoulli_value, _bernoulli_slopes)


# --------------------------------------------------------------------------------------------------
# Poisson
# --------------------------------------------------------------------------------------------------


def poisson(x: Tensor, mean: Tensor, log_mean: Tensor | None, constants: bool) -> Tensor:
    r"""The value ln p = x ln m - m - ln x!, or x ln m - m without ``constants``.

    For x > 0, the value with constants is, with v = (m - x) / x,

    .. math:: \ln p = -x E(v) - S(x) - \tfrac12 \ln(2 \pi x)

    because ln x! = x ln x - x + 1/2 ln(2 pi x) + S(x). For x = 0, it is -m. Derivatives:
    (x - m) / m with respect to m, and x - m with respect to ln m.
    """
    return _poisson(x, mean, log_mean, constants)


def _poisson_value(x: Tensor, mean: Tensor, log_mean: Tensor | None, constants: bool) -> Tensor:
    if not constants:
        log = torch.log(mean) if log_mean is None else log_mean
        return torch.where(x == 0.0, 0.0, x * log) - mean
    zero = x == 0.0
    n = torch.where(zero, 1.0, x)
    log_ratio = _log_or(mean / n, log_mean, lambda log: log - torch.log(n))
    v = (clamped(mean, None, LARGEST) - n) / n
    value = -n * log1p_excess(v, log_ratio) - stirling_error(n) - 0.5 * (LOG_2PI + torch.log(n))
    return _in_domain(torch.where(zero, -mean, value), mean)


def _poisson_slopes(
    _: Any, x: Tensor, mean: Tensor, log_mean: Tensor | None, constants: bool
) -> tuple[Tensor | None, ...]:
    """Return only the derivative with respect to ln m or, if the call has no ln m, to m."""
    if log_mean is not None:
        return None, None, x - mean, None
    return None, _relative_excess(x, mean, 0.0), None, None


_poisson = elementwise(_poisson_value, _poisson_slopes)


# --------------------------------------------------------------------------------------------------
# Negative binomial
# --------------------------------------------------------------------------------------------------


def negative_binomial(
    x: Tensor, mean: Tensor, log_mean: Tensor | None, theta: Tensor, eps: float
) -> Tensor:
    r"""Log probability of the negative binomial with mean m and variance m + m^2 / theta.

    .. math::
        \ln p = -\theta \ln(1 + m/t) + x \ln(m_e / s)
            + \ln\Gamma(x + \theta) - \ln\Gamma(\theta) - \ln x!

    with t = theta + eps, m_e = m + eps and s = t + m. This is scvi-tools' formula with its eps. For
    eps = 0, it is the exact distribution. For x > 0, it equals, with n = x + theta,

    .. math::
        \ln p = -x E(v_1) - \theta E(v_2) + S(n) - S(\theta) - S(x)
            + \tfrac12 \ln\frac{\theta}{2 \pi x n} + \frac{n\,\mathrm{eps}}{s}

    where v1 = theta (m_e - x) / (s x), so that 1 + v1 = n m_e / (s x), and v2 = (x t / theta - m)
    / s, so that 1 + v2 = n t / (s theta). As theta grows, all terms vanish except for those of the
    Poisson distribution. Derivatives:

    .. math::
        \partial_m = \frac{\theta}{s} \frac{x - m_e}{m_e}, \qquad
        \partial_{\ln m} = m\,\partial_m, \qquad
        \partial_\theta = -E\Big(\frac{-m}{s}\Big) - \frac{\mathrm{eps}}{t} \frac{m}{s}
            + \sum_{k=0}^{x-1} \frac{m_e - k}{(\theta + k)\,s}

    The sum is 0 for x = 0. Otherwise, the code computes its first term separately, which is the
    whole sum for x = 1. With u = theta + 1 and digamma(z) = ln z - 1 / (2 z) + S'(z), the other
    terms are

    .. math::
        E\Big(\frac{1 - m_e}{s}\Big) - E\Big(\frac{x - m_e}{s}\Big)
            + \frac{x - 1}{2 n u} + S'(n) - S'(u)
    """
    return _negative_binomial(x, mean, log_mean, theta, eps)


def _negative_binomial_value(
    x: Tensor, mean: Tensor, log_mean: Tensor | None, theta: Tensor, eps: float
) -> Tensor:
    zero = x == 0.0
    x = torch.where(zero, 1.0, x)
    m, c = clamped(mean, None, LARGEST), _clipped(theta)
    me, t = m + eps, c + eps
    s, n = t + m, c + x
    r = m / t
    # If r is below rounding, ln(1 + r) equals r. r may underflow, so m * (c / t) replaces c * r.
    tail = torch.where(r < torch.finfo(r.dtype).eps, m * (c / t), c * torch.log1p(r))

    share = n / s
    log_ratio = _log_or(
        share * (me / x), None if eps else log_mean, lambda log: log + torch.log(share / x)
    )
    value = -x * log1p_excess(c / s * (((m - x) + eps) / x), log_ratio)
    v, growth = (x * (t / c) - m) / s, share * (t / c)
    value = value - c * log1p_excess(v, torch.log(growth))
    value = value + ((stirling_error(n) - stirling_error(c)) - stirling_error(x))
    value = value + 0.5 * (torch.log(c / n) - torch.log(x) - LOG_2PI)
    if eps:
        value = value + share * eps
    value = torch.where(theta == 0.0, -math.inf, value)  # the limit of the distribution
    value = torch.where(zero, -tail, value)
    return _in_domain(_in_domain(value, mean), theta, infinite=False)


def _negative_binomial_slopes(
    needs_grad: Sequence[bool],
    x: Tensor,
    mean: Tensor,
    log_mean: Tensor | None,
    theta: Tensor,
    eps: float,
) -> tuple[Tensor | None, ...]:
    """Return the slopes with respect to the mean, or to its logarithm if given, and to theta."""
    m, c = clamped(mean, None, LARGEST), _clipped(theta)
    t = c + eps
    s = t + m
    for_mean = for_log = for_theta = None
    if log_mean is not None and needs_grad[2]:
        share = c / s if eps == 0.0 else c / s * (m / (m + eps))
        for_log = share * ((x - m) - eps)
    if log_mean is None and needs_grad[1]:
        for_mean = c / s * _relative_excess(x, m, eps)
    if needs_grad[3]:
        q = m / s
        slope = -log1p_excess(-q, torch.log(t / s))
        if eps:
            slope = slope - eps / t * q
        for_theta = slope + _count_slope(x, m, eps, c, s)
    return None, for_mean, for_log, for_theta, None


_negative_binomial = elementwise(_negative_binomial_value, _negative_binomial_slopes)


def _count_slope(x: Tensor, mean: Tensor, eps: float, theta: Tensor, s: Tensor) -> Tensor:
    """The part of the derivative with respect to theta that is 0 for a count of 0."""
    zero = x == 0.0
    x = torch.where(zero, 1.0, x)
    n, following = theta + x, theta + 1.0
    # At x = 1, each of these differences is exactly 0.
    later = log1p_excess(((1.0 - mean) - eps) / s, torch.log(following / s))
    later = later - log1p_excess(((x - mean) - eps) / s, torch.log(n / s))
    later = later + (stirling_error_slope(n) - stirling_error_slope(following))
    later = later + 0.5 * ((x - 1.0) / n) / following
    return torch.where(zero, 0.0, (mean + eps) / s / theta + later)


# --------------------------------------------------------------------------------------------------
# Zero inflation
# --------------------------------------------------------------------------------------------------


def zero_inflated(x: Tensor, log_prob: Tensor, inflation: Tensor, kind: str) -> Tensor:
    r"""A mixture of a point mass at 0, with probability pi, and a count distribution.

    .. math::
        \ln p(0) = \ln(\pi + (1 - \pi) e^{-T}) = \ln(1 - (1 - \pi)(1 - e^{-T})), \qquad
        \ln p(x) = \ln(1 - \pi) + \ln p_0(x)

    where -T = ln p_0(0) is the log probability of a 0 without inflation. ``inflation`` is pi or its
    logit. The second form of ln p(0) is accurate for small T, and the first for large T.
    """
    zero = x == 0.0
    tail = torch.where(zero, -log_prob, 0.0)  # elsewhere unused, but it has gradients
    if kind == "logits":
        at_zero = _zero_by_logit(tail, inflation)
        return torch.where(zero, at_zero, log_prob - softplus(inflation))
    at_zero = _zero_by_probability(tail, inflation)
    return torch.where(zero, at_zero, log_prob + torch.log1p(-torch.where(zero, 0.0, inflation)))


def _zero_by_logit_value(tail: Tensor, logit: Tensor) -> Tensor:
    r"""The value ln p(0) from the logit l of pi, with u = -l - T.

    .. math:: \partial_T = -s(u), \qquad \partial_l = s(-l) - s(u) = s(-l) s(-u) (1 - e^{-T})
    """
    u = -logit - tail
    small = torch.log1p(torch.sigmoid(-logit) * torch.expm1(-tail))
    # ln(1 + e^u) - ln(1 + e^-l). For u > 0, both parts are large and close to each other, so u is
    # subtracted from both.
    inflated = softplus(u) - softplus(-logit)
    rare = (softplus(-u) - softplus(logit)) - tail
    return torch.where(tail <= 1.0, small, torch.where(u > 0.0, rare, inflated))


def _zero_by_logit_slopes(_: Any, tail: Tensor, logit: Tensor) -> tuple[Tensor, Tensor]:
    u = -logit - tail
    return -sigmoid(u), sigmoid(-logit) * sigmoid(-u) * -torch.expm1(-tail)


_zero_by_logit = elementwise(_zero_by_logit_value, _zero_by_logit_slopes)


def _zero_by_probability_value(tail: Tensor, probability: Tensor) -> Tensor:
    r"""The value ln p(0) from pi itself.

    .. math:: \partial_T = -(1 - \pi) e^{-T} / p(0), \qquad \partial_\pi = (1 - e^{-T}) / p(0)
    """
    small = torch.log1p((1.0 - probability) * torch.expm1(-tail))
    large = torch.logaddexp(torch.log(probability), torch.log1p(-probability) - tail)
    return torch.where(tail <= 1.0, small, large)


def _zero_by_probability_slopes(_: Any, tail: Tensor, probability: Tensor) -> tuple[Tensor, Tensor]:
    log_prob = _zero_by_probability(tail, probability)
    # Compute e^-T / p(0) as one exponential: both parts underflow for pi = 0 and a large T.
    by_tail = -(1.0 - probability) * torch.exp(-tail - log_prob)
    return by_tail, -torch.expm1(-tail) * torch.exp(-log_prob)


_zero_by_probability = elementwise(_zero_by_probability_value, _zero_by_probability_slopes)


# --------------------------------------------------------------------------------------------------
# Helpers
# --------------------------------------------------------------------------------------------------


def _log_or(value: Tensor, log: Tensor | None, other: Any) -> Tensor:
    """The logarithm of ``value``, or ``other(log)`` where ``value`` may have underflowed."""
    if log is None:
        return torch.log(value)
    tiny = torch.finfo(value.dtype).tiny
    return torch.where(value > tiny, torch.log(value), other(log))


def _relative_excess(x: Tensor, mean: Tensor, eps: float) -> Tensor:
    """(x - m) / m for m = ``mean`` + eps: -1 at x = 0 for any m, and never inf / inf."""
    me = mean + eps
    divisor = torch.where(x == 0.0, 1.0, me)
    ratio = torch.where(me > 2.0 * x, x / divisor - 1.0, ((x - mean) - eps) / divisor)
    return torch.where(x == 0.0, -1.0, ratio)


def _clipped(theta: Tensor) -> Tensor:
    """Clip theta to a range beyond which the distribution equals its limit up to rounding."""
    return clamped(theta, torch.finfo(theta.dtype).tiny, LARGEST)


def _in_domain(value: Tensor, parameter: Tensor, infinite: bool = True) -> Tensor:
    """Set the value to NaN for a negative parameter and, with ``infinite``, to -inf for inf."""
    if infinite:
        value = torch.where(parameter == math.inf, -math.inf, value)
    return torch.where(parameter < 0.0, math.nan, value)
