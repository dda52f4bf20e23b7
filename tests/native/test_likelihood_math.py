"""Tests the accuracy of csrc/math/special.h and csrc/math/likelihood against their stated bounds.

The formulas in double are compared with mpmath. They are then the oracle of the float sweeps, which
cover scalars of the host and of the emulated device, and the vectors of every instruction set that
this machine supports. Errors are in units of 2^-24 times the sum of the magnitudes of a formula's
terms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from types import ModuleType

import mpmath
import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from mpmath import mp, mpf

from .test_math import floats_between, ulps

Array = np.ndarray
U = 2.0**-24
KINDS = [
    "bernoulli", "gaussian", "laplace", "poisson", "negative_binomial", "zero_inflated",
    "student_t", "continuous_bernoulli", "negative_binomial_logits", "discretized_logistic",
]  # fmt: skip
VARIANTS = ["scalar", "emulated", "baseline", "avx2", "avx512"]
SIZE = 1 << 16


def evaluate(native: ModuleType, kind: str, options: dict, x: Array, variant: str) -> Array:
    """Returns values and gradients, [1 + inputs, n]."""
    return native.likelihood(variant, KINDS.index(kind), options, np.ascontiguousarray(x))


# ------------------------------------------------------------------------------------------------
# special.h
# ------------------------------------------------------------------------------------------------


def test_log1p_of_any_positive_number(native: ModuleType) -> None:
    r = floats_between(1e-38, 1e38, 1 << 20)
    assert ulps(native.log1p(r)[:, 0], np.log1p(r.astype(np.float64))).max() <= 4
    ends = native.log1p(np.float32([0, np.nan]))[:, 0]
    np.testing.assert_array_equal(ends, [0, np.nan])


def test_the_excess_of_log1p_keeps_its_relative_accuracy(native: ModuleType) -> None:
    y = np.concatenate(
        [floats_between(1e-18, 1e18, 1 << 19), -floats_between(1e-18, 0.95, 1 << 18)]
    )
    exact = native.log1p_excess(y.astype(np.float64))[:, 0]
    assert np.abs(native.log1p_excess(y)[:, 0] / exact - 1).max() <= 8 * U
    assert native.log1p_excess(np.float32([0]))[0, 0] == 0
    mp.dps = 50
    for value in (*10.0 ** np.arange(-18, 19, 2), 0.3, 0.35, 0.36, 2.0, -1e-9, -0.3, -0.9):
        want = mpmath.log1p(mpf(value)) - mpf(value) / (1 + mpf(value))
        got = native.log1p_excess(np.float64([value]))[0, 0]
        assert abs(got / want - 1) <= 1e-14, value


def test_what_the_series_of_stirling_leaves(native: ModuleType) -> None:
    z = floats_between(1e-6, 1e18, 1 << 19)
    exact, got = native.stirling(z.astype(np.float64)).T, native.stirling(z).T
    assert (np.abs(got[0] - exact[0]) <= 4e-8 + 4e-7 * (1 + exact[0]) * (z < 1)).all()
    wide = z.astype(np.float64)
    assert (np.abs(got[1] - exact[1])[z >= 1] * wide[z >= 1] ** 2).max() <= 1e-7
    assert np.abs(got[1] / exact[1] - 1)[z < 1].max() <= 4e-6
    mp.dps = 60
    for value in map(float, [*10.0 ** np.arange(-6, 13), 0.5, 2, 3.7, 9.9, 10, 10.1, 17]):
        x = mpf(value)
        error = mpmath.loggamma(x + 1) - (x + 0.5) * mpmath.log(x) + x - mpmath.log(2 * mp.pi) / 2
        slope = mpmath.digamma(x) + 1 / (2 * x) - mpmath.log(x)
        got = native.stirling(np.float64([value]))[0]
        assert abs(got[0] - error) <= 1e-15 * (1 + error), value
        assert abs(got[1] / slope - 1) <= 1e-14, value


# ------------------------------------------------------------------------------------------------
# Magnitudes: the sums of the terms' magnitudes, for the value and each gradient, [1 + inputs, n]
# ------------------------------------------------------------------------------------------------

log_gamma = np.vectorize(math.lgamma, otypes=[np.float64])


def log1p_excess(y: Array) -> Array:
    z = np.minimum(y, 1e-2)
    return np.where(y < 1e-2, z * z * (0.5 - 2 * z / 3 + 0.75 * z * z), np.log1p(y) - y / (1 + y))


def sum_of_counts(mean: Array, theta: Array, x: Array) -> Array:
    """sum_{k < x} |mean - k| / (theta + k), computed as an integral for k above 512."""
    total = np.zeros_like(x)
    for k in range(int(min(x.max(), 512))):
        total += np.where(k < x, np.abs(mean - k) / (theta + k), 0)
    top = np.maximum(x, 512.0) - 0.5
    middle = np.clip(mean, 511.5, top)

    def integral(low: Array, high: Array) -> Array:  # of (mean - k) / (theta + k)
        step = high - low
        far = (mean + theta) * np.log1p(step / (theta + low)) - step
        return np.where(theta > 1e4 * top, (mean - (low + high) / 2) * step / theta, far)

    return total + np.abs(integral(np.full_like(x, 511.5), middle)) + np.abs(integral(middle, top))


def nb_terms(x: Array, eps: float) -> Array:
    mean, theta, count = x
    shifted, wide = mean + eps, theta + eps
    total = theta + shifted
    # The form for theta < 1 contains ln(M / s) and ln(theta + k). The form for theta >= 1 contains
    # ln(M theta / s) and ln((theta + k) / theta) instead.
    power = np.maximum(1, theta)
    pochhammer = log_gamma(count + theta) - log_gamma(theta) - count * np.log(power)
    pochhammer = np.where(theta > 1e5 * (1 + count), 0, np.abs(pochhammer))
    value = theta * np.log1p(mean / wide) + log_gamma(count + 1)
    value += np.where(count > 0, np.abs(count * np.log(shifted * power / total)) + pochhammer, 0)
    d_mean = theta / total * np.where(count == 0, 1, np.abs(shifted - count) / shifted)
    d_theta = log1p_excess(mean / wide) + eps / wide * mean / total
    d_theta += sum_of_counts(shifted, theta, count) / total
    return np.stack([value, d_mean, d_theta, 0 * value])


def nb_front_end_terms(x: Array, front: str) -> Array:
    """Both parameters come from a front end, whose errors reach all results by the chain rule."""
    functions = {"exp": (np.exp, np.exp), "softplus": (softplus, sigmoid)}
    (value_of, slope_of), (raw_mean, raw_theta, count) = functions[front], x
    mean, theta = value_of(raw_mean), value_of(raw_theta)
    value, d_mean, d_theta, nothing = nb_terms(np.stack([mean, theta, count]), 0.0)
    total = theta + mean
    value += np.abs(count - mean) * np.maximum(1, np.abs(raw_mean))
    d_mean = (theta * (mean + count) / mean / total) * slope_of(raw_mean)
    wide = log1p_excess(mean / theta)
    for k in range(int(count.max())):
        wide += np.where(k < count, (mean + k) / (theta + k), 0) / total
    value += theta * d_theta
    return np.stack([value, d_mean, wide * slope_of(raw_theta), nothing])


def softplus(x: Array) -> Array:
    return np.logaddexp(0, x)


def sigmoid(x: Array) -> Array:
    return np.exp(np.minimum(x, 0)) / (1 + np.exp(-np.abs(x)))


def zero_inflated_terms(x: Array, probs: bool) -> Array:
    nb, zero = nb_terms(x[[0, 1, 3]], 0.0), x[3] == 0
    raw, nb_of_zero = x[2], x[1] * np.log1p(x[0] / x[1])
    with np.errstate(over="ignore", divide="ignore"):
        log_q = np.log1p(-raw) if probs else -np.logaddexp(0, raw)
        log_p = np.log(raw) if probs else -np.logaddexp(0, -raw)
    log_u = np.logaddexp(log_p, log_q - nb_of_zero)
    # Near 1, u is 1 minus a product.
    less = np.exp(log_q) * -np.expm1(-nb_of_zero)
    value = np.where(less < 0.5, -np.log1p(-np.minimum(less, 0.5)), -log_u)
    share = np.exp(log_q - nb_of_zero - log_u)
    weight = np.where(zero, share * (1 + nb_of_zero), 1)
    slope = 0.0 if probs else log_p + log_q
    of_zero = -np.expm1(-nb_of_zero) * np.exp(slope - log_u) * (1 + share * nb_of_zero)
    d_raw = np.where(zero, of_zero, np.exp(slope - log_q))
    value = np.where(zero, value, nb[0] - log_q)
    return np.stack([value, nb[1] * weight, nb[2] * weight, d_raw, 0 * value])


def bernoulli_terms(x: Array) -> Array:
    logit, target = x
    small = np.exp(-np.abs(logit)) / (1 + np.exp(-np.abs(logit)))
    side = np.where(logit > 0, 1 - target, target)
    return np.stack(
        [side * np.abs(logit) + np.log1p(np.exp(-np.abs(logit))), side + small, abs(logit)]
    )


def location_terms(x: Array, power: int, of: Callable[[Array], Array] | None = None) -> Array:
    sigma = np.exp(0.5 * x[1]) if of is None else of(x[1])
    d, dlog = np.abs(x[2] - x[0]) / sigma, 0.5 if of is None else sigmoid(x[1]) / sigma
    value = d**power / power + np.abs(np.log(sigma)) + CONSTANTS[power]
    slope = d ** (power - 1) / sigma
    return np.stack([value, slope, dlog * (1 + d**power), slope])


CONSTANTS = {1: math.log(2), 2: 0.5 * math.log(2 * math.pi)}


def poisson_terms(x: Array, front: str) -> Array:
    raw, count = x
    mean = {"identity": np.abs, "exp": np.exp, "softplus": lambda v: np.logaddexp(0, v)}[front](raw)
    value = mean + np.abs(count * np.log(mean)) + log_gamma(count + 1)
    slope = {"identity": 1 / mean, "exp": 1.0, "softplus": np.exp(np.minimum(raw, 0)) / mean}[front]
    gradient = np.where(count == 0, mean, np.abs(mean - count)) * slope
    if front != "identity":
        value += 0.5 * np.abs(count - mean) * np.maximum(1, np.abs(raw))
        gradient += 0.5 * mean * slope
    return np.stack([value, gradient, 0 * value])


def student_terms(x: Array, of: Callable[[Array], Array] | None, df: float | None) -> Array:
    sigma = np.exp(0.5 * x[1]) if of is None else of(x[1])
    n = x[2] if df is None else np.full_like(x[2], df)
    square = ((x[3] - x[0]) / sigma) ** 2
    dlog = 0.5 if of is None else sigmoid(x[1]) / sigma
    excess, excess_slope = student_excess(n)
    value = (n + 1) / 2 * np.log1p(square / n) + np.abs(np.log(sigma)) + CONSTANTS[2]
    slope = (n + 1) * np.sqrt(square) / (n + square) / sigma
    d_raw = n * (1 + square) / (n + square) * dlog
    if df is not None:
        return np.stack([value + excess, slope, d_raw, 0 * value, slope])
    d_n = log1p_excess(square / n) / 2 + square / (2 * n * (n + square)) - excess_slope
    return np.stack([value + excess, slope, d_raw, d_n, slope])


def student_excess(n: Array) -> tuple[Array, Array]:
    """K(n) - 1/2 ln 2 pi and its derivative: a recurrence raises n until the series is accurate."""
    value, slope = np.zeros_like(n), np.zeros_like(n)
    for _ in range(10):
        value += np.log1p(1 / (n * (n + 2))) / 2
        slope -= 1 / (n * (n + 1) * (n + 2))
        n = n + 2
    for k in range(1, 9):
        term = float((4**k - 1) * mpmath.bernoulli(2 * k) / (2 * k))
        value += term / (2 * k - 1) / n ** (2 * k - 1)
        slope -= term / n ** (2 * k)
    return value, slope


def continuous_bernoulli_terms(x: Array) -> Array:
    logit, target = x
    size, half = np.abs(logit), np.abs(0.5 - target)
    e = np.exp(-size)
    weight = np.where(logit > 0, 1 - target, target)
    excess = np.log(np.where(size < 1e-3, 1, np.sinh(np.minimum(size, 9) / 2) / (size / 2)))
    excess = np.where(size < 1e-3, size**2 / 24, excess)
    tail = e / -np.expm1(-size)
    slope = np.where(size < 1e-3, size / 12, np.abs(0.5 + tail - 1 / size))
    value = np.where(size < 2, size * half + excess, size * weight + np.log(size / (1 - e)))
    gradient = np.where(size < 2, half + slope, weight + 1 / size + tail)
    return np.stack([value, gradient, size])


def nb_logits_terms(x: Array) -> Array:
    logit, total, count = x
    power = np.maximum(1, total)
    pochhammer = log_gamma(count + total) - log_gamma(total) - count * np.log(power)
    pochhammer = np.where(total > 1e5 * (1 + count), 0, np.abs(pochhammer))
    value = total * softplus(logit) + log_gamma(count + 1) + pochhammer
    value += np.abs(count * (np.log(power) - softplus(-logit)))
    value += np.where(count > 0, np.abs(count - total * np.exp(logit)), 0)
    d_logit = total * sigmoid(logit) + count * sigmoid(-logit)
    digamma = torch.digamma(torch.tensor(np.stack([total, total + count]))).numpy()
    harmonic = np.where(total > 1e4 * (1 + count), count / total, digamma[1] - digamma[0])
    return np.stack([value, d_logit, softplus(logit) + harmonic, 0 * value])


def discretized_terms(x: Array, bits: int) -> Array:
    mean, log_scale, target = x
    h, scale = 1 / (2**bits - 1), np.maximum(log_scale, -7)
    inverse = np.exp(-scale)
    p, q = inverse * (target - mean + h), inverse * (target - mean - h)
    size, d = inverse * (np.abs(target - mean) + h), 2 * h * inverse
    first, last = target < h - 1, target > 1 - h
    within = np.where(d > 1e-8, -np.log(-np.expm1(-d)), scale - np.log(2 * h))
    part = np.where(d > 1e-8, d / np.expm1(np.minimum(d, 700)), 1.0)
    within, part = (np.where(first | last, 0, w) for w in (within, part))
    below, above = np.where(last, 0, softplus(-p)), np.where(first, 0, softplus(q))
    at_p, at_q = np.where(last, 0, sigmoid(-p)), np.where(first, 0, sigmoid(q))
    value = (1 + size) * (below + above) + within + part
    d_mean = (1 + size) * inverse * (at_p + at_q)
    d_scale = (1 + size) * (np.abs(p) * at_p + np.abs(q) * at_q) + size * (at_p + at_q)
    d_scale = np.where(log_scale < -7, 0, d_scale + (1 + d) * part)
    flushed = 1e-31 * size * inverse  # an exponential below 2^-126 is 0
    d_mean, d_scale = d_mean + flushed, np.where(log_scale < -7, 0, d_scale + flushed)
    return np.stack([value, d_mean, d_scale, 0 * value])


# ------------------------------------------------------------------------------------------------
# Sweeps
# ------------------------------------------------------------------------------------------------


@dataclass
class Sweep:
    kind: str
    draw: Callable[[np.random.Generator], Array]  # inputs, [k, n], floats
    terms: Callable[[Array], Array]
    bounds: tuple[float, ...]  # of the value and of each gradient; see the top of the kind's file
    options: dict = field(default_factory=dict)
    relative: float = 0.0  # the bound of the value relative to itself, if there is one
    eager: Callable[..., torch.Tensor] | None = None  # minus the log-likelihood, as usually written


def between(rng: np.random.Generator, low: float, high: float) -> Array:
    return 10 ** rng.uniform(low, high, SIZE)


def counts(rng: np.random.Generator, of: str, mean: Array) -> Array:
    """Returns counts that are 0, small, of any size, or near the mean."""
    if of == "zero":
        return np.zeros(SIZE)
    if of == "few":
        return rng.integers(1, 17, SIZE).astype(np.float64)
    if of == "many":
        return np.floor(between(rng, 0, 6))
    spread = np.exp(rng.normal(0, 0.5, SIZE) * rng.integers(0, 2, SIZE))
    return np.maximum(1, np.round(mean * spread))


def draw_nb(of: str) -> Callable[[np.random.Generator], Array]:
    def draw(rng: np.random.Generator) -> Array:
        mean, theta = between(rng, -6, math.log10(3e3)), between(rng, -3, 8)
        return np.stack([mean, theta, counts(rng, of, mean)])

    return draw


def draw_nb_front_end(front: str) -> Callable[[np.random.Generator], Array]:
    def draw(rng: np.random.Generator) -> Array:
        mean, theta, count = draw_nb("few")(rng)
        count = np.where(rng.integers(0, 2, SIZE), count, 0)
        if front == "exp":
            return np.stack([np.log(mean), np.log(theta), count])
        raw = [np.where(p > 9, p, np.log(p)) for p in (mean, theta)]
        return np.stack([*raw, count])

    return draw


def draw_zero_inflated(of: str, probs: bool) -> Callable[[np.random.Generator], Array]:
    def draw(rng: np.random.Generator) -> Array:
        mean, theta, count = draw_nb(of)(rng)
        raw = rng.uniform(1e-6, 1 - 1e-6, SIZE) if probs else rng.normal(0, 8, SIZE)
        return np.stack([mean, theta, raw, count])

    return draw


def draw_poisson(of: str, front: str) -> Callable[[np.random.Generator], Array]:
    def draw(rng: np.random.Generator) -> Array:
        mean = between(rng, -6, math.log10(3e3))
        log = np.log(mean)
        raw = {"identity": mean, "exp": log, "softplus": np.where(mean > 9, mean, log)}[front]
        return np.stack([raw, counts(rng, of, mean)])

    return draw


def draw_bernoulli(rng: np.random.Generator) -> Array:
    logit = np.where(rng.integers(0, 2, SIZE), 1, -1) * between(rng, -6, 1.9)
    choice = rng.integers(0, 3, SIZE)
    return np.stack([logit, np.where(choice < 2, choice, rng.uniform(0, 1, SIZE))])


def draw_location(rng: np.random.Generator) -> Array:
    mean, raw = rng.normal(0, 1, SIZE), rng.uniform(-12, 12, SIZE)
    return np.stack([mean, raw, mean + rng.normal(0, 1, SIZE) * np.exp(0.5 * raw)])


def draw_student(low: float, high: float) -> Callable[[np.random.Generator], Array]:
    """Draws degrees of freedom between two powers of 10, and heavy-tailed distances."""

    def draw(rng: np.random.Generator) -> Array:
        mean, raw, df = rng.normal(0, 1, SIZE), rng.uniform(-12, 12, SIZE), between(rng, low, high)
        far = np.where(rng.integers(0, 4, SIZE) == 0, between(rng, 0, 5), 1.0)
        distance = rng.normal(0, 1, SIZE) * far
        return np.stack([mean, raw, df, mean + distance * np.exp(0.5 * raw)])

    return draw


def draw_continuous_bernoulli(rng: np.random.Generator) -> Array:
    logit = np.where(rng.integers(0, 2, SIZE), 1, -1) * between(rng, -6, 1.9)
    choice = rng.integers(0, 4, SIZE)
    return np.stack([logit, np.where(choice < 2, choice, rng.uniform(0, 1, SIZE))])


def draw_nb_logits(of: str) -> Callable[[np.random.Generator], Array]:
    def draw(rng: np.random.Generator) -> Array:
        mean, total, count = draw_nb(of)(rng)
        return np.stack([np.clip(np.log(mean / total), -60, 60), total, count])

    return draw


def draw_discretized(bits: int) -> Callable[[np.random.Generator], Array]:
    def draw(rng: np.random.Generator) -> Array:
        log_scale, steps = rng.uniform(-9, 3, SIZE), 2**bits - 1
        target = 2 * rng.integers(0, steps + 1, SIZE) / steps - 1
        target = np.where(rng.integers(0, 8, SIZE) == 0, np.sign(target), target)
        near = target + np.exp(log_scale) * rng.normal(0, 2, SIZE)
        mean = np.where(rng.integers(0, 2, SIZE), near, rng.uniform(-1.2, 1.2, SIZE))
        return np.stack([mean, log_scale, target])

    return draw


def eager_nb(mean: torch.Tensor, theta: torch.Tensor, x: torch.Tensor, eps: float = 0.0):
    log = (theta + mean + eps).log()
    result = theta * ((theta + eps).log() - log) + x * ((mean + eps).log() - log)
    return -(result + (x + theta).lgamma() - theta.lgamma() - (x + 1).lgamma())


def eager_zero_inflated(mean, theta, pi, x):
    log = (theta + mean).log()
    u = -pi + theta * (theta.log() - log)
    softplus = functional.softplus
    zero = softplus(u) - softplus(-pi)
    gammas = (x + theta).lgamma() - theta.lgamma() - (x + 1).lgamma()
    count = -softplus(-pi) + u + x * (mean.log() - log) + gammas
    return -torch.where(x == 0, zero, count)


def eager_bernoulli(logit: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return functional.binary_cross_entropy_with_logits(logit, x, reduction="none")


def eager_gaussian(mean, raw, x):
    return -torch.distributions.Normal(mean, (0.5 * raw).exp(), False).log_prob(x)


def eager_laplace(mean, raw, x):
    return -torch.distributions.Laplace(mean, (0.5 * raw).exp(), False).log_prob(x)


def eager_poisson(rate, x):
    return -torch.distributions.Poisson(rate, False).log_prob(x)


def eager_student(mean, raw, df, x):
    return -torch.distributions.StudentT(df, mean, (0.5 * raw).exp(), False).log_prob(x)


def eager_continuous_bernoulli(logit, x):
    return -torch.distributions.ContinuousBernoulli(logits=logit, validate_args=False).log_prob(x)


def eager_nb_logits(logit, total, x):
    kind = torch.distributions.NegativeBinomial
    return -kind(total, logits=logit, validate_args=False).log_prob(x)


def eager_discretized(mean, log_scale, x):
    """The formula of vdvae for 8 bits."""
    scale = log_scale.clamp(min=-7.0)
    inverse, c = torch.exp(-scale), x - mean
    p, q, middle = inverse * (c + 1 / 255), inverse * (c - 1 / 255), inverse * c
    difference = torch.sigmoid(p) - torch.sigmoid(q)
    density = middle - scale - 2.0 * functional.softplus(middle) - math.log(127.5)
    inner = torch.where(difference > 1e-5, torch.log(difference.clamp(min=1e-12)), density)
    inner = torch.where(x > 0.999, -functional.softplus(q), inner)
    return -torch.where(x < -0.999, p - functional.softplus(p), inner)


def sweeps() -> Iterator[tuple[str, Sweep]]:
    for of in ("zero", "few", "near", "many"):
        relative = {"zero": 6.0, "few": 14.0}.get(of, 0.0)
        nb = (8.0, 8.0, 13.0, 0.0)
        for name, eps in (("", 0.0), (" eps", 1e-8)):
            yield f"negative_binomial {of}{name}", Sweep(
                "negative_binomial", draw_nb(of), lambda x, eps=eps: nb_terms(x, eps), nb,
                {"eps": eps}, relative, lambda m, t, x, eps=eps: eager_nb(m, t, x, eps),
            )  # fmt: skip
        for probs in (False, True):
            yield f"zero_inflated {of}{' probs' if probs else ''}", Sweep(
                "zero_inflated", draw_zero_inflated(of, probs),
                lambda x, probs=probs: zero_inflated_terms(x, probs),
                (12.0, 12.0, 15.0, 15.0, 0.0), {"probs": 1} if probs else {},
                eager=None if probs else eager_zero_inflated,
            )  # fmt: skip
        for front in ("identity", "exp", "softplus"):
            yield f"poisson {of} {front}", Sweep(
                "poisson", draw_poisson(of, front), lambda x, front=front: poisson_terms(x, front),
                (8.0, 8.0, 0.0), {"mean": front}, relative if front == "identity" else 0.0,
                eager_poisson if front == "identity" else None,
            )  # fmt: skip
        yield f"negative_binomial_logits {of}", Sweep(
            "negative_binomial_logits", draw_nb_logits(of), nb_logits_terms,
            (6.0, 6.0, 6.0, 0.0), eager=eager_nb_logits,
        )  # fmt: skip
    for df in (None, 0.5, 4.0, 1e6):
        low, high = (-3, 8) if df is None else (0, 0)
        for name, of in (("", None), (" softplus", softplus)):
            scale = {} if of is None else {"base": "softplus", "gain": 1.0}
            bounds = (9.0, 9.0, 9.0, 12.0, 9.0) if of is None else (15.0,) * 5
            extra = 0.0 if df is None else float(student_excess(np.float64([df]))[0][0])
            yield f"student_t {df or 'learned'}{name}", Sweep(
                "student_t",
                lambda rng, low=low, high=high, of=of: (
                    draw_student(low, high)(rng) * np.float64([[1], [0.5 if of else 1], [1], [1]])
                ),
                lambda x, of=of, df=df: student_terms(x, of, df),
                bounds,
                {"scale": scale, "constant": CONSTANTS[2] + extra, "df": df or 0.0},
                eager=eager_student if df is None and of is None else None,
            )  # fmt: skip
    yield "continuous_bernoulli", Sweep(
        "continuous_bernoulli", draw_continuous_bernoulli, continuous_bernoulli_terms,
        (4.0, 4.0, 0.0), eager=eager_continuous_bernoulli,
    )  # fmt: skip
    for bits in (1, 5, 8, 16):
        yield f"discretized_logistic {bits}", Sweep(
            "discretized_logistic", draw_discretized(bits),
            lambda x, bits=bits: discretized_terms(x, bits), (4.0, 4.0, 4.0, 0.0),
            {"half_step": 1 / (2**bits - 1)},
            eager=eager_discretized if bits == 8 else None,
        )  # fmt: skip
    for front in ("exp", "softplus"):
        yield f"negative_binomial {front}", Sweep(
            "negative_binomial", draw_nb_front_end(front),
            lambda x, front=front: nb_front_end_terms(x, front), (8.0, 8.0, 13.0, 0.0),
            {"mean": front, "dispersion": front},
        )  # fmt: skip
    yield "bernoulli", Sweep(
        "bernoulli", draw_bernoulli, bernoulli_terms, (4.0, 6.0, 0.0), relative=4.0,
        eager=eager_bernoulli,
    )  # fmt: skip
    for kind, power, bounds, eager in (
        ("gaussian", 2, (8.0, 8.0, 8.0, 8.0), eager_gaussian),
        ("laplace", 1, (6.0, 6.0, 6.0, 6.0), eager_laplace),
    ):
        yield kind, Sweep(
            kind, draw_location, lambda x, power=power: location_terms(x, power), bounds,
            {"scale": {}, "constant": CONSTANTS[power]}, eager=eager,
        )  # fmt: skip
        yield f"{kind} softplus", Sweep(
            kind, lambda rng: draw_location(rng) * np.float64([[1], [0.5], [1]]),
            lambda x, power=power: location_terms(x, power, softplus), (15.0,) * 4,
            {"scale": {"base": "softplus", "gain": 1.0}, "constant": CONSTANTS[power]},
        )  # fmt: skip


SWEEPS = dict(sweeps())


@lru_cache
def oracle(native: ModuleType, name: str) -> tuple[Array, Array, Array]:
    """Returns inputs in float, their results in double, and the magnitudes of the terms."""
    sweep = SWEEPS[name]
    x = sweep.draw(np.random.default_rng(KINDS.index(sweep.kind))).astype(np.float32)
    wide = x.astype(np.float64)
    return x, evaluate(native, sweep.kind, sweep.options, wide, "scalar"), sweep.terms(wide)


def errors(native: ModuleType, name: str, variant: str) -> Array:
    """Errors of the value and of each gradient, in units of 2^-24, [1 + inputs, n]."""
    x, exact, _ = oracle(native, name)
    got = evaluate(native, SWEEPS[name].kind, SWEEPS[name].options, x, variant)
    return np.abs(got.astype(np.float64) - exact) / U


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", SWEEPS)
def test_in_float_within_the_stated_bound(native: ModuleType, name: str, variant: str) -> None:
    if variant not in native.likelihood_variants():
        pytest.skip(f"no {variant} here")
    sweep, (x, exact, terms) = SWEEPS[name], oracle(native, name)
    error = errors(native, name, variant)
    assert max(sweep.bounds) < 16
    for row, bound in enumerate(sweep.bounds):
        worst = error[row] - bound * terms[row]
        at = int(np.argmax(worst))
        assert worst[at] <= 2e-30, (row, error[row, at] / terms[row, at], x[:, at])
    if sweep.relative:
        assert (error[0] / np.abs(exact[0])).max() <= sweep.relative <= 1e-6 / U


def bins(x: Array) -> Array:
    """Returns each element's bin. A bin's inputs have equal signs, and sizes within two decades."""
    index = np.zeros(x.shape[1], dtype=np.int64)
    for row in x:
        size = np.abs(row)
        decade = np.where(size > 0, np.floor(np.log10(np.maximum(size, 1e-9)) / 2), -9) + 10
        index = index * 64 + (2 * decade + (row < 0)).astype(np.int64)
    return np.unique(index, return_inverse=True)[1].reshape(-1)


EAGER = [name for name, sweep in SWEEPS.items() if sweep.eager is not None]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", EAGER)
def test_at_most_twice_the_error_of_eager(native: ModuleType, name: str, variant: str) -> None:
    """Compares the largest errors in every bin. Eager's error counts as 3 roundings or more."""
    if variant not in native.likelihood_variants():
        pytest.skip(f"no {variant} here")
    sweep, (x, exact, _) = SWEEPS[name], oracle(native, name)
    error = errors(native, name, variant)
    inputs = [torch.tensor(row, requires_grad=True) for row in x[:-1]]
    assert sweep.eager is not None
    value = sweep.eager(*inputs, torch.tensor(x[-1]))
    gradients = torch.autograd.grad(value.sum(), inputs)
    index = bins(x)
    enough = np.bincount(index) >= 64
    for row, theirs in enumerate([value.detach(), *gradients]):
        wrong = np.abs(theirs.double().numpy() - exact[row]) / U
        wrong = np.where(np.isnan(wrong), np.inf, wrong)
        ours, eager = np.zeros(len(enough)), np.zeros(len(enough))
        np.maximum.at(ours, index, error[row])
        np.maximum.at(eager, index, np.maximum(wrong, 3 * np.abs(exact[row]) + 1e-22))
        excess = np.where(enough, ours / eager, 0)
        at = int(np.argmax(excess))
        assert excess[at] <= 2, (row, excess[at], x[:, index == at][:, :4])


