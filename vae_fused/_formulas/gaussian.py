"""The Gaussian formulas in eager PyTorch. ``csrc/math/latent/gaussian.h`` derives them.

They are elementwise, compute in the dtype of their arguments and are differentiable to any order.
Derivatives are written out where those computed by autograd would be less accurate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from vae_fused._forward_mode import tangents, without_jvp
from vae_fused.options import Scale


def _apply(function: Any, traced: Any, *inputs: Tensor | float) -> Tensor:
    """Apply an autograd function, or, while compiling, its variant that Dynamo can trace."""
    chosen = traced if torch.compiler.is_compiling() else function
    result: Tensor = chosen.apply(*inputs)  # torch leaves ``apply`` untyped
    return result


def _save(ctx: Any, *tensors: Tensor) -> None:
    """Save the tensors that backward and forward mode need."""
    ctx.save_for_backward(*tensors)
    if not torch.compiler.is_compiling():
        ctx.save_for_forward(*tensors)


# --------------------------------------------------------------------------------------------------
# Scale: raw -> sigma and ln sigma^2
# --------------------------------------------------------------------------------------------------


def _log_softplus(u: Tensor) -> Tensor:
    """The logarithm of ln(1 + e^u). Below u = -37, it equals u up to rounding."""
    return torch.where(u < -37.0, u, torch.log(-logsigmoid(-clamped(u, -37.0, None))))


def _sigmoid(u: Tensor) -> Tensor:
    """1 / (1 + e^-u). Torch's derivative s (1 - s) cancels near s = 1, so u > 0 uses 1 - s(-u)."""
    return torch.where(u > 0.0, 1.0 - torch.sigmoid(-u), torch.sigmoid(u))


# For each kind, sigma_0 as a function of x and beta. The next table contains ln sigma_0^2.
_SIGMA: dict[str, Callable[[Tensor, float], Tensor]] = {
    "logvar": lambda x, _: torch.exp(0.5 * x),
    "logstd": lambda x, _: torch.exp(x),
    "std": lambda x, _: x,
    "var": lambda x, _: torch.sqrt(x),
    "softplus": lambda x, beta: -logsigmoid(-beta * x) / beta,
    "sigmoid2": lambda x, _: 2.0 * _sigmoid(0.5 * x),
}
_LOG_VARIANCE: dict[str, Callable[[Tensor, float], Tensor]] = {
    "logvar": lambda x, _: x,
    "logstd": lambda x, _: 2.0 * x,
    "std": lambda x, _: 2.0 * torch.log(x),
    "var": lambda x, _: torch.log(x),
    "softplus": lambda x, beta: 2.0 * (_log_softplus(beta * x) - math.log(beta)),
    "sigmoid2": lambda x, _: 2.0 * (logsigmoid(0.5 * x) + math.log(2.0)),
}


