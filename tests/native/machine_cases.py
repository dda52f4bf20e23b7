"""The calls that test the machine code, their results, and the tolerances of these results."""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import Any

import numpy as np

from . import test_kernels, test_latent_options, test_multi, test_stats
from .calls import DTYPES, Call, backward, forward

# These calls cover whole and partial tiles, whole rows that are written at once or staged in shared
# memory, rows of several tiles that the last block adds up, merged tiles, views, and every
# `Access`.
DEFAULT = (
    ("one element", "dense"),
    ("two columns", "dense"),
    ("four columns", "dense"),
    ("five columns", "dense"),
    ("a row per sample", "dense"),
    ("partly summed images", "dense"),
    ("large deep images", "dense"),
    ("one long row", "dense"),
    ("long rows by groups of lanes", "dense"),
    ("longer rows", "dense"),
    ("many rows of three", "dense"),
    ("wide images", "chunked"),
    ("summed deep images", "chunked"),
    ("summed latents", "chunked"),
    ("long rows", "chunked"),
    ("runs that are no whole vectors", "chunked"),
    ("wide images", "transposed"),
    ("latents", "transposed"),
    ("summed latents", "transposed"),
    ("large deep images", "transposed"),
    ("many latents", "transposed"),
)
# In float64, these calls take four times as many instructions, and each instruction is slower.
LONG = ("long rows by groups of lanes", "longer rows", "many rows of three", "many latents")
OPTIONS = (
    ("defaults", "prior", "images", "channels last"),
    ("logstd", "samples", "(B, D)", "misaligned"),
    ("std", "every", "odd", "dense"),
    ("var", "none", "(B, D)", "dense"),
    ("floors of a std", "every", "(B, D)", "dense"),
    ("floors of a std", "prior", "images", "channels last"),
    ("floor of a var", "eps", "(B, D)", "chunked"),
    ("softplus", "samples of eps", "(B, D) none", "broadcast"),
    ("softplus", "prior", "(B, D)", "dense"),
    ("softplus", "mask", "long rows", "chunked"),
    ("softplus", "every", "images", "broadcast"),
    ("sigmoid", "eps", "odd", "channels last"),
    ("clamp", "prior mean", "(B, D)", "chunked"),
    ("soft clamps", "every", "(B, D)", "dense"),
    ("free bits", "mask", "images", "channels last"),
    ("balance", "every", "images", "misaligned"),
    ("temperature", "none", "(B, D) none", "dense"),
    ("linear form", "none", "odd", "channels last"),
    ("at sample", "none", "(B, D)", "dense"),
    ("at sample, stopped", "every", "(B, D)", "dense"),
    ("at sample, stopped", "samples of eps", "odd", "dense"),
    ("scalars at sample", "samples", "images", "misaligned"),
)
STATS = (
    ("clamp", "(B, D)", "dense", "every"),
    ("softplus", "images", "channels last", "every"),
    ("defaults", "one column", "dense", "none"),
)
# nvcc fuses gain * raw + shift, which nearly cancels in one element. Compared with float64, the
# error there is 9e-5 in float32 on the CPU and 1e-5 in the machine code.
CANCELS = ("float32", "floor of a var")
# Each entry has a layout and options. An entry with a third item has prior tensors, and computes no
# samples.
LISTS = (
    ("dense", "softplus, fixed prior"),
    ("misaligned", "everything"),
    ("dense", "defaults", "KL alone, priors"),
)
# The float16 code differs from the bfloat16 code only in conversions, so one case for each kernel
# is enough.
OF_FLOAT16 = (
    ("long rows by groups of lanes", "dense"),
    ("a row per sample", "dense"),
    ("wide images", "chunked"),
    ("latents", "transposed"),
    ("defaults", "prior", "images", "channels last"),
    ("softplus", "prior", "(B, D)", "dense"),
    ("std", "every", "odd", "dense"),
    ("at sample, stopped", "every", "(B, D)", "dense"),
    ("at sample, stopped", "samples of eps", "odd", "dense"),
    ("clamp", "(B, D)", "dense", "every"),
    ("misaligned", "everything"),
    ("by pointer",),
)
PARTS = ("z alone", "kl alone", "gradient of z alone", "gradient of kl alone", "of mu alone")


@dataclasses.dataclass(frozen=True)
class Case:
    kind: str
    dtype: str
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return "-".join((self.kind, self.dtype, *self.arguments))


