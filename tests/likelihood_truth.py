"""Log likelihoods and their derivatives, correct to the last digit and computed only by mpmath."""

from __future__ import annotations

from collections.abc import Callable

import mpmath as mp
import torch
from torch import Tensor

DIGITS = 60


def bernoulli(x: float, logit: float) -> tuple[mp.mpf, ...]:
    """The value, and the derivative with respect to the logit."""
    x, logit = mp.mpf(x), mp.mpf(logit)
    value = -(1 - x) * mp.log1p(mp.exp(logit)) - x * mp.log1p(mp.exp(-logit))
    return value, x - 1 / (1 + mp.exp(-logit))


def poisson(x: float, log_mean: float) -> tuple[mp.mpf, ...]:
    """The value, and the derivative with respect to the log mean."""
    x, log_mean = mp.mpf(x), mp.mpf(log_mean)
    return x * log_mean - mp.exp(log_mean) - mp.loggamma(x + 1), x - mp.exp(log_mean)


def negative_binomial(x: float, mean: float, theta: float, eps: float = 0.0) -> tuple[mp.mpf, ...]:
    """The value, and the derivatives with respect to mean and theta."""
    x, m, theta, eps = mp.mpf(x), mp.mpf(mean), mp.mpf(theta), mp.mpf(eps)
    t, me = theta + eps, m + eps
    s = t + m
    value = theta * mp.log(t / s)
    by_theta = mp.log(t / s) + theta / t - theta / s
    if x:
        value += mp.loggamma(x + theta) - mp.loggamma(theta) - mp.loggamma(x + 1)
        value += x * mp.log(me / s)
        by_theta += mp.digamma(x + theta) - mp.digamma(theta) - x / s
    return value, theta / s * (x / me - 1), by_theta


def zero_inflated(
    x: float, mean: float, theta: float, logit: float, eps: float = 0.0
) -> tuple[mp.mpf, ...]:
    """The value, and the derivatives with respect to mean, theta and the logit."""
    value, by_mean, by_theta = negative_binomial(x, mean, theta, eps)
    inflation = 1 / (1 + mp.exp(-mp.mpf(logit)))
    if x:
        return value + mp.log1p(-inflation), by_mean, by_theta, -inflation
    zero = inflation + (1 - inflation) * mp.exp(value)
    weight = (1 - inflation) * mp.exp(value) / zero
    by_logit = inflation * (1 - inflation) * -mp.expm1(value) / zero
    return mp.log(zero), weight * by_mean, weight * by_theta, by_logit


def student_t(x: float, mean: float, log_sigma: float, df: float) -> tuple[mp.mpf, ...]:
    """The value, and the derivatives with respect to mean, ln sigma and df."""
    x, m, s, n = mp.mpf(x), mp.mpf(mean), mp.mpf(log_sigma), mp.mpf(df)
    d = (x - m) * mp.exp(-s)
    growth = mp.log1p(d * d / n)
    value = -(n + 1) / 2 * growth - s - mp.log(n * mp.pi) / 2
    value += mp.loggamma((n + 1) / 2) - mp.loggamma(n / 2)
    by_df = -growth / 2 + (n + 1) / 2 * (d * d / n) / (n + d * d) - 1 / (2 * n)
    by_df += (mp.digamma((n + 1) / 2) - mp.digamma(n / 2)) / 2
    share = (n + 1) / (n + d * d)
    return value, share * d * mp.exp(-s), share * d * d - 1, by_df


def continuous_bernoulli(x: float, logit: float) -> tuple[mp.mpf, ...]:
    """The value, and the derivative with respect to the logit."""
    x, logit = mp.mpf(x), mp.mpf(logit)
    value = x * logit - mp.log(mp.expm1(logit) / logit)
    return value, x - 1 / (1 - mp.exp(-logit)) + 1 / logit