class Gaussian:
    """A mean, and a raw scale from which sigma is computed as ``scale`` specifies."""

    def __init__(self, mean: Tensor, raw: Tensor, scale: Scale) -> None:
        self.mean, self.scale = mean, scale
        self.noise: Tensor | None = None  # T eps, for formulas at a sample
        x = clamped(raw, *(scale.clamp or (None, None)))
        x = soft_clamped(x, scale.soft_clamp)
        unit = scale.gain == 1.0 and scale.shift == 0.0
        self.x = x if unit else scale.gain * x + scale.shift
        self.var_floor = scale.var_floor
        if scale.kind == "var":  # sqrt(x + v) has a derivative at 0, sqrt(sqrt(x)^2 + v) has none
            self.x, self.var_floor = self.x + scale.var_floor, 0.0
        if scale.kind in ("std", "var"):  # a product makes the gradient NaN too for x < 0
            self.x = (self.x + 0.0) * torch.where(self.x >= 0.0, torch.ones_like(self.x), math.nan)
        if scale.kind == "var":  # the derivative of the root of inf is 0, and 0 * inf would be NaN
            self.x = torch.where(self.x == math.inf, math.inf, self.x)

    def detach(self) -> Gaussian:
        """The same Gaussian with constants in place of its tensors."""
        other = object.__new__(Gaussian)  # torch 2.11 does not trace copy.copy
        other.scale, other.var_floor = self.scale, self.var_floor
        other.mean, other.x = _constant(self.mean), _constant(self.x)
        other.noise = None if self.noise is None else _constant(self.noise)
        return other

    @property
    def sigma(self) -> Tensor:
        return self._sigma_of(self.x)

    @property
    def divisor(self) -> Tensor:
        """Sigma clamped to the range of normal numbers, so that 0 / sigma and its gradient are 0.

        The argument of an exponential is bounded first. Otherwise its gradient would be 0 * inf.
        """
        info, x = torch.finfo(self.x.dtype), self.x
        if self.scale.kind in ("logvar", "logstd"):
            most = 0.999 * math.log(info.max)
            x = clamped(x, None, 2.0 * most if self.scale.kind == "logvar" else most)
        return clamped(self._sigma_of(x), info.tiny)

    def _sigma_of(self, x: Tensor) -> Tensor:
        sigma, least = self._floored(x), self.scale.std_min
        if least > 0.0:  # select twice, because 0 times an infinite derivative is NaN
            low = sigma.detach() < least
            sigma = torch.where(low, least, self._floored(torch.where(low, 1.0, x)))
        return sigma

    def _floored(self, x: Tensor) -> Tensor:
        scale = self.scale
        sigma = _SIGMA[scale.kind](x, scale.beta)
        if self.var_floor > 0.0:  # hypot, because sigma^2 overflows earlier than sigma
            lost = sigma.detach().isinf()  # the floor has no effect, but hypot's slope is inf / inf
            root = sigma.new_full((), math.sqrt(self.var_floor))
            sigma = torch.where(lost, sigma, torch.hypot(torch.where(lost, 1.0, sigma), root))
        return sigma + scale.std_floor if scale.std_floor > 0.0 else sigma

    @property
    def log_variance(self) -> Tensor:
        """The logarithm of sigma^2, which is finite even where sigma underflows or overflows."""
        log_variance = _LOG_VARIANCE[self.scale.kind]
        if self.scale.kind not in ("logvar", "logstd"):
            # The derivative of ln sigma at an infinite sigma is 0, and 0 * inf would be NaN.
            lost = self.sigma.detach() == math.inf
            x = torch.where(lost, 1.0, self.x)
            if self.has_floor:
                return torch.where(lost, math.inf, 2.0 * torch.log(self._sigma_of(x)))
            return torch.where(lost, math.inf, log_variance(x, self.scale.beta))
        if not self.has_floor:
            return log_variance(self.x, self.scale.beta)
        # Where sigma is infinite, the floor has no effect and the slope of ln sigma is inf / inf.
        lost = self.sigma.detach().isinf()
        floored = 2.0 * torch.log(self._sigma_of(torch.where(lost, 0.0, self.x)))
        exact = log_variance(torch.where(lost, self.x, 0.0), self.scale.beta)
        return torch.where(lost, torch.inf + _moved(exact), floored)

    @property
    def has_floor(self) -> bool:
        return self.var_floor > 0.0 or self.scale.std_floor > 0.0 or self.scale.std_min > 0.0

    @property
    def is_exponential(self) -> bool:
        """Whether sigma is computed from ln sigma. Otherwise, ln sigma is computed from sigma."""
        return self.scale.kind in ("logvar", "logstd") and not self.has_floor


def clamped(x: Tensor, lo: float | Tensor | None, hi: float | None = None) -> Tensor:
    """Clamp like torch, but with a gradient at the bounds, as in torch before version 2.14."""
    x = x if lo is None else torch.where(x < lo, lo, x)
    return x if hi is None else torch.where(x > hi, hi, x)


def soft_clamped(x: Tensor, bound: float | None) -> Tensor:
    """``c tanh(x / c)``, where c is the bound."""
    return x if bound is None else _apply(_SoftClamp, _TracedSoftClamp, x, bound)


