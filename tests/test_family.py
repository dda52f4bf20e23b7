"""Scales, priors, masks, free bits, balance, temperature, sample shapes: alone and together."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import REDUCTIONS, make_key, random, relative, scaled
from family import (
    FOR_KL,
    FOR_SAMPLE,
    OPTIONS,
    SCALES,
    SHAPE,
    arguments,
    combinations,
    formula,
    mask_of,
    only,
    tensors,
    total,
)
from torch import Tensor

import vae_fused as vf

F64 = torch.float64
INF, NAN = math.inf, math.nan
COMBINATIONS = {f"combination {i}": r for i, r in enumerate(combinations(60, seed=1))}
EVERY = {**OPTIONS, **COMBINATIONS}
TOLERANCE = {F64: 1e-12, torch.float32: 4e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def gradients(z: Tensor, kl: Tensor, leaves: dict[str, Tensor], seed: int = 50) -> list[Tensor]:
    """Of a random combination of both outputs, with zeros for leaves that nothing depends on."""
    grads = [random(*t.shape, seed=seed + i, device=t.device.type) for i, t in enumerate((z, kl))]
    outputs = [(z, grads[0].to(z.dtype)), (kl, grads[1].to(kl.dtype))]
    outputs = [(t, g) for t, g in outputs if t.requires_grad]
    found = torch.autograd.grad(
        [t for t, _ in outputs], [*leaves.values()], [g for _, g in outputs], allow_unused=True
    )
    return [torch.zeros_like(v) if g is None else g for g, v in zip(found, leaves.values())]  # noqa: B905


# --------------------------------------------------------------------------------------------------
# Against the formulas
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", EVERY)
def test_values_and_gradients_are_the_formulas(name, dtype, device):
    recipe = EVERY[name]
    leaves = tensors(recipe, dtype, device)
    reduction = REDUCTIONS[len(name) % len(REDUCTIONS)]
    kwargs = arguments(recipe, leaves)
    z, kl = vf.reparameterize_kl(
        leaves["mu"], leaves["raw"], eps=leaves["eps"], reduction=reduction, **kwargs
    )
    doubles = {k: v.detach().double().requires_grad_() for k, v in leaves.items()}
    want_z, want_kl = formula(recipe, doubles)
    want_kl = total(want_kl, mask_of(recipe, device), reduction)
    assert z.dtype == dtype and kl.dtype == (F64 if dtype == F64 else torch.float32)
    assert z.shape == want_z.shape and kl.shape == want_kl.shape
    assert scaled(z, want_z) <= TOLERANCE[dtype]
    assert scaled(kl, want_kl) <= min(TOLERANCE[dtype], TOLERANCE[torch.float32])
    want = gradients(want_z, want_kl, doubles)
    for leaf, got, true in zip(leaves, gradients(z, kl, leaves), want, strict=True):
        assert got.dtype == dtype and got.shape == leaves[leaf].shape
        assert scaled(got, true) <= 4 * TOLERANCE[dtype], leaf


@pytest.mark.parametrize("name", EVERY)
def test_the_single_functions_and_the_packed_one_agree(name, device):
    recipe = EVERY[name]
    leaves = {k: v.detach() for k, v in tensors(recipe, torch.float32, device).items()}
    kwargs, noise = arguments(recipe, leaves), {"key": make_key(5, device=device)}
    z, kl = vf.reparameterize_kl(leaves["mu"], leaves["raw"], **kwargs, **noise)
    alone = vf.reparameterize(leaves["mu"], leaves["raw"], **only(kwargs, *FOR_SAMPLE), **noise)
    assert torch.equal(z, alone)
    alone = vf.gaussian_kl(leaves["mu"], leaves["raw"], **only(kwargs, *FOR_KL))
    torch.testing.assert_close(kl, alone, rtol=1e-6, atol=0.0)  # plain without a temperature
    h = torch.cat([leaves["mu"], leaves["raw"]], 1)
    got = vf.reparameterize_kl_moments(h, dim=1, **kwargs, **noise)
    assert torch.equal(got[0], z) and torch.equal(got[1], kl)


@pytest.mark.parametrize("name", EVERY)
def test_the_reference_agrees(name, device):
    recipe = EVERY[name]
    results = []
    for module in (vf, vf.reference):
        leaves = tensors(recipe, F64, device)
        kwargs, eps = arguments(recipe, leaves), leaves.pop("eps")
        z, kl = module.reparameterize_kl(
            leaves["mu"], leaves["raw"], eps=eps, reduction="sample", **kwargs
        )
        results.append([z, kl, *gradients(z, kl, leaves)])
    for got, want in zip(*results, strict=True):
        assert scaled(got, want) <= 1e-12


# --------------------------------------------------------------------------------------------------
# Finite differences
# --------------------------------------------------------------------------------------------------

# With balance the gradient is not that of the value.
SMOOTH = {k: r for k, r in OPTIONS.items() if "balance" not in r}
SMOOTH |= {
    f"combination {i}": {k: v for k, v in recipe.items() if k != "balance"}
    for i, recipe in enumerate(combinations(20, seed=2))
}


def small(recipe: dict[str, Any], device: str) -> tuple[Any, list[Tensor]]:
    """A function of the leaves, and the leaves, few enough for finite differences."""
    leaves = tensors(recipe, F64, device, seed=3)
    names = [*leaves]

    def function(*values: Tensor) -> tuple[Tensor, Tensor]:
        named = dict(zip(names, values, strict=True))
        kwargs = arguments(recipe, named)
        return vf.reparameterize_kl(
            named["mu"], named["raw"], eps=named["eps"], dim=(1, 2), **kwargs
        )

    return function, [*leaves.values()]


@pytest.mark.parametrize("name", SMOOTH)
def test_gradcheck(name, device):
    function, leaves = small(SMOOTH[name], device)
    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("name", ["softplus", "prior, std", "mask", "free bits", "everything"])
def test_gradcheck_of_each_element(name, device):
    function, leaves = small(OPTIONS[name], device)
    assert torch.autograd.gradcheck(function, leaves)


# --------------------------------------------------------------------------------------------------
# Scales
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_softplus_is_stable_for_any_input(beta, dtype, device):
    """The logarithm of sigma, and its gradient, stay right where sigma itself underflows."""
    raw = torch.tensor([-1000.0, -200.0, -60.0, 60.0, 1000.0], dtype=dtype, device=device)
    raw.requires_grad_()
    scale = vf.Scale("softplus", beta=beta)
    z, kl = vf.reparameterize_kl(
        torch.zeros_like(raw), raw, scale=scale, eps=torch.ones_like(raw), reduction="none"
    )
    u = raw.detach().double() * beta
    sigma = torch.where(u > 0, u, u.exp()) / beta
    log_variance = 2 * (torch.where(u > 0, u.abs().log(), u) - math.log(beta))
    close = {"rtol": 1e-6, "atol": 1e-30}
    torch.testing.assert_close(z.double(), sigma, **close)
    want = 0.5 * (sigma**2 - 1 - log_variance)
    torch.testing.assert_close(kl.double(), want, **close)
    (grad,) = torch.autograd.grad(kl.sum(), raw, retain_graph=True)
    slope = torch.where(u > 0, 1 / sigma, beta)  # of ln sigma
    torch.testing.assert_close(grad.double(), (sigma**2 - 1) * slope, **close)
    (grad,) = torch.autograd.grad(z.sum(), raw)
    torch.testing.assert_close(grad.double(), sigma * slope, **close)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("beta", [1e-6, 1.0, 1e6])
def test_softplus_keeps_its_logarithm_whatever_beta_is(beta, dtype, device):
    u = torch.linspace(-60, 60, 4001, dtype=F64, device=device)
    raw = (u / beta).to(dtype)
    sigma = torch.nn.functional.softplus(raw.double() * beta, threshold=1e4) / beta
    kl = vf.gaussian_kl(
        torch.zeros_like(raw), raw, scale=vf.Scale("softplus", beta=beta), reduction="none"
    )
    want = 0.5 * (sigma**2 - 1 - 2 * sigma.log())
    torch.testing.assert_close(kl.double(), want, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_sigmoid2_is_stable_for_any_input(dtype, device):
    raw = torch.tensor([-1000.0, -300.0, 300.0, 1000.0], dtype=dtype, device=device)
    raw.requires_grad_()
    kl = vf.gaussian_kl(torch.zeros_like(raw), raw, scale="sigmoid2", reduction="none")
    low = raw.detach().double() < 0
    log_variance = torch.where(low, raw.detach().double(), 0.0) + 2 * math.log(2.0)
    want = 0.5 * (torch.where(low, 0.0, 4.0) - 1 - log_variance)
    torch.testing.assert_close(kl.double(), want, rtol=1e-6, atol=0)
    (grad,) = torch.autograd.grad(kl.sum(), raw)
    torch.testing.assert_close(grad.double(), torch.where(low, -0.5, 0.0).double())


@pytest.mark.parametrize("kind", ["std", "var"])
def test_negative_std_and_variance_are_nan(kind, device):
    raw = torch.tensor([-1.0, 2.0], device=device)
    z, kl = vf.reparameterize_kl(torch.zeros_like(raw), raw, scale=kind, reduction="none")
    assert kl.isnan().tolist() == z.isnan().tolist() == [True, False]


def test_a_clamp_passes_the_gradient_at_its_bounds_and_none_outside(device):
    raw = torch.tensor([-2.0, -1.0, 0.5, 1.5, 3.0], device=device, requires_grad=True)
    mu = torch.zeros_like(raw)
    kl = vf.gaussian_kl(mu, raw, scale=vf.Scale(clamp=(-1.0, 1.5)), reduction="sum")
    (grad,) = torch.autograd.grad(kl, raw)
    want = 0.5 * torch.expm1(raw.detach()) * torch.tensor([0.0, 1, 1, 1, 0], device=device)
    torch.testing.assert_close(grad, want)


@pytest.mark.parametrize("create_graph", [False, True])
def test_the_gradient_of_a_soft_clamp_does_not_cancel(create_graph, device):
    """1 - tanh^2 has no digit left in float32 from 9 bounds on, where sech^2 is 6e-8."""
    x = torch.linspace(-14.0, 14.0, 29, device=device, requires_grad=True)
    z = vf.reparameterize(2 * x, torch.zeros_like(x), mu_soft_clamp=2.0, eps=torch.zeros_like(x))
    (grad,) = torch.autograd.grad(z.sum(), x, create_graph=create_graph)
    assert relative(grad.detach(), 2 / torch.cosh(x.detach().double()) ** 2) < 2e-5


FAR = {  # raw scales of q whose sigma leaves the range of float32, where ln sigma^2 does not
    "logvar": (-200.0, -176.0, 178.0, 200.0),
    "logstd": (-100.0, -88.0, 89.0, 100.0),
    "softplus": (-200.0, -104.0, -88.0),
    "sigmoid2": (-300.0, -177.0, -175.38),
    vf.Scale("softplus", beta=0.1): (-1000.0, -892.0, -878.0, -870.0),
}


@pytest.mark.parametrize("module", [vf, vf.reference])
@pytest.mark.parametrize("kind", FAR, ids=str)
def test_sigma_and_tau_may_leave_the_range_of_float32(kind, module, device):
    """Their quotient does not; and mu is the prior's mean, or far from it for so small a sigma."""
    near = torch.tensor([-3.0, -0.5, 0.0, 1e-3, 2.0])
    raw = torch.tensor(FAR[kind]).repeat_interleave(len(near))
    raws = {"raw": raw, "prior": (raw + near.repeat(len(FAR[kind])))}
    results = []
    for dtype, function in ((torch.float32, module), (F64, vf.reference)):
        leaves = {k: v.to(device, dtype).requires_grad_() for k, v in raws.items()}
        mu = torch.zeros_like(leaves["raw"]).requires_grad_()
        prior = vf.Prior(mu.detach().clone().requires_grad_(), leaves["prior"], kind)
        kl = function.gaussian_kl(mu, leaves["raw"], scale=kind, prior=prior, reduction="none")
        grads = torch.autograd.grad(kl.sum(), [mu, prior.mean, *leaves.values()])
        results.append([kl.detach().double(), *(g.double() for g in grads)])
    for got, truth in zip(*results, strict=True):
        # The logarithms' difference is rounded in units of their size.
        torch.testing.assert_close(got, truth, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("module", [vf, vf.reference])
@pytest.mark.parametrize(
    ("scale", "raw"),
    [
        (vf.Scale(clamp=(None, 150.0)), 160.0),
        (vf.Scale(clamp=(None, 190.0)), 200.0),
        (vf.Scale("logstd", clamp=(None, 100.0)), 101.0),
        (vf.Scale("logstd", clamp=(None, 100.0), var_floor=1e-3), 101.0),
        (vf.Scale("std", clamp=(0.0, 1.0)), -0.5),
        (vf.Scale("var", clamp=(0.0, 1.0)), -0.5),
        (vf.Scale(clamp=(-30.0, 20.0)), 50.0),
        (vf.Scale("softplus", clamp=(-30.0, 20.0), std_floor=0.1), 50.0),
    ],
    ids=str,
)
def test_beyond_a_clamp_not_even_an_infinite_gradient_passes(
    scale, raw, module, create_graph, device
):
    mu = torch.ones(1, device=device, requires_grad=True)
    raw = torch.tensor([raw], device=device, requires_grad=True)
    z, kl = module.reparameterize_kl(mu, raw, scale=scale, eps=torch.ones(1, device=device))
    for value, incoming in ((z, 1.0), (z, INF), (kl, 1.0)):
        outer = torch.full_like(value, incoming)
        (grad,) = torch.autograd.grad(
            value, raw, outer, retain_graph=True, create_graph=create_graph
        )
        assert grad.item() == 0.0
    prior = vf.Prior(mu, raw, scale)
    (grad,) = torch.autograd.grad(module.gaussian_kl(mu, mu, prior=prior), raw)
    assert grad.item() == 0.0


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("module", [vf, vf.reference])
def test_nan_passes_a_clamp_and_so_does_its_gradient(module, create_graph, device):
    """That of torch.clamp is 0, which hides it."""
    raw = torch.full((1,), NAN, device=device, requires_grad=True)
    mu, scale = torch.zeros(1, device=device), vf.Scale(clamp=(-30, 20))
    for value in module.reparameterize_kl(mu, raw, scale=scale):
        (grad,) = torch.autograd.grad(
            value.sum(), raw, create_graph=create_graph, retain_graph=True
        )
        assert value.isnan() and grad.isnan()


@pytest.mark.parametrize("module", [vf, vf.reference])
def test_a_floor_of_the_variance_does_not_square_a_large_sigma(module, device):
    scale = vf.Scale(var_floor=1e-3)
    raw = torch.tensor([80.0, 86.0, 88.0, 100.0, 150.0, 176.0], device=device, requires_grad=True)
    mu = torch.zeros_like(raw)
    z = module.reparameterize(mu, raw, scale=scale, eps=torch.ones_like(raw))
    (grad,) = torch.autograd.grad(z.sum(), raw)
    torch.testing.assert_close(z, torch.exp(0.5 * raw), rtol=2e-6, atol=0.0)
    torch.testing.assert_close(grad, 0.5 * torch.exp(0.5 * raw), rtol=4e-6, atol=0.0)
    kl = module.gaussian_kl(mu, raw, scale=scale, reduction="none", prior=vf.Prior(0.0, raw))
    torch.testing.assert_close(kl, torch.zeros_like(kl), rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("name", SCALES)
def test_the_kl_from_itself_is_zero_and_never_negative(name, dtype, device):
    recipe = {"scale": SCALES[name], "prior_mean": SHAPE, "prior_raw": SHAPE}
    leaves = tensors({**recipe, "prior_scale": SCALES[name]}, dtype, device)
    mu, raw = leaves["mu"], leaves["raw"]
    same = vf.Prior(mu, raw, SCALES[name])
    assert not vf.gaussian_kl(mu, raw, scale=SCALES[name], prior=same, reduction="none").any()
    for step in (1e-7, 1e-5, 1e-3):
        near = vf.Prior(mu, raw * (1 + step), SCALES[name])
        kl = vf.gaussian_kl(mu, raw, scale=SCALES[name], prior=near, reduction="none")
        assert bool((kl >= 0).all())


def test_the_kl_keeps_its_relative_accuracy_near_a_prior(device):
    x = 10.0 ** torch.linspace(-6, 0, 100, dtype=F64)
    raw = torch.cat([x, -x]).float().to(device)
    kl = vf.gaussian_kl(
        torch.zeros_like(raw), raw, scale="logstd", prior=vf.Prior(), reduction="none"
    )
    x = 2 * raw.double()
    series = sum(x**n / float(math.factorial(n)) for n in range(25, 1, -1))
    assert relative(kl, 0.5 * series) <= 1e-6


# --------------------------------------------------------------------------------------------------
# Priors
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", [vf.Prior(), vf.Prior(0.0, 1.0, "std"), vf.Prior(0, 0, "logstd")])
def test_a_standard_prior_is_no_prior(prior, device):
    mu, raw = random(2, 7, 9, device=device)
    torch.testing.assert_close(
        vf.gaussian_kl(mu, raw, prior=prior, reduction="none"),
        vf.gaussian_kl(mu, raw, reduction="none"),
        rtol=1e-6,
        atol=0,
    )


def test_a_detached_prior_gets_no_gradient_and_a_prior_alone_may_learn(device):
    leaves = tensors(OPTIONS["prior of tensors"], F64, device)
    m, s = leaves["prior_mean"], leaves["prior_raw"]
    fixed = vf.gaussian_kl(leaves["mu"], leaves["raw"], prior=vf.Prior(m.detach(), s.detach()))
    assert torch.autograd.grad(fixed, [m, s], allow_unused=True) == (None, None)
    kl = vf.gaussian_kl(leaves["mu"].detach(), leaves["raw"].detach(), prior=vf.Prior(m, s))
    want = formula(OPTIONS["prior of tensors"], leaves)[1].sum() / 4
    torch.testing.assert_close(torch.autograd.grad(kl, [m, s]), torch.autograd.grad(want, [m, s]))


def test_dtypes_promote_together(device):
    mu, raw = random(2, 4, 5, device=device)
    wide = random(5, dtype=F64, device=device).requires_grad_()
    zero_d = torch.tensor(0.3, dtype=F64, device=device)
    half = random(5, dtype=torch.float16, device=device).requires_grad_()
    for prior, dtype in (
        (vf.Prior(wide), F64),
        (vf.Prior(0.0, wide), F64),
        (vf.Prior(zero_d), torch.float32),
        (vf.Prior(half, half), torch.float32),
    ):
        z, kl = vf.reparameterize_kl(mu, raw, prior=prior, eps=torch.zeros_like(mu))
        assert z.dtype == dtype and kl.dtype == dtype
        torch.testing.assert_close(z, mu.to(dtype))
        h = torch.cat([mu, raw], 1)
        assert vf.reparameterize_kl_moments(h, prior=prior)[0].dtype == dtype
    kl.backward()
    assert half.grad.dtype == torch.float16


# --------------------------------------------------------------------------------------------------
# Free bits, balance
# --------------------------------------------------------------------------------------------------


def test_free_bits_pass_the_gradient_at_equality_and_none_below(device):
    mu = torch.tensor([0.5, 1.0, 2.0], device=device, requires_grad=True)
    kl = vf.gaussian_kl(mu, torch.zeros_like(mu), free_bits=0.5, reduction="none")
    assert kl.tolist() == [0.5, 0.5, 2.0]
    (grad,) = torch.autograd.grad(kl.sum(), mu)
    assert grad.tolist() == [0.0, 1.0, 2.0]


def test_balance_is_two_kls_with_stopped_gradients(device):
    """dreamerv2's kl_loss: mix * KL(sg(post) || prior) + (1 - mix) * KL(post || sg(prior))."""
    leaves = tensors(OPTIONS["prior of tensors"], F64, device)
    mu, raw, m, s = (leaves[k] for k in ("mu", "raw", "prior_mean", "prior_raw"))
    scale, mix = vf.Scale("softplus", std_floor=0.1), 0.8

    def kl(q, p, **kwargs):
        return vf.gaussian_kl(*q, scale=scale, prior=vf.Prior(*p, scale), **kwargs)

    def stopped(*values):
        return [v.detach() for v in values]

    two = mix * kl(stopped(mu, raw), (m, s)) + (1 - mix) * kl((mu, raw), stopped(m, s))
    one = kl((mu, raw), (m, s), balance=(1 - mix, mix))
    torch.testing.assert_close(one, two)
    assert torch.equal(one, kl((mu, raw), (m, s)))
    inputs = [mu, raw, m, s]
    torch.testing.assert_close(torch.autograd.grad(one, inputs), torch.autograd.grad(two, inputs))
