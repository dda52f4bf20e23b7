"""General options: the CUDA kernels on the emulated device against the CPU kernels.

`tests/functional/test_option_values.py` compares the CPU kernels with formulas. To add a case, add
a line to OPTION_RECIPES, TENSORS or SHAPES.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from .calls import DTYPES, Call, backward, forward, with_scalars

KEY = (0x0123456789ABCDEF, 11)

OPTION_RECIPES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "logstd": {"posterior": {"gain": 1.0}},
    "std": {"posterior": {"base": "identity", "gain": 0.1, "shift": 1.0}},
    "var": {"posterior": {"base": "sqrt", "gain": 0.1, "shift": 1.0}},
    "floors of a std": {
        "posterior": {
            "base": "identity",
            "gain": 0.1,
            "shift": 0.2,
            "std_floor": 0.05,
            "var_floor": 1,
        }
    },
    "floor of a var": {"posterior": {"base": "sqrt", "gain": 0.1, "shift": 0.2, "root_floor": 0.1}},
    "softplus": {"posterior": {"base": "softplus", "gain": 2.0, "unit": 0.5, "std_floor": 0.1}},
    "sigmoid": {"posterior": {"base": "sigmoid", "unit": 2.0, "std_floor": 0.1}},
    "clamp": {"posterior": {"low": -0.5, "high": 0.75}},
    "clamp beside 0": {"posterior": {"low": 0.25, "high": 0.75}},
    "soft clamps": {"posterior": {"soft_clamp": 2.0}, "mu_soft_clamp": 1.5},
    "floors": {"posterior": {"var_floor": 1e-2, "std_floor": 0.05}},
    **{
        f"least {base}": {"posterior": {"base": base, "gain": 0.5, "shift": 1.0, "std_min": 0.97}}
        for base in ("exp", "identity", "sqrt", "softplus", "sigmoid")
    },
    "least of floors": {"posterior": {"var_floor": 1e-2, "std_floor": 0.05, "std_min": 0.9}},
    "prior": {"prior_mean": 0.5, "prior_x": -0.5},
    "free bits": {"free_bits": 0.3},
    "balance": {"to_posterior": 0.2, "to_prior": 0.8},
    "temperature": {"temperature": 0.7},
    "linear form": {"is_linear_form": True, "constant": -1.0},
    "scalars": {"temperature": 0.7, "free_bits": 0.3, "to_posterior": 0.2, "to_prior": 0.8},
    "scalars beside others": {
        "posterior": {"base": "softplus", "std_floor": 0.1},
        "mu_soft_clamp": 1.5,
        "temperature": 0.7,
        "free_bits": 0.3,
        "prior_mean": 0.5,
        "prior_x": -0.5,
    },
    "at sample": {"at_sample": True},
    "at sample, stopped": {
        "at_sample": True,
        "stop_q": True,
        "posterior": {"base": "softplus", "std_floor": 0.1},
        "prior_mean": 0.5,
        "prior_x": -0.5,
    },
    "scalars at sample": {
        "at_sample": True,
        "temperature": 0.7,
        "to_posterior": 0.2,
        "to_prior": 0.8,
        "mu_soft_clamp": 1.5,
    },
    "scalars of a linear form": {"is_linear_form": True, "constant": -1.0, "to_posterior": 0.3},
}
# The tensors of a call in addition to mu and raw. `every` has a prior with a different scale, a
# mask and samples.
TENSORS = ("none", "prior", "prior mean", "mask", "samples", "eps", "samples of eps", "every")
SHAPES = {
    "(B, D)": ((6, 40), (1,)),
    "(B, D) none": ((6, 40), ()),
    "images": ((2, 8, 5, 4), (1, 2, 3)),
    "long rows": ((3, 4099), (1,)),
    "odd": ((5, 7), (0, 1)),
}
LAYOUTS = ("dense", "chunked", "channels last", "broadcast", "misaligned")


def array(
    native: ModuleType, shape: tuple[int, ...], dtype: str, layout: str, seed: int, wide: bool
) -> np.ndarray:
    """Returns normals. A `wide` array is never broadcast, because kernels write arrays like it."""
    rng = np.random.default_rng(seed)
    block = tuple(shape)
    if layout == "broadcast" and not wide:
        block = (*shape[:-1], 1) if seed % 2 else (1, *shape[1:])
    elif layout == "chunked":
        block = (shape[0], 2 * shape[1], *shape[2:])
    elif layout == "channels last":
        block = (shape[0], *shape[2:], shape[1])
    x = rng.standard_normal(np.prod(block) + 1, dtype=np.float32)
    x = native.probes.to_bfloat16(x) if dtype == "bfloat16" else x.astype(DTYPES[dtype])
    x = x[1:] if layout == "misaligned" else x[:-1].copy()
    x = x.reshape(block)
    if layout == "chunked":
        return x[:, shape[1] :]
    if layout == "channels last":
        return np.moveaxis(x, -1, 1)
    return np.broadcast_to(x, shape)


def values(native: ModuleType, x: np.ndarray) -> np.ndarray:
    return (native.probes.from_bfloat16(x) if x.dtype == np.uint16 else x).astype(np.float64)


def forward_at_samples(
    native: ModuleType,
    device: str,
    samples: int,
    mu: np.ndarray,
    raw: np.ndarray,
    options: dict[str, Any],
) -> Call:
    """Runs forward with samples as elements of the call, because each sample has its own KL."""
    expanded = {
        name: np.broadcast_to(options[name], (samples, *mu.shape))
        for name in ("prior_mean", "prior_raw", "mask", "eps")
        if name in options
    }
    mu, raw = (np.broadcast_to(x, (samples, *x.shape)) for x in (mu, raw))
    dims = tuple(d + 1 for d in options["dims"])
    z = np.full(mu.shape, 77, mu.dtype)
    return forward(native, device, mu, raw, z=z, **{**options, **expanded, "dims": dims})


def run(
    native: ModuleType,
    device: str,
    recipe: str,
    tensors: str,
    shape: str,
    dtype: str,
    layout: str,
    *,
    as_arrays: bool = False,
) -> Call:
    sizes, dims = SHAPES[shape]

    def made(seed: int, wide: bool = False) -> np.ndarray:
        return array(native, sizes, dtype, layout, seed, wide)

    samples = 3 if tensors in ("samples", "samples of eps", "every") else 1
    options: dict[str, Any] = {"dims": dims, "key": KEY, "kl_factor": 0.5}
    options["latent_options"] = {**OPTION_RECIPES[recipe]}
    if tensors in ("prior", "every"):
        options["prior_raw"] = made(3)
        options["latent_options"]["prior"] = {"base": "softplus", "std_floor": 0.2}
    if tensors in ("prior", "prior mean", "every"):
        options["prior_mean"] = made(4)
    if tensors in ("mask", "every"):
        rng = np.random.default_rng(5)
        mask = rng.random((*sizes[:-1], 1) if layout == "broadcast" else sizes) < 0.6
        options["mask"] = np.broadcast_to(mask, sizes).view(np.uint8)
    if tensors in ("eps", "samples of eps"):
        eps = [made(6 + s, wide=True) for s in range(samples)]
        options["eps"] = np.stack(eps) if samples > 1 else eps[0]
    mu, raw = made(1, wide=True), made(2)
    if as_arrays:
        options = with_scalars(options, mu)
    if "at_sample" in options["latent_options"] and samples > 1:
        call = forward_at_samples(native, device, samples, mu, raw, options)
    else:
        call = forward(native, device, mu, raw, samples=samples, **options)
    assert call.kl is not None
    grad_z = [made(20 + s, wide=s % 2 == 0) for s in range(samples)]
    options["grad_z"] = np.stack(grad_z) if samples > 1 else grad_z[0]
    grad_kl = np.linspace(-1, 1, call.kl.size, dtype=call.kl.dtype)
    grads = backward(native, device, mu, raw, grad_kl=grad_kl, **options)
    for name in ("grad_mu", "grad_raw", "grad_eps", "grad_prior_mean", "grad_prior_raw"):
        setattr(call, name, getattr(grads, name))
    return call


NAMES = ("z", "kl", "grad_mu", "grad_raw", "grad_eps", "grad_prior_mean", "grad_prior_raw")
TOLERANCE = {"float32": 5e-6, "float64": 1e-12, "float16": 4e-3, "bfloat16": 3e-2}


def compare(native: ModuleType, *case: str) -> None:
    dtype = case[3]
    cpu, cuda = (run(native, device, *case) for device in ("cpu", "cuda"))
    for name in NAMES:
        a, b = getattr(cuda, name), getattr(cpu, name)
        assert (a is None) == (b is None)
        if a is not None:
            rtol = 5e-6 if name == "kl" and dtype != "float64" else TOLERANCE[dtype]
            np.testing.assert_allclose(
                values(native, a), values(native, b), rtol=rtol, atol=rtol, err_msg=name
            )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("recipe", OPTION_RECIPES)
def test_option_recipes(native: ModuleType, recipe: str, dtype: str) -> None:
    for tensors in ("none", "every"):
        compare(native, recipe, tensors, "(B, D)", dtype, "dense")
    compare(native, recipe, "prior", "images", dtype, "channels last")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tensors", TENSORS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(native: ModuleType, layout: str, tensors: str, dtype: str) -> None:
    for shape in SHAPES:
        compare(native, "softplus", tensors, shape, dtype, layout)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "recipe",
    [
        "free bits",
        "balance",
        "temperature",
        *(name for name in OPTION_RECIPES if "scalars" in name),
    ],
)
def test_options_on_the_device_are_the_numbers_bit_for_bit(
    native: ModuleType, recipe: str, layout: str, dtype: str
) -> None:
    """Both calls use a general kernel. With other kernels, the rounding may differ."""
    for shape in ("(B, D)", "images", "long rows", "odd"):
        for device in ("cpu", "cuda"):
            case = (native, device, recipe, "every", shape, dtype, layout)
            got, want = run(*case, as_arrays=True), run(*case)
            for name in NAMES:
                np.testing.assert_array_equal(getattr(got, name), getattr(want, name), name)


def test_a_graph_reads_a_changed_option(native: ModuleType) -> None:
    mu = np.linspace(-1, 1, 40, dtype=np.float32).reshape(2, 20)
    value = np.array(0.5, np.float32)
    stream = native.emulator.Stream()
    native.emulator.begin_capture(stream)
    options = {"dims": (1,), "key": KEY, "stream": stream}
    call = forward(native, "cuda", mu, mu, scalars={"temperature": value}, **options)
    graph = native.emulator.end_capture(stream)
    for temperature in (0.25, 2.0):
        value[...] = temperature
        graph.replay(stream)
        want = forward(
            native, "cpu", mu, mu, dims=(1,), key=KEY, latent_options={"temperature": temperature}
        )
        np.testing.assert_allclose(call.z, want.z, rtol=5e-6, atol=5e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_no_order_of_blocks_or_threads_changes_a_bit(native: ModuleType, shape: str) -> None:
    first = run(native, "cuda", "softplus", "every", shape, "float32", "dense")
    for seed, sm_count in ((2, 132), (3, 1)):
        native.emulator.configure(seed=seed, sm_count=sm_count)
        again = run(native, "cuda", "softplus", "every", shape, "float32", "dense")
        for name in NAMES:
            np.testing.assert_array_equal(getattr(again, name), getattr(first, name))


def test_a_call_is_one_launch_each_way(native: ModuleType) -> None:
    before = native.emulator.launches()
    run(native, "cuda", "softplus", "every", "images", "float32", "dense")
    assert native.emulator.launches() - before == 2


def test_masked_garbage_reaches_nothing(native: ModuleType) -> None:
    rng = np.random.default_rng(0)
    shape = (3, 24)
    mask = np.arange(24) % 3 > 0
    tensors = [rng.standard_normal(shape, dtype=np.float32) for _ in range(5)]
    for x, garbage in zip(tensors, (np.nan, np.inf, -np.inf, np.nan, np.inf), strict=True):
        x[:, ~mask] = garbage
    mu, raw, mean, prior_raw, grad_z = tensors
    options = {
        "dims": (1,), "key": KEY, "mask": np.broadcast_to(mask, shape).view(np.uint8),
        "prior_mean": mean, "prior_raw": prior_raw,
    }  # fmt: skip
    for device in ("cpu", "cuda"):
        call = forward(native, device, mu, raw, **options)
        grads = backward(
            native, device, mu, raw, grad_z=grad_z, grad_kl=np.ones(3, np.float32), **options
        )
        assert np.isfinite(call.kl).all()
        for x in (call.z, grads.grad_mu, grads.grad_raw, grads.grad_prior_mean):
            assert np.isfinite(x).all() and (x[:, ~mask] == 0).all() and (x[:, mask] != 0).all()
