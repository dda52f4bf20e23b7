"""Compares latent_stats with statistics that are computed separately for each dimension."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from conftest import DTYPES, Calls, native, random
from torch import Tensor

import vae_fused as vf

F64 = torch.float64


def batch(*shape: int, dtype: torch.dtype = F64) -> tuple[Tensor, Tensor]:
    return random(*shape, seed=1, dtype=dtype) + 0.5, random(*shape, seed=2, dtype=dtype)


def by_hand(mu: Tensor, raw: Tensor, **options: Any) -> tuple[float, float, float]:
    """Returns the KL, and the mean and variance of mu, for one dimension of shape (B,)."""
    kl = vf.reference.gaussian_kl(mu, raw, reduction="mean", **options)
    mean = math.fsum(mu.tolist()) / len(mu)
    return kl.item(), mean, math.fsum((m - mean) ** 2 for m in mu.tolist()) / len(mu)


@pytest.mark.parametrize("module", [vf, vf.reference], ids=["compiled", "reference"])
def test_each_dimension_is_a_batch_of_its_own(module: Any) -> None:
    mu, logvar = batch(50, 3)
    stats = module.latent_stats(mu, logvar)
    for d in range(3):
        got = [value[d].item() for value in stats[:3]]
        assert got == pytest.approx(by_hand(mu[:, d], logvar[:, d]), rel=1e-12)
    assert not stats.clamped.any() and not stats.non_finite.any()


def test_the_kl_adds_up_to_the_loss() -> None:
    mu, logvar = batch(50, 3, 4)
    kl = vf.latent_stats(mu, logvar).kl
    assert kl.shape == (3, 4)
    torch.testing.assert_close(kl.sum(), vf.gaussian_kl(mu, logvar))


@pytest.mark.parametrize("dim", [0, 1, -1, (0, 1), (0, -1)], ids=str)
def test_dimensions(dim: Any) -> None:
    mu, logvar = batch(5, 6, 7)
    got = vf.latent_stats(mu, logvar, dim=dim)
    want = (mu.mean(dim), mu.var(dim, correction=0))
    torch.testing.assert_close((got.mean, got.variance), want)
    torch.testing.assert_close(got.kl, vf.gaussian_kl(mu, logvar, reduction="none").mean(dim))
    assert {t.shape for t in got} == {mu.mean(dim).shape}


def test_options() -> None:
    mu, raw = batch(50, 3)
    options: dict[str, Any] = {
        "scale": "softplus", "prior": vf.Prior(0.3, 0.5), "mu_soft_clamp": 2.0
    }  # fmt: skip
    got = vf.latent_stats(mu, raw, **options)
    location = 2.0 * torch.tanh(mu / 2.0)
    torch.testing.assert_close(got.kl, vf.gaussian_kl(mu, raw, dim=0, **options) / 50)
    torch.testing.assert_close(got.mean, location.mean(0))
    torch.testing.assert_close(got.variance, location.var(0, correction=0))


CLAMPS = {
    "no clamp": (vf.Scale(), [0, 0]),
    "hard": (vf.Scale(clamp=(-1.0, 2.0)), [2, 1]),
    "low": (vf.Scale(clamp=(-1.0, None)), [1, 0]),
    "high": (vf.Scale(clamp=(None, 2.0)), [1, 1]),
    "soft": (vf.Scale(soft_clamp=2.0), [2, 1]),
}


@pytest.mark.parametrize("name", CLAMPS)
def test_clamped_elements_are_counted(name: str) -> None:
    """A value at a bound passes the gradient and is not counted."""
    scale, want = CLAMPS[name]
    raw = torch.tensor([[-3.0, -1.0], [2.0, 2.0], [3.0, 2.5]])
    stats = vf.latent_stats(torch.zeros(3, 2), raw, scale=scale)
    assert stats.clamped.tolist() == want and stats.clamped.dtype == torch.int64


def test_non_finite_elements_are_counted_in_their_dimension() -> None:
    mu, logvar = batch(6, 4, dtype=torch.float32)
    mu[0, 0], mu[1, 0], logvar[1, 0], logvar[2, 1] = math.nan, math.inf, math.nan, -math.inf
    mu[3, 2] = 3e38
    stats = vf.latent_stats(mu, logvar)
    assert stats.non_finite.tolist() == [2, 1, 0, 0]
    assert stats.kl.isfinite().tolist() == [False, False, False, True]
    assert stats.mean.isfinite().tolist() == [False, True, True, True]


def test_masked_elements_are_left_out() -> None:
    mu, logvar = batch(8, 5, 3)
    mask = random(8, 5, 1, seed=3) > -0.5
    spoiled = (torch.where(mask, t, math.nan) for t in (mu, logvar))
    scale = vf.Scale(clamp=(-1.0, 1.0))
    got = vf.latent_stats(*spoiled, dim=(0, 1), mask=mask, scale=scale)
    want = vf.latent_stats(*(t[mask.squeeze(-1)] for t in (mu, logvar)), scale=scale)
    assert 0 < mask.sum() < mask.numel() and want.clamped.sum() > 0
    for name, value in want._asdict().items():
        torch.testing.assert_close(getattr(got, name), value, msg=name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    mu, logvar = batch(3000, 2, dtype=dtype)
    got = vf.latent_stats(mu.requires_grad_(), logvar)
    want = vf.latent_stats(mu.double(), logvar.double())
    for a, b in zip(got[:3], want[:3], strict=True):
        assert a.dtype == torch.promote_types(dtype, torch.float32) and not a.requires_grad
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


# Short rows, one column, rows of several parts, and batch dimensions around another dimension.
@pytest.mark.parametrize(
    ("shape", "dim"),
    [((700, 20), 0), ((30_000, 1), 0), ((9, 3000), 0), ((6, 8, 5, 4), (0, 2, 3)), ((1, 33), 0)],
    ids=str,
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_device_and_shape(shape: Any, dim: Any, dtype: torch.dtype, device: str) -> None:
    mu, raw = batch(*shape, dtype=dtype)
    options: dict[str, Any] = {"dim": dim, "scale": vf.Scale(clamp=(-0.5, 0.75))}
    for mask in (None, random(*shape, seed=3) > -0.5):
        want = vf.reference.latent_stats(mu.double(), raw.double(), mask=mask, **options)
        on_device = None if mask is None else mask.to(device)
        got = vf.latent_stats(mu.to(device), raw.to(device), mask=on_device, **options)
        for name, value in want._asdict().items():
            found = getattr(got, name).to("cpu", value.dtype)
            torch.testing.assert_close(
                found,
                value,
                rtol=2e-5,
                atol=2e-6,
                equal_nan=True,
                msg=lambda m, n=name: f"{n}: {m}",
            )


def test_no_value_is_read_by_the_host() -> None:
    """Reading the value of a meta tensor raises an error."""
    mu = torch.empty(5, 3, device="meta")
    scale = vf.Scale(clamp=(-1.0, 1.0))
    for options in ({}, {"mask": mu > 0}):
        assert vf.latent_stats(mu, mu, scale=scale, **options).kl.shape == (3,)


def test_compiles_to_one_graph() -> None:
    torch._dynamo.reset()
    mu, raw = batch(8, 3)
    mask, scale = mu > 0, vf.Scale(clamp=(-1.0, 1.0))
    compiled = torch.compile(vf.latent_stats, backend="eager", fullgraph=True)
    for options in ({}, {"scale": scale, "mask": mask}):
        got, want = (f(mu, raw, **options) for f in (compiled, vf.latent_stats))
        torch.testing.assert_close(tuple(got), tuple(want))


def test_the_reference_has_the_same_signature() -> None:
    assert inspect.signature(vf.latent_stats) == inspect.signature(vf.reference.latent_stats)


def launches(mu: Tensor, raw: Tensor, **options: Any) -> int:
    with Calls() as calls:
        vf.latent_stats(mu, raw, **options)
    views = {"aten::expand", "aten::squeeze.dims"}
    return len([name for name in calls.names if name not in views])


@pytest.mark.parametrize("module", [vf, vf.reference], ids=["vf", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("far", [1e4, 1e8, 3e38, math.inf, math.nan])
def test_a_masked_item_has_no_part_in_the_variance(
    module: Any, dtype: torch.dtype, far: float
) -> None:
    """A masked item may also be the first item of the batch or the first item of a task."""
    x = torch.randn(5000, 7, dtype=dtype, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(5000, 7, dtype=torch.bool)
    mask[::512] = False
    counted = x[mask.all(1)].double()
    x[::512] = far
    stats = module.latent_stats(x, torch.zeros_like(x), mask=mask)
    torch.testing.assert_close(
        stats.variance.double(), counted.var(0, correction=0), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(stats.mean.double(), counted.mean(0), rtol=0, atol=1e-6)
    assert not stats.non_finite.any()


@pytest.mark.parametrize(("mean", "sd"), [(1e4, 1e-2), (-1e6, 1.0), (3.0, 1e-4)])
def test_a_large_mean_leaves_the_variance_accurate(mean: float, sd: float, device: str) -> None:
    noise = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0))
    x = (mean + sd * noise).to(device)
    x[0] = mean + 30 * sd
    stats = vf.latent_stats(x, torch.zeros_like(x))
    exact = x.double().var(0, correction=0)
    torch.testing.assert_close(stats.variance.double(), exact, rtol=1e-3, atol=0)


def test_dim_is_no_none() -> None:
    with pytest.raises(TypeError, match="dim must be an int or a sequence of ints, got NoneType"):
        vf.latent_stats(torch.zeros(4, 3), torch.zeros(4, 3), dim=None)  # type: ignore[arg-type]


@native
@pytest.mark.parametrize(
    "options",
    [{}, {"scale": vf.Scale(clamp=(-1.0, 1.0)), "mask": True}, {"prior": vf.Prior(0.5), "dim": 1}],
    ids=["default", "clamp and mask", "prior"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_one_launch(options: dict[str, Any], dtype: torch.dtype) -> None:
    mu, raw = batch(8, 3, dtype=dtype)
    if "mask" in options:
        options = {**options, "mask": mu > 0}
    assert launches(mu, raw, **options) == 1


X = torch.zeros(4, 3)
BAD_INPUT: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"dim": 2}, ValueError, "dim must be a dimension of mu, of shape .*, got 2"),
    ({"dim": ()}, ValueError, "dim must contain a dimension, got none"),
    ({"scale": "sd"}, ValueError, "scale must be one of logvar.*, got 'sd'"),
    ({"mask": X}, TypeError, "mask must be bool, got torch.float32"),
    ({"free_bits": 1.0}, TypeError, "unexpected keyword argument 'free_bits'"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD_INPUT, ids=lambda x: str(x)[:40])
def test_bad_input(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        vf.latent_stats(X, X, **options)


def test_bad_tensors() -> None:
    with pytest.raises(TypeError, match=r"mu must be a floating-point tensor .* got torch\.int64"):
        vf.latent_stats(X.long(), X)
    with pytest.raises(ValueError, match=r"mu must have a batch to average over, got shape \(\)"):
        vf.latent_stats(X.sum(), X.sum())
