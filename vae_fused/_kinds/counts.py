"""Count data."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.distributions as torch_distributions
from torch import Tensor
from torch.distributions import Distribution

from vae_fused import _count_distributions as counts
from vae_fused._formulas import count_logits
from vae_fused._formulas import likelihood as formulas
from vae_fused._kinds.base import Kind, Outputs
from vae_fused._likelihood import INFLATIONS, MEANS, Call
from vae_fused._numbers import check_choice, check_not_negative, check_positive


@dataclass(frozen=True, repr=False)
class _Counts(Kind):
    target_has_gradient: ClassVar[bool] = False
    target_is: ClassVar[str] = "whole numbers of at least 0"

    def is_valid(self, target: Tensor) -> Tensor:
        valid = target >= 0
        if target.is_floating_point():
            valid &= (target == target.floor()) & (target < math.inf)
        return valid


@dataclass(frozen=True, repr=False)
class Poisson(_Counts, name="poisson"):
    r"""Poisson distribution of counts with mean m.

    .. math:: -\ln p = m - x \ln m + \ln x!

    Args:
        rate: How m is read from ``output``: ``"exp"`` (default; the output is a log rate),
            ``"identity"``, ``"softplus"``, or ``"softmax"`` over the last dimension, times
            ``exp(library)``.
        constants: Whether ln x! is part of the value.
        validate: As for every kind (:class:`Likelihood`).
    """

    rate: str = "exp"

    def check(self) -> None:
        super().check()
        check_choice("rate", self.rate, MEANS)

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("rate",)

    @property
    def has_library(self) -> bool:
        return self.rate == "softmax"

    def elements(self, call: Call) -> Tensor:
        mean, log_mean = formulas.mean_of(call.outputs[0], self.rate, call.library, call.mask)
        return formulas.poisson(call.target, mean, log_mean, self.constants)

    def distribution_of(self, outputs: Outputs, library: Tensor | None) -> Distribution:
        mean, _ = formulas.mean_of(outputs[0], self.rate, library, None)
        return torch_distributions.Poisson(mean, validate_args=self.validate)


@dataclass(frozen=True, repr=False)
class _NegativeBinomials(_Counts):
    """Base class for distributions with a mean and theta."""

    mean: str = "identity"
    dispersion: str = field(default="identity", kw_only=True)
    dispersion_max: float | None = field(default=None, kw_only=True)
    eps: float = field(default=0.0, kw_only=True)

    def check(self) -> None:
        super().check()
        check_choice("mean", self.mean, MEANS)
        check_choice("dispersion", self.dispersion, MEANS[:-1])
        if self.dispersion_max is not None:
            dispersion_max = check_positive("dispersion_max", self.dispersion_max)
            object.__setattr__(self, "dispersion_max", dispersion_max)
        object.__setattr__(self, "eps", check_not_negative("eps", self.eps))

    @property
    def has_library(self) -> bool:
        return self.mean == "softmax"

    def log_pmf(self, call: Call) -> Tensor:
        """The log probability without zero inflation."""
        mean, log_mean = formulas.mean_of(call.outputs[0], self.mean, call.library, call.mask)
        theta = formulas.theta_of(call.outputs[1], self.dispersion, self.dispersion_max)
        value = formulas.negative_binomial(call.target, mean, log_mean, theta, self.eps)
        return value if self.constants else value + torch.lgamma(call.target + 1.0)

    def read(self, outputs: Outputs, library: Tensor | None) -> tuple[Tensor, Tensor]:
        """The mean and theta."""
        mean, _ = formulas.mean_of(outputs[0], self.mean, library, None)
        return mean, formulas.theta_of(outputs[1], self.dispersion, self.dispersion_max)


@dataclass(frozen=True, repr=False)
class NegativeBinomial(_NegativeBinomials, name="negative_binomial"):
    r"""Negative binomial distribution of counts with mean m and variance m + m^2 / theta.

    .. math::
        -\ln p = \theta \ln(1 + m / \theta) - x \ln\frac{m}{m + \theta}
            - \ln\Gamma(x + \theta) + \ln\Gamma(\theta) + \ln x!

    ``output`` is ``(mean, theta)``. theta broadcasts to the mean: ``(G,)``, ``(1, G)``, ``(B, G)``
    or ``(B, 1)``. theta = inf gives the Poisson distribution.

    Args:
        mean: How m is read from its output: ``"identity"`` (default), ``"exp"``, ``"softplus"``, or
            ``"softmax"`` over the last dimension, times ``exp(library)``.
        dispersion: How theta, the inverse dispersion, is read from its output: ``"identity"``
            (default), ``"exp"`` or ``"softplus"``.
        dispersion_max: An upper bound on theta. Above the bound, the gradient is 0. At the bound,
            it is unchanged.
        eps: The constant that is added inside the logarithms, which is 1e-8 in scvi-tools. Leave it
            at 0 unless you must reproduce the values of scvi-tools.
        constants: Whether ln x! is part of the value.
        validate: As for every kind (:class:`Likelihood`).
    """

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("mean", "theta")

    def elements(self, call: Call) -> Tensor:
        return self.log_pmf(call)

    def distribution_of(self, outputs: Outputs, library: Tensor | None) -> Distribution:
        return counts.NegativeBinomial(*self.read(outputs, library), validate_args=self.validate)


@dataclass(frozen=True, repr=False)
class ZeroInflatedNegativeBinomial(_NegativeBinomials, name="zero_inflated_negative_binomial"):
    r"""A :class:`NegativeBinomial` count that is replaced by 0 with probability pi.

    .. math::
        p(0) = \pi + (1 - \pi)\, p_0(0), \qquad p(x) = (1 - \pi)\, p_0(x)

    ``output`` is ``(mean, theta, zero_inflation)``. theta and zero_inflation broadcast to the mean.

    Args:
        mean, dispersion, dispersion_max, eps, constants, validate: As for
            :class:`NegativeBinomial`.
        zero_inflation: How pi is given: ``"logits"`` (default), or ``"probs"`` for pi itself.
    """

    zero_inflation: str = field(default="logits", kw_only=True)

    def check(self) -> None:
        super().check()
        check_choice("zero_inflation", self.zero_inflation, INFLATIONS)

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("mean", "theta", "zero_inflation")

    def elements(self, call: Call) -> Tensor:
        inflation = call.outputs[2]
        return formulas.zero_inflated(
            call.target, self.log_pmf(call), inflation, self.zero_inflation
        )

    def distribution_of(self, outputs: Outputs, library: Tensor | None) -> Distribution:
        logits = outputs[2]
        if self.zero_inflation == "probs":
            logits = torch.log(logits) - torch.log1p(-logits)
        return counts.ZeroInflatedNegativeBinomial(
            *self.read(outputs, library), logits, validate_args=self.validate
        )


@dataclass(frozen=True, repr=False)
class NegativeBinomialLogits(_Counts, name="negative_binomial_logits"):
    r"""Negative binomial distribution of counts, parametrized as in ``torch.distributions``.

    .. math::
        -\ln p = r \ln(1 + e^l) + x \ln(1 + e^{-l})
            - \ln\Gamma(r + x) + \ln\Gamma(r) + \ln x!

    x is the number of successes, each with logit l, before the r-th failure. The mean is r e^l, so
    this is :class:`NegativeBinomial` with mean r e^l and theta = r.

    ``output`` is ``(total_count, logits)``: r and l. The two broadcast together, and their common
    shape is the shape of the elementwise loss. For example, ``total_count`` may have the shape
    ``(G,)`` and logits the shape ``(B, G)``.

    Args:
        constants: Whether ln x! is part of the value.
        validate: As for every kind (:class:`Likelihood`).
    """

    leading: ClassVar[int] = 1

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("total_count", "logits")

    def elements(self, call: Call) -> Tensor:
        value = count_logits.negative_binomial(call.target, *call.outputs)
        return value if self.constants else value + torch.lgamma(call.target + 1.0)

    def distribution_of(self, outputs: Outputs, library: Tensor | None) -> Distribution:
        logits, total = outputs
        kind = torch_distributions.NegativeBinomial
        return kind(total, logits=logits, validate_args=self.validate)
