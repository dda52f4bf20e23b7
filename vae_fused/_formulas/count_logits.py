"""The log probability of a negative binomial from the logits of its successes, in nats."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vae_fused._formulas import likelihood
from vae_fused._formulas.gaussian import clamped
from vae_fused._formulas.special import (
    LOG_2PI,
    elementwise,
    sigmoid,
    softplus,
    stirling_error,
    stirling_error_slope,
)


def negative_binomial(x: Tensor, logit: Tensor, total: Tensor) -> Tensor:
    r"""Log probability of x successes with logit l before the r-th failure, r = ``total``.

    .. math::
        \ln p = -r \ln(1 + e^l) - x \ln(1 + e^{-l})
            + \ln\Gamma(r + x) - \ln\Gamma(r) - \ln x!

    For x > 0 it equals :func:`vae_fused._formulas.likelihood.negative_binomial` with the mean r e^l
    and theta = r, in which no terms as large as r cancel. For extreme means, the Stirling series is
    combined with the terms above. Derivatives:

    .. math::
        \partial_l = x s(-l) - r s(l), \qquad
        \partial_r = -\ln(1 + e^l) + \sum_{k=0}^{x-1} \frac{1}{r + k}

    The code keeps the first term separate. The other terms add up to digamma(n) - digamma(u), with
    u = r + 1 and n = x + r. Because digamma(z) = ln z - 1 / (2 z) + S'(z), they equal
    ln(1 + (x - 1) / u) + (x - 1) / (2 n u) + S'(n) - S'(u).
    """
    return _negative_binomial(x, logit, total)


def _clipped(total: Tensor) -> Tensor:
    return clamped(total, torch.finfo(total.dtype).tiny, likelihood.LARGEST)


def _value(x: Tensor, logit: Tensor, total: Tensor) -> Tensor:
    zero, plus = x == 0.0, softplus(logit)
    k, r = torch.where(zero, 1.0, x), _clipped(total)
    mean = total * torch.exp(logit)
    ordinary = (mean > 1.0 / likelihood.LARGEST) & (mean < likelihood.LARGEST)
    saddle = likelihood.negative_binomial(k, torch.where(ordinary, mean, 1.0), None, r, 0.0)
    n = k + r
    direct = -k * (torch.log(k / n) + softplus(-logit)) - r * (plus - torch.log1p(k / r))
    direct = direct + ((stirling_error(n) - stirling_error(r)) - stirling_error(k))
    direct = direct + 0.5 * (torch.log(r / n) - torch.log(k) - LOG_2PI)
    value = torch.where(ordinary, saddle, direct)
    value = torch.where(total == 0.0, -math.inf, value)  # the limit of the distribution
    value = torch.where(zero, -total * plus, value)
    value = torch.where(total == math.inf, -math.inf, value)
    return torch.where((total < 0.0) | (x < 0.0), math.nan, value)


def _slopes(
    needs_grad: Sequence[bool], x: Tensor, logit: Tensor, total: Tensor
) -> tuple[Tensor | None, ...]:
    by_logit = x * sigmoid(-logit) - total * sigmoid(logit)
    if not needs_grad[2]:
        return None, by_logit, None
    zero, r = x == 0.0, _clipped(total)
    k = torch.where(zero, 1.0, x)
    n, following = k + r, r + 1.0
    others = torch.log1p((k - 1.0) / following) + 0.5 * ((k - 1.0) / n) / following
    others = others + (stirling_error_slope(n) - stirling_error_slope(following))
    return None, by_logit, torch.where(zero, 0.0, 1.0 / r + others) - softplus(logit)


_negative_binomial = elementwise(_value, _slopes)
