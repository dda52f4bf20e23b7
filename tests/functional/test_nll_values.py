"""Compares the likelihoods with mpmath, within the promised error bounds."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import likelihood_truth as truth
import mpmath as mp
import pytest
import torch
from torch import Tensor

import vae_fused as vf
from vae_fused import _ext
from vae_fused._formulas import special
from vae_fused._native import likelihood as native
from vae_fused.likelihoods import (
    Bernoulli,
    ContinuousBernoulli,
    DiscretizedLogistic,
    NegativeBinomial,
    NegativeBinomialLogits,
    Poisson,
    StudentT,
    ZeroInflatedNegativeBinomial,
)

SIZE = 1500
INF = math.inf
FLUSHED = mp.mpf(1e-30)  # a result may be 0 where the exact value is subnormal in float32

# The unit roundoff of each dtype, in units of which relative errors are bounded.
FLOATS = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}
float_types = pytest.mark.parametrize("dtype", FLOATS, ids=str)


def leaf(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values.to(dtype).clone().requires_grad_()


# The kernels' error bounds are relative to the sum of the terms' magnitudes, which is up to twice
# the value: see tests/native/test_likelihood_math.py.
SLACK = {"formulas": 1.0, "kernels": 2.0}
slack = 1.0


@pytest.fixture(params=SLACK, autouse=True)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Selects the eager PyTorch formulas, or the kernels if they are compiled."""
    if request.param == "formulas":
        monkeypatch.setattr(native, "serves", lambda call: False)
        monkeypatch.setattr(native, "try_unprepared", lambda *call: None)
    elif not _ext.available:
        pytest.skip("eager PyTorch has no kernels")
    monkeypatch.setattr(sys.modules[__name__], "slack", SLACK[request.param])
    return str(request.param)


def bounded(errors: list[float], dtype: torch.dtype, c: float) -> None:
    worst = max(range(len(errors)), key=lambda i: errors[i])
    assert errors[worst] <= slack * c * FLOATS[dtype], (worst, errors[worst] / FLOATS[dtype])


def slope_terms(x: float, mean: float, theta: float) -> mp.mpf:
    """Returns the sum of the magnitudes of the terms in theta's gradient.

    The gradient's error is measured relative to this sum, because the terms may cancel.
    """
    m, theta, count = mp.mpf(mean), mp.mpf(theta), int(x)
    s = theta + m
    terms = mp.log1p(m / theta) - m / s

    def part(a: int, b: int) -> mp.mpf:  # the sum of (m - k) / ((theta + k) s) for a <= k < b
        return mp.digamma(theta + b) - mp.digamma(theta + a) - (b - a) / s

    middle = min(count, math.ceil(mean))
    return terms + abs(part(0, middle)) + abs(part(middle, count))


@float_types
@pytest.mark.parametrize("eps", [0.0, 1e-8])
def test_a_negative_binomial_has_all_digits(dtype: torch.dtype, eps: float) -> None:
    x, mean, theta = truth.sweep(1, SIZE, dtype)
    m, t = leaf(mean, dtype), leaf(theta, dtype)
    value = NegativeBinomial(eps=eps).log_prob((m, t), x.to(dtype))
    value.sum().backward()
    expected = truth.truths(lambda *p: truth.negative_binomial(*p, eps=eps), x, mean, theta)
    (terms,) = truth.truths(lambda *p: (slope_terms(*p),), x, mean, theta)
    bounded(truth.relative(value, expected[0]), dtype, 12.0)
    bounded(truth.relative(m.grad, expected[1]), dtype, 6.0)
    bounded(truth.in_terms(t.grad, expected[2], terms), dtype, 12.0)


@float_types
def test_a_logarithm_of_the_mean_loses_what_its_exponential_loses(dtype: torch.dtype) -> None:
    x, mean, theta = truth.sweep(2, SIZE, dtype)
    raw = torch.log(mean).to(dtype).double()
    r, t = leaf(raw, dtype), leaf(theta, dtype)
    value = NegativeBinomial("exp").log_prob((r, t), x.to(dtype))
    value.sum().backward()

    def exact(x: float, raw: float, theta: float) -> tuple[mp.mpf, ...]:
        mean = mp.exp(mp.mpf(raw))
        value, by_mean, _ = truth.negative_binomial(x, mean, theta)
        front = abs(x - mean) * max(1, abs(raw))
        share = mp.mpf(theta) / (mp.mpf(theta) + mean)
        slope = mean * by_mean
        return value, slope, abs(value) + front, abs(slope) + share * (x + mean) * max(1, abs(raw))

    expected = truth.truths(exact, x, raw, theta)
    bounded(truth.in_terms(value, expected[0], expected[2]), dtype, 12.0)
    bounded(truth.in_terms(r.grad, expected[1], expected[3]), dtype, 12.0)


