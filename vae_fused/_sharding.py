"""Calls with DTensors: each rank computes its rows of the batch, and the results are DTensors.

A call whose tensors are sharded on dimension 0 or replicated runs on each rank as an ordinary call
with the local tensors. DTensor's ``to_local`` and ``from_local`` propagate the gradients, so the
operators need no sharding strategies. The values equal those of the same call on unsharded tensors:
each rank uses its part of the whole batch's noise, and means divide by the sizes of the whole
batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from vae_fused._checks import check_shape, promoted
from vae_fused._learned_prior import as_prior
from vae_fused._spread import (
    SEE,
    check_leading,
    common_shape,
    found,
    replicated,
    spread_of,
    summed,
)
from vae_fused.options import Prior

__all__ = [
    "call_latent", "call_likelihood", "check_leading", "found", "refuse", "replicated", "summed",
    "unmasked_count",
]  # fmt: skip


Result = TypeVar("Result")


def refuse(function: str, *values: Any) -> None:
    """Raise an error if a DTensor is passed to ``function``, which does not support DTensors."""
    if found(*values):
        raise TypeError(
            f"{function} must be called with plain tensors, got a DTensor; pass .to_local(), or "
            f".full_tensor() for the whole: {SEE}"
        )


def call_latent(
    function: Callable[..., Result],
    operands: Mapping[str, Tensor],
    options: Mapping[str, Any],
    *,
    packed: int | None = None,
    reduced: tuple[str, str, int | Sequence[int] | None] | None = None,
    noise: tuple[Any, torch.Generator | None, Tensor | None] | None = None,
    reference: bool = False,
) -> Result:
    """Call a latent function with DTensors.

    Args:
        function: Computes the call on local tensors.
        operands: The positional tensors of the function, by name. At least one of them is a
            DTensor.
        options: The options of the call.
        packed: The dimension along which ``h`` is packed, if the call has packed moments.
        reduced: ``(name of dim, reduction, dim)``, if the function returns a KL.
        noise: ``(eps, generator, key)``, if the function returns a sample.
        reference: Whether the call runs in eager PyTorch.
    """
    options = dict(options)
    if options.get("prior") is not None:
        prior = as_prior(options["prior"])
        options["prior"] = prior
    else:
        prior = Prior()
    mask = options.get("mask")
    shape = common_shape(operands)
    arguments: dict[str, Any] = {"_reference": reference}
    others = {"prior.mean": prior.mean, "prior.raw": prior.raw, "mask": mask}
    spread = spread_of(shape, operands, others)
    if packed is not None:
        arguments["dim"] = packed
        spread = spread.of_halves(packed)
    samples = check_shape("sample_shape", options.get("sample_shape", ()))
    if noise:
        floats = [t for t in (*operands.values(), prior.mean, prior.raw) if isinstance(t, Tensor)]
        device = floats[0].device
        arguments |= spread.noise(device, promoted(*floats), samples, *noise, reference)
    divisor, kl_dim = None, None
    if reduced:
        dim_name, how, dim = reduced
        lead = len(samples) if options.get("estimator", "analytic") == "sample" else 0
        how, divisor, kl_dim = spread.reduction(how, dim, mask, lead)
        arguments |= {"reduction": how, dim_name: dim}
    for name, value in options.items():
        if name == "prior":
            options[name] = Prior(spread.local(prior.mean), spread.local(prior.raw), prior.scale)
        elif name == "balance" and isinstance(value, list | tuple):
            options[name] = tuple(spread.local(weight) for weight in value)
        else:
            options[name] = spread.local(value)
    out: Any = function(*(spread.local(t) for t in operands.values()), **arguments, **options)
    if not reduced:
        return cast(Result, spread.whole(out, len(samples)))
    *sample, kl = out if noise else (out,)
    kl = spread.whole(kl if divisor is None else kl / divisor, kl_dim)
    return cast(Result, (spread.whole(sample[0], len(samples)), kl) if noise else kl)


def call_likelihood(
    function: Callable[..., Tensor],
    outputs: Mapping[str, Tensor],
    others: Mapping[str, Any],
    *,
    reduction: str,
    dim: int | Sequence[int] | None,
    has_softmax: bool = False,
) -> Tensor:
    """Call ``nll`` or a log density with DTensors.

    Args:
        function: Computes the local result. It is called with the list of local outputs, and with
            the keyword arguments ``reduction``, ``dim`` and the local part of each of ``others``.
        outputs: The tensors whose broadcast shape is the shape of the elementwise loss.
        others: Tensors that broadcast to this shape, or None, by name. One of the names is
            ``mask``.
        reduction, dim: The arguments of the call.
        has_softmax: Whether the call contains a softmax over the last dimension.
    """
    shape = common_shape(outputs)
    spread = spread_of(shape, outputs, others)
    if has_softmax and len(shape) == 1 and any(spread.is_sharded):
        raise ValueError(
            "output must not be sharded on its only dimension, which has a softmax; pass "
            "output.redistribute(placements=[Replicate()])"
        )
    how, divisor, kept = spread.reduction(reduction, dim, others.get("mask"))
    local = [spread.local(value) for value in outputs.values()]
    given = {name: spread.local(value) for name, value in others.items()}
    loss = function(local, reduction=how, dim=dim, **given)
    return spread.whole(loss if divisor is None else loss / divisor, kept)


def unmasked_count(outputs: Mapping[str, Tensor], mask: Tensor | None) -> Tensor | float:
    """Return the divisor for ``reduction="mean"`` in a call with DTensors."""
    return spread_of(common_shape(outputs), outputs, {"mask": mask}).unmasked(mask)