def negative_binomial_logits(x: float, logit: float, total: float) -> tuple[mp.mpf, ...]:
    """The value, and the derivatives with respect to the logit and total_count."""
    x, logit, r = mp.mpf(x), mp.mpf(logit), mp.mpf(total)
    value = -r * mp.log1p(mp.exp(logit)) - x * mp.log1p(mp.exp(-logit))
    value += mp.loggamma(x + r) - mp.loggamma(r) - mp.loggamma(x + 1)
    s = 1 / (1 + mp.exp(-logit))
    by_total = mp.digamma(x + r) - mp.digamma(r) - mp.log1p(mp.exp(logit))
    return value, x * (1 - s) - r * s, by_total


def discretized_logistic(
    x: float, mean: float, log_scale: float, bits: int = 8
) -> tuple[mp.mpf, ...]:
    """The value, and the derivatives with respect to mean and log_scale.

    log_scale must be above its floor.
    """
    x, m, s, h = mp.mpf(x), mp.mpf(mean), mp.mpf(log_scale), mp.mpf(1) / (2**bits - 1)
    edges = [((x + side * h - m) * mp.exp(-s), side) for side in (1, -1)]
    if x < h - 1 or x > 1 - h:  # the outer edge of the first and the last value is infinite
        edges = edges[:1] if x < 0 else edges[1:]
    missing = sum((1 / (1 + mp.exp(side * e)) for e, side in edges), start=mp.mpf(0))  # 1 - p
    slopes = [(e, side * mp.exp(-e) / (1 + mp.exp(-e)) ** 2) for e, side in edges]
    by_mean = sum((-slope for _, slope in slopes), start=mp.mpf(0)) * mp.exp(-s)
    by_scale = sum((-e * slope for e, slope in slopes), start=mp.mpf(0))
    return mp.log1p(-missing), by_mean / (1 - missing), by_scale / (1 - missing)


def truths(function: Callable[..., tuple[mp.mpf, ...]], *inputs: Tensor) -> list[list[mp.mpf]]:
    """Returns, for each result of ``function``, its values at all elements of the inputs."""
    with mp.workdps(DIGITS):
        points = zip(*(t.flatten().tolist() for t in inputs), strict=True)
        return [list(column) for column in zip(*(function(*p) for p in points), strict=True)]


def relative(got: Tensor, want: list[mp.mpf]) -> list[float]:
    """The relative error of each element."""
    with mp.workdps(DIGITS):
        pairs = zip(got.double().flatten().tolist(), want, strict=True)
        return [float(abs((mp.mpf(g) - w) / w)) if w else abs(g) for g, w in pairs]


def in_terms(got: Tensor, want: list[mp.mpf], terms: list[mp.mpf]) -> list[float]:
    """The error of each element, in units of the summed magnitudes of its terms."""
    with mp.workdps(DIGITS):
        triples = zip(got.double().flatten().tolist(), want, terms, strict=True)
        return [float(abs(mp.mpf(g) - w) / t) if t else float(abs(g - w)) for g, w, t in triples]


def sweep(seed: int, size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Draws counts from 0 to 1e6, means from 1e-6 to 3e3, and theta from 1e-3 to 1e8.

    The means and theta are rounded to ``dtype``. A third of the counts are 0, a third are at most
    16, and a third are arbitrary. Half of the means are near their counts, where the terms of a log
    probability cancel most.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> Tensor:
        drawn = torch.rand(size, generator=generator, dtype=torch.float64)
        return low + (high - low) * drawn

    x = torch.floor(10.0 ** uniform(0.0, 6.0))
    x = torch.where(uniform(0, 1) < 0.5, torch.floor(uniform(1.0, 17.0)), x)
    x = torch.where(uniform(0, 1) < 1 / 3, 0.0, x)
    mean = 10.0 ** uniform(-6.0, 3.477)
    near = (x * torch.exp(uniform(-1.0, 1.0))).clamp(1e-6, 3e3)
    mean = torch.where(uniform(0, 1) < 0.5, near, mean)
    theta = 10.0 ** uniform(-3.0, 8.0)
    return x, mean.to(dtype).double(), theta.to(dtype).double()
