"""Count distributions, parametrized by the mean, that torch does not provide.

``vae_fused.likelihoods`` constructs them, and ``vae_fused.losses`` computes their densities.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.utils import broadcast_all

from vae_fused import losses


class _Counts(Distribution):
    """A distribution whose parameters are same-shape tensors, named as in ``arg_constraints``."""

    support = constraints.nonnegative_integer
    likelihood: str

    def __init__(self, *, validate_args: bool | None = None, **parameters: Tensor) -> None:
        values = broadcast_all(*parameters.values())
        self.__dict__.update(zip(parameters, values, strict=True))
        super().__init__(values[0].shape, validate_args=validate_args)

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, name) for name in self.arg_constraints)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> _Counts:
        new: _Counts = self._get_checked_instance(type(self), _instance)  # type: ignore[no-untyped-call]
        expanded = (value.expand(tuple(batch_shape)) for value in self.parameters)
        new.__dict__.update(zip(self.arg_constraints, expanded, strict=True))
        Distribution.__init__(new, torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Compute the log probability of counts, in nats, with :func:`vae_fused.nll`."""
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape, self._batch_shape)
        output = [parameter.expand(shape) for parameter in self.parameters]
        return -losses.nll(output, value, self.likelihood, reduction="none")


class NegativeBinomial(_Counts):
    """The negative binomial with mean mu and variance mu + mu^2 / theta.

    A sample is a Poisson count whose rate is drawn from a gamma distribution with concentration
    theta. ``torch.distributions.NegativeBinomial`` is the same family, parametrized differently.
    """

    arg_constraints = {  # noqa: RUF012
        "mu": constraints.nonnegative,
        "theta": constraints.nonnegative,
    }
    likelihood = "negative_binomial"

    mu: Tensor
    theta: Tensor

    def __init__(self, mu: Tensor, theta: Tensor, validate_args: bool | None = None) -> None:
        super().__init__(mu=mu, theta=theta, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        return self.mu

    @property
    def variance(self) -> Tensor:
        return self.mu * (1.0 + self.mu / self.theta)

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            # With a huge concentration, a gamma sample equals its mean, but inf would give NaN.
            theta = self.theta.clamp(max=1e30)
            unit = torch._standard_gamma(theta.expand(shape)) / theta
            return torch.poisson(unit * self.mu)


class ZeroInflatedNegativeBinomial(_Counts):
    """A negative binomial of mu and theta, replaced by 0 with probability sigmoid(``logits``)."""

    arg_constraints = {  # noqa: RUF012
        **NegativeBinomial.arg_constraints,
        "logits": constraints.real,
    }
    likelihood = "zero_inflated_negative_binomial"

    mu: Tensor
    theta: Tensor
    logits: Tensor

    def __init__(
        self, mu: Tensor, theta: Tensor, logits: Tensor, validate_args: bool | None = None
    ) -> None:
        super().__init__(mu=mu, theta=theta, logits=logits, validate_args=validate_args)

    @property
    def probs(self) -> Tensor:
        """The probability that a sample is replaced by 0."""
        return torch.sigmoid(self.logits)

    @property
    def mean(self) -> Tensor:
        return self.mu * torch.sigmoid(-self.logits)

    @property
    def variance(self) -> Tensor:
        return self.mean * (1.0 + self.mu * (self.probs + 1.0 / self.theta))

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        counts = NegativeBinomial(self.mu, self.theta, validate_args=False).sample(sample_shape)
        with torch.no_grad():
            return torch.where(torch.rand_like(counts) < self.probs, 0.0, counts)
