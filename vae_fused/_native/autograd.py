"""All derivatives of the operators except the ordinary backward pass, which a C++ node computes.

``Latent`` computes a sample, a KL or both with one operator, and ``Gradient`` computes their
gradients with another. Both are autograd functions that support forward mode and every transform
of ``torch.func``:

- The backward of ``Latent`` is ``Gradient``. The backward of ``Gradient`` differentiates the
  reference, which contains every formula in differentiable PyTorch operations, with noise
  regenerated from the key.
- A tangent is a sum of gradients times tangents, because each output element depends only on the
  corresponding element of each input.
- The batch of a vmap becomes an additional dimension of the call, so one launch computes all
  slices.

**Noise under vmap.** A key that does not depend on the batch gives every slice the same noise, and
a batch of keys gives each slice different noise. If each slice draws its own noise, one stream
continues through all slices, and the returned key is expanded along the batch, with stride 0. That
stride identifies such a key: keys from users are copied before they reach this file, so their
strides are never 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vae_fused import _forward_mode as forward_mode
from vae_fused._formulas import latent as formulas
from vae_fused._native.call import (
    Call,
    Maybe,
    Operands,
    differentiable,
    in_place,
    scattered,
    widened,
)
from vae_fused.options import SCALARS, Options

__all__ = ["Gradient", "Latent", "apply"]

_ops = torch.ops.vae_fused


def apply(function: Any, *inputs: Any) -> tuple[Tensor, ...]:
    """Call an autograd function. Torch leaves ``apply`` untyped."""
    out: tuple[Tensor, ...] = function.apply(*inputs)
    return out


# --------------------------------------------------------------------------------------------------
# The two functions
# --------------------------------------------------------------------------------------------------


class Latent(torch.autograd.Function):
    """Computes z, the KL, or both, and also returns the reserved key if ``draw`` is given.

    ``draw`` is a tensor without elements. Under vmap, it has a batch dimension if each slice draws
    its own noise.
    """

    @staticmethod
    def forward(
        call: Call, generator: torch.Generator | None, draw: Maybe, *tensors: Any
    ) -> tuple[Tensor, ...]:
        x = Operands(*tensors)
        more: dict[str, Any] = {"options": call.numbers, **x.family()}
        if call.divergence:
            more |= {"reduction": call.reduction, "dim": call.dims}
        with torch._C._AutoDispatchBelowAutograd():
            if not call.sample:
                return (_ops.gaussian_kl.default(x.mu, x.raw, **more),)
            more["sample_shape"] = call.sample_shape or None
            op = _ops.reparameterize_kl if call.divergence else _ops.reparameterize
            if draw is not None:
                return tuple(op.generator(x.mu, x.raw, generator=generator, **more))
            out = op.default(x.mu, x.raw, eps=x.eps, key=x.key, **more)
            return tuple(out) if call.divergence else (out,)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.call, _, draw, *tensors = inputs
        x, ctx.draws = Operands(*tensors), draw is not None
        if ctx.draws:
            x = x._replace(key=output[-1])
            ctx.mark_non_differentiable(output[-1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*x)
        ctx.save_for_forward(*x)

    @staticmethod
    def backward(ctx: Any, *grads: Maybe) -> tuple[Maybe, ...]:
        call, x = ctx.call, Operands(*ctx.saved_tensors)
        grad_z = grads[0] if call.sample else None
        grad_kl = grads[call.sample] if call.divergence else None
        needs_grad = differentiable(ctx.needs_input_grad[3:])
        return None, None, None, *in_place(gradients(call, needs_grad, grad_z, grad_kl, x))

    @staticmethod
    @forward_mode.tangents
    def jvp(ctx: Any, saved: list[Any], *tangents: Maybe) -> tuple[Maybe, ...]:
        call, x = ctx.call, Operands(*saved)
        mu, raw, eps, prior_mean, prior_raw = differentiable(tangents[3:])
        wide = x.widened()
        out: list[Maybe] = []
        if call.sample:
            shape = (*call.sample_shape, *x.mu.shape)
            elements = wide._replace(prior_mean=None, prior_raw=None).expanded(shape)
            elements = elements._replace(eps=_noise(call, wide), key=None)
            ones = torch.ones(shape, dtype=wide.mu.dtype, device=wide.mu.device)
            z = _tangent(call, ones, None, elements, [mu, raw, eps, None, None])
            out.append(None if z is None else z.to(x.mu.dtype))
        if call.divergence:
            # There is either one KL per sample or one KL for all samples.
            shape, noise = x.mu.shape, None
            if call.is_at_sample:
                shape, noise = (*call.sample_shape, *shape), _noise(call, wide)
            ones = torch.ones(shape, dtype=wide.mu.dtype, device=wide.mu.device)
            elements = wide.expanded(shape)._replace(eps=noise, key=None)
            of_noise = None if noise is None else eps
            kl = _tangent(call, None, ones, elements, [mu, raw, of_noise, prior_mean, prior_raw])
            if kl is not None and call.dims:
                kl = kl.sum([call.kl_samples + d for d in call.dims])
            out.append(kl)
        return (*out, None) if ctx.draws else tuple(out)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], call: Call, generator: Any, draw: Maybe, *tensors: Any
    ) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
        x, dims = Operands(*tensors), _dims(in_dims[3:])
        lifted = _lift(info.batch_size, x, dims)
        of_z, of_kl = [len(call.sample_shape)], [call.kl_samples]
        out_dims: list[int | None] = [*of_z[: call.sample], *of_kl[: call.divergence]]
        key = None
        if draw is not None and in_dims[2] is not None:
            draw = draw.select(in_dims[2], 0)
            out_dims.append(0)
        elif draw is not None:
            eps, key = _draw(call, generator, draw, None, _slice(x.mu, dims.mu))
            lifted = lifted.widened()._replace(
                eps=_after_samples(call, _front(eps, None, info.batch_size))
            )
            draw = None
            out_dims.append(None)
        elif call.sample:
            lifted = _lift_noise(call, info.batch_size, x, dims, lifted)
        out = list(apply(Latent, call.lifted(), generator, draw, *lifted))
        if call.sample:
            out[0] = out[0].to(x.mu.dtype)
        if key is not None:
            out.append(key)
        elif draw is not None:
            out[-1] = out[-1].expand(info.batch_size, *out[-1].shape)
        return tuple(out), tuple(out_dims)


class Gradient(torch.autograd.Function):
    """Computes those gradients of mu, raw, eps and the prior that ``needs_grad`` selects."""

    @staticmethod
    def forward(
        call: Call, needs_grad: Sequence[bool], grad_z: Maybe, grad_kl: Maybe, *tensors: Any
    ) -> tuple[Tensor, ...]:
        x = Operands(*tensors)
        with torch._C._AutoDispatchBelowAutograd():
            out = _ops.reparameterize_kl_backward.default(
                grad_z, grad_kl, x.mu, x.raw, eps=x.eps, key=x.key, reduction=call.reduction,
                dim=call.dims, options=call.numbers, output_mask=needs_grad, **x.family(),
            )  # fmt: skip
        return tuple(grad for grad, is_needed in zip(out, needs_grad, strict=True) if is_needed)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.call, ctx.needs_grad, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Maybe) -> tuple[Maybe, ...]:
        grad_z, grad_kl, *tensors = ctx.saved_tensors
        full = scattered(cotangents, ctx.needs_grad)
        to_z, to_kl, *to_x = _second(ctx.call, grad_z, grad_kl, Operands(*tensors), full)
        return None, None, to_z, to_kl, *in_place(to_x)

    @staticmethod
    @forward_mode.tangents
    def jvp(ctx: Any, saved: list[Any], *tangents: Maybe) -> tuple[Maybe, ...]:
        """Compute the tangents of the gradients.

        The input gradients are linear in the output gradients, and their Jacobian with respect to x
        is symmetric.
        """
        call = ctx.call
        grad_z, grad_kl, *tensors = saved
        x = Operands(*tensors)
        linear = gradients(call, ctx.needs_grad, tangents[2], tangents[3], x)
        _, _, *curved = _second(call, grad_z, grad_kl, x, differentiable(tangents[4:]))
        terms = zip(linear, curved, ctx.needs_grad, strict=True)
        return tuple(_sum([a, b]) for a, b, is_needed in terms if is_needed)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], call: Call, needs_grad: tuple[bool, ...],
        grad_z: Maybe, grad_kl: Maybe, *tensors: Any,
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:  # fmt: skip
        size = info.batch_size
        x, dims = Operands(*tensors), _dims(in_dims[4:])
        inputs = zip(differentiable(x), needs_grad, strict=True)
        dtypes = [t.dtype for t, is_needed in inputs if is_needed]
        lifted = _lift(size, x, dims)
        if grad_kl is not None:
            grad_kl = _front(grad_kl, in_dims[3], size).movedim(0, call.kl_samples)
        if grad_z is not None or call.is_at_sample:
            lifted = _lift_noise(call, size, x, dims, lifted)
        if grad_z is not None:
            grad_z = _after_samples(call, _front(grad_z, in_dims[2], size).to(lifted.mu.dtype))
        grads = apply(Gradient, call.lifted(), needs_grad, grad_z, grad_kl, *lifted)
        out_dims = [0, 0, len(call.sample_shape), 0, 0]
        return (
            tuple(grad.to(dtype) for grad, dtype in zip(grads, dtypes, strict=True)),
            tuple(d for d, is_needed in zip(out_dims, needs_grad, strict=True) if is_needed),
        )


# --------------------------------------------------------------------------------------------------
# First and second derivatives
# --------------------------------------------------------------------------------------------------


def gradients(
    call: Call, needs_grad: Sequence[bool], grad_z: Maybe, grad_kl: Maybe, x: Operands
) -> list[Maybe]:
    """Return the gradients of mu, raw, eps and the prior's tensors, or None where not needed."""
    by_z, by_kl = grad_z is not None, grad_kl is not None
    by_noise = by_z or (by_kl and call.is_at_sample)
    reached = (by_z or by_kl, by_z or by_kl, by_noise, by_kl, by_kl)
    each = zip(needs_grad, reached, differentiable(x), strict=True)
    mask = tuple(is_needed and is_reached and t is not None for is_needed, is_reached, t in each)
    if not any(mask):
        return [None] * 5
    if not by_noise:
        x = x._replace(eps=None, key=None)
    return scattered(apply(Gradient, call, mask, grad_z, grad_kl, *x), mask)


