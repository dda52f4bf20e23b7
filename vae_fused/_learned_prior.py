"""Defines ``LearnedPrior``, which ``vf.nn`` exports, and converts ``prior`` arguments."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from vae_fused._numbers import check_number, check_positive
from vae_fused.options import Prior, Scale, as_scale

__all__ = ["LearnedPrior", "as_prior"]


class LearnedPrior(Module):
    """A diagonal Gaussian prior N(m, tau^2) whose parameters are learned.

    A :class:`vae_fused.Prior` keeps the tensors from which it was constructed. If a module
    constructs one from its parameters in ``__init__``, the prior still uses the old tensors after
    the parameters are replaced, for example by ``load_state_dict(assign=True)``,
    ``torch.func.functional_call`` or FSDP. This module owns the parameters and constructs a new
    :class:`vae_fused.Prior` in each call.

    Every ``prior=`` argument accepts the module itself and calls it.

    Args:
        shape: The shape of m and tau, which must broadcast to that of the posterior: ``20`` or
            ``(20,)`` for latents of shape ``(B, 20)``, or ``(4, 1, 1)`` for one Gaussian per
            channel.
        scale: How tau is computed from the parameter ``raw``.
        mean: The initial value of m.
        std: The initial value of tau, which is a standard deviation for every ``scale``.
        learn_mean, learn_scale: Whether m and tau, respectively, are parameters. If not, they keep
            their initial values, which are numbers and not part of ``state_dict``.
        device, dtype: The device and the dtype of the parameters.

    Attributes:
        mean: m, a parameter of shape ``shape``, or a number if it is not learned.
        raw: The raw scale of tau, a parameter or a number like ``mean``.

    Raises:
        TypeError: A number or a ``scale`` of the wrong type.
        ValueError: A number that is not finite, or a ``std`` that ``scale`` cannot represent.

    Example:
        >>> prior = vf.nn.LearnedPrior(20, "softplus")
        >>> z, kl = vf.reparameterize_kl(torch.randn(8, 20), torch.randn(8, 20), prior=prior)
    """

    def __init__(
        self,
        shape: int | Sequence[int] = (),
        scale: str | Scale = "logvar",
        *,
        mean: float = 0.0,
        std: float = 1.0,
        learn_mean: bool = True,
        learn_scale: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.shape = torch.Size(shape if isinstance(shape, Sequence) else (operator.index(shape),))
        self.scale = scale
        self._initial = check_number("mean", mean), _raw_of(as_scale(scale), std)
        self._std = std

        def made(value: float, is_learned: bool) -> Parameter | float:
            if not is_learned:
                return value
            return Parameter(torch.full(self.shape, value, device=device, dtype=dtype))

        self.mean = made(self._initial[0], learn_mean)
        self.raw = made(self._initial[1], learn_scale)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Reset the parameters to their initial values."""
        for tensor, value in zip((self.mean, self.raw), self._initial, strict=True):
            if isinstance(tensor, Tensor):
                tensor.fill_(value)

    def forward(self) -> Prior:
        """Return the prior with the current parameters, which get gradients."""
        return Prior(self.mean, self.raw, self.scale)

    def extra_repr(self) -> str:
        mean, std = self._initial[0], self._std
        given = {"mean": mean} if mean != 0.0 else {}
        given |= {"std": std} if std != 1.0 else {}
        fixed = {
            f"learn_{name}": False
            for name, value in (("mean", self.mean), ("scale", self.raw))
            if not isinstance(value, Tensor)
        }
        options = [f"{name}={value!r}" for name, value in {**given, **fixed}.items()]
        return ", ".join([f"{tuple(self.shape)}", f"{self.scale!r}", *options])


def as_prior(prior: Any) -> Prior:
    """Return the prior for a ``prior`` argument: the argument itself, or a module's result."""
    if isinstance(prior, Module):
        prior = prior()
    if not isinstance(prior, Prior):
        raise TypeError(
            "prior must be a vf.Prior, a module that returns one, or None, got "
            f"{type(prior).__name__}"
        )
    return prior


def _raw_of(scale: Scale, std: float) -> float:
    """Invert a :class:`vae_fused.Scale`: return the raw scale whose sigma is ``std``."""
    check_positive("std", std)
    error = ValueError(
        f"std must be a sigma that {scale!r} can return, got {std}; pass another std or scale"
    )
    square = (std - scale.std_floor) ** 2 - scale.var_floor
    if std < max(scale.std_min, scale.std_floor) or square <= 0.0 or scale.gain == 0.0:
        raise error
    x = (_INVERSES[scale.kind](math.sqrt(square), scale.beta) - scale.shift) / scale.gain
    if scale.soft_clamp is not None:
        if not abs(x) < scale.soft_clamp:
            raise error
        return scale.soft_clamp * math.atanh(x / scale.soft_clamp)
    low, high = scale.clamp or (None, None)
    if not math.isfinite(x) or (low is not None and x < low) or (high is not None and x > high):
        raise error
    return x


def _inverse_of_sigmoid2(sigma: float, _: float) -> float:
    """Invert 2 / (1 + e^(-x/2)), whose values are below 2."""
    return 2.0 * math.log(sigma / (2.0 - sigma)) if sigma < 2.0 else math.inf


# For each kind, x as a function of sigma and of the softplus parameter beta.
_INVERSES: dict[str, Callable[[float, float], float]] = {
    "logvar": lambda sigma, _: 2.0 * math.log(sigma),
    "logstd": lambda sigma, _: math.log(sigma),
    "std": lambda sigma, _: sigma,
    "var": lambda sigma, _: sigma**2,
    # ln(e^(beta sigma) - 1) / beta without overflow
    "softplus": lambda sigma, beta: sigma + math.log(-math.expm1(-beta * sigma)) / beta,
    "sigmoid2": _inverse_of_sigmoid2,
}
