"""Verifies the statements in docs/theory.md, using only the public functions.

Random numbers have fixed seeds. A mean must be within 5 standard errors of its exact value. For
each such comparison, a second comparison shows that the error bars are small enough to detect a
wrong formula.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
import re
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_key, random
from linear_gaussian import F64, LinearGaussian, linear_gaussian, standard_error
from torch import Tensor

import vae_fused as vf

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "theory.md"
SIGMAS = 5.0


def assert_within_error_bars(samples: Tensor, exact: Tensor) -> None:
    """Requires that the mean over dimension 0 is within 5 standard errors of the exact value."""
    off = (samples.mean(0) - exact).abs() / standard_error(samples)
    assert (off < SIGMAS).all(), off.max()


def of_standard_normal(z: Tensor) -> Tensor:
    """ln N(z; 0, 1), summed over the last dimension."""
    zero = torch.zeros((), dtype=z.dtype)
    return vf.gaussian_log_prob(z, zero, zero, dim=-1)


# --------------------------------------------------------------------------------------------------
# A KL divergence is never negative, and 0 only at equality
# --------------------------------------------------------------------------------------------------


def scattered(count: int, least: float, most: float, seed: int) -> Tensor:
    """Returns values of either sign whose magnitudes are log-uniformly distributed, and zeros."""
    generator = torch.Generator().manual_seed(seed)
    exponents = torch.rand(count, generator=generator, dtype=F64)
    size = least * (most / least) ** exponents
    sign = torch.randint(-1, 2, (count,), generator=generator)
    return size * sign


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_the_kl_is_never_negative_and_is_0_only_at_equality(dtype: torch.dtype) -> None:
    # The square of 1e-18 is still a normal float32 number.
    mu, logvar = (scattered(1_000_000, 1e-18, 80.0, seed).to(dtype) for seed in (1, 2))
    kl = vf.gaussian_kl(mu, logvar, reduction="none")
    is_prior = (mu == 0) & (logvar == 0)
    assert 10_000 < is_prior.sum() < 200_000
    assert (kl[is_prior] == 0).all() and (kl[~is_prior] > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_the_kl_of_neighbouring_floats_is_above_0(dtype: torch.dtype) -> None:
    """The prior equals the posterior exactly, or differs from it in the last bit."""
    mu, logvar = (t.to(dtype) for t in (scattered(10_000, 1e-3, 5.0, s) for s in (3, 4)))
    prior = vf.Prior(mu, logvar)
    assert (vf.gaussian_kl(mu, logvar, prior=prior, reduction="none") == 0).all()
    infinity = torch.tensor(math.inf, dtype=dtype)
    for one_bit_off in (
        (torch.nextafter(mu, infinity), logvar),
        (mu, torch.nextafter(logvar, infinity)),
    ):
        kl = vf.gaussian_kl(*one_bit_off, prior=prior, reduction="none")
        moved = (one_bit_off[0] - mu).abs() + (one_bit_off[1] - logvar).abs()
        assert (kl[moved > 1e-18] > 0).all() and (moved > 1e-18).sum() > 5_000


def test_the_direct_formula_is_negative_near_the_prior() -> None:
    """This test shows that the two tests above can fail."""
    mu, x = (scattered(100_000, 1e-6, 1e-3, seed).float() for seed in (5, 6))
    direct = 0.5 * (mu.square() + x.exp() - 1.0 - x)
    assert (direct < 0).double().mean() > 0.1


# --------------------------------------------------------------------------------------------------
# ln p(x) = ELBO + KL(q || p(z|x)), and the ELBO is a lower bound
# --------------------------------------------------------------------------------------------------


def random_posteriors(model: LinearGaussian, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Returns Gaussians around the true posterior, some far from it, of shape (count, B, L)."""
    mu, logvar = model.posterior()
    scale = 10.0 ** (1.0 - 4.0 * torch.linspace(0, 1, count, dtype=F64)).reshape(-1, 1, 1)
    shape = (count, *mu.shape)
    return (
        mu + scale * random(*shape, seed=seed, dtype=F64),
        logvar + 0.3 * scale * random(*shape, seed=seed + 1, dtype=F64),
    )


