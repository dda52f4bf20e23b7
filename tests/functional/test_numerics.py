"""The numerics contract: accuracy, signs, extremes, dtypes. test_gradients.py tests gradients."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import (
    DTYPES,
    REDUCTIONS,
    eager,
    exact_kl,
    kl_by_mpmath,
    make_key,
    native,
    random,
    relative,
)
from torch import Tensor

import vae_fused as vf

INF, NAN = math.inf, math.nan
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
HALF = (torch.bfloat16, torch.float16)

# The maximum relative error of an element's KL: the documented bound in float32, and a few
# roundings in float64.
KL_TOLERANCE = {torch.float32: 1e-6, torch.float64: 4e-15}


def elementwise(mu: Tensor, logvar: Tensor) -> Tensor:
    return vf.gaussian_kl(mu, logvar, reduction="none")


# --------------------------------------------------------------------------------------------------
# Sign
# --------------------------------------------------------------------------------------------------


def any_bits(n: int, dtype: torch.dtype, seed: int, device: str) -> Tensor:
    """Returns values with every exponent equally often, including denormals, infinities and NaN."""
    generator = torch.Generator().manual_seed(seed)
    integer = BITS[dtype.itemsize]
    words = torch.randint(-(2**63), 2**63 - 1, (n,), generator=generator)
    return (words >> 8).to(integer).view(dtype).to(device)


@pytest.mark.parametrize("dtype", DTYPES)
def test_kl_is_never_negative(dtype, device):
    n = 2**20
    logvar = any_bits(n, dtype, 1, device)
    for mu in (torch.zeros_like(logvar), any_bits(n, dtype, 2, device)):
        kl = elementwise(mu, logvar)
        nan = mu.isnan() | logvar.isnan()
        assert torch.equal(kl.isnan(), nan)
        assert bool((kl[~nan] >= 0).all()) and not kl[~nan].signbit().any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_kl_is_never_negative_near_posterior_collapse(dtype, device):
    """Here, evaluating e^x - 1 - x directly yields only a rounding error of either sign."""
    x = 10.0 ** torch.linspace(-12, 0, 2**17, dtype=torch.float64)
    logvar = torch.cat([x, -x]).to(dtype).to(device)
    mu = torch.zeros_like(logvar)
    kl = elementwise(mu, logvar)
    assert bool((kl >= 0).all())
    assert bool((logvar.exp() - 1 - logvar < 0).any())  # otherwise this test proves nothing
    for reduction in REDUCTIONS:
        assert bool((vf.gaussian_kl(mu, logvar, reduction=reduction) >= 0).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_kl_of_the_prior_is_zero(reduction, dtype, device):
    zeros = torch.zeros(3, 2500, dtype=dtype, device=device)
    assert not vf.gaussian_kl(zeros, zeros, reduction=reduction).any()


# --------------------------------------------------------------------------------------------------
# Accuracy of an element
# --------------------------------------------------------------------------------------------------

SIZES = [0.0, *(10.0 ** (e / 4) for e in range(-24, 6))]  # down to 1e-6, the documented limit


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [-1, 1])
def test_kl_is_exact_from_collapse_to_large(sign, dtype, device):
    pairs = torch.tensor([(m, sign * x) for m in SIZES for x in SIZES][1:], dtype=dtype)
    want = torch.tensor([kl_by_mpmath(m, x) for m, x in pairs.tolist()], dtype=torch.float64)
    mu, logvar = pairs.to(device).unbind(1)
    assert relative(elementwise(mu, logvar).cpu(), want) <= KL_TOLERANCE[dtype]
    assert relative(elementwise(-mu, logvar).cpu(), want) <= KL_TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kl_is_exact_in_the_range_of_clamped_encoders(dtype, device):
    logvar = torch.linspace(-30, 20, 10001, dtype=torch.float64).to(dtype).to(device)
    for m in (0.0, 1e-3, 1.0, 30.0):
        mu = torch.full_like(logvar, m)
        assert relative(elementwise(mu, logvar), exact_kl(mu, logvar)) <= KL_TOLERANCE[dtype]


def test_the_closed_form_of_these_tests_is_exact():
    x = torch.tensor([s * v for v in SIZES[1:] for s in (-1, 1)], dtype=torch.float64)
    want = torch.tensor([kl_by_mpmath(0.25, v) for v in x.tolist()], dtype=torch.float64)
    assert relative(exact_kl(torch.full_like(x, 0.25), x), want) < 1e-14


class Results(NamedTuple):
    z: Any
    kl: Any
    grad_mu: Any
    grad_logvar: Any


def results(function, mu, logvar, grad_z, grad_kl) -> Results:
    mu, logvar = mu.clone().requires_grad_(), logvar.clone().requires_grad_()
    z, kl = function(mu, logvar)
    grads = torch.autograd.grad((z, kl), (mu, logvar), (grad_z.to(z.dtype), grad_kl.to(kl.dtype)))
    return Results(z.detach(), kl.detach(), *grads)


def wide(t: Tensor) -> np.ndarray:
    """Convert to a type with more digits than float64, if the platform has one."""
    return t.cpu().double().numpy().astype(np.longdouble)


def truth(*inputs: Tensor) -> tuple[Results, Results]:
    """Returns the results, and for each result the sum of the magnitudes of its terms.

    Errors are relative to this sum.
    """
    mu, x, eps, grad_z, grad_kl = map(wide, inputs)
    noise, h = np.exp(x / 2) * eps, np.expm1(x)
    series = sum((x**n / math.factorial(n) for n in range(25, 1, -1)), np.zeros_like(x))
    kl = (mu * mu + np.where(abs(x) < 1, series, h - x)) / 2
    parts = (mu, noise), (kl,), (grad_z, grad_kl * mu), (grad_z * noise / 2, grad_kl * h / 2)
    return Results(*map(sum, parts)), Results(*(sum(map(abs, part)) for part in parts))


# The range [low, high) of logvar, and the factor that multiplies mu.
REGIMES = {
    "clamped low": (-30, -10, 1.0),
    "low": (-10, -1, 3.0),
    "prior": (-1, 1, 1.0),
    "collapsing": (-0.01, 0.01, 0.01),
    "collapsed": (-1e-4, 1e-4, 1e-4),
    "high": (1, 10, 1.0),
    "clamped high": (10, 20, 1.0),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("regime", REGIMES)
def test_error_is_at_most_twice_that_of_eager(regime, dtype, device, request):
    """Compares the maximum and the mean error in each of 16 ranges of logvar, with given noise."""
    low, high, spread = REGIMES[regime]
    if dtype == torch.float16 and low >= 10:
        pytest.skip("e^logvar is beyond float16, and so eager is")
    if dtype == torch.float64 and np.finfo(np.longdouble).eps > 1e-18:
        pytest.skip("nothing to compare with: long double is double here")
    shape, kwargs = (16, 2048), {"dtype": dtype, "device": device}
    ramp = torch.linspace(low, high, 17, dtype=torch.float64)[:-1, None]
    uniform = torch.special.ndtr(random(*shape, dtype=torch.float64))
    logvar = (ramp + uniform * (high - low) / 16).to(dtype).to(device)
    mu = random(*shape, seed=1, **kwargs) * spread
    eps, grad_z, grad_kl = (random(*shape, seed=seed, **kwargs) for seed in (2, 3, 4))

    def ours(m, x):
        return vf.reparameterize_kl(m, x, eps=eps, reduction="none")

    got = results(ours, mu, logvar, grad_z, grad_kl)
    allowed = results(lambda m, x: eager(m, x, eps), mu, logvar, grad_z, grad_kl)
    exact, scale = truth(mu, logvar, eps, grad_z, grad_kl)
    for name, g, a, t, s in zip(Results._fields, got, allowed, exact, scale, strict=True):
        s = s + torch.finfo(dtype).smallest_normal
        error, budget = abs(wide(g) - t) / s, 2 * abs(wide(a) - t) / s
        assert (error.max(1) <= budget.max(1)).all(), name
        assert (error.mean(1) <= budget.mean(1)).all(), name


@native
@pytest.mark.parametrize("sign", [-1, 1])
def test_nothing_jumps_where_the_ordinary_range_ends(sign, device):
    """sigma is e^(logvar/2) for |logvar| >= 87, and the square root of e^logvar otherwise."""
    logvar = sign * torch.linspace(86.9, 87.1, 4001, device=device)
    zeros = torch.zeros_like(logvar)
    sigma = vf.reparameterize(zeros, logvar, eps=torch.ones_like(logvar))
    assert relative(sigma, (0.5 * logvar.double()).exp()) < 2.5e-7
    assert relative(elementwise(zeros, logvar), exact_kl(zeros, logvar)) < 3.5e-7


@native
def test_kl_error_beyond_one_is_within_three_roundings(device):
    """The bound holds for each element, because sigma^2 is not the square of a rounded sigma."""
    logvar = torch.linspace(1, 80, 2**17, device=device)
    zeros = torch.zeros_like(logvar)
    assert relative(elementwise(zeros, logvar), exact_kl(zeros, logvar)) < 3.5e-7


# --------------------------------------------------------------------------------------------------
# Sums
# --------------------------------------------------------------------------------------------------


LONG = [((2**24,), "sum"), ((1, 2**24), "batchmean"), ((2**23, 2), "sum"), ((4096, 4096), "mean")]


@pytest.mark.parametrize(("shape", "reduction"), LONG)
def test_long_sums_are_exact(shape, reduction, device):
    """Constant terms are the hard case, because their rounding errors do not cancel."""
    n, divisor = 2**24, {"batchmean": shape[0], "sum": 1, "mean": 2**24}[reduction]
    mu, logvar = torch.tensor(0.3), torch.tensor(-0.7)
    pairs = [(mu.expand(n), logvar.expand(n), n * exact_kl(mu, logvar))]
    mu, logvar = random(4096), random(4096, seed=1)  # mu varies along rows, logvar along columns
    want = 4096 * (exact_kl(mu, torch.zeros(1)) + exact_kl(torch.zeros(1), logvar)).sum()
    pairs.append((mu.expand(4096, -1), logvar[:, None].expand(-1, 4096), want))
    for mu, logvar, want in pairs:
        mu, logvar = mu.to(device).reshape(shape), logvar.to(device).reshape(shape)
        got = vf.gaussian_kl(mu, logvar, reduction=reduction).cpu()
        assert relative(got, want / divisor) <= 1e-6


@pytest.mark.parametrize("dim", [0, 1])
def test_long_rows_and_columns_are_exact(dim, device):
    mu, logvar = (random(2049, 2100, seed=s, device=device) for s in (5, 6))
    mu[:, :7], logvar[:7] = 1e-5, 1e-5
    got = vf.gaussian_kl(mu, logvar, dim=dim)
    assert relative(got, exact_kl(mu, logvar).sum(dim)) <= 1e-6


@pytest.mark.parametrize("dtype", HALF)
def test_half_inputs_lose_nothing_in_the_kl(dtype, device):
    """Results for 16-bit inputs are float32, as accurate as for float32, and do not overflow.

    For 16-bit inputs, CUDA uses the hardware exponential, with an error of 3e-6.
    """
    bound = 3e-6 if device == "cuda" else 1e-6
    mu = (random(200, 300, device=device) * 100).to(dtype)  # mu^2 is beyond float16
    logvar = (random(200, 300, seed=1, device=device) * 5).to(dtype)
    for reduction in ("none", "sample", "batchmean"):
        kl = vf.gaussian_kl(mu, logvar, reduction=reduction)
        assert kl.dtype == torch.float32
        floats = vf.gaussian_kl(mu.float(), logvar.float(), reduction=reduction)
        assert relative(kl, floats) <= (0.0 if device == "cpu" else bound)
    assert relative(elementwise(mu, logvar), exact_kl(mu, logvar)) <= bound


# --------------------------------------------------------------------------------------------------
# Extremes
# --------------------------------------------------------------------------------------------------

# mu, logvar -> kl, dkl/dmu, dkl/dlogvar. Eager PyTorch agrees except for logvar = +inf, where it
# computes inf - inf. The expected result is the limit, +inf.
EXTREMES = [
    (0.0, INF, INF, 0.0, INF),
    (1.0, INF, INF, 1.0, INF),
    (0.0, -INF, INF, 0.0, -0.5),
    (INF, 0.0, INF, INF, 0.0),
    (-INF, 0.0, INF, -INF, 0.0),
    (INF, -INF, INF, INF, -0.5),
    (-INF, INF, INF, -INF, INF),
    (0.0, 80.0, math.exp(80) / 2, 0.0, math.exp(80) / 2),
    (0.0, -80.0, 39.5, 0.0, -0.5),
    (0.0, -1e30, 5e29, 0.0, -0.5),
    (1e18, 0.0, 5e35, 1e18, 0.0),
    (0.0, 3e38, INF, 0.0, INF),
    (0.0, NAN, NAN, 0.0, NAN),
    (NAN, 0.0, NAN, NAN, 0.0),
    (NAN, -INF, NAN, NAN, -0.5),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("mu", "logvar", "kl", "grad_mu", "grad_logvar"), EXTREMES)
def test_extreme_kl(mu, logvar, kl, grad_mu, grad_logvar, dtype, device):
    """An extreme element must not affect the ordinary elements in the same row."""
    if dtype == torch.float64 and logvar == 3e38:
        logvar = 1e300
    m, x = (t.to(dtype).requires_grad_() for t in random(2, 37, device=device))
    alone = elementwise(m, x).detach()
    with torch.no_grad():
        m[17], x[17] = mu, logvar
    got = elementwise(m, x)
    assert torch.equal(got[:17], alone[:17]) and torch.equal(got[18:], alone[18:])
    got.backward(torch.ones_like(got))
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-6
    for value, want in ((got[17], kl), (m.grad[17], grad_mu), (x.grad[17], grad_logvar)):
        assert value.item() == pytest.approx(want, rel=tolerance, nan_ok=True)
    assert bool(m.grad[18:].isfinite().all()) and bool(x.grad[18:].isfinite().all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["sample", "sum"])
def test_nan_and_inf_reach_their_own_sum_alone(reduction, dtype, device):
    mu, logvar = (random(5, 3000, seed=s, dtype=dtype, device=device) for s in (0, 1))
    mu[1, 2999], logvar[3, 0] = INF, NAN
    kl = vf.gaussian_kl(mu, logvar, reduction=reduction)
    if reduction == "sum":
        assert bool(kl.isnan())
    else:
        assert kl.isfinite().tolist() == [True, False, True, False, True]
        assert kl[1].item() == INF and bool(kl[3].isnan())


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_samples_are_those_of_eager(dtype, device):
    """For logvar = -inf, z is mu. All other results follow IEEE arithmetic, as in eager PyTorch."""
    values = [0.0, -0.0, 1.5, -3.0, 1e4, 6e4, INF, -INF, NAN, 1e-7, -88.0, -150.0, 22.0, 200.0]
    grid = torch.tensor(values, dtype=torch.float64)
    mu, logvar, eps = (
        t.flatten().to(dtype).to(device) for t in torch.meshgrid(grid, grid, grid, indexing="ij")
    )
    z = vf.reparameterize(mu, logvar, eps=eps)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    want = eager(mu.to(wide), logvar.to(wide), eps.to(wide))[0].to(dtype)
    finite = want.isfinite() & z.isfinite()  # in 16 bits, only one of them may be inf
    size = mu.to(wide).abs() + (want.to(wide) - mu.to(wide)).abs()  # the terms may cancel
    error = (z.to(wide) - want.to(wide)).abs()[finite]
    assert bool((error <= max(4e-7, torch.finfo(dtype).eps) * size[finite]).all())
    assert torch.equal(z.isnan(), want.isnan())
    assert (z.isinf() != want.isinf()).sum() <= (2 if dtype in HALF else 0)
    certain = (logvar == -INF) & eps.isfinite()
    assert torch.equal(z[certain].nan_to_num(), mu[certain].nan_to_num())


@pytest.mark.parametrize("dtype", DTYPES)
def test_denormals_are_kept(dtype):
    """This test runs only on the CPU, because GPUs may flush denormals."""
    info = torch.finfo(dtype)
    tiny = info.smallest_normal
    steps = torch.tensor([1.0, 0.5, 0.25, -0.125, 2 * info.eps, -6 * info.eps], dtype=torch.float64)
    mu = (steps * tiny).to(dtype)
    assert bool((mu != 0).all())
    z = vf.reparameterize(mu, torch.full_like(mu, -INF), key=make_key(1))
    assert torch.equal(z, mu)
    mu.requires_grad_()
    logvar = torch.zeros_like(mu, requires_grad=True)
    kl = vf.gaussian_kl(mu, logvar, reduction="sum")
    kl.backward()
    assert torch.equal(mu.grad, mu.detach())  # a denormal gradient
    # In the other dtypes, a sigma this small is 0: see docs/numerics.md.
    if dtype in (torch.float64, torch.float16):
        spread = torch.full_like(logvar, 2 * math.log(tiny / 8))
        noise = vf.reparameterize(torch.zeros_like(mu), spread, eps=torch.ones_like(mu))
        assert bool((noise > 0).all()) and bool((noise < tiny / 4).all())


def test_import_leaves_the_floating_point_state_alone():
    """Loading a library linked with -ffast-math disables denormals in the whole process."""
    code = """
