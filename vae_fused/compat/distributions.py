"""A replacement for ``torch.distributions.Normal``, implemented with the fused functions.

    from vae_fused.compat.distributions import Normal

It has the same constructor as torch's class, so code written for that class can use it unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from vae_fused._checks import check_posterior
from vae_fused._normal import FusedNormal, as_tensor
from vae_fused.options import as_scale

__all__ = ["Normal"]


class Normal(FusedNormal):
    """Independent normal distributions, given by their means and standard deviations.

    It is a ``torch.distributions.Normal`` and has the methods of
    :class:`vae_fused.DiagonalGaussian`, such as ``rsample_kl``. ``type(q)(q.loc, q.scale)`` gives
    the same distribution.

    It differs from torch's class as follows:

    - Samples obey ``torch.manual_seed``, but their noise differs from that of ``torch.normal``.
    - Densities, entropies and KLs of 16-bit parameters are float32.
    - Parameters must be floating-point tensors or numbers. Mixed dtypes are promoted when the
      distribution is constructed.
    - If values are not validated, a negative ``scale`` makes the results NaN.

    Args:
        loc: Mean: a float32, float64, float16 or bfloat16 tensor of any shape and strides, or a
            number.
        scale: Standard deviation, above 0: a tensor that broadcasts with ``loc``, or a number.
        validate_args: Whether to check values. Default: that of ``torch.distributions``, which is
            True unless ``Distribution.set_default_validate_args(False)`` was called. Each check
            waits for the GPU.

    Attributes:
        loc, scale: As given, broadcast. You can assign them.

    Raises:
        TypeError: A parameter is neither a tensor nor a number, or is not floating-point.
        ValueError: The shapes do not broadcast, or validation finds a NaN or a ``scale`` that is
            not above 0.
        RuntimeError: The parameters are on different devices.
    """

    arg_constraints = {  # noqa: RUF012
        "loc": constraints.real,
        "scale": constraints.positive,
    }

    def __init__(
        self, loc: Tensor | float, scale: Tensor | float, validate_args: bool | None = None
    ) -> None:
        self._scale = as_scale("std")
        self.mu, self.raw = check_posterior(
            as_tensor(loc, scale), as_tensor(scale, loc), "scale", "loc"
        )
        Distribution.__init__(self, self.mu.shape, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Normal:
        """Return the same distribution expanded to ``batch_shape``, without a copy."""
        new: Normal = self._get_checked_instance(Normal, _instance)  # type: ignore[no-untyped-call]
        return self._expanded(batch_shape, new)

    def _given(self) -> dict[str, Tensor]:
        return {"loc": self.mu, "scale": self.raw}

    @property
    def loc(self) -> Tensor:
        return self.mu

    @loc.setter
    def loc(self, value: Tensor) -> None:
        self.mu = value

    @property
    def scale(self) -> Tensor:
        return self.raw

    @scale.setter
    def scale(self, value: Tensor) -> None:
        self.raw = value

    @property
    def variance(self) -> Tensor:
        return self.raw.pow(2)

    def _point(self, value: Any) -> Tensor:
        """Check a point. As in torch, a number is accepted if values are not validated."""
        if self._validate_args:
            self._validate_sample(value)
        elif isinstance(value, Real):
            value = torch.full((), float(value), dtype=self.mu.dtype, device=self.mu.device)
        return super()._point(value)
