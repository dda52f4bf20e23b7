"""Data in an interval: bits and grey values in [0, 1], and pixels on a grid in [-1, 1]."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch.distributions as torch_distributions
from torch import Tensor
from torch.distributions import Distribution

from vae_fused._formulas import densities
from vae_fused._formulas import likelihood as formulas
from vae_fused._grid_distribution import DiscretizedLogistic as GridDistribution
from vae_fused._kinds.base import Kind, Outputs
from vae_fused._likelihood import Call
from vae_fused._numbers import check_number


class _OfUnitInterval(Kind):
    """Base class for distributions of a target in [0, 1], parametrized by logits."""

    target_has_gradient: ClassVar[bool] = True
    target_is: ClassVar[str] = "numbers in [0, 1]"

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("logits",)

    def is_valid(self, target: Tensor) -> Tensor:
        return (target >= 0) & (target <= 1)


@dataclass(frozen=True, repr=False)
class Bernoulli(_OfUnitInterval, name="bernoulli"):
    r"""Bernoulli distribution of a target in [0, 1], parametrized by logits l.

    .. math:: -\ln p = (1 - x) \ln(1 + e^l) + x \ln(1 + e^{-l})

    ``output`` is the logits. Infinite logits are exact wherever the loss is finite. There are no
    constants to leave out.

    Args:
        constants, validate: As for every kind (:class:`Likelihood`).
    """

    def elements(self, call: Call) -> Tensor:
        return formulas.bernoulli(call.target, *call.outputs)

    def distribution_of(self, outputs: Outputs, library: Tensor | None) -> Distribution:
        return torch_distributions.Bernoulli(logits=outputs[0], validate_args=self.validate)


@dataclass(frozen=True, repr=False)
class ContinuousBernoulli(_OfUnitInterval, name="continuous_bernoulli"):
    r"""Continuous Bernoulli distribution of a target in [0, 1], parametrized by logits l.

    .. math:: -\ln p = \ln\frac{e^l - 1}{l} - x l

    This is :class:`Bernoulli` normalized as a density of grey values. The loss is Bernoulli's
    :math:`\ln(1 + e^l) - x l` minus the constant :math:`C = \ln(l / \tanh(l / 2))` (Loaiza-Ganem
    and Cunningham 2019, "The continuous Bernoulli: fixing a pervasive error in variational
    autoencoders"). It is a density, so the loss may be negative.

    ``output`` is the logits. No digits are lost near l = 0, where the distribution is uniform, or
    for large logits. An infinite logit gives the limit, in which all of the density is at one end.

    Args:
        constants, validate: As for every kind (:class:`Likelihood`). There are no constants to
            leave out, because C depends on the logits.
    """

    def elements(self, call: Call) -> Tensor:
        return densities.continuous_bernoulli(call.target, *call.outputs)

    def distribution_of(self, outputs: Outputs, library: Tensor | None) -> Distribution:
        logits = outputs[0]
        return torch_distributions.ContinuousBernoulli(logits=logits, validate_args=self.validate)


@dataclass(frozen=True, repr=False)
class DiscretizedLogistic(Kind, name="discretized_logistic"):
    r"""Discretized logistic distribution of pixels on a grid of 2^bits values in [-1, 1].

    With :math:`h = 1 / (2^{bits} - 1)`, which is half a step of the grid, and
    :math:`s = \max(\mathrm{log\_scale}, \mathrm{log\_scale\_min})`:

    .. math::
        p(x) = \sigma\big(e^{-s} (x - m + h)\big) - \sigma\big(e^{-s} (x - m - h)\big)

    The first and the last value of the grid also include the probability of everything beyond them,
    and a target within half a step of -1 or 1 counts as that value (Salimans et al. 2017,
    "PixelCNN++"; vdvae's ``vae_helpers``). The loss is the sum of :math:`\ln(1 + e^{-p})`,
    :math:`\ln(1 + e^q)` and :math:`-\ln(1 - e^{q - p})`, where p and q are the two arguments of
    :math:`\sigma`. This sum stays accurate where p(x) is small, so the code never switches to the
    density. Where p(x) is below 1e-5, vdvae uses the density times the step size, which is wrong by
    a factor of up to :math:`\sinh(d/2) / (d/2)` with d = p - q. It also treats targets below -0.999
    or above 0.999 as the first or the last value of the grid, for any number of bits.

    ``output`` is ``(mean, log_scale)``, and ``log_scale`` broadcasts to the mean. For 8-bit pixels,
    the target is ``pixels / 127.5 - 1``, in float32 or wider. The target gets no gradient.

    Args:
        bits: The number of bits of a pixel, 1 to 16.
        log_scale_min: The minimum log scale, between -50 and 50. Below the minimum, the gradient is
            0. At the minimum, it is unchanged.
        constants, validate: As for every kind (:class:`Likelihood`). There are no constants to
            leave out.
    """

    bits: int = 8
    log_scale_min: float = field(default=-7.0, kw_only=True)

    target_has_gradient: ClassVar[bool] = False
    target_is: ClassVar[str] = "numbers in [-1, 1]"

    def check(self) -> None:
        super().check()
        if isinstance(self.bits, bool) or not isinstance(self.bits, int):
            raise TypeError(f"bits must be an int, got {type(self.bits).__name__}")
        if not 1 <= self.bits <= 16:
            raise ValueError(f"bits must be between 1 and 16, got {self.bits}")
        least = check_number("log_scale_min", self.log_scale_min)
        if abs(least) > 50.0:
            raise ValueError(f"log_scale_min must be between -50 and 50, got {least}")
        object.__setattr__(self, "log_scale_min", least)

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("mean", "log_scale")

    def is_valid(self, target: Tensor) -> Tensor:
        return (target >= -1) & (target <= 1)

    def elements(self, call: Call) -> Tensor:
        mean, log_scale = call.outputs
        least = self.log_scale_min
        return densities.discretized_logistic(call.target, mean, log_scale, self.bits, least)

    def distribution_of(self, outputs: Outputs, library: Tensor | None) -> Distribution:
        mean, log_scale = outputs
        scale = densities.floored(log_scale, self.log_scale_min)
        return GridDistribution(mean, scale, self.bits, validate_args=self.validate)
