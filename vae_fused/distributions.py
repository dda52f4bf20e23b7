"""The diagonal Gaussian as a ``torch.distributions.Distribution``, based on the fused functions.

This file contains the constructors, and ``_normal.py`` contains the methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from vae_fused._checks import check_moments, check_posterior
from vae_fused._normal import FusedNormal, as_prior, as_tensor, kl_between
from vae_fused.options import Scale, as_scale

__all__ = ["DiagonalGaussian", "as_prior", "kl_between"]


class DiagonalGaussian(FusedNormal):
    r"""Independent normals, parametrized by their mean and log variance, or another scale.

    The distribution equals ``torch.distributions.Normal(mu, exp(logvar / 2))`` but does not compute
    sigma unless you read it. A sample takes one launch, a KL takes one launch, and both together
    also take one (:meth:`rsample_kl`). The class *is* a ``Normal``: ``isinstance`` is true, and
    ``kl_divergence`` accepts every family that torch supports for ``Normal``. Like ``Normal``, it
    is elementwise: ``event_shape`` is ``()``, and ``torch.distributions.Independent`` turns latent
    dimensions into event dimensions.

    Densities, entropies and KLs are in nats, and float32 for 16-bit parameters, because they are
    usually summed. Samples, moments and quantiles have the dtype of ``mu``. Densities are computed
    from :math:`(v - \mu) e^{-\ln\sigma^2 / 2}` without the variance, which would overflow and
    underflow earlier. The lower tails of :meth:`cdf` and :meth:`icdf` keep their relative accuracy.

    By default, types, shapes, dtypes and devices are checked, which requires no data from the
    device. ``validate_args=True`` also checks *values*, here and in :meth:`log_prob` and
    :meth:`cdf`, as ``torch.distributions`` does by default. Each such check waits for the GPU, so
    these checks are off unless you request them, regardless of
    ``Distribution.set_default_validate_args``.

    Args:
        mu: Mean, any shape; float32, float64, float16 or bfloat16, any strides. A number is
            converted to a 0-d tensor.
        logvar: ``ln sigma^2``, or the raw scale for another ``scale``, broadcastable with ``mu``.
            Mixed dtypes promote as in torch.
        validate_args: Whether to check that parameters and points are not NaN. Default: False.
        scale: How sigma is computed from the second parameter: the name of a scale, such as
            ``"std"``, or a :class:`vae_fused.Scale`. See :func:`vae_fused.reparameterize_kl`.

    Attributes:
        mu: The mean.
        raw: The second parameter, as it was given.
        logvar: ``ln sigma^2``, which is either ``raw`` itself or computed from it on access.

    Code that constructs a ``Normal`` from ``(loc, scale)`` passes sigma where this class expects a
    log variance. Use :meth:`from_std` there, or :class:`vae_fused.compat.distributions.Normal`,
    which has torch's constructor. The idiom ``type(q)(q.loc, q.scale)``, which copies a ``Normal``,
    raises an error here, even with detached or indexed parameters. Use :meth:`detach` or
    :meth:`expand` instead. A sigma that was copied to new memory (``q.scale.clone()``), or read in
    compiled code, cannot be recognised, so no error is raised.

    Raises:
        TypeError: A parameter that is neither a tensor nor a number, or is not floating point;
            ``loc``, or a tensor or number as ``scale``, as for ``torch.distributions.Normal``.
        ValueError: Shapes that do not broadcast; an unknown ``scale``; the sigma of another
            ``DiagonalGaussian`` as ``logvar``; NaN, with ``validate_args=True``.
        RuntimeError: Parameters on different devices.

    Example:
        >>> h = torch.randn(8, 2 * 4, 16, 16)  # an encoder's output
        >>> q = vf.DiagonalGaussian.from_moments(h)
        >>> z, kl = q.rsample_kl()  # (8, 4, 16, 16), nats per image
        >>> q.kl(dim=(1, 2, 3)).shape
        torch.Size([8])
    """

    arg_constraints = {"mu": constraints.real, "logvar": constraints.real}  # noqa: RUF012

    def __new__(cls, *args: Any, **names: Any) -> DiagonalGaussian:
        # The check is here and not in __init__, so that the signature shows only valid arguments.
        if "loc" in names or isinstance(names.get("scale"), Tensor | int | float):
            raise TypeError(
                f"{cls.__name__} must be constructed with mu and logvar, got loc or scale, the "
                "parameters of torch.distributions.Normal; call "
                f"{cls.__name__}.from_std(loc, scale)"
            )
        new: DiagonalGaussian = super().__new__(cls)
        return new

    def __init__(
        self,
        mu: Tensor | float,
        logvar: Tensor | float,
        validate_args: bool | None = None,
        *,
        scale: str | Scale = "logvar",
    ) -> None:
        self._scale = as_scale(scale)
        if self._scale.kind != "std" and is_sigma(logvar):
            raise ValueError(
                f"{self._scale.raw_name} must not be the sigma of a {type(self).__name__}, got "
                "q.scale; call from_std(q.loc, q.scale), q.detach() or q.expand(shape)"
            )
        self.mu, self.raw = check_posterior(
            as_tensor(mu, logvar), as_tensor(logvar, mu), self._scale.raw_name
        )
        # Normal's constructor would store loc and scale, which are properties here.
        Distribution.__init__(self, self.mu.shape, validate_args=bool(validate_args))

    @classmethod
    def from_moments(
        cls,
        h: Tensor,
        dim: int = 1,
        validate_args: bool | None = None,
        *,
        scale: str | Scale = "logvar",
    ) -> DiagonalGaussian:
        """Construct the distribution from ``h``, whose halves along ``dim`` are ``mu`` and ``raw``.

        Args:
            h: An encoder's output, for example ``(B, 2C, ...)``. The halves are views, not copies.
            dim: The dimension along which the halves are packed; ``h.shape[dim]`` must be even.
            validate_args, scale: As for the class.

        Raises:
            TypeError: ``h`` is not a floating point tensor.
            ValueError: ``h`` has an odd size in ``dim``, or ``dim`` is out of range.
        """
        mu, raw, dim = check_moments(h, dim)
        new = cls(mu, raw, validate_args=validate_args, scale=scale)
        new._packed = (h, dim, new.mu, new.raw)
        return new

    @classmethod
    def from_std(
        cls, loc: Tensor | float, scale: Tensor | float, validate_args: bool | None = None
    ) -> DiagonalGaussian:
        """Construct the distribution from sigma, like torch's ``Normal(loc, scale)``.

        Args:
            loc: The mean, like ``mu`` of the class.
            scale: Sigma, broadcastable with ``loc``. A negative sigma makes the results NaN.
            validate_args: As for the class.

        Raises:
            TypeError, ValueError, RuntimeError: As for the class.
        """
        return cls(loc, scale, validate_args, scale="std")

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> DiagonalGaussian:
        """Return this distribution with its batch expanded to ``batch_shape``, without a copy."""
        new: DiagonalGaussian = self._get_checked_instance(  # type: ignore[no-untyped-call]
            DiagonalGaussian, _instance
        )
        return self._expanded(batch_shape, new)

    @property
    def scale(self) -> Tensor:  # type: ignore[override]
        return as_sigma(self._sigma(), self.raw)


# --------------------------------------------------------------------------------------------------
# Sigmas that are recognised when passed as log variances
# --------------------------------------------------------------------------------------------------


def as_sigma(sigma: Tensor, raw: Tensor) -> Tensor:
    """Return ``sigma`` in separate memory, which :func:`is_sigma` recognises.

    The mark is on the memory and not on the tensor, so views and detached tensors are recognised
    too. The mark is valid until the memory is written to.
    """
    if torch.compiler.is_compiling():
        return sigma
    try:
        if sigma.untyped_storage()._cdata == raw.untyped_storage()._cdata:
            sigma = sigma.clone()
        sigma.untyped_storage()._is_sigma = sigma._version  # type: ignore[attr-defined]
    except (RuntimeError, NotImplementedError):
        pass  # a tensor has no memory under a transform, and no write count in inference mode
    return sigma


def is_sigma(value: Tensor | float) -> bool:
    """Return whether a tensor is the ``scale`` of a distribution, or a view of it."""
    if not isinstance(value, Tensor) or torch.compiler.is_compiling():
        return False
    try:
        version = getattr(value.untyped_storage(), "_is_sigma", None)
        return version is not None and version == value._version
    except (RuntimeError, NotImplementedError):
        return False
