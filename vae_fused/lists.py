"""Functions that process a whole list of tensors in one launch.

They check their arguments and then call a compiled operator. If no operator supports the call, they
call the single-tensor function on each tensor in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vae_fused import _ext, _sharding
from vae_fused import _keywords as kw
from vae_fused._formulas import latent
from vae_fused._list_checks import CheckedList, check_list, check_list_noise
from vae_fused._native import latent as native
from vae_fused._overrides import call_override, has_override, parts
from vae_fused.functional import gaussian_kl, reparameterize_kl

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["gaussian_kl_multi", "reparameterize_kl_multi"]

_ops = torch.ops.vae_fused


@kw.named(kw.MultiOptions)
def reparameterize_kl_multi(
    mus: Sequence[Tensor],
    raws: Sequence[Tensor],
    /,
    *,
    reduction: str = "sum",
    eps: Sequence[Tensor] | None = None,
    generator: torch.Generator | None = None,
    key: Tensor | None = None,
    _reference: bool = False,
    **options: Unpack[kw.MultiOptions],
) -> tuple[list[Tensor], Tensor]:
    r"""Sample many diagonal Gaussians and sum their KLs, in one launch for the whole list.

    The variational layers of a Bayesian network compute this in each step, for one weight and one
    bias per call (Blundell et al. 2015): ``w = mu + ln(1 + e^rho) eps`` and the KL from a fixed
    prior. A prior that all tensors share needs only two numbers and no buffers. Backward also takes
    one launch, and autograd saves only the inputs.

    Args:
        mus: Means: tensors of any shapes, with the same dtype (float32, float64, float16 or
            bfloat16) and device. Tensors that are not contiguous are copied.
        raws: Raw scales, each in the shape of its mean or broadcastable with it.
        scale, mu_soft_clamp, free_bits, temperature: As in :func:`vae_fused.reparameterize_kl`, the
            same for all tensors.
        prior: A :class:`vae_fused.Prior` for all tensors, or a sequence with one prior for each
            tensor, all with the same ``scale``. The mean and the raw scale of a prior are numbers,
            or tensors that broadcast to the shape of the posterior, for example pretrained weights
            as the means (MOPED, Krishnan et al. 2020, arXiv:1906.05323). Default: the standard
            normal. If a prior is learned, each tensor takes a separate launch.
        reduction: ``"sum"`` over all elements of all tensors, or ``"mean"``: the sum of the
            tensors' means, as in bayesian-torch. The mean of an empty tensor is nan, as in torch.
        eps: Explicit noise for each tensor, for comparison with other code. Each tensor then takes
            a separate launch.
        generator: Source of the key, as in ``torch.randn``.
        key: ``(seed, offset)``. Each tensor gets the noise of a separate call whose offset is the
            first unused block: ``offset + sum(ceil(n / 4))`` over the sizes n of the tensors before
            it, with 2 in place of 4 in float64.

    Returns:
        ``(zs, kl)``: a list with a sample in the shape and dtype of each posterior, and a 0-d KL in
        nats, float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError, RuntimeError: As for :func:`vae_fused.reparameterize_kl`; also an
            empty list, lists of different lengths, different dtypes or devices, priors with
            different scales.

    Example:
        >>> mus = [torch.zeros(64, 32), torch.zeros(64)]
        >>> rhos = [torch.full((64, 32), -3.0), torch.full((64,), -3.0)]
        >>> prior = vf.Prior(0.0, 0.1, "std")
        >>> zs, kl = vf.reparameterize_kl_multi(mus, rhos, scale="softplus", prior=prior)
    """
    if has_override(*parts(mus), *parts(raws), *parts(eps), key, *options.values()):
        return call_override(reparameterize_kl_multi, locals())
    _sharding.refuse("reparameterize_kl_multi", mus, raws, options)
    checked = check_list(mus, raws, options, kw.MultiOptions, reduction)
    eps_list = check_list_noise(checked.mu, eps, generator, key)
    if eps_list is not None or not _is_one_launch(checked, _reference):
        noise = latent.noise_of_multi(checked.mu, eps_list, generator, key)
        calls = zip(checked.mu, checked.raw, _options_of_each(checked, options), noise, strict=True)
        more: Any = {"reduction": reduction, "_reference": _reference}
        pairs = [reparameterize_kl(mu, raw, **own, **n, **more) for mu, raw, own, n in calls]
        return [z for z, _ in pairs], torch.stack([kl for _, kl in pairs]).sum()
    op = _ops.reparameterize_kl_multi
    mu, raw, more = checked.mu, checked.raw, {"reduction": reduction, **checked.arguments()}
    if key is None:
        zs, kl, _ = op.generator(mu, raw, generator=generator, **more)
    else:
        zs, kl = op.default(mu, raw, key=key, **more)
    return list(zs), kl


@kw.named(kw.MultiKlOptions)
def gaussian_kl_multi(
    mus: Sequence[Tensor],
    raws: Sequence[Tensor],
    /,
    *,
    reduction: str = "sum",
    _reference: bool = False,
    **options: Unpack[kw.MultiKlOptions],
) -> Tensor:
    r"""Sum the KLs of many diagonal Gaussians, in one launch for the whole list.

    This is the KL of :func:`vae_fused.reparameterize_kl_multi` without the samples. Use it in a
    step in which other code has drawn the weights, or for a regularizer that needs no samples.
    Backward also takes one launch.

    Args:
        mus, raws, reduction, scale, mu_soft_clamp, prior, free_bits: As in
            :func:`vae_fused.reparameterize_kl_multi`.

    Returns:
        A 0-d KL in nats, float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError, RuntimeError: As for :func:`vae_fused.reparameterize_kl_multi`.

    Example:
        >>> mus = [torch.zeros(64, 32), torch.zeros(64)]
        >>> rhos = [torch.full((64, 32), -3.0), torch.full((64,), -3.0)]
        >>> pretrained = [torch.randn(64, 32), torch.randn(64)]
        >>> priors = [vf.Prior(w, 0.1, "std") for w in pretrained]
        >>> kl = vf.gaussian_kl_multi(mus, rhos, scale="softplus", prior=priors)
    """
    if has_override(*parts(mus), *parts(raws), *options.values()):
        return call_override(gaussian_kl_multi, locals())
    _sharding.refuse("gaussian_kl_multi", mus, raws, options)
    checked = check_list(mus, raws, options, kw.MultiKlOptions, reduction)
    if not _is_one_launch(checked, _reference):
        calls = zip(checked.mu, checked.raw, _options_of_each(checked, options), strict=True)
        more: Any = {"reduction": reduction, "_reference": _reference}
        return torch.stack([gaussian_kl(mu, raw, **own, **more) for mu, raw, own in calls]).sum()
    kl: Tensor = _ops.gaussian_kl_multi.default(
        checked.mu, checked.raw, reduction=reduction, **checked.arguments()
    )
    return kl


def _is_one_launch(checked: CheckedList, reference: bool) -> bool:
    """Return whether a list operator handles the call."""
    return (
        not reference
        and _ext.use_native(checked.mu[0].device.type)
        and not native.is_transformed()
        and not checked.learns_prior
    )


def _options_of_each(checked: CheckedList, options: Any) -> list[dict[str, Any]]:
    """Return the options of each tensor of a list."""
    return [{**options, "prior": prior} for prior in checked.given]
