"""Computes the loss of a checked likelihood call in eager PyTorch, and adds a KL."""

from __future__ import annotations

from torch import Tensor

from vae_fused._formulas.latent import reduce, unmasked, widen
from vae_fused._likelihood import Call, KlTerm


def negative_log_likelihood(call: Call) -> Tensor:
    """The weighted and reduced loss."""
    # Masked elements are set to 1/2, at which every likelihood parameter has finite gradients.
    outputs = tuple(unmasked(widen(value), call.mask, 0.5) for value in call.outputs)
    target = unmasked(call.target.to(outputs[0].dtype), call.mask)
    library = None if call.library is None else unmasked(call.library, call.mask, 0.5)
    call = call._replace(outputs=outputs, target=target, library=library)
    elements = -call.likelihood.elements(call)
    if call.weight is not None:
        elements = elements * unmasked(call.weight, call.mask)
    total = reduce(unmasked(elements, call.mask), call.reduction, call.dims)
    return total if call.divisor is None else total / call.divisor


def with_kl(call: Call, term: KlTerm) -> tuple[Tensor, Tensor, Tensor]:
    """``(loss, reconstruction, kl)`` of an evidence lower bound, not yet divided for a mean."""
    reconstruction = negative_log_likelihood(call._replace(divisor=None))
    loss, kl = plus_kl(reconstruction, term, call.reduction, call.dims)
    return loss, reconstruction, kl


def plus_kl(
    reconstruction: Tensor, term: KlTerm, reduction: str, dims: tuple[int, ...] | None
) -> tuple[Tensor, Tensor]:
    """The loss and the reduced KL, as in csrc/math/likelihood/kl_term.h."""
    kl = term.kl
    penalty = kl if term.capacity is None else (kl - term.capacity).abs()
    if kl.dim() > 0:
        kl, penalty = (reduce(value, reduction, dims) for value in (kl, penalty))
    return reconstruction + term.beta * penalty, kl.clone()
