"""The module ``IWAELoss``, which ``vf.nn`` exports."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import Module

from vae_fused.iwae import IWAETerms, check_iwae_options, iwae_loss

__all__ = ["IWAELoss"]


class IWAELoss(Module):
    """:func:`vae_fused.iwae_loss`, the importance-weighted bound of several samples, as a module.

    It has no parameters and no buffers.

    Args:
        dim, groups, gradient, reduction: As in :func:`vae_fused.iwae_loss`.
        elbo_weight: As in :func:`vae_fused.iwae_loss`, or a module that returns it, such as a
            schedule.

    Raises:
        TypeError, ValueError: An invalid argument. An out-of-range ``dim`` raises an error only
            when the module is called.

    Example:
        >>> loss, ess, _ = vf.nn.IWAELoss(groups=2)(torch.rand(10, 64), torch.rand(10, 64))
    """

    def __init__(
        self,
        dim: int = 0,
        *,
        groups: int = 1,
        elbo_weight: float | Tensor | Module = 0.0,
        gradient: str = "standard",
        reduction: str = "batchmean",
    ) -> None:
        super().__init__()
        weight = 0.0 if isinstance(elbo_weight, Module) else elbo_weight
        check_iwae_options(groups, weight, gradient, reduction)
        self.dim, self.groups, self.elbo_weight = dim, groups, elbo_weight
        self.gradient, self.reduction = gradient, reduction

    def forward(self, nll: Tensor, log_ratio: Tensor) -> IWAETerms:
        """Return ``vf.iwae_loss(nll, log_ratio, ...)``, with both ``(K, B)`` if ``dim=0``."""
        weight = self.elbo_weight() if isinstance(self.elbo_weight, Module) else self.elbo_weight
        return iwae_loss(
            nll, log_ratio, dim=self.dim, groups=self.groups, elbo_weight=weight,
            gradient=self.gradient, reduction=self.reduction,
        )  # fmt: skip

    def extra_repr(self) -> str:
        given: dict[str, Any] = {"dim": self.dim, "groups": self.groups}
        if not isinstance(self.elbo_weight, Module):
            given["elbo_weight"] = self.elbo_weight
        given |= {"gradient": self.gradient, "reduction": self.reduction}
        default: dict[str, Any] = {
            "dim": 0, "groups": 1, "elbo_weight": 0.0, "gradient": "standard",
            "reduction": "batchmean",
        }  # fmt: skip
        chosen = {name: value for name, value in given.items() if value != default[name]}
        return ", ".join(f"{name}={value!r}" for name, value in chosen.items())
