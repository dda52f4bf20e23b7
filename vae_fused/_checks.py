"""The messages of a bad call: what the argument is, what it got, what it wants.

Every public function, compiled or not, checks its arguments here, before anything is launched and
before any generator is advanced. Shapes and dtypes that torch would broadcast or promote pass. No
value of a tensor is looked at: that would wait for the GPU. A ``Scale`` and a ``Prior`` check their
numbers when they are made, in ``options.py``.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import SupportsIndex

import torch
from torch import Tensor

from vae_fused.options import PLAIN, Options, Prior, Scale, as_scale, check_number, check_positive

REDUCTIONS = ("batchmean", "sum", "mean", "sample", "none")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

LOG_2PI = math.log(2.0 * math.pi)


# --------------------------------------------------------------------------------------------------
# What is computed: tensors and options
# --------------------------------------------------------------------------------------------------


def check_call(
    mu: Tensor,
    raw: Tensor,
    *,
    scale: str | Scale = "logvar",
    mu_soft_clamp: float | None = None,
    prior: Prior | None = None,
    mask: Tensor | None = None,
    free_bits: float = 0.0,
    balance: tuple[float, float] | None = None,
    temperature: float = 1.0,
    sample_shape: int | Sequence[int] = (),
) -> tuple[Tensor, Tensor, Options]:
    """Check all but reduction and noise; return mu and raw in one shape and dtype, and the rest."""
    if (
        (scale == "logvar" or scale is PLAIN.scale)
        and mu_soft_clamp is None
        and prior is None
        and mask is None
        and balance is None
        and (type(free_bits) is float and free_bits == 0.0)
        and (type(temperature) is float and temperature == 1.0)
        and (isinstance(sample_shape, tuple) and not sample_shape)
    ):  # the usual call, which pays for these comparisons alone
        return *check_posterior(mu, raw), PLAIN
    scale = as_scale(scale)
    mu, raw = check_posterior(mu, raw, scale.raw_name)
    mu, raw, prior = _check_prior(mu, raw, prior)
    if mask is not None:
        _check_mask(mu, mask)
    return mu, raw, Options(
        scale=scale,
        mu_soft_clamp=_check_optional("mu_soft_clamp", mu_soft_clamp),
        prior=prior,
        mask=mask,
        free_bits=check_number("free_bits", free_bits, "a number of nats, at least 0", low=0.0),
        balance=_check_balance(balance),
        temperature=check_number("temperature", temperature, "a number of at least 0", low=0.0),
        sample_shape=_check_sample_shape(sample_shape),
    )  # fmt: skip


def check_sampled(
    z: Tensor,
    raw: Tensor,
    *,
    scale: str | Scale,
    prior: Prior | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Options]:
    """Check the arguments of a KL from a sample, which is the linear form with c = -1."""
    scale = as_scale(scale)
    z, raw = check_posterior(z, raw, scale.raw_name, "z")
    z, raw, prior = _check_prior(z, raw, prior)
    if mask is not None:
        _check_mask(z, mask)
    return z, raw, Options(scale=scale, prior=prior, mask=mask, linear=-1.0)


def check_density(
    value: Tensor, mu: Tensor, raw: Tensor, *, scale: str | Scale, mask: Tensor | None
) -> tuple[Tensor, Options]:
    """Check the arguments of a log density, which is minus the linear form with c = ln 2 pi.

    Its Gaussian stands where a prior stands. Returns the value in the shape of all three.
    """
    scale = as_scale(scale)
    mu, raw = check_posterior(mu, raw, scale.raw_name)
    value, mu = check_posterior(value, mu, "mu", "value")
    value, raw = check_posterior(value, raw, scale.raw_name, "value")
    if mask is not None:
        _check_mask(value, mask)
    return value, Options(prior=Prior(mu, raw, scale), mask=mask, linear=LOG_2PI)


def check_multi(
    mus: Sequence[Tensor],
    raws: Sequence[Tensor],
    *,
    scale: str | Scale,
    mu_soft_clamp: float | None,
    prior: Prior | None,
    reduction: str,
    free_bits: float,
    temperature: float,
    eps: Sequence[Tensor] | None,
    generator: torch.Generator | None,
    key: Tensor | None,
) -> tuple[list[Tensor], list[Tensor], Options, list[Tensor] | None]:
    """Check a list of calls that have their options in common."""
    lists = (("mus", mus), ("raws", raws), *((("eps", eps),) if eps is not None else ()))
    for name, values in lists:
        if not isinstance(values, Sequence):
            raise TypeError(f"{name} must be a sequence of Tensors, got {type(values).__name__}")
        if not values or len(values) != len(mus):
            raise ValueError(f"{name} has {len(values)} tensors, wants those of mus: {len(mus)}")
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction is {reduction!r}, wants sum or mean")
    if isinstance(prior, Prior) and any(isinstance(v, Tensor) for v in (prior.mean, prior.raw)):
        raise ValueError("prior has tensors, wants numbers: one prior for the whole list")
    checked = [
        check_call(
            mu, raw, scale=scale, mu_soft_clamp=mu_soft_clamp, prior=prior, free_bits=free_bits,
            temperature=temperature,
        )
        for mu, raw in zip(mus, raws, strict=True)
    ]  # fmt: skip
    mu, raw = [c[0] for c in checked], [c[1] for c in checked]
    for k, other in enumerate(mu):
        if other.dtype != mu[0].dtype:
            raise TypeError(f"mus[{k}] has dtype {other.dtype}, mus[0] {mu[0].dtype}; want one")
        _check_device(f"mus[{k}]", other, mu[0], "mus[0]")
    if eps is None:
        check_noise(mu[0], None, generator, key)
        return mu, raw, checked[0][2], None
    noise = [check_noise(m, e, generator, key) for m, e in zip(mu, eps, strict=True)]
    return mu, raw, checked[0][2], [e for e in noise if e is not None]


def check_posterior(
    mu: Tensor, raw: Tensor, name: str = "logvar", mu_name: str = "mu"
) -> tuple[Tensor, Tensor]:
    """Check ``mu`` and ``raw``, called ``name``; return them in one shape and dtype.

    Broadcasting and promotion are torch's own operators, so autograd sums and casts the gradients
    back. Equal shapes and dtypes, the rule, pass through untouched.
    """
    _check_tensor(mu_name, mu)
    _check_tensor(name, raw)
    _check_device(name, raw, mu, mu_name)
    if mu.dtype != raw.dtype:
        dtype = _promoted(mu, raw)
        mu, raw = mu.to(dtype), raw.to(dtype)
    if mu.shape != raw.shape:
        sizes = zip(mu.shape[::-1], raw.shape[::-1], strict=False)
        if any(m != r and m != 1 and r != 1 for m, r in sizes):
            raise ValueError(
                f"{name} has shape {tuple(raw.shape)}, which does not broadcast with {mu_name}'s "
                f"{tuple(mu.shape)}"
            )
        mu, raw = torch.broadcast_tensors(mu, raw)
    return mu, raw


def check_moments(h: Tensor, dim: int) -> tuple[Tensor, Tensor, int]:
    """Check ``h`` and where it is packed; return its halves, as views, and ``dim`` from 0 on."""
    _check_tensor("h", h)
    dim, ndim = _index(dim, "dim must be an int"), h.dim()
    if not -ndim <= dim < ndim:
        raise ValueError(f"dim {dim} is out of range for h of {ndim} dimensions")
    size = h.shape[dim]
    if size % 2 != 0:
        raise ValueError(f"h has size {size} in dimension {dim}, wants an even one: mu and logvar")
    return h.narrow(dim, 0, size // 2), h.narrow(dim, size // 2, size // 2), dim % ndim


def _check_prior(
    mu: Tensor, raw: Tensor, prior: Prior | None
) -> tuple[Tensor, Tensor, Prior | None]:
    """Bring the posterior's and the prior's tensors to one dtype, and the latter to its shape."""
    if prior is None:
        return mu, raw, None
    if not isinstance(prior, Prior):
        raise TypeError(f"prior must be a vf.Prior or None, got {type(prior).__name__}")
    given = (("prior.mean", prior.mean), ("prior.raw", prior.raw))
    tensors = [(name, value) for name, value in given if isinstance(value, Tensor)]
    for name, value in tensors:
        _check_tensor(name, value)
        _check_device(name, value, mu)
        _check_expands(name, value, mu)
    dtype = _promoted(mu, raw, *(value for _, value in tensors))
    mean, prior_raw = (
        value.to(dtype).expand(mu.shape) if isinstance(value, Tensor) else value
        for _, value in given
    )
    return mu.to(dtype), raw.to(dtype), Prior(mean, prior_raw, prior.scale)


def _check_mask(mu: Tensor, mask: Tensor) -> None:
    _check_tensor("mask", mask, (torch.bool,), "bool: True for elements that count")
    _check_device("mask", mask, mu)
    _check_expands("mask", mask, mu)


def _check_optional(name: str, value: float | None) -> float | None:
    return None if value is None else check_positive(name, value)


def _check_balance(balance: tuple[float, float] | None) -> tuple[float, float]:
    if balance is None:
        return 1.0, 1.0
    if isinstance(balance, str) or not isinstance(balance, Sequence) or len(balance) != 2:
        raise TypeError(f"balance must be a pair (wq, wp), got {balance!r}")
    return check_number("balance's wq", balance[0]), check_number("balance's wp", balance[1])


def _check_sample_shape(sample_shape: int | Sequence[int]) -> tuple[int, ...]:
    sizes = _indices("sample_shape", sample_shape)
    if any(size < 0 for size in sizes):
        raise ValueError(f"sample_shape is {sizes}, wants sizes of at least 0")
    return sizes


# --------------------------------------------------------------------------------------------------
# Tensors
# --------------------------------------------------------------------------------------------------


def _check_tensor(
    name: str,
    value: Tensor,
    dtypes: tuple[torch.dtype, ...] = DTYPES,
    wants: str = "float32, float64, float16 or bfloat16",
) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(value).__name__}")
    if value.dtype not in dtypes:
        raise TypeError(f"{name} has dtype {value.dtype}, wants {wants}")
    if value.layout != torch.strided or value.is_nested:
        layout = "nested" if value.is_nested else str(value.layout)
        raise TypeError(f"{name} has layout {layout}, wants torch.strided")


def _check_device(name: str, value: Tensor, mu: Tensor, mu_name: str = "mu") -> None:
    if value.device != mu.device:
        raise RuntimeError(
            f"{name} is on {value.device}, {mu_name} on {mu.device}; want one device"
        )


def _check_expands(name: str, value: Tensor, mu: Tensor) -> None:
    """One direction: a mask or a prior does not enlarge the latent."""
    sizes = zip(value.shape[::-1], mu.shape[::-1], strict=False)
    if value.dim() > mu.dim() or any(v != m and v != 1 for v, m in sizes):
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}, which does not broadcast to the posterior's "
            f"{tuple(mu.shape)}"
        )


def _promoted(*tensors: Tensor) -> torch.dtype:
    """``torch.result_type`` of floating point tensors, which Dynamo cannot trace."""
    dtypes = [t.dtype for t in tensors if t.dim() > 0]
    dtypes = dtypes or [t.dtype for t in tensors]  # 0-d tensors do not promote those with dims
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
) -> tuple[str, tuple[int, ...] | None, Tensor | None]:
    """Check ``reduction`` and ``dim``, called ``name``; return what is to be computed.

    That is a reduction, or dimensions to sum, and for the mean over unmasked elements what their
    sum is to be divided by.
    """
    if dim is None:
        if not isinstance(reduction, str):
            raise TypeError(f"reduction must be a str, got {type(reduction).__name__}")
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction is {reduction!r}, wants one of {', '.join(REDUCTIONS)}")
        if reduction == "sample" and mu.dim() == 0:
            raise ValueError('reduction="sample" keeps dimension 0, but mu is 0-d')
        if reduction == "mean" and mask is not None:
            return "sum", None, mask.sum() * (mu.numel() // max(mask.numel(), 1))
        return reduction, None, None
    if reduction != default:
        raise ValueError(
            f"{name} replaces reduction: give {name}={dim!r} or reduction={reduction!r}"
        )
    dims = _indices(name, dim)
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
    return ("none", None, None) if mu.dim() == 0 else ("sum", dims, None)


def _indices(name: str, value: int | Sequence[int]) -> tuple[int, ...]:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_index(v, f"{name} must hold ints") for v in value)
    return (_index(value, f"{name} must be an int or a sequence of ints"),)


def _index(value: SupportsIndex, wanted: str) -> int:
    """An int, or what stands for one, like numpy's; but neither a bool nor a tensor."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, bool | Tensor) and hasattr(value, "__index__"):
        return operator.index(value)
    raise TypeError(f"{wanted}, got {type(value).__name__}")