class _SoftClamp(torch.autograd.Function):
    """c tanh(x / c). 1 - tanh^2 cancels, so use sech^2 = 4 s / (1 + s)^2 with s = e^-2|x/c|."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, bound: float) -> Tensor:
        return bound * torch.tanh(x / bound)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        x, ctx.bound = inputs
        _save(ctx, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grad * _SoftClamp.slope(x, ctx.bound), None

    @staticmethod
    @tangents
    def jvp(ctx: Any, saved: list[Tensor], tangent: Tensor, _: None) -> Tensor:
        (x,) = saved
        return tangent * _SoftClamp.slope(x, ctx.bound)

    @staticmethod
    def slope(x: Tensor, bound: float) -> Tensor:
        s = torch.exp(-2.0 * (x / bound).abs())
        return 4.0 * s / (1.0 + s) ** 2


# --------------------------------------------------------------------------------------------------
# KL and its linear form. Without p, the prior is N(0, 1)
# --------------------------------------------------------------------------------------------------


def kl(q: Gaussian, p: Gaussian | None) -> Tensor:
    """``1/2 (d^2 + g(x))``, in nats: two terms that are never negative."""
    d, x = _relative(q, p)
    return 0.5 * (d * d + _apply(_Excess, _TracedExcess, x, _growth(x, q, p)))


def linear(q: Gaussian, p: Gaussian | None, constant: float) -> Tensor:
    """``1/2 (d^2 + c - x)``, which is linear in x. Used for sampled KLs and log densities."""
    d, x = _relative(q, p)
    return 0.5 * (d * d + constant - x)


def log_ratio(q: Gaussian, p: Gaussian | None, *, stop_q: bool) -> Tensor:
    """``ln q(z) - ln p(z) = 1/2 (d^2 - w^2 - x)`` at ``z = mu + sigma w``, where w is ``q.noise``.

    With ``stop_q``, the mean and the scale in ln q(z) are constants, so w is a function of z alone:
    ``(z - constant mu) / constant sigma``. The code computes sigma / constant sigma as an
    exponential, which is 1 even where sigma underflows.
    """
    assert q.noise is not None
    w, x = q.noise, q.log_variance
    if p is None:
        d = q.mean + q.sigma * w
    else:
        d = (q.mean - p.mean) / p.divisor + q.sigma * w / p.divisor
    if stop_q:
        quotient = torch.exp(0.5 * _moved(x))
        w = _moved(q.mean) / q.detach().divisor + quotient * w
        x = _constant(x)
    if p is not None:
        x = x - p.log_variance
    w = torch.where(d.isinf(), _constant(w), w)  # avoids inf - inf in the derivative
    return 0.5 * ((d - w) * (d + w) - clamped(x, None, torch.finfo(x.dtype).max / 4))


def _moved(x: Tensor) -> Tensor:
    """Return 0 with the derivative of x, or without a derivative if x is infinite."""
    constant = _constant(x)
    return torch.where(constant.isinf(), 0.0, x - constant)


def balanced(
    divergence: Callable[[Gaussian, Gaussian | None], Tensor],
    q: Gaussian,
    p: Gaussian | None,
    to_q: float | Tensor,
    to_p: float | Tensor,
) -> Tensor:
    """A divergence whose gradient has one weight toward q and another toward p.

    The gradient toward each Gaussian is that of a divergence in which the other one is constant.
    """
    if not isinstance(to_q, Tensor) and not isinstance(to_p, Tensor) and to_q == to_p == 1.0:
        return divergence(q, p)
    toward_q = divergence(q, p and p.detach())
    toward_p = _constant(toward_q) if p is None else divergence(q.detach(), p)
    weights = (w if isinstance(w, Tensor) else toward_q.new_full((), w) for w in (to_q, to_p))
    return _apply(_Balanced, _TracedBalanced, toward_q, toward_p, *weights)


def _relative(q: Gaussian, p: Gaussian | None) -> tuple[Tensor, Tensor]:
    """``d = (mu - m) / tau`` and ``x = ln sigma^2 - ln tau^2``."""
    if p is None:
        return q.mean, q.log_variance
    return (q.mean - p.mean) / p.divisor, q.log_variance - p.log_variance


def _growth(x: Tensor, q: Gaussian, p: Gaussian | None) -> Tensor:
    """e^x - 1 for :class:`_Excess`, which uses it only where |x| > 1. It has no gradient.

    If x is the logarithm of a sigma, e^x would magnify the rounding of that logarithm. In that
    case, this function returns r^2 - 1 with r = sigma / tau, unless sigma or tau leaves the normal
    range.
    """
    growth = torch.expm1(x.detach())
    if q.is_exponential and (p is None or p.is_exponential):
        return growth
    sigma = q.sigma.detach()
    tau = torch.ones_like(sigma) if p is None else p.sigma.detach()
    smallest = torch.finfo(sigma.dtype).tiny
    low, high = torch.minimum(sigma, tau), torch.maximum(sigma, tau)
    direct = (low > smallest) & (high < 1.0 / smallest)
    return torch.where(direct, (sigma / tau) ** 2 - 1.0, growth)


class _Excess(torch.autograd.Function):
    """g(x) = e^x - 1 - x, never negative, with g'(x) = h(x)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, growth: Tensor) -> Tensor:
        # The series is the sum of x^(n+2) / (n+2)!, up to a term that is below 2^-53 at |x| = 1.
        series = torch.zeros_like(x)
        for n in range(19, 1, -1):
            series = 1.0 + series * x / (n + 1)
        series = 0.5 * x * x * series
        # Because x is clipped as in math::clip_for_exp, the result at x = inf is inf and not the
        # NaN of inf - inf. Elsewhere, clipping has no effect, because growth absorbs x for x >= 64.
        return torch.where(x.abs() <= 1.0, series, growth - x.clamp(max=178.0))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        _save(ctx, *inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * _apply(_Growth, _TracedGrowth, *ctx.saved_tensors), None

    @staticmethod
    @tangents
    def jvp(ctx: Any, saved: list[Tensor], tangent: Tensor, _: Any) -> Tensor:
        return tangent * _apply(_Growth, _TracedGrowth, *saved)


class _Growth(torch.autograd.Function):
    """h(x) = e^x - 1, with h'(x) = 1 + h(x)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, growth: Tensor) -> Tensor:
        return torch.where(x.abs() <= 1.0, torch.expm1(x), growth)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        _save(ctx, *inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * (1.0 + _apply(_Growth, _TracedGrowth, *ctx.saved_tensors)), None

    @staticmethod
    @tangents
    def jvp(ctx: Any, saved: list[Tensor], tangent: Tensor, _: Any) -> Tensor:
        return tangent * (1.0 + _apply(_Growth, _TracedGrowth, *saved))


class _Balanced(torch.autograd.Function):
    """Returns the first of two equal values. Both get the gradient, multiplied by their weights."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, y: Tensor, to_x: Tensor, to_y: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor], output: Tensor
    ) -> None:
        *_, to_x, to_y = inputs
        _save(ctx, to_x, to_y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        to_x, to_y = ctx.saved_tensors
        return grad * to_x, grad * to_y, None, None

    @staticmethod
    @tangents
    def jvp(ctx: Any, saved: list[Tensor], of_x: Tensor, of_y: Tensor, *_: None) -> Tensor:
        to_x, to_y = saved
        return of_x * to_x + of_y * to_y


def _constant(x: Tensor) -> Tensor:
    """Return a value that has neither a gradient nor a tangent."""
    return _apply(_Constant, _TracedConstant, x.detach())


class _Constant(torch.autograd.Function):
    """A value without its tangent. ``detach`` would keep the tangent."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    @tangents
    def jvp(ctx: Any, _: list[Tensor], tangent: Tensor) -> Tensor:
        return torch.zeros_like(tangent)


_TracedSoftClamp = without_jvp(_SoftClamp)
_TracedExcess = without_jvp(_Excess)
_TracedGrowth = without_jvp(_Growth)
_TracedBalanced = without_jvp(_Balanced)
_TracedConstant = without_jvp(_Constant)
