"""The messages of a bad call: what the argument is, what it got, what it wants.

Every public function, compiled or not, checks its arguments here, before anything is launched and
before any generator is advanced. Shapes and dtypes that torch would broadcast or promote pass.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import SupportsIndex

import torch
from torch import Tensor

REDUCTIONS = ("batchmean", "sum", "mean", "sample", "none")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def check_posterior(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    """Check ``mu`` and ``logvar``; return them in one shape and dtype.

    Broadcasting and promotion are torch's own operators, so autograd sums and casts the gradients
    back. Equal shapes and dtypes, the rule, pass through untouched.
    """
    if not (isinstance(mu, Tensor) and isinstance(logvar, Tensor)):
        name, value = ("mu", mu) if not isinstance(mu, Tensor) else ("logvar", logvar)
        raise TypeError(f"{name} must be a Tensor, got {type(value).__name__}")
    if mu.dtype not in DTYPES or logvar.dtype not in DTYPES:
        name, value = ("mu", mu) if mu.dtype not in DTYPES else ("logvar", logvar)
        raise TypeError(
            f"{name} has dtype {value.dtype}, wants float32, float64, float16 or bfloat16"
        )
    if mu.device != logvar.device:
        raise RuntimeError(f"logvar is on {logvar.device}, mu on {mu.device}; want one device")
    for name, value in (("mu", mu), ("logvar", logvar)):
        _check_layout(name, value)
    if mu.dtype != logvar.dtype:
        dtype = _promoted(mu, logvar)
        mu, logvar = mu.to(dtype), logvar.to(dtype)
    if mu.shape != logvar.shape:
        if any(
            m not in (1, v) and v != 1
            for m, v in zip(mu.shape[::-1], logvar.shape[::-1], strict=False)
        ):
            raise ValueError(
                f"logvar has shape {tuple(logvar.shape)}, which does not broadcast with mu's "
                f"{tuple(mu.shape)}"
            )
        mu, logvar = torch.broadcast_tensors(mu, logvar)
    return mu, logvar


def check_moments(h: Tensor, dim: int) -> tuple[Tensor, Tensor, int]:
    """Check ``h`` and where it is packed; return its halves, as views, and ``dim`` from 0 on."""
    if not isinstance(h, Tensor):
        raise TypeError(f"h must be a Tensor, got {type(h).__name__}")
    if h.dtype not in DTYPES:
        raise TypeError(f"h has dtype {h.dtype}, wants float32, float64, float16 or bfloat16")
    _check_layout("h", h)
    dim, ndim = _index(dim, "dim must be an int"), h.dim()
    if not -ndim <= dim < ndim:
        raise ValueError(f"dim {dim} is out of range for h of {ndim} dimensions")
    size = h.shape[dim]
    if size % 2 != 0:
        raise ValueError(f"h has size {size} in dimension {dim}, wants an even one: mu and logvar")
    return h.narrow(dim, 0, size // 2), h.narrow(dim, size // 2, size // 2), dim % ndim


def _promoted(a: Tensor, b: Tensor) -> torch.dtype:
    """``torch.result_type`` of two floating point tensors, which Dynamo cannot trace."""
    if (a.dim() == 0) != (b.dim() == 0):  # a 0-d tensor does not promote one with dimensions
        return b.dtype if a.dim() == 0 else a.dtype
    return torch.promote_types(a.dtype, b.dtype)


def _check_layout(name: str, value: Tensor) -> None:
    if value.layout != torch.strided or value.is_nested:
        layout = "nested" if value.is_nested else str(value.layout)
        raise TypeError(f"{name} has layout {layout}, wants torch.strided")


def check_reduction(
    mu: Tensor, reduction: str, dim: int | Sequence[int] | None, name: str = "dim"
) -> tuple[str, tuple[int, ...] | None]:
    """Check ``reduction`` and ``dim``, called ``name``; return them, the dims as a tuple."""
    if dim is None:
        if not isinstance(reduction, str):
            raise TypeError(f"reduction must be a str, got {type(reduction).__name__}")
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction is {reduction!r}, wants one of {', '.join(REDUCTIONS)}")
        if reduction == "sample" and mu.dim() == 0:
            raise ValueError('reduction="sample" keeps dimension 0, but mu is 0-d')
        return reduction, None
    if reduction != "batchmean":
        raise ValueError(
            f"{name} replaces reduction: give {name}={dim!r} or reduction={reduction!r}"
        )
    if isinstance(dim, Sequence) and not isinstance(dim, str):
        dims = tuple(_index(d, f"{name} must hold ints") for d in dim)
    else:
        dims = (_index(dim, f"{name} must be an int or a sequence of ints"),)
    if not dims:
        raise ValueError(f'{name} is empty: name the dimensions to sum, or use reduction="none"')
    ndim = max(mu.dim(), 1)  # as in torch, a 0-d tensor has a dimension 0 for the asking
    seen = set()
    for d in dims:
        if not -ndim <= d < ndim:
            raise ValueError(f"{name} {d} is out of range for mu of {mu.dim()} dimensions")
        if d % ndim in seen:
            raise ValueError(f"{name} {d} appears twice in {dims}")
        seen.add(d % ndim)
    return ("none", None) if mu.dim() == 0 else (reduction, dims)


def _index(value: SupportsIndex, wanted: str) -> int:
    """An int, or what stands for one, like numpy's; but neither a bool nor a tensor."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, bool | Tensor) and hasattr(value, "__index__"):
        return operator.index(value)
    raise TypeError(f"{wanted}, got {type(value).__name__}")


