"""The diagonal Gaussian as a ``torch.distributions`` citizen, on top of the fused functions.

No kernel and no formula of sigma is here: samples come from ``functional.reparameterize``, every KL
from ``functional.gaussian_kl``, which also serves a prior that is not standard:

    KL( N(mu, sigma^2) || N(m, tau^2) ) = 1/2 d^2 + 1/2 g(x),
    d = (mu - m) / tau,   x = ln sigma^2 - ln tau^2,   g(x) = e^x - 1 - x

is the KL of N(d, e^x) from the standard normal, in one launch and with full relative accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal, constraints, register_kl

from vae_fused import functional
from vae_fused._checks import check_moments, check_posterior, check_reduction, check_value
from vae_fused.reference import _reduce

__all__ = ["DiagonalGaussian"]

LOG_2PI = math.log(2.0 * math.pi)


class DiagonalGaussian(Normal):
    r"""Independent normals, given by their mean and the log of their variance.

    ``torch.distributions.Normal(mu, exp(logvar / 2))`` that never forms sigma where it is not asked
    for: a sample is one launch, a KL is one launch, both together (:meth:`rsample_kl`) are one
    launch. It *is* a ``Normal`` (``isinstance``, ``kl_divergence`` against every family that torch
    knows for ``Normal``), elementwise like it: ``event_shape`` is ``()``, and
    ``torch.distributions.Independent`` makes events of the latent dimensions.

    Densities, entropies and KLs are in nats, and float32 for 16-bit parameters, as they are there
    to be summed; samples, moments and quantiles have the dtype of ``mu``. Densities are computed
    from :math:`(v - \mu) e^{-\ln\sigma^2 / 2}`, without the variance, which over- and underflows
    first. The lower tails of :meth:`cdf` and :meth:`icdf` keep their relative accuracy.

    The default validation checks types, shapes, dtypes and devices, which the host knows.
    ``validate_args=True`` also checks *values* here and in :meth:`log_prob` and :meth:`cdf`, as
    ``torch.distributions`` does by default. Each such check waits for the GPU, so here it has to be
    asked for, whatever ``Distribution.set_default_validate_args`` says.

    Args:
        mu: Mean, any shape; float32, float64, float16 or bfloat16, any strides. A number stands for
            a 0-d tensor.
        logvar: ``ln sigma^2``, broadcastable with ``mu``. Mixed dtypes promote as in torch.
        validate_args: Whether to check values: that parameters and points are no NaN. Default:
            False.

    Raises:
        TypeError: A parameter that is neither tensor nor number, or is not floating point.
        ValueError: Shapes that do not broadcast; NaN, with ``validate_args=True``.
        RuntimeError: Parameters on different devices.

    Example:
        >>> h = torch.randn(8, 2 * 4, 16, 16)  # an encoder's output
        >>> q = vf.DiagonalGaussian.from_moments(h)
        >>> z, kl = q.rsample_kl()  # (8, 4, 16, 16), nats per image
        >>> q.kl(dim=(1, 2, 3)).shape
        torch.Size([8])
    """

    arg_constraints = {"mu": constraints.real, "logvar": constraints.real}  # noqa: RUF012

    mu: Tensor
    logvar: Tensor
    _packed: tuple[Tensor, int] | None = None  # what mu and logvar are the halves of, and where

    def __init__(
        self, mu: Tensor | float, logvar: Tensor | float, validate_args: bool | None = None
    ) -> None:
        self.mu, self.logvar = check_posterior(_tensor(mu, logvar), _tensor(logvar, mu))
        # Not Normal's: that one stores loc and scale, which are properties here.
        Distribution.__init__(self, self.mu.shape, validate_args=bool(validate_args))

    @classmethod
    def from_moments(
        cls, h: Tensor, dim: int = 1, validate_args: bool | None = None
    ) -> DiagonalGaussian:
        """The distribution whose ``mu`` and ``logvar`` are the halves of ``h`` along ``dim``.

        Args:
            h: An encoder's output, ``(B, 2C, ...)`` say. The halves are views, not copies.
            dim: Where they are packed; ``h.shape[dim]`` is even.
            validate_args: As for the class.

        Raises:
            TypeError: ``h`` is not a floating point tensor.
            ValueError: ``h`` has an odd size in ``dim``, or ``dim`` is out of range.
        """
        mu, logvar, dim = check_moments(h, dim)
        new = cls(mu, logvar, validate_args=validate_args)
        new._packed = (h, dim)
        return new

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> DiagonalGaussian:
        """The same distribution with its batch expanded to ``batch_shape``; nothing is copied."""
        new: DiagonalGaussian = self._get_checked_instance(  # type: ignore[no-untyped-call]
            DiagonalGaussian, _instance
        )
        batch_shape = torch.Size(batch_shape)
        new.mu, new.logvar = self.mu.expand(batch_shape), self.logvar.expand(batch_shape)
        Distribution.__init__(new, batch_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    # ----------------------------------------------------------------------------------------------
    # Moments: (*batch_shape), dtype of mu
    # ----------------------------------------------------------------------------------------------

    @property
    def loc(self) -> Tensor:  # type: ignore[override]
        return self.mu

    @property
    def scale(self) -> Tensor:  # type: ignore[override]
        return torch.exp(0.5 * self.logvar)

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
        return torch.exp(self.logvar)

    @property
    def _natural_params(self) -> tuple[Tensor, Tensor]:
        precision = torch.exp(-self.logvar)
        return self.mu * precision, -0.5 * precision

    # ----------------------------------------------------------------------------------------------
    # Samples
    # ----------------------------------------------------------------------------------------------

    def rsample(
        self,
        sample_shape: Sequence[int] = torch.Size(),
        *,
        eps: Tensor | None = None,
        generator: torch.Generator | None = None,
        key: Tensor | None = None,
    ) -> Tensor:
        """A reparameterized sample, one launch: gradients reach ``mu`` and ``logvar``.

        Args:
            sample_shape: Shape of a batch of samples, each with its own noise.
            eps: Explicit noise, in the shape of the result.
            generator: Source of the key, as in ``torch.randn``.
            key: ``(seed, offset)``, a uint64 or int64 tensor of two elements.

        Returns:
            ``z`` of shape ``sample_shape + batch_shape`` and the dtype of ``mu``.
        """
        mu, logvar = self.mu, self.logvar
        shape = self._extended_shape(torch.Size(sample_shape))
        if len(shape) > mu.dim():
            mu, logvar = mu.expand(shape), logvar.expand(shape)
        return functional.reparameterize(mu, logvar, eps=eps, generator=generator, key=key)

    def sample(
        self,
        sample_shape: Sequence[int] = torch.Size(),
        *,
        eps: Tensor | None = None,
        generator: torch.Generator | None = None,
        key: Tensor | None = None,
    ) -> Tensor:
        """:meth:`rsample` without gradients."""
        with torch.no_grad():
            return self.rsample(sample_shape, eps=eps, generator=generator, key=key)

    def rsample_kl(
        self,
        *,
        reduction: str = "batchmean",
        dim: int | Sequence[int] | None = None,
        eps: Tensor | None = None,
        generator: torch.Generator | None = None,
        key: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """A reparameterized sample and the KL from the standard normal, in one launch.

        Arguments, results and errors are those of :func:`vae_fused.reparameterize_kl`. The gradient
        of packed moments is one packed tensor.
        """
        if self._packed is not None:
            h, packed_dim = self._packed
            return functional.reparameterize_kl_moments(
                h, dim=packed_dim, reduction=reduction, kl_dim=dim,
                eps=eps, generator=generator, key=key,
            )  # fmt: skip
        return functional.reparameterize_kl(
            self.mu, self.logvar, reduction=reduction, dim=dim,
            eps=eps, generator=generator, key=key,
        )  # fmt: skip

    def kl(self, *, reduction: str = "batchmean", dim: int | Sequence[int] | None = None) -> Tensor:
        """KL from the standard normal, in nats; as :func:`vae_fused.gaussian_kl`.

        ``torch.distributions.kl_divergence(q, p)`` is the elementwise KL from any other Gaussian.
        """
        return functional.gaussian_kl(self.mu, self.logvar, reduction=reduction, dim=dim)

    # ----------------------------------------------------------------------------------------------
    # Densities: the shape that value and batch broadcast to
    # ----------------------------------------------------------------------------------------------

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Log density :math:`-\frac12 (t^2 + \ln\sigma^2 + \ln 2\pi)`, :math:`t = (v-\mu)/\sigma`.

        Args:
            value: Any shape that broadcasts with ``batch_shape``.

        Raises:
            TypeError: ``value`` is not a tensor.
            ValueError: Its shape does not broadcast, or it holds a NaN and ``validate_args`` is on.
        """
        t = self._standardized(value)
        return -0.5 * (t * t + _widen(self.logvar) + LOG_2PI)

    def nll(
        self,
        value: Tensor,
        dim: int | Sequence[int] | None = None,
        *,
        reduction: str = "batchmean",
    ) -> Tensor:
        """Negative log likelihood of ``value`` in nats, reduced as a KL is: ``-log_prob``, summed.

        Args:
            value: As for :meth:`log_prob`.
            dim: The dimensions to sum, of the broadcast shape; instead of ``reduction``.
            reduction: As in :func:`vae_fused.gaussian_kl`.
        """
        nll = -self.log_prob(value)
        reduction, dims, _ = check_reduction(nll, reduction, dim)
        return _reduce(nll, reduction, dims)

    def cdf(self, value: Tensor) -> Tensor:
        r"""Probability of less than ``value``: :math:`\frac12 \mathrm{erfc}(-t / \sqrt 2)`."""
        p: Tensor = 0.5 * torch.special.erfc(self._standardized(value) * -math.sqrt(0.5))
        return p

    def icdf(self, value: Tensor) -> Tensor:
        """The ``value``-quantile; NaN outside of [0, 1]."""
        check_value(value, self._batch_shape)
        mu, sigma = _widen(self.mu), torch.exp(0.5 * _widen(self.logvar))
        quantile: Tensor = mu + sigma * torch.special.ndtri(_widen(value))
        wide = torch.float32, torch.float64
        return (
            quantile if self.mu.dtype in wide or value.dtype in wide else quantile.to(self.mu.dtype)
        )

    def entropy(self) -> Tensor:
        r"""Differential entropy :math:`\frac12 (1 + \ln 2\pi + \ln\sigma^2)`, in nats."""
        return 0.5 * (1.0 + LOG_2PI) + 0.5 * _widen(self.logvar)

    def _standardized(self, value: Tensor) -> Tensor:
        check_value(value, self._batch_shape)
        if self._validate_args:
            self._validate_sample(value)
        return (_widen(value) - _widen(self.mu)) * torch.exp(-0.5 * _widen(self.logvar))


