"""Pyro: a guide that uses DiagonalGaussian, trained with samples and with closed-form KLs.

Pyro's own Independent turns a distribution into one site. Pyro's mixin turns each element into one.
"""

from __future__ import annotations

import contextlib

import pytest
import torch

import vae_fused as vf
from vae_fused.compat.distributions import Normal

pytestmark = pytest.mark.packages
pyro = pytest.importorskip("pyro")
from pyro import distributions, optim  # noqa: E402
from pyro.distributions.torch_distribution import TorchDistributionMixin  # noqa: E402
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO  # noqa: E402

N, DIM, NOISE = 16, 3, 0.5


@pytest.fixture(autouse=True)
def fresh_parameters():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def model(x=None):
    zero, one = torch.zeros(N, DIM), torch.ones(N, DIM)
    with plates():
        z = pyro.sample("z", distributions.Normal(zero, one))
        if x is not None:
            pyro.sample("x", distributions.Normal(z, NOISE), obs=x)


def guide(x=None):
    mu = pyro.param("mu", torch.full((N, DIM), 0.5))
    raw = pyro.param("raw", torch.full((N, DIM), -0.25))
    with plates():
        pyro.sample("z", Site(mu, raw, scale="logstd"))


class Site(vf.DiagonalGaussian, TorchDistributionMixin):
    pass


@contextlib.contextmanager
def plates():
    with pyro.plate("data", N, dim=-2), pyro.plate("latent", DIM, dim=-1):
        yield


def test_the_closed_form_elbo_of_a_prior_alone_is_the_fused_kl():
    loss = TraceMeanField_ELBO().loss_and_grads(model, guide)
    mu, raw = (pyro.param(name) for name in ("mu", "raw"))
    found = [p.unconstrained().grad for p in (mu, raw)]
    assert all(g is not None for g in found)
    kl = vf.gaussian_kl(mu, raw, scale="logstd", reduction="sum")
    torch.testing.assert_close(torch.tensor(loss), kl.detach(), rtol=1e-5, atol=0.0)
    expected = torch.autograd.grad(kl, [mu, raw])
    torch.testing.assert_close(found, list(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["site", "class", "site of a Normal", "class Normal"])
def test_the_adapters_make_sites(form):
    """`pyro.sample` rejects a distribution without an adapter. An adapter turns it into a site."""
    from vae_fused.compat import pyro as compat

    raw = torch.full((N, DIM), -0.25)
    make = {
        "site": lambda mu: compat.site(vf.DiagonalGaussian(mu, raw, scale="logstd")),
        "class": lambda mu: compat.DiagonalGaussian(mu, raw, scale="logstd"),
        "site of a Normal": lambda mu: compat.site(Normal(mu, raw.exp())),
        "class Normal": lambda mu: compat.Normal(mu, raw.exp()),
    }[form]
    with pytest.raises(TypeError, match="not callable"):
        pyro.sample("z", vf.DiagonalGaussian(raw, raw))

    def adapted(x=None):
        with plates():
            pyro.sample("z", make(pyro.param("mu", torch.full((N, DIM), 0.5))))

    def theirs(x=None):
        with plates():
            mu = pyro.param("mu", torch.full((N, DIM), 0.5))
            pyro.sample("z", distributions.Normal(mu, raw.exp()))

    found = []
    for this_guide in (adapted, theirs):
        pyro.clear_param_store()
        loss = TraceMeanField_ELBO().loss_and_grads(model, this_guide)
        found.append((torch.tensor(loss), pyro.param("mu").unconstrained().grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)
    q = make(torch.zeros(N, DIM))
    assert compat.site(q) is q
    event = q.to_event(1).mask(torch.arange(N) < 4)
    want = distributions.Normal(0.0, raw.exp()).to_event(1).mask(torch.arange(N) < 4)
    value = torch.randn(N, DIM)
    torch.testing.assert_close(event.log_prob(value), want.log_prob(value))
    assert type(q.expand((2, N, DIM))) is type(q)
    assert pyro.sample("z", q).shape == (N, DIM)


def test_another_distribution_is_not_adapted():
    from vae_fused.compat.pyro import site

    class Mine(vf.DiagonalGaussian):
        pass

    for q in (torch.distributions.Normal(0.0, 1.0), Mine(0.0, 0.0)):
        with pytest.raises(TypeError, match=r"q must be a vae_fused.DiagonalGaussian .* derive a"):
            site(q)


def test_independent_makes_events():
    q = distributions.Independent(vf.DiagonalGaussian(torch.zeros(N, DIM), torch.zeros(N, DIM)), 1)
    with pyro.plate("data", N):
        z = pyro.sample("z", q)
    trace = pyro.poutine.trace(lambda: pyro.sample("z", q.mask(False))).get_trace()
    assert z.shape == (N, DIM) and q.log_prob(z).shape == (N,)
    assert trace.log_prob_sum().item() == 0.0


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_a_guide_finds_the_posterior(elbo):
    x = torch.randn(N, DIM) + 2.0
    svi = SVI(
        model, guide, optim.Adam({"lr": 0.05}), elbo(num_particles=8, vectorize_particles=False)
    )
    for _ in range(150):
        svi.step(x)
    variance = 1.0 / (1.0 + NOISE**-2)
    error = (pyro.param("mu") - variance * NOISE**-2 * x).abs().mean()
    assert error.item() < 0.1
    assert (2.0 * pyro.param("raw")).exp().mean().item() == pytest.approx(variance, rel=0.15)
