"""Random calls of the CUDA kernels on the emulated device against the CPU kernels.

The calls vary everything that determines the kernel and how it accesses memory: the number of
samples, mixed and misaligned layouts, odd sizes, absent tensors. Every run draws the same calls.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .calls import DTYPES, Call
from .test_latent_options import KEY, NAMES, OPTION_RECIPES, TOLERANCE, values

SIZES = (1, 2, 3, 4, 5, 8, 12, 16, 24, 31)
# The tensors that kernels write, and the tensor that each of them requires.
WRITTEN = {
    "z": "eps", "grad_mu": "mu", "grad_raw": "raw", "grad_eps": "grad_z",
    "grad_prior_mean": "prior_mean", "grad_prior_raw": "prior_raw",
}  # fmt: skip


class Layout(NamedTuple):
    """The layout of an array in a block: its dimensions, outermost first, and its gaps."""

    order: tuple[int, ...]
    offset: int  # of the first element
    pad: int  # unused elements after each run of the innermost dimension
    spaced: int  # unused elements between steps of the outermost dimension, such as samples
    expanded: tuple[bool, ...]

    def array(self, native: ModuleType, shape: tuple[int, ...], dtype: np.dtype, seed: int) -> Any:
        """Returns an array of normals, or a mask in which some elements are true."""
        strides, step = [0] * len(shape), 1
        for n, d in enumerate(reversed(self.order)):
            if not self.expanded[d]:
                strides[d] = step
                step = step * shape[d] + (self.pad if n == 0 else 0)
            step += self.spaced if n == len(shape) - 2 else 0
        rng = np.random.default_rng(seed)
        block = np.clip(rng.standard_normal(self.offset + step, dtype=np.float32), -2, 2)
        if dtype == np.uint8:
            block = (block < 0.5).astype(dtype)
        elif dtype == np.uint16:
            block = native.probes.to_bfloat16(block)
        else:
            block = block.astype(dtype)
        return np.lib.stride_tricks.as_strided(
            block[self.offset :], shape, [s * block.itemsize for s in strides]
        )


@st.composite
def layouts(draw: Any, ndim: int, written: bool = False) -> Layout:
    contiguous = tuple(range(ndim))
    orders = st.sampled_from(
        (contiguous, (*contiguous[:1], *contiguous[2:], *contiguous[1:2]))
    )  # channels last
    order = draw(orders | st.permutations(contiguous))
    flags = draw(st.none() | st.tuples(*[st.booleans()] * ndim))
    return Layout(
        tuple(order),
        draw(st.sampled_from((0, 0, 0, 1, 2, 4))),
        draw(st.sampled_from((0, 0, 0, 1, 4, 8))),
        draw(st.sampled_from((0, 0, 1, 8))),
        (False,) * ndim if written or flags is None else flags,
    )


class Drawn(NamedTuple):
    shape: tuple[int, ...]
    dims: tuple[int, ...]
    dtype: str
    recipe: str
    samples: int
    seed: int
    layouts: dict[str, Layout]  # layouts of the tensors that are present, read or written
    kl: bool
    key: int
    large: bool  # 64-bit offsets


@st.composite
def calls(draw: Any) -> Drawn:
    shape = draw(st.lists(st.sampled_from(SIZES), min_size=1, max_size=4))
    while math.prod(shape) > 6000:
        shape.pop()
    if draw(st.integers(0, 7)) == 7:
        shape = draw(st.sampled_from(([2, 4099], [3, 2048], [2056, 2], [1, 4, 33, 32], [7, 1024])))
    ndim = len(shape)
    dims = draw(st.sets(st.integers(0, ndim - 1)))
    samples = draw(st.sampled_from((1, 1, 1, 2, 3, 5)))
    optional = draw(st.sets(st.sampled_from(("prior_mean", "prior_raw", "mask", "eps"))))
    sampled, kl = draw(st.sampled_from(((True, True), (True, True), (True, False), (False, True))))
    recipe = draw(st.sampled_from([*OPTION_RECIPES]))
    if "at_sample" in OPTION_RECIPES[recipe]:  # its samples are elements of the call
        samples, sampled = 1, True
    written_names = draw(st.none() | st.sets(st.sampled_from([*WRITTEN]))) or {*WRITTEN}
    of: dict[str, Layout] = {}
    shares_layout = draw(st.booleans())  # all tensors share one layout, for the fast paths
    shared = draw(layouts(ndim, written=True))

    def add(name: str, written: bool = False) -> None:
        if name in ("eps", "grad_z", "z", "grad_eps") and samples > 1:
            inner = shared if shares_layout else draw(layouts(ndim, written))
            outermost = (0, *(d + 1 for d in inner.order))
            expands = not written and draw(st.integers(0, 7)) == 7
            of[name] = inner._replace(order=outermost, expanded=(expands, *inner.expanded))
        else:
            of[name] = shared if shares_layout else draw(layouts(ndim, written))

    for name in ("mu", "raw", *sorted(optional)):
        if name != "eps" or sampled:
            add(name)
    if sampled:
        add("grad_z")
        add("z", written=True)
    for name in WRITTEN:
        source = WRITTEN[name]
        if name != "z" and name in written_names and source in of:
            if not kl and source.startswith("prior"):
                continue
            add(name, written=True)
    return Drawn(
        tuple(shape), tuple(sorted(dims)), draw(st.sampled_from([*DTYPES])),
        recipe, samples, draw(st.integers(0, 999)), of, kl,
        draw(st.sampled_from((0, 1, 2**40))), draw(st.booleans()),
    )  # fmt: skip


def run(native: ModuleType, device: str, call: Drawn) -> Call:
    dtype, total = DTYPES[call.dtype], np.float64 if call.dtype == "float64" else np.float32
    made: dict[str, Any] = {}
    for i, (name, layout) in enumerate(call.layouts.items()):
        many = call.samples > 1 and name in ("eps", "grad_z", "z", "grad_eps")
        shape = (call.samples, *call.shape) if many else call.shape
        kind = np.dtype(np.uint8) if name == "mask" else dtype
        made[name] = layout.array(native, shape, kind, 10 * call.seed + i)
    space = native.space(made["mu"], call.dims)
    options: dict[str, Any] = {"dims": call.dims, "key": (KEY[0], call.key), "kl_factor": 0.5}
    options["latent_options"] = {**OPTION_RECIPES[call.recipe]}
    if "prior_raw" in made:
        options["latent_options"]["prior"] = {"base": "softplus", "std_floor": 0.2}
    for name in ("prior_mean", "prior_raw", "mask", "eps"):
        options[name] = made.get(name)
    kl = np.full(space["rows"], np.nan, total) if call.kl else None
    partials = np.full(space["tiles"], np.nan)
    native.forward(
        device, made["mu"], made["raw"], z=made.get("z"), kl=kl, partials=partials, **options
    )
    grads = {name: made.get(name) for name in WRITTEN if name != "z"}
    if any(x is not None for x in grads.values()):
        grad_kl = np.linspace(-1, 1, space["rows"], dtype=total) if call.kl else None
        native.backward(
            device, made["mu"], made["raw"], grad_z=made.get("grad_z"), grad_kl=grad_kl,
            grad_kl_stride=1, **grads, **options,
        )  # fmt: skip
    return Call(z=made.get("z"), kl=kl, keeps=(made, options, partials), **grads)


@settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=400,
    suppress_health_check=list(HealthCheck),
)
@given(call=calls())
def test_the_kernels_of_both_devices_agree(native: ModuleType, call: Drawn) -> None:
    native.emulator.configure(large=call.large)
    cpu, cuda = (run(native, device, call) for device in ("cpu", "cuda"))
    for name in NAMES:
        a, b = getattr(cuda, name), getattr(cpu, name)
        assert (a is None) == (b is None)
        if a is None:
            continue
        rtol = TOLERANCE["float32" if name == "kl" and call.dtype != "float64" else call.dtype]
        want = values(native, b)
        # The terms of a linear form or of a gradient may cancel.
        unit = max(1.0, np.abs(np.nan_to_num(want)).max(initial=0))
        np.testing.assert_allclose(
            values(native, a), want, rtol=rtol, atol=rtol * unit, err_msg=name
        )