@float_types
def test_zero_inflation_has_all_digits(dtype: torch.dtype) -> None:
    x, mean, theta = truth.sweep(3, SIZE, dtype)
    logit = torch.linspace(-15.0, 15.0, SIZE, dtype=dtype).double()
    m, t, z = leaf(mean, dtype), leaf(theta, dtype), leaf(logit, dtype)
    value = ZeroInflatedNegativeBinomial().log_prob((m, t, z), x.to(dtype))
    value.sum().backward()
    expected = truth.truths(truth.zero_inflated, x, mean, theta, logit)
    bounded(truth.relative(value, expected[0]), dtype, 15.0)
    # The probability that a 0 is not an inflated zero is the exponential of a sum of these terms,
    # so its relative error is proportional to their magnitudes.
    lost = [1 + abs(v) + abs(p) for v, p in zip(expected[0], logit.tolist(), strict=True)]
    tail = truth.truths(lambda *p: truth.negative_binomial(*p)[:1], x, mean, theta)[0]
    lost = [a + (abs(b) if not k else 0) for a, b, k in zip(lost, tail, x.tolist(), strict=True)]
    for grad, exact in ((z.grad, expected[3]), (m.grad, expected[1])):
        terms = [abs(w) * a + FLUSHED for w, a in zip(exact, lost, strict=True)]
        bounded(truth.in_terms(grad, exact, terms), dtype, 6.0)
    (slopes,) = truth.truths(lambda *p: (slope_terms(*p),), x, mean, theta)
    weights = [
        mp.mpf(1) if k else w / truth.negative_binomial(0, a, b)[1]
        for k, w, a, b in zip(x.tolist(), expected[1], mean.tolist(), theta.tolist(), strict=True)
    ]
    terms = [w * s * a + FLUSHED for w, s, a in zip(weights, slopes, lost, strict=True)]
    bounded(truth.in_terms(t.grad, expected[2], terms), dtype, 12.0)


@float_types
def test_an_inflation_by_probability_is_that_by_logit(dtype: torch.dtype) -> None:
    x, mean, theta = truth.sweep(4, SIZE, dtype)
    probs = torch.sigmoid(torch.linspace(-15.0, 10.0, SIZE, dtype=torch.float64)).to(dtype)
    m, t, p = leaf(mean, dtype), leaf(theta, dtype), leaf(probs, dtype)
    kind = ZeroInflatedNegativeBinomial(zero_inflation="probs")
    value = kind.log_prob((m, t, p), x.to(dtype))
    value.sum().backward()

    def exact(x: float, mean: float, theta: float, p: float) -> tuple[mp.mpf, ...]:
        p = mp.mpf(p)
        value, *_, by_logit = truth.zero_inflated(x, mean, theta, mp.log(p / (1 - p)))
        return value, by_logit / (p * (1 - p)), abs(value) + 1

    expected = truth.truths(exact, x, mean, theta, probs.double())
    bounded(truth.relative(value, expected[0]), dtype, 15.0)
    terms = [abs(w) * lost for w, lost in zip(expected[1], expected[2], strict=True)]
    bounded(truth.in_terms(p.grad, expected[1], terms), dtype, 15.0)


@float_types
def test_a_poisson_distribution_has_all_digits(dtype: torch.dtype) -> None:
    x, mean, _ = truth.sweep(5, SIZE, dtype)
    rate = leaf(mean, dtype)
    value = Poisson("identity").log_prob(rate, x.to(dtype))
    value.sum().backward()

    def exact(x: float, mean: float) -> tuple[mp.mpf, ...]:
        value, slope = truth.poisson(x, mp.log(mean))
        return value, slope / mean

    expected = truth.truths(exact, x, mean)
    bounded(truth.relative(value, expected[0]), dtype, 12.0)
    bounded(truth.relative(rate.grad, expected[1]), dtype, 4.0)

    raw = leaf(torch.log(mean), dtype)
    value = Poisson().log_prob(raw, x.to(dtype))
    value.sum().backward()
    logs = raw.detach().double()
    expected = truth.truths(truth.poisson, x, logs)
    front = [abs(s) * max(1, abs(r)) for s, r in zip(expected[1], logs.tolist(), strict=True)]
    terms = [abs(v) + f for v, f in zip(expected[0], front, strict=True)]
    bounded(truth.in_terms(value, expected[0], terms), dtype, 12.0)
    terms = [f + mp.exp(r) * abs(r) for f, r in zip(front, logs.tolist(), strict=True)]
    bounded(truth.in_terms(raw.grad, expected[1], terms), dtype, 4.0)


