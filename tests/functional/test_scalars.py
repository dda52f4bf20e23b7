"""Options that are 0-d tensors give the same results as numbers, or raise an error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import make_key, native, random
from option_recipes import SHAPE
from test_bad_input import refuses
from torch.autograd import forward_ad

import vae_fused as vf
from vae_fused.options import SCALARS

KEY = make_key(5)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
MODULES = pytest.mark.parametrize("module", [vf, vf.reference], ids=["vf", "reference"])

NUMBERS: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.7},
    "temperature 1": {"temperature": 1.0},
    "temperature 0": {"temperature": 0.0},
    "free bits": {"free_bits": 0.3},
    "no free bits": {"free_bits": 0.0},
    "balance": {"balance": (0.2, 0.8)},
    "balance of 1": {"balance": (1.0, 1.0)},
    "all": {"temperature": 0.7, "free_bits": 0.3, "balance": (0.2, 0.8)},
    "beside others": {"temperature": 0.7, "free_bits": 0.3, "scale": "softplus", "sample_shape": 2},
}


def scalar(value: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor(value, dtype=dtype)


def as_tensors(options: dict[str, Any], dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """Replaces each number that may be a tensor with a tensor."""
    named = {n: scalar(v, dtype) for n, v in options.items() if n in ("temperature", "free_bits")}
    if "balance" in options:
        named["balance"] = tuple(scalar(v, dtype) for v in options["balance"])
    return {**options, **named}


def kl_options(options: dict[str, Any]) -> dict[str, Any]:
    return {n: v for n, v in options.items() if n not in ("temperature", "sample_shape")}


def sample_options(options: dict[str, Any]) -> dict[str, Any]:
    return {n: v for n, v in options.items() if n not in ("free_bits", "balance")}


def results(module: Any, dtype: torch.dtype, options: dict[str, Any]) -> list[torch.Tensor]:
    """Returns the outputs of all functions with these options, and all gradients."""
    leaves = [random(*SHAPE, seed=s).to(dtype).requires_grad_() for s in range(4)]
    mu, raw, mean, prior_raw = leaves
    prior = vf.Prior(mean, prior_raw, "logstd")
    h = torch.cat([mu, raw], 1)
    outputs = [
        *module.reparameterize_kl(mu, raw, key=KEY, prior=prior, reduction="sample", **options),
        *module.reparameterize_kl_moments(h, key=KEY, prior=prior, kl_dim=2, **options),
        module.reparameterize(mu, raw, key=KEY, **sample_options(options)),
        module.gaussian_kl(mu, raw, prior=prior, reduction="none", **kl_options(options)),
    ]
    of_list = {n: v for n, v in options.items() if n not in ("balance", "sample_shape")}
    zs, kl = module.reparameterize_kl_multi([mu, raw], [raw, mu], key=KEY, **of_list)
    outputs += [*zs, kl]
    grads = torch.autograd.grad(outputs, leaves, [t.detach() + 1 for t in outputs])
    return [*outputs, *grads]


@MODULES
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NUMBERS)
def test_a_tensor_is_the_number_bit_for_bit(module, dtype, name):
    want = results(module, dtype, NUMBERS[name])
    got = results(module, dtype, as_tensors(NUMBERS[name]))
    for g, w in zip(got, want, strict=True):
        assert g.dtype == w.dtype and torch.equal(g, w)


@MODULES
def test_numbers_and_tensors_mix(module):
    for balance in ((scalar(0.2), 0.8), (0.2, scalar(0.8))):
        got = results(module, torch.float32, {"balance": balance})
        want = results(module, torch.float32, NUMBERS["balance"])
        assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))


@MODULES
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_floating_dtype_is_converted(module, dtype):
    exact = {"temperature": 0.5, "free_bits": 0.25, "balance": (0.125, 2.0)}
    for mu_dtype in (torch.float32, torch.float64, torch.float16):
        got, want = (
            results(module, mu_dtype, options) for options in (as_tensors(exact, dtype), exact)
        )
        assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))


@MODULES
def test_second_derivatives(module):
    def second(options):
        leaves = [random(*SHAPE, seed=s).requires_grad_() for s in range(4)]
        mu, raw, mean, prior_raw = leaves
        z, kl = module.reparameterize_kl(
            mu, raw, key=KEY, prior=vf.Prior(mean, prior_raw), **options
        )
        first = torch.autograd.grad((z * z).sum() + kl, leaves, create_graph=True)
        return torch.autograd.grad(sum((g * g).sum() for g in first), leaves)

    for name in ("all", "balance", "temperature"):
        got, want = second(as_tensors(NUMBERS[name])), second(NUMBERS[name])
        for g, w in zip(got, want, strict=True):
            torch.testing.assert_close(g, w)


@MODULES
def test_values_out_of_range_are_used_as_they_are(module):
    mu, raw = random(4, 6, seed=1), random(4, 6, seed=2)
    assert torch.equal(
        module.gaussian_kl(mu, raw, free_bits=scalar(-3.0)), module.gaussian_kl(mu, raw)
    )
    eps = random(4, 6, seed=3)
    torch.testing.assert_close(
        module.reparameterize(mu, raw, eps=eps, temperature=scalar(-0.5)),
        module.reparameterize(mu, raw, eps=-eps, temperature=0.5),
    )


@MODULES
def test_empty_posteriors(module):
    z, kl = module.reparameterize_kl(
        torch.zeros(0, 4), torch.zeros(0, 4), reduction="sum", **as_tensors(NUMBERS["all"])
    )
    assert z.shape == (0, 4) and kl == 0


def test_meta_tensors_have_shapes():
    mu = torch.zeros(3, 4, device="meta")
    z, kl = vf.reparameterize_kl(mu, mu, reduction="sample", **as_tensors(NUMBERS["all"]))
    assert z.is_meta and z.shape == (3, 4) and kl.shape == (3,)


@native
def test_a_change_before_backward_is_an_error_and_after_it_is_seen():
    mu = random(4, 6).requires_grad_()
    temperature = torch.tensor(0.5)
    z = vf.reparameterize(mu, mu, key=KEY, temperature=temperature)
    temperature.fill_(0.7)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()
    again = vf.reparameterize(mu, mu, key=KEY, temperature=temperature)
    assert torch.equal(again, vf.reparameterize(mu, mu, key=KEY, temperature=0.7))


def test_autocast():
    mu, raw = random(4, 6, seed=1), random(4, 6, seed=2)
    with torch.autocast("cpu", torch.bfloat16):
        got = vf.reparameterize_kl(mu, raw, key=KEY, **as_tensors(NUMBERS["all"]))
        want = vf.reparameterize_kl(mu, raw, key=KEY, **NUMBERS["all"])
    assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))


# --------------------------------------------------------------------------------------------------
# Errors
# --------------------------------------------------------------------------------------------------

LEAF = torch.tensor(0.5, requires_grad=True)
BAD: list[tuple[Any, type[Exception], str]] = [
    (torch.ones(1), ValueError, r"must be a number or a 0-d tensor, got shape \(1,\)"),
    (torch.ones(2, 3), ValueError, r"must be a number or a 0-d tensor, got shape \(2, 3\)"),
    (torch.tensor(1), TypeError, "must be a floating-point tensor or a number, got torch.int64"),
    (torch.tensor(True), TypeError, "must be a floating-point tensor or a number, got torch.bool"),
    (LEAF, ValueError, r"must not require a gradient, because none is computed; .*\.detach\(\)"),
    (2 * LEAF, ValueError, r"must not require a gradient, .*\.detach\(\)"),
    (
        torch.ones((), device="meta"),
        RuntimeError,
        "must be on the device of mu, cpu, or on cpu, got meta",
    ),
]
NAMES: dict[str, Any] = {
    "temperature": lambda v: {"temperature": v},
    "free_bits": lambda v: {"free_bits": v},
    "balance's wq": lambda v: {"balance": (v, 0.5)},
    "balance's wp": lambda v: {"balance": (0.5, v)},
}


@MODULES
@pytest.mark.parametrize(("value", "error", "message"), BAD, ids=lambda v: str(v)[:20])
@pytest.mark.parametrize("name", NAMES)
def test_a_bad_tensor_is_named(module, name, value, error, message):
    mu, options = torch.zeros(4, 6), NAMES[name](value)
    refuses(lambda: module.reparameterize_kl(mu, mu, **options), error, f"{name} {message}")
    if not name.startswith("balance"):
        refuses(
            lambda: module.reparameterize_kl_multi([mu], [mu], **options),
            error,
            f"{name} {message}",
        )


@MODULES
def test_a_pair_of_weights_is_no_tensor(module):
    mu = torch.zeros(4, 6)
    for balance in (torch.ones(2), (torch.ones(()),), (torch.ones(()),) * 3):
        refuses(
            lambda b=balance: module.gaussian_kl(mu, mu, balance=b), TypeError, "must be a pair"
        )


@MODULES
def test_a_tangent_is_refused(module):
    mu = torch.zeros(4, 6)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(torch.tensor(0.5), torch.tensor(1.0))
        refuses(
            lambda: module.reparameterize(mu, mu, temperature=dual), ValueError, "must not require"
        )


@native
def test_operators_check_again():
    mu, op = torch.zeros(4, 6), torch.ops.vae_fused.gaussian_kl.default
    for name in SCALARS:
        for bad in (torch.ones(1), torch.ones((), dtype=torch.float64), LEAF):
            with pytest.raises((TypeError, ValueError, RuntimeError), match=name):
                op(mu, mu, reduction="sum", dim=None, **{name: bad})


# --------------------------------------------------------------------------------------------------
# Distributions and modules
# --------------------------------------------------------------------------------------------------


def test_distributions_take_them():
    q = vf.DiagonalGaussian(random(4, 6, seed=1), random(4, 6, seed=2))
    both, number, weights = NUMBERS["all"], NUMBERS["temperature"], NUMBERS["balance"]
    pairs = [
        (q.rsample_kl(key=KEY, **as_tensors(both)), q.rsample_kl(key=KEY, **both)),
        ((q.rsample(key=KEY, **as_tensors(number)),), (q.rsample(key=KEY, **number),)),
        ((q.kl(**as_tensors(weights)),), (q.kl(**weights),)),
    ]
    for got, want in pairs:
        assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))


def test_tensors_of_modules_are_buffers():
    mu, raw = random(4, 6, seed=1), random(4, 6, seed=2)
    module = vf.nn.Reparameterize(temperature=torch.tensor(0.7))
    assert [*module.state_dict()] == ["temperature"] and not [*module.parameters()]
    for value in (0.7, 0.2):
        module.temperature.fill_(value)
        want = vf.reparameterize(mu, raw, key=KEY, temperature=value)
        assert torch.equal(module(mu, raw, key=KEY), want)
    module.eval()
    assert torch.equal(module(mu, raw), mu)

    kl = vf.nn.GaussianKL(free_bits=torch.tensor(0.3), balance=(torch.tensor(0.2), 0.8))
    assert {*kl.state_dict()} == {"free_bits", "to_posterior"}
    assert torch.equal(kl(mu, raw), vf.gaussian_kl(mu, raw, free_bits=0.3))
    assert kl.double().free_bits.dtype == torch.float64 and "free_bits=tensor" in repr(kl)
    (grad,) = torch.autograd.grad(kl(mu.requires_grad_(), raw), mu)
    (want,) = torch.autograd.grad(vf.gaussian_kl(mu, raw, free_bits=0.3, balance=(0.2, 0.8)), mu)
    torch.testing.assert_close(grad, want)

    elbo = vf.nn.ELBOLoss("mse", free_bits=torch.tensor(0.3))
    x = torch.zeros(4, 3)
    assert torch.equal(elbo(x, x, mu, raw).kl, vf.gaussian_kl(mu, raw, free_bits=0.3))


def test_modules_refuse_what_functions_refuse():
    refuses(lambda: vf.nn.Reparameterize(temperature=torch.ones(1)), ValueError, "temperature must")
    parameter = torch.nn.Parameter(torch.ones(()))
    refuses(lambda: vf.nn.GaussianKL(free_bits=parameter), ValueError, "free_bits must not")
    refuses(lambda: vf.nn.GaussianKL(balance=(LEAF, 1.0)), ValueError, "balance's wq must not")
