"""The loss of a variational autoencoder: the sum of a reconstruction loss and a KL divergence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from vae_fused import _keywords as kw
from vae_fused import _sharding, functional
from vae_fused._elbo_checks import (
    FREE_BITS_PER,
    REDUCTIONS,
    check_batch,
    check_elbo,
    check_kl,
    check_samples,
    check_term,
)
from vae_fused._formulas import reconstruction as reconstructions
from vae_fused._formulas.gaussian import clamped
from vae_fused._formulas.latent import widen
from vae_fused._likelihood import Call, KlTerm, Likelihood, as_likelihood
from vae_fused._likelihood_checks import check_outputs, named_outputs
from vae_fused._native import likelihood as _native
from vae_fused._numbers import check_choice
from vae_fused._overrides import call_override, has_override, parts
from vae_fused._scalar_checks import from_numpy, without_symbol
from vae_fused.losses import nll

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["ELBOTerms", "elbo_loss"]


class ELBOTerms(NamedTuple):
    """The result of :func:`elbo_loss`: ``loss = reconstruction + beta * kl`` without a capacity.

    ``kl`` is not multiplied by ``beta``. All three fields are new tensors, 0-d or of shape
    ``(B,)``, float32 (float64 for float64 outputs), and gradients flow through each of them.
    """

    loss: Tensor
    reconstruction: Tensor
    kl: Tensor


torch.serialization.add_safe_globals([ELBOTerms])


@kw.named(kw.KlOptions)
def elbo_loss(
    output: Tensor | Sequence[Tensor],
    target: Tensor,
    mu: Tensor | None = None,
    raw: Tensor | None = None,
    *,
    likelihood: str | Likelihood,
    kl: Tensor | None = None,
    beta: float | Tensor = 1.0,
    capacity: float | Tensor | None = None,
    free_bits_per: str = "element",
    reduction: str = "batchmean",
    grad: str = "backward",
    target_mask: Tensor | None = None,
    weight: Tensor | None = None,
    library: Tensor | None = None,
    _reference: bool = False,
    **options: Unpack[kw.KlOptions],
) -> ELBOTerms:
    r"""The negative evidence lower bound of a batch, in nats.

    .. math::
        -\ln p(x \mid z) + \beta\, \mathrm{KL}\big(q(z \mid x) \,\|\, p(z)\big)

    (Kingma and Welling 2014, equation 10; Higgins et al. 2017 for beta.) Both terms are summed over
    the dimensions of each sample, so their relative weight is the one in the bound. The launch that
    sums the likelihood also adds the KL, and one launch computes all gradients. Apart from the
    networks, a step of ``reparameterize_kl``, the decoder and this loss therefore takes two
    launches in forward and two in backward. The gradient of a broadcast parameter adds one launch.
    A softmax adds one launch in forward and one in backward.

    The KL is either computed from ``mu`` and ``raw``, which adds the launches of
    :func:`gaussian_kl` in forward and backward, or passed as ``kl``, which the launch of the sample
    has already computed. A ``kl`` has one of three shapes:

    - 0-d: a mean over the batch, as from ``reduction="batchmean"``;
    - ``(B,)``: one value for each sample, as from ``reduction="sample"``;
    - ``(B, ...)``: elements, as from ``reduction="none"``. Torch first sums the elements of each
      sample, which takes one more launch.

    Args:
        output, target: As in :func:`nll`. Dimension 0 of both is the batch, of size B. If you have
            K samples of a batch, ``(K, B, ...)``, flatten them to ``(K * B, ...)`` and pass a 0-d
            ``kl``.
        mu, raw: The posterior, as in :func:`gaussian_kl`; dimension 0 is the batch.
        likelihood: As in :func:`nll`.
        kl: A KL that is already computed, instead of ``mu`` and ``raw``. It gets a gradient.
        beta: Weight of the KL: a number, or a 0-d tensor, which a schedule may change in place
            without recompilation and without waiting for the device. A tensor that requires grad
            gets a gradient.
        capacity: C, in nats. The KL is replaced by ``|KL - C|``, whose gradient is 0 at equality
            (Burgess et al. 2018, equation 8). The capacity applies to the KL of each sample if
            ``kl`` has a value for each sample or ``reduction="sample"``, and to the batch mean
            otherwise. A number or a 0-d tensor, which gets no gradient.
        free_bits, free_bits_per: Floor of the KL in nats, below which its gradient is 0. The floor
            applies to each ``"element"`` as in :func:`gaussian_kl`, to each ``"sample"``, or to
            each latent ``"dimension"``, whose KL is a mean over the batch (Kingma et al. 2016,
            appendix C.8). ``"element"`` and ``"dimension"`` require ``mu`` and ``raw`` or an
            elementwise ``kl``, and ``"sample"`` also accepts a ``kl`` of shape ``(B,)``.
        scale, mu_soft_clamp, prior, mask, balance: Options of the KL, as in :func:`gaussian_kl`.
            They require ``mu`` and ``raw``. ``mask`` selects the latents that are included.
        reduction: ``"batchmean"`` (the mean over the batch), ``"sum"``, ``"sample"`` (shape
            ``(B,)``), or ``"mean"``, which divides both terms by the number of elements of
            ``output`` that are not masked.
        grad: When the gradients of ``output`` are computed. With ``"backward"``, they are computed
            in backward, from ``output`` and ``target``. With ``"forward"``, for which the loss must
            be 0-d, the launch that computes the loss also computes any required gradients. Backward
            then multiplies these gradients by the gradient of the loss. If the gradient of the loss
            is 1, which it is not for ``reduction="mean"``, backward neither reads nor writes the
            computed gradients. ``"forward"`` allocates the gradients in forward and does not
            support second derivatives. If the gradient of the loss is infinite, the gradient of a
            masked element is NaN and not 0. float16 outputs are refused, because the gradients
            would be written before a GradScaler has scaled them, and would underflow.
        target_mask, weight, library: ``mask``, ``weight`` and ``library`` of :func:`nll`.

    Returns:
        :class:`ELBOTerms`: ``loss``, ``reconstruction`` and ``kl``, shaped by ``reduction``. They
        are DTensors if ``output`` is one: see ``docs/processes.md``.

    Raises:
        TypeError: An argument of the wrong type or dtype; both or neither of ``mu, raw`` and
            ``kl``; a KL option other than ``free_bits`` together with ``kl``; ``grad="forward"``
            with float16 outputs.
        ValueError: Incompatible shapes, an unknown ``likelihood``, ``reduction`` or ``grad``, or a
            ``kl`` whose shape does not allow ``free_bits_per`` or ``reduction``.
        RuntimeError: Tensors on different devices; a second derivative of ``grad="forward"``.

    Example:
        >>> mu, logvar = torch.zeros(128, 20), torch.zeros(128, 20)
        >>> z, kl = vf.reparameterize_kl(mu, logvar)
        >>> logits, x = torch.randn(128, 784), torch.rand(128, 784)
        >>> loss, reconstruction, _ = vf.elbo_loss(logits, x, kl=kl, likelihood="bernoulli")
    """
    has_fast_path = target_mask is None and weight is None and library is None and not options
    has_fast_path = has_fast_path and free_bits_per in FREE_BITS_PER and not _reference
    if has_fast_path and kl is not None and mu is None and raw is None:
        term = KlTerm(kl, beta, capacity)
        result = _native.try_unprepared_with_kl(output, target, likelihood, reduction, term, grad)
        if result is not None:
            return ELBOTerms(*result)
    tensors = (target, mu, raw, kl, beta, capacity, target_mask, weight, library)
    if has_override(*parts(output), *tensors, *options.values()):
        return call_override(elbo_loss, locals())
    if _sharding.found(output, target, mu, raw, kl, target_mask, weight, library, options):
        return _of_shards(
            output, target, mu, raw, kl, beta, capacity, likelihood, reduction, free_bits_per,
            options, grad=grad, mask=target_mask, weight=weight, library=library,
            _reference=_reference,
        )  # fmt: skip
    call = check_elbo(
        output, target, likelihood, reduction=reduction, grad=grad, mask=target_mask,
        weight=weight, library=library,
    )  # fmt: skip
    given, first = kw.chosen(options, kw.KlOptions), call.outputs[0]
    # For "sum", the KL of each sample is computed, so that no batch mean has to be multiplied by B.
    # A capacity applies to the batch mean and requires it.
    is_sum = reduction in ("sum", "mean")
    per_sample = reduction == "sample" or (is_sum and capacity is None)
    kl = _divergence(first, mu, raw, kl, given, free_bits_per, reduction, per_sample, _reference)
    term = check_term(first, kl, beta, capacity)
    if is_sum and kl.dim() == 0:
        term = term.times(first.shape[0])  # from a mean over the batch to a sum
    terms = _computed(call, term, grad == "forward", _reference)
    if call.divisor is None:
        return ELBOTerms(*terms)
    return ELBOTerms(*(value / call.divisor for value in terms))


def _of_shards(
    output: Tensor | Sequence[Tensor], target: Tensor, mu: Tensor | None, raw: Tensor | None,
    kl: Tensor | None, beta: float | Tensor, capacity: float | Tensor | None,
    likelihood: str | Likelihood, reduction: str, free_bits_per: str, options: Mapping[str, Any],
    **more: Any,
) -> ELBOTerms:  # fmt: skip
    """Compute the loss of DTensors. Torch operators add the KL to the reconstruction."""
    check_choice("reduction", reduction, REDUCTIONS)
    posterior = {"mu": mu, "raw": raw, "kl": kl}
    _sharding.check_leading(named_outputs(output), {"target": target, **posterior, **more})
    how = "sum" if reduction == "mean" else reduction
    reconstruction = nll(output, target, likelihood, reduction=how, **more)
    mesh = reconstruction.device_mesh  # type: ignore[attr-defined]
    mu, raw, kl, beta, capacity = (
        _sharding.replicated(value, mesh) for value in (mu, raw, kl, beta, capacity)
    )
    given = kw.chosen(options, kw.KlOptions)
    if "free_bits" in given:
        given["free_bits"] = _sharding.replicated(given["free_bits"], mesh)
    first = check_outputs(output, more["library"], as_likelihood(likelihood))[0][0]
    check_samples(first, target)
    per_sample = reduction == "sample" or (how == "sum" and capacity is None)
    kl = _divergence(
        first, mu, raw, kl, given, free_bits_per, reduction, per_sample, more["_reference"]
    )
    term = check_term(first, kl if capacity is None else _sharding.summed(kl), beta, capacity)
    if how == "sum" and kl.dim() == 0:
        term = term.times(first.shape[0])
    loss, kl = reconstructions.plus_kl(reconstruction, term, how, None)
    if reduction != "mean":
        return ELBOTerms(loss, reconstruction, kl)
    count = _sharding.unmasked_count(named_outputs(output), more["mask"])
    return ELBOTerms(loss / count, reconstruction / count, kl / count)


def elbo_of_reconstruction(
    reconstruction: Tensor, mu: Tensor | None, raw: Tensor | None, *, kl: Tensor | None,
    beta: float | Tensor, capacity: float | Tensor | None, free_bits_per: str, **options: Any,
) -> ELBOTerms:  # fmt: skip
    """Compute the loss from a reconstruction, which is a batch mean or has one value per sample.

    Torch operators add the KL to the reconstruction.
    """
    of_batch = reconstruction if reconstruction.dim() > 0 else None
    given = kw.chosen(options, kw.KlOptions)
    kl = _divergence(of_batch, mu, raw, kl, given, free_bits_per, "batchmean", False, False)
    term = check_term(reconstruction, kl, beta, capacity)
    value = widen(reconstruction)
    value = value if of_batch is None else value.sum() / value.shape[0]
    loss, kl = reconstructions.plus_kl(value, term, "batchmean", None)
    return ELBOTerms(loss, value, kl)


def _divergence(
    first: Tensor | None, mu: Tensor | None, raw: Tensor | None, kl: Tensor | None,
    options: dict[str, Any], free_bits_per: str, reduction: str, per_sample: bool, reference: bool,
) -> Tensor:  # fmt: skip
    """Compute the KL as the loss requires it: a 0-d batch mean, or one value for each sample.

    If the KL is computed from ``mu`` and ``raw``, ``per_sample`` selects one value for each sample.
    """
    check_kl(first, mu, raw, kl, options, free_bits_per, reduction)
    free_bits = from_numpy(options.get("free_bits", 0.0))
    is_floored = isinstance(free_bits, Tensor) or free_bits > 0.0
    of_dimension = is_floored and free_bits_per == "dimension"
    of_sample = is_floored and free_bits_per == "sample"
    given = kl if mu is None else mu
    assert given is not None
    free_bits = without_symbol(free_bits, given)
    if mu is not None and raw is not None:
        if of_sample or of_dimension:
            options = {name: value for name, value in options.items() if name != "free_bits"}
        how: dict[str, Any] = {"reduction": "batchmean"}
        if of_dimension:
            how = {"dim": 0}
        elif of_sample or per_sample:
            how = {"reduction": "sample"}
        kl = functional.gaussian_kl(mu, raw, **how, **options, _reference=reference)
        if first is not None:
            check_batch("mu", mu, first)
        kl = _sharding.summed(kl) / mu.shape[0] if of_dimension else kl
    else:
        assert kl is not None
        kl = widen(kl)
        if of_dimension:
            kl = _sharding.summed(kl.sum(0)) / kl.shape[0]
        elif kl.dim() > 1:
            kl = (clamped(kl, free_bits) if is_floored else kl).flatten(1).sum(1)
    if of_dimension:
        return clamped(kl, free_bits).sum()
    if not of_sample:
        return kl
    kl = clamped(kl, free_bits)
    return kl if mu is None or per_sample else kl.sum() / kl.shape[0]


def _computed(
    call: Call, term: KlTerm, in_forward: bool, reference: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the loss of a checked call and its terms, with an operator if one supports it."""
    if reference or not _native.serves(call):
        return reconstructions.with_kl(call, term)
    return _native.loss_with_kl(call, term, in_forward)
