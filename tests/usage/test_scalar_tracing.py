"""0-d tensor options under tracers and transforms: a new value does not cause a recompilation."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from conftest import make_key, native, random
from torch._dynamo.testing import CompileCounterWithBackend
from torch.fx.experimental.proxy_tensor import make_fx

import vae_fused as vf
from vae_fused.options import SCALARS

KEY = make_key(5)
VALUES = ((0.7, 0.3, 0.2, 0.8), (0.1, 0.9, 1.0, 0.5), (1.0, 0.0, 1.0, 1.0))


def options_of(temperature, free_bits, wq, wp):
    return {"temperature": temperature, "free_bits": free_bits, "balance": (wq, wp)}


def loss(mu, raw, mean, temperature, free_bits, wq, wp, key=None):
    key = KEY if key is None else key
    z, kl = vf.reparameterize_kl(
        mu, raw, key=key, prior=vf.Prior(mean, 0.5), **options_of(temperature, free_bits, wq, wp)
    )
    return (z * z).sum() + kl


def loss_of_moments(h, _, mean, *scalars):
    z, kl = vf.reparameterize_kl_moments(
        h, key=KEY, prior=vf.Prior(mean[:, :3], 0.5), **options_of(*scalars)
    )
    return (z * z).sum() + kl


def loss_of_list(mu, raw, mean, temperature, free_bits, *_):
    more = {"temperature": temperature, "free_bits": free_bits}
    zs, kl = vf.reparameterize_kl_multi([mu, mean], [raw, raw], key=KEY, **more)
    return sum((z * z).sum() for z in zs) + kl


LOSSES = (loss, loss_of_moments, loss_of_list)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def leaves(dtype=torch.float32):
    return [random(4, 6, seed=s).to(dtype).requires_grad_() for s in range(3)]


def grads(value, inputs):
    return torch.autograd.grad(value, inputs, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize(
    ("function", "dtype"),
    [(function, torch.float32) for function in LOSSES]
    + [(loss, torch.float64), (loss, torch.bfloat16)],
)
def test_a_new_value_in_place_compiles_nothing_anew(function, dtype):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, fullgraph=True, backend=counter)
    inputs, scalars = leaves(dtype), [torch.tensor(0.5) for _ in SCALARS]
    for step, values in enumerate(VALUES):
        for tensor, value in zip(scalars, values, strict=True):
            tensor.fill_(value)
        no_more = torch._dynamo.config.patch(error_on_recompile=step > 0)
        with no_more if step else contextlib.nullcontext():
            got = compiled(*inputs, *scalars)
        want = function(*inputs, *values)
        torch.testing.assert_close(got, want)
        for g, w in zip(grads(got, inputs), grads(want, inputs), strict=True):
            torch.testing.assert_close(g, w)
    assert counter.frame_count == 1


def elbo_of_sample(mu, raw, mean, temperature, free_bits, wq, wp):
    z, kl = vf.reparameterize_kl(mu, raw, key=KEY)
    target = torch.sigmoid(mean)
    terms = vf.elbo_loss(z, target, kl=kl, likelihood="bernoulli", beta=wq, capacity=free_bits)
    return terms.loss + vf.iwae_loss(mu, raw, elbo_weight=wp).loss


def elbo_per(free_bits_per):
    def function(mu, raw, mean, temperature, free_bits, wq, wp):
        target = torch.sigmoid(mean)
        terms = vf.elbo_loss(
            mu, target, mu, raw, likelihood="bernoulli", beta=temperature, free_bits=free_bits,
            free_bits_per=free_bits_per, balance=(wq, wp), prior=vf.Prior(mean, 0.5),
        )  # fmt: skip
        return terms.loss

    return function


CHANGING = {
    **{function.__name__: function for function in LOSSES},
    "elbo of a sample": elbo_of_sample,
    **{f"free bits per {per}": elbo_per(per) for per in ("element", "sample", "dimension")},
}


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, torch.float32) for name in CHANGING), ("loss", torch.bfloat16)]
)
def test_a_number_that_changes_is_compiled_twice(name, dtype):
    """The number is a constant in the first graph, and an argument of the second graph."""
    function, inputs = CHANGING[name], leaves(dtype)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for step in range(5):
        numbers = (0.9 - 0.1 * step, 0.05 + 0.01 * step, 0.4 + 0.1 * step, 0.9 / (step + 2))
        got, want = compiled(*inputs, *numbers), function(*inputs, *numbers)
        torch.testing.assert_close(got, want)
        for g, w in zip(grads(got, inputs), grads(want, inputs), strict=True):
            torch.testing.assert_close(g, w)
    assert counter.frame_count == 2


def test_a_number_that_changes_under_inductor():
    inputs, counter = leaves(), CompileCounterWithBackend("inductor")
    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    for step in range(4):
        numbers = (0.9 - 0.1 * step, 0.05 + 0.01 * step, 0.4 + 0.1 * step, 0.9 / (step + 2))
        torch.testing.assert_close(compiled(*inputs, *numbers), loss(*inputs, *numbers))
    assert counter.frame_count == 2


def test_an_integer_that_changes_is_compiled_twice():
    def function(mu, raw, temperature):
        return vf.reparameterize(mu, raw, key=KEY, temperature=temperature)

    (mu, raw, _), counter = leaves(), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for temperature in (2, 3, 4, 5):
        torch.testing.assert_close(compiled(mu, raw, temperature), function(mu, raw, temperature))
    assert counter.frame_count == 2


def test_a_number_out_of_range_is_refused_when_it_has_changed():
    (mu, raw, mean), numbers = leaves(), [0.5, 0.1, 0.4, 0.6]
    compiled = torch.compile(loss, backend="aot_eager")
    for value in (0.5, 0.6, 0.7):
        compiled(mu, raw, mean, value, *numbers[1:])
    with pytest.raises(ValueError, match=r"temperature must be at least 0, got -0\.5"):
        compiled(mu, raw, mean, -0.5, *numbers[1:])
    with pytest.raises(ValueError, match="free_bits must be at least 0 nats, got"):
        compiled(mu, raw, mean, 0.5, -0.1, *numbers[2:])


@pytest.mark.parametrize(
    ("kind", "name"),
    [(np.float32, name) for name in CHANGING]
    + [(kind, "loss") for kind in (np.float64, np.float16, np.int64)],
)
def test_numpy_scalars_compile_whole(kind, name):
    """torch.compile represents NumPy scalars as arrays."""
    function, inputs = CHANGING[name], leaves()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for values in ((1, 0, 1, 0), (0, 1, 0, 1)) if kind is np.int64 else VALUES:
        scalars = [kind(value) for value in values]
        got, want = compiled(*inputs, *scalars), function(*inputs, *scalars)
        torch.testing.assert_close(got, want)
        for g, w in zip(grads(got, inputs), grads(want, inputs), strict=True):
            torch.testing.assert_close(g, w)


def test_arrays_and_bools_of_numpy_are_refused_in_a_graph():
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for value in (np.ones(2), np.bool_(True)):
        with pytest.raises(torch._dynamo.exc.Unsupported, match="temperature must be a"):
            compiled(*leaves(), value, 0.1, 0.5, 0.5)


def test_a_buffer_of_a_module_compiles_once():
    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.sample = vf.nn.Reparameterize(temperature=torch.tensor(0.5))
            self.kl = vf.nn.GaussianKL(free_bits=torch.tensor(0.1))

        def forward(self, mu, raw):
            return self.sample(mu, raw, key=KEY).sum() + self.kl(mu, raw)

    module, (mu, raw, _) = Encoder(), leaves()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for value in (0.2, 0.4, 0.8):
        module.sample.temperature.fill_(value)
        module.kl.free_bits.fill_(value)
        torch.testing.assert_close(compiled(mu, raw), module(mu, raw))
    assert counter.frame_count == 1


def test_inductor():
    inputs, scalars = leaves(), [torch.tensor(v) for v in VALUES[0]]
    compiled = torch.compile(loss, fullgraph=True)
    got, want = compiled(*inputs, *scalars), loss(*inputs, *VALUES[0])
    torch.testing.assert_close(got, want)
    for g, w in zip(grads(got, inputs), grads(want, inputs), strict=True):
        torch.testing.assert_close(g, w)


def test_export():
    class Model(torch.nn.Module):
        def forward(self, mu, raw, mean, *scalars):
            return loss(mu, raw, mean, *scalars)

    inputs = [t.detach() for t in leaves()]
    scalars = [torch.tensor(v) for v in VALUES[0]]
    exported = torch.export.export(Model(), (*inputs, *scalars))
    for values in VALUES:
        for tensor, value in zip(scalars, values, strict=True):
            tensor.fill_(value)
        torch.testing.assert_close(exported.module()(*inputs, *scalars), loss(*inputs, *values))


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx(mode):
    inputs = [t.detach() for t in leaves()]
    traced = make_fx(loss, tracing_mode=mode)(*inputs, *(torch.tensor(v) for v in VALUES[0]), KEY)
    for values in VALUES:
        got = traced(*inputs, *(torch.tensor(v) for v in values), KEY)
        torch.testing.assert_close(got, loss(*inputs, *values))


@native
@pytest.mark.parametrize("names", [SCALARS, SCALARS[:1], SCALARS[1:3]])
def test_opcheck(names):
    ops, (mu, raw, _) = torch.ops.vae_fused, leaves()
    scalars = {name: torch.tensor(0.5) for name in names}
    key, reduced = {"eps": None, "key": KEY}, {"reduction": "sample", "dim": None}
    h = torch.cat([mu, raw], 1).detach().requires_grad_()
    torch.library.opcheck(ops.reparameterize_kl.default, (mu, raw), {**key, **reduced, **scalars})
    torch.library.opcheck(ops.reparameterize.default, (mu, raw), {**key, **scalars})
    torch.library.opcheck(ops.gaussian_kl.default, (mu, raw), {**reduced, **scalars})
    torch.library.opcheck(
        ops.reparameterize_kl_moments.default, (h,), {"packed_dim": 1, **key, **reduced, **scalars}
    )
    priors = {"prior_mean": [], "prior_raw": [], "prior_numbers": []}
    of_list = {"key": KEY, "reduction": "sum", **priors, **scalars}
    torch.library.opcheck(ops.reparameterize_kl_multi.default, ([mu, raw], [raw, mu]), of_list)
    mu, raw = mu.detach(), raw.detach()
    torch.library.opcheck(
        ops.reparameterize_kl_backward.default,
        (mu, torch.ones(4), mu, raw),
        {**key, **reduced, **scalars, "output_mask": [True, True, False, False, False]},
    )


def test_transforms_share_a_scalar():
    scalars = [torch.tensor(v) for v in VALUES[0]]
    inputs = [t.detach().double() for t in leaves()]

    def function(options):
        return lambda *args: loss(*args, *options)

    for transform in (
        lambda f: torch.func.grad(f, argnums=(0, 1, 2))(*inputs),
        lambda f: torch.func.jvp(f, tuple(inputs), tuple(inputs)),
        lambda f: torch.func.jacrev(torch.func.grad(f))(*inputs),
        lambda f: torch.func.vmap(f, randomness="same")(*(t[:, None] for t in inputs)),
        lambda f: torch.func.vmap(torch.func.grad(f))(*(t[:, None] for t in inputs)),
    ):
        got, want = transform(function(scalars)), transform(function(VALUES[0]))
        got, want = ([x] if isinstance(x, torch.Tensor) else x for x in (got, want))
        for g, w in zip(got, want, strict=True):
            torch.testing.assert_close(g, w)


def test_a_scalar_for_each_slice():
    """The kernels raise an error that names the reference, which supports a scalar per slice."""
    mu, raw, _ = (t.detach() for t in leaves())
    eps, temperatures = random(4, 6, seed=9), torch.tensor([0.0, 0.3, 0.7, 1.0])

    def sample(module):
        return torch.vmap(
            lambda m, r, e, t: module.reparameterize(m, r, eps=e, temperature=t)
        )(mu, raw, eps, temperatures)  # fmt: skip

    want = torch.stack(
        [vf.reparameterize(*each[:2], eps=each[2], temperature=float(each[3]))
         for each in zip(mu, raw, eps, temperatures, strict=True)]
    )  # fmt: skip
    torch.testing.assert_close(sample(vf.reference), want)
    if vf.functional._ext.available:
        with pytest.raises(
            RuntimeError, match=r"temperature must be equal for all slices.*reference"
        ):
            sample(vf)
    else:
        torch.testing.assert_close(sample(vf), want)


def test_grad_of_a_scalar_is_refused():
    mu, raw, _ = (t.detach() for t in leaves())

    def of_temperature(temperature):
        return vf.reparameterize(mu, raw, key=KEY, temperature=temperature).sum()

    for transform in (torch.func.grad, lambda f: lambda x: torch.func.jvp(f, (x,), (x,))):
        with pytest.raises(ValueError, match="temperature must not require a gradient"):
            transform(of_temperature)(torch.tensor(0.5))
