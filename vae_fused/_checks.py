"""Argument checks, and the error messages for invalid arguments.

Every public function, compiled or eager, checks its arguments here before it launches a kernel or
advances a generator. Shapes and dtypes that torch would broadcast or promote are accepted. No check
reads tensor values, because a read would wait for the GPU. ``Scale`` and ``Prior`` check their
numbers at construction, in ``options.py``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, SupportsIndex, TypeAlias

import torch
from torch import Tensor

from vae_fused._estimator import check_estimator
from vae_fused._keywords import DensityOptions, chosen
from vae_fused._layouts import check_layout
from vae_fused._learned_prior import as_prior
from vae_fused._numbers import check_choice, check_not_negative, check_positive
from vae_fused._remedies import kind_of
from vae_fused._scalar_checks import (
    MAY_BE_SCALARS,
    check_balance,
    check_free_bits,
    take_scalars,
)
from vae_fused._shapes import expands, has_shape
from vae_fused._tracing import break_at_generator
from vae_fused.options import (
    DEFAULT_OPTIONS,
    CheckedPrior,
    Options,
    Scale,
    as_scale,
)

REDUCTIONS = ("batchmean", "sum", "mean", "sample", "none")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

_AS_KEY = "; pass vf.key(seed, offset)"
_AS_BOOL = "; pass {}.bool(), or multiply the result of reduction='none' by weights"

# A reduction's name, the dimensions to sum if the call has a ``dim``, and the result's divisor.
Reduced: TypeAlias = tuple[str, tuple[int, ...] | None, Tensor | None]


# --------------------------------------------------------------------------------------------------
# Tensors and options
# --------------------------------------------------------------------------------------------------


def check_call(
    mu: Tensor,
    raw: Tensor,
    options: Mapping[str, Any],
    kind: type,
    *,
    mu_name: str = "mu",
    linear: float | None = None,
) -> tuple[Tensor, Tensor, Options]:
    """Check all arguments except the reduction and the noise.

    Returns mu and raw with a common shape and dtype, and the checked options. ``options`` are the
    caller's keyword arguments, and ``kind`` is the typed dictionary of the options that the
    function accepts. An option that is missing or has its default value costs almost nothing.
    """
    given = chosen(options, kind) if options else {}
    if linear is not None:
        given["linear"] = linear
    if not given:
        return *check_posterior(mu, raw), DEFAULT_OPTIONS
    scale = as_scale(given.get("scale", "logvar"))
    mu, raw = check_posterior(mu, raw, scale.raw_name, mu_name)
    given["scale"] = scale
    if len(given) == 1:
        return mu, raw, Options(scale)
    if "prior" in given:
        mu, raw, given["prior"] = _check_prior(mu, raw, given["prior"])
    if "mask" in given:
        check_mask(mu, given["mask"])
    if not MAY_BE_SCALARS.isdisjoint(given):
        take_scalars(given, mu)
    for name, value in given.items():
        if name in _CHECKS:
            given[name] = _CHECKS[name](name, value)
    if "estimator" in given or "stop_q" in given:
        check_estimator(given)
    return mu, raw, Options(**given)


def check_density(
    value: Tensor, mu: Tensor, raw: Tensor, options: Mapping[str, Any]
) -> tuple[Tensor, Tensor, Tensor, Scale, Tensor | None]:
    """Check the arguments of a log density. Return same-shape tensors, the scale and the mask."""
    given = chosen(options, DensityOptions)
    scale, mask = as_scale(given.get("scale", "logvar")), given.get("mask")
    mu, raw = check_posterior(mu, raw, scale.raw_name)
    value, mu = check_posterior(value, mu, "mu", "value")
    value, raw = check_posterior(value, raw, scale.raw_name, "value")
    if mask is not None:
        check_mask(value, mask)
    return value, mu, raw, scale, mask


def check_posterior(
    mu: Tensor, raw: Tensor, name: str = "logvar", mu_name: str = "mu"
) -> tuple[Tensor, Tensor]:
    """Check ``mu`` and ``raw``, and return them with a common shape and dtype.

    Error messages call the tensors ``mu_name`` and ``name``. Torch operators broadcast and promote
    the tensors, so autograd sums the gradients and casts them back. In the common case of equal
    shapes and dtypes, both tensors are returned unchanged.
    """
    check_tensor(mu_name, mu)
    check_tensor(name, raw)
    check_device(name, raw, mu, mu_name)
    if mu.dtype != raw.dtype:
        dtype = promoted(mu, raw)
        mu, raw = mu.to(dtype), raw.to(dtype)
    if not has_shape(mu, raw.shape):
        sizes = zip(mu.shape[::-1], raw.shape[::-1], strict=False)
        if any(m != r and m != 1 and r != 1 for m, r in sizes):
            raise ValueError(
                f"{name} must broadcast with the shape of {mu_name}, {tuple(mu.shape)}, got "
                f"{tuple(raw.shape)}"
            )
        mu, raw = torch.broadcast_tensors(mu, raw)
    return mu, raw


def check_moments(h: Tensor, dim: int) -> tuple[Tensor, Tensor, int]:
    """Check ``h`` and ``dim``. Return views of the halves of ``h``, and a nonnegative ``dim``."""
    check_tensor("h", h)
    dim, ndim = _index(dim, "dim must be an int"), h.dim()
    if not -ndim <= dim < ndim:
        raise ValueError(f"dim must be a dimension of h, of shape {tuple(h.shape)}, got {dim}")
    if h.shape[dim] % 2 != 0:
        raise ValueError(
            f"h must have an even size in dimension {dim}, for mu and the raw scale, got shape "
            f"{tuple(h.shape)}"
        )
    mu, raw = h.chunk(2, dim)  # one autograd node, whose backward writes one gradient
    return mu, raw, dim % ndim


def _check_prior(mu: Tensor, raw: Tensor, prior: Any) -> tuple[Tensor, Tensor, CheckedPrior]:
    """Convert the posterior and prior tensors to one dtype, and expand the prior tensors.

    A tensor that already has the dtype and the shape is left alone, because even a no-op conversion
    takes 1 us.
    """
    prior = as_prior(prior)
    dtype, device, shape = mu.dtype, mu.device, mu.shape
    mean, prior_raw, tensors = prior.mean, prior.raw, []
    for name, value in (("prior.mean", mean), ("prior.raw", prior_raw)):
        if isinstance(value, Tensor):
            check_tensor(name, value)
            if value.device != device:
                check_device(name, value, mu)
            if not has_shape(value, shape):
                check_expands(name, value, shape)
            if value.dtype != dtype:
                tensors = [v for v in (mean, prior_raw) if isinstance(v, Tensor)]
    if tensors:
        dtype = promoted(mu, raw, *tensors)
        mu, raw = mu.to(dtype), raw.to(dtype)
        mean, prior_raw = (v.to(dtype) if isinstance(v, Tensor) else v for v in (mean, prior_raw))
    if isinstance(mean, Tensor) and not has_shape(mean, shape):
        mean = mean.expand_as(mu)
    if isinstance(prior_raw, Tensor) and not has_shape(prior_raw, shape):
        prior_raw = prior_raw.expand_as(mu)
    return mu, raw, CheckedPrior(mean, prior_raw, as_scale(prior.scale))


def check_mask(
    mu: Tensor,
    mask: Tensor,
    name: str = "mu",
    owner: str = "the shape of the posterior",
    called: str = "mask",
) -> None:
    check_tensor(called, mask, (torch.bool,), "bool", _AS_BOOL)
    check_device(called, mask, mu, name)
    check_expands(called, mask, mu.shape, owner)


def check_shape(name: str, sample_shape: int | Sequence[int]) -> tuple[int, ...]:
    sizes = _indices(name, sample_shape)
    if any(size < 0 for size in sizes):
        raise ValueError(f"{name} must have sizes of at least 0, got {sizes}")
    return sizes


# Checks for options that neither are tensors nor contain any.
_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "mu_soft_clamp": check_positive,
    "free_bits": check_free_bits,
    "balance": check_balance,
    "temperature": check_not_negative,
    "sample_shape": check_shape,
}


# --------------------------------------------------------------------------------------------------
# Tensors
# --------------------------------------------------------------------------------------------------


def check_tensor(
    name: str,
    value: Tensor,
    dtypes: tuple[torch.dtype, ...] = DTYPES,
    requirement: str = "a floating-point tensor of 16, 32 or 64 bits",
    remedy: str = "",
) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {kind_of(value)}")
    if value.dtype not in dtypes:
        raise TypeError(f"{name} must be {requirement}, got {value.dtype}{remedy.format(name)}")
    check_layout(name, value)


def check_device(name: str, value: Tensor, mu: Tensor, mu_name: str = "mu") -> None:
    if value.device != mu.device:
        raise RuntimeError(
            f"{name} must be on the device of {mu_name}, {mu.device}, got {value.device}"
        )


def check_expands(
    name: str, value: Tensor, shape: Sequence[int], owner: str = "the shape of the posterior"
) -> None:
    """Check that a tensor broadcasts to ``shape``, which error messages call ``owner``."""
    if not expands(value.shape, shape):
        whole, got = tuple(shape), tuple(value.shape)
        raise ValueError(f"{name} must broadcast to {owner}, {whole}, got {got}")


def promoted(*tensors: Tensor) -> torch.dtype:
    """Compute ``torch.result_type``, which Dynamo cannot trace, for floating-point tensors."""
    dtypes = [t.dtype for t in tensors if t.dim() > 0]
    dtypes = dtypes or [t.dtype for t in tensors]  # 0-d tensors do not promote the others
    dtype = dtypes[0]
    for other in dtypes[1:]:
        dtype = dtype if other == dtype else torch.promote_types(dtype, other)
    return dtype


# --------------------------------------------------------------------------------------------------
# Reductions, noise, points
# --------------------------------------------------------------------------------------------------


def check_reduction(
    mu: Tensor,
    reduction: str,
    dim: int | Sequence[int] | None,
    mask: Tensor | None = None,
    *,
    name: str = "dim",
    default: str = "batchmean",
    tensor: str = "mu",
) -> Reduced:
    """Check ``reduction`` and ``dim`` for a tensor.

    Error messages call ``dim`` and the tensor ``name`` and ``tensor``, respectively. Returns the
    name of the reduction, the dimensions to sum if ``dim`` is given, and, for a mean over the
    unmasked elements, the divisor of their sum.
    """
    if dim is None:
        check_choice("reduction", reduction, REDUCTIONS)
        if reduction == "sample" and mu.dim() == 0:
            raise ValueError(
                f'{tensor} must have at least 1 dimension for reduction="sample", got shape ()'
            )
        if reduction == "mean" and mask is not None:
            return "sum", None, mask.sum() * (mu.numel() // max(mask.numel(), 1))
        return reduction, None, None
    if reduction != default:
        raise ValueError(
            f"reduction must have its default, {default!r}, where {name} is given, got "
            f"{reduction!r}"
        )
    dims = _indices(name, dim)
    if not dims:
        raise ValueError(
            f'{name} must contain a dimension, got none; pass reduction="none" to keep all'
        )
    ndim = max(mu.dim(), 1)  # as in torch, a 0-d tensor accepts dim=0
    seen = set()
    for d in dims:
        if not -ndim <= d < ndim:
            shape = tuple(mu.shape)
            raise ValueError(f"{name} must be a dimension of {tensor}, of shape {shape}, got {d}")
        if d % ndim in seen:
            raise ValueError(f"{name} must contain each dimension once, got {dims}")
        seen.add(d % ndim)
    return ("none", None, None) if mu.dim() == 0 else ("sum", dims, None)


def _indices(name: str, value: int | Sequence[int]) -> tuple[int, ...]:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_index(v, f"{name} must contain ints") for v in value)
    return (_index(value, f"{name} must be an int or a sequence of ints"),)


def _index(value: SupportsIndex, requirement: str) -> int:
    """Return an index as an int. NumPy integers are accepted, but bools and tensors are not."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, torch.SymInt):  # operator.index would make it a constant
        return value  # type: ignore[return-value]
    if not isinstance(value, bool | Tensor) and hasattr(value, "__index__"):
        return operator.index(value)
    raise TypeError(f"{requirement}, got {type(value).__name__}")


