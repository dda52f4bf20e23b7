"""The diagonal Gaussian of diffusers' autoencoders, on the fused functions.

``DiagonalGaussianDistribution`` has the names, defaults and formulas of the class of that name in
diffusers (``models/autoencoders/vae.py``), which descends from that of CompVis
(``ldm/modules/distributions/distributions.py``), so code written for either can use it unchanged:

    from vae_fused.compat.diffusers import DiagonalGaussianDistribution

diffusers itself is not needed.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vae_fused.distributions import DiagonalGaussian, kl_between
from vae_fused.options import Scale

__all__ = ["DiagonalGaussianDistribution"]

SCALE = Scale("logvar", clamp=(-30.0, 20.0))
LATENT_DIMS = (1, 2, 3)  # of images, (B, C, H, W)


class DiagonalGaussianDistribution:
    """Posterior over latents, from an encoder's packed output.

    Where it differs from diffusers' class:

    - KL and nll of 16-bit moments are computed and returned in float32. There they are 16-bit, and
      the sum over a latent overflows float16.
    - ``sample()`` without a generator is one launch that keeps no noise for backward. It obeys
      ``torch.manual_seed`` and is as random, but not the same numbers as ``torch.randn``.
      With a generator the noise *is* ``torch.randn``'s, so seeded pipelines draw the same latents.
    - ``logvar``, ``std`` and ``var`` are computed when they are read, not in advance: the fused
      functions clamp for themselves.
    - ``kl()`` and ``nll()`` sum the dimensions (1, 2, 3), as there. Latents with fewer dimensions,
      an error there, are summed over all but the first. Of those with more, as video's (B, C, T, H,
      W), dimensions remain, as there: the KL has shape (B, W), and its mean is W times too small. A
      warning says so; ``dim=(1, 2, 3, 4)`` gives the KL of each sample.
    - ``kl()`` and ``nll()`` of a deterministic posterior are a zero of shape (1,), as there, but on
      the device of ``parameters``; a KL from a deterministic one is inf.

    Args:
        parameters: Mean and log variance, packed along dimension 1: ``(B, 2C, ...)``, float32,
            float64, float16 or bfloat16.
        deterministic: Whether the variance is 0.

    Attributes:
        parameters: As given.
        mean: ``(B, C, ...)``, a view of ``parameters``.
        logvar: ``(B, C, ...)``, clamped to (-30, 20); no gradient outside.
        std, var: ``(B, C, ...)``; 0 if deterministic.
        deterministic: As given.

    Raises:
        TypeError: ``parameters`` is not a floating point tensor.
        ValueError: It has fewer than two dimensions, or an odd size in dimension 1.
    """

    def __init__(self, parameters: Tensor, deterministic: bool = False) -> None:
        self.parameters = parameters
        self.deterministic = deterministic
        self._gaussian = DiagonalGaussian.from_moments(parameters, scale=SCALE)
        self.mean = self._gaussian.mu

    @property
    def logvar(self) -> Tensor:
        return self._gaussian.logvar

    @property
    def std(self) -> Tensor:
        return torch.zeros_like(self.mean) if self.deterministic else self._gaussian.stddev

    @property
    def var(self) -> Tensor:
        return torch.zeros_like(self.mean) if self.deterministic else self._gaussian.variance

    def sample(
        self, generator: torch.Generator | Sequence[torch.Generator] | None = None
    ) -> Tensor:
        """A reparameterized sample, ``(B, C, ...)`` in the dtype of ``parameters``.

        Args:
            generator: A generator on the device of ``parameters`` or on the CPU, from where the
                noise is then copied; or a list with one for each item of the batch, or with one
                alone.

        Raises:
            ValueError: A generator on a GPU for parameters elsewhere, or a list of wrong length.
        """
        eps = None if generator is None else _randn_like(self.mean, generator)
        if self.deterministic:
            return self.mean.clone()
        return self._gaussian.rsample(eps=eps)

    def mode(self) -> Tensor:
        """The mean."""
        return self.mean

    def kl(self, other: Any = None, *, dim: int | Sequence[int] | None = None) -> Tensor:
        """KL from the standard normal or from ``other``, in nats, ``(B,)`` for images.

        Args:
            other: What has ``mean`` and ``logvar``, such as another of this class or of diffusers'.
            dim: The dimensions to sum; default: diffusers' (1, 2, 3), see the class.
        """
        if self.deterministic:
            return self._zero()
        dims = self._default_dims("dim") if dim is None else dim
        if other is None:
            return self._gaussian.kl(dim=dims)
        if isinstance(other, DiagonalGaussianDistribution):
            prior = other._gaussian
        else:
            prior = DiagonalGaussian(other.mean, other.logvar)
        kl = kl_between(self._gaussian, prior, dim=dims)
        return torch.full_like(kl, torch.inf) if getattr(other, "deterministic", False) else kl

    def nll(self, sample: Tensor, dims: int | Sequence[int] = LATENT_DIMS) -> Tensor:
        """Negative log likelihood of ``sample``, in nats, summed over ``dims``."""
        if self.deterministic:
            return self._zero()
        if dims is LATENT_DIMS or (self.mean.dim() < 4 and [*_tuple(dims)] == [*LATENT_DIMS]):
            dims = self._default_dims("dims")
        return self._gaussian.nll(sample, dims)

    def _zero(self) -> Tensor:
        dtype = torch.float64 if self.mean.dtype == torch.float64 else torch.float32
        return self.mean.new_zeros(1, dtype=dtype)

    def _default_dims(self, name: str) -> tuple[int, ...]:
        ndim = self.mean.dim()
        if ndim > 4 and not torch.compiler.is_compiling():
            warnings.warn(
                f"latents of {ndim} dimensions are summed over {LATENT_DIMS}, as diffusers does, "
                f"which is not the sum over a sample; pass {name}={tuple(range(1, ndim))} for that",
                stacklevel=3,
            )
        return LATENT_DIMS if ndim >= 4 else tuple(range(1, ndim))


def _tuple(dims: int | Sequence[int]) -> tuple[int, ...]:
    return (dims,) if isinstance(dims, int) else tuple(dims)


def _randn_like(mean: Tensor, generator: torch.Generator | Sequence[torch.Generator]) -> Tensor:
    """The noise that diffusers' ``randn_tensor`` draws for a tensor like ``mean``."""
    if isinstance(generator, torch.Generator):
        return _randn(mean, mean.shape, generator)
    generators = list(generator)
    if len(generators) == 1:
        return _randn(mean, mean.shape, generators[0])
    if len(generators) != mean.shape[0]:
        raise ValueError(
            f"generator is a list of {len(generators)}, wants one for each of the batch's "
            f"{mean.shape[0]} items, or one alone"
        )
    return torch.cat([_randn(mean, (1, *mean.shape[1:]), g) for g in generators])


def _randn(mean: Tensor, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    if not isinstance(generator, torch.Generator):
        raise TypeError(
            f"generator must be a torch.Generator or a list of them, got {type(generator).__name__}"
        )
    device = mean.device if generator.device.type == mean.device.type else generator.device
    if device.type not in ("cpu", mean.device.type):
        raise ValueError(f"generator is for {generator.device}, parameters are on {mean.device}")
    return torch.randn(shape, generator=generator, dtype=mean.dtype, device=device).to(mean.device)
