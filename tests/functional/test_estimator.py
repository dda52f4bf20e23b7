"""Compares the KL estimated at the sample with torch.distributions log densities in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import REDUCTIONS, make_key, posterior, random, scaled
from linear_gaussian import standard_error
from option_recipes import (
    OPTIONS,
    SCALES,
    SHAPE,
    Recipe,
    arguments,
    combinations,
    density,
    each_total,
    log_ratio,
    mask_of,
    sigma_of,
    tensors,
)
from test_bad_input import refuses
from test_option_values import TOLERANCE, gradients
from torch import Tensor
from torch.distributions import kl_divergence

import vae_fused as vf
from vae_fused import _ext

F64, INF, NAN = torch.float64, math.inf, math.nan
SAMPLE: dict[str, Any] = {"estimator": "sample"}
STOPPED: dict[str, Any] = {**SAMPLE, "stop_q": True}
WAYS = pytest.mark.parametrize("way", [SAMPLE, STOPPED], ids=["sample", "stop_q"])
MODULES = pytest.mark.parametrize("module", [vf, vf.reference], ids=["vf", "reference"])
MIXED = {f"combination {i}": recipe for i, recipe in enumerate(combinations(15, seed=4))}
RECIPES = {
    name: {k: v for k, v in recipe.items() if k != "free_bits"}
    for name, recipe in {**OPTIONS, **MIXED}.items()
    if name != "free bits"
}


def call(module: Any, recipe: Recipe, leaves: dict[str, Tensor], **more: Any) -> Any:
    return module.reparameterize_kl(
        leaves["mu"], leaves["raw"], eps=leaves["eps"], **arguments(recipe, leaves), **more
    )


# --------------------------------------------------------------------------------------------------
# Values and gradients
# --------------------------------------------------------------------------------------------------


@WAYS
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", RECIPES)
def test_values_and_gradients_are_those_of_the_log_densities(name, dtype, way, device):
    recipe = RECIPES[name]
    reduction = REDUCTIONS[len(name) % len(REDUCTIONS)]
    for module in (vf, vf.reference) if dtype == F64 else (vf,):
        leaves = tensors(recipe, dtype, device)
        z, kl = call(module, recipe, leaves, reduction=reduction, **way)
        doubles = {k: v.detach().double().requires_grad_() for k, v in leaves.items()}
        want_z, ratio = log_ratio(recipe, doubles, stop_q=way is STOPPED)
        want_kl = each_total(ratio, mask_of(recipe, device), reduction)
        assert z.dtype == dtype and kl.dtype == torch.promote_types(dtype, torch.float32)
        assert z.shape == want_z.shape and kl.shape == want_kl.shape
        assert scaled(z, want_z) <= TOLERANCE[dtype]
        assert scaled(kl, want_kl) <= min(TOLERANCE[dtype], TOLERANCE[torch.float32])
        want = gradients(want_z, want_kl, doubles)
        for leaf, got, true in zip(leaves, gradients(z, kl, leaves), want, strict=True):
            assert got.dtype == dtype and got.shape == leaves[leaf].shape
            assert scaled(got, true) <= 4 * TOLERANCE[dtype], leaf


@WAYS
@MODULES
@pytest.mark.parametrize("sample_shape", [(), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize("reduction", [*REDUCTIONS, 0, -1, (0, 2), (-3, 1), (0, 1, 2)], ids=str)
def test_each_sample_is_reduced_on_its_own(reduction, sample_shape, module, way, device):
    recipe = {"sample_shape": sample_shape, "prior_mean": (5,)}
    if len(sample_shape) != 1:
        recipe["mask"] = (4, 1, 5)
    leaves, mask = tensors(recipe, F64, device), mask_of(recipe, device)
    named = isinstance(reduction, str)
    how = {"reduction" if named else "dim": reduction}
    z, kl = call(module, recipe, leaves, **how, **way)
    want_z, ratio = log_ratio(recipe, leaves, stop_q=way is STOPPED)
    dims = () if named else (reduction,) if isinstance(reduction, int) else reduction
    from_the_end = [d % 3 - 3 for d in dims]
    want = each_total(ratio, mask, reduction) if named else ratio.sum(from_the_end)
    torch.testing.assert_close(kl, want, rtol=1e-12, atol=1e-12)
    slopes = (gradients(*pair, leaves) for pair in ((z, kl), (want_z, want)))
    torch.testing.assert_close(*slopes, rtol=1e-11, atol=1e-11)


@WAYS
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("shape", [(2, 5000), (3, 2049), (1, 2, 3000)], ids=str)
def test_rows_of_several_tiles(shape, dtype, way, device):
    options = {"reduction": "sample", "sample_shape": 2, **way}
    mu, raw = posterior(shape, dtype=dtype, device=device, requires_grad=True)
    eps = random(2, *shape, seed=2, dtype=dtype, device=device).requires_grad_()
    doubles = [t.detach().double().requires_grad_() for t in (mu, raw, eps)]
    results = []
    for leaves, module in (((mu, raw, eps), vf), (doubles, None)):
        named = dict(zip(("mu", "raw", "eps"), leaves, strict=True))
        if module is None:
            kl = log_ratio({}, named, stop_q=way is STOPPED)[1].flatten(2).sum(2)
        else:
            kl = module.reparameterize_kl(mu, raw, eps=eps, **options)[1]
        weight = random(*kl.shape, seed=3, device=device).to(kl.dtype)
        results.append([kl, *torch.autograd.grad((kl * weight).sum(), leaves)])
    for got, want in zip(*results, strict=True):
        assert scaled(got, want) <= (1e-12 if dtype == F64 else 2e-6)


@WAYS
@MODULES
@pytest.mark.parametrize("sample_shape", [(), (2,)], ids=str)
def test_packed_moments_and_the_distribution_have_the_gradients_of_the_halves(
    sample_shape, module, way, device
):
    h = random(4, 6, 5, dtype=F64, device=device).requires_grad_()
    options = {"sample_shape": sample_shape, "key": make_key(3, device=device), **way}
    packed = module.reparameterize_kl_moments(h, reduction="sample", **options)
    unpacked = module.reparameterize_kl(*h.chunk(2, 1), reduction="sample", **options)
    q = vf.DiagonalGaussian.from_moments(h, 1)
    of_halves = vf.DiagonalGaussian(*h.chunk(2, 1))
    results = [
        [z, kl, *gradients(z, kl, {"h": h})]
        for z, kl in (packed, unpacked, *(d.rsample_kl(dim=(1, 2), **options)
                                          for d in (q, of_halves)))
    ]  # fmt: skip
    for got in results[1:]:
        torch.testing.assert_close(got, results[0], rtol=1e-13, atol=1e-13)


@WAYS
@MODULES
@pytest.mark.parametrize("used", ["kl", "z"])
def test_one_result_used_alone(used, module, way, device):
    recipe = {"sample_shape": 3, "prior_mean": SHAPE, "prior_raw": (3, 1), "temperature": 0.7}
    leaves = tensors(recipe, F64, device)
    weight = random(3, *SHAPE, seed=4, dtype=F64, device=device)
    outputs = call(module, recipe, leaves, reduction="none", **way)
    wants = log_ratio(recipe, leaves, stop_q=way is STOPPED)
    got, want = (
        torch.autograd.grad(
            (out[used == "kl"] * weight).sum(), [*leaves.values()], allow_unused=True
        )
        for out in (outputs, wants)
    )
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(0 * weight if a is None else a, 0 * weight if b is None else b)


@WAYS
@MODULES
def test_only_what_requires_a_gradient_gets_one(module, way, device):
    recipe = {"prior_mean": SHAPE, "prior_raw": SHAPE}
    leaves = tensors(recipe, F64, device)
    of_all = dict(zip(leaves, gradients(*call(module, recipe, leaves, **way), leaves), strict=True))
    for name in leaves:
        some = {k: v.detach().requires_grad_(k == name) for k, v in leaves.items()}
        z, kl = call(module, recipe, some, **way)
        assert kl.requires_grad and z.requires_grad == (not name.startswith("prior"))
        torch.testing.assert_close(gradients(z, kl, {name: some[name]})[0], of_all[name])


# --------------------------------------------------------------------------------------------------
# Means and the path derivative
# --------------------------------------------------------------------------------------------------

# Mean and raw scale of q, then those of p.
PAIRS = torch.tensor(
    [[1.0, 0.5, 0.0, 0.0], [-2.0, -3.0, 0.0, 0.0], [0.3, 1.0, -0.5, 2.0], [5.0, 0.2, 4.0, -1.0]]
)


@pytest.mark.parametrize("scale", ["logvar", "logstd", "softplus", "sigmoid2"])
def test_the_mean_over_samples_is_the_closed_form(scale, device):
    pairs = PAIRS.double().to(device).requires_grad_()
    mu, raw, m, t = pairs.unbind(-1)
    q, p = density(mu, sigma_of(raw, scale)), density(m, sigma_of(t, scale))
    exact = kl_divergence(q, p)
    (slopes,) = torch.autograd.grad(exact.sum(), pairs)
    for way in (SAMPLE, STOPPED):
        each = pairs.detach().expand(200_000, 4, 4).clone().requires_grad_()
        mu, raw, m, t = each.unbind(-1)
        _, kl = vf.reparameterize_kl(
            mu, raw, scale=scale, prior=vf.Prior(m, t, scale), reduction="none",
            key=make_key(7, device=device), **way,
        )  # fmt: skip
        (of_each,) = torch.autograd.grad(kl.sum(), each)
        for samples, want in ((kl.detach(), exact), (of_each, slopes)):
            error = 5 * standard_error(samples)
            assert ((samples.mean(0) - want).abs() <= error + 1e-12).all()
            assert (error < 0.05 * want.abs().max()).all()


@WAYS
@MODULES
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("scale", SCALES)
def test_only_the_path_derivative_vanishes_where_q_is_p(scale, dtype, module, way, device):
    scale = SCALES[scale]
    leaves = tensors({"scale": scale}, dtype, device)
    mu, raw = leaves["mu"], leaves["raw"]
    prior = vf.Prior(mu.detach(), raw.detach(), scale)
    eps = random(100, *SHAPE, seed=5, dtype=dtype, device=device)
    _, kl = module.reparameterize_kl(
        mu, raw, scale=scale, prior=prior, eps=eps, sample_shape=100, reduction="none", **way
    )
    sigma = sigma_of(raw.detach(), scale)
    rounding = 8 * torch.finfo(dtype).eps * (1 + mu.detach().abs() / sigma + eps.double().abs())
    assert (kl.abs() <= (1 + eps.abs()) * rounding).all()
    for sample in range(0, 100, 33):
        slopes = torch.autograd.grad(kl[sample].sum(), [mu, raw], retain_graph=True)
        size = max(slope.abs().max().item() for slope in slopes)
        limit = (rounding[sample] / sigma * (1 + eps[sample].abs())).max().item()
        assert size <= limit if way is STOPPED else size > 0.1


def test_the_path_derivative_from_the_standard_normal_is_rounding_there(device):
    mu, raw = (torch.zeros(50, 40, device=device, requires_grad=True) for _ in range(2))
    _, kl = vf.reparameterize_kl(mu, raw, reduction="sum", **STOPPED)
    for slope in torch.autograd.grad(kl, [mu, raw]):
        assert slope.abs().max() < 1e-6


@MODULES
@pytest.mark.parametrize("name", RECIPES)
def test_stop_q_leaves_the_value(name, module, device):
    leaves = {k: v.detach() for k, v in tensors(RECIPES[name], torch.float32, device).items()}
    (z, kl), (same_z, same_kl) = (
        call(module, RECIPES[name], leaves, reduction="none", **way) for way in (SAMPLE, STOPPED)
    )
    assert torch.equal(z, same_z) and torch.equal(kl, same_kl)


@WAYS
@MODULES
@pytest.mark.parametrize("raw", [-INF, -1e4, 150.0, 200.0, INF, NAN])
def test_extremes(raw, module, way, device):
    mu, eps = (torch.tensor(v, device=device) for v in ([0.5] * 3, [1.0, -0.5, 1.5]))
    given = torch.full((3,), raw, device=device, requires_grad=True)
    _, kl = module.reparameterize_kl(mu, given, eps=eps, reduction="none", **way)
    want = -0.5 * (raw + eps.double() ** 2 - 0.25) if raw < 0 else torch.full((3,), raw + INF)
    torch.testing.assert_close(kl.double(), want.to(device).double(), equal_nan=True)
    (slope,) = torch.autograd.grad(kl.sum(), given)
    if raw < 0:
        # For an infinite x, every derivative that PyTorch's operators compute subtracts infinities.
        # Eager PyTorch therefore loses the derivative and returns 0.
        is_lost = raw == -INF and not (module is vf and _ext.available)
        of_stopped = 0.0 * eps if is_lost else -0.5 * eps * eps
        torch.testing.assert_close(slope, of_stopped if way is STOPPED else torch.full((3,), -0.5))
    else:
        assert slope.isnan().all() if raw != raw else (slope == INF).all()


# --------------------------------------------------------------------------------------------------
# Errors
# --------------------------------------------------------------------------------------------------

X = random(4, 6)
FLOOR = "estimator must be 'analytic' for free_bits, because .* by chance, got 'sample'"
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"stop_q": True},
        ValueError,
        "stop_q must be False for estimator='analytic', .* got True; pass",
    ),
    ({"stop_q": True, "estimator": "analytic"}, ValueError, "pass estimator='sample'"),
    ({"estimator": "mc"}, ValueError, "estimator must be one of analytic, sample.*, got 'mc'"),
    ({"estimator": None}, TypeError, "estimator must be a str, got NoneType"),
    ({**SAMPLE, "stop_q": 1}, TypeError, "stop_q must be a bool, got int"),
    ({**SAMPLE, "stop_q": None}, TypeError, "stop_q must be a bool, got NoneType"),
    ({**SAMPLE, "free_bits": 0.5}, ValueError, FLOOR),
    ({**SAMPLE, "free_bits": torch.tensor(0.5)}, ValueError, FLOOR),
    (
        {**SAMPLE, "eps": X, "sample_shape": 2},
        ValueError,
        r"eps must have the shape of z, .* got \(4, 6\)",
    ),
    (
        {**SAMPLE, "sample_shape": -1},
        ValueError,
        r"sample_shape must have sizes of at least 0, got \(-1,\)",
    ),
]


@MODULES
@pytest.mark.parametrize(("options", "error", "message"), BAD, ids=lambda v: str(v)[:40])
def test_bad_options_are_named(module, options, error, message):
    refuses(lambda: module.reparameterize_kl(X, X, **options), error, message)
    refuses(lambda: module.reparameterize_kl_moments(X, **options), error, message)
    if module is vf:
        refuses(lambda: vf.DiagonalGaussian(X, X).rsample_kl(**options), error, message)


@MODULES
@pytest.mark.parametrize("name", ["gaussian_kl", "reparameterize", "sampled_kl"])
@pytest.mark.parametrize("option", [{"estimator": "sample"}, {"stop_q": False}, STOPPED], ids=str)
def test_functions_without_a_sample_or_a_kl_do_not_take_them(module, name, option):
    refuses(lambda: getattr(module, name)(X, X, **option), TypeError, "estimator|stop_q")


def test_a_large_mean_leaves_the_estimate_accurate(device):
    """The rounding error of z is not divided by tau. q equals p, so the exact estimate is 0."""
    mu, raw = (torch.full((1000, 1), v, device=device) for v in (100.0, -9.21034))
    prior = vf.Prior(mu, raw)
    _, kl = vf.reparameterize_kl(mu, raw, prior=prior, reduction="none", **SAMPLE)
    assert kl.abs().max() < 1e-5


@MODULES
def test_a_small_tau_is_not_clipped(module, device):
    """ln sigma^2 - ln tau^2 may exceed the bound at which exponentials are clipped."""
    mu, raw = torch.zeros(1, device=device), torch.full((1,), 85.0, device=device)
    prior = vf.Prior(0.0, -110.0)
    _, kl = module.reparameterize_kl(mu, raw, prior=prior, temperature=0.0, **SAMPLE)
    assert kl.item() == -97.5


def test_more_dimensions_than_tensors_have(device):
    x = torch.zeros(2, 3, device=device)
    with pytest.raises((ValueError, RuntimeError), match="64"):
        vf.reparameterize_kl(x, x, sample_shape=(1,) * 63, reduction="sample", **SAMPLE)