def check_noise(
    mu: Tensor,
    eps: Tensor | None,
    generator: torch.Generator | None,
    key: Tensor | None,
    sample_shape: tuple[int, ...] = (),
) -> Tensor | None:
    """Check the noise source. Return eps, if given, in the dtype of mu."""
    if eps is None and generator is None and key is None:
        return None
    sources = {"eps": eps, "generator": generator, "key": key}
    given = [name for name, value in sources.items() if value is not None]
    if len(given) > 1:
        raise ValueError(
            f"eps, generator and key must not be given together, got {' and '.join(given)}"
        )
    if eps is not None:
        return _check_eps(mu, eps, sample_shape)
    if generator is not None:
        if not isinstance(generator, torch.Generator):
            raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
        theirs, index = generator.device, mu.device.index
        if theirs.type != mu.device.type or not (theirs.index is None or theirs.index == index):
            raise RuntimeError(
                f"generator must be on the device of mu, {mu.device}, got {generator.device}"
            )
        break_at_generator()
    if key is not None:
        check_key(mu, key)
    return None


def _check_eps(mu: Tensor, eps: Tensor, sample_shape: tuple[int, ...]) -> Tensor:
    check_tensor("eps", eps)
    if eps.shape != (shape := (*sample_shape, *mu.shape)):
        raise ValueError(f"eps must have the shape of z, {shape}, got {tuple(eps.shape)}")
    check_device("eps", eps, mu)
    return eps if eps.dtype == mu.dtype else eps.to(mu.dtype)


def check_key(mu: Tensor, key: Tensor) -> None:
    """Check a key that generates noise for ``mu``."""
    check_tensor("key", key, (torch.uint64, torch.int64), "uint64 or int64", _AS_KEY)
    if tuple(key.shape) != (2,):
        raise ValueError(
            f"key must have shape (2,), for a seed and an offset, got {tuple(key.shape)}{_AS_KEY}"
        )
    check_device("key", key, mu)


def check_value(value: Tensor, shape: Sequence[int]) -> None:
    """Check the argument ``value`` of a density whose batch shape is ``shape``."""
    if not isinstance(value, Tensor):
        raise TypeError(f"value must be a Tensor, got {kind_of(value)}")
    sizes = zip(tuple(value.shape)[::-1], tuple(shape)[::-1], strict=False)
    if any(v != s and v != 1 and s != 1 for v, s in sizes):
        raise ValueError(
            f"value must broadcast with the batch shape, {tuple(shape)}, got {tuple(value.shape)}"
        )
