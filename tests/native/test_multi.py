"""The kernels for lists of tensors on the emulated device against the CPU kernels."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from .calls import DTYPES, total_dtype, with_scalars
from .test_latent_options import TOLERANCE, array, values

KEY = (9, 2**32 - 3)
SIZES = (1, 7, 2048, 2049, 640, 5000, 3, 4096, 12)
OPTION_RECIPES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "softplus, fixed prior": {
        "posterior": {"base": "softplus", "std_floor": 0.01}, "prior_mean": 0.1, "prior_x": -1.0,
    },
    "everything": {
        "posterior": {"base": "sigmoid", "unit": 2.0}, "mu_soft_clamp": 1.5, "temperature": 0.5,
        "free_bits": 0.2,
    },
}  # fmt: skip


def run(
    native: ModuleType, device: str, dtype: str, layout: str, recipe: str, *,
    as_arrays: bool = False, has_z: bool = True, with_priors: bool = False,
) -> list[np.ndarray]:  # fmt: skip
    def made(seed: int) -> list[np.ndarray]:
        return [array(native, (n,), dtype, layout, seed + n, wide=True) for n in SIZES]

    mu, raw, grad_z = made(0), made(1), made(2)
    empty = [[np.full(n, 77, x.dtype) for n, x in zip(SIZES, mu, strict=True)] for _ in range(3)]
    zs, grad_mu, grad_raw = empty
    kl = np.full(1, np.nan, total_dtype(mu[0]))
    common = {
        "weights": [1.0 / n for n in SIZES], "key": KEY, "latent_options": OPTION_RECIPES[recipe],
    }  # fmt: skip
    if as_arrays:
        common = with_scalars(common, mu[0])
    if with_priors:  # every second tensor has prior tensors
        common["prior_mean"], common["prior_raw"] = made(3), made(4)
    if not has_z:
        zs, grad_z = [], []
    partials = np.full(sum(-(-n // 2048) for n in SIZES), np.nan)
    native.multi(device, mu, raw, zs, None, [], kl, partials, **common)
    grad_kl = np.full(1, 0.7, kl.dtype)
    native.multi(device, mu, raw, grad_mu, grad_z, grad_raw, grad_kl, None, **common)
    return [kl, *zs, *grad_mu, *grad_raw]


@pytest.mark.parametrize("layout", ["dense", "misaligned"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("recipe", OPTION_RECIPES)
def test_the_devices_agree(native: ModuleType, recipe: str, dtype: str, layout: str) -> None:
    cpu, cuda = (run(native, device, dtype, layout, recipe) for device in ("cpu", "cuda"))
    for a, b in zip(cuda, cpu, strict=True):
        tolerance = TOLERANCE[dtype]
        np.testing.assert_allclose(
            values(native, a), values(native, b), rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize("has_z", [True, False])
@pytest.mark.parametrize("with_priors", [True, False])
@pytest.mark.parametrize("layout", ["dense", "misaligned"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_priors_and_the_kl_alone(
    native: ModuleType, dtype: str, layout: str, with_priors: bool, has_z: bool
) -> None:
    more = {"with_priors": with_priors, "has_z": has_z}
    cpu, cuda = (
        run(native, device, dtype, layout, "softplus, fixed prior", **more)
        for device in ("cpu", "cuda")
    )
    tolerance = TOLERANCE[dtype]
    for a, b in zip(cuda, cpu, strict=True):
        np.testing.assert_allclose(
            values(native, a), values(native, b), rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_options_on_the_device_are_the_numbers_bit_for_bit(native: ModuleType, dtype: str) -> None:
    for device in ("cpu", "cuda"):
        case = (native, device, dtype, "dense", "everything")
        for got, want in zip(run(*case, as_arrays=True), run(*case), strict=True):
            np.testing.assert_array_equal(got, want)


def test_no_order_of_blocks_changes_a_bit_and_launches_are_two(native: ModuleType) -> None:
    before = native.emulator.launches()
    first = run(native, "cuda", "float32", "dense", "everything")
    assert native.emulator.launches() - before == 2
    for seed, sm_count in ((2, 132), (3, 1)):
        native.emulator.configure(seed=seed, sm_count=sm_count)
        again = run(native, "cuda", "float32", "dense", "everything")
        for a, b in zip(again, first, strict=True):
            np.testing.assert_array_equal(a, b)
