"""Argument checks for likelihoods, and the error messages for invalid arguments."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vae_fused._checks import (
    DTYPES,
    check_device,
    check_expands,
    check_mask,
    check_reduction,
    check_tensor,
    promoted,
)
from vae_fused._likelihood import Call, Likelihood, as_likelihood
from vae_fused._numbers import check_choice
from vae_fused._remedies import kind_of
from vae_fused._shapes import has_shape

TARGET_DTYPES = (*DTYPES, torch.uint8, torch.int32, torch.int64)


def check_nll(
    output: Tensor | Sequence[Tensor],
    target: Tensor,
    /,
    likelihood: str | Likelihood,
    *,
    reduction: str = "batchmean",
    dim: int | Sequence[int] | None = None,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    library: Tensor | None = None,
    mask_name: str = "mask",
) -> Call:
    """Check the arguments of :func:`vae_fused.nll` and return a checked call.

    No tensor values are read, except with ``validate=True``.
    """
    kind = as_likelihood(likelihood)
    outputs, library = check_outputs(output, library, kind)
    first = outputs[0]
    _check_target(target, first, kind)
    if mask is not None:
        check_mask(first, mask, "output", "the shape of output", mask_name)
    if weight is not None:
        weight = _check_weight(weight, first)
    reduced = check_reduction(first, reduction, dim, mask, tensor="output")
    if kind.validate:
        _check_values(target, mask, kind)
    return Call(kind, outputs, target, mask, weight, library, *reduced)


def check_grad(grad: str, call: Call) -> bool:
    """Return whether forward computes the gradients with the loss. Raise if it cannot."""
    check_choice("grad", grad, ("backward", "forward"))
    if grad == "backward":
        return False
    if call.outputs[0].dtype == torch.float16:
        raise TypeError(
            'grad must be "backward" for float16 outputs, because gradients that no GradScaler has '
            'scaled yet underflow, got "forward"'
        )
    keeps_some = call.dims is not None and len(call.dims) < call.outputs[0].dim()
    if keeps_some or (call.dims is None and call.reduction in ("sample", "none")):
        how = f"dim={call.dims}" if call.dims is not None else f"reduction={call.reduction!r}"
        raise ValueError(
            f'grad must be "backward" unless the loss is 0-d, got "forward" with {how}'
        )
    return True


def check_outputs(
    output: Tensor | Sequence[Tensor], library: Tensor | None, kind: Likelihood
) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """Check a network's output for ``kind``, and convert its tensors to one dtype."""
    names = kind.outputs
    requirement = "a Tensor" if len(names) == 1 else f"{len(names)} tensors ({', '.join(names)})"
    if isinstance(output, Tensor):
        output = (output,)
    elif isinstance(output, str) or not isinstance(output, Sequence):
        raise TypeError(f"output must be {requirement}, got {kind_of(output)}")
    if len(output) != len(names):
        given = "1 tensor" if len(output) == 1 else f"{len(output)} tensors"
        raise ValueError(f"output must be {requirement} for {kind!r}, got {given}")
    called = tuple("output" if len(names) == 1 else f"output's {name}" for name in names)
    for name, value in zip(called, output, strict=True):
        check_tensor(name, value)
        check_device(name, value, output[0], called[0])
    outputs, called = kind.ordered(output), kind.ordered(called)
    if kind.leading:
        outputs = _with_common_shape(outputs)
    first = outputs[0]
    for name, value in zip(called, outputs, strict=True):
        check_expands(name, value, first.shape, f"the shape of {called[0]}")
    if library is not None:
        _check_library(library, first, kind)
    if kind.has_library and first.dim() == 0:
        raise ValueError(f"{called[0]} must have a last dimension for the softmax, got shape ()")
    dtype = promoted(*outputs)
    if library is not None:
        library = library.to(torch.promote_types(dtype, torch.float32))
    return tuple(value.to(dtype) for value in outputs), library


def named_outputs(output: Tensor | Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the tensors of an ``output`` by the names that error messages use."""
    if isinstance(output, Sequence):
        return {f"output[{k}]": value for k, value in enumerate(output)}
    return {"output": output}


def _with_common_shape(outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Expand the first output to the shape that all of them broadcast to, if there is one."""
    try:
        shape = torch.broadcast_shapes(*(value.shape for value in outputs))
    except RuntimeError:
        return outputs
    first, *others = outputs
    return (first if has_shape(first, shape) else first.expand(shape), *others)


def _check_target(target: Tensor, first: Tensor, kind: Likelihood) -> None:
    requirement = "float32, float64, float16, bfloat16, uint8, int32 or int64"
    check_tensor("target", target, TARGET_DTYPES, requirement)
    check_device("target", target, first, "output")
    check_expands("target", target, first.shape, "the shape of output")
    if target.requires_grad and not kind.target_has_gradient:
        raise ValueError(
            f"target must not require a gradient for {kind!r}, because none is computed; pass it "
            "with .detach()"
        )


def _check_weight(weight: Tensor, first: Tensor) -> Tensor:
    check_tensor("weight", weight)
    check_device("weight", weight, first, "output")
    check_expands("weight", weight, first.shape, "the shape of output")
    if weight.requires_grad:
        raise ValueError(
            "weight must not require a gradient, because none is computed; pass it with .detach(), "
            'or multiply the result of reduction="none" by it'
        )
    return weight.to(torch.promote_types(first.dtype, torch.float32))


def _check_library(library: Tensor, first: Tensor, kind: Likelihood) -> None:
    if not kind.has_library:
        raise ValueError(
            f"library must be None for {kind!r}, which has no softmax, got {kind_of(library)}"
        )
    check_tensor("library", library)
    check_device("library", library, first, "output")
    check_expands("library", library, (*first.shape[:-1], 1), "one factor for each softmax")


def _check_values(target: Tensor, mask: Tensor | None, kind: Likelihood) -> None:
    """Check the values of a target. No other check reads tensor values from the device."""
    valid = kind.is_valid(target)
    if mask is not None:
        valid = valid | ~mask
    if not bool(valid.all()):
        raise ValueError(f"target must contain only {kind.target_is}, got other values")
