"""Compares the kernel for batch statistics on the emulated device with the CPU kernel.

`tests/functional/test_stats.py` compares the statistics with float64.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from .calls import DTYPES, total_dtype
from .test_latent_options import LAYOUTS, OPTION_RECIPES, array

# These shapes have short rows that share a line, rows of several parts, many groups, a batch of one
# item, and kept dimensions around those of the batch.
SHAPES = {
    "(B, D)": ((70, 20), (0,)),
    "one column": ((5000, 1), (0,)),
    "wide": ((9, 1100), (0,)),
    "long": ((9000, 7), (0,)),
    "one item": ((1, 33), (0,)),
    "images": ((6, 8, 5, 4), (0, 2, 3)),
    "pixels": ((6, 8, 5, 4), (0, 1)),
}
NAMES = ("kl", "mean", "variance", "clamped", "non_finite")


def run(
    native: ModuleType, device: str, recipe: str, shape: str, dtype: str, layout: str, every: bool
) -> dict[str, np.ndarray]:
    sizes, dims = SHAPES[shape]

    def made(seed: int, wide: bool = False) -> np.ndarray:
        return array(native, sizes, dtype, layout, seed, wide)

    options: dict[str, Any] = {"latent_options": OPTION_RECIPES[recipe], "dims": dims}
    if every:
        mask = np.random.default_rng(5).random(sizes) < 0.6
        options |= {"prior_mean": made(4), "prior_raw": made(3), "mask": mask.view(np.uint8)}
        options["latent_options"] = {
            **options["latent_options"],
            "prior": {"base": "softplus", "std_floor": 0.2},
        }
    mu = made(1, wide=True).copy(order="K")
    if dtype != "bfloat16":
        mu[(0,) * mu.ndim] = np.nan
        mu[(-1,) * mu.ndim] = np.inf
    columns, partials = native.stats_sizes(device, mu, dims)
    found = {name: np.full(columns, 77, total_dtype(mu)) for name in NAMES[:3]}
    found |= {name: np.full(columns, 77, np.int64) for name in NAMES[3:]}
    options |= {**found, "partials": np.full(partials, np.nan)}
    native.stats(device, mu, made(2), **options)
    return found


def compare(native: ModuleType, *case: Any) -> None:
    dtype = case[2]
    cpu, cuda = (run(native, device, *case) for device in ("cpu", "cuda"))
    rtol = {"float64": 1e-12}.get(dtype, 2e-5)  # float sums are in a different order
    for name in NAMES:
        np.testing.assert_allclose(cuda[name], cpu[name], rtol=rtol, atol=rtol, err_msg=name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("every", [False, True], ids=["none", "every"])
def test_shapes(native: ModuleType, shape: str, dtype: str, every: bool) -> None:
    compare(native, "clamp", shape, dtype, "dense", every)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(native: ModuleType, layout: str) -> None:
    for shape in ("(B, D)", "images", "pixels"):
        compare(native, "clamp", shape, "float32", layout, True)


@pytest.mark.parametrize(
    "recipe", [f for f in OPTION_RECIPES if "sample" not in f and "linear" not in f]
)
def test_option_recipes(native: ModuleType, recipe: str) -> None:
    compare(native, recipe, "images", "float32", "channels last", True)


@pytest.mark.parametrize("shape", SHAPES)
def test_no_order_of_blocks_or_threads_changes_a_bit(native: ModuleType, shape: str) -> None:
    case = ("softplus", shape, "float32", "dense", True)
    first = run(native, "cuda", *case)
    for seed, sm_count in ((2, 132), (3, 1)):
        native.emulator.configure(seed=seed, sm_count=sm_count)
        again = run(native, "cuda", *case)
        for name in NAMES:
            np.testing.assert_array_equal(again[name], first[name], name)


def test_a_call_is_one_launch(native: ModuleType) -> None:
    before = native.emulator.launches()
    run(native, "cuda", "softplus", "long", "float32", "dense", True)
    assert native.emulator.launches() - before == 1
