"""Computes a checked call in eager PyTorch, and generates the stateless noise stream.

The code runs on any device and is differentiable to any order in reverse and forward mode. Without
a key, the noise comes from ``torch.randn``, bit for bit as in eager code. With a key, the noise is
that of the Philox stream, computed here with integer tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vae_fused._formulas import gaussian
from vae_fused._formulas.gaussian import Gaussian, clamped, soft_clamped
from vae_fused.options import Options


def sample(
    mu: Tensor,
    raw: Tensor,
    options: Options,
    eps: Tensor | None,
    generator: torch.Generator | None,
    key: Tensor | None,
) -> Tensor:
    """``z = mu + T sigma eps``, in the dtype of mu."""
    return _sampled(mu, raw, options, _noise(mu, options.sample_shape, eps, generator, key))


def sample_and_divergence(
    mu: Tensor,
    raw: Tensor,
    options: Options,
    eps: Tensor | None,
    generator: torch.Generator | None,
    key: Tensor | None,
    *reduced: Any,
) -> tuple[Tensor, Tensor]:
    """Return the sample, and the KL or its estimate at that sample."""
    noise = _noise(mu, options.sample_shape, eps, generator, key)
    return _sampled(mu, raw, options, noise), divergence(mu, raw, options, *reduced, noise=noise)


def _sampled(mu: Tensor, raw: Tensor, options: Options, noise: Tensor) -> Tensor:
    q = _posterior(mu, raw, options)
    noise, sigma = widen(unmasked(noise, options.mask)), q.sigma
    temperature = options.scalar("temperature")
    if isinstance(temperature, Tensor) or temperature != 1.0:
        sigma = temperature * sigma
    return unmasked(q.mean + sigma * noise, options.mask).to(mu.dtype)


def mean(mu: Tensor, options: Options) -> Tensor:
    """The sample at temperature 0, computed without noise."""
    if options.mu_soft_clamp is not None:
        mu = soft_clamped(widen(mu), options.mu_soft_clamp).to(mu.dtype)
    z = unmasked(mu, options.mask)
    return z.expand(*options.sample_shape, *z.shape) if options.sample_shape else z


def divergence(
    mu: Tensor,
    raw: Tensor | None,
    options: Options,
    reduction: str,
    dims: tuple[int, ...] | None,
    count: Tensor | None,
    *,
    noise: Tensor | None = None,
) -> Tensor:
    """The KL, its linear form, or its estimate at the sample of ``noise``.

    The result is reduced and then divided by ``count``. Without ``raw``, sigma is 1.
    """
    q, p = _posterior(mu, raw, options), _prior(mu, options)
    form = gaussian.kl
    if options.linear is not None:
        form = partial(gaussian.linear, constant=options.linear)
    elif options.is_at_sample:
        assert noise is not None
        q.noise = options.scalar("temperature") * widen(unmasked(noise, options.mask))
        form = partial(gaussian.log_ratio, stop_q=options.stop_q)
    weights = options.scalar("to_posterior"), options.scalar("to_prior")
    elements = gaussian.balanced(form, q, p, *weights)
    free_bits = options.scalar("free_bits")
    if isinstance(free_bits, Tensor) or free_bits > 0.0:
        elements = clamped(elements, free_bits)
    elements = unmasked(elements, options.mask)
    total = reduce(elements, reduction, dims, samples=elements.dim() - mu.dim())
    return total if count is None else total / count


def _posterior(mu: Tensor, raw: Tensor | None, options: Options) -> Gaussian:
    given = (mu, 0.0 if raw is None else raw)
    mean, raw = (_prepared(value, mu, options.mask) for value in given)
    return Gaussian(soft_clamped(mean, options.mu_soft_clamp), raw, options.scale)


def _prior(mu: Tensor, options: Options) -> Gaussian | None:
    if (prior := options.prior) is None:
        return None
    mean, raw = (_prepared(value, mu, options.mask) for value in (prior.mean, prior.raw))
    return Gaussian(mean, raw, prior.scale)


def _prepared(value: Tensor | float, mu: Tensor, mask: Tensor | None) -> Tensor:
    """Convert a value to the dtype of the arithmetic, and set masked elements to 0."""
    if not isinstance(value, Tensor):
        value = mu.new_full((), value, dtype=torch.promote_types(mu.dtype, torch.float32))
    return widen(unmasked(value, mask))


def unmasked(x: Tensor, mask: Tensor | None, fill: float = 0.0) -> Tensor:
    """Set masked elements to ``fill``. Inputs need this too, as their gradients could be NaN."""
    return x if mask is None else torch.where(mask, x, fill)


def widen(x: Tensor) -> Tensor:
    """Convert 16-bit types to float32 for the arithmetic."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def summed(reduction: str, dims: tuple[int, ...] | None, ndim: int) -> tuple[int, ...]:
    """Return the dimensions that a reduction sums, or ``dims`` if a call specifies them."""
    if dims is not None:
        return tuple(d % ndim for d in dims)
    every = tuple(range(ndim))
    return {"none": (), "sample": every[1:]}.get(reduction, every)


