"""The methods of :class:`vae_fused.DiagonalGaussian`, which do not depend on its constructor.

This file contains neither kernels nor formulas for sigma. Samples come from
``functional.reparameterize`` and KLs from ``functional.gaussian_kl``, which takes the other
Gaussian as its prior.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal, register_kl

from vae_fused import functional
from vae_fused._checks import check_reduction, check_value
from vae_fused._formulas.gaussian import Gaussian
from vae_fused._formulas.latent import reduce
from vae_fused._formulas.special import LOG_2PI
from vae_fused._shapes import expands
from vae_fused.options import Prior, Scale, as_scale

__all__ = ["FusedNormal", "as_prior", "as_tensor", "kl_between"]

Self = TypeVar("Self", bound="FusedNormal")


class FusedNormal(Normal):
    """A ``torch.distributions.Normal`` that is stored as a mean and a raw scale.

    A derived class implements ``expand`` and a constructor, which sets ``mu``, ``raw`` and
    ``_scale`` and then calls the constructor of ``Distribution``.
    """

    mu: Tensor
    raw: Tensor
    _scale: Scale  # how sigma is computed from raw; ``scale`` is sigma itself
    # The packed moments, the dimension along which they are packed, and the mu and raw inside them.
    _packed: tuple[Tensor, int, Tensor, Tensor] | None = None

    def _expanded(self: Self, batch_shape: Sequence[int], new: Self) -> Self:
        batch_shape = torch.Size(batch_shape)
        new.mu, new.raw = self.mu.expand(batch_shape), self.raw.expand(batch_shape)
        new._scale = self._scale
        Distribution.__init__(new, batch_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def detach(self: Self) -> Self:
        """Return the same distribution with detached parameters that share its memory."""
        new = copy.copy(self)
        new.mu, new.raw, new._packed = self.mu.detach(), self.raw.detach(), None
        return new

    def __repr__(self) -> str:
        shown = (f"{k}: {v if v.numel() == 1 else v.size()}" for k, v in self._given().items())
        return f"{type(self).__name__}({', '.join(shown)})"

    def _given(self) -> dict[str, Tensor]:
        """Return the parameters by their names in the constructor."""
        return {"mu": self.mu, self._scale.raw_name: self.raw}

    # ----------------------------------------------------------------------------------------------
    # Moments: (*batch_shape), dtype of mu
    # ----------------------------------------------------------------------------------------------

    @property
    def logvar(self) -> Tensor:
        return (
            self.raw if self._scale == as_scale("logvar") else self._log_variance.to(self.mu.dtype)
        )

    @property
    def loc(self) -> Tensor:  # type: ignore[override]
        return self.mu

    @property
    def scale(self) -> Tensor:  # type: ignore[override]
        return self._sigma()

    def _sigma(self) -> Tensor:
        return self._wide.sigma.to(self.mu.dtype)

    @property
    def mean(self) -> Tensor:
        return self.mu

    @property
    def mode(self) -> Tensor:
        return self.mu

    @property
    def stddev(self) -> Tensor:
        return self.scale

    @property
    def variance(self) -> Tensor:
        return torch.exp(self._log_variance).to(self.mu.dtype)

    @property
    def _natural_params(self) -> tuple[Tensor, Tensor]:
        precision = torch.exp(-self._log_variance).to(self.mu.dtype)
        return self.mu * precision, -0.5 * precision

    @property
    def _wide(self) -> Gaussian:
        """The Gaussian in the dtype of the arithmetic, float32 or float64."""
        return Gaussian(_widen(self.mu), _widen(self.raw), self._scale)

    @property
    def _log_variance(self) -> Tensor:
        return self._wide.log_variance

    # ----------------------------------------------------------------------------------------------
    # Samples
    # ----------------------------------------------------------------------------------------------

    def rsample(
        self,
        sample_shape: int | Sequence[int] = torch.Size(),
        *,
        mask: Tensor | None = None,
        temperature: float | Tensor = 1.0,
        eps: Tensor | None = None,
        generator: torch.Generator | None = None,
        key: Tensor | None = None,
    ) -> Tensor:
        """Draw a reparameterized sample in one launch. Gradients flow to ``mu`` and ``raw``.

        Args:
            sample_shape: Shape of a batch of samples, each with its own noise.
            mask: Bool tensor that broadcasts to ``batch_shape``. Where it is False, z is 0.
            temperature: T of ``z = mu + T sigma eps``, a number or a 0-d tensor.
            eps: Explicit noise, in the shape of the result.
            generator: Source of the key, as in ``torch.randn``.
            key: ``(seed, offset)``, a uint64 or int64 tensor of two elements.

        Returns:
            ``z`` of shape ``sample_shape + batch_shape`` and the dtype of ``mu``.
        """
        return functional.reparameterize(
            self.mu, self.raw, scale=self._scale, mask=mask, temperature=temperature,
            sample_shape=sample_shape, eps=eps, generator=generator, key=key,
        )  # fmt: skip

    def sample(self, sample_shape: int | Sequence[int] = torch.Size(), **options: Any) -> Tensor:
        """Draw a sample like :meth:`rsample`, with the same arguments but without gradients."""
        with torch.no_grad():
            return self.rsample(sample_shape, **options)

    def rsample_kl(
        self,
        *,
        prior: Prior | Normal | None = None,
        reduction: str = "batchmean",
        dim: int | Sequence[int] | None = None,
        mask: Tensor | None = None,
        free_bits: float | Tensor = 0.0,
        balance: tuple[float | Tensor, float | Tensor] | None = None,
        temperature: float | Tensor = 1.0,
        sample_shape: int | Sequence[int] = (),
        estimator: str = "analytic",
        stop_q: bool = False,
        eps: Tensor | None = None,
        generator: torch.Generator | None = None,
        key: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Compute a reparameterized sample and the KL from the prior, in one launch.

        Arguments, results and errors are those of :func:`vae_fused.reparameterize_kl`, except that
        the prior may also be a ``Normal``. Packed moments get one packed gradient tensor.
        """
        options: dict[str, Any] = {
            "scale": self._scale, "prior": as_prior(prior, self.mu.device), "reduction": reduction,
            "mask": mask, "free_bits": free_bits, "balance": balance, "temperature": temperature,
            "sample_shape": sample_shape, "estimator": estimator, "stop_q": stop_q, "eps": eps,
            "generator": generator, "key": key,
        }  # fmt: skip
        h, packed_dim, mu, raw = self._packed or (None, 0, None, None)
        if h is None or mu is not self.mu or raw is not self.raw:
            return functional.reparameterize_kl(self.mu, self.raw, dim=dim, **options)
        return functional.reparameterize_kl_moments(h, dim=packed_dim, kl_dim=dim, **options)

    def kl(
        self,
        *,
        prior: Prior | Normal | None = None,
        reduction: str = "batchmean",
        dim: int | Sequence[int] | None = None,
        mask: Tensor | None = None,
        free_bits: float | Tensor = 0.0,
        balance: tuple[float | Tensor, float | Tensor] | None = None,
    ) -> Tensor:
        """Compute the KL from the prior, by default the standard normal, in nats.

        Arguments, result and errors are those of :func:`vae_fused.gaussian_kl`, except that the
        prior may also be a ``Normal``. ``torch.distributions.kl_divergence(q, p)`` computes the
        elementwise KL, and accepts a ``p`` that has more elements than ``q``.
        """
        return functional.gaussian_kl(
            self.mu, self.raw, scale=self._scale, prior=as_prior(prior, self.mu.device),
            reduction=reduction, dim=dim, mask=mask, free_bits=free_bits, balance=balance,
        )  # fmt: skip

    # ----------------------------------------------------------------------------------------------
    # Densities: the shape that value and batch broadcast to
    # ----------------------------------------------------------------------------------------------

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Log density :math:`-\frac12 (t^2 + \ln\sigma^2 + \ln 2\pi)`, :math:`t = (v-\mu)/\sigma`.

        Args:
            value: Any shape that broadcasts with ``batch_shape``.

        Raises:
            TypeError: ``value`` is not a tensor.
            ValueError: The shape does not broadcast, or ``value`` contains NaN and
                ``validate_args`` is set.
        """
        t = self._standardized(value)
        return -0.5 * (t * t + self._log_variance + LOG_2PI)

    def nll(
        self,
        value: Tensor,
        dim: int | Sequence[int] | None = None,
        *,
        reduction: str = "batchmean",
    ) -> Tensor:
        """Negative log likelihood of ``value`` in nats: ``-log_prob``, reduced like a KL.

        Args:
            value: As in :meth:`log_prob`.
            dim: The dimensions of the broadcast shape to sum, instead of ``reduction``.
            reduction: As in :func:`vae_fused.gaussian_kl`.
        """
        nll = -self.log_prob(value)
        reduction, dims, _ = check_reduction(nll, reduction, dim)
        return reduce(nll, reduction, dims)

    def cdf(self, value: Tensor) -> Tensor:
        r"""Probability of a sample below ``value``: :math:`\frac12 \mathrm{erfc}(-t / \sqrt 2)`."""
        p: Tensor = 0.5 * torch.special.erfc(self._standardized(value) * -math.sqrt(0.5))
        return p

    def icdf(self, value: Tensor) -> Tensor:
        """Compute the ``value``-quantile, which is NaN if ``value`` is outside [0, 1]."""
        check_value(value, self._batch_shape)
        mu, sigma = _widen(self.mu), self._wide.sigma
        quantile: Tensor = mu + sigma * torch.special.ndtri(_widen(value))
        wide = torch.float32, torch.float64
        return (
            quantile if self.mu.dtype in wide or value.dtype in wide else quantile.to(self.mu.dtype)
        )

    def entropy(self) -> Tensor:
        r"""Differential entropy :math:`\frac12 (1 + \ln 2\pi + \ln\sigma^2)`, in nats."""
        return 0.5 * (1.0 + LOG_2PI) + 0.5 * self._log_variance

    def _standardized(self, value: Tensor) -> Tensor:
        value = self._point(value)
        return (_widen(value) - _widen(self.mu)) * torch.exp(-0.5 * self._log_variance)

    def _point(self, value: Tensor) -> Tensor:
        """Check ``value`` and return it."""
        check_value(value, self._batch_shape)
        if self._validate_args:
            self._validate_sample(value)
        return value


def as_tensor(value: Tensor | float, other: Tensor | float) -> Tensor:
    """Convert a number to a tensor for use with ``other``. Return other values unchanged.

    The number is written by a fill, because copying it to a GPU would wait for the GPU.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value  # type: ignore[return-value]
    if isinstance(other, Tensor):
        return torch.full((), value, dtype=other.dtype, device=other.device)
    return torch.full((), value, dtype=torch.get_default_dtype())


