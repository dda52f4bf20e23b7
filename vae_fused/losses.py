"""The reconstruction loss: minus the log likelihood of data, given a network's output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vae_fused import _keywords as kw
from vae_fused import _sharding
from vae_fused._checks import check_density, check_reduction
from vae_fused._formulas import reconstruction
from vae_fused._likelihood import KINDS, Call, Likelihood, as_likelihood
from vae_fused._likelihood_checks import check_grad, check_nll, named_outputs
from vae_fused._native import likelihood as _native
from vae_fused._overrides import call_override, has_override, parts

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from vae_fused.options import Scale

__all__ = ["gaussian_log_prob", "nll"]


@kw.named(kw.NoOptions)
def nll(
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
    grad: str = "backward",
    _reference: bool = False,
) -> Tensor:
    r"""Negative log likelihood of ``target`` in nats.

    .. math:: -\ln p(\mathrm{target} \mid \mathrm{output})

    Unless the likelihood has ``constants=False``, the value includes the constants, so that it is
    in nats and comparable between likelihoods.

    Args:
        output: The network's output: a tensor, or the tuple that the likelihood documents, for
            example ``(mean, theta)``; float32, float64, float16 or bfloat16, any strides. Mixed
            dtypes promote as in torch. The first tensor has the shape of the call, and the others
            broadcast to it, unless the likelihood documents that all broadcast together.
        target: The data, in a shape that broadcasts to that of ``output``, such as ``(B, G)`` for
            an ``output`` of K samples, ``(K, B, G)``. float32, float64, float16, bfloat16, uint8,
            int32 or int64. If it requires grad, it gets a gradient. Counts and grid values must not
            require grad.
        likelihood: The name of a kind, or an instance of a class of :mod:`vae_fused.likelihoods`,
            which describes its ``output`` and options.
        reduction: How the elements are reduced: ``"batchmean"`` (sum, divided by the size of
            dimension 0), ``"sum"``, ``"mean"``, ``"sample"`` (sum over all dimensions but the
            first, shape ``(B,)``) or ``"none"``.
        dim: Instead of ``reduction``: the dimension or dimensions to sum; the others remain.
        mask: Bool tensor that broadcasts to the shape of ``output``. Where it is False, the loss
            and all gradients are 0, even if a tensor contains NaN there, and a softmax omits the
            element. ``"mean"`` divides by the number of unmasked elements, and ``"batchmean"``
            still divides by the size of dimension 0.
        weight: Floating-point tensor that broadcasts to the shape of ``output`` and multiplies the
            elements. It gets no gradient, and no reduction divides by it.
        library: For a likelihood with a softmax: the *logarithm* of the factor that multiplies each
            softmax, ``(B, 1)``. It may require grad.
        grad: ``"forward"`` computes the gradients in the launch that computes the loss: see
            :func:`elbo_loss`. The loss must be 0-d.

    Returns:
        The loss, float32 (float64 for float64 outputs), shaped by ``reduction`` or ``dim``. It is a
        DTensor if ``output`` is one: see ``docs/processes.md``.

    Raises:
        TypeError: An argument of the wrong type or dtype.
        ValueError: Incompatible shapes, a wrong number of outputs, an unknown ``likelihood`` or
            ``reduction``, a ``dim`` out of range, a ``library`` without a softmax, or an argument
            that requires grad but gets no gradient. With ``validate=True`` on the likelihood, also
            a target whose values the likelihood does not allow.
        RuntimeError: Tensors on different devices.

    Example:
        >>> logits, x = torch.randn(128, 784), torch.rand(128, 784)
        >>> loss = vf.nll(logits, x, "bernoulli")
        >>> counts = torch.poisson(torch.rand(128, 2000))
        >>> mean, theta = torch.rand(128, 2000), torch.ones(2000)
        >>> per_cell = vf.nll((mean, theta), counts, "negative_binomial", reduction="sample")
    """
    has_fast_path = dim is None and mask is None and weight is None and library is None
    if has_fast_path and not _reference:
        loss = _native.try_unprepared(output, target, likelihood, reduction, grad)
        if loss is not None:
            return loss
    if has_override(*parts(output), target, mask, weight, library):
        return call_override(nll, locals())
    if _sharding.found(output, target, mask, weight, library):
        return _sharding.call_likelihood(
            lambda local, target, **given: nll(
                local, target, likelihood, grad=grad, _reference=_reference, **given
            ),
            named_outputs(output),
            {"target": target, "mask": mask, "weight": weight, "library": library},
            reduction=reduction, dim=dim, has_softmax=as_likelihood(likelihood).has_library,
        )  # fmt: skip
    call = check_nll(
        output, target, likelihood, reduction=reduction, dim=dim, mask=mask, weight=weight,
        library=library,
    )  # fmt: skip
    if check_grad(grad, call) and not _reference and _native.serves(call):
        return _native.loss_with_gradients(call)
    return _computed(call, _reference)


@kw.named(kw.DensityOptions)
def gaussian_log_prob(
    value: Tensor,
    mu: Tensor,
    raw: Tensor,
    /,
    *,
    reduction: str = "none",
    dim: int | Sequence[int] | None = None,
    _reference: bool = False,
    **options: Unpack[kw.DensityOptions],
) -> Tensor:
    r"""Log density of a diagonal Gaussian, in nats: minus :func:`nll` with ``"gaussian"``.

    .. math::
        \ln N(v; \mu, \sigma^2) = -\tfrac12 \big(t^2 + \ln\sigma^2 + \ln 2\pi\big),
        \quad t = (v - \mu) / \sigma

    Args:
        value: The points at which the density is evaluated: float32, float64, float16 or bfloat16,
            any strides.
        mu: Mean. ``value``, ``mu`` and ``raw`` broadcast together and promote as in torch; all
            three get gradients.
        raw: Raw scale; by default ``ln sigma^2``.
        scale, dim, mask: As in :func:`vae_fused.reparameterize_kl`. The log density of a masked
            element is 0.
        reduction: As in :func:`vae_fused.reparameterize_kl`, but ``"none"`` by default.

    Returns:
        The log density, float32 (float64 for float64 inputs), shaped by ``reduction`` or ``dim``.

    Raises:
        TypeError, ValueError, RuntimeError: As for :func:`vae_fused.reparameterize_kl`.
    """
    if has_override(value, mu, raw, *options.values()):
        return call_override(gaussian_log_prob, locals())
    if _sharding.found(value, mu, raw, options):
        scale = options.get("scale", "logvar")
        return _sharding.call_likelihood(
            lambda local, **given: gaussian_log_prob(
                *local, scale=scale, _reference=_reference, **given
            ),
            {"value": value, "mu": mu, "raw": raw},
            {"mask": options.get("mask")},
            reduction=reduction, dim=dim,
        )  # fmt: skip
    value, mu, raw, scale, mask = check_density(value, mu, raw, options)
    reduced = check_reduction(value, reduction, dim, mask, default="none")
    call = Call(_gaussian(scale), (mu, raw), value, mask, None, None, *reduced)
    return -_computed(call, _reference)


def _gaussian(scale: Scale) -> Likelihood:
    """Return the kind for a scale. Constructing one takes 8 us, so the first 64 are cached."""
    found = _GAUSSIANS.get(scale)
    if found is None:
        kind: Any = KINDS["gaussian"]
        found = kind(scale)
        if not torch.compiler.is_compiling() and len(_GAUSSIANS) < 64:
            _GAUSSIANS[scale] = found
    return found


_GAUSSIANS: dict[Scale, Likelihood] = {}


def _computed(call: Call, reference: bool) -> Tensor:
    """Compute the loss of a checked call, with an operator if one supports it."""
    if reference or not _native.serves(call):
        return reconstruction.negative_log_likelihood(call)
    return _native.negative_log_likelihood(call)
