"""The discretized logistic distribution, which ``torch.distributions`` lacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from vae_fused import losses
from vae_fused._likelihood import KINDS

_MOST_AT_ONCE = 256  # grid values per chunk, so that 16 bits need little memory


class DiscretizedLogistic(Distribution):
    """A logistic distribution, rounded to a grid of 2^bits values in [-1, 1].

    Its mean and variance are sums over the grid, which evaluate the sigmoid 2^bits times for each
    element. Use them only for a few elements: they take 256 times as long with 16 bits as with 8.

    Args:
        location: The location of the logistic distribution. (``mean`` is the mean of the values on
            the grid.)
        log_scale: The logarithm of the logistic scale, with the shape and dtype of ``location``.
        bits: The number of bits per value.
    """

    arg_constraints = {  # noqa: RUF012
        "location": constraints.real,
        "log_scale": constraints.real,
    }
    support = constraints.interval(-1.0, 1.0)

    def __init__(
        self, location: Tensor, log_scale: Tensor, bits: int, validate_args: bool | None = None
    ) -> None:
        self.location, self.log_scale, self.bits = location, log_scale, bits
        super().__init__(location.shape, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> DiscretizedLogistic:
        new: DiscretizedLogistic = self._get_checked_instance(  # type: ignore[no-untyped-call]
            DiscretizedLogistic, _instance
        )
        shape = torch.Size(batch_shape)
        new.location, new.log_scale = self.location.expand(shape), self.log_scale.expand(shape)
        new.bits = self.bits
        Distribution.__init__(new, shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Compute the log probability of grid values, in nats, with :func:`vae_fused.nll`."""
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape, self._batch_shape)
        output = (self.location.expand(shape), self.log_scale.expand(shape))
        kind: Any = KINDS["discretized_logistic"]  # with the lowest floor that the kind accepts
        likelihood = kind(self.bits, log_scale_min=-50.0)
        return -losses.nll(output, value, likelihood, reduction="none")

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        shape, steps = self._extended_shape(torch.Size(sample_shape)), 2**self.bits - 1
        with torch.no_grad():
            tiny = torch.finfo(self.location.dtype).tiny
            u = torch.rand(shape, dtype=self.location.dtype, device=self.location.device)
            logistic = torch.log(u.clamp(min=tiny)) - torch.log1p(-u)
            x = self.location + torch.exp(self.log_scale) * logistic
            nearest = torch.round((x + 1.0) * (0.5 * steps)).clamp(0.0, float(steps))
            result: Tensor = nearest * (2.0 / steps) - 1.0
        return result

    def _moments(self) -> tuple[Tensor, Tensor]:
        """Compute the mean and the mean square from sums over the edges e between grid values.

        x is -1, the first value, plus a step for each edge below x. The mean is therefore -1 plus a
        step times the sum of P(x > e). Likewise, x^2 is 1 plus a step times 2 e for each edge e
        below x, so the mean square is 1 plus a step times the sum of 2 e P(x > e).
        """
        steps, inverse = 2**self.bits - 1, torch.exp(-self.log_scale)
        first = second = torch.zeros_like(self.location)
        every = torch.arange(steps, dtype=self.location.dtype, device=self.location.device)
        for part in every.split(_MOST_AT_ONCE):
            edge = ((2.0 * part + 1.0) / steps - 1.0).view(-1, *(1,) * self.location.dim())
            beyond = torch.sigmoid(inverse * (self.location - edge))
            first = first + beyond.sum(0)
            second = second + (2.0 * edge * beyond).sum(0)
        return first * (2.0 / steps) - 1.0, 1.0 + second * (2.0 / steps)

    @property
    def mean(self) -> Tensor:
        return self._moments()[0]

    @property
    def variance(self) -> Tensor:
        mean, square = self._moments()
        return square - mean * mean
