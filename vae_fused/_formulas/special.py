"""Special functions that stay accurate where the textbook form cancels.

All functions are elementwise, compute in the dtype of their arguments (float32 or float64), and are
differentiable to any order in reverse and forward mode. Derivatives are written out where those
computed by autograd would be less accurate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from vae_fused._forward_mode import tangents, without_jvp
from vae_fused._shapes import has_shape

LOG_2PI = 1.8378770664093453


def elementwise(
    value: Callable[..., Tensor], slopes: Callable[..., tuple[Tensor | None, ...]]
) -> Callable[..., Tensor]:
    """Make an elementwise function of broadcastable tensors, with explicit partial derivatives.

    Args:
        value: The function. Arguments that are not tensors are passed unchanged.
        slopes: Its derivatives: ``slopes(needs_grad, *inputs)`` returns one for each input, or None
            if the input has none or needs none. ``slopes`` must consist of differentiable
            operations.
    """

    class Elementwise(torch.autograd.Function):
        generate_vmap_rule = True
        forward = staticmethod(value)  # keeps its signature, which Dynamo inspects

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            ctx.others = [None if isinstance(x, Tensor) else x for x in inputs]
            tensors = [x if isinstance(x, Tensor) else None for x in inputs]
            ctx.save_for_backward(*tensors)
            if not torch.compiler.is_compiling():
                ctx.save_for_forward(*tensors)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
            tensors = ctx.saved_tensors
            by = slopes(ctx.needs_input_grad, *_merged(tensors, ctx.others))
            return tuple(
                None if slope is None or not needed else summed_to(grad * slope, tensor)
                for slope, needed, tensor in zip(by, ctx.needs_input_grad, tensors, strict=True)
            )

        @staticmethod
        @tangents
        def jvp(ctx: Any, saved: list[Any], *given: Tensor | None) -> Tensor:
            by = slopes([t is not None for t in given], *_merged(saved, ctx.others))
            both = zip(by, given, strict=True)
            terms = [slope * t for slope, t in both if slope is not None and t is not None]
            tensors = torch.broadcast_tensors(*(t for t in saved if t is not None))
            return sum(terms, start=torch.zeros_like(tensors[0]))

    traced = without_jvp(Elementwise)

    def function(*inputs: Any) -> Tensor:
        chosen: Any = traced if torch.compiler.is_compiling() else Elementwise
        result: Tensor = chosen.apply(*inputs)
        return result

    return function


def _merged(tensors: Sequence[Tensor | None], others: list[Any]) -> list[Any]:
    return [other if t is None else t for t, other in zip(tensors, others, strict=True)]


def summed_to(grad: Tensor, like: Tensor) -> Tensor:
    """Sum a gradient to the shape of its tensor, which may have been broadcast."""
    return grad if has_shape(grad, like.shape) else grad.sum_to_size(like.shape)


def sigmoid(u: Tensor) -> Tensor:
    """1 / (1 + e^-u).

    torch computes its derivative as s (1 - s), in which 1 - s is inaccurate where s is near 1. For
    u > 0, this returns 1 - sigmoid(-u), whose derivative is that of sigmoid(-u).
    """
    return torch.where(u > 0.0, 1.0 - torch.sigmoid(-u), torch.sigmoid(u))


def softplus(u: Tensor) -> Tensor:
    """ln(1 + e^u), without the threshold of ``torch.nn.functional.softplus``."""
    return -logsigmoid(-u)


# --------------------------------------------------------------------------------------------------
# Excess of a logarithm
# --------------------------------------------------------------------------------------------------

# ln 2 times the number of significand bits, which determines how many terms a series needs.
_DIGITS = {torch.float32: 24.0 * math.log(2.0), torch.float64: 53.0 * math.log(2.0)}


def _terms(dtype: torch.dtype, largest: float) -> int:
    """Return how many terms in s^2 leave a remainder below rounding for |s| <= ``largest``."""
    return math.ceil(-0.5 * _DIGITS[dtype] / math.log(largest))


def log1p_excess(v: Tensor, log_growth: Tensor) -> Tensor:
    r"""E(v) = v - ln(1 + v), which is never negative, for v > -1.

    With s = v / (2 + v), the logarithm is 2 atanh(s), and v - 2 s = v s, so that

    .. math:: E(v) = v s - 2 s^3 (1/3 + s^2/5 + s^4/7 + \dots)

    The series is used for -1/2 <= v <= 1, where |s| <= 1/3. Elsewhere, the difference loses at most
    three bits.

    Args:
        v: The argument.
        log_growth: ln(1 + v), which replaces the series outside its range. The caller computes it
            from the inputs of v, because near -1 v retains few digits of 1 + v. ``log_growth`` gets
            no gradient, because E'(v) = v / (1 + v) is the whole derivative.
    """
    return _log1p_excess(v, log_growth)


def _log1p_excess_value(v: Tensor, log_growth: Tensor) -> Tensor:
    near = (v >= -0.5) & (v <= 1.0)
    w = torch.where(near, v, 0.0)
    s = w / (2.0 + w)
    square, series = s * s, torch.zeros_like(s)
    for n in range(_terms(v.dtype, 1.0 / 3.0), 0, -1):
        series = series * square + 1.0 / (2 * n + 1)
    return torch.where(near, w * s - 2.0 * s * square * series, v - log_growth)


def _log1p_excess_slopes(_: Any, v: Tensor, log_growth: Tensor) -> tuple[Tensor, None]:
    # Near -1, only the logarithm retains the digits of 1 + v.
    growth = torch.where(v < -0.5, torch.exp(log_growth), 1.0 + v)
    return v / growth, None


_log1p_excess = elementwise(_log1p_excess_value, _log1p_excess_slopes)


# --------------------------------------------------------------------------------------------------
# The error of Stirling's formula
# --------------------------------------------------------------------------------------------------

# Stieltjes' continued fraction S(z) = a0 / (z + a1 / (z + a2 / (z + ...))). Its error at the
# smallest z in use, _SHIFT, is 2e-9 in float32 (z = 3, five terms) and 9e-18 in float64 (z = 5,
# twelve terms).
_FRACTION = (
    1 / 12, 1 / 30, 53 / 210, 195 / 371, 22999 / 22737, 29944523 / 19733142,
    109535241009 / 48264275462, 3.0099173832593981701, 4.0268871923439012261,
    5.0027680807540300517, 6.2839113708157821801, 7.4959191223839338298,
)  # fmt: skip
_FRACTION_TERMS = {torch.float32: 5, torch.float64: 12}
_SHIFT = {torch.float32: 3, torch.float64: 5}


def stirling_error(z: Tensor) -> Tensor:
    r"""S(z) = ln Gamma(z) - ((z - 1/2) ln z - z + 1/2 ln 2 pi), for z > 0.

    S is positive and decreases like 1 / (12 z). For large z, it is computed as a continued
    fraction. Small z are shifted by S(z) = S(z + 1) + c(z), where, with s = 1 / (2 z + 1),

    .. math:: c(z) = (z + 1/2) \ln(1 + 1/z) - 1 = \mathrm{atanh}(s) / s - 1
              = s^2/3 + s^4/5 + s^6/7 + \dots

    All terms are positive, so nothing cancels. (Loader 2000, "Fast and accurate computation of
    binomial probabilities", uses S for the same purpose.)
    """
    return _stirling_error(z)


def stirling_error_slope(z: Tensor) -> Tensor:
    r"""S'(z) = digamma(z) - ln z + 1 / (2 z), which is negative, for z > 0.

    It is computed like S. The derivative of the shift is

    .. math:: c'(z) = \ln(1 + 1/z) - (z + 1/2) / (z (z + 1))
              = -2 s \sum_{n \ge 1} \frac{2 n}{2 n + 1} s^{2 n}
    """
    return _stirling_error_slope(z)


def _shifted(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return whether z is shifted, and the argument for the continued fraction."""
    shift = _SHIFT[z.dtype]
    small = z < shift
    return small, torch.where(small, z + shift, z)


def _stirling_error_value(z: Tensor) -> Tensor:
    small, far = _shifted(z)
    value = torch.zeros_like(z)
    for a in reversed(_FRACTION[: _FRACTION_TERMS[z.dtype]]):
        value = a / (far + value)
    near = torch.where(small, z, 1.0)
    steps = [_shift_term(near + k, k) for k in range(_SHIFT[z.dtype])]
    return torch.where(small, sum(steps, start=value), value)


def _stirling_error_slopes(_: Any, z: Tensor) -> tuple[Tensor]:
    return (stirling_error_slope(z),)


_stirling_error = elementwise(_stirling_error_value, _stirling_error_slopes)


def _stirling_error_slope_value(z: Tensor) -> Tensor:
    small, far = _shifted(z)
    value, slope = torch.zeros_like(z), torch.zeros_like(z)
    for a in reversed(_FRACTION[: _FRACTION_TERMS[z.dtype]]):
        below = far + value
        value, slope = a / below, -a * (1.0 + slope) / below / below
    near = torch.where(small, z, 1.0)
    steps = [_shift_slope(near + k, k) for k in range(_SHIFT[z.dtype])]
    return torch.where(small, sum(steps, start=slope), slope)


def _stirling_error_slope_slopes(_: Any, z: Tensor) -> tuple[Tensor]:
    return (_stirling_error_curvature(z),)


_stirling_error_slope = elementwise(_stirling_error_slope_value, _stirling_error_slope_slopes)


def _shift_term(z: Tensor, k: int) -> Tensor:
    """Return the term c(z) of :func:`stirling_error`. z must be at least ``k``.

    Below z = 1, the closed form is used, because it loses few digits there.
    """
    s = 1.0 / (2.0 * z + 1.0)
    square, series = s * s, torch.zeros_like(z)
    for n in range(_terms(z.dtype, 1.0 / (2 * max(k, 1) + 1)), 0, -1):
        series = (series + 1.0 / (2 * n + 1)) * square
    return series if k else torch.where(z < 1.0, (z + 0.5) * torch.log1p(1.0 / z) - 1.0, series)


def _shift_slope(z: Tensor, k: int) -> Tensor:
    """Return the term c'(z) of :func:`stirling_error_slope`. z must be at least ``k``."""
    s = 1.0 / (2.0 * z + 1.0)
    square, series = s * s, torch.zeros_like(z)
    for n in range(_terms(z.dtype, 1.0 / (2 * max(k, 1) + 1)), 0, -1):
        series = (series + 2.0 * n / (2 * n + 1)) * square
    if k:
        return -2.0 * s * series
    closed = torch.log1p(1.0 / z) - 0.5 / z - 0.5 / (z + 1.0)
    return torch.where(z < 1.0, closed, -2.0 * s * series)


def _stirling_error_curvature(z: Tensor) -> Tensor:
    """S''(z) = trigamma(z) - 1 / z - 1 / (2 z^2), from operators that autograd differentiates.

    For large z, this is the second derivative of Stirling's series, with the terms
    B_2n / z^(2 n + 1). The first omitted term is below 1e-7 S'' in float32 and below 1e-12 S'' in
    float64. The derivative of ``torch.digamma`` is accurate to only ten digits, so trigamma is
    computed as zeta(2, z).
    """
    smallest = 8.0 if z.dtype == torch.float64 else 4.0
    small = z < smallest
    near, far = torch.where(small, z, 1.0), torch.where(small, smallest, z)
    y = 1.0 / far
    square, series = y * y, torch.zeros_like(y)
    for bernoulli in (-3617 / 510, 7 / 6, -691 / 2730, 5 / 66, -1 / 30, 1 / 42, -1 / 30, 1 / 6):
        series = series * square + bernoulli
    direct = torch.special.zeta(2.0, near) - (1.0 + 0.5 / near) / near
    return torch.where(small, direct, series * square * y)


# --------------------------------------------------------------------------------------------------
# The normalizer of Student's t
# --------------------------------------------------------------------------------------------------

# The coefficients (4^k - 1) B_2k / (2 k (2 k - 1)) of the series. The tables below contain the
# number of terms for each dtype, and the smallest n for which the series is used.
_STUDENT = (
    1 / 4, -1 / 24, 1 / 20, -255 / 1680, 5115 / 5940, -2829645 / 360360, 114681 / 1092,
    -237040095 / 122400,
)  # fmt: skip
_STUDENT_TERMS = {torch.float32: 6, torch.float64: 8}
_STUDENT_SHIFT = {torch.float32: 8, torch.float64: 26}


def student_excess(n: Tensor) -> Tensor:
    r"""k(n) = ln Gamma(n/2) - ln Gamma((n + 1)/2) + 1/2 ln(n/2), for n > 0.

    It is positive and vanishes as n grows. The log normalizer of a Student-t exceeds the Gaussian's
    1/2 ln 2 pi by k(n). For large n, it is Stirling's series, 1 / (4 n) - 1 / (24 n^3) + ... Small
    n are raised in steps of 2, by

    .. math:: k(n) = k(n + 2) + \tfrac12 \ln(1 + 1 / (n (n + 2)))
    """
    return _student_excess(n)


def student_excess_slope(n: Tensor) -> Tensor:
    """k'(n), which is negative. Small n are raised by k'(n) = k'(n + 2) - 1 / (n (n+1) (n+2))."""
    return _student_excess_slope(n)


def _student_shifted(n: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return whether n is raised, the argument of the series, and the arguments of the steps."""
    shift = _STUDENT_SHIFT[n.dtype]
    small = n < shift
    near = torch.where(small, n, 1.0)
    return small, torch.where(small, n + shift, n), [near + k for k in range(0, shift, 2)]


def _student_series(far: Tensor, order: int) -> Tensor:
    """Evaluate the series, or its derivative of this order."""
    y = 1.0 / far
    series = torch.zeros_like(y)
    for k in range(_STUDENT_TERMS[far.dtype], 0, -1):
        powers = (-(2 * k - 1), -2 * k)[:order]
        series = series * (y * y) + _STUDENT[k - 1] * math.prod(powers)
    return series * y ** (order + 1)


def _student_excess_value(n: Tensor) -> Tensor:
    small, far, steps = _student_shifted(n)
    value = _student_series(far, 0)
    raised = sum((0.5 * torch.log1p(1.0 / (m * (m + 2.0))) for m in steps), start=value)
    return torch.where(small, raised, value)


def _student_excess_slopes(_: Any, n: Tensor) -> tuple[Tensor]:
    return (student_excess_slope(n),)


_student_excess = elementwise(_student_excess_value, _student_excess_slopes)


def _student_excess_slope_value(n: Tensor) -> Tensor:
    small, far, steps = _student_shifted(n)
    slope = _student_series(far, 1)
    raised = sum((-1.0 / (m * (m + 1.0) * (m + 2.0)) for m in steps), start=slope)
    return torch.where(small, raised, slope)


def _student_excess_slope_slopes(_: Any, n: Tensor) -> tuple[Tensor]:
    """k''(n), from operators that autograd differentiates."""
    small, far, steps = _student_shifted(n)
    curvature = _student_series(far, 2)
    for m in steps:
        product = m * (m + 1.0) * (m + 2.0)
        added = (1.0 / m + 1.0 / (m + 1.0) + 1.0 / (m + 2.0)) / product
        curvature = curvature + torch.where(small, added, 0.0)
    return (curvature,)


_student_excess_slope = elementwise(_student_excess_slope_value, _student_excess_slope_slopes)
