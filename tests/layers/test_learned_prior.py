"""Compares the module that owns a prior's parameters with torch.distributions."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from conftest import make_key, posterior, random
from option_recipes import SCALES
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.func import functional_call, vmap

import vae_fused as vf

F64 = torch.float64
Q = posterior((5, 3), dtype=F64, seed=4)


def exact(mean, std):
    """The KL of ``Q`` from N(mean, std^2), computed by torch.distributions."""
    return kl_divergence(Normal(Q[0], (Q[1] / 2).exp()), Normal(mean, std)).sum(-1).mean()


class Model(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.prior = vf.nn.LearnedPrior(3, "logstd", dtype=F64, **options)

    def forward(self):
        return vf.gaussian_kl(*Q, prior=self.prior)


def gradients_are_exact(model: Model):
    """Require that the module's current parameters receive the gradient of the exact KL."""
    model.zero_grad()
    loss = model()
    loss.backward()
    mean, raw = (t.detach().requires_grad_() for t in (model.prior.mean, model.prior.raw))
    want = exact(mean, raw.exp())
    grads = torch.autograd.grad(want, [mean, raw])
    torch.testing.assert_close(loss, want, rtol=1e-12, atol=0.0)
    found = [model.prior.mean.grad, model.prior.raw.grad]
    torch.testing.assert_close(found, list(grads), rtol=1e-12, atol=1e-14)


def drawn(model: Model) -> Model:
    """Writes random values into the model's parameters, and returns the model."""
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.copy_(random(3, seed=i))
    return model


def test_gradients_reach_the_parameters_after_they_are_replaced():
    """A vf.Prior that is created in __init__ keeps the tensors that load_state_dict replaces."""
    model, state = Model(), drawn(Model()).state_dict()
    gradients_are_exact(drawn(model))
    model.load_state_dict(state, assign=True)
    gradients_are_exact(model)
    assert all(torch.equal(p, state[name]) for name, p in model.state_dict().items())


@pytest.mark.parametrize(
    "replaced",
    [copy.deepcopy, lambda m: m.to_empty(device="cpu"), lambda m: m.float().double()],
    ids=["deepcopy", "to_empty", "to"],
)
def test_gradients_reach_the_parameters_of_a_copy(replaced):
    gradients_are_exact(drawn(replaced(Model())))


def test_a_module_that_is_made_on_meta_is_initialized_by_reset_parameters():
    prior = vf.nn.LearnedPrior(3, "softplus", mean=-1.0, std=0.5, device="meta", dtype=F64)
    prior.to_empty(device="cpu").reset_parameters()
    want = exact(torch.tensor(-1.0, dtype=F64), torch.tensor(0.5, dtype=F64))
    torch.testing.assert_close(vf.gaussian_kl(*Q, prior=prior), want, rtol=1e-12, atol=0.0)


def test_functional_call_and_vmap_use_the_given_parameters():
    model = Model()
    many = {name: random(4, 3, seed=i, dtype=F64) for i, name in enumerate(model.state_dict())}
    got = vmap(lambda p: functional_call(model, p, ()))(many)
    pairs = zip(many["prior.mean"], many["prior.raw"].exp(), strict=True)
    torch.testing.assert_close(got, torch.stack([exact(*pair) for pair in pairs]))


