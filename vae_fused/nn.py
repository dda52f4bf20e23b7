"""Modules around the functions, for models that are built of modules. None of them has any state.

Sampling and KL in one launch is a function, ``vf.reparameterize_kl``: pass its KL to ``ELBOLoss``
as ``kl=``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn import functional as F

from vae_fused import functional, reference
from vae_fused._checks import check_call, check_posterior, check_reduction
from vae_fused.distributions import DiagonalGaussian, _widen
from vae_fused.options import Prior, Scale, as_scale

__all__ = ["ELBOLoss", "ELBOTerms", "GaussianKL", "Reparameterize"]

RECONSTRUCTIONS = ("bce_with_logits", "mse", "gaussian")

Output: TypeAlias = Tensor | tuple[Tensor, Tensor]


class Reparameterize(Module):
    """Samples a diagonal Gaussian in training, returns its mean in evaluation.

    Args:
        scale, mu_soft_clamp, temperature: As in :func:`vae_fused.reparameterize`.

    Shape:
        ``mu`` and ``logvar``, or what ``scale`` says: any that broadcast; the result has their
        broadcast shape, after ``sample_shape``, and their promoted dtype in both modes.

    Raises:
        TypeError, ValueError: A bad argument.
    """

    def __init__(
        self,
        scale: str | Scale = "logvar",
        *,
        mu_soft_clamp: float | None = None,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.options = _checked(scale=scale, mu_soft_clamp=mu_soft_clamp, temperature=temperature)

    def forward(
        self,
        mu: Tensor,
        logvar: Tensor,
        *,
        mask: Tensor | None = None,
        sample_shape: int | Sequence[int] = (),
        eps: Tensor | None = None,
        generator: torch.Generator | None = None,
        key: Tensor | None = None,
    ) -> Tensor:
        """``vf.reparameterize(mu, logvar, ...)`` in training, its mean in evaluation."""
        options = {**self.options, "mask": mask, "sample_shape": sample_shape}
        if self.training:
            return functional.reparameterize(
                mu, logvar, **options, eps=eps, generator=generator, key=key
            )
        mu, _, checked = check_call(mu, logvar, **options)
        return reference.mean(mu, checked)

    def extra_repr(self) -> str:
        return _repr(self.options)


class GaussianKL(Module):
    """KL divergence of a diagonal Gaussian from a prior, by default the standard normal, in nats.

    Args:
        reduction, dim: As in :func:`vae_fused.gaussian_kl`: ``"batchmean"`` by default, the KL of a
            sample, averaged over dimension 0.
        scale, mu_soft_clamp, free_bits, balance: As there.

    Raises:
        TypeError, ValueError: A bad argument; a ``dim`` out of range raises when called.
    """

    def __init__(
        self,
        reduction: str = "batchmean",
        dim: int | Sequence[int] | None = None,
        *,
        scale: str | Scale = "logvar",
        mu_soft_clamp: float | None = None,
        free_bits: float = 0.0,
        balance: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        if dim is None or reduction != "batchmean":
            check_reduction(torch.empty(1, device="meta"), reduction, dim)
        self.reduction, self.dim = reduction, dim
        self.options = _checked(
            scale=scale, mu_soft_clamp=mu_soft_clamp, free_bits=free_bits, balance=balance
        )

    def forward(
        self,
        mu: Tensor,
        logvar: Tensor,
        *,
        prior: Prior | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """``vf.gaussian_kl(mu, logvar, reduction=reduction, dim=dim, ...)``."""
        return functional.gaussian_kl(
            mu, logvar, **self.options, prior=prior, mask=mask,
            reduction=self.reduction, dim=self.dim,
        )  # fmt: skip

    def extra_repr(self) -> str:
        given = {"reduction": self.reduction} if self.dim is None else {"dim": self.dim}
        return _repr({**given, **self.options})


def _checked(**options: Any) -> dict[str, Any]:
    """The options of a module that are no defaults, checked now and not at the first call."""
    posterior = torch.empty(1, device="meta")
    check_call(posterior, posterior, **options)
    defaults = inspect.signature(check_call).parameters
    return {k: v for k, v in options.items() if v != defaults[k].default}


def _repr(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options.items())


class ELBOTerms(NamedTuple):
    """What :class:`ELBOLoss` returns: 0-d tensors, means over the batch, float32 or float64.

    ``loss = reconstruction + beta * kl``; ``kl`` is without its weight.
    """

    loss: Tensor
    reconstruction: Tensor
    kl: Tensor


class ELBOLoss(Module):
    r"""The negative evidence lower bound, :math:`-\ln p(x|z) + \beta\,\mathrm{KL}(q(z|x)\|p(z))`.

    Both terms are **sums over the dimensions of a sample, averaged over the batch**, dimension 0,
    so that their ratio is the model's. Averaging the reconstruction over pixels and summing the KL,
    or the reverse, is a beta of thousands in disguise. (Kingma and Welling 2014, equation 10;
    Higgins et al. 2017 for beta.) The terms of 16-bit tensors are computed in float32.

    Args:
        reconstruction: The term :math:`-\ln p(x|z)` of a sample:

            - ``"bce_with_logits"``: Bernoulli pixels, in nats; ``output`` are logits, ``target``
              is in [0, 1].
            - ``"mse"``: the sum of squared errors, a Gaussian of variance 1/2 up to a constant.
            - ``"gaussian"``: Gaussian pixels, in nats, constants included; ``output`` is the mean,
              for variance 1, or a pair ``(mean, logvar)`` whose second broadcasts with the mean.
            - a callable of ``(output, target)``: returns either a tensor whose dimension 0 is the
              batch, which is summed over the others and averaged, or a 0-d tensor, which is taken
              as it is and must itself be a mean over the batch of sums. (``F.mse_loss`` is not: it
              divides by the number of pixels. Give it ``reduction="none"``.)
        beta: Weight of the KL: a number, or a 0-d tensor. For a warm-up pass ``beta=`` to each
            call, as a tensor if the module is compiled: each new number is compiled anew.
        scale, mu_soft_clamp, free_bits, balance: Of the KL, as in :func:`vae_fused.gaussian_kl`.

    Raises:
        TypeError, ValueError: An unknown ``reconstruction``, a ``beta`` that is not one number, or
            a bad option of the KL.

    Example:
        >>> elbo = vf.nn.ELBOLoss("mse")
        >>> mu, logvar, x = torch.zeros(8, 4), torch.zeros(8, 4), torch.randn(8, 10)
        >>> z, kl = vf.reparameterize_kl(mu, logvar)
        >>> loss, reconstruction, _ = elbo(torch.zeros(8, 10), x, kl=kl, beta=0.1)
    """

    def __init__(
        self,
        reconstruction: str | Callable[[Output, Tensor], Tensor] = "bce_with_logits",
        *,
        beta: float | Tensor = 1.0,
        scale: str | Scale = "logvar",
        mu_soft_clamp: float | None = None,
        free_bits: float = 0.0,
        balance: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(reconstruction, str):
            if reconstruction not in RECONSTRUCTIONS:
                raise ValueError(
                    f"reconstruction is {reconstruction!r}, wants one of "
                    f"{', '.join(RECONSTRUCTIONS)}, or a callable"
                )
        elif not callable(reconstruction):
            raise TypeError(
                f"reconstruction must be a str or callable, got {type(reconstruction).__name__}"
            )
        self.reconstruction = reconstruction
        self.beta = _check_beta(beta)
        self.options = _checked(
            scale=scale, mu_soft_clamp=mu_soft_clamp, free_bits=free_bits, balance=balance
        )

    def forward(
        self,
        output: Output,
        target: Tensor,
        mu: Tensor | None = None,
        logvar: Tensor | None = None,
        *,
        prior: Prior | None = None,
        mask: Tensor | None = None,
        kl: Tensor | None = None,
        beta: float | Tensor | None = None,
    ) -> ELBOTerms:
        """The loss of a batch, with its terms.

        Args:
            output: What the decoder returned, ``(B, ...)``, or a pair for ``"gaussian"``.
            target: The data, in the shape of ``output``.
            mu: Posterior mean, ``(B, ...)``.
            logvar: ``ln sigma^2``, or what ``scale`` says, broadcastable with ``mu``.
            prior: p(z), by default the standard normal.
            mask: Which latents count, a bool tensor that broadcasts to the posterior's shape.
            kl: Instead of ``mu``, ``logvar`` and all that belongs to them: a KL that is there
                already, 0-d (a mean over the batch, such as ``"batchmean"``) or with the batch as
                dimension 0 (``"sample"``, ``"none"``).
            beta: Instead of the module's.

        Raises:
            TypeError: No tensor where one is wanted; both or neither of ``mu, logvar`` and ``kl``;
                a ``prior`` or ``mask`` beside ``kl``.
            ValueError: ``target`` is not of the shape of ``output``, ``kl`` not of its batch.
        """
        beta = self.beta if beta is None else _check_beta(beta)
        if (mu is None) != (logvar is None) or (mu is None) == (kl is None):
            raise TypeError("give mu and logvar, or kl, and not both")
        if mu is not None and logvar is not None:
            scale = as_scale(self.options.get("scale", "logvar"))
            mu, logvar = check_posterior(mu, logvar, scale.raw_name)
            _check_batch("mu", mu, target)
            kl = functional.gaussian_kl(mu, logvar, **self.options, prior=prior, mask=mask)
        elif prior is not None or mask is not None:
            raise TypeError(
                "prior and mask are of mu and logvar, not of a kl that is there already"
            )
        reconstruction = _batch_mean("reconstruction", self._reconstruct(output, target), target)
        kl = _batch_mean("kl", kl, target)
        return ELBOTerms(reconstruction + beta * kl, reconstruction, kl)

    def _reconstruct(self, output: Output, target: Tensor) -> Tensor:
        if not isinstance(self.reconstruction, str):
            return self.reconstruction(output, target)
        mean, logvar = output if isinstance(output, tuple) else (output, None)
        if logvar is not None and self.reconstruction != "gaussian":
            raise TypeError(
                f"output is a pair, which only 'gaussian' reads, not {self.reconstruction!r}"
            )
        for name, value in (("output", mean), ("target", target)):
            if not isinstance(value, Tensor):
                raise TypeError(f"{name} must be a Tensor, got {type(value).__name__}")
        if mean.shape != target.shape:
            raise ValueError(
                f"target has shape {tuple(target.shape)}, wants output's {tuple(mean.shape)}"
            )
        mean, target = _widen(mean), _widen(target)
        if self.reconstruction == "bce_with_logits":
            return F.binary_cross_entropy_with_logits(mean, target, reduction="none")
        if self.reconstruction == "mse":
            return (mean - target).square()
        return -DiagonalGaussian(mean, 0.0 if logvar is None else _widen(logvar)).log_prob(target)

    def extra_repr(self) -> str:
        return _repr({"reconstruction": self.reconstruction, "beta": self.beta, **self.options})


def _check_beta(beta: float | Tensor) -> float | Tensor:
    """Values of a tensor are not looked at: that would wait for the GPU."""
    if isinstance(beta, Tensor):
        if beta.dim() != 0:
            raise ValueError(f"beta has shape {tuple(beta.shape)}, wants a number or a 0-d tensor")
        return beta
    if isinstance(beta, bool) or not isinstance(beta, int | float):
        raise TypeError(f"beta must be a number or a 0-d tensor, got {type(beta).__name__}")
    if not beta >= 0:
        raise ValueError(f"beta is {beta}, wants a number of at least 0")
    return beta


def _batch_mean(name: str, value: Tensor | None, target: Tensor) -> Tensor:
    """Sum over all dimensions but the first, mean over that; a 0-d tensor is one already."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(value).__name__}")
    value = _widen(value)
    if value.dim() == 0:
        return value
    _check_batch(name, value, target)
    return value.sum() / value.shape[0]


def _check_batch(name: str, value: Tensor, target: Tensor) -> None:
    if not isinstance(target, Tensor) or target.dim() == 0 or value.dim() == 0:
        return  # what a callable makes of its target is its own affair
    if value.shape[0] != target.shape[0]:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}, wants the batch of target, "
            f"{target.shape[0]}, in dimension 0"
        )