# ------------------------------------------------------------------------------------------------
# In double, and at the limits
# ------------------------------------------------------------------------------------------------


def mp_parameter(front: str, raw: mpf) -> mpf:
    return {"identity": raw, "exp": mpmath.exp(raw), "softplus": mpmath.log1p(mpmath.exp(raw))}[
        front
    ]


def mp_nb(options: dict, raw_mean: mpf, raw_theta: mpf, x: mpf) -> mpf:
    mean = mp_parameter(options.get("mean", "identity"), raw_mean)
    theta = mp_parameter(options.get("dispersion", "identity"), raw_theta)
    eps = mpf(options.get("eps", 0))
    log = mpmath.log(theta + mean + eps)
    result = theta * (mpmath.log(theta + eps) - log) + x * (mpmath.log(mean + eps) - log)
    gammas = mpmath.loggamma(x + theta) - mpmath.loggamma(theta) - mpmath.loggamma(x + 1)
    return -(result + gammas)


def mp_zero_inflated(options: dict, mean: mpf, theta: mpf, raw: mpf, x: mpf) -> mpf:
    p = raw if "probs" in options else 1 / (1 + mpmath.exp(-raw))
    nb = mp_nb(options, mean, theta, x)
    return -mpmath.log(p + (1 - p) * mpmath.exp(-nb)) if x == 0 else nb - mpmath.log(1 - p)


