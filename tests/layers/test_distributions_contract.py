"""DiagonalGaussian's properties beyond Normal's: extremes, dtypes, validation, compilers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import BACKEND, DTYPES, make_key, posterior, random, relative
from torch.distributions import Independent, Normal, kl_divergence
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from vae_fused import DiagonalGaussian

F64 = torch.float64
METHODS = {
    "rsample": lambda q, v: q.rsample((2,)),
    "sample": lambda q, v: q.sample(),
    "rsample_kl": lambda q, v: q.rsample_kl()[1],
    "kl": lambda q, v: q.kl(),
    "nll": lambda q, v: q.nll(v),
    "log_prob": lambda q, v: q.log_prob(v),
    "cdf": lambda q, v: q.cdf(v),
    "icdf": lambda q, v: q.icdf(v.sigmoid()),
    "entropy": lambda q, v: q.entropy(),
    "variance": lambda q, v: q.variance,
    "expand": lambda q, v: q.expand((2, *q.batch_shape)).log_prob(v),
    "kl_divergence": lambda q, v: kl_divergence(q, Normal(v, 2.0, validate_args=False)),
    "Independent": lambda q, v: Independent(q, 1, validate_args=False).log_prob(v),
}


class Reads(TorchDispatchMode):
    """Counts reads of values into Python, each of which makes the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal)
        return func(*args, **(kwargs or {}))


# --------------------------------------------------------------------------------------------------
# Extremes and dtypes
# --------------------------------------------------------------------------------------------------


def test_log_prob_survives_variances_that_float32_does_not(device):
    logvar = torch.tensor([-170.0, -120.0, 120.0, 170.0], device=device)
    q = DiagonalGaussian(torch.zeros_like(logvar), logvar)
    value = torch.exp(0.5 * logvar.double())  # one sigma
    want = Normal(torch.zeros_like(value), value).log_prob(value)
    value = value.float().requires_grad_()
    got = q.log_prob(value)
    assert relative(got, want) < 1e-5
    (grad,) = torch.autograd.grad(got.sum(), value)
    assert relative(grad, -torch.exp(-0.5 * logvar.double())) < 1e-4
    torch.testing.assert_close(q.log_prob(q.mode), -0.5 * (logvar + 1.8378770664093453))


def test_lower_tails_keep_their_relative_accuracy(device):
    x = torch.linspace(-12, -2, 50, device=device)
    standard = DiagonalGaussian(torch.zeros((), device=device), 0.0)
    want = torch.special.log_ndtr(x.double()).exp()
    assert relative(standard.cdf(x), want) < 2e-5
    p = torch.logspace(-30, -2, 50, device=device)
    assert relative(standard.icdf(p), torch.special.ndtri(p.double())) < 1e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(dtype, device):
    q = DiagonalGaussian(*posterior((3, 4), dtype=dtype, device=device))
    wide = torch.float64 if dtype == F64 else torch.float32
    z = q.rsample((2,))
    for of_a_latent in (z, q.sample(), q.mean, q.stddev, q.variance, q.icdf(z.sigmoid())):
        assert of_a_latent.dtype == dtype
    summed = (q.log_prob(z), q.cdf(z), q.entropy(), q.kl(), q.nll(z), kl_divergence(q, q))
    for to_be_summed in summed:
        assert to_be_summed.dtype == wide
    exact = DiagonalGaussian(q.mu.double(), q.logvar.double())
    tolerance = {"rtol": 1e-5, "atol": 1e-5}
    for name in ("log_prob", "cdf", "nll"):
        got, want = getattr(q, name)(z), getattr(exact, name)(z.double())
        torch.testing.assert_close(got.double(), want, **tolerance)
    p = z.sigmoid()
    rounding = max(1e-5, 2 * torch.finfo(dtype).eps)
    torch.testing.assert_close(
        q.icdf(p).double(), exact.icdf(p.double()), rtol=rounding, atol=rounding / 10
    )


def test_integers_are_points_too(device):
    q = DiagonalGaussian(*posterior((3,), dtype=F64, device=device))
    value = torch.tensor([-1, 0, 2**40 + 1], device=device)
    assert torch.equal(q.log_prob(value), q.log_prob(value.double()))


# --------------------------------------------------------------------------------------------------
# Validation
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_nothing_waits_for_the_device(method):
    mu, logvar = posterior((3, 4))
    value = random(3, 4, seed=2)
    with Reads() as reads:
        METHODS[method](DiagonalGaussian(mu, logvar), value)
    assert reads.count == 0
    if method in ("log_prob", "cdf"):  # the count includes reads by validation
        with Reads() as reads:
            METHODS[method](DiagonalGaussian(mu, logvar, validate_args=True), value)
        assert reads.count >= 3