@float_types
def test_a_bernoulli_distribution_has_all_digits(dtype: torch.dtype) -> None:
    logit = torch.linspace(-80.0, 80.0, SIZE, dtype=dtype)
    x = torch.rand(SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    x[::3], x[1::3] = 0.0, 1.0
    raw = leaf(logit, dtype)
    value = Bernoulli().log_prob(raw, x)
    value.sum().backward()
    expected = truth.truths(truth.bernoulli, x.double(), logit.double())
    bounded(truth.relative(value, expected[0]), dtype, 4.0)
    bit = (x == 0.0) | (x == 1.0)
    errors = truth.relative(raw.grad, expected[1])
    bounded([e for e, b in zip(errors, bit.tolist(), strict=True) if b], dtype, 4.0)
    bounded(truth.in_terms(raw.grad, expected[1], [mp.mpf(1)] * SIZE), dtype, 4.0)


@float_types
def test_a_student_t_has_all_digits(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(7)

    def normal(scale: float) -> Tensor:
        return scale * torch.randn(SIZE, generator=generator, dtype=torch.float64)

    mean, raw = normal(1.0).to(dtype), normal(2.0).to(dtype)
    df = (10.0 ** torch.linspace(-2, 8, SIZE, dtype=torch.float64)).to(dtype)
    far = torch.where(torch.arange(SIZE) % 5 == 0, 1e4, 1.0)
    x = (mean.double() + normal(1.0) * far * raw.double().exp()).to(dtype)
    m, r, n = (leaf(t, dtype) for t in (mean, raw, df))
    value = StudentT("logstd").log_prob((m, r, n), x)
    value.sum().backward()
    given = [t.double() for t in (x, mean, raw, df)]
    expected = truth.truths(truth.student_t, *given)

    def terms(x: float, mean: float, log_sigma: float, df: float) -> tuple[mp.mpf, ...]:
        x, mean, s, n = mp.mpf(x), mp.mpf(mean), mp.mpf(log_sigma), mp.mpf(df)
        square = ((x - mean) * mp.exp(-s)) ** 2
        growth, share = mp.log1p(square / n), square / (n + square)
        excess = mp.loggamma(n / 2) - mp.loggamma((n + 1) / 2) + mp.log(n / 2) / 2
        slope = (mp.digamma((n + 1) / 2) - mp.digamma(n / 2)) / 2 - 1 / (2 * n)
        value = (n + 1) / 2 * growth + abs(s) + 1 + excess
        by_mean = (n + 1) * mp.sqrt(square) / (n + square) * mp.exp(-s)
        by_df = (growth - share) / 2 + share / (2 * n) + slope
        return value, by_mean, n * (1 + square) / (n + square), by_df

    magnitudes = truth.truths(terms, *given)
    # d = (x - mean) / sigma inherits the rounding error of sigma, an exponential of values up to 6.
    for got, exact, size, bound in zip(
        (value, m.grad, r.grad, n.grad), expected, magnitudes, (10.0, 10.0, 16.0, 16.0), strict=True
    ):
        bounded(truth.in_terms(got, exact, size), dtype, bound)


@float_types
def test_a_continuous_bernoulli_has_all_digits(dtype: torch.dtype) -> None:
    size = 10.0 ** torch.linspace(-6, 2.5, SIZE, dtype=torch.float64)
    logit = (size * (1 - 2 * (torch.arange(SIZE) % 2))).to(dtype)
    x = torch.rand(SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    x[::3], x[1::3] = 0.0, 1.0
    raw = leaf(logit, dtype)
    value = ContinuousBernoulli().log_prob(raw, x)
    value.sum().backward()
    given = x.double(), logit.double()
    expected = truth.truths(truth.continuous_bernoulli, *given)

    def terms(x: float, logit: float) -> tuple[mp.mpf, ...]:
        x, size = mp.mpf(x), abs(mp.mpf(logit))
        rest = mp.log(mp.expm1(size) / size) - size / 2  # a series below 1, a logarithm above
        weight = 1 - x if logit > 0 else x
        if size < 1:
            return size * abs(x - 0.5) + rest, abs(x - 0.5) + size / 12
        return size * weight + abs(rest - size / 2), weight + 1 / size + 1 / mp.expm1(size)

    magnitudes = truth.truths(terms, *given)
    bounded(truth.in_terms(value, expected[0], magnitudes[0]), dtype, 4.0)
    bounded(truth.in_terms(raw.grad, expected[1], magnitudes[1]), dtype, 4.0)


@float_types
def test_a_negative_binomial_by_logits_has_all_digits(dtype: torch.dtype) -> None:
    x, mean, theta = truth.sweep(8, SIZE, dtype)
    logit = torch.log(mean / theta).clamp(-60.0, 60.0).to(dtype)
    raw, total = leaf(logit, dtype), leaf(theta, dtype)
    value = NegativeBinomialLogits().log_prob((total, raw), x.to(dtype))
    value.sum().backward()
    given = x, logit.double(), theta
    expected = truth.truths(truth.negative_binomial_logits, *given)

    def terms(x: float, logit: float, total: float) -> tuple[mp.mpf, ...]:
        mean, r = mp.mpf(total) * mp.exp(mp.mpf(logit)), mp.mpf(total)
        value = truth.negative_binomial_logits(x, logit, total)[0]
        share = 1 / (1 + mp.exp(mp.mpf(logit)))
        harmonic = mp.digamma(r + x) - mp.digamma(r)
        plus = mp.log1p(mp.exp(mp.mpf(logit)))
        return abs(value) + abs(x - mean), share * (mean + x), plus + harmonic

    magnitudes = truth.truths(terms, *given)
    bounded(truth.in_terms(value, expected[0], magnitudes[0]), dtype, 12.0)
    bounded(truth.in_terms(raw.grad, expected[1], magnitudes[1]), dtype, 6.0)
    bounded(truth.in_terms(total.grad, expected[2], magnitudes[2]), dtype, 6.0)


@float_types
@pytest.mark.parametrize("bits", [1, 8, 16])
def test_a_discretized_logistic_has_all_digits(dtype: torch.dtype, bits: int) -> None:
    generator = torch.Generator().manual_seed(9)
    steps, h = 2**bits - 1, 1 / (2**bits - 1)
    x = torch.randint(0, steps + 1, (SIZE,), generator=generator)
    x[::10], x[1::10] = 0, steps
    x = (2.0 * x.double() / steps - 1.0).to(dtype)
    log_scale = torch.linspace(-6.9, 3.0, SIZE, dtype=torch.float64).to(dtype)
    noise = torch.randn(SIZE, generator=generator, dtype=torch.float64)
    mean = (x.double() + noise * 2.0 * log_scale.double().exp()).to(dtype)
    m, s = leaf(mean, dtype), leaf(log_scale, dtype)
    value = DiscretizedLogistic(bits).log_prob((m, s), x)
    value.sum().backward()
    given = x.double(), mean.double(), log_scale.double()
    expected = truth.truths(lambda *p: truth.discretized_logistic(*p, bits), *given)

    def terms(x: float, mean: float, log_scale: float) -> tuple[mp.mpf, ...]:
        x, mean, inverse = mp.mpf(x), mp.mpf(mean), mp.exp(-mp.mpf(log_scale))
        p, q = ((x + side * h - mean) * inverse for side in (1, -1))
        first, last = x < h - 1, x > 1 - h
        size, d = inverse * (abs(x - mean) + h), 2 * h * inverse
        below, above = mp.log1p(mp.exp(-p)) * (not last), mp.log1p(mp.exp(q)) * (not first)
        at_p, at_q = 1 / (1 + mp.exp(p)) * (not last), 1 / (1 + mp.exp(-q)) * (not first)
        inner = not (first or last)
        within, part = -mp.log(-mp.expm1(-d)) * inner, d / mp.expm1(d) * inner
        by_mean = (1 + size) * inverse * (at_p + at_q)
        by_scale = (1 + size) * (abs(p) * at_p + abs(q) * at_q) + size * (at_p + at_q)
        value = (1 + size) * (below + above) + abs(within) + part
        flushed = mp.mpf(1e-26) * (1 + size) * (1 + inverse)  # where an exponential underflows
        return value + flushed, by_mean + flushed, by_scale + (1 + d) * part + flushed

    magnitudes = truth.truths(terms, *given)
    for got, exact, size in zip((value, m.grad, s.grad), expected, magnitudes, strict=True):
        bounded(truth.in_terms(got, exact, size), dtype, 6.0)


def test_counts_up_to_16_have_a_pure_relative_error_of_1e_6_in_float32() -> None:
    grid = torch.cartesian_prod(
        torch.arange(17.0), torch.logspace(-6, 3.477, 12), torch.logspace(-3, 8, 12)
    )
    x, mean, theta = (column.double() for column in grid.unbind(1))
    m = leaf(mean, torch.float32)
    value = NegativeBinomial().log_prob((m, theta.float()), x)
    value.sum().backward()
    expected = truth.truths(truth.negative_binomial, x, mean, theta)
    assert max(truth.relative(value, expected[0])) < 1e-6
    assert max(truth.relative(m.grad, expected[1])) < 1e-6


@pytest.mark.parametrize("front", ["exp", "softplus"])
def test_theta_and_degrees_of_freedom_are_what_their_front_end_says(front: str) -> None:
    raw = torch.linspace(-3.0, 3.0, 60, dtype=torch.float64)
    mean, x = torch.linspace(0.2, 9.0, 60, dtype=torch.float64), torch.arange(60.0).double() % 7
    value = raw.exp() if front == "exp" else torch.log1p(raw.exp())
    for got, expected in (
        (
            NegativeBinomial(dispersion=front).log_prob((mean, raw), x),
            NegativeBinomial().log_prob((mean, value), x),
        ),
        (
            StudentT(freedom=front).log_prob((mean, raw, raw), x),
            StudentT().log_prob((mean, raw, value), x),
        ),
    ):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12)


@float_types
def test_counts_need_not_be_whole(dtype: torch.dtype) -> None:
    _, mean, theta = truth.sweep(6, SIZE, dtype)
    x = torch.logspace(-1, 3, SIZE, dtype=torch.float64).to(dtype).double()
    m, t = leaf(mean, dtype), leaf(theta, dtype)
    value = NegativeBinomial().log_prob((m, t), x.to(dtype))
    value.sum().backward()
    expected = truth.truths(truth.negative_binomial, x, mean, theta)
    terms = [abs(v) + 1 for v in expected[0]]
    bounded(truth.in_terms(value, expected[0], terms), dtype, 12.0)
    bounded(truth.relative(m.grad, expected[1]), dtype, 6.0)


# --------------------------------------------------------------------------------------------------
# Special functions
# --------------------------------------------------------------------------------------------------


def exact_student(n: float) -> tuple[mp.mpf, ...]:
    n = mp.mpf(n)
    value = mp.log(n / 2) / 2 + mp.loggamma(n / 2) - mp.loggamma((n + 1) / 2)
    slope = 1 / (2 * n) + (mp.digamma(n / 2) - mp.digamma((n + 1) / 2)) / 2
    curvature = (mp.polygamma(1, n / 2) - mp.polygamma(1, (n + 1) / 2)) / 4 - 1 / (2 * n * n)
    return value, slope, curvature


@float_types
def test_the_excess_of_a_student_t_and_its_derivatives(dtype: torch.dtype) -> None:
    n = leaf(torch.logspace(-6, 8, 800, dtype=torch.float64), dtype)
    value = special.student_excess(n)
    (slope,) = torch.autograd.grad(value.sum(), n, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), n)
    expected = truth.truths(exact_student, n.detach().double())
    for got, exact, bound in zip(
        (value, slope, curvature), expected, (8.0, 8.0, 64.0), strict=True
    ):
        bounded(truth.relative(got, exact), dtype, bound)


def exact_stirling(z: float) -> tuple[mp.mpf, ...]:
    z = mp.mpf(z)
    value = mp.loggamma(z) - (z - mp.mpf(1) / 2) * mp.log(z) + z - mp.log(2 * mp.pi) / 2
    slope = mp.digamma(z) - mp.log(z) + 1 / (2 * z)
    return value, slope, mp.polygamma(1, z) - 1 / z - 1 / (2 * z * z)


@float_types
def test_the_error_of_stirlings_formula_and_its_derivatives(dtype: torch.dtype) -> None:
    z = leaf(torch.logspace(-6, 8, 800, dtype=torch.float64), dtype)
    value = special.stirling_error(z)
    (slope,) = torch.autograd.grad(value.sum(), z, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), z)
    expected = truth.truths(exact_stirling, z.detach().double())
    # Near 1, the closed form of the shift subtracts 1 from 1.04. The rounding error of 1.04 is then
    # large relative to the value, which is only 0.08.
    bounded(truth.relative(value, expected[0]), dtype, 32.0)
    bounded(truth.relative(slope, expected[1]), dtype, 128.0)
    bounded(truth.relative(curvature, expected[2]), dtype, 16384.0)


