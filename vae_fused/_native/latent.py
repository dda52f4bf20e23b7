"""Calls the latent operators for the public functions.

An ordinary call goes directly to the operator, whose autograd node is in C++. If forward mode or a
transform of ``torch.func`` is active, the call goes through ``Latent``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from vae_fused import _ext
from vae_fused._native.autograd import Latent, apply
from vae_fused._native.call import Call, Maybe, Operands
from vae_fused.options import AT_SAMPLE, STOP_Q, Options, Prior, as_scale

__all__ = [
    "REFUSED", "is_transformed", "kl", "may_call_directly", "moments", "sample", "sample_and_kl",
    "stats", "try_kl", "try_moments", "try_sample", "try_sample_and_kl", "try_stats",
]  # fmt: skip

_ops = torch.ops.vae_fused
_functorch_is_active = torch._C._are_functorch_transforms_active
Dims = tuple[int, ...] | None
REFUSED = (TypeError, ValueError, IndexError, RuntimeError)


def is_transformed() -> bool:
    """Whether forward mode or a transform of ``torch.func`` is active."""
    return _functorch_is_active() or forward_ad._current_level >= 0


# --------------------------------------------------------------------------------------------------
# Calls whose tensors need no preparation
#
# If the operator accepts the options of a call unchanged, these functions call it at once. The
# operator makes the same checks as Python, but its messages are short. The functions return None
# for other calls and for those that the operator refuses. Their callers then run the checks in
# Python, which raise the full message. The checks in Python take 4 us, and 8 us in a training step.
# --------------------------------------------------------------------------------------------------


def try_sample_and_kl(
    mu: Tensor, raw: Tensor, options: Mapping[str, Any], generator: torch.Generator | None,
    reduction: str,
) -> tuple[Tensor, Tensor] | None:  # fmt: skip
    more = _unprepared(mu, raw, options, reduction)
    if more is None:
        return None
    try:
        z, kl, _ = _ops.reparameterize_kl.generator(
            mu, raw, generator=generator, reduction=reduction, dim=None, **more
        )
    except REFUSED:
        return None
    return z, kl


def try_moments(
    h: Tensor, dim: int, options: Mapping[str, Any], generator: torch.Generator | None,
    reduction: str,
) -> tuple[Tensor, Tensor] | None:  # fmt: skip
    # Option tensors have the shape of one half of ``h``, so they are never accepted here.
    more = _unprepared(h, h, options, reduction) if type(dim) is int else None
    if more is None:
        return None
    try:
        z, kl, _ = _ops.reparameterize_kl_moments.generator(
            h, packed_dim=dim, generator=generator, reduction=reduction, dim=None, **more
        )
    except REFUSED:
        return None
    return z, kl


def try_sample(
    mu: Tensor, raw: Tensor, options: Mapping[str, Any], generator: torch.Generator | None
) -> Tensor | None:
    more = _unprepared(mu, raw, options, None)
    if more is None:
        return None
    try:
        z: Tensor = _ops.reparameterize.generator(mu, raw, generator=generator, **more)[0]
    except REFUSED:
        return None
    return z


def try_kl(mu: Tensor, raw: Tensor, options: Mapping[str, Any], reduction: str) -> Tensor | None:
    more = _unprepared(mu, raw, options, reduction)
    if more is None:
        return None
    try:
        kl: Tensor = _ops.gaussian_kl.default(mu, raw, reduction=reduction, dim=None, **more)
    except REFUSED:
        return None
    return kl


def try_stats(
    mu: Tensor, raw: Tensor, options: Mapping[str, Any], dim: int | Sequence[int]
) -> tuple[Tensor, ...] | None:
    more = _unprepared(mu, raw, options, "sum") if type(dim) is int else None
    if more is None:
        return None
    try:
        found: tuple[Tensor, ...] = _ops.latent_stats.default(mu, raw, dim=(dim,), **more)
    except REFUSED:
        return None
    return found


def may_call_directly(t: Tensor) -> bool:
    """Whether an operator may be called with tensors like ``t`` before they are checked.

    This is not allowed while a mode records or replaces operator calls, because a call that the
    operator refuses would be recorded without being used.
    """
    try:
        is_served = t.is_cpu or (t.is_cuda and _ext.has_cuda)
    except RuntimeError:  # a subclass without these attributes; the checks raise
        return False
    return (
        _ext.available
        and is_served
        and (type(t) is Tensor or type(t).__name__ != "DTensor")
        and not torch.compiler.is_compiling()
        and not is_transformed()
        and torch._C._len_torch_dispatch_stack() == 0
    )


def _unprepared(
    mu: Tensor, raw: Tensor, options: Mapping[str, Any], reduction: str | None
) -> dict[str, Any] | None:
    """Return the operator's arguments for the options, or None if anything needs preparation."""
    if not isinstance(mu, Tensor) or not isinstance(raw, Tensor) or mu.dtype is not raw.dtype:
        return None
    if not may_call_directly(mu):
        return None
    if not options:
        return {}
    arguments: dict[str, Any] = {}
    numbers: list[float] = []
    for name, value in options.items():
        if name == "scale":
            numbers = [*as_scale(value).pairs("posterior"), *numbers]
        elif name == "mask" and isinstance(value, Tensor) and reduction not in (None, "mean"):
            if value.shape != mu.shape:
                return None
            arguments["mask"] = value
        elif name == "prior" and isinstance(value, Prior) and reduction is not None:
            for key, tensor in (("prior_mean", value.mean), ("prior_raw", value.raw)):
                if not isinstance(tensor, Tensor) or tensor.shape != mu.shape:
                    return None
                arguments[key] = tensor
            numbers += as_scale(value.scale).pairs("prior")
        elif name == "sample_shape":
            shape = value if type(value) is tuple else (value,)
            if not all(type(size) is int for size in shape):
                return None
            if shape:
                arguments["sample_shape"] = shape
        elif name == "estimator" and value == "sample" and reduction is not None:
            numbers += AT_SAMPLE
        elif name == "stop_q" and value is True and options.get("estimator") == "sample":
            numbers += STOP_Q
        else:
            return None
    if numbers:
        arguments["options"] = numbers
    return arguments