import torch
tiny = torch.full((2**20,), 1e-39)
import vae_fused as vf
z, kl = vf.reparameterize_kl(torch.zeros(2**16, requires_grad=True), torch.zeros(2**16))
(z.sum() + kl).backward()
assert (tiny * 0.5 != 0).all() and (torch.tensor(1e-39) + 0).item() != 0
assert 2.0**-1074 / 1 != 0 and 2.0**-1060 * 0.5 != 0
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


# --------------------------------------------------------------------------------------------------
# Dtypes
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("logvar_dtype", DTYPES)
@pytest.mark.parametrize("mu_dtype", DTYPES)
def test_mixed_dtypes_promote_as_torch_does(mu_dtype, logvar_dtype, device):
    mu = random(7, 9, dtype=mu_dtype, device=device).requires_grad_()
    logvar = random(7, 9, seed=1, dtype=logvar_dtype, device=device).requires_grad_()
    common = torch.result_type(mu, logvar)
    key = make_key(4, device=device)
    z, kl = vf.reparameterize_kl(mu, logvar, key=key)
    assert z.dtype == common
    assert kl.dtype == (torch.float64 if common == torch.float64 else torch.float32)
    want = vf.reparameterize_kl(mu.to(common), logvar.to(common), key=key)
    assert torch.equal(z, want[0]) and torch.equal(kl, want[1])
    (z.sum() + kl).backward()
    assert mu.grad.dtype == mu_dtype and logvar.grad.dtype == logvar_dtype


def test_a_0d_tensor_does_not_widen_the_others(device):
    mu = random(3, dtype=torch.float32, device=device)
    z = vf.reparameterize(mu, torch.tensor(0.5, dtype=torch.float64, device=device))
    assert z.dtype == torch.result_type(mu, torch.tensor(0.5, dtype=torch.float64))