@float_types
def test_the_excess_of_a_logarithm(dtype: torch.dtype) -> None:
    spread = torch.logspace(-12, 6, 400, dtype=torch.float64)
    v = torch.cat([-spread[spread < 1.0], spread]).to(dtype)
    value = special.log1p_excess(v, torch.log1p(v))
    (expected,) = truth.truths(lambda v: (mp.mpf(v) - mp.log1p(mp.mpf(v)),), v.double())
    bounded(truth.relative(value, expected), dtype, 4.0)


# --------------------------------------------------------------------------------------------------
# Limits
# --------------------------------------------------------------------------------------------------

COUNTS = torch.tensor([0.0, 1.0, 5.0])


def at(kind: vf.likelihoods.Likelihood, *outputs: float) -> tuple[list[float], ...]:
    """Returns the log probabilities of 0, 1 and 5, and the gradients of the outputs."""
    leaves = [torch.full((3,), value, requires_grad=True) for value in outputs]
    value = kind.log_prob(leaves if len(leaves) > 1 else leaves[0], COUNTS)
    grads = torch.autograd.grad(value.sum(), leaves)
    return (value.tolist(), *(g.tolist() for g in grads))


@pytest.mark.parametrize("theta", [1e9, 1e20, 1e38, INF])
def test_without_dispersion_it_is_poisson(theta: float) -> None:
    value, by_mean, by_theta = at(NegativeBinomial(), 2.0, theta)
    expected, slope = at(Poisson("identity"), 2.0)
    assert value == pytest.approx(expected, rel=1e-6)
    assert by_mean == pytest.approx(slope, rel=1e-6)
    assert by_theta == pytest.approx([0.0, 0.0, 0.0], abs=1e-17)


