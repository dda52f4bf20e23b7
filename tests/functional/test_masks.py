"""Masked elements are 0 for any input, and a call may draw several samples."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import REDUCTIONS, make_key, random
from option_recipes import SCALES, SHAPE, arguments, mask_of, tensors, total

import vae_fused as vf

F64 = torch.float64
INF, NAN = math.inf, math.nan
MODULES = pytest.mark.parametrize("module", [vf, vf.reference], ids=["vf", "reference"])


# --------------------------------------------------------------------------------------------------
# Masks
# --------------------------------------------------------------------------------------------------


def call(recipe, leaves, **kwargs):
    """Returns z, kl and the gradients of all leaves, for nonzero gradients of z and kl."""
    z, kl = vf.reparameterize_kl(
        leaves["mu"], leaves["raw"], eps=leaves["eps"], **arguments(recipe, leaves), **kwargs
    )
    outputs = (z * random(*z.shape, seed=7).to(z)).sum() + (kl * (1 + kl.detach())).sum()
    return z, kl, torch.autograd.grad(outputs, [*leaves.values()])


@pytest.mark.parametrize("garbage", [NAN, INF, -INF, 1e30])
@pytest.mark.parametrize("name", SCALES)
def test_garbage_under_a_mask_reaches_nothing(name, garbage, device):
    recipe = {
        "scale": SCALES[name],
        "prior_mean": SHAPE,
        "prior_raw": SHAPE,
        "prior_scale": SCALES[name],
        "mask": SHAPE,
    }
    clean = tensors(recipe, torch.float32, device)
    mask = mask_of(recipe, device)
    dirty = {k: torch.where(mask, v.detach(), garbage).requires_grad_() for k, v in clean.items()}
    for reduction in ("sample", "mean", "none"):
        got = call(recipe, dirty, reduction=reduction)
        want = call(recipe, clean, reduction=reduction)
        assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])
        assert not got[0][~mask].any() and not (reduction == "none" and got[1][~mask].any())
        for a, b in zip(got[2], want[2], strict=True):
            assert torch.equal(a, b) and not a[~mask].any()


def test_gradients_of_gradients_of_garbage_are_zero_too(device):
    recipe = {"mask": SHAPE, "prior_mean": SHAPE, "prior_raw": SHAPE, "scale": "std"}
    mask = mask_of(recipe, device)
    leaves = tensors(recipe, F64, device)
    leaves = {k: torch.where(mask, v.detach(), NAN).requires_grad_() for k, v in leaves.items()}
    z, kl = vf.reparameterize_kl(
        leaves["mu"], leaves["raw"], eps=leaves["eps"], **arguments(recipe, leaves)
    )
    inputs = [*leaves.values()]
    first = torch.autograd.grad(z.square().sum() + kl.square(), inputs, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
    for grad in (*first, *second):
        assert bool(grad.isfinite().all()) and not grad[~mask].any()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [SHAPE, (4, 1, 5), (3, 1), (5,), (1,), ()], ids=str)
def test_a_mask_broadcasts_and_the_mean_counts_what_is_left(shape, reduction, device):
    mu, raw = random(2, *SHAPE, dtype=F64, device=device)
    mask = (random(*shape, seed=3) > -0.3).to(device)
    kl = vf.gaussian_kl(mu, raw, mask=mask, reduction=reduction)
    elements = vf.gaussian_kl(mu, raw, reduction="none") * mask
    torch.testing.assert_close(kl, total(elements, mask, reduction))
    dense = vf.gaussian_kl(mu, raw, mask=mask.expand(SHAPE), reduction=reduction)
    torch.testing.assert_close(kl, dense)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_where_all_is_masked_sums_are_zero_and_the_mean_is_that_of_nothing(reduction, device):
    mu, raw = (t.clone().requires_grad_() for t in random(2, *SHAPE, device=device))
    mask = torch.zeros(SHAPE, dtype=torch.bool, device=device)
    z, kl = vf.reparameterize_kl(mu, raw, mask=mask, reduction=reduction)
    assert not z.any() and (kl.isnan().all() if reduction == "mean" else not kl.any())
    for grad in torch.autograd.grad(z.sum() + kl.sum(), [mu, raw]):
        assert not grad.any()


@pytest.mark.parametrize("mask", [torch.ones(0, 5).bool(), torch.ones(5).bool()])
def test_masks_of_nothing(mask):
    mu = torch.zeros(0, 5)
    assert vf.gaussian_kl(mu, mu, mask=mask, reduction="sum") == 0
    assert vf.gaussian_kl(mu, mu, mask=mask, reduction="mean").isnan()
    assert vf.reparameterize(mu, mu, mask=mask).shape == (0, 5)


def test_masked_elements_stay_below_the_floor_of_free_bits(device):
    mu = torch.zeros(3, 4, device=device)
    mask = torch.tensor([True, False, True, True], device=device)
    kl = vf.gaussian_kl(mu, mu, mask=mask, free_bits=0.25, reduction="sample")
    assert kl.tolist() == [0.75, 0.75, 0.75]


# --------------------------------------------------------------------------------------------------
# Several samples, temperatures
# --------------------------------------------------------------------------------------------------


@MODULES
@pytest.mark.parametrize("sample_shape", [3, (3,), (2, 3), torch.Size([1, 2]), [4], (0,), (2, 0)])
def test_samples_have_their_noise_in_the_order_of_the_stream(module, sample_shape, device):
    mu, raw = random(2, 3, 5, device=device)
    key = make_key(9, 4, device=device)
    z, kl = module.reparameterize_kl(mu, raw, sample_shape=sample_shape, key=key, reduction="none")
    lead = (sample_shape,) if isinstance(sample_shape, int) else tuple(sample_shape)
    assert z.shape == (*lead, 3, 5) and kl.shape == (3, 5)
    wide = [t.expand(*lead, 3, 5) for t in (mu, raw)]
    torch.testing.assert_close(z, module.reparameterize(*wide, key=key))
    torch.testing.assert_close(
        z, module.reparameterize(mu, raw, sample_shape=sample_shape, key=key)
    )


@MODULES
def test_samples_differ_and_share_their_posterior(module, device):
    mu, raw = (t.clone().requires_grad_() for t in random(2, 3, 5, device=device))
    torch.manual_seed(0)
    z, kl = module.reparameterize_kl(mu, raw, sample_shape=(2, 4), reduction="sum")
    flat = z.flatten(0, 1)
    assert all(not torch.equal(flat[0], flat[i]) for i in range(1, 8))
    eps = ((z - mu) / torch.exp(raw / 2)).detach()
    weight = random(*z.shape, seed=4, device=device)
    got = torch.autograd.grad((z * weight).sum() + kl, [mu, raw])
    want = (
        weight.sum((0, 1)) + mu,
        (0.5 * weight * torch.exp(raw / 2) * eps).sum((0, 1)) + 0.5 * torch.expm1(raw),
    )
    torch.testing.assert_close(got, tuple(t.detach() for t in want), rtol=1e-4, atol=1e-5)


def test_packed_moments_may_have_several_samples(device):
    h = random(2, 6, 4, device=device).requires_grad_()
    key = make_key(1, device=device)
    z, _ = vf.reparameterize_kl_moments(h, sample_shape=3, key=key)
    want = vf.reparameterize(*h.chunk(2, 1), sample_shape=3, key=key)
    assert z.shape == (3, 2, 3, 4)
    torch.testing.assert_close(z, want)
    weight = random(*z.shape, seed=5, device=device)
    got, want = (torch.autograd.grad((t * weight).sum(), h)[0] for t in (z, want))
    torch.testing.assert_close(got, want)


@MODULES
@pytest.mark.parametrize("temperature", [0, 0.0, 0.5, 1, 2.0])
def test_temperature_scales_the_noise_and_not_the_kl(module, temperature, device):
    mu, raw = random(2, 3, 5, device=device)
    key = make_key(2, device=device)
    z, kl = module.reparameterize_kl(mu, raw, temperature=temperature, key=key)
    at_one, same = module.reparameterize_kl(mu, raw, key=key)
    torch.testing.assert_close(kl, same, rtol=1e-6, atol=0.0)  # other kernels round differently
    torch.testing.assert_close(z - mu, temperature * (at_one - mu), rtol=1e-5, atol=1e-6)
    if temperature == 0:
        assert torch.equal(z, mu)
