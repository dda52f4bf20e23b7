"""The public functions in plain PyTorch: the oracle of the tests and the fallback.

Same signatures, checks, dtypes and shapes as the compiled functions, on any device, differentiable
to any order in reverse mode. Without a key the noise is ``torch.randn``'s, bit for bit what eager
code draws; with one it is the stateless Philox stream, computed here in integer tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vae_fused._checks import check_moments, check_noise, check_posterior, check_reduction

__all__ = [
    "gaussian_kl",
    "normal",
    "reparameterize",
    "reparameterize_kl",
    "reparameterize_kl_moments",
]


def reparameterize_kl(
    mu: Tensor,
    logvar: Tensor,
    /,
    *,
    reduction: str = "batchmean",
    dim: int | Sequence[int] | None = None,
    eps: Tensor | None = None,
    generator: torch.Generator | None = None,
    key: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`vae_fused.reparameterize_kl` in plain PyTorch: same arguments, results and errors."""
    mu, logvar = check_posterior(mu, logvar)
    reduction, dims = check_reduction(mu, reduction, dim)
    eps = check_noise(mu, eps, generator, key)
    z = _sample(mu, logvar, _noise(mu, eps, generator, key))
    return z, _reduce(_kl(mu, logvar), reduction, dims)


def reparameterize_kl_moments(
    h: Tensor,
    /,
    *,
    dim: int = 1,
    reduction: str = "batchmean",
    kl_dim: int | Sequence[int] | None = None,
    eps: Tensor | None = None,
    generator: torch.Generator | None = None,
    key: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`vae_fused.reparameterize_kl_moments` in plain PyTorch: same results and errors."""
    mu, logvar, _ = check_moments(h, dim)
    reduction, dims = check_reduction(mu, reduction, kl_dim, "kl_dim")
    eps = check_noise(mu, eps, generator, key)
    z = _sample(mu, logvar, _noise(mu, eps, generator, key))
    return z, _reduce(_kl(mu, logvar), reduction, dims)


def reparameterize(
    mu: Tensor,
    logvar: Tensor,
    /,
    *,
    eps: Tensor | None = None,
    generator: torch.Generator | None = None,
    key: Tensor | None = None,
) -> Tensor:
    """:func:`vae_fused.reparameterize` in plain PyTorch: same arguments, results and errors."""
    mu, logvar = check_posterior(mu, logvar)
    eps = check_noise(mu, eps, generator, key)
    return _sample(mu, logvar, _noise(mu, eps, generator, key))


def gaussian_kl(
    mu: Tensor,
    logvar: Tensor,
    /,
    *,
    reduction: str = "batchmean",
    dim: int | Sequence[int] | None = None,
) -> Tensor:
    """:func:`vae_fused.gaussian_kl` in plain PyTorch: same arguments, results and errors."""
    mu, logvar = check_posterior(mu, logvar)
    reduction, dims = check_reduction(mu, reduction, dim)
    return _reduce(_kl(mu, logvar), reduction, dims)


# --------------------------------------------------------------------------------------------------
# Sample and KL (csrc/math/gaussian.h has the derivations)
# --------------------------------------------------------------------------------------------------


def _widen(x: Tensor) -> Tensor:
    """16-bit types compute in float32."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _sample(mu: Tensor, logvar: Tensor, eps: Tensor) -> Tensor:
    return (_widen(mu) + torch.exp(0.5 * _widen(logvar)) * _widen(eps)).to(mu.dtype)


def _kl(mu: Tensor, logvar: Tensor) -> Tensor:
    mu, logvar = _widen(mu), _widen(logvar)
    excess: Tensor = _Excess.apply(logvar)  # type: ignore[no-untyped-call]
    return 0.5 * (mu * mu + excess)


class _Excess(torch.autograd.Function):
    """g(x) = e^x - 1 - x, never negative, with g'(x) = e^x - 1."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        # The series sum x^(n+2) / (n+2)! to the term below 2^-53 at |x| = 1.
        series = torch.zeros_like(x)
        for n in range(19, 1, -1):
            series = 1.0 + series * x / (n + 1)
        series = 0.5 * x * x * series
        # Subtracting min(x, 64): inf at x = inf, where inf - inf would be nan; else no difference.
        direct = torch.expm1(x) - x.clamp(max=64.0)
        return torch.where(x.abs() <= 1.0, series, direct)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        result: Tensor = grad * torch.expm1(x)
        return result


def _reduce(kl: Tensor, reduction: str, dims: tuple[int, ...] | None) -> Tensor:
    if dims is not None:
        return kl.sum(dim=dims)
    if reduction == "none":
        return kl
    if reduction == "sample":
        return kl.flatten(1).sum(1) if kl.dim() > 1 else kl
    if reduction == "mean":
        return kl.mean()
    if reduction == "batchmean" and kl.dim() > 0:
        return kl.sum() / kl.shape[0]
    return kl.sum()


# --------------------------------------------------------------------------------------------------
# Noise (csrc/math/philox.h and normal.h)
# --------------------------------------------------------------------------------------------------


def _noise(
    mu: Tensor, eps: Tensor | None, generator: torch.Generator | None, key: Tensor | None
) -> Tensor:
    if eps is not None:
        return eps
    if key is not None:
        return normal(key, mu.shape, dtype=torch.promote_types(mu.dtype, torch.float32))
    # torch 2.13 cannot trace randn of a symbolic shape once it is given a generator, were it None.
    if generator is None:
        return torch.randn(mu.shape, dtype=mu.dtype, device=mu.device)
    return torch.randn(mu.shape, generator=generator, dtype=mu.dtype, device=mu.device)


def normal(key: Tensor, shape: Sequence[int], *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normals of the stateless stream of ``key``: ``torch.func._random.normal``.

    Philox4x32-10 (Salmon et al., SC 2011) with key = seed and counter = offset + block, then
    Box-Muller on the words of a block: four normals in float32, two in float64. 16-bit types are
    drawn in float32, then rounded.

    Args:
        key: ``(seed, offset)``, a uint64 or int64 tensor of shape (2,); its device is the result's.
        shape: Shape of the result; element ``i`` in row-major order is normal ``i`` of the stream.
        dtype: float32, float64, float16 or bfloat16.

    Returns:
        A tensor of ``shape`` and ``dtype``.
    """
    numel = torch.Size(shape).numel()
    per_block = 2 if dtype == torch.float64 else 4
    seed, offset = key.view(torch.int64).unbind()
    blocks = (numel + per_block - 1) // per_block
    w0, w1, w2, w3 = philox(seed, offset + torch.arange(blocks, device=key.device))
    if dtype == torch.float64:
        pairs = [(_uniform64(w0, w1), _uniform64(w2, w3))]
    else:
        pairs = [(_uniform32(w0), _uniform32(w1)), (_uniform32(w2), _uniform32(w3))]
    values = []
    for u1, u2 in pairs:
        radius, angle = torch.sqrt(-2.0 * torch.log(u1)), 6.283185307179586 * u2
        values += [radius * torch.cos(angle), radius * torch.sin(angle)]
    return torch.stack(values, dim=1).flatten()[:numel].reshape(tuple(shape)).to(dtype)


def philox(seed: Tensor, counter: Tensor) -> list[Tensor]:
    """Philox4x32-10: the four 32-bit words of each 64-bit ``counter``, as int64 tensors."""
    low = 0xFFFFFFFF
    k0, k1 = seed & low, (seed >> 32) & low
    c0, c1 = counter & low, (counter >> 32) & low
    c2, c3 = torch.zeros_like(c0), torch.zeros_like(c0)
    for _ in range(10):
        hi0, lo0 = _mulhilo(0xD2511F53, c0)
        hi1, lo1 = _mulhilo(0xCD9E8D57, c2)
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + 0x9E3779B9) & low, (k1 + 0xBB67AE85) & low
    return [c0, c1, c2, c3]


def _mulhilo(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """Upper and lower half of the 64-bit product of 32-bit words: int64 has room for 48 bits."""
    low = a * (b & 0xFFFF)
    high = a * (b >> 16) + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def _uniform32(w: Tensor) -> Tensor:
    return w.to(torch.float32) * 2.0**-32 + 2.0**-33


def _uniform64(w: Tensor, w_low: Tensor) -> Tensor:
    return w.to(torch.float64) * 2.0**-32 + (w_low.to(torch.float64) * 2.0**-64 + 2.0**-65)