@pytest.mark.parametrize(
    ("kind", "outputs", "value", "slope"),
    [
        (Poisson("identity"), (0.0,), [0.0, -INF, -INF], [-1.0, INF, INF]),
        (Poisson("identity"), (INF,), [-INF, -INF, -INF], [-1.0, -1.0, -1.0]),
        (Poisson(), (-INF,), [0.0, -INF, -INF], [0.0, 1.0, 5.0]),
        (Poisson(), (INF,), [-INF, -INF, -INF], [-INF, -INF, -INF]),
        (NegativeBinomial(), (0.0, 2.0), [0.0, -INF, -INF], [-1.0, INF, INF]),
        (NegativeBinomial(), (INF, 2.0), [-INF, -INF, -INF], [0.0, 0.0, 0.0]),
        (NegativeBinomial("exp"), (-INF, 2.0), [0.0, -INF, -INF], [0.0, 1.0, 5.0]),
        (NegativeBinomial("exp"), (INF, 2.0), [-INF, -INF, -INF], [-2.0, -2.0, -2.0]),
        (NegativeBinomial(), (2.0, 0.0), [0.0, -INF, -INF], [0.0, 0.0, 0.0]),
        (NegativeBinomial(), (0.0, INF), [0.0, -INF, -INF], [-1.0, INF, INF]),
    ],
)
def test_limits(
    kind: vf.likelihoods.Likelihood,
    outputs: tuple[float, ...],
    value: list[float],
    slope: list[float],
) -> None:
    got = at(kind, *outputs)
    assert got[0] == pytest.approx(value, abs=1e-22)
    assert got[1] == pytest.approx(slope, abs=1e-23)