def mp_poisson(options: dict, raw: mpf, x: mpf) -> mpf:
    rate = mp_parameter(options.get("mean", "identity"), raw)
    constant = mpmath.loggamma(x + 1) if options.get("constants", True) else 0
    return rate - x * mpmath.log(rate) + constant


def mp_location(power: int) -> Callable[..., mpf]:
    def nll(options: dict, mean: mpf, raw: mpf, x: mpf) -> mpf:
        base = options["scale"].get("base", "exp")
        sigma = mp_parameter(base, raw if base == "softplus" else raw / 2)
        return (abs(x - mean) / sigma) ** power / power + mpmath.log(sigma) + mpf(CONSTANTS[power])

    return nll


def mp_student(options: dict, mean: mpf, raw: mpf, df: mpf, x: mpf) -> mpf:
    base = options["scale"].get("base", "exp")
    sigma = mp_parameter(base, raw if base == "softplus" else raw / 2)
    n = mpf(options["df"]) if options["df"] else df
    value = (n + 1) / 2 * mpmath.log1p(((x - mean) / sigma) ** 2 / n) + mpmath.log(sigma)
    return value + mpmath.log(n * mp.pi) / 2 + mpmath.loggamma(n / 2) - mpmath.loggamma((n + 1) / 2)


def mp_continuous_bernoulli(options: dict, logit: mpf, x: mpf) -> mpf:
    return mpmath.log(mpmath.expm1(logit) / logit) - x * logit