def is_run(dtype: str, arguments: tuple[str, ...]) -> bool:
    if dtype == "float16":
        return arguments in OF_FLOAT16
    if dtype == "float64":
        return arguments[0] not in LONG and arguments != LISTS[0]
    return (dtype, arguments[0]) != CANCELS


CASES = [
    Case(kind, dtype, arguments)
    for dtype in DTYPES
    for kind, choices in (
        ("default", DEFAULT),
        ("options", OPTIONS),
        ("list", LISTS),
        ("stats", STATS),
        ("part", [(part, layout) for part in PARTS for layout in ("dense", "transposed")]),
        ("key", [("by pointer",), ("2**32",), ("2**64",)]),
    )
    for arguments in choices
    if is_run(dtype, arguments)
]

# The tolerances of the emulated-device tests. The machine code adds fused multiplications and a
# MUFU error of at most 2^-22 (2.4e-7). That error is about an eighth of the default float32
# tolerance, and far less than a float16 ulp.
TOLERANCE = {
    "default": {"float32": 2e-6, "float64": 1e-13, "float16": 2e-3, "bfloat16": 1e-2},
    "options": test_latent_options.TOLERANCE,
}


def results(native: Any, device: str, case: Case) -> dict[str, np.ndarray | None]:
    """Returns the results of a call by name."""
    if case.kind == "list":
        layout, options, *special = case.arguments
        of_list = {"with_priors": bool(special), "has_z": not special}
        found = test_multi.run(native, device, case.dtype, layout, options, **of_list)
        return {f"array {k}": x for k, x in enumerate(found)}
    if case.kind == "stats":
        *what, tensors = case.arguments
        return test_stats.run(
            native, device, what[0], what[1], case.dtype, what[2], tensors == "every"
        )
    if case.kind == "options":
        options, tensors, shape, layout = case.arguments
        call = test_latent_options.run(native, device, options, tensors, shape, case.dtype, layout)
    elif case.kind == "part":
        call = part(native, device, case.dtype, *case.arguments)
    elif case.kind == "key":
        call = with_key(native, device, case.dtype, *case.arguments)
    else:
        shape, layout = case.arguments
        call = test_kernels.run(native, device, shape, case.dtype, layout)
    return {name: x for name, x in vars(call).items() if name != "keeps"}


def part(native: Any, device: str, dtype: str, which: str, layout: str) -> Call:
    """Runs a call that computes only some of the results."""
    sizes, dims = test_kernels.SHAPES["wide images"]
    mu, raw, _, grad_z = test_kernels.inputs(native, sizes, dtype, layout)
    options: dict[str, Any] = {"dims": dims, "key": test_kernels.KEY}
    if which in ("z alone", "kl alone"):
        return forward(
            native, device, mu, raw, sample=which[0] == "z", kl=which[0] == "k", **options
        )
    grad_kl = np.linspace(-1, 1, sizes[0], dtype=np.float64 if dtype == "float64" else np.float32)
    if which == "of mu alone":
        options["latent_options"] = {"prior_mean": 0.5}
        return backward(native, device, mu, None, grad_z=grad_z, grad_kl=grad_kl, **options)
    grads = {"grad_z": grad_z} if "of z" in which else {"grad_kl": grad_kl}
    return backward(native, device, mu, raw, **grads, **options)


def with_key(native: Any, device: str, dtype: str, which: str) -> Call:
    if which == "by pointer":
        pointers = np.array([1, 40], np.uint64)
        options = {"key": (0, 8), "key_pointers": pointers, "shift": 2}
        return test_kernels.run(native, device, "images", dtype, "dense", **options)
    word = int(which.partition("**")[2])
    options = {"key": (7, 2**word - 600)}  # the counter's word overflows within a tile
    return test_kernels.run(native, device, "one long row", dtype, "dense", **options)


def compare(native: ModuleType, case: Case, found: Any, expected: Any) -> None:
    tolerance = TOLERANCE["options" if case.kind in ("options", "list", "stats") else "default"]
    for name, want in expected.items():
        got = found[name]
        assert (got is None) == (want is None), name
        if want is None:
            continue
        rtol = tolerance[case.dtype]
        if name in ("kl", *test_stats.NAMES):
            rtol = min(rtol, tolerance["float32"])
        a, b = (test_kernels.values(native, x) for x in (got, want))
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol, err_msg=name)
