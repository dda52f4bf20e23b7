"""Distributions and modules accept the functions' options, such as scales, priors and masks."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from conftest import DTYPES, make_key, random
from option_recipes import (
    FOR_KL,
    FOR_SAMPLE,
    OPTIONS,
    SCALES,
    SHAPE,
    arguments,
    only,
    sigma_of,
    tensors,
)
from torch.distributions import Normal, kl_divergence

import vae_fused as vf

F64 = torch.float64
# A distribution has no soft clamp of mu.
RECIPES = [name for name, recipe in OPTIONS.items() if "mu_soft_clamp" not in recipe]


def gaussian(name, dtype=F64, device="cpu", seed=0):
    """Returns a DiagonalGaussian, the equivalent Normal, and their leaves."""
    leaves = tensors({"scale": SCALES[name]}, dtype, device, seed)
    mu, raw = leaves["mu"], leaves["raw"]
    normal = Normal(mu.double(), sigma_of(raw, SCALES[name]), validate_args=False)
    return vf.DiagonalGaussian(mu, raw, scale=SCALES[name]), normal, [mu, raw]


# --------------------------------------------------------------------------------------------------
# DiagonalGaussian
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCALES)
def test_a_distribution_of_any_scale_is_that_normal(name, device):
    q, _, (mu, raw) = gaussian(name, device=device)
    value = random(2, *SHAPE, seed=9, dtype=F64, device=device)
    inside = random(*SHAPE, seed=8, dtype=F64, device=device).sigmoid()
    for read in (
        lambda q: q.scale,
        lambda q: q.stddev,
        lambda q: q.variance,
        lambda q: q.log_prob(value),
        lambda q: q.cdf(value),
        lambda q: q.icdf(inside),
        lambda q: q.entropy(),
        lambda q: q.expand((2, *SHAPE)).log_prob(value),
        lambda q: kl_divergence(q, Normal(0.3, 0.7)),
    ):
        normal = Normal(mu, sigma_of(raw, SCALES[name]), validate_args=False)
        got, want = read(q), read(normal)
        torch.testing.assert_close(got, want)
        grads = [
            torch.autograd.grad(t.sum(), [mu, raw], allow_unused=True, materialize_grads=True)
            for t in (got, want)
        ]
        torch.testing.assert_close(*grads)
    torch.testing.assert_close(q.logvar, 2 * torch.log(normal.scale))


@pytest.mark.parametrize("p", SCALES)
@pytest.mark.parametrize("q", ["logvar", "softplus", "everything"])
def test_the_kl_of_any_two_scales(q, p, device):
    q, normal_q, leaves_q = gaussian(q, device=device)
    p, normal_p, leaves_p = gaussian(p, device=device, seed=5)
    want = kl_divergence(normal_q, normal_p)
    leaves = leaves_q + leaves_p
    gradients = torch.autograd.grad(want.sum(), leaves, retain_graph=True)
    for got in (
        kl_divergence(q, p),
        kl_divergence(q, normal_p),
        kl_divergence(normal_q, p),
        q.kl(prior=p, reduction="none"),
        q.kl(prior=vf.Prior(p.mu, p.raw, p._scale), reduction="none"),
        q.rsample_kl(prior=normal_p, reduction="none")[1],
    ):
        torch.testing.assert_close(got, want)
        grads = torch.autograd.grad(got.sum(), leaves, retain_graph=True)
        torch.testing.assert_close(grads, gradients)


@pytest.mark.parametrize("shapes", [((3, 1), (4,)), ((), (2, 3)), ((3,), ()), ((1, 4), (2, 3, 1))])
def test_either_side_of_a_kl_may_enlarge_the_other(shapes, device):
    (mu, raw), (m, s) = (
        random(2, *shape, seed=i, dtype=F64, device=device) for i, shape in enumerate(shapes)
    )
    q, p = vf.DiagonalGaussian(mu, raw), vf.DiagonalGaussian(m, s.exp(), scale="std")
    want = kl_divergence(Normal(mu, torch.exp(raw / 2)), Normal(m, s.exp()))
    torch.testing.assert_close(kl_divergence(q, p), want)


@pytest.mark.parametrize("name", RECIPES)
def test_samples_and_kls_are_those_of_the_functions(name, device):
    recipe = OPTIONS[name]
    leaves = {k: v.detach() for k, v in tensors(recipe, torch.float32, device).items()}
    mu, raw = leaves["mu"], leaves["raw"]
    kwargs, key = arguments(recipe, leaves), {"key": make_key(6, device=device)}
    z, kl = vf.reparameterize_kl(mu, raw, **kwargs, **key)
    scale = kwargs.pop("scale", "logvar")
    q = vf.DiagonalGaussian(mu, raw, scale=scale)
    packed = vf.DiagonalGaussian.from_moments(torch.cat([mu, raw], 1), 1, scale=scale)
    for d in (q, packed, copy.deepcopy(q)):
        got = d.rsample_kl(**kwargs, **key)
        assert torch.equal(got[0], z) and torch.equal(got[1], kl)
        assert torch.equal(d.kl(**only(kwargs, *FOR_KL)), kl)
        assert torch.equal(d.rsample(**only(kwargs, *FOR_SAMPLE), **key), z)
        assert torch.equal(d.sample(**only(kwargs, *FOR_SAMPLE), **key), z)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(dtype, device):
    mu, std = random(2, 3, 4, dtype=dtype, device=device)
    q = vf.DiagonalGaussian(mu, std.abs() + 0.1, scale="std")
    for value in (q.logvar, q.scale, q.variance, q.rsample(), q.sample(2)):
        assert value.dtype == dtype
    wide = F64 if dtype == F64 else torch.float32
    for value in (q.log_prob(mu), q.entropy(), q.kl(), kl_divergence(q, Normal(0.0, 1.0))):
        assert value.dtype == wide
    assert torch.equal(q.scale, std.abs() + 0.1)


def test_what_a_distribution_shows_and_refuses():
    mu, raw = torch.zeros(3, 4), torch.ones(3, 4)
    q = vf.DiagonalGaussian(mu, raw, scale="std")
    assert repr(q) == "DiagonalGaussian(mu: torch.Size([3, 4]), std: torch.Size([3, 4]))"
    with pytest.raises(ValueError, match="parameter logvar"):
        vf.DiagonalGaussian(mu, -raw, scale="std", validate_args=True)
    with pytest.raises(TypeError, match="std must be a Tensor, got list"):
        vf.DiagonalGaussian(mu, [1.0], scale="std")
    with pytest.raises(ValueError, match=r"scale must be one of .* or a vf\.Scale, got 'x'"):
        vf.DiagonalGaussian.from_moments(mu, scale="x")
    with pytest.raises(TypeError, match=r"prior must be a vf\.Prior, .* or None, got Laplace"):
        q.kl(prior=torch.distributions.Laplace(0.0, 1.0))


# --------------------------------------------------------------------------------------------------
# Modules
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIONS)
def test_modules_are_the_functions(name):
    recipe = OPTIONS[name]
    leaves = {k: v.detach() for k, v in tensors(recipe, torch.float32).items()}
    mu, raw, key = leaves["mu"], leaves["raw"], make_key(6)
    kwargs = arguments(recipe, leaves)
    z, kl = vf.reparameterize_kl(mu, raw, key=key, **kwargs)
    sampling = vf.nn.Reparameterize(**only(kwargs, "scale", "mu_soft_clamp", "temperature"))
    each = only(kwargs, "mask", "sample_shape")
    assert torch.equal(sampling(mu, raw, key=key, **each), z)
    at_zero = {**only(kwargs, *FOR_SAMPLE), "temperature": 0.0}
    torch.testing.assert_close(
        sampling.eval()(mu, raw, **each), vf.reparameterize(mu, raw, **at_zero)
    )
    options = only(kwargs, "scale", "mu_soft_clamp", "free_bits", "balance")
    each = only(kwargs, "prior", "mask")
    assert torch.equal(vf.nn.GaussianKL(**options)(mu, raw, **each), kl)
    loss = vf.nn.ELBOLoss("mse", **options)
    got = loss(mu, mu + 1, mu, raw, **each)
    torch.testing.assert_close(got, loss(mu, mu + 1, kl=kl))


def test_modules_show_what_is_no_default():
    scale = vf.Scale("softplus", std_floor=0.1)
    assert repr(vf.nn.Reparameterize()) == "Reparameterize()"
    assert repr(vf.nn.Reparameterize("std", temperature=0.5)) == (
        "Reparameterize(scale='std', temperature=0.5)"
    )
    kl = vf.nn.GaussianKL(scale=scale, free_bits=0.5)
    assert repr(kl) == f"GaussianKL(reduction='batchmean', scale={scale!r}, free_bits=0.5)"
    assert "balance=(0.2, 0.8)" in repr(vf.nn.ELBOLoss("mse", balance=(0.2, 0.8)))


def test_half_precision_means_are_rounded_once():
    mu = random(50, dtype=torch.bfloat16)
    z = vf.nn.Reparameterize(mu_soft_clamp=2.0).eval()(mu, mu)
    assert torch.equal(z, (2 * torch.tanh(mu.float() / 2)).bfloat16())


X, Q = torch.rand(4, 3), (torch.zeros(4, 2), torch.zeros(4, 2))
BAD = [
    (lambda: vf.nn.Reparameterize("sigma"), ValueError, "scale must be one of .*, got 'sigma'"),
    (
        lambda: vf.nn.Reparameterize(temperature=-1),
        ValueError,
        "temperature must be at least 0, got -1",
    ),
    (lambda: vf.nn.GaussianKL(free_bits="1"), TypeError, "free_bits must be a number, got str"),
    (lambda: vf.nn.GaussianKL(balance=0.5), TypeError, "balance must be a pair"),
    (lambda: vf.nn.ELBOLoss(mu_soft_clamp=0), ValueError, "mu_soft_clamp must be above 0, got 0"),
    (
        lambda: vf.nn.ELBOLoss(scale="std")(X, X, Q[0], Q[1][:3]),
        ValueError,
        "std must broadcast with the shape of mu",
    ),
    (
        lambda: vf.nn.ELBOLoss()(X, X, kl=X, prior=vf.Prior()),
        TypeError,
        "prior must come with mu and raw",
    ),
    (lambda: vf.nn.ELBOLoss()(X, X, kl=X, mask=X > 0), TypeError, "mask must come with mu and raw"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[b[2][:30] for b in BAD])
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_modules_and_distributions_compile_whole():
    scale, prior = vf.Scale("softplus", std_floor=0.1), vf.Scale("logstd", clamp=(-5, 5))
    elbo = vf.nn.ELBOLoss("mse", scale=scale, free_bits=0.1)
    sampling = vf.nn.Reparameterize(scale, temperature=0.7)

    def function(mu, raw, m, s, mask, key):
        z = sampling(mu, raw, key=key, mask=mask)
        terms = elbo(z, mu, mu, raw, prior=vf.Prior(m, s, prior), mask=mask)
        q = vf.DiagonalGaussian(mu, raw, scale=scale)
        p = vf.DiagonalGaussian(m, s, scale=prior)
        return terms, q.rsample_kl(prior=p, key=key, dim=1), kl_divergence(q, p), q.log_prob(m)

    torch._dynamo.reset()
    inputs = (*random(4, 3, 5), random(3, 5, seed=3) > 0, make_key(1))
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), function(*inputs))


@pytest.mark.parametrize("kind", ["float16", "float32", "float64", "int64", "int32"])
def test_numpy_scalars_are_numbers_of_priors_and_schedules(kind):
    scalar = getattr(np, kind)
    prior = vf.Prior(scalar(1), scalar(2), "std")
    assert type(prior.mean) is float and type(prior.raw) is float and prior.raw == 2.0
    mu = torch.zeros(3)
    want = vf.gaussian_kl(mu, mu, prior=vf.Prior(1.0, 2.0, "std"))
    assert torch.equal(vf.gaussian_kl(mu, mu, prior=prior), want)
    if "int" in kind:
        assert vf.nn.LinearSchedule(scalar(10), start=0.0, end=1.0).steps == 10
        assert vf.nn.LearnedPrior(scalar(3)).mean.shape == (3,)