def mp_nb_logits(options: dict, logit: mpf, total: mpf, x: mpf) -> mpf:
    value = total * mpmath.log1p(mpmath.exp(logit)) + x * mpmath.log1p(mpmath.exp(-logit))
    gammas = mpmath.loggamma(x + total) - mpmath.loggamma(total) - mpmath.loggamma(x + 1)
    return value - gammas


def mp_discretized(options: dict, mean: mpf, log_scale: mpf, x: mpf) -> mpf:
    h, scale = mpf(options["half_step"]), max(log_scale, mpf(-7))
    p, q = ((x - mean + side) * mpmath.exp(-scale) for side in (h, -h))
    if x < h - 1:
        return mpmath.log1p(mpmath.exp(-p))
    if x > 1 - h:
        return mpmath.log1p(mpmath.exp(q))
    if q > 0:  # the other tail is equal by symmetry, and its terms are small
        p, q = -q, -p
    return -mpmath.log(1 / (1 + mpmath.exp(-p)) - 1 / (1 + mpmath.exp(-q)))


EXACT: dict[str, Callable[..., mpf]] = {
    "bernoulli": lambda options, logit, x: mpmath.log1p(mpmath.exp(logit)) - x * logit,
    "gaussian": mp_location(2),
    "laplace": mp_location(1),
    "poisson": mp_poisson,
    "negative_binomial": mp_nb,
    "zero_inflated": mp_zero_inflated,
    "student_t": mp_student,
    "continuous_bernoulli": mp_continuous_bernoulli,
    "negative_binomial_logits": mp_nb_logits,
    "discretized_logistic": mp_discretized,
}