def test_values_are_checked_on_request():
    nan, zero = torch.tensor([0.0, torch.nan]), torch.zeros(2)
    for mu, logvar, name in ((nan, zero, "mu"), (zero, nan, "logvar")):
        DiagonalGaussian(mu, logvar)
        with pytest.raises(ValueError, match=f"parameter {name} .*constraint Real"):
            DiagonalGaussian(mu, logvar, validate_args=True)
    q = DiagonalGaussian(zero, zero, validate_args=True)
    for name in ("log_prob", "cdf"):
        with pytest.raises(ValueError, match="to be within the support"):
            getattr(q, name)(nan)


BAD = [
    (lambda: DiagonalGaussian([0.0], 0.0), TypeError, "mu must be a Tensor, got list"),
    (lambda: DiagonalGaussian(0.0, True), TypeError, "logvar must be a Tensor, got bool"),
    (
        lambda: DiagonalGaussian(torch.arange(3), 0.0),
        TypeError,
        "mu must be a floating-point tensor .* got torch.int64",
    ),
    (
        lambda: DiagonalGaussian(torch.zeros(3), torch.zeros(4)),
        ValueError,
        r"logvar must broadcast with the shape of mu, \(3,\), got \(4,\)",
    ),
    (
        lambda: DiagonalGaussian(torch.zeros(3), torch.zeros(3, device="meta")),
        RuntimeError,
        "logvar must be on the device of mu, cpu, got meta",
    ),
    (
        lambda: DiagonalGaussian.from_moments(torch.zeros(2, 5)),
        ValueError,
        "h must have an even size in dimension 1, .* got shape",
    ),
    (
        lambda: DiagonalGaussian.from_moments(torch.zeros(4)),
        ValueError,
        "dim must be a dimension of h, of shape .*, got 1",
    ),
    (lambda: DiagonalGaussian.from_moments([1.0]), TypeError, "h must be a Tensor, got list"),
    (
        lambda: DiagonalGaussian(torch.zeros(3), 0.0).log_prob(0.5),
        TypeError,
        "value must be a Tensor, got float",
    ),
    (
        lambda: DiagonalGaussian(torch.zeros(3), 0.0).cdf(torch.zeros(4)),
        ValueError,
        r"value must broadcast with the batch shape, \(3,\), got \(4,\)",
    ),
    (
        lambda: DiagonalGaussian(torch.zeros(3), 0.0).rsample((2,), eps=torch.zeros(3)),
        ValueError,
        r"eps must have the shape of z, \(2, 3\), got \(3,\)",
    ),
    (
        lambda: DiagonalGaussian(torch.zeros(3), 0.0).nll(torch.zeros(3), 1),
        ValueError,
        "dim must be a dimension of .*, got 1",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[b[2][:30] for b in BAD])
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


# --------------------------------------------------------------------------------------------------
# Tracing and compiling
# --------------------------------------------------------------------------------------------------


def test_make_fx(device):
    mu, logvar = posterior((3, 4), device=device)
    key = make_key(1, device=device)

    def function(mu, logvar, key):
        q = DiagonalGaussian.from_moments(torch.cat([mu, logvar], 1))
        z, kl = q.rsample_kl(key=key)
        return z, kl, q.log_prob(z), kl_divergence(q, Normal(0.0, 1.0))

    traced = make_fx(function)(mu, logvar, key)
    torch.testing.assert_close(traced(mu, logvar, key), function(mu, logvar, key))


def test_vmap_of_densities(device):
    q = DiagonalGaussian(*posterior((5, 3), device=device))
    value = random(5, 3, seed=1, device=device)
    each = torch.vmap(lambda m, x, v: DiagonalGaussian(m, x).log_prob(v))(q.mu, q.logvar, value)
    torch.testing.assert_close(each, q.log_prob(value))


@pytest.mark.parametrize("dynamic", [False, True])
def test_training_step_compiles_whole(dynamic):
    def step(h, key):
        q = DiagonalGaussian.from_moments(h)
        z, kl = q.rsample_kl(key=key)
        return z.square().sum() + kl

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend=BACKEND)
    for rows in (6, 9) if dynamic else (6,):
        h = random(rows, 8).requires_grad_()
        got, want = compiled(h, make_key(2)), step(h, make_key(2))
        torch.testing.assert_close(got, want)
        gradients = [torch.autograd.grad(loss, h)[0] for loss in (got, want)]
        torch.testing.assert_close(*gradients)


def test_every_method_compiles_whole():
    def everything(mu, logvar, value):
        q = DiagonalGaussian(mu, logvar)
        return [method(q, value) for method in METHODS.values()]

    torch._dynamo.reset()
    mu, logvar = posterior((3, 4))
    arguments = mu, logvar, random(3, 4, seed=2)
    # The eager call comes first, because Dynamo in torch 2.14 can trace torch's dispatch of a KL
    # only if torch has cached it.
    eager = everything(*arguments)
    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")(*arguments)
    for name, got, want in zip(METHODS, compiled, eager, strict=True):
        assert got.shape == want.shape and got.dtype == want.dtype
        if name not in ("rsample", "sample"):
            torch.testing.assert_close(got, want)
