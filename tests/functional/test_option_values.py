"""Scales, priors, masks, free bits, balance, temperature, sample shapes: alone and together."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import REDUCTIONS, make_key, random, relative, scaled
from option_recipes import (
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
COMBINATIONS = {f"combination {i}": r for i, r in enumerate(combinations(60, seed=1))}
EVERY = {**OPTIONS, **COMBINATIONS}
TOLERANCE = {F64: 1e-12, torch.float32: 4e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def gradients(z: Tensor, kl: Tensor, leaves: dict[str, Tensor], seed: int = 50) -> list[Tensor]:
    """Returns gradients of a random combination of z and kl, with zeros for unused leaves."""
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
    torch.testing.assert_close(kl, alone, rtol=1e-6, atol=0.0)  # may run the default kernel
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

# With balance, the gradient is not the derivative of the value.
SMOOTH = {k: r for k, r in OPTIONS.items() if "balance" not in r}
SMOOTH |= {
    f"combination {i}": {k: v for k, v in recipe.items() if k != "balance"}
    for i, recipe in enumerate(combinations(20, seed=2))
}


def small(recipe: dict[str, Any], device: str) -> tuple[Any, list[Tensor]]:
    """Returns a function and its leaves, which are small enough for finite differences."""
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
    grads = [torch.autograd.grad(value, inputs, create_graph=True) for value in (one, two)]
    torch.testing.assert_close(*grads)
    seconds = [torch.autograd.grad(sum(x.square().sum() for x in g), inputs) for g in grads]
    torch.testing.assert_close(*seconds)