def test_a_mean_that_underflows_has_a_value_and_a_gradient() -> None:
    for kind in (NegativeBinomial("exp"), NegativeBinomial("softplus")):
        value, slope, _ = at(kind, -200.0, 1e6)
        expected = [truth.negative_binomial(x, mp.exp(-200), 1e6)[0] for x in (0, 1, 5)]
        assert value == pytest.approx([float(w) for w in expected], rel=1e-6, abs=1e-30)
        assert slope == pytest.approx([0.0, 1.0, 5.0])
    logits = torch.tensor([[0.0, -300.0, -400.0]], requires_grad=True)
    value = Poisson("softmax").log_prob(logits, COUNTS, library=torch.tensor(3.0))
    (slope,) = torch.autograd.grad(value.sum(), logits)
    expected = [-math.exp(3.0), -297.0, -5 * 397.0 - math.log(120.0)]
    assert value[0].tolist() == pytest.approx(expected)
    assert slope[0].tolist() == pytest.approx([-6.0, 1.0, 5.0])


def test_logits_of_infinity_are_exact_wherever_the_truth_is_finite() -> None:
    logits = torch.tensor([-INF, INF, INF, -INF, INF, -INF], requires_grad=True)
    value = Bernoulli().log_prob(logits, torch.tensor([0.0, 1.0, 0.0, 1.0, 0.5, 0.5]))
    (slope,) = torch.autograd.grad(value.sum(), logits)
    assert value.tolist() == [0.0, 0.0, -INF, -INF, -INF, -INF]
    assert slope.tolist() == [0.0, 0.0, -1.0, 1.0, -0.5, 0.5]


@pytest.mark.parametrize("df", [1e20, 1e38, INF])
def test_a_student_t_of_many_degrees_is_a_gaussian(df: float) -> None:
    value, by_mean, by_raw, by_df = at(StudentT(), 0.5, -1.0, df)
    gaussian = at(vf.likelihoods.Gaussian(), 0.5, -1.0)
    for got, expected in zip((value, by_mean, by_raw), gaussian, strict=True):
        assert got == pytest.approx(expected, rel=1e-6)
    assert by_df == pytest.approx([0.0, 0.0, 0.0], abs=1e-18)