def exact_elbo(model: LinearGaussian, mu: Tensor, logvar: Tensor) -> Tensor:
    """Returns the ELBO, of shape (count, B), of Gaussians of shape (count, B, L)."""
    return -model.expected_nll(mu, logvar) - vf.gaussian_kl(mu, logvar, dim=-1)


def test_the_evidence_is_the_elbo_plus_the_kl_from_the_true_posterior() -> None:
    model = linear_gaussian(16)
    q = random_posteriors(model, 200, seed=1)
    gap = vf.gaussian_kl(*q, prior=vf.Prior(*model.posterior()), dim=-1)
    evidence = model.log_evidence()
    error = (exact_elbo(model, *q) + gap - evidence).abs()
    # Far from the posterior, both terms are large, but their sum is small.
    assert (error / (1.0 + gap)).max() < 1e-12
    assert error[gap < 1e3].max() < 1e-6 and (gap < 1e3).double().mean() > 0.8
    assert gap.max() > 1e3 and gap.min() < 1e-3
    posterior = (t.expand_as(q[0]) for t in model.posterior())
    wrong_way = vf.gaussian_kl(*posterior, prior=vf.Prior(*q), dim=-1)
    wrong = (exact_elbo(model, *q) + wrong_way - evidence).abs()
    assert wrong[gap > 0.1].median() > 0.1  # nearer, both directions agree


def test_the_identity_holds_for_each_single_sample() -> None:
    """ln p(x) = ln p(x, z) - ln p(z|x) for any z, so it does not depend on the expectation."""
    model = linear_gaussian(16)
    z = 3.0 * random(50, 16, 3, seed=2, dtype=F64)
    log_posterior = vf.gaussian_log_prob(z, *model.posterior(), dim=-1)
    single = -model.nll(z) + of_standard_normal(z) - log_posterior
    torch.testing.assert_close(single, model.log_evidence().expand(50, 16), rtol=0, atol=1e-10)


def test_the_elbo_is_a_lower_bound_and_reaches_the_evidence_at_the_true_posterior() -> None:
    model = linear_gaussian(16)
    evidence = model.log_evidence()
    bound = exact_elbo(model, *random_posteriors(model, 2000, seed=3))
    assert (bound < evidence).all()
    mu, logvar = (t.clone().requires_grad_() for t in model.posterior())
    at_posterior = exact_elbo(model, mu, logvar)
    torch.testing.assert_close(at_posterior, evidence, rtol=0, atol=1e-12)
    for slope in torch.autograd.grad(at_posterior.sum(), (mu, logvar)):
        assert slope.abs().max() < 1e-12


def test_gradient_ascent_on_the_elbo_finds_the_true_posterior() -> None:
    model = linear_gaussian(4)
    mu, logvar = (torch.zeros(4, 3, dtype=F64, requires_grad=True) for _ in range(2))
    optimizer = torch.optim.LBFGS((mu, logvar), max_iter=200, tolerance_grad=1e-12)

    def minus_elbo() -> Tensor:
        optimizer.zero_grad()
        loss = -exact_elbo(model, mu, logvar).sum()
        loss.backward()
        return loss

    optimizer.step(minus_elbo)
    torch.testing.assert_close(
        exact_elbo(model, mu, logvar), model.log_evidence(), atol=1e-9, rtol=0
    )
    for got, want in zip((mu, logvar), model.posterior(), strict=True):
        torch.testing.assert_close(got.detach(), want, rtol=0, atol=1e-4)


