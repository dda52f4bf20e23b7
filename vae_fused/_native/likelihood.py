"""The likelihood operators: their arguments for a checked call, and their derivatives.

The backward of ``nll`` is the operator ``nll_backward``, which a C++ node calls. The backward of
``elbo_loss`` is ``elbo_loss_backward``. The backward of these two backward operators differentiates
the eager PyTorch formulas, which have derivatives of every order. The transforms of ``torch.func``
and forward mode always use these formulas.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vae_fused import _ext
from vae_fused._formulas import reconstruction
from vae_fused._likelihood import Call, KlTerm, Likelihood, as_likelihood
from vae_fused._native.autograd import apply
from vae_fused._native.call import Maybe, scattered
from vae_fused._native.latent import REFUSED, is_transformed, may_call_directly

__all__ = [
    "elbo_of", "loss_with_gradients", "loss_with_kl", "negative_log_likelihood", "nll_of",
    "recorded_backward", "recorded_elbo_backward", "serves", "try_unprepared",
    "try_unprepared_with_kl",
]  # fmt: skip

_ops = torch.ops.vae_fused
_NO_GRADIENTS = [False] * 5  # the mask of the gradients that forward writes


def serves(call: Call) -> bool:
    """Whether the operators support a call. Transforms and user-defined classes are unsupported."""
    device = call.outputs[0].device.type
    return (
        call.likelihood.has_operator
        and device in ("cpu", "cuda")
        and _ext.use_native(device)
        and not is_transformed()
    )


def negative_log_likelihood(call: Call) -> Tensor:
    """The weighted and reduced loss."""
    output, second, third = (*call.outputs, None, None)[:3]
    loss: Tensor = _ops.nll.default(
        output, second, third, call.target, call.library, call.mask, call.weight,
        reduction=call.reduction, dim=call.dims, options=call.likelihood.packed,
    )[0]  # fmt: skip
    return loss if call.divisor is None else loss / call.divisor


def loss_with_gradients(call: Call) -> Tensor:
    """The reduced loss. Its launch also writes the gradients if any is required."""
    loss = _elbo(call, None, in_forward=True)[0]
    return loss if call.divisor is None else loss / call.divisor


def loss_with_kl(call: Call, term: KlTerm, in_forward: bool) -> tuple[Tensor, Tensor, Tensor]:
    """``(loss, reconstruction, kl)`` of an evidence lower bound, not yet divided for a mean."""
    return _elbo(call, term, in_forward)


def _elbo(call: Call, term: KlTerm | None, in_forward: bool) -> tuple[Tensor, Tensor, Tensor]:
    others = (call.library, call.mask, call.weight)
    return _launch_elbo(
        (*call.outputs, None, None)[:3], call.target, others, term, in_forward,
        reduction=call.reduction, dim=call.dims, options=call.likelihood.packed,
    )  # fmt: skip


def _launch_elbo(
    outputs: Sequence[Maybe], target: Tensor, others: tuple[Maybe, Maybe, Maybe],
    term: KlTerm | None, in_forward: bool, **numbers: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Call ``elbo_loss``. ``others`` contains the library, the mask and the weight."""
    kl, beta, capacity = term or (None, 1.0, None)
    grad_mask = _NO_GRADIENTS
    if in_forward and torch.is_grad_enabled():
        leaves = (*outputs, target, others[0])
        grad_mask = [t is not None and t.requires_grad for t in leaves]
    out: tuple[Tensor, ...] = _ops.elbo_loss.default(
        *outputs, target, *others, kl,
        beta if isinstance(beta, Tensor) else None,
        capacity if isinstance(capacity, Tensor) else None,
        beta_value=1.0 if isinstance(beta, Tensor) else beta,
        capacity_value=None if isinstance(capacity, Tensor) else capacity,
        grad_mask=grad_mask,
        **numbers,
    )  # fmt: skip
    return out[0], out[1], out[2]


def try_unprepared(
    output: Tensor | Sequence[Tensor], target: Tensor, likelihood: str | Likelihood,
    reduction: str, grad: str,
) -> Tensor | None:  # fmt: skip
    """Return the loss if the operator accepts the tensors without preparation.

    The checks in Python take 10 us, the same time as the operator for 16 x 16 elements. The
    operator makes the same checks, but its messages are short. Returns None if the call needs
    preparation or if the operator refuses it. The caller then runs the checks, which raise the full
    message.
    """
    if grad != "backward":
        out = try_unprepared_with_kl(output, target, likelihood, reduction, None, grad)
        return None if out is None else out[0]
    call = _unprepared(output, likelihood, reduction)
    if call is None:
        return None
    first, second, third, options = call
    try:
        loss: Tensor = _ops.nll.default(
            first, second, third, target, None, None, None,
            reduction=reduction, dim=None, options=options,
        )[0]  # fmt: skip
    except REFUSED:
        return None
    return loss