def test_a_student_t_of_far_data_does_not_overflow() -> None:
    for kind, output in (
        (StudentT("logstd"), (0.0, 0.0, 3.0)),
        (StudentT("logstd", df=3.0), (0.0, 0.0)),
    ):
        leaves = [torch.full((1,), v, requires_grad=True) for v in output]
        value = kind.log_prob(leaves, torch.tensor([1e25]))
        grads = torch.autograd.grad(value.sum(), leaves)
        exact = truth.truths(truth.student_t, *(torch.tensor([v]) for v in (1e25, 0.0, 0.0, 3.0)))
        assert value.item() == pytest.approx(float(exact[0][0]), rel=1e-6)
        for got, expected in zip(grads, exact[1:], strict=False):
            assert got.item() == pytest.approx(float(expected[0]), rel=1e-5)


def test_an_infinite_logit_has_all_of_the_density_at_one_end() -> None:
    logits = torch.tensor([INF, INF, INF, -INF, -INF, -INF], requires_grad=True)
    x = torch.tensor([1.0, 0.0, 0.5, 0.0, 1.0, 0.5])
    value = ContinuousBernoulli().log_prob(logits, x)
    (slope,) = torch.autograd.grad(value.sum(), logits)
    assert value.tolist() == [INF, -INF, -INF, INF, -INF, -INF]
    assert slope.tolist() == [0.0, -1.0, -0.5, 0.0, 1.0, 0.5]


def test_limits_of_a_negative_binomial_by_logits() -> None:
    kind = NegativeBinomialLogits()
    assert at(kind, 2.0, INF)[0] == [-INF, -INF, -INF]
    assert at(kind, 2.0, -INF)[0] == [0.0, -INF, -INF]
    assert at(kind, 2.0, -INF)[2] == [0.0, 1.0, 5.0]
    assert at(kind, 0.0, 0.5)[0] == [0.0, -INF, -INF]
    assert at(kind, INF, 0.5)[0] == [-INF, -INF, -INF]
    value, _, slope = at(kind, 1e25, math.log(2.0 / 1e25))
    expected, by_log = at(Poisson(), math.log(2.0))
    assert value == pytest.approx(expected, rel=1e-5)
    assert slope == pytest.approx(by_log, rel=1e-5)
    value, _, slope = at(kind, 2.0, 200.0)
    assert value == pytest.approx([-400.0, -400.0 + math.log(2.0), -400.0 + math.log(6.0)])
    assert slope == pytest.approx([-2.0, -2.0, -2.0])


def test_the_scale_of_a_grid_has_a_floor_and_no_ceiling() -> None:
    x = torch.tensor([0.5 / 127.5, 0.5 / 127.5, -1.0])
    for log_scale, passes in ((-6.99, True), (-7.0, True), (-7.01, False), (-INF, False)):
        s = torch.full((3,), log_scale, requires_grad=True)
        value = DiscretizedLogistic().log_prob((torch.tensor([0.0, 0.1, -0.9]), s), x)
        (slope,) = torch.autograd.grad(value.sum(), s)
        assert value.isfinite().all() and bool((slope != 0.0).all()) == passes
    s = torch.full((3,), 90.0, requires_grad=True)
    value = DiscretizedLogistic().log_prob((torch.zeros(3), s), x)
    (slope,) = torch.autograd.grad(value.sum(), s)
    inner = math.log(2.0 / 255.0) - 90.0 - 2.0 * math.log(2.0)
    assert value.tolist() == pytest.approx([inner, inner, -math.log(2.0)])
    assert slope.tolist() == pytest.approx([-1.0, -1.0, 0.0], abs=1e-30)


@pytest.mark.parametrize("bits", range(1, 17))
def test_a_target_within_half_a_step_of_an_end_is_that_end(bits: int) -> None:
    half = 1.0 / (2**bits - 1)
    kind, output = DiscretizedLogistic(bits), (torch.zeros(4, dtype=torch.float64),) * 2
    ends = torch.tensor([-1.0, -1.0 + 0.99 * half, 1.0 - 0.99 * half, 1.0], dtype=torch.float64)
    value = kind.log_prob(output, ends)
    one_sided = torch.nn.functional.logsigmoid(ends * torch.tensor([1.0, 1.0, -1.0, -1.0]) + half)
    torch.testing.assert_close(value, one_sided)
    if bits > 1:  # the second and the second-to-last values are inner values
        inner = kind.log_prob(output, ends + 1.02 * half * torch.tensor([2.0, 1.0, -1.0, -2.0]))
        assert (inner < -math.log(1.0 / half) + 1.0).all()