def _tangent(
    call: Call, grad_z: Maybe, grad_kl: Maybe, x: Operands, tangents: list[Maybe]
) -> Maybe:
    """Return the tangent of each element of one output, whose gradient must be passed as 1."""
    elementwise = call._replace(reduction="none", dims=None, sample_shape=())
    got = gradients(elementwise, [t is not None for t in tangents], grad_z, grad_kl, x)
    terms = [
        grad * (t if x.mask is None else torch.where(x.mask, t, 0.0))
        for grad, t in zip(got, tangents, strict=True)
        if grad is not None and t is not None
    ]
    return _sum(terms)


def _second(
    call: Call, grad_z: Maybe, grad_kl: Maybe, x: Operands, cotangents: Sequence[Maybe]
) -> list[Maybe]:
    """Compute the vjp of :func:`gradients` for ``grad_z``, ``grad_kl`` and x from the reference."""
    which = [k for k, t in enumerate(cotangents) if t is not None]
    if not which:
        return [None] * 7
    wide = x.widened()
    is_sampled = grad_z is not None or (grad_kl is not None and call.is_at_sample)
    noise = _noise(call, wide) if is_sampled else None
    given = [widened(grad_z), grad_kl, *differentiable(wide)]
    there = [t is not None for t in given]

    def outputs(*inputs: Tensor) -> tuple[Tensor, ...]:
        mu, raw, eps, prior_mean, prior_raw = scattered(inputs, there[2:])
        options = Options.unpacked(call.numbers, prior_mean, prior_raw, x.mask, x.scalars())
        options = options._replace(sample_shape=call.sample_shape)
        eps = noise if eps is None else eps
        out = []
        if grad_z is not None:
            out.append(formulas.sample(mu, raw, options, eps, None, None))
        if grad_kl is not None:
            reduced = call.reduction, call.dims, None
            out.append(formulas.divergence(mu, raw, options, *reduced, noise=eps))
        return tuple(out)

    def first(*values: Tensor) -> tuple[Tensor, ...]:
        outer = sum(there[:2])
        grads = scattered(_pulled(outputs, values[outer:], values[:outer]), there[2:])
        return tuple(grads[k] for k in which)

    values = [t for t in given if t is not None]
    pulled = scattered(_pulled(first, values, [widened(cotangents[k]) for k in which]), there)
    original = [grad_z, grad_kl, *differentiable(x)]
    return [
        grad if grad is None else grad.to(t.dtype) for grad, t in zip(pulled, original, strict=True)
    ]


