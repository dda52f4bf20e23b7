"""The KL estimated at the sample supports all features of autograd, transforms and compilers."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import REDUCTIONS, Calls, make_key, native, posterior, random
from option_recipes import SHAPE, arguments, log_ratio, tensors
from test_estimator import MODULES, SAMPLE, STOPPED, WAYS, call
from test_option_values import TOLERANCE, gradients
from torch.func import grad, jvp, vmap
from torch.utils.checkpoint import checkpoint

import vae_fused as vf

F64 = torch.float64

# --------------------------------------------------------------------------------------------------
# Derivatives of other kinds, and other ways to call
# --------------------------------------------------------------------------------------------------

SECOND = {
    "default": {},
    "samples": {"sample_shape": (2,), "temperature": 0.7},
    "prior": {"prior_mean": SHAPE, "prior_raw": (5,), "scale": "softplus", "mask": SHAPE},
    "balance": {"balance": (0.2, 0.8), "prior_mean": (5,), "prior_raw": (3, 1)},
}


@WAYS
@MODULES
@pytest.mark.parametrize("used", ["z and kl", "kl", "kl of drawn noise"])
@pytest.mark.parametrize("name", SECOND)
def test_second_derivatives(name, used, module, way, device):
    recipe, key, results = SECOND[name], make_key(5, device=device), []
    for is_oracle in (False, True):
        leaves = tensors(recipe, F64, device)
        noise = {"eps": leaves["eps"]}
        if used == "kl of drawn noise":
            noise = {"key": key}
            leaves["eps"] = vf.reference.normal(key, leaves["eps"].shape, dtype=F64)
        if is_oracle:
            z, kl = log_ratio(recipe, leaves, stop_q=way is STOPPED)
        else:
            options = {**arguments(recipe, leaves), **noise, **way}
            z, kl = module.reparameterize_kl(leaves["mu"], leaves["raw"], dim=(0, 2), **options)
        inputs = [leaf for leaf in leaves.values() if leaf.requires_grad]
        value = (kl.sum((-3, -1)) if is_oracle else kl).cos().sum()
        value = value + (z.sin().sum() if used == "z and kl" else 0.0)
        first = torch.autograd.grad(value, inputs, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
        results.append([*first, *second])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["default", "samples", "prior"])
def test_gradcheck(name, device):
    leaves = tensors(SECOND[name], F64, device)

    def function(*values):
        named = dict(zip(leaves, values, strict=True))
        return call(vf, SECOND[name], named, dim=(1, 2), **SAMPLE)

    values = tuple(leaves.values())
    assert torch.autograd.gradcheck(function, values, fast_mode=True, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, values, fast_mode=True)


@WAYS
@MODULES
def test_transforms(module, way):
    """Per-item gradients and tangents of a batch agree with the oracle's for each item."""
    mu, raw = random(2, 3, 4, dtype=F64)
    eps = random(3, 2, 4, seed=2, dtype=F64)

    def ratio(mu, raw, eps, function=module.reparameterize_kl):
        return function(mu, raw, eps=eps, sample_shape=2, reduction="sum", **way)[1]

    def truth(mu, raw, eps):
        return log_ratio({}, {"mu": mu, "raw": raw, "eps": eps}, stop_q=way is STOPPED)[1].sum(1)

    results = []
    for f in (ratio, truth):
        loss = lambda *x, f=f: f(*x).square().sum()  # noqa: E731
        batched = vmap(f)(mu, raw, eps)
        shared = vmap(f, (0, None, 0))(mu, raw[0], eps)
        slopes = vmap(grad(loss, (0, 1, 2)))(mu, raw, eps)
        tangents = vmap(lambda *x, f=f: jvp(f, x, x)[1])(mu, raw, eps)
        results.append((batched, shared, *slopes, tangents))
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-11)


def test_each_item_of_a_batch_draws_its_own_noise():
    mu, raw = torch.zeros(3, 4), torch.zeros(3, 4)
    draw = lambda *q: vf.reparameterize_kl(*q, sample_shape=2, reduction="none", **SAMPLE)  # noqa: E731
    z, kl = vmap(draw, randomness="different")(mu, raw + 1)
    assert kl.shape == (3, 2, 4) and len(kl.unique()) == kl.numel()
    eps = z * math.exp(-0.5)
    torch.testing.assert_close(kl, 0.5 * (z * z - eps * eps - 1.0))


@WAYS
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole(dynamic, way):
    def step(mu, raw, m, eps):
        z, ratio = vf.reparameterize_kl(
            mu,
            raw,
            prior=vf.Prior(m),
            eps=eps,
            sample_shape=eps.shape[0],
            reduction="sample",
            **way,
        )
        return vf.iwae_loss((z * z).sum(-1), ratio).loss

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for samples, batch in ((3, 4), (5, 6)) if dynamic else ((3, 4),):
        shapes = ((batch, 5), (batch, 5), (5,), (samples, batch, 5))
        leaves = [random(*s, seed=i).requires_grad_() for i, s in enumerate(shapes)]
        results = [[f(*leaves), *torch.autograd.grad(f(*leaves), leaves)] for f in (compiled, step)]
        torch.testing.assert_close(*results)


@WAYS
def test_checkpoints_keep_the_noise(way, device):
    mu, raw = posterior((4, 5), dtype=F64, device=device, requires_grad=True)

    def loss(mu, raw):
        z, kl = vf.reparameterize_kl(mu, raw, sample_shape=3, reduction="sample", **way)
        return z.square().sum() + kl.square().sum()

    results = []
    for function in (loss, lambda *q: checkpoint(loss, *q, use_reentrant=False)):
        torch.manual_seed(4)
        results.append(torch.autograd.grad(function(mu, raw), [mu, raw]))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@WAYS
