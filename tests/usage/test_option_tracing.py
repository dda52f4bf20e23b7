"""Every option works with torch.compile, make_fx, meta tensors, and torch.vmap of the reference."""

from __future__ import annotations

import pytest
import torch
from conftest import make_key, random
from option_recipes import FOR_SAMPLE, OPTIONS, arguments, mask_of, only, tensors
from torch.fx.experimental.proxy_tensor import make_fx

import vae_fused as vf

# Of several options that differ only in the formula, one represents them all.
TRACED = (
    "softplus", "everything", "clamp from below", "mu soft clamp", "prior of numbers",
    "prior that broadcasts", "prior with a scale alone", "prior, std", "mask",
    "mask that broadcasts", "free bits", "balance", "temperature", "two more dimensions",
)  # fmt: skip
DYNAMIC = ("softplus", "prior that broadcasts", "mask that broadcasts", "one more dimension")
CALLS = [(name, False) for name in TRACED] + [(name, True) for name in DYNAMIC]


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def inputs_of(name):
    """Returns a call's tensors, including its mask."""
    named = {k: v.detach() for k, v in tensors(OPTIONS[name]).items()}
    return named if (mask := mask_of(OPTIONS[name])) is None else {**named, "mask": mask}


def step(name):
    """Returns a function of tensors that creates its own prior, as a model does."""
    recipe = {k: v for k, v in OPTIONS[name].items() if k != "mask"}

    def function(named):
        mask = {"mask": named["mask"]} if "mask" in named else {}
        z, kl = vf.reparameterize_kl(
            named["mu"], named["raw"], eps=named["eps"], **arguments(recipe, named), **mask
        )
        return (z * z).sum() + kl

    return function


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(("name", "dynamic"), CALLS)
def test_every_option_compiles_whole(name, dynamic):
    function = step(name)
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    results = []
    for f in (function, compiled):
        named = inputs_of(name)
        leaves = [v.requires_grad_() for v in named.values() if v.is_floating_point()]
        loss = f(named)
        results.append([loss, *torch.autograd.grad(loss, leaves)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("dynamic", [False, True])
def test_scales_and_priors_may_be_made_inside(dynamic):
    def function(mu, raw, m, s, mask, temperature):
        scale = vf.Scale("softplus", clamp=(-3.0, 5.0), std_floor=0.1)
        prior = vf.Prior(m, s, vf.Scale("logstd", soft_clamp=4.0))
        fixed = vf.Prior(torch.zeros(5), torch.ones(3, 1), "std")  # known and unknown sizes
        z, kl = vf.reparameterize_kl(
            mu, raw, scale=scale, prior=prior, mask=mask, reduction="mean",
            temperature=temperature, eps=m,
        )  # fmt: skip
        density = vf.gaussian_log_prob(z, m, s, scale="logstd", dim=1)
        return z, kl, density, vf.sampled_kl(mu, raw, prior=fixed, mask=mask)

    inputs = (*random(4, 3, 5), random(3, 5, seed=9) > 0)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for temperature in (0.5, 0.7):  # as a schedule changes it
        torch.testing.assert_close(compiled(*inputs, temperature), function(*inputs, temperature))


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("name", ["softplus", "prior of tensors", "mask", "two more dimensions"])
def test_make_fx(name, mode):
    function, named = step(name), inputs_of(name)
    traced = make_fx(function, tracing_mode=mode)(named)
    torch.testing.assert_close(traced(named), function(named))


@pytest.mark.parametrize("name", OPTIONS)
def test_meta_tensors_give_shapes_without_data(name):
    leaves = {k: v.detach() for k, v in tensors(OPTIONS[name]).items()}
    want = vf.reparameterize_kl(leaves["mu"], leaves["raw"], **arguments(OPTIONS[name], leaves))
    leaves = {k: v.to("meta") for k, v in leaves.items()}
    got = vf.reparameterize_kl(leaves["mu"], leaves["raw"], **arguments(OPTIONS[name], leaves))
    for g, w in zip(got, want, strict=True):
        assert g.is_meta and g.shape == w.shape and g.dtype == w.dtype


@pytest.mark.parametrize("name", [n for n in OPTIONS if "broadcast" not in n and "rows" not in n])
def test_the_reference_is_vectorised(name):
    recipe = OPTIONS[name]
    leaves = {k: v.detach() for k, v in tensors(recipe).items() if k != "eps"}
    kwargs = arguments(recipe, leaves)
    shared = {
        k: v for k, v in kwargs.items() if k not in FOR_SAMPLE or k in ("scale", "mu_soft_clamp")
    }
    shared.pop("prior", None)

    def kl(mu, raw):
        return vf.reference.gaussian_kl(mu, raw, reduction="none", **shared)

    got = torch.vmap(kl)(leaves["mu"], leaves["raw"])
    torch.testing.assert_close(got, kl(leaves["mu"], leaves["raw"]))
    sample = only(kwargs, "scale", "mu_soft_clamp", "temperature")
    key = make_key(1)
    z = torch.vmap(lambda m, r: vf.reference.reparameterize(m, r, key=key, **sample))(
        leaves["mu"], leaves["raw"]
    )
    torch.testing.assert_close(
        z[2], vf.reference.reparameterize(leaves["mu"][2], leaves["raw"][2], key=key, **sample)
    )