@pytest.mark.parametrize("kind", ["logits", "probs"])
def test_an_inflation_of_0_or_1_is_a_limit(kind: str) -> None:
    likelihood = ZeroInflatedNegativeBinomial(zero_inflation=kind)
    never, always = (-INF, INF) if kind == "logits" else (0.0, 1.0)
    for mean, theta in ((2.0, 2.0), (2000.0, 1e6)):
        expected = at(NegativeBinomial(), mean, theta)
        got = at(likelihood, mean, theta, never)
        for a, b in zip(got, expected, strict=False):
            assert a == pytest.approx(b, rel=1e-6)
        value, by_mean, by_theta, _ = at(likelihood, mean, theta, always)
        assert value == [0.0, -INF, -INF]
        assert by_mean[0] == by_theta[0] == 0.0


@pytest.mark.parametrize(
    "call",
    [
        lambda nan: Poisson("identity").log_prob(nan, COUNTS),
        lambda nan: NegativeBinomial().log_prob((nan, torch.ones(3)), COUNTS),
        lambda nan: NegativeBinomial().log_prob((torch.ones(3), nan), COUNTS),
        lambda nan: NegativeBinomial().log_prob((torch.ones(3), torch.ones(3)), nan),
        lambda nan: Poisson().log_prob(torch.ones(3), nan),
        lambda nan: Bernoulli().log_prob(nan, COUNTS),
        lambda nan: StudentT().log_prob((nan, torch.ones(3), torch.ones(3)), COUNTS),
        lambda nan: StudentT().log_prob((torch.ones(3), nan, torch.ones(3)), COUNTS),
        lambda nan: StudentT().log_prob((torch.ones(3), torch.ones(3), nan), COUNTS),
        lambda nan: StudentT(df=3.0).log_prob((torch.ones(3), torch.ones(3)), nan),
        lambda nan: StudentT().log_prob((torch.ones(3), torch.ones(3), -torch.ones(3)), COUNTS),
        lambda nan: ContinuousBernoulli().log_prob(nan, COUNTS),
        lambda nan: ContinuousBernoulli().log_prob(5 * torch.ones(3), nan),
        lambda nan: NegativeBinomialLogits().log_prob((nan, torch.ones(3)), COUNTS),
        lambda nan: NegativeBinomialLogits().log_prob((torch.ones(3), nan), COUNTS),
        lambda nan: NegativeBinomialLogits().log_prob((torch.ones(3), torch.ones(3)), nan),
        lambda nan: NegativeBinomialLogits().log_prob((-torch.ones(3), nan), COUNTS),
        lambda nan: DiscretizedLogistic().log_prob((nan, torch.ones(3)), COUNTS),
        lambda nan: DiscretizedLogistic().log_prob((torch.ones(3), nan), 0.5 * COUNTS.clamp(max=1)),
        lambda nan: DiscretizedLogistic().log_prob((torch.ones(3), torch.ones(3)), nan),
        lambda nan: Bernoulli().log_prob(torch.ones(3), nan),
    ],
)
def test_nan_and_parameters_outside_of_their_range_give_nan(
    call: Callable[[Tensor], Tensor],
) -> None:
    assert call(torch.full((3,), math.nan)).isnan().all()


def test_a_negative_mean_or_theta_gives_nan() -> None:
    for value in (
        NegativeBinomial().log_prob((-torch.ones(3), torch.ones(3)), COUNTS),
        NegativeBinomial().log_prob((torch.ones(3), -torch.ones(3)), COUNTS),
        Poisson("identity").log_prob(-torch.ones(3), COUNTS),
    ):
        assert value.isnan().all()


@pytest.mark.parametrize(
    ("kind", "outputs"),
    [
        ("bernoulli", 1),
        ("poisson", 1),
        ("gaussian", 2),
        ("laplace", 2),
        ("negative_binomial", 2),
        ("zero_inflated_negative_binomial", 3),
        ("student_t", 3),
        ("continuous_bernoulli", 1),
        ("negative_binomial_logits", 2),
        ("discretized_logistic", 2),
    ],
)
def test_float64_is_the_truth_of_float32(kind: str, outputs: int) -> None:
    generator = torch.Generator().manual_seed(0)
    given = [torch.rand(64, generator=generator) + 0.5 for _ in range(outputs)]
    x = torch.randint(0, 2, (64,), generator=generator)
    narrow = vf.nll(given, x, kind, reduction="none")
    wide = vf.nll([g.double() for g in given], x, kind, reduction="none")
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-6, atol=1e-7)