def check_noise(
    mu: Tensor,
    eps: Tensor | None,
    generator: torch.Generator | None,
    key: Tensor | None,
    sample_shape: tuple[int, ...] = (),
) -> Tensor | None:
    """Check where the noise comes from; return eps, if given, in the dtype of mu."""
    if eps is None and generator is None and key is None:
        return None
    given = [
        name for name, value in (("eps", eps), ("generator", generator), ("key", key))
        if value is not None
    ]  # fmt: skip
    if len(given) > 1:
        raise ValueError(f"give one of eps, generator and key, got {' and '.join(given)}")
    if eps is not None:
        return _check_eps(mu, eps, sample_shape)
    if generator is not None:
        if not isinstance(generator, torch.Generator):
            raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
        theirs, index = generator.device, mu.device.index
        if theirs.type != mu.device.type or not (theirs.index is None or theirs.index == index):
            raise RuntimeError(f"generator is for {generator.device}, mu is on {mu.device}")
    if key is not None:
        _check_key(mu, key)
    return None


def _check_eps(mu: Tensor, eps: Tensor, sample_shape: tuple[int, ...]) -> Tensor:
    _check_tensor("eps", eps)
    if eps.shape != (shape := (*sample_shape, *mu.shape)):
        raise ValueError(f"eps has shape {tuple(eps.shape)}, wants z's {shape}")
    _check_device("eps", eps, mu)
    return eps if eps.dtype == mu.dtype else eps.to(mu.dtype)


def _check_key(mu: Tensor, key: Tensor) -> None:
    _check_tensor("key", key, (torch.uint64, torch.int64), "uint64 or int64: (seed, offset)")
    if tuple(key.shape) != (2,):
        raise ValueError(f"key has shape {tuple(key.shape)}, wants (2,): (seed, offset)")
    _check_device("key", key, mu)


def check_value(value: Tensor, shape: Sequence[int]) -> None:
    """Check a point at which a density of batch shape ``shape`` is asked for."""
    if not isinstance(value, Tensor):
        raise TypeError(f"value must be a Tensor, got {type(value).__name__}")
    sizes = zip(tuple(value.shape)[::-1], tuple(shape)[::-1], strict=False)
    if any(v != s and v != 1 and s != 1 for v, s in sizes):
        raise ValueError(
            f"value has shape {tuple(value.shape)}, which does not broadcast with the batch shape "
            f"{tuple(shape)}"
        )
