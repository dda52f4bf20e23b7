"""Real-valued data: distributions with a location and a scale."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.distributions as torch_distributions
from torch import Tensor
from torch.distributions import Distribution

from vae_fused._formulas import densities, gaussian
from vae_fused._formulas import likelihood as formulas
from vae_fused._formulas.special import LOG_2PI
from vae_fused._kinds.base import Kind, Outputs
from vae_fused._likelihood import MEANS, Call
from vae_fused._numbers import check_choice, check_positive
from vae_fused.distributions import DiagonalGaussian
from vae_fused.options import Scale, as_scale


@dataclass(frozen=True, repr=False)
class _Real(Kind):
    """Base class for distributions with a location and a scale."""

    scale: str | Scale = "logvar"
    sigma: float | None = field(default=None, kw_only=True)

    target_has_gradient: ClassVar[bool] = True
    target_is: ClassVar[str] = "numbers other than NaN"

    def check(self) -> None:
        super().check()
        scale = as_scale(self.scale)
        if scale == as_scale(scale.kind):  # one notation, so that equal kinds compare equal
            object.__setattr__(self, "scale", scale.kind)
        if self.sigma is not None:
            object.__setattr__(self, "sigma", check_positive("sigma", self.sigma))
            if self.scale != type(self).scale:
                raise ValueError(
                    f"scale and sigma must not be given together, got {scale!r} and {self.sigma}"
                )

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("mean", "raw") if self.sigma is None else ("mean",)

    def is_valid(self, target: Tensor) -> Tensor:
        return ~torch.isnan(target)

    def read(self, outputs: Outputs) -> gaussian.Gaussian:
        """The mean and the scale of outputs without a fixed sigma."""
        mean, raw = outputs
        return gaussian.Gaussian(mean, raw, as_scale(self.scale))


@dataclass(frozen=True, repr=False)
class Gaussian(_Real, name="gaussian"):
    r"""Normal distribution of real data.

    .. math:: -\ln p = \tfrac12 \big((x - m)^2 / \sigma^2 + \ln \sigma^2 + \ln 2 \pi\big)

    ``output`` is ``(mean, raw)``, where sigma is read from ``raw``, or only the mean if ``sigma``
    is given. ``raw`` broadcasts to the mean: it may have one value per element or per channel, or a
    single value.

    Args:
        scale: How sigma is read from ``raw``: ``"logvar"``, ``"std"``, ``"softplus"``, ...,
            or a :class:`vae_fused.Scale`.
        sigma: A fixed number, given instead of ``scale``. ``sigma=0.5 ** 0.5, constants=False``
            gives the squared error.
        constants: Whether ln 2 pi, and ln sigma^2 for a fixed sigma, are part of the value.
        validate: As for every kind (:class:`Likelihood`).
    """

    def elements(self, call: Call) -> Tensor:
        constant = LOG_2PI if self.constants else 0.0
        if self.sigma is not None:
            constant += 2.0 * math.log(self.sigma) if self.constants else 0.0
            return -0.5 * (((call.target - call.outputs[0]) / self.sigma) ** 2 + constant)
        value = gaussian.Gaussian(call.target, call.target.new_zeros(()), as_scale("logvar"))
        return -gaussian.linear(value, self.read(call.outputs), constant)

    def distribution_of(self, outputs: Outputs, library: Tensor | None) -> Distribution:
        if self.sigma is None:
            mean, raw = outputs
            return DiagonalGaussian(mean, raw, self.validate, scale=self.scale)
        mean, sigma = outputs[0], torch.full_like(outputs[0], self.sigma)
        return DiagonalGaussian(mean, sigma, self.validate, scale="std")


@dataclass(frozen=True, repr=False)
class Laplace(_Real, name="laplace"):
    r"""Laplace distribution of real data.

    .. math:: -\ln p = |x - m| / b + \ln 2 b

    ``output`` is ``(mean, raw)``, or only the mean, as for :class:`Gaussian`.

    Args:
        scale: How b, the scale of ``torch.distributions.Laplace``, is read from ``raw``: as
            the sigma of a kind or of a :class:`vae_fused.Scale`. The standard deviation is b times
            the square root of 2. Default: ``"logstd"``, b = e^raw.
        sigma: A fixed number for b, given instead of ``scale``. ``sigma=1.0, constants=False``
            gives the absolute error.
        constants: Whether ln 2, and ln b for a fixed b, are part of the value.
        validate: As for every kind (:class:`Likelihood`).
    """

    scale: str | Scale = "logstd"

    def elements(self, call: Call) -> Tensor:
        constant = math.log(2.0) if self.constants else 0.0
        distance = (call.target - call.outputs[0]).abs()
        if self.sigma is not None:
            constant += math.log(self.sigma) if self.constants else 0.0
            return -(distance / self.sigma + constant)
        read = self.read(call.outputs)
        return -(distance / read.divisor + (0.5 * read.log_variance + constant))

    def distribution_of(self, outputs: Outputs, library: Tensor | None) -> Distribution:
        if self.sigma is None:
            b = self.read(outputs).sigma
        else:
            b = torch.full_like(outputs[0], self.sigma)
        return torch_distributions.Laplace(outputs[0], b, validate_args=self.validate)


@dataclass(frozen=True, repr=False)
class StudentT(_Real, name="student_t"):
    r"""Student's t distribution of real data, with n degrees of freedom and heavy tails.

    .. math::
        -\ln p = \tfrac{n + 1}{2} \ln\Big(1 + \frac{(x - m)^2}{n \sigma^2}\Big) + \ln \sigma
            + \tfrac12 \ln n \pi + \ln\Gamma(\tfrac n2) - \ln\Gamma(\tfrac{n + 1}2)

    ``output`` is ``(mean, raw, df)``, ``(mean, raw)`` if ``df`` is given, or only the mean if
    ``sigma`` is given as well. ``raw`` and ``df`` broadcast to the mean. As in
    ``torch.distributions.StudentT``, sigma is the scale, and the variance is sigma^2 n / (n - 2).
    If the output df is infinite, the distribution equals the Gaussian to the last digit, and it
    converges to the Gaussian as df grows. A negative df gives NaN.

    Args:
        scale, sigma: As for :class:`Gaussian`. ``sigma`` requires ``df``.
        df: The degrees of freedom, a fixed number. Default: the third output.
        freedom: How the degrees of freedom are read from the third output: ``"identity"``
            (default), ``"exp"`` or ``"softplus"``.
        constants: Whether 1/2 ln 2 pi, ln sigma for a fixed sigma, and the last three terms for a
            fixed df are part of the value.
        validate: As for every kind (:class:`Likelihood`).
    """

    df: float | None = field(default=None, kw_only=True)
    freedom: str = field(default="identity", kw_only=True)

    def check(self) -> None:
        super().check()
        check_choice("freedom", self.freedom, MEANS[:-1])
        if self.df is not None:
            object.__setattr__(self, "df", check_positive("df", self.df))
            if self.freedom != "identity":
                raise ValueError(
                    f"df and freedom must not be given together, got {self.df} and {self.freedom!r}"
                )
        elif self.sigma is not None:
            raise ValueError(
                "df must be a number where sigma is one, because no output has only a df, got None"
            )

    @property
    def outputs(self) -> tuple[str, ...]:
        return super().outputs if self.df is not None else ("mean", "raw", "df")

    def elements(self, call: Call) -> Tensor:
        distance, df = call.target - call.outputs[0], self.degrees(call.outputs)
        constant = 0.5 * LOG_2PI if self.constants else 0.0
        has_excess = self.constants or self.df is None
        if self.sigma is not None:
            constant += math.log(self.sigma) if self.constants else 0.0
            one = distance.new_ones(())
            scaled = distance / self.sigma
            return densities.student_t(scaled, one, one - 1.0, df, has_excess) - constant
        read = self.read(call.outputs[:2])
        log_sigma = 0.5 * read.log_variance
        return densities.student_t(distance, read.divisor, log_sigma, df, has_excess) - constant

    def degrees(self, outputs: Outputs) -> Tensor:
        """The degrees of freedom for the formulas."""
        if self.df is not None:
            return torch.full_like(outputs[0], self.df)
        return formulas.theta_of(outputs[2], self.freedom, None)

    def distribution_of(self, outputs: Outputs, library: Tensor | None) -> Distribution:
        df = self.degrees(outputs)
        if self.sigma is None:
            sigma = self.read(outputs[:2]).sigma
        else:
            sigma = torch.full_like(outputs[0], self.sigma)
        return torch_distributions.StudentT(df, outputs[0], sigma, validate_args=self.validate)