def try_unprepared_with_kl(
    output: Tensor | Sequence[Tensor], target: Tensor, likelihood: str | Likelihood,
    reduction: str, term: KlTerm | None, grad: str,
) -> tuple[Tensor, Tensor, Tensor] | None:  # fmt: skip
    """``(loss, reconstruction, kl)``, like :func:`try_unprepared`. ``term`` is still unchecked."""
    kl, beta, capacity = term or (None, 1.0, None)
    if grad not in ("backward", "forward"):
        return None
    if term is not None:
        if not isinstance(kl, Tensor) or reduction not in ("batchmean", "sum", "sample"):
            return None
        if kl.dim() == 0 and reduction != "batchmean":
            return None
        if not isinstance(target, Tensor) or target.dim() != _dim_of(output):
            return None
    is_number = type(beta) in (float, int) and 0 <= beta < math.inf
    if not is_number and not isinstance(beta, Tensor):
        return None
    if capacity is not None and (type(capacity) is not float or not 0 <= capacity < math.inf):
        return None
    call = _unprepared(output, likelihood, reduction)
    if call is None:
        return None
    first, second, third, options = call
    is_half = first.dtype is torch.float16
    if grad == "forward" and (is_half or reduction in ("sample", "none")):
        return None
    try:
        return _launch_elbo(
            (first, second, third), target, (None, None, None), term, grad == "forward",
            reduction=reduction, dim=None, options=options,
        )  # fmt: skip
    except REFUSED:
        return None


def _dim_of(output: Tensor | Sequence[Tensor]) -> int:
    first = output[0] if type(output) in (tuple, list) and output else output
    return first.dim() if isinstance(first, Tensor) else -1


def _unprepared(
    output: Tensor | Sequence[Tensor], likelihood: str | Likelihood, reduction: str
) -> tuple[Tensor, Maybe, Maybe, list[float] | None] | None:
    """Return the outputs and options for the operators, or None if anything needs preparation."""
    kind = as_likelihood(likelihood)
    if not kind.has_operator or kind.validate:
        return None
    outputs = (output,) if isinstance(output, Tensor) else output
    if type(outputs) not in (tuple, list) or len(outputs) != kind.output_count:
        return None
    first = outputs[0]
    for t in outputs:
        if not isinstance(t, Tensor) or t.dtype is not first.dtype:
            return None
    if not isinstance(reduction, str) or not may_call_directly(first):
        return None
    outputs = kind.ordered(outputs) if kind.leading else outputs
    second = outputs[1] if len(outputs) > 1 else None
    third = outputs[2] if len(outputs) > 2 else None
    return outputs[0], second, third, kind.packed


# --------------------------------------------------------------------------------------------------
# Derivatives
# --------------------------------------------------------------------------------------------------


def recorded_backward(*tensors: Maybe, **numbers: Any) -> tuple[Maybe, ...]:
    """``nll_backward``, recorded by autograd."""
    return apply(_Gradient, _OF_NLL, numbers, *tensors)


def recorded_elbo_backward(*tensors: Maybe, **numbers: Any) -> tuple[Maybe, ...]:
    """``elbo_loss_backward``, recorded by autograd."""
    return apply(_Gradient, _OF_ELBO, numbers, *tensors)


class _Backward(NamedTuple):
    """A backward operator. Its first tensors are the gradients of the forward operator's results.

    Attributes:
        operator: The operator's name.
        results: The number of the forward operator's results that have a gradient.
        inputs: The indices of the tensors that get gradients, in the order of the gradients.
        compute: Computes the results of the forward operator in eager PyTorch, from the tensors
            that follow the gradients and from the numbers.
    """

    operator: str
    results: int
    inputs: tuple[int, ...]
    compute: Callable[[Sequence[Maybe], dict[str, Any]], tuple[Tensor, ...]]