def test_where_no_gaussian_is_the_posterior_a_gap_remains() -> None:
    """x has three bits, and z is one-dimensional.

    Quadrature computes the evidence, and a grid search finds the best q.
    """
    x = torch.tensor([1.0, 1.0, 0.0], dtype=F64)
    weight = torch.tensor([4.0, -3.0, 5.0], dtype=F64)
    grid = torch.linspace(-12, 12, 4001, dtype=F64).unsqueeze(-1)
    step = (grid[1] - grid[0]).item()
    log_joint = of_standard_normal(grid) - vf.nll(grid * weight, x, "bernoulli", dim=-1)
    evidence = log_joint.logsumexp(0) + math.log(step)

    def elbo(mu: Tensor, logvar: Tensor) -> Tensor:
        log_q = vf.gaussian_log_prob(grid, mu, logvar, dim=-1)
        return (log_q.exp() * (log_joint - log_q)).sum(0) * step

    mu, logvar = (v.reshape(-1) for v in torch.meshgrid(
        torch.linspace(-2, 2, 41, dtype=F64), torch.linspace(-6, 1, 36, dtype=F64), indexing="ij"
    ))  # fmt: skip
    bounds = torch.stack([elbo(m, v) for m, v in zip(mu, logvar, strict=True)])
    gap = evidence - bounds
    assert gap.min() > 1e-3 and gap.min() < 0.3 and gap.max() > 3.0


# --------------------------------------------------------------------------------------------------
# The closed form of two Gaussians
# --------------------------------------------------------------------------------------------------

# Mean and log-variance of q, then those of p.
PAIRS = torch.tensor(
    [
        [0.0, 0.0, 0.0, 0.0],
        [1.0, 0.5, 0.0, 0.0],
        [-2.0, -3.0, 0.0, 0.0],
        [0.3, 1.0, -0.5, 2.0],
        [0.0, -1.0, 0.0, 1.0],
        [5.0, 0.0, 4.0, -1.0],
        [0.01, 0.02, 0.0, 0.0],
    ],
    dtype=F64,
)


def closed_form(pairs: Tensor) -> Tensor:
    mu, logvar, m, prior_logvar = pairs.unbind(-1)
    return vf.gaussian_kl(mu, logvar, prior=vf.Prior(m, prior_logvar), reduction="none")


def log_ratio(z: Tensor, pairs: Tensor) -> Tensor:
    """ln q(z) - ln p(z)."""
    mu, logvar, m, prior_logvar = pairs.unbind(-1)
    return vf.gaussian_log_prob(z, mu, logvar) - vf.gaussian_log_prob(z, m, prior_logvar)


def test_the_closed_form_is_the_integral() -> None:
    """The trapezoidal rule is exact up to rounding for such integrands."""
    mu, logvar = PAIRS[:, 0], PAIRS[:, 1]
    points = torch.linspace(-12, 12, 2001, dtype=F64).unsqueeze(-1)
    z = mu + (logvar / 2).exp() * points
    density = vf.gaussian_log_prob(z, mu, logvar).exp()
    integral = torch.trapezoid(density * log_ratio(z, PAIRS), z, dim=0)
    torch.testing.assert_close(integral, closed_form(PAIRS), rtol=1e-11, atol=1e-14)


def test_the_closed_form_is_the_mean_over_samples() -> None:
    exact, pairs = closed_form(PAIRS[1:]), PAIRS[1:]
    z = vf.reparameterize(pairs[:, 0], pairs[:, 1], sample_shape=400_000, key=make_key(7))
    samples = log_ratio(z, pairs)
    assert_within_error_bars(samples, exact)
    the_other_way = closed_form(pairs[:, [2, 3, 0, 1]])
    is_seen = (exact - the_other_way).abs() > SIGMAS * standard_error(samples)
    assert is_seen[:-1].all()  # the last pair is nearly symmetric
    prior = vf.Prior(pairs[:, 2], pairs[:, 3])
    mixed = vf.sampled_kl(z, pairs[:, 1].expand_as(z), prior=prior, reduction="none")
    assert_within_error_bars(mixed, exact)


def test_the_estimate_at_the_sample_is_the_difference_of_the_densities() -> None:
    mu, logvar, m, prior_logvar = PAIRS.unbind(-1)
    z, estimate = vf.reparameterize_kl(
        mu, logvar, prior=vf.Prior(m, prior_logvar), sample_shape=100_000, key=make_key(8),
        estimator="sample", reduction="none",
    )  # fmt: skip
    torch.testing.assert_close(estimate, log_ratio(z, PAIRS), rtol=1e-11, atol=1e-11)
    assert_within_error_bars(estimate[:, 1:], closed_form(PAIRS[1:]))
    assert (estimate[:, 1:] < 0).any(0).all()  # unlike a KL
    assert not estimate[:, 0].any()  # q is p


