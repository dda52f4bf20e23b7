"""In Pyro: a guide of DiagonalGaussians, by samples and by KLs in closed form.

Pyro's own Independent makes a site of one as it is; Pyro's mixin makes a site of each element.
"""

from __future__ import annotations

import contextlib

import pytest
import torch

import vae_fused as vf

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
    wanted = torch.autograd.grad(kl, [mu, raw])
    torch.testing.assert_close(found, list(wanted), rtol=1e-5, atol=1e-6)


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