class _Gradient(torch.autograd.Function):
    """A backward operator, whose derivatives are computed from the formulas."""

    @staticmethod
    def forward(
        ctx: Any, of: _Backward, numbers: dict[str, Any], *tensors: Maybe
    ) -> tuple[Maybe, ...]:
        ctx.of, ctx.numbers = of, numbers
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        with torch._C._AutoDispatchBelowAutograd():
            out = getattr(_ops, of.operator).default(*tensors, **numbers)
        needed = numbers["output_mask"]
        return tuple(
            grad if is_needed else None for grad, is_needed in zip(out, needed, strict=True)
        )

    @staticmethod
    def backward(ctx: Any, *cotangents: Maybe) -> tuple[Maybe, ...]:
        of, tensors = ctx.of, list(ctx.saved_tensors)
        places = [*range(of.results), *of.inputs]
        for place in places:
            tensors[place] = _leaf(tensors[place])
        needed = [ctx.needs_input_grad[2 + place] for place in places]
        second = _pulled(of, tensors, ctx.numbers, cotangents, places, needed)
        out: list[Maybe] = [None] * len(tensors)
        for place, grad in zip(places, second, strict=True):
            out[place] = grad
        return None, None, *out


def _pulled(
    of: _Backward, tensors: list[Maybe], numbers: dict[str, Any], cotangents: Sequence[Maybe],
    places: list[int], needed: Sequence[bool],
) -> list[Maybe]:  # fmt: skip
    """Compute the gradients of the tensors at ``places`` from those of the inputs' gradients."""
    none: list[Maybe] = [None] * len(places)
    with torch.enable_grad():
        pairs = [
            (t, outer)
            for t, outer in zip((tensors[place] for place in of.inputs), cotangents, strict=True)
            if t is not None and outer is not None
        ]
        leaves = zip((tensors[place] for place in places), needed, strict=True)
        inputs = [t for t, is_needed in leaves if t is not None and is_needed]
        if not pairs or not inputs:
            return none
        results = zip(of.compute(tensors[of.results :], numbers), tensors, strict=False)
        used = [(result, grad) for result, grad in results if grad is not None]
        first = torch.autograd.grad(
            [result for result, _ in used], [t for t, _ in pairs], [grad for _, grad in used],
            create_graph=True, allow_unused=True,
        )  # fmt: skip
    reached = [
        (grad, outer)
        for grad, (_, outer) in zip(first, pairs, strict=True)
        if grad is not None and grad.requires_grad
    ]
    if not reached:
        return none
    second = torch.autograd.grad(
        [grad for grad, _ in reached], inputs, [outer for _, outer in reached],
        create_graph=torch.is_grad_enabled(), allow_unused=True,
    )  # fmt: skip
    return scattered(second, needed)


def _call_of(tensors: Sequence[Maybe], numbers: dict[str, Any]) -> Call:
    outputs, target = tuple(t for t in tensors[:3] if t is not None), tensors[3]
    assert target is not None
    library, mask, weight = tensors[4:7]
    kind = Likelihood.unpacked(numbers["options"], len(outputs))
    reduction, dim = numbers["reduction"], numbers["dim"]
    return Call(kind, outputs, target, mask, weight, library, reduction, dim, None)


def nll_of(tensors: Sequence[Maybe], numbers: dict[str, Any]) -> tuple[Tensor, ...]:
    """Compute the loss of ``nll`` in eager PyTorch, from the operator's arguments."""
    return (reconstruction.negative_log_likelihood(_call_of(tensors, numbers)),)


def elbo_of(tensors: Sequence[Maybe], numbers: dict[str, Any]) -> tuple[Tensor, ...]:
    """Compute the loss of ``elbo_loss`` and, with a KL, the reconstruction and the KL."""
    call = _call_of(tensors, numbers)
    kl, beta, capacity = tensors[7:10]
    if kl is None:
        return (reconstruction.negative_log_likelihood(call),)
    of_beta = numbers["beta_value"] if beta is None else beta
    of_capacity = numbers["capacity_value"] if capacity is None else capacity
    return reconstruction.with_kl(call, KlTerm(kl, of_beta, of_capacity))


_OF_NLL = _Backward("nll_backward", 1, (1, 2, 3, 4, 5), nll_of)
_OF_ELBO = _Backward("elbo_loss_backward", 3, (3, 4, 5, 6, 7, 10, 11), elbo_of)


def _leaf(t: Maybe) -> Maybe:
    """Return a tensor to differentiate by: in the graph if it requires grad, or else a new leaf."""
    if t is None or not t.is_floating_point():
        return t
    if torch.is_grad_enabled() and t.requires_grad:
        return t.view_as(t)
    return t.detach().requires_grad_()