# --------------------------------------------------------------------------------------------------
# Networks output the log-variance
# --------------------------------------------------------------------------------------------------

# The raw scale from which each kind of scale computes a given sigma.
RAW_OF = {
    "logvar": lambda s: 2.0 * s.log(),
    "std": lambda s: s,
    "var": lambda s: s.square(),
    "softplus": lambda s: s + (-(-s).expm1()).log(),
}


def sigma_of(raw: Tensor, scale: str) -> Tensor:
    one = torch.ones_like(raw)
    return vf.reparameterize(torch.zeros_like(raw), raw, scale=scale, eps=one)


def test_every_real_number_is_a_log_variance() -> None:
    raw = torch.linspace(-170.0, 170.0, 10_001)
    sigma = sigma_of(raw, "logvar")
    assert (sigma > 0).all() and sigma.isfinite().all()
    for scale in ("std", "var"):
        assert sigma_of(raw[raw < 0], scale).isnan().all()
        assert vf.gaussian_kl(raw[:1], raw[:1], scale=scale).isnan()


def slopes_at(sigma: float, scale: str) -> tuple[float, float]:
    """Returns the derivatives of ln sigma and of the KL with respect to the raw scale."""
    raw = RAW_OF[scale](torch.tensor([sigma], dtype=F64)).requires_grad_()
    value = sigma_of(raw, scale)
    assert value.item() == pytest.approx(sigma, rel=1e-10)
    (of_log,) = torch.autograd.grad(value.log().sum(), raw)
    kl = vf.gaussian_kl(torch.zeros_like(raw), raw, scale=scale, reduction="sum")
    return of_log.item(), torch.autograd.grad(kl, raw)[0].item()


def rows_of_the_page(heading: str) -> dict[str, list[str]]:
    """Returns the rows of the first table after a heading, by the first column."""
    section = PAGE.read_text().split(f"## {heading}")[1].split("\n## ")[0]
    table = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)
    assert table is not None
    rows = [[c.strip() for c in line.strip("|\n").split("|")] for line in table[0].splitlines()]
    return {row[0].strip("`"): row[1:] for row in rows[2:]}


LOGVAR = "Networks output the log-variance"


@pytest.mark.parametrize("scale", [*RAW_OF])
def test_the_slopes_on_the_page(scale: str) -> None:
    row = [float(cell.replace("−", "-")) for cell in rows_of_the_page(LOGVAR)[scale]]
    want = [slope for sigma in (1e-3, 1.0, 1e3) for slope in slopes_at(sigma, scale)]
    assert row == pytest.approx(want, rel=6e-3, abs=1e-9)


def test_a_step_that_the_log_variance_survives_makes_a_variance_illegal() -> None:
    """Takes one step of 1e-3 (Adam's step at its default rate) from sigma = 0.01."""
    start = torch.tensor([0.01], dtype=F64)
    after = {k: sigma_of(RAW_OF[k](start) - 1e-3, k).item() / 0.01 for k in RAW_OF}
    assert after["logvar"] == pytest.approx(math.exp(-5e-4), rel=1e-12)
    assert after["softplus"] == pytest.approx(0.999, abs=1e-4)
    assert after["std"] == pytest.approx(0.9, rel=1e-12)
    assert math.isnan(after["var"])