@pytest.mark.parametrize("name", SWEEPS)
def test_in_double_against_mpmath(native: ModuleType, name: str) -> None:
    sweep = SWEEPS[name]
    x = sweep.draw(np.random.default_rng(1))[:, :60]
    got, terms = evaluate(native, sweep.kind, sweep.options, x, "scalar"), sweep.terms(x)
    mp.dps = 60
    formula = partial(EXACT[sweep.kind], sweep.options)
    for i in range(x.shape[1]):
        inputs = tuple(mpf(float(v)) for v in x[:, i])
        want = [formula(*inputs)]
        for k in range(len(inputs) - 1):
            order = tuple(int(j == k) for j in range(len(inputs)))
            want.append(mpmath.diff(formula, inputs, order))
        for row, value in enumerate(want):
            assert abs(got[row, i] - value) <= 1e-13 * terms[row, i] + 1e-40, (row, x[:, i])


def test_a_poisson_without_its_constants(native: ModuleType) -> None:
    mean, count = np.float32([1e-6, 0.3, 7, 3e3] * 3), np.repeat(np.float32([0, 1, 30]), 4)
    for front in ("identity", "exp", "softplus"):
        raw = np.log(mean) if front == "exp" else mean
        options = {"mean": front, "constants": False}
        for x in (np.stack([raw, count]), np.stack([raw, count]).astype(np.float64)):
            got = evaluate(native, "poisson", options, x, "scalar")
            for i, (r, c) in enumerate(x.T):
                want = mp_poisson(options, mpf(float(r)), mpf(float(c)))
                terms = float(c) * abs(math.log(mean[i])) + 2 * float(abs(want)) + 1e-6
                assert abs(got[0, i] - want) <= 8 * np.finfo(x.dtype).eps * terms * max(1, abs(r))


