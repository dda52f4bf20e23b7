"""The backward operators for calls that autograd records, registered with the dispatcher.

An ordinary backward does not reach this file. If a gradient or a tangent must pass through an
operator, the operator calls its ``recorded`` overload, which these functions implement.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vae_fused._formulas.latent import noise_of_multi, summed
from vae_fused._native.autograd import Gradient, apply
from vae_fused._native.call import Call, Maybe, Operands, scattered
from vae_fused._native.likelihood import recorded_backward, recorded_elbo_backward

__all__ = ["register"]

_ops = torch.ops.vae_fused


def register() -> None:
    """Implement the ``recorded`` overloads."""
    for name, kernel in _KERNELS.items():
        _library.impl(f"{name}.recorded", kernel, "CompositeImplicitAutograd")


def _backward(
    grad_z: Maybe, grad_kl: Maybe, mu: Tensor, raw: Maybe, *, eps: Maybe, key: Maybe,
    reduction: str, dim: Sequence[int] | None, prior_mean: Maybe = None, prior_raw: Maybe = None,
    mask: Maybe = None, options: list[float] | None = None, output_mask: Sequence[bool],
    **scalars: Maybe,
) -> tuple[Maybe, ...]:  # fmt: skip
    x = Operands(mu, raw, eps, key, prior_mean, prior_raw, mask, **scalars)
    dims = None if dim is None else tuple(dim)
    call = Call(grad_z is not None, grad_kl is not None, reduction, dims, options)
    samples: Sequence[int] = ()
    if grad_z is not None:
        samples = grad_z.shape[: grad_z.dim() - mu.dim()]
    elif grad_kl is not None and call.is_at_sample:
        kept = mu.dim() - len(summed(reduction, dims, mu.dim()))
        samples = grad_kl.shape[: grad_kl.dim() - kept]
    call = call._replace(sample_shape=tuple(samples))
    return tuple(scattered(apply(Gradient, call, output_mask, grad_z, grad_kl, *x), output_mask))


def _moments_backward(
    grad_z: Maybe, grad_kl: Maybe, h: Tensor, *, packed_dim: int, output_mask: Sequence[bool],
    **more: Any,
) -> tuple[Maybe, ...]:  # fmt: skip
    mu, raw = h.chunk(2, packed_dim)
    to_h, *others = output_mask
    grad_mu, grad_raw, *rest = _ops.reparameterize_kl_backward.default(
        grad_z, grad_kl, mu, raw, output_mask=[to_h, to_h, *others], **more
    )
    return torch.cat([grad_mu, grad_raw], packed_dim) if to_h else None, *rest


def _multi_backward(
    grad_z: Sequence[Maybe], grad_kl: Maybe, mu: Sequence[Tensor], raw: Sequence[Tensor], *,
    key: Maybe, reduction: str, prior_mean: Sequence[Maybe], prior_raw: Sequence[Maybe],
    prior_numbers: Sequence[float], options: list[float] | None = None, **scalars: Maybe,
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:  # fmt: skip
    noise = [{"key": None}] * len(mu) if key is None else noise_of_multi(mu, None, None, key)
    means = values_of_priors(mu, prior_mean, prior_numbers[::2])
    raws = values_of_priors(mu, prior_raw, prior_numbers[1::2])
    grads = [
        _ops.reparameterize_kl_backward.default(
            grad_z, grad_kl, mu, raw, eps=None, **noise, reduction=reduction, dim=None,
            prior_mean=mean, prior_raw=prior_raw, options=options,
            output_mask=[True, True, False, False, False], **scalars,
        )
        for grad_z, mu, raw, noise, mean, prior_raw in zip(
            grad_z, mu, raw, noise, means, raws, strict=True
        )
    ]  # fmt: skip
    return [grad[0] for grad in grads], [grad[1] for grad in grads]


def values_of_priors(
    mu: Sequence[Tensor], tensors: Sequence[Maybe], numbers: Sequence[float]
) -> Sequence[Maybe]:
    """Return priors' means or raw scales as tensors, or None for each if options contain them."""
    if not numbers:
        return tensors or [None] * len(mu)
    found = zip(mu, tensors or [None] * len(mu), numbers, strict=True)
    return [torch.full_like(m, number) if t is None else t for m, t, number in found]


_library = torch.library.Library("vae_fused", "IMPL")  # unregisters its kernels when it is deleted
_KERNELS = {
    "reparameterize_kl_backward": _backward,
    "reparameterize_kl_moments_backward": _moments_backward,
    "reparameterize_kl_multi_backward": _multi_backward,
    "nll_backward": recorded_backward,
    "elbo_loss_backward": recorded_elbo_backward,
}