def test_where_the_other_forms_lose_their_digits() -> None:
    f32 = torch.float32
    # For a log-variance x, e^x leaves the range at half of the |x| at which e^(x/2) leaves it.
    x = torch.tensor([-110.0, 100.0])
    assert x.exp().tolist() == [0.0, math.inf]
    assert 0 < (x[0] / 2).exp() < (x[1] / 2).exp() < math.inf
    half = torch.tensor([-18.0, 12.0], dtype=torch.float16)
    assert half.exp().tolist() == [0.0, math.inf] and (half / 2).exp().isfinite().all()
    assert (vf.gaussian_kl(half * 0, half, reduction="none") - (half.double().exp() - 1 - half) / 2
            ).abs().max() < 0.5  # fmt: skip
    # 1 + e^u rounds to 1 for u <= -17, and softplus itself underflows for u <= -104.
    u = torch.tensor([-17.0, -104.0, -1000.0])
    assert (1.0 + u.exp()).log().tolist() == [0.0, 0.0, 0.0]
    assert torch.nn.functional.softplus(u)[0] > 0 and torch.nn.functional.softplus(u)[1] == 0
    kl = vf.gaussian_kl(u * 0, u, scale="softplus", reduction="none")
    assert kl.tolist() == pytest.approx([16.5, 103.5, 999.5], rel=1e-6)
    # In float32, the variance of a sigma of 1e-23 or less is 0.
    small = torch.tensor(1e-23, dtype=f32)
    assert small.square() == 0 and sigma_of((2 * small.log()).reshape(1), "logvar") > 0
    # A log-variance has absolute precision: in bfloat16, its spacing near -9 changes sigma by 3 %.
    spacing = torch.tensor(-9.25, dtype=torch.bfloat16)
    after = torch.nextafter(spacing, torch.tensor(0.0, dtype=torch.bfloat16))
    assert math.exp((after - spacing).item() / 2) - 1 == pytest.approx(0.0317, rel=0.01)


# --------------------------------------------------------------------------------------------------
# The reparameterized gradient
# --------------------------------------------------------------------------------------------------


def test_the_reparameterized_gradient_is_unbiased() -> None:
    """Estimates the gradient of a linear model's expected -ln p(x|z), which is known exactly."""
    model, draws = linear_gaussian(1), 100_000
    mu, logvar = (t + 0.4 for t in model.posterior())
    leaves = [t.clone().requires_grad_() for t in (mu, logvar)]
    exact = torch.autograd.grad(model.expected_nll(*leaves).sum(), leaves)
    each = [t.expand(draws, 3).clone().requires_grad_() for t in (mu, logvar)]
    z = vf.reparameterize(*each, key=make_key(11))
    got = torch.autograd.grad(model.nll(z).sum(), each)
    for samples, want in zip(got, exact, strict=True):
        assert_within_error_bars(samples, want.squeeze(0))
        assert (SIGMAS * standard_error(samples) < 0.1 * want.abs().max()).all()
    # The gradient with respect to the log-variance is half of the gradient with respect to mu,
    # times the noise. Without the noise, it would be biased.
    wrong = 0.5 * got[0]
    off = (wrong.mean(0) - exact[1].squeeze(0)).abs() / standard_error(wrong)
    assert (off > SIGMAS).any()


