"""Argument checks for ``elbo_loss``, and the error messages for invalid arguments."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from vae_fused._checks import check_device, check_tensor
from vae_fused._likelihood import Call, KlTerm, Likelihood
from vae_fused._likelihood_checks import check_grad, check_nll
from vae_fused._numbers import check_choice, check_not_negative
from vae_fused._remedies import kind_of
from vae_fused._scalar_checks import from_numpy, without_symbol

REDUCTIONS = ("batchmean", "sum", "mean", "sample")
FREE_BITS_PER = ("element", "sample", "dimension")


def check_elbo(
    output: Tensor | Sequence[Tensor],
    target: Tensor,
    likelihood: str | Likelihood,
    *,
    reduction: str,
    grad: str,
    mask: Tensor | None,
    weight: Tensor | None,
    library: Tensor | None,
) -> Call:
    """Check the likelihood arguments. The reduction ``"mean"`` becomes a sum and a divisor."""
    check_choice("reduction", reduction, REDUCTIONS)
    call = check_nll(
        output, target, likelihood, reduction=reduction, mask=mask, weight=weight, library=library,
        mask_name="target_mask",
    )  # fmt: skip
    first = call.outputs[0]
    if first.dim() == 0 or first.numel() == 0:
        raise ValueError(f"output must have a batch in dimension 0, got shape {tuple(first.shape)}")
    check_grad(grad, call)
    check_samples(first, call.target)
    if call.reduction == "mean":
        return call._replace(reduction="sum", divisor=first.numel())
    return call


def check_samples(first: Tensor, target: Tensor) -> None:
    """Refuse a leading dimension of K samples, over which the KL would not be averaged."""
    if target.dim() < first.dim():
        raise ValueError(
            f"target must have {first.dim()} dimensions, like output, and the batch in the first, "
            f"got shape {tuple(target.shape)}; flatten K samples of a batch, (K, B, ...), to "
            "(K * B, ...)"
        )


def check_kl(
    first: Tensor | None, mu: Tensor | None, raw: Tensor | None, kl: Tensor | None,
    options: dict[str, Any], free_bits_per: str, reduction: str,
) -> None:  # fmt: skip
    """Check that the KL is given in exactly one way, and that its shape allows the options.

    ``first`` is the first output, whose dimension 0 is the batch, or None if the batch is unknown.
    """
    check_choice("free_bits_per", free_bits_per, FREE_BITS_PER)
    if (mu is None) != (raw is None) or (mu is None) == (kl is None):
        given = {"mu": mu, "raw": raw, "kl": kl}
        got = ", ".join(name for name, value in given.items() if value is not None)
        hint = "; pass kl by name" if raw is None and kl is None and mu is not None else ""
        raise TypeError(f"either mu and raw or kl must be given, got {got or 'none'}{hint}")
    if kl is None:
        return
    beside = sorted(name for name in options if name != "free_bits")
    if beside:
        raise TypeError(f"{' and '.join(beside)} must come with mu and raw, got kl")
    check_tensor("kl", kl)
    shape = tuple(kl.shape)
    if first is not None:
        check_device("kl", kl, first, "output")
    if kl.dim() > 0:
        if first is not None:
            check_batch("kl", kl, first)
    elif reduction == "sample":
        raise ValueError(
            'kl must have one value for each sample, (B,), for reduction="sample", got shape ()'
        )
    least = {"element": 2, "dimension": 2, "sample": 1}[free_bits_per]
    if "free_bits" in options and kl.dim() < least:
        one = {2: "element, (B, ...),", 1: "sample, (B,),"}[least]
        raise ValueError(
            f'kl must have one value for each {one} for free_bits_per="{free_bits_per}", got shape '
            f"{shape}; or pass mu and raw"
        )
    if free_bits_per == "sample" and kl.dim() > 1 and "free_bits" in options:
        raise ValueError(
            'kl must have one value for each sample, (B,), for free_bits_per="sample", got shape '
            f"{shape}"
        )
    if free_bits_per == "dimension" and "free_bits" in options and reduction == "sample":
        raise ValueError(
            'reduction must be batchmean, sum or mean for free_bits_per="dimension", which limits '
            'the mean over the batch, got "sample"'
        )


def check_term(
    first: Tensor, kl: Tensor, beta: float | Tensor, capacity: float | Tensor | None
) -> KlTerm:
    """Check the KL's weight and capacity, and convert all three to the dtype of the loss."""
    beta = _placed("beta", check_weight("beta", from_numpy(beta)), first)
    if capacity is not None:
        capacity = _placed("capacity", check_weight("capacity", from_numpy(capacity)), first)
        if isinstance(capacity, Tensor) and capacity.requires_grad:
            raise ValueError(
                "capacity must not require a gradient, because none is computed; pass it with "
                ".detach()"
            )
    return KlTerm(kl.to(_wide(first)), beta, capacity)


def check_batch(name: str, value: Tensor, first: Tensor, of: str = "output") -> None:
    if value.dim() == 0 or value.shape[0] != first.shape[0]:
        raise ValueError(
            f"{name} must have the batch of {of}, {first.shape[0]}, in dimension 0, got shape "
            f"{tuple(value.shape)}"
        )


def check_weight(name: str, value: float | Tensor) -> float | Tensor:
    """Check that a weight is a number of at least 0 or a 0-d tensor, whose value is not read."""
    if not isinstance(value, Tensor):
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name} must be a number or a 0-d tensor, got {kind_of(value)}")
        number = check_not_negative(name, value)
        return value if isinstance(value, int) else number
    if not value.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor or a number, got {value.dtype}")
    if value.dim() != 0:
        raise ValueError(f"{name} must be a number or a 0-d tensor, got shape {tuple(value.shape)}")
    return value


def _placed(name: str, value: float | Tensor, first: Tensor) -> float | Tensor:
    """Move a tensor to the device of the loss, and convert it to the dtype of the loss."""
    value = without_symbol(value, first)
    if not isinstance(value, Tensor):
        return value
    if value.device != first.device and value.device.type != "cpu":
        raise RuntimeError(
            f"{name} must be on the device of output, {first.device}, or on cpu, got {value.device}"
        )
    return value.to(first.device, _wide(first), non_blocking=True)


def _wide(first: Tensor) -> torch.dtype:
    return torch.promote_types(first.dtype, torch.float32)