# --------------------------------------------------------------------------------------------------
# Checked calls
# --------------------------------------------------------------------------------------------------


def sample_and_kl(
    mu: Tensor, raw: Tensor, options: Options, eps: Maybe, generator: torch.Generator | None,
    key: Maybe, reduction: str, dims: Dims,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if is_transformed():
        z, kl = _transformed(True, mu, raw, options, eps, generator, key, reduction, dims)
        return z, kl
    more = options.arguments(mu)
    if eps is not None or key is not None:
        z, kl = _ops.reparameterize_kl.default(
            mu, raw, eps=eps, key=key, reduction=reduction, dim=dims, **more
        )
    else:
        z, kl, _ = _ops.reparameterize_kl.generator(
            mu, raw, generator=generator, reduction=reduction, dim=dims, **more
        )
    return z, kl


def moments(
    h: Tensor, packed_dim: int, mu: Tensor, raw: Tensor, options: Options, eps: Maybe,
    generator: torch.Generator | None, key: Maybe, reduction: str, dims: Dims,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Compute the sample and the KL of ``mu`` and ``raw``, which are the halves of ``h``."""
    if is_transformed():
        return sample_and_kl(mu, raw, options, eps, generator, key, reduction, dims)
    if h.dtype != mu.dtype:  # the prior's dtype is wider
        h = h.to(mu.dtype)
    more = options.arguments(mu)
    if eps is not None or key is not None:
        z, kl = _ops.reparameterize_kl_moments.default(
            h, packed_dim=packed_dim, eps=eps, key=key, reduction=reduction, dim=dims, **more
        )
    else:
        z, kl, _ = _ops.reparameterize_kl_moments.generator(
            h, packed_dim=packed_dim, generator=generator, reduction=reduction, dim=dims, **more
        )
    return z, kl


def sample(
    mu: Tensor, raw: Tensor, options: Options, eps: Maybe, generator: torch.Generator | None,
    key: Maybe,
) -> Tensor:  # fmt: skip
    z: Tensor
    if is_transformed():
        (z,) = _transformed(True, mu, raw, options, eps, generator, key, None, None)
        return z
    more = options.arguments(mu)
    if eps is not None or key is not None:
        z = _ops.reparameterize.default(mu, raw, eps=eps, key=key, **more)
    else:
        z = _ops.reparameterize.generator(mu, raw, generator=generator, **more)[0]
    return z


def kl(mu: Tensor, raw: Maybe, options: Options, reduction: str, dims: Dims) -> Tensor:
    result: Tensor
    if is_transformed():
        (result,) = _transformed(False, mu, raw, options, None, None, None, reduction, dims)
        return result
    result = _ops.gaussian_kl.default(
        mu, raw, reduction=reduction, dim=dims, **options.arguments(mu)
    )
    return result


def stats(mu: Tensor, raw: Tensor, options: Options, dims: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Return the KL, mean, variance and counts over ``dims``, without gradients."""
    return tuple(_ops.latent_stats.default(mu, raw, dim=dims, **options.arguments(mu)))


def _transformed(
    has_sample: bool, mu: Tensor, raw: Maybe, options: Options, eps: Maybe,
    generator: torch.Generator | None, key: Maybe, reduction: str | None, dims: Dims,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Compute a call that a transform may batch. It has a KL if ``reduction`` is given."""
    arguments: dict[str, Any] = options.arguments(mu)
    dims, divisor = _summed(mu, reduction, dims)
    call = Call(
        has_sample, reduction is not None, "sum" if dims else "none", dims,
        arguments.pop("options", None), arguments.pop("sample_shape", None) or (),
    )  # fmt: skip
    draw = None
    if key is not None:
        key = key.clone(memory_format=torch.contiguous_format)
    elif eps is None and has_sample:
        _check_randomness()
        draw = torch.rand(0, device=mu.device)
    out = apply(Latent, call, generator, draw, *Operands(mu, raw, eps, key, **arguments))
    z = out[: call.sample]
    return z if reduction is None else (*z, out[call.sample] / divisor)


def _summed(mu: Tensor, reduction: str | None, dims: Dims) -> tuple[Dims, int]:
    """Express a reduction as the nonnegative dimensions to sum and a divisor."""
    ndim = mu.dim()
    if dims is not None:
        return tuple(d % ndim for d in dims), 1
    if reduction in (None, "none") or ndim == 0:
        return None, 1
    if reduction == "sample":
        return tuple(range(1, ndim)) or None, 1
    divisor = {"batchmean": mu.shape[0], "mean": mu.numel()}.get(str(reduction), 1)
    return tuple(range(ndim)), divisor


def _check_randomness() -> None:
    for interpreter in torch._C._functorch.get_interpreter_stack() or []:
        if interpreter.key() == torch._C._functorch.TransformType.Vmap:
            vmap = torch._C._functorch.CVmapInterpreterPtr(interpreter)
            if vmap.randomness() == torch._C._functorch.RandomnessType.Error:
                raise RuntimeError(
                    "vae_fused: randomness of torch.vmap must be 'different' or 'same' where a "
                    "sample is drawn, got 'error'; pass it to vmap, or a key or eps to the call "
                    "(under Opacus a key: see docs/frameworks.md)"
                )