def squared_errors(dims: int, draws: int, key: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns, for each draw, the squared errors of three estimates of a gradient.

    The gradient is that of E[|z|^2 / 2] with respect to mu, at mu = sigma = 1. The estimates use
    reparameterization, the score function, and the score function with the best baseline.
    """
    mu = torch.ones(draws, dims, dtype=F64, requires_grad=True)
    logvar = torch.zeros(draws, dims, dtype=F64)
    z = vf.reparameterize(mu, logvar, key=make_key(key))
    (pathwise,) = torch.autograd.grad(0.5 * z.square().sum(), mu)
    value = 0.5 * z.detach().square().sum(-1, keepdim=True)
    log_q = vf.gaussian_log_prob(z.detach(), mu, logvar, reduction="sum")
    (score,) = torch.autograd.grad(log_q, mu)
    baseline = dims + 1.0  # E[f s^2] / E[s^2], with f = |z|^2 / 2 and s = eps
    estimates = pathwise, score * value, score * (value - baseline)
    return tuple((g - 1.0).square().mean(-1) for g in estimates)  # type: ignore[return-value]


def variance_of_score(dims: int, baseline: float) -> float:
    """Returns the exact variance for one element, whose own noise is e.

    f is (A + B) / 2, where B = (1 + e)^2, and A is the sum of (1 + e)^2 over the other elements.
    """
    mean = 2.0 * (dims - 1)
    square = mean**2 + 6.0 * (dims - 1)
    f2 = (square + 2.0 * mean * 4.0 + 34.0) / 4.0  # E[f^2 e^2]
    f1 = (mean + 4.0) / 2.0  # E[f e^2]
    return f2 - 2.0 * baseline * f1 + baseline**2 - 1.0


UNBIASED = "The reparameterized gradient is unbiased"


@pytest.mark.parametrize(
    ("dims", "draws"), [(1, 200_000), (10, 50_000), (100, 10_000), (1000, 3000)]
)
def test_the_score_function_has_a_far_larger_variance(dims: int, draws: int) -> None:
    pathwise, score, with_baseline = squared_errors(dims, draws, key=dims)
    exact = variance_of_score(dims, 0.0), variance_of_score(dims, dims + 1.0)
    assert_within_error_bars(pathwise, torch.tensor(1.0, dtype=F64))
    assert_within_error_bars(score, torch.tensor(exact[0], dtype=F64))
    assert_within_error_bars(with_baseline, torch.tensor(exact[1], dtype=F64))
    for samples in (pathwise, score, with_baseline):
        assert SIGMAS * standard_error(samples) < 0.5 * samples.mean()
    row = [float(cell.replace(",", "")) for cell in rows_of_the_page(UNBIASED)[str(dims)]]
    assert row == pytest.approx(exact, rel=1e-9)


def gradients_off_the_posterior(u: float, *, stop_q: bool) -> tuple[Tensor, Tensor]:
    """Returns many one-sample gradients of -ELBO in mu and ln sigma^2. The latter is off by u."""
    model, draws = linear_gaussian(1), 100_000
    exact_mu, exact_logvar = model.posterior()
    leaves = [t.expand(draws, 3).clone().requires_grad_() for t in (exact_mu, exact_logvar + u)]
    z, log_ratio = vf.reparameterize_kl(
        *leaves, estimator="sample", stop_q=stop_q, reduction="sum", key=make_key(12)
    )
    return torch.autograd.grad(model.nll(z).sum() + log_ratio, leaves)


@pytest.mark.parametrize(
    ("u", "factor", "words"),
    [
        (0.1, 0.0091, "For u = 0.1 this is 0.91 %"),
        (0.01, 0.000099, "for u = 0.01 it is 0.0099 %"),
        (0.0, 0.0, "for u = 0 it is 0."),
        (-1.0, 2.95, "it is 2.95 for u = -1"),
    ],
)
def test_the_path_derivative_has_little_variance_near_the_posterior(
    u: float, factor: float, words: str
) -> None:
    """The gradient with respect to mu has the exact variance e^u / sigma_0^2.

    With `stop_q`, the variance is (1 - e^-u)^2 times that value.
    """
    exact_factor = math.expm1(-u) ** 2
    sigma_0 = (0.5 * linear_gaussian(1).posterior()[1]).exp().squeeze(0)
    means = torch.zeros(3, dtype=F64), torch.full((3,), math.expm1(u) / 2, dtype=F64)
    variances = math.exp(u) / sigma_0**2, torch.full((3,), math.exp(2 * u) / 2, dtype=F64)
    for stop_q, scale in ((False, 1.0), (True, exact_factor)):
        each = gradients_off_the_posterior(u, stop_q=stop_q)
        for samples, mean, variance in zip(each, means, variances, strict=True):
            if stop_q and u == 0.0:
                assert samples.abs().max() < 1e-12
                continue
            assert_within_error_bars(samples, mean)
            assert_within_error_bars((samples - mean).square(), scale * variance)
    assert factor == pytest.approx(exact_factor, rel=6e-3)
    assert words in " ".join(PAGE.read_text().split())


# --------------------------------------------------------------------------------------------------
# The importance-weighted bound
# --------------------------------------------------------------------------------------------------


def log_weights(draws: int, samples: int) -> tuple[LinearGaussian, Tensor, Tensor, Tensor]:
    """Returns a model, its exact ELBO for an approximate posterior q, and sample terms.

    The terms are the nll and log q/p of samples drawn from q, each of shape (K, draws).
    """
    model = linear_gaussian(1)
    mu, logvar = (t + 0.5 for t in model.posterior())
    z = vf.reparameterize(mu, logvar, sample_shape=(samples, draws), key=make_key(13)).squeeze(-2)
    elbo = exact_elbo(model, mu, logvar)
    return model, elbo, model.nll(z), model.log_ratio(z, mu, logvar)


KS = (1, 2, 4, 8, 16, 32, 64)


def test_the_importance_weighted_bound_rises_to_the_evidence() -> None:
    model, elbo, nll, log_ratio = log_weights(draws=20_000, samples=64)
    evidence = model.log_evidence().item()
    bounds = [-vf.iwae_loss(nll, log_ratio, groups=64 // k, reduction="none").loss for k in KS]
    # By Jensen's inequality, the mean of two halves' bounds is at most the bound of the whole, in
    # each draw.
    for fewer, more in itertools.pairwise(bounds):
        assert (more - fewer > -1e-12).all()
        gain = more - fewer
        assert gain.mean() > SIGMAS * standard_error(gain)
    for bound in bounds:
        assert bound.mean() < evidence + SIGMAS * standard_error(bound)
    assert_within_error_bars(bounds[0], elbo[0])
    gaps = [evidence - bound.mean().item() for bound in bounds]
    assert gaps[0] > 0.3 and gaps[-1] < 0.03 * gaps[0]
    variance = (-nll - log_ratio - evidence).exp().var().item()
    assert gaps[-1] == pytest.approx(variance / (2 * 64), rel=0.1)
    # Without the division by K, the bound would exceed the evidence, and the test would fail.
    too_high = bounds[2] + math.log(4.0)
    assert too_high.mean() > evidence + SIGMAS * standard_error(too_high)


def test_the_mean_weight_is_the_evidence() -> None:
    model, _, nll, log_ratio = log_weights(draws=200_000, samples=1)
    ratio = (-nll - log_ratio - model.log_evidence())[0].exp()
    assert_within_error_bars(ratio, torch.tensor(1.0, dtype=F64))
    assert SIGMAS * standard_error(ratio) < 0.1


def test_one_sample_is_the_elbo() -> None:
    _, _, nll, log_ratio = log_weights(draws=100, samples=1)
    loss = vf.iwae_loss(nll, log_ratio, reduction="none").loss
    torch.testing.assert_close(-loss, (-nll - log_ratio)[0], rtol=1e-14, atol=1e-14)


# --------------------------------------------------------------------------------------------------
# The page
# --------------------------------------------------------------------------------------------------


def test_the_page_names_tests_and_figures_that_exist() -> None:
    page = PAGE.read_text()
    names = re.findall(r"`(test_\w+)`", page)
    assert len(names) >= 7 and all(name in globals() for name in names)
    figures = re.findall(r"!\[[^]]+\]\((figures/\w+\.png)\)", page)
    assert len(figures) == len(set(figures)) == len(re.findall("^## ", page, re.MULTILINE)) == 7
    assert all((PAGE.parent / figure).stat().st_size < 60_000 for figure in figures)


@pytest.mark.packages
def test_the_script_draws_the_figures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = ROOT / "examples" / "theory_figures.py"
    spec = importlib.util.spec_from_file_location("theory_figures", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        module.main(["--quick", "--out", str(tmp_path / "new")])
    finally:
        del sys.modules[spec.name]
    drawn = sorted(p.name for p in (tmp_path / "new").iterdir())
    page = (ROOT / "docs" / "theory.md").read_text()
    assert drawn == sorted(re.findall(r"\(figures/(\w+\.png)\)", page))
    from matplotlib.image import imread

    for name in drawn:
        image = imread(tmp_path / "new" / name)
        assert min(image.shape[:2]) > 200 and image[..., :3].std() > 0.05
