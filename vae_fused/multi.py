"""One call for a list of tensors: Bayesian layers' weights, dozens of launches made one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vae_fused import _ext, functional, reference
from vae_fused._checks import check_multi
from vae_fused.options import Prior, Scale

__all__ = ["reparameterize_kl_multi"]

_ops = torch.ops.vae_fused


def reparameterize_kl_multi(
    mus: Sequence[Tensor],
    raws: Sequence[Tensor],
    /,
    *,
    scale: str | Scale = "logvar",
    mu_soft_clamp: float | None = None,
    prior: Prior | None = None,
    reduction: str = "sum",
    free_bits: float = 0.0,
    temperature: float = 1.0,
    eps: Sequence[Tensor] | None = None,
    generator: torch.Generator | None = None,
    key: Tensor | None = None,
) -> tuple[list[Tensor], Tensor]:
    r"""Samples of many diagonal Gaussians and the sum of their KLs, one launch for the whole list.

    What the variational layers of a Bayesian network do in each step, a weight and a bias at a time
    (Blundell et al. 2015): ``w = mu + ln(1 + e^rho) eps`` and the KL from a fixed prior, which here
    is two numbers and no buffers. Backward is one launch, too, and keeps the inputs alone.

    Args:
        mus: Means: tensors of any shapes, of one dtype (float32, float64, float16 or bfloat16) and
            device. What is not contiguous is copied.
        raws: Raw scales, each in the shape of its mean or broadcastable with it.
        scale, mu_soft_clamp, free_bits, temperature: As in :func:`vae_fused.reparameterize_kl`, for
            all tensors alike.
        prior: A :class:`vae_fused.Prior` of numbers; default: the standard normal.
        reduction: ``"sum"`` over all elements of all tensors, or ``"mean"``: the sum of each
            tensor's mean, as bayesian-torch has it; that of an empty one is nan, as in torch.
        eps: Explicit noise for each tensor. For comparison with other code: a call each.
        generator: Source of the key, as in ``torch.randn``.
        key: ``(seed, offset)``. Tensor k has the noise of a call of its own with the offset of the
            first free block: ``offset + sum(ceil(n / 4))`` of the tensors before it (2 in float64).

    Returns:
        ``(zs, kl)``: a sample in the shape and dtype of each posterior, and a 0-d KL in nats,
        float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError, RuntimeError: As :func:`vae_fused.reparameterize_kl`; an empty list,
            lists of different lengths, different dtypes or devices, a prior with tensors.

    Example:
        >>> mus = [torch.zeros(64, 32), torch.zeros(64)]
        >>> rhos = [torch.full((64, 32), -3.0), torch.full((64,), -3.0)]
        >>> prior = vf.Prior(0.0, 0.1, "std")
        >>> zs, kl = vf.reparameterize_kl_multi(mus, rhos, scale="softplus", prior=prior)
    """
    mu, raw, options, eps_list = check_multi(
        mus, raws, scale=scale, mu_soft_clamp=mu_soft_clamp, prior=prior, reduction=reduction,
        free_bits=free_bits, temperature=temperature, eps=eps, generator=generator, key=key,
    )  # fmt: skip
    if eps_list is not None or not _ext.use_native(mu[0].device.type):
        call = functional.reparameterize_kl if eps_list is not None else reference.reparameterize_kl
        zs, kls = [], []
        for k, noise in enumerate(reference.noise_of_multi(mu, eps_list, generator, key)):
            z, kl = call(
                mu[k], raw[k], scale=scale, mu_soft_clamp=mu_soft_clamp, prior=prior,
                reduction=reduction, free_bits=free_bits, temperature=temperature, **noise,
            )  # fmt: skip
            zs.append(z)
            kls.append(kl)
        return zs, torch.stack(kls).sum()
    numbers = options.packed()
    if key is not None:
        zs, kl = _ops.reparameterize_kl_multi.default(
            mu, raw, key=key, reduction=reduction, options=numbers
        )
    else:
        zs, kl, _ = _ops.reparameterize_kl_multi.generator(
            mu, raw, generator=generator, reduction=reduction, options=numbers
        )
    return list(zs), kl