@pytest.mark.parametrize("std", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("name", SCALES)
def test_std_is_the_initial_scale_of_every_kind(name, std):
    scale = SCALES[name]
    raws = torch.linspace(-40.0, 40.0, 4001, dtype=F64)
    reached = vf.DiagonalGaussian(torch.zeros_like(raws), raws, scale=scale).stddev
    reached = reached[reached.isfinite()]
    if not reached.min() <= std <= reached.max():
        with pytest.raises(ValueError, match=rf"std must be a sigma that .* can return, got {std}"):
            vf.nn.LearnedPrior(3, scale, std=std)
        return
    prior = vf.nn.LearnedPrior(3, scale, mean=0.25, std=std, dtype=F64)
    want = exact(torch.tensor(0.25, dtype=F64), torch.tensor(std, dtype=F64))
    torch.testing.assert_close(vf.gaussian_kl(*Q, prior=prior), want, rtol=1e-10, atol=0.0)


def test_what_is_not_learned_is_a_number():
    fixed = vf.nn.LearnedPrior(3, learn_mean=False, mean=0.5, dtype=F64)
    assert [*fixed.state_dict()] == ["raw"] and fixed().mean == 0.5
    both = vf.nn.LearnedPrior(learn_mean=False, learn_scale=False, std=2.0)
    assert not both.state_dict()
    want = exact(torch.tensor(0.0, dtype=F64), torch.tensor(2.0, dtype=F64))
    torch.testing.assert_close(vf.gaussian_kl(*Q, prior=both), want, rtol=1e-12, atol=0.0)


def test_every_function_takes_the_module():
    """A call with the module has the same result as a call with the prior that it returns."""
    prior = drawn(Model()).prior
    mu, raw = Q
    options = {"prior": prior}, {"prior": prior()}
    key, q = make_key(3), vf.DiagonalGaussian(mu, raw)
    output, x = random(5, 7, seed=8, dtype=F64), random(5, 7, seed=9, dtype=F64)
    for function in (
        lambda o: vf.reparameterize_kl(mu, raw, key=key, **o)[1],
        lambda o: vf.reparameterize_kl_moments(torch.cat([mu, raw], 1), key=key, **o)[1],
        lambda o: vf.gaussian_kl(mu, raw, **o),
        lambda o: vf.reference.gaussian_kl(mu, raw, **o),
        lambda o: vf.sampled_kl(mu, raw, **o),
        lambda o: vf.elbo_loss(output, x, mu, raw, likelihood="bernoulli", **o).loss,
        lambda o: vf.latent_stats(mu, raw, **o).kl,
        lambda o: vf.nn.GaussianKL()(mu, raw, **o),
        lambda o: vf.nn.ELBOLoss("mse")(output, x, mu, raw, **o).loss,
        lambda o: q.kl(**o),
        lambda o: q.rsample_kl(key=key, **o)[1],
    ):
        got, want = (function(o) for o in options)
        assert torch.equal(got, want) and not torch.equal(got, function({}))


def test_the_list_call_takes_a_prior():
    fixed = vf.nn.LearnedPrior(learn_mean=False, learn_scale=False, std=0.5)
    _, kl = vf.reparameterize_kl_multi([Q[0]], [Q[1]], prior=fixed)
    want = 5 * exact(torch.tensor(0.0, dtype=F64), torch.tensor(0.5, dtype=F64))
    torch.testing.assert_close(kl, want, rtol=1e-12, atol=0.0)
    learned = vf.nn.LearnedPrior(3, std=0.5)
    _, kl = vf.reparameterize_kl_multi([Q[0]], [Q[1]], prior=learned)
    torch.testing.assert_close(kl, want, rtol=1e-6, atol=0.0, check_dtype=False)
    single = vf.gaussian_kl(*Q, prior=learned, reduction="sum")
    expected = torch.autograd.grad(single, learned.parameters())
    for got, one in zip(torch.autograd.grad(kl, learned.parameters()), expected, strict=True):
        torch.testing.assert_close(got, one)


def test_compiled_code_follows_the_parameters():
    model = drawn(Model())
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for seed in (11, 12):
        model.load_state_dict({"prior.mean": random(3, seed=seed, dtype=F64)}, strict=False)
        torch.testing.assert_close(compiled(), exact(model.prior.mean, model.prior.raw.exp()))


def test_a_module_that_returns_no_prior_is_named():
    with pytest.raises(TypeError, match=r"prior must be a vf.Prior, a module .*, got tuple"):
        vf.gaussian_kl(*Q, prior=Tuple())


class Tuple(nn.Module):
    def forward(self):
        return 0.0, 1.0


@pytest.mark.parametrize(
    ("args", "options", "error", "text"),
    [
        ((3, "log_var"), {}, ValueError, "scale must be one of .*, got 'log_var'"),
        ((3,), {"mean": math.nan}, ValueError, "mean must be a finite number, got nan"),
        ((3,), {"mean": torch.zeros(3)}, TypeError, "mean must be a number, got Tensor"),
        ((3,), {"std": 0.0}, ValueError, "std must be above 0, got 0.0"),
        (
            (3, "sigmoid2"),
            {"std": 2.5},
            ValueError,
            "std must be a sigma that Scale.* can return, got 2.5",
        ),
        (
            (3, vf.Scale(clamp=(0.0, 1.0))),
            {"std": 0.5},
            ValueError,
            "std must be a sigma that .* can return",
        ),
        (
            (3, vf.Scale(std_min=0.5)),
            {"std": 0.2},
            ValueError,
            "std must be a sigma that .* can return",
        ),
        (
            (3, vf.Scale("std", std_floor=0.5)),
            {"std": 0.2},
            ValueError,
            "std must be a sigma that .* can return",
        ),
        (
            (3, vf.Scale(soft_clamp=1.0)),
            {"std": 9.0},
            ValueError,
            "std must be a sigma that .* can return",
        ),
    ],
)
def test_bad_arguments(args, options, error, text):
    with pytest.raises(error, match=text):
        vf.nn.LearnedPrior(*args, **options)


def test_its_text():
    assert repr(vf.nn.LearnedPrior(3)) == "LearnedPrior((3,), 'logvar')"
    prior = vf.nn.LearnedPrior((4, 1), "std", mean=1.0, std=2.0, learn_mean=False)
    assert repr(prior) == "LearnedPrior((4, 1), 'std', mean=1.0, std=2.0, learn_mean=False)"
