"""Calls the kernels on numpy arrays, in place of the parts of csrc/torch that tests need."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

DTYPES = {
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(np.uint16),
}


def empty_like(x: np.ndarray) -> np.ndarray:
    """Returns a garbage-filled array with the strides of ``x``, in a block of the same extent."""
    last = sum((n - 1) * step for n, step in zip(x.shape, x.strides, strict=True))
    block = np.full(last // x.itemsize + 1, 77, x.dtype)
    return np.lib.stride_tricks.as_strided(block, x.shape, x.strides)


def total_dtype(x: np.ndarray) -> np.dtype:
    return np.dtype(np.float64 if x.dtype == np.float64 else np.float32)


@dataclass
class Call:
    """All arrays of a call. Under deferred execution, keep it until `synchronize()`."""

    z: np.ndarray | None = None
    kl: np.ndarray | None = None
    key: np.ndarray | None = None
    grad_mu: np.ndarray | None = None
    grad_raw: np.ndarray | None = None
    grad_eps: np.ndarray | None = None
    grad_prior_mean: np.ndarray | None = None
    grad_prior_raw: np.ndarray | None = None
    keeps: tuple[Any, ...] = ()


# The options that a call may pass as one-element arrays, in the type of its arithmetic.
SCALARS = ("temperature", "free_bits", "to_posterior", "to_prior")


def with_scalars(options: dict[str, Any], mu: np.ndarray) -> dict[str, Any]:
    """Returns the options of the same call, with those in SCALARS as arrays."""
    latent_options = dict(options["latent_options"])
    scalars = {
        n: np.array(latent_options.pop(n), total_dtype(mu)) for n in SCALARS if n in latent_options
    }
    return {**options, "latent_options": latent_options, "scalars": scalars}


def sampled_like(x: np.ndarray, samples: int) -> np.ndarray:
    """Returns a garbage-filled array in the shape of z."""
    if samples == 1:
        return empty_like(x)
    return np.full((samples, *x.shape), 77, x.dtype)


def forward(
    native: ModuleType,
    device: str,
    mu: np.ndarray,
    raw: np.ndarray | None,
    *,
    dims: tuple[int, ...],
    sample: bool = True,
    kl: bool = True,
    eps: np.ndarray | None = None,
    samples: int = 1,
    z: np.ndarray | None = None,
    **options: Any,
) -> Call:
    """Runs a forward kernel. The sample is written to ``z``, or to a new array like ``mu``."""
    space = native.space(mu, dims)
    if z is None and sample:
        z = sampled_like(mu, samples)
    call = Call(
        z=z,
        kl=np.full(space["rows"], np.nan, total_dtype(mu)) if kl else None,
        key=np.zeros(2, np.uint64),
    )
    partials = np.full(space["tiles"], np.nan)
    call.keeps = (mu, raw, eps, partials, options)
    native.forward(
        device, mu, raw, dims=dims, eps=eps, z=call.z, kl=call.kl, partials=partials,
        key_out=call.key, **options,
    )  # fmt: skip
    return call


def backward(
    native: ModuleType,
    device: str,
    mu: np.ndarray,
    raw: np.ndarray | None,
    *,
    dims: tuple[int, ...],
    grad_z: np.ndarray | None = None,
    grad_kl: np.ndarray | None = None,
    eps: np.ndarray | None = None,
    prior_mean: np.ndarray | None = None,
    prior_raw: np.ndarray | None = None,
    **options: Any,
) -> Call:
    def like(x: np.ndarray | None) -> np.ndarray | None:
        return None if x is None else empty_like(np.broadcast_to(mu, mu.shape))

    call = Call(
        grad_mu=empty_like(mu),
        grad_raw=like(raw),
        grad_eps=None if eps is None else empty_like(eps),
        grad_prior_mean=like(prior_mean),
        grad_prior_raw=like(prior_raw),
        keeps=(mu, raw, eps, grad_z, grad_kl, prior_mean, prior_raw, options),
    )
    stride = 0 if grad_kl is not None and grad_kl.size == 1 else 1
    native.backward(
        device, mu, raw, dims=dims, eps=eps, grad_z=grad_z, grad_kl=grad_kl,
        grad_kl_stride=stride, grad_mu=call.grad_mu, grad_raw=call.grad_raw,
        grad_eps=call.grad_eps, prior_mean=prior_mean, prior_raw=prior_raw,
        grad_prior_mean=call.grad_prior_mean, grad_prior_raw=call.grad_prior_raw, **options,
    )  # fmt: skip
    return call
