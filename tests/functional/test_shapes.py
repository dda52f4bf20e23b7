"""For all classes of shapes, the compiled code, the reference and the closed form agree, and the
outputs have the documented shapes, dtypes and layouts."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from conftest import (
    DTYPES,
    LAYOUTS,
    REDUCTIONS,
    all_dims,
    eager,
    exact_gradients,
    exact_kl,
    make_key,
    native,
    posterior,
    random,
    reduced,
    scaled,
)

import vae_fused as vf

KEY = (2**40 + 3, 2**33 + 1)
ROWS = (1, 2, 3, 20, 255, 256, 257, 1000)
COLS = (1, 2, 3, 20, 2047, 2048, 2049, 5000)  # below, at and above the tile of 2048 elements

# The noise has an absolute error of up to 2e-6. All other errors are rounding errors.
TOLERANCE = {torch.float32: 3e-6, torch.float64: 1e-12, torch.bfloat16: 8e-3, torch.float16: 1e-3}


@functools.cache
def pool(seed):
    """Returns the normals from which all inputs are cut."""
    return random(1000 * 5000, seed=seed)


@functools.cache
def noise_pool(n, dtype):
    return vf.reference.normal(make_key(*KEY), (n,), dtype=dtype)


def cut(shape, seed, dtype=torch.float32, device="cpu"):
    return pool(seed)[: math.prod(shape)].view(shape).to(dtype).to(device)


def expected_noise(shape, dtype, device):
    """Returns the noise of z: element i in row-major order gets normal i of the stream."""
    n = math.prod(shape)
    drawn = torch.float64 if dtype == torch.float64 else torch.float32
    size = next(s for s in (6000, 120_000, 1000 * 5000) if s >= n)
    return noise_pool(size, drawn)[:n].view(shape).to(device)


def check(mu, logvar, *, dim=None, reduction="batchmean", gradients=True):
    """Compares the values and gradients of one call with the closed form in float64."""
    dtype, device, tolerance = mu.dtype, mu.device, TOLERANCE[mu.dtype]
    m, x = mu.detach().requires_grad_(gradients), logvar.detach().requires_grad_(gradients)
    key = make_key(*KEY, device=device)
    z, kl = vf.reparameterize_kl(m, x, key=key, dim=dim, reduction=reduction)
    eps = expected_noise(mu.shape, dtype, device)
    elementwise = exact_kl(mu, logvar)
    want = reduced(elementwise, reduction, dim)
    assert z.dtype == dtype and z.shape == mu.shape
    assert kl.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert kl.shape == want.shape
    assert scaled(z, eager(mu.double(), logvar.double(), eps.double())[0]) <= tolerance
    close = {"rtol": 1e-13 if dtype == torch.float64 else 1e-6, "atol": 0}
    torch.testing.assert_close(kl.double(), want, **close)
    if not gradients:
        return
    grad_z = random(7, seed=2).to(mu).repeat(-(-mu.numel() // 7))[: mu.numel()].view(mu.shape)
    grad_kl = random(*kl.shape, seed=3, dtype=kl.dtype, device=device)
    got = torch.autograd.grad((z, kl), (m, x), (grad_z, grad_kl))
    (spread,) = torch.autograd.grad(
        reduced(elementwise.requires_grad_(), reduction, dim), elementwise, grad_kl.double()
    )
    truth = exact_gradients(mu, logvar, eps, grad_z, spread)
    for g, t in zip(got, truth, strict=True):
        assert g.dtype == dtype and g.shape == mu.shape and scaled(g, t) <= tolerance


# --------------------------------------------------------------------------------------------------
# Rows and columns
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cols", COLS)
@pytest.mark.parametrize("rows", ROWS)
def test_rows_by_columns(rows, cols, device):
    mu, logvar = cut((rows, cols), 0, device=device), cut((rows, cols), 1, device=device)
    large = rows * cols > 300_000  # for these, the exact gradient takes most of the time
    check(mu, logvar, reduction="sample", gradients=not large or cols == 2049)
    if not large:
        check(mu, logvar, reduction="batchmean")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cols", COLS)
@pytest.mark.parametrize("rows", [1, 3, 20])
def test_rows_by_columns_in_every_dtype(rows, cols, dtype, device):
    shape = (rows, cols)
    mu, logvar = cut(shape, 0, dtype, device), cut(shape, 1, dtype, device)
    check(mu, logvar, reduction="sample")
    check(mu, logvar, reduction="mean")


@pytest.mark.parametrize("cols", [1, 3, 20, 257])
@pytest.mark.parametrize("rows", [1, 2, 255, 2047, 2048, 2049, 5000])
def test_sums_down_the_columns(rows, cols, device):
    """With dim=0, adjacent elements in memory belong to different sums."""
    check(cut((rows, cols), 0, device=device), cut((rows, cols), 1, device=device), dim=0)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 255, 257])
def test_vector_tails(n, device):
    """Aligned and unaligned tensors end at every position in a vector and in a block of noise."""
    for first in (0, 1, 3):
        mu, logvar = cut((n + first,), 0, device=device), cut((n + first,), 1, device=device)
        check(mu[first:], logvar[first:], reduction="sum")
        check(mu[first:], logvar[first:], reduction="none")


# --------------------------------------------------------------------------------------------------
# Reductions, dims, layouts
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(5,), (4, 7), (3, 4, 5), (2, 3, 4, 5), (2, 3, 1, 4, 5)], ids=str)
def test_every_reduction(shape, reduction, dtype, device):
    mu, logvar = cut(shape, 0, dtype, device), cut(shape, 1, dtype, device)
    check(mu, logvar, reduction=reduction)


@pytest.mark.parametrize("dim", all_dims(5), ids=str)
def test_every_choice_of_dims(dim, device):
    shape = (2, 3, 4, 5, 6)
    mu, logvar = cut(shape, 0, device=device), cut(shape, 1, device=device)
    check(mu, logvar, dim=dim)
    check(mu, logvar, dim=tuple(d - 5 for d in reversed(dim)), gradients=False)
    check(mu.permute(3, 0, 4, 2, 1), logvar.permute(3, 0, 4, 2, 1), dim=dim)


@pytest.mark.parametrize("dim", [(0, 2, 4, 6, 8), (1, 3, 5, 7), (8,), (0,), tuple(range(9))])
def test_alternating_dims(dim, device):
    shape = (2, 3, 2, 2, 3, 2, 2, 2, 3)
    mu, logvar = cut(shape, 0, device=device), cut(shape, 1, device=device)
    check(mu, logvar, dim=dim)
    order = (8, 1, 6, 3, 4, 5, 2, 7, 0)
    check(mu.permute(order), logvar.permute(order), dim=dim)


@pytest.mark.parametrize("dim", [0, 1, (0, 2), (1, 3), (1, 2, 3), (0, 1, 2, 3)], ids=str)
@pytest.mark.parametrize("logvar_layout", ["contiguous", "same", "channels last"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strided_views(layout, logvar_layout, dim, device):
    shape = (4, 5, 11, 3)
    mu = LAYOUTS[layout](cut(shape, 0, device=device))
    second = layout if logvar_layout == "same" else logvar_layout
    check(mu, LAYOUTS[second](cut(shape, 1, device=device)), dim=dim)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("reduction", ["sample", "sum"])
def test_long_strided_views(layout, reduction, device):
    """The rows consist of several tiles, and contiguous runs end within tiles."""
    shape = (3, 4, 50, 33)
    mu, logvar = (LAYOUTS[layout](cut(shape, seed, device=device)) for seed in (0, 1))
    check(mu, logvar, reduction=reduction)


@pytest.mark.parametrize("dims", [20, 40, 64])
def test_many_dimensions(dims, device):
    """Adjacent dimensions are merged. Only dimensions that cannot be merged cost time."""
    shape = [1] * dims
    for d in (0, 3, 8, 9, 10, 17, 18, 19):
        shape[d] = 2 + d % 2
    mu, logvar = cut(tuple(shape), 0, device=device), cut(tuple(shape), 1, device=device)
    check(mu, logvar, dim=tuple(range(8, dims)))
    check(mu.transpose(0, 19), logvar.transpose(0, 19), reduction="sample")


def test_views_of_more_than_16_unmergeable_dims(device):
    """The kernels do not support so many dimensions, so the call makes the views contiguous."""
    shape = (2,) * 12 + (1,) * 12
    order = tuple(reversed(range(12))) + tuple(range(12, 24))
    mu = cut((2,) * 18, 0, device=device)
    check(mu.permute(tuple(reversed(range(18)))), cut((2,) * 18, 1, device=device), reduction="sum")
    check(cut(shape, 0, device=device).permute(order), cut(shape, 1, device=device), dim=(0, 5))


def test_results_of_as_many_dims_reach_where_they_were_asked_for(device):
    h = cut((2,) * 18, 2, device=device).permute(tuple(reversed(range(18)))).requires_grad_()
    key, weight = make_key(4, device=device), cut((2, 1) + (2,) * 16, 3, device=device)
    for module in (vf, vf.reference):
        z, kl = module.reparameterize_kl_moments(h, dim=1, key=key, reduction="sum")
        (grad,) = torch.autograd.grad((z * weight).sum() + kl, h)
        if module is vf:
            got = (z, kl, grad)
    for value, want in zip(got, (z, kl, grad), strict=True):
        torch.testing.assert_close(value, want, rtol=1e-5, atol=1e-5)


@native
def test_sums_that_alternate_more_than_16_times_are_refused_in_words(device):
    mu = torch.zeros((2,) * 18, device=device)
    with pytest.raises(NotImplementedError, match="must alternate at most 16 times, got more"):
        vf.gaussian_kl(mu, mu, dim=tuple(range(0, 18, 2)))


@pytest.mark.parametrize(
    ("mu_shape", "logvar_shape"),
    [((6, 5), (5,)), ((6, 5), (6, 1)), ((6, 5), ()), ((5,), (6, 5)), ((6, 1), (1, 5)), ((), (3,)),
     ((4, 1, 6, 1), (5, 1, 7)), ((300, 400), (400,)), ((300, 400), (300, 1)), ((0, 5), (5,))],
)  # fmt: skip
def test_broadcasting_is_that_of_torch(mu_shape, logvar_shape, device):
    mu, logvar = cut(mu_shape, 0, device=device), cut(logvar_shape, 1, device=device)
    key = make_key(1, device=device)
    for reduction in ("batchmean", "sample", "none"):
        got = vf.reparameterize_kl(mu, logvar, key=key, reduction=reduction)
        dense = [t.contiguous() for t in torch.broadcast_tensors(mu, logvar)]
        want = vf.reparameterize_kl(*dense, key=key, reduction=reduction)
        torch.testing.assert_close(got, want, equal_nan=True)


# --------------------------------------------------------------------------------------------------
# Zero elements and one element
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", [r for r in REDUCTIONS if r != "sample"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_0d_inputs(reduction, dtype, device):
    check(cut((), 0, dtype, device), cut((), 1, dtype, device), reduction=reduction)


@pytest.mark.parametrize("shape", [(1,), (1, 1), (1, 1, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_one_element(shape, reduction, device):
    check(cut(shape, 0, device=device), cut(shape, 1, device=device), reduction=reduction)


@pytest.mark.parametrize("noise", ["default", "key", "eps"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (0, 0), (3, 0, 2), (0, 4, 1, 2)], ids=str)
def test_empty_inputs_give_what_torch_gives(shape, reduction, noise, device):
    """An empty sum is 0, and a mean over no elements is NaN. autograd still records a graph."""
    mu, logvar = posterior(shape, device=device, requires_grad=True)
    kwargs = {
        "default": {},
        "key": {"key": make_key(1, device=device)},
        "eps": {"eps": torch.zeros(shape, device=device)},
    }[noise]
    z, kl = vf.reparameterize_kl(mu, logvar, reduction=reduction, **kwargs)
    want = reduced(eager(mu, logvar, mu)[1], reduction)
    assert z.shape == shape and kl.shape == want.shape
    assert torch.equal(kl.nan_to_num(7), want.nan_to_num(7))
    assert torch.equal(
        vf.gaussian_kl(mu, logvar, reduction=reduction).nan_to_num(7), kl.nan_to_num(7)
    )
    for grad in torch.autograd.grad(z.sum() + kl.sum(), (mu, logvar)):
        assert grad.shape == shape


@pytest.mark.parametrize("dim", [0, 1, 2, (0, 2), (0, 1, 2)])
def test_empty_sums_over_dims(dim, device):
    for shape in ((0, 2, 3), (2, 0, 3), (2, 3, 0)):
        mu = torch.zeros(shape, device=device)
        kl = vf.gaussian_kl(mu, mu, dim=dim)
        assert torch.equal(kl, mu.sum(dim))


# --------------------------------------------------------------------------------------------------
# The three implementations agree; layouts
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_compiled_and_reference_agree(layout, dtype, device):
    pair = posterior((6, 5, 37, 3), dtype=dtype, device=device)
    mu, logvar = (LAYOUTS[layout](t) for t in pair)
    key, tolerance = make_key(*KEY, device=device), TOLERANCE[dtype]
    for kwargs in ({"reduction": "mean"}, {"dim": (0, 2)}, {"reduction": "sample"}):
        outputs, gradients = [], []
        for module in (vf, vf.reference):
            m, x = mu.detach().requires_grad_(), logvar.detach().requires_grad_()
            z, kl = module.reparameterize_kl(m, x, key=key, **kwargs)
            outputs.append((z, kl))
            gradients.append(torch.autograd.grad(z.float().cos().sum() + kl.sum(), (m, x)))
        close = {"rtol": tolerance, "atol": tolerance}
        torch.testing.assert_close(*outputs, **close)
        torch.testing.assert_close(*gradients, rtol=2 * tolerance, atol=8 * tolerance)


@native
@pytest.mark.parametrize("shape", [(4, 5, 6, 3), (1, 5, 6, 3), (4, 1, 6, 3)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_z_has_the_layout_of_mu(layout, shape, device):
    """As in torch.empty_like, dense strides are kept, and gapped or expanded ones become dense."""
    mu = LAYOUTS[layout](cut(shape, 0, device=device))
    logvar = cut(shape, 1, device=device)
    want = torch.empty_like(mu).stride()
    assert vf.reparameterize(mu, logvar).stride() == want
    z, kl = vf.reparameterize_kl(mu, logvar, reduction="none")
    assert z.stride() == want and kl.is_contiguous()


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.channels_last_3d])
def test_z_keeps_channels_last(memory_format, device):
    shape = (2, 3, 4, 5) if memory_format == torch.channels_last else (2, 3, 4, 5, 6)
    mu, logvar = (t.to(memory_format=memory_format) for t in posterior(shape, device=device))
    assert vf.reparameterize_kl(mu, logvar)[0].is_contiguous(memory_format=memory_format)


def test_kl_is_contiguous_and_owns_no_more_than_it_shows(device):
    mu, logvar = (t.transpose(0, 2) for t in posterior((3, 4, 5), device=device))
    for dim in (0, 1, 2, (0, 2)):
        kl = vf.gaussian_kl(mu, logvar, dim=dim)
        assert kl.numel() * 4 == kl.untyped_storage().nbytes()


@pytest.mark.parametrize("dim", [0, -1, (0,), np.int64(0)], ids=repr)
def test_a_scalar_has_a_dimension_0_for_the_asking(dim, device):
    mu = torch.tensor(0.5, device=device)
    assert torch.equal(vf.gaussian_kl(mu, mu, dim=dim), vf.gaussian_kl(mu, mu, reduction="none"))


def test_dims_may_be_numpy_integers(device):
    mu = torch.ones(2, 3, device=device)
    assert torch.equal(vf.gaussian_kl(mu, mu, dim=np.int64(1)), vf.gaussian_kl(mu, mu, dim=1))