def _widen(x: Tensor) -> Tensor:
    """Convert 16-bit types to float32. Leave integers to torch's type promotion."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


# --------------------------------------------------------------------------------------------------
# Another Gaussian is a prior
# --------------------------------------------------------------------------------------------------


def as_prior(p: Prior | Normal | None, device: torch.device) -> Prior | None:
    """Convert a ``Normal`` to a ``Prior``. Return other values unchanged."""
    return Prior(*_parameters(p, device)) if isinstance(p, Normal) else p


def kl_between(q: Normal, p: Normal, **reduction: Any) -> Tensor:
    """Compute the KL of q from p, reduced as in ``gaussian_kl``. The shapes broadcast."""
    mu, raw, scale = _parameters(q, p.mean.device)
    prior = Prior(*_parameters(p, mu.device))
    if not expands(p._batch_shape, q._batch_shape):
        mu, raw, _ = torch.broadcast_tensors(mu, raw, p.mean)
    return functional.gaussian_kl(mu, raw, scale=scale, prior=prior, **reduction)


def _parameters(p: Normal, device: torch.device) -> tuple[Tensor, Tensor, Scale]:
    """Return the mean, the raw scale and the ``Scale`` that converts it to sigma.

    0-d CPU tensors, such as those of ``Normal(0.0, 1.0)``, are accepted with any device, as
    elsewhere in torch.
    """
    if isinstance(p, FusedNormal):
        mean, raw, scale = p.mu, p.raw, p._scale
    else:
        mean, raw, scale = p.loc, p.scale, as_scale("std")
    if mean.dim() == 0 and device.type != "cpu":
        mean, raw = mean.to(device), raw.to(device)
    return mean, raw, scale


def _elementwise(q: Normal, p: Normal) -> Tensor:
    return kl_between(q, p, reduction="none")


register_kl(FusedNormal, FusedNormal)(_elementwise)
register_kl(FusedNormal, Normal)(_elementwise)
register_kl(Normal, FusedNormal)(_elementwise)