@MODULES
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("samples", "batch"), [((0,), 3), ((2, 0), 3), ((2,), 0), ((), 0)])
def test_meta_and_empty_tensors(samples, batch, reduction, module, way, device):
    options = {"sample_shape": samples, "reduction": reduction, **way}
    mu = torch.zeros(batch, 4, device=device, requires_grad=True)
    z, kl = module.reparameterize_kl(mu, mu, **options)
    kept = {"none": (batch, 4), "sample": (batch,)}.get(reduction, ())
    assert z.shape == (*samples, batch, 4) and kl.shape == (*samples, *kept)
    assert kl.isnan().all() if reduction in ("mean", "batchmean") else not kl.any()
    assert not torch.autograd.grad(z.sum() + kl.sum(), mu)[0].any()
    meta = module.reparameterize_kl(mu.to("meta"), mu.to("meta"), **options)
    assert all(m.is_meta and m.shape == t.shape for m, t in zip(meta, (z, kl), strict=True))


@native
@WAYS
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", ["default", "number of samples", "samples", "mask", "prior"])
def test_the_direct_call_is_the_checked_call(name, dtype, way, device, monkeypatch):
    mu, raw, m, t = (random(4, 33, seed=i, dtype=dtype, device=device) for i in range(4))
    options = {
        "number of samples": {"sample_shape": 3}, "samples": {"sample_shape": (2, 3)},
        "mask": {"mask": m > 0, "sample_shape": 2}, "prior": {"prior": vf.Prior(m, t, "softplus")},
    }.get(name, {})  # fmt: skip
    results = []
    for closed in ("check_call", "native"):
        leaves = [x.clone().requires_grad_() for x in (mu, raw)]
        torch.manual_seed(6)
        with monkeypatch.context() as patch:
            if closed == "check_call":
                patch.setattr(vf.functional, "check_call", None)  # the direct call does not need it
            else:
                patch.setattr(vf._native.latent, "try_sample_and_kl", lambda *_: None)
            z, kl = vf.reparameterize_kl(*leaves, reduction="sample", **options, **way)
        results.append([z, kl, *torch.autograd.grad(z.sum() + kl.square().sum(), leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@WAYS
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("scale", ["logvar", "softplus"])
def test_the_sample_has_the_bits_of_a_call_without_an_estimate(scale, dtype, way, device):
    mu, raw = posterior((4, 33), dtype=dtype, device=device)
    options = {"scale": scale, "sample_shape": 3, "key": make_key(7, device=device)}
    z, _ = vf.reparameterize_kl(mu, raw, **options, **way)
    assert torch.equal(z, vf.reparameterize(mu, raw, **options))


@WAYS
@MODULES
def test_options_that_are_tensors_act_as_numbers(module, way, device):
    given = [torch.zeros((), device=device) for _ in range(3)]
    leaves = tensors({"sample_shape": 2, "prior_mean": SHAPE}, F64, device)

    def run(temperature, wq, wp):
        options = {"temperature": temperature, "balance": (wq, wp), "prior": prior, **way}
        return module.reparameterize_kl(
            leaves["mu"], leaves["raw"], eps=leaves["eps"], sample_shape=2, **options
        )

    prior, numbers = vf.Prior(leaves["prior_mean"]), (0.5, 0.25, 0.75)
    for tensor, number in zip(given, numbers, strict=True):
        tensor.fill_(number)
    results = [[*pair, *gradients(*pair, leaves)] for pair in (run(*given), run(*numbers))]
    torch.testing.assert_close(*results, rtol=1e-13, atol=1e-13)


@native
@WAYS
def test_each_direction_is_one_operator(way, device):
    mu, raw = posterior((4, 5), device=device, requires_grad=True)
    with Calls() as forward:
        z, kl = vf.reparameterize_kl(mu, raw, sample_shape=6, reduction="sample", **way)
    grads = torch.ones_like(z), torch.ones_like(kl)
    with Calls() as backward:
        torch.autograd.grad((z, kl), (mu, raw), grads)
    assert forward.names == ["vae_fused::reparameterize_kl.generator"]
    assert [n for n in backward.names if n != "aten::detach"] == [
        "vae_fused::reparameterize_kl_backward"
    ]


@native
@WAYS
def test_the_number_of_threads_changes_no_bit(way, threads):
    mu, raw = posterior((300, 257), requires_grad=True)
    results = []
    for count in (1, 2):
        threads(count)
        z, kl = vf.reparameterize_kl(
            mu, raw, sample_shape=3, reduction="sum", key=make_key(8), **way
        )
        results.append([z, kl, *torch.autograd.grad(z.sum() + kl.sum(), [mu, raw])])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@WAYS
@MODULES
def test_samples_feed_the_importance_weighted_bound(module, way, device):
    leaves = tensors({"sample_shape": 6}, F64, device)
    z, ratio = call(module, {"sample_shape": 6}, leaves, reduction="sample", **way)
    want_z, elements = log_ratio({}, leaves, stop_q=way is STOPPED)
    log_w = -want_z.cos().sum((2, 3)) - elements.sum((2, 3))
    want = -(log_w.logsumexp(0) - math.log(6)).mean()
    got = vf.iwae_loss(z.cos().sum((2, 3)), ratio).loss
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    slopes = (torch.autograd.grad(loss, [*leaves.values()]) for loss in (got, want))
    torch.testing.assert_close(*slopes, rtol=1e-10, atol=1e-10)