@pytest.mark.parametrize("variant", VARIANTS)
def test_limits(native: ModuleType, variant: str) -> None:
    if variant not in native.likelihood_variants():
        pytest.skip(f"no {variant} here")
    inf, nan = np.inf, np.nan

    def of(kind: str, *inputs: object, **options: object) -> Array:
        x = np.stack(np.broadcast_arrays(*(np.float32(v) for v in inputs))).reshape(len(inputs), -1)
        return evaluate(native, kind, options, x, variant)

    # Bernoulli with infinite logits
    got = of("bernoulli", [inf, inf, -inf, -inf, nan, 0], [1, 0, 0, 1, 0, nan])
    np.testing.assert_array_equal(got[0], [0, inf, 0, inf, nan, nan])
    np.testing.assert_array_equal(got[1][:5], [0, 1, 0, -1, nan])

    # theta -> inf gives a Poisson distribution
    mean = np.float32([1e-6, 0.5, 16, 3e3])[:, None]
    count = np.float32([0, 1, 16, 1e3, 1e6])
    poisson = of("poisson", mean, count)
    for theta in (1e30, inf):
        nb = of("negative_binomial", mean, theta, count)
        np.testing.assert_allclose(nb[:2], poisson[:2], rtol=2e-6)
        assert np.abs(nb[2]).max() < 1e-20

    # a mean of 0 and a theta of 0
    zero = of("negative_binomial", 0, [1e-3, 1, 1e8, inf, 0], 0)
    np.testing.assert_array_equal(zero[0], 0)
    np.testing.assert_allclose(zero[1], 1, rtol=1e-6)
    assert of("negative_binomial", [0, 1, 3e3], 0, 5)[0].min() > 50
    np.testing.assert_array_equal(of("negative_binomial", 0, [1e-3, 1, 1e8, inf], 3)[0], inf)
    assert of("negative_binomial", [0, 1, 3e3], 0, 0)[0].max() < 1e-22
    for theta in (1e-25, 1e-30, 1e-36):  # below 2^-80
        got = of("negative_binomial", [0.5, 2, 3e3], theta, 3)[0]
        want = [mp_nb({}, mpf(m), mpf(float(np.float32(theta))), mpf(3)) for m in (0.5, 2, 3e3)]
        np.testing.assert_allclose(got, np.float64(want), rtol=1e-6)
    np.testing.assert_array_equal(of("poisson", 0, [0, 1])[0], [0, inf])

    # only NaN gives NaN
    means, thetas = [0, 1e-38, 1e-6, 1, 3e3, 1e30, inf], [0, 1e-38, 1e-3, 1, 1e8, 1e38, inf]
    counts = np.float32([0, 1, 17, 1e6])
    raws = np.float32([-inf, -200, -88, -50, 0, 50, 88, 200, inf])
    grid = np.meshgrid(np.float32(means), np.float32(thetas), counts)
    assert not np.isnan(of("negative_binomial", *grid)).any()
    assert not np.isnan(of("negative_binomial", *grid, eps=1e-8)).any()
    for front in ("exp", "softplus"):
        grid = np.meshgrid(raws, raws, counts)
        got = of("negative_binomial", *grid, mean=front, dispersion=front)
        assert not np.isnan(got).any()
        assert not np.isnan(of("poisson", *np.meshgrid(raws, counts), mean=front)).any()
    grid = np.meshgrid(np.float32(means), np.float32(thetas), raws, counts)
    assert not np.isnan(of("zero_inflated", *grid)).any()
    probabilities = np.float32([0, 1e-38, 1e-9, 0.5, 1])
    grid = np.meshgrid(np.float32(means), np.float32(thetas), probabilities, counts)
    assert not np.isnan(of("zero_inflated", *grid, probs=1)).any()

    # NaN and undefined values give NaN
    for kind, good in (("poisson", (1, 2)), ("negative_binomial", (1, 1, 2)),
                       ("zero_inflated", (1, 1, 0, 2)), ("gaussian", (0, 0, 1))):  # fmt: skip
        options = {"scale": {}} if kind == "gaussian" else {}
        for zero in (False, True):
            for k in range(len(good)):
                bad = [*good[:-1], 0.0 if zero else good[-1]]
                bad[k] = nan
                assert np.isnan(of(kind, *bad, **options)[0, 0]), (kind, bad)
    for bad in ((-1, 1, 2), (-1, 1, 0), (1, -1, 2), (1, -1, 0), (1, 1, -1)):
        assert np.isnan(of("negative_binomial", *bad)[0, 0]), bad

    # far tails of the mixture: p and e^-L both underflow
    got = of("zero_inflated", 3e3, 1e8, [-1e4, -200, 200, inf, -inf], 0)
    np.testing.assert_allclose(got[0], [2999.955, 200, 0, 0, 2999.955], rtol=1e-6)
    np.testing.assert_allclose(got[3], [0, -1, 0, 0, 0], atol=1e-30)
    np.testing.assert_allclose(got[1], [0.99997, 0, 0, 0, 0.99997], atol=1e-30, rtol=1e-6)

    # the logarithm of a mean that underflows
    got = of("negative_binomial", [-200, -inf], 2, 3, mean="exp")
    assert abs(got[0, 0] - (600 + math.log(2))) < 1e-3 and got[0, 1] == inf
    np.testing.assert_allclose(got[1], -3, rtol=1e-6)
    assert abs(of("poisson", -200, 3, mean="softplus")[0, 0] - (600 + math.log(6))) < 1e-3

    # with a softmax, the kernel supplies the logarithm of the mean
    x = (np.linspace(-9, 9, 40), 2, np.arange(40) % 5)
    want = of("negative_binomial", *x, mean="exp")
    np.testing.assert_array_equal(of("negative_binomial", *x, mean="softmax"), want)

    # theta above dispersion_max is clamped to it and has no gradient
    got = of("negative_binomial", 2, [3, 5, 9], 4, dispersion_max=5.0)
    want = of("negative_binomial", 2, [3, 5, 5], 4)
    np.testing.assert_array_equal(got[:2], want[:2])
    np.testing.assert_array_equal(got[2], [*want[2][:2], 0])

    # with a fixed sigma, these are the MSE and the L1 loss
    mean, x = np.float32([1, -2, 0.5]), np.float32([0.25, 1, 0.5])
    got = of("gaussian", mean, 0, x, precision=2**0.5)
    np.testing.assert_allclose(got[0], (x - mean) ** 2, rtol=1e-6)
    np.testing.assert_allclose(got[1], 2 * (mean - x), rtol=1e-6)
    got = of("laplace", mean, 0, x)
    np.testing.assert_array_equal(got[:2], [np.abs(x - mean), np.sign(mean - x)])