def reduce(kl: Tensor, reduction: str, dims: tuple[int, ...] | None, samples: int = 0) -> Tensor:
    """Compute a sum or a mean. The first ``samples`` dimensions are kept and not counted."""
    over = [samples + d for d in summed(reduction, dims, kl.dim() - samples)]
    if not over:
        return kl
    total = kl.sum(dim=over)
    if reduction == "mean":
        return total / math.prod(kl.shape[samples:])
    return total / kl.shape[samples] if reduction == "batchmean" else total


# --------------------------------------------------------------------------------------------------
# Noise (csrc/math/philox.h and normal.h)
# --------------------------------------------------------------------------------------------------


def _noise(
    mu: Tensor,
    sample_shape: tuple[int, ...],
    eps: Tensor | None,
    generator: torch.Generator | None,
    key: Tensor | None,
) -> Tensor:
    if eps is not None:
        return eps
    shape = (*sample_shape, *mu.shape)
    if key is not None:
        return normal(key, shape, dtype=torch.promote_types(mu.dtype, torch.float32))
    # torch 2.13 cannot trace randn of a symbolic shape if a generator is passed, even None.
    if generator is None:
        return torch.randn(shape, dtype=mu.dtype, device=mu.device)
    return torch.randn(shape, generator=generator, dtype=mu.dtype, device=mu.device)


def noise_of_multi(
    mus: Sequence[Tensor],
    eps: Sequence[Tensor] | None,
    generator: torch.Generator | None,
    key: Tensor | None,
) -> list[dict[str, Any]]:
    """Return each tensor's noise arguments. With a key, tensors use consecutive blocks of noise."""
    if eps is not None:
        return [{"eps": e} for e in eps]
    if key is None:
        return [{"generator": generator} for _ in mus]
    seed, offset = _signed(key).unbind()
    keys, blocks = [], 0
    for mu in mus:
        keys.append({"key": torch.stack([seed, offset + blocks])})
        per_block = 2 if mu.dtype == torch.float64 else 4
        blocks += (mu.numel() + per_block - 1) // per_block
    return keys


def normal(key: Tensor, shape: Sequence[int], *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return standard normals of the stateless stream of ``key``: ``torch.func._random.normal``.

    This is Philox4x32-10 (Salmon et al., SC 2011) with key = seed and counter = offset + block,
    followed by the Box-Muller transform of the words of a block, which gives four normals in
    float32 and two in float64. 16-bit types are drawn in float32 and then rounded.

    Args:
        key: ``(seed, offset)``, a uint64 or int64 tensor of shape (2,), on the result's device.
        shape: Shape of the result. Element ``i`` in row-major order is normal ``i`` of the stream.
        dtype: float32, float64, float16 or bfloat16.

    Returns:
        A tensor of ``shape`` and ``dtype``.
    """
    numel = math.prod(shape)  # torch.Size.numel would make a symbolic size a constant
    per_block = 2 if dtype == torch.float64 else 4
    seed, offset = _signed(key).unbind()
    # Use an extra block, because torch.export would otherwise exclude batches that need only one.
    blocks = (numel + per_block - 1) // per_block + 1
    w0, w1, w2, w3 = philox(seed, offset + torch.arange(blocks, device=key.device))
    if dtype == torch.float64:
        pairs = [(_uniform64(w0, w1), _uniform64(w2, w3))]
    else:
        pairs = [(_uniform32(w0), _uniform32(w1)), (_uniform32(w2), _uniform32(w3))]
    values = []
    for u1, u2 in pairs:
        radius, angle = torch.sqrt(-2.0 * torch.log(u1)), 6.283185307179586 * u2
        values += [radius * torch.cos(angle), radius * torch.sin(angle)]
    # torch.export cannot prove that a slice of symbolic size is within bounds, so use an index.
    elements = torch.arange(numel, device=key.device)
    noise = torch.stack(values, dim=1).flatten().index_select(0, elements)
    return noise.reshape(tuple(shape)).to(dtype)


def _signed(key: Tensor) -> Tensor:
    """Return the words of a key as int64, because torch lacks uint64 arithmetic."""
    return key if key.dtype == torch.int64 else key.view(torch.int64)


def philox(seed: Any, counter: Any) -> list[Any]:
    """Philox4x32-10: the four 32-bit words of each 64-bit ``counter``.

    The arguments and the words are either int64 tensors or Python integers.
    """
    low = 0xFFFFFFFF
    k0, k1 = seed & low, (seed >> 32) & low
    c0, c1 = counter & low, (counter >> 32) & low
    c2, c3 = c0 - c0, c0 - c0
    for _ in range(10):
        hi0, lo0 = _mulhilo(0xD2511F53, c0)
        hi1, lo1 = _mulhilo(0xCD9E8D57, c2)
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + 0x9E3779B9) & low, (k1 + 0xBB67AE85) & low
    return [c0, c1, c2, c3]


def _mulhilo(a: int, b: Any) -> tuple[Any, Any]:
    """Return the upper and lower half of a 64-bit product, from 48-bit products that fit int64."""
    low = a * (b & 0xFFFF)
    high = a * (b >> 16) + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def _uniform32(w: Tensor) -> Tensor:
    return w.to(torch.float32) * 2.0**-32 + 2.0**-33


def _uniform64(w: Tensor, w_low: Tensor) -> Tensor:
    return w.to(torch.float64) * 2.0**-32 + (w_low.to(torch.float64) * 2.0**-64 + 2.0**-65)
