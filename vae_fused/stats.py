"""Latent statistics, which show during training which dimensions are in use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from vae_fused import _ext, _sharding
from vae_fused import _keywords as kw
from vae_fused._checks import check_call, check_reduction
from vae_fused._formulas import latent
from vae_fused._formulas.gaussian import soft_clamped
from vae_fused._native import latent as native
from vae_fused._overrides import call_override, has_override
from vae_fused.options import Scale

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["LatentStats", "latent_stats"]


class LatentStats(NamedTuple):
    """The result of :func:`latent_stats`, with one value for each latent dimension.

    Attributes:
        kl: Mean KL divergence over the batch, in nats. It is near 0 if the posterior has collapsed.
        mean: Mean of the posterior's mean over the batch.
        variance: Variance of the posterior's mean over the batch, with the number of elements as
            the divisor. A dimension counts as active if its variance is above 0.01 (Burda et al.
            2016, arXiv:1509.00519).
        clamped: Number of elements whose ``raw`` is outside the bounds of the scale's hard or soft
            clamp.
        non_finite: Number of elements whose ``mu`` or ``raw`` is infinite or NaN.
    """

    kl: Tensor
    mean: Tensor
    variance: Tensor
    clamped: Tensor
    non_finite: Tensor


torch.serialization.add_safe_globals([LatentStats])


@torch.no_grad()
def _latent_stats(
    mu: Tensor, raw: Tensor, dim: int | Sequence[int], options: kw.StatsOptions, reference: bool
) -> LatentStats:
    mu, raw, call = check_call(mu, raw, options, kw.StatsOptions)
    if dim is None:
        raise TypeError("dim must be an int or a sequence of ints, got NoneType")
    _, dims, _ = check_reduction(mu, "batchmean", dim)
    if dims is None:
        raise ValueError("mu must have a batch to average over, got shape ()")
    if not reference and _ext.use_native(mu.device.type) and not native.is_transformed():
        return LatentStats(*native.stats(mu, raw, call, dims))
    kl = latent.divergence(mu, raw, call, "sum", dims, None)
    mask = None if call.mask is None else call.mask.expand(mu.shape)
    location, raw = latent.widen(mu), latent.widen(raw)
    if call.mu_soft_clamp is not None:
        location = soft_clamped(location, call.mu_soft_clamp)
    location = latent.unmasked(location, mask)
    # A finite number minus itself is 0. For an infinity or NaN, the difference is NaN.
    is_bad = ((mu - mu) + (raw - raw)).isnan()
    is_clamped = _beyond(raw, call.scale)
    if mask is None and mu.numel() > 0:  # var_mean warns for an empty batch
        variance, mean = torch.var_mean(location, dims, correction=0)
        count: int | Tensor = math.prod([mu.shape[d] for d in dims])
    else:
        mask = torch.ones_like(mu, dtype=torch.bool) if mask is None else mask
        counts = mask.sum(dims, keepdim=True)
        means = location.sum(dims, keepdim=True) / counts
        count, mean = counts.squeeze(dims), means.squeeze(dims)
        variance = torch.where(mask, (location - means).square(), 0.0).sum(dims) / count
        is_bad = is_bad & mask
        is_clamped = None if is_clamped is None else is_clamped & mask
    if is_clamped is None:
        clamped = torch.zeros_like(mean, dtype=torch.int64)
    else:
        clamped = is_clamped.sum(dims)
    return LatentStats(kl / count, mean, variance, clamped, is_bad.sum(dims))


def _beyond(raw: Tensor, scale: Scale) -> Tensor | None:
    """Return which raw scales are outside the clamp's bounds, or None if there is no clamp."""
    if scale.soft_clamp is not None:
        return raw.abs() > scale.soft_clamp
    if scale.clamp is None:
        return None
    low, high = scale.clamp
    parts = [raw < low] if low is not None else []
    parts += [raw > high] if high is not None else []
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else parts[0] | parts[1]


@kw.named(kw.StatsOptions)
def latent_stats(
    mu: Tensor,
    raw: Tensor,
    /,
    *,
    dim: int | Sequence[int] = 0,
    _reference: bool = False,
    **options: Unpack[kw.StatsOptions],
) -> LatentStats:
    """Compute statistics of a batch of posteriors, per latent dimension, to log in training.

    The results are tensors on the device and have no gradient. The host does not read any values,
    so a training loop can compute the statistics in each step and read them only occasionally.

    One launch computes all statistics and reads ``mu`` and ``raw`` once.

    Args:
        mu: Mean of the posterior, ``(B, ...)``; float32, float64, float16 or bfloat16.
        raw: Raw scale, broadcastable with ``mu``; by default ``ln sigma^2``.
        scale, mu_soft_clamp, prior, mask: As in :func:`reparameterize_kl`. Masked elements are left
            out of every sum and every count.
        dim: The dimension or dimensions of the batch, for example ``(0, 1)`` for sequences
            ``(B, T, D)``. The others remain.

    Returns:
        :class:`LatentStats`: ``kl`` in nats, ``mean`` and ``variance``, float32 (float64 for
        float64 inputs), ``clamped`` and ``non_finite``, int64. All have the shape of ``mu`` without
        ``dim``. A NaN or an infinity in ``mu`` makes ``kl``, ``mean`` and ``variance`` of its
        dimension non-finite. A NaN or an infinity in ``raw`` makes ``kl`` non-finite, unless a
        clamp removes it. ``non_finite`` counts both cases.

    Raises:
        TypeError, ValueError, RuntimeError: As for :func:`reparameterize_kl`; also if ``mu`` is 0-d
            or ``dim`` is out of range.

    Example:
        >>> stats = vf.latent_stats(torch.randn(128, 20), torch.zeros(128, 20))
        >>> active = (stats.variance > 0.01).sum()
    """
    if not _reference:
        found = native.try_stats(mu, raw, options, dim)
        if found is not None:
            return LatentStats(*found)
    if has_override(mu, raw, *options.values()):
        return call_override(latent_stats, locals())
    _sharding.refuse("latent_stats", mu, raw, options)
    return _latent_stats(mu, raw, dim, options, _reference)