@pytest.mark.parametrize("probs", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_zero_that_is_as_likely_with_inflation_as_without(
    native: ModuleType, variant: str, probs: bool
) -> None:
    """Both probabilities are about e^-80, far below the rounding of 1."""
    if variant not in native.likelihood_variants():
        pytest.skip(f"no {variant} here")
    raw = np.float64([-5, -2, -0.3, 0, 0.3, 2, 5]) - 80.0
    raw = np.exp(raw) if probs else raw
    x = np.stack(np.broadcast_arrays(80.0, 1e6, raw, 0.0)).astype(np.float32)
    options = {"probs": 1} if probs else {}
    got = evaluate(native, "zero_inflated", options, x, variant)
    mp.dps = 60
    for i, (mean, theta, p, count) in enumerate(x.T):
        inputs = [mpf(float(v)) for v in (mean, theta, p)]

        def formula(*given: mpf, count: float = float(count)) -> mpf:
            return mp_zero_inflated(options, *given, mpf(count))

        want = [formula(*inputs)]
        for k, value in enumerate(inputs):
            at = lambda v, k=k: formula(*inputs[:k], v, *inputs[k + 1 :])  # noqa: B023, E731
            step = abs(value) * mpf(10) ** -20
            want.append((at(value + step) - at(value - step)) / (2 * step))
        np.testing.assert_allclose(got[:4, i], np.float64(want), rtol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_limits_of_a_student_t(native: ModuleType, variant: str) -> None:
    if variant not in native.likelihood_variants():
        pytest.skip(f"no {variant} here")
    options = {"scale": {}, "constant": CONSTANTS[2]}
    mean, raw, x = np.meshgrid(*(np.float32(v) for v in ([-3, 0, 2], [-2, 0, 3], [-1e3, 0, 0.1])))
    inputs = np.stack([mean.ravel(), raw.ravel(), x.ravel()])
    gaussian = evaluate(native, "gaussian", options, inputs, variant)

    def of(df: float, fixed: bool = False, **more: object) -> Array:
        both = np.concatenate([inputs[:2], np.full_like(inputs[:1], df), inputs[2:]])
        given = {**options, "df": df if fixed else 0.0, **more}
        return evaluate(native, "student_t", given, both, variant)

    for df in (1e20, 1e30, np.inf):  # equal to the Gaussian up to the last digits
        got = of(df)
        np.testing.assert_allclose(got[0], gaussian[0], rtol=1e-6)
        np.testing.assert_allclose(got[1], gaussian[1], rtol=2e-6)
        np.testing.assert_allclose(got[2], gaussian[2], rtol=2e-6, atol=1e-6)
        assert np.abs(got[3]).max() < 1e-18
    np.testing.assert_array_equal(of(2.0**64), of(np.inf))
    excess = float(student_excess(np.float64([4]))[0][0])
    fixed = of(4.0, fixed=True, constant=CONSTANTS[2] + excess)
    learned = of(4.0)
    np.testing.assert_allclose(fixed[0], learned[0], rtol=5e-7)
    np.testing.assert_array_equal(fixed[[1, 2, 4]], learned[[1, 2, 4]])

    # squares overflow, but the logarithm does not
    def at(mean: object, df: object, x: object, **more: object) -> Array:
        values = np.broadcast_arrays(*(np.float32(v) for v in (mean, 0, df, x)))
        given = {**options, "df": 0.0, **more}
        return evaluate(native, "student_t", given, np.stack(values).reshape(4, -1), variant)

    df = np.float32([1e-3, 1, 4, 1e8])
    for far in (1e15, 1e25, 1e35):
        got, n = at(0, df, far), df.astype(np.float64)
        log = 2 * math.log(far) - np.log(n) + np.log1p(n / far**2)
        excess, slope = student_excess(n)
        np.testing.assert_allclose(got[0], (n + 1) / 2 * log + CONSTANTS[2] + excess, rtol=1e-6)
        np.testing.assert_allclose(got[4], (n + 1) / far, rtol=1e-6)
        np.testing.assert_allclose(got[2], -n / 2, rtol=1e-6)
        np.testing.assert_allclose(got[3], 0.5 * (log - 1 - 1 / n) + slope, rtol=2e-6)
    got = at(0, [1, 4], np.inf)
    np.testing.assert_array_equal(got[0], np.inf)
    np.testing.assert_array_equal(got[[1, 4]], 0)
    assert not np.isnan(got).any()
    np.testing.assert_allclose(got[2], [-0.5, -2], rtol=1e-6)
    for front in ("exp", "softplus"):
        got = at(0, [-np.inf, -200, -50, 0, 50, 200, np.inf], 2, dispersion=front)
        assert not np.isnan(got).any()
        assert (np.abs(got[0, -1] - (2 + CONSTANTS[2])) < 1e-6) and abs(got[3, -1]) < 1e-18
    assert np.isnan(at([np.nan, 0, 0, 0], [1, np.nan, 1, -1], [1, 1, np.nan, 1])[0]).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_limits_of_data_in_0_1(native: ModuleType, variant: str) -> None:
    if variant not in native.likelihood_variants():
        pytest.skip(f"no {variant} here")

    def of(logit: object, x: object) -> Array:
        inputs = np.broadcast_arrays(np.float32(logit), np.float32(x))
        return evaluate(native, "continuous_bernoulli", {}, np.stack(inputs), variant)

    inf, nan = np.inf, np.nan
    got = of([inf, inf, inf, -inf, -inf, -inf], [1, 0, 0.5, 0, 1, 0.5])
    np.testing.assert_array_equal(got[0], [-inf, inf, inf, -inf, inf, inf])
    np.testing.assert_array_equal(got[1], [0, 1, 0.5, 0, -1, -0.5])
    got = of([1e10, 1e38, -1e38], [1, 1, 0])
    np.testing.assert_allclose(got[0], [-math.log(1e10), *[-math.log(1e38)] * 2], rtol=1e-6)
    np.testing.assert_allclose(got[1], [-1e-10, -1e-38, 1e-38], rtol=1e-6)
    got = of([0, -0.0, 1e-30, -1e-30], [0.25, 1, 0.5, 0])
    np.testing.assert_allclose(got[0], [0, 0, 0, -5e-31], rtol=1e-6)
    np.testing.assert_allclose(got[1], [0.25, -0.5, 0, 0.5], atol=1e-30)
    assert np.isnan(of([nan, 0, 5, inf], [0.5, nan, nan, nan])[0]).all()
    # the two forms agree on both sides of their boundary
    edge = np.float32(2)
    below = np.nextafter(edge, np.float32(0))
    for x in np.float32([0, 0.3, 1]):
        for sign in (1, -1):
            got = of([sign * edge, sign * below], x)
            np.testing.assert_allclose(got[:, 0], got[:, 1], rtol=2e-6, atol=5e-7)


@pytest.mark.parametrize("variant", VARIANTS)
def test_limits_of_counts_by_logits(native: ModuleType, variant: str) -> None:
    if variant not in native.likelihood_variants():
        pytest.skip(f"no {variant} here")

    def of(kind: str, *inputs: object, **options: object) -> Array:
        x = np.stack(np.broadcast_arrays(*(np.float32(v) for v in inputs))).reshape(len(inputs), -1)
        return evaluate(native, kind, options, x, variant)

    # a Poisson variable is the limit for large total_count at a constant mean
    mean, count = np.float32([1e-6, 0.5, 16, 3e3])[:, None], np.float32([0, 1, 16, 1e3])
    poisson = of("poisson", mean, count)
    for total in (1e15, 1e25, 1e30):
        logit = np.log(mean.astype(np.float64) / total).astype(np.float32)
        same = np.exp(logit.astype(np.float64)) * total
        poisson = of("poisson", same, count)
        got = of("negative_binomial_logits", logit, total, count)
        np.testing.assert_allclose(got[0], poisson[0], rtol=3e-6)
        by_log = (same - count).ravel()
        np.testing.assert_allclose(got[1], by_log, rtol=1e-5, atol=1e-5)
    inf = np.inf
    got = of("negative_binomial_logits", [inf, inf, -inf, -inf], 2, [0, 3, 0, 3])
    np.testing.assert_array_equal(got[0], [inf, inf, 0, inf])
    np.testing.assert_array_equal(got[1], [2, 2, 0, -3])
    got = of("negative_binomial_logits", [200, -200], 2, [[0], [3]])
    np.testing.assert_allclose(got[0], [400, 0, 400 - math.log(4), 600 - math.log(4)], rtol=1e-6)
    np.testing.assert_array_equal(of("negative_binomial_logits", 0, inf, [0, 3])[0], inf)
    np.testing.assert_array_equal(of("negative_binomial_logits", [-1, 0, 1], 0, 0)[0], 0)
    np.testing.assert_array_equal(of("negative_binomial_logits", [-1, 0, 1], 0, 3)[0], inf)
    logits, totals = [-inf, -1e3, -90, -1, 0, 1, 90, 1e3, inf], [1e-38, 1e-3, 1, 1e8, 1e38]
    grid = np.meshgrid(np.float32(logits), np.float32(totals), np.float32([0, 1, 17, 1e6]))
    assert not np.isnan(of("negative_binomial_logits", *grid)).any()
    bad = of("negative_binomial_logits", [np.nan, 0, 0, 0, 0], [1, np.nan, 1, -1, 1],
             [2, 2, np.nan, 2, -1])  # fmt: skip
    assert np.isnan(bad[0]).all()
    # without constants
    x = (np.float32([-3, 0, 2]), 2.5, np.float32([1, 4, 30]))
    got = of("negative_binomial_logits", *x)[0] - np.array([math.lgamma(v + 1) for v in x[2]])
    np.testing.assert_allclose(
        of("negative_binomial_logits", *x, constants=False)[0], got, rtol=5e-6, atol=5e-6
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_limits_of_a_grid(native: ModuleType, variant: str) -> None:
    if variant not in native.likelihood_variants():
        pytest.skip(f"no {variant} here")
    inf, nan = np.inf, np.nan

    def of(mean: object, log_scale: object, x: object, **options: object) -> Array:
        inputs = np.broadcast_arrays(*(np.float32(v) for v in (mean, log_scale, x)))
        given = np.stack(inputs).reshape(3, -1)
        return evaluate(native, "discretized_logistic", options, given, variant)

    for bits in range(1, 17):  # the probabilities of all values, including the ends, add up to 1
        steps = 2**bits - 1
        grid = (2 * np.arange(steps + 1) / steps - 1).astype(np.float32)
        for mean, log_scale in ((0.1, -2.0), (0.9, -4.5), (-3.0, 1.0), (1.0, -9.0)):
            got = of(mean, log_scale, grid, half_step=1 / steps)
            total = np.exp(-got[0].astype(np.float64)).sum()
            assert abs(total - 1) < (2e-2 if bits == 16 else 1e-3), (bits, mean, log_scale)
            gradient = (np.exp(-got[0].astype(np.float64)) * got[1:3]).sum(1)
            assert np.abs(gradient).max() < 2e-2 * max(1, np.abs(got[1:3]).max())

    # a scale of inf, the minimum scale, and a scale below it
    got = of([0, 0, 0, 9], [80, 1e3, inf, inf], 0.001)
    np.testing.assert_allclose(
        got[0, :2], 2 * math.log(2) - math.log(2 / 255) + np.float64([80, 1e3]), rtol=1e-6
    )
    np.testing.assert_array_equal(got[0, 2:], inf)
    np.testing.assert_array_equal(got[2], 1)
    at, below = of(0.3, [-7, np.nextafter(np.float32(-7), -inf), -inf], 0.301).T[:2]
    np.testing.assert_array_equal(at[:2], below[:2])
    assert at[2] != 0 and below[2] == 0
    assert of(0.3, -9, 0.301, log_scale_min=-10.0)[2] != 0
    # a mean of inf
    got = of([inf, inf, inf, -inf], 0, [1, 0, -1, 1])
    np.testing.assert_array_equal(got[0], [0, inf, inf, inf])
    np.testing.assert_array_equal(got[1], [0, 1, 1, -1])
    assert not np.isnan(got).any()
    assert np.isnan(of([nan, 0, 0], [0, nan, 0], [0.5, 0.5, nan])[0]).all()