def _pulled(
    function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Any], cotangents: Sequence[Any]
) -> tuple[Tensor, ...]:
    """The vjp of a function. The result can be differentiated again."""
    if torch._C._are_functorch_transforms_active():
        pull: Callable[..., tuple[Tensor, ...]] = torch.func.vjp(function, *inputs)[1]
        return pull(tuple(cotangents))
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        inputs = [t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in inputs]
        return torch.autograd.grad(
            function(*inputs), inputs, cotangents, create_graph=create_graph,
            allow_unused=True, materialize_grads=True,
        )  # fmt: skip


def _sum(terms: Sequence[Maybe]) -> Maybe:
    there = [t for t in terms if t is not None]
    return sum(there[1:], start=there[0]) if there else None


# --------------------------------------------------------------------------------------------------
# Noise, and a batch as one more dimension
# --------------------------------------------------------------------------------------------------


def _draw(call: Call, generator: Any, draw: Maybe, key: Maybe, like: Tensor) -> tuple[Tensor, ...]:
    """Return the noise for a mu like ``like``, in the arithmetic's dtype, and any drawn key."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    zeros = torch.zeros(like.shape, dtype=dtype, device=like.device)
    noise = Call(sample=True, divergence=False, sample_shape=call.sample_shape)
    return apply(Latent, noise, generator, draw, *Operands(zeros, zeros, key=key))


def _noise(call: Call, x: Operands) -> Tensor:
    """The explicit noise, or the noise of the key."""
    return _draw(call, None, None, x.key, x.mu)[0] if x.eps is None else x.eps


def _front(t: Any, dim: int | None, size: int) -> Any:
    """Move the batch to the front. A tensor without a batch is expanded."""
    if t is None:
        return None
    return t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)


def _after_samples(call: Call, t: Tensor) -> Tensor:
    """Move the first dimension behind the sample dimensions, as in z."""
    return t.movedim(0, len(call.sample_shape))


def _slice(t: Tensor, dim: int | None) -> Tensor:
    """Return a tensor with the shape of one slice."""
    return t if dim is None else t.select(dim, 0)


def _dims(in_dims: Sequence[Any]) -> Any:
    """The batch dimension of each operand."""
    return Operands(*in_dims)


def _lift(size: int, x: Operands, dims: Any) -> Operands:
    """Move the operands' batch to the front. Drop the noise and keep the scalars unchanged."""
    for name in SCALARS:
        if getattr(dims, name) is not None:
            raise RuntimeError(
                f"vae_fused: {name} must be equal for all slices of torch.vmap, because one launch "
                "computes them all, got a batched tensor; call the function of the same name in "
                "vae_fused.reference"
            )
    lifted = [_front(t, dim, size) for t, dim in zip(x, dims, strict=True)]
    return Operands(*lifted)._replace(eps=None, key=None, **x.scalars())


def _lift_noise(call: Call, size: int, x: Operands, dims: Any, lifted: Operands) -> Operands:
    """Add the noise to the lifted operands."""
    if x.eps is not None:
        return lifted._replace(eps=_after_samples(call, _front(x.eps, dims.eps, size)))
    assert x.key is not None
    like = _slice(x.mu, dims.mu)
    if dims.key is None:  # every slice has the same noise
        (eps,) = _draw(call, None, None, x.key, like)
        eps = eps.expand(size, *eps.shape)
    elif x.key.stride(dims.key) == 0:  # one stream runs through all slices
        return lifted._replace(key=x.key.select(dims.key, 0))
    else:
        shape = (*call.sample_shape, *like.shape)
        dtype = torch.promote_types(like.dtype, torch.float32)
        eps = torch.func.vmap(lambda key: formulas.normal(key, shape, dtype=dtype))(
            x.key.movedim(dims.key, 0)
        )
    return lifted.widened()._replace(eps=_after_samples(call, eps))