def check_noise(
    mu: Tensor, eps: Tensor | None, generator: torch.Generator | None, key: Tensor | None
) -> Tensor | None:
    """Check where the noise comes from; return eps, if given, in the dtype of mu."""
    given = [
        name for name, value in (("eps", eps), ("generator", generator), ("key", key))
        if value is not None
    ]  # fmt: skip
    if not given:
        return None
    if len(given) > 1:
        raise ValueError(f"give one of eps, generator and key, got {' and '.join(given)}")
    if eps is not None:
        return _check_eps(mu, eps)
    if generator is not None:
        if not isinstance(generator, torch.Generator):
            raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
        theirs, index = generator.device, mu.device.index
        if theirs.type != mu.device.type or not (theirs.index is None or theirs.index == index):
            raise RuntimeError(f"generator is for {generator.device}, mu is on {mu.device}")
    if key is not None:
        _check_key(mu, key)
    return None


def _check_eps(mu: Tensor, eps: Tensor) -> Tensor:
    if not isinstance(eps, Tensor):
        raise TypeError(f"eps must be a Tensor, got {type(eps).__name__}")
    if eps.shape != mu.shape:
        raise ValueError(f"eps has shape {tuple(eps.shape)}, wants z's {tuple(mu.shape)}")
    if eps.dtype not in DTYPES:
        raise TypeError(f"eps has dtype {eps.dtype}, wants a floating point dtype as mu's")
    _check_layout("eps", eps)
    if eps.device != mu.device:
        raise RuntimeError(f"eps is on {eps.device}, mu on {mu.device}; want one device")
    return eps if eps.dtype == mu.dtype else eps.to(mu.dtype)


def _check_key(mu: Tensor, key: Tensor) -> None:
    if not isinstance(key, Tensor):
        raise TypeError(f"key must be a Tensor (seed, offset), got {type(key).__name__}")
    _check_layout("key", key)
    if key.dtype not in (torch.uint64, torch.int64):
        raise TypeError(f"key has dtype {key.dtype}, wants uint64 or int64")
    if tuple(key.shape) != (2,):
        raise ValueError(f"key has shape {tuple(key.shape)}, wants (2,): (seed, offset)")
    if key.device != mu.device:
        raise RuntimeError(f"key is on {key.device}, mu on {mu.device}; want one device")


def check_value(value: Tensor, shape: Sequence[int]) -> None:
    """Check a point at which a density of batch shape ``shape`` is asked for."""
    if not isinstance(value, Tensor):
        raise TypeError(f"value must be a Tensor, got {type(value).__name__}")
    sizes = zip(tuple(value.shape)[::-1], tuple(shape)[::-1], strict=False)
    if any(v not in (1, s) and s != 1 for v, s in sizes):
        raise ValueError(
            f"value has shape {tuple(value.shape)}, which does not broadcast with the batch shape "
            f"{tuple(shape)}"
        )