def _tensor(value: Tensor | float, other: Tensor | float) -> Tensor:
    """A number as a tensor beside ``other``; what is no number is left to the checks.

    Filled, not copied: a copy of a number to a GPU waits for it.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value  # type: ignore[return-value]
    if isinstance(other, Tensor):
        return torch.full((), value, dtype=other.dtype, device=other.device)
    return torch.full((), value, dtype=torch.get_default_dtype())


def _widen(x: Tensor) -> Tensor:
    """16-bit types compute in float32; integers are left to torch's promotion."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


# --------------------------------------------------------------------------------------------------
# KL between any two: (d, x) of the module's docstring, then gaussian_kl
# --------------------------------------------------------------------------------------------------


def relative_to(
    mu: Tensor, logvar: Tensor, m: Tensor, prior_logvar: Tensor
) -> tuple[Tensor, Tensor]:
    """``(d, x)``, the posterior in units of the prior N(m, e^prior_logvar)."""
    mu, logvar, m, prior_logvar = (_widen(t) for t in (mu, logvar, m, prior_logvar))
    return (mu - m) * torch.exp(-0.5 * prior_logvar), logvar - prior_logvar


def _kl_gaussian_gaussian(q: DiagonalGaussian, p: DiagonalGaussian) -> Tensor:
    d, x = relative_to(q.mu, q.logvar, p.mu, p.logvar)
    return functional.gaussian_kl(d, x, reduction="none")


def _kl_gaussian_normal(q: DiagonalGaussian, p: Normal) -> Tensor:
    scale = _widen(p.scale)
    d, x = (_widen(q.mu) - _widen(p.loc)) / scale, _widen(q.logvar) - 2.0 * torch.log(scale)
    return functional.gaussian_kl(d, x, reduction="none")


def _kl_normal_gaussian(q: Normal, p: DiagonalGaussian) -> Tensor:
    d, x = relative_to(q.loc, 2.0 * torch.log(_widen(q.scale)), p.mu, p.logvar)
    return functional.gaussian_kl(d, x, reduction="none")


register_kl(DiagonalGaussian, DiagonalGaussian)(_kl_gaussian_gaussian)
register_kl(DiagonalGaussian, Normal)(_kl_gaussian_normal)
register_kl(Normal, DiagonalGaussian)(_kl_normal_gaussian)
