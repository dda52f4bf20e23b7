"""Importance-weighted bounds: losses from several samples of each posterior."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vae_fused._checks import check_device, check_reduction, check_tensor, promoted
from vae_fused._formulas.latent import widen
from vae_fused._numbers import check_choice, check_number
from vae_fused._overrides import call_override, has_override
from vae_fused._scalar_checks import from_numpy

__all__ = ["IWAETerms", "check_iwae_options", "iwae_loss"]

REDUCTIONS = ("batchmean", "sum", "mean", "none")
GRADIENTS = ("standard", "doubly")


class IWAETerms(NamedTuple):
    """The result of :func:`iwae_loss`. Only ``loss`` has a gradient.

    Attributes:
        loss: Minus the bound, in nats.
        ess: Effective sample size of each item, between 1 and the number of samples of a group: the
            inverse of the sum of the squared weights, averaged over the groups (Kong 1992). It is 0
            where all weights are 0. It has the shape of ``nll`` without the sample dimension.
        weights: Normalised importance weights in the shape of ``nll``. The weights add up to 1 in
            each group.
    """

    loss: Tensor
    ess: Tensor
    weights: Tensor


torch.serialization.add_safe_globals([IWAETerms])


def iwae_loss(
    nll: Tensor,
    log_ratio: Tensor,
    *,
    dim: int = 0,
    groups: int = 1,
    elbo_weight: float | Tensor = 0.0,
    gradient: str = "standard",
    reduction: str = "batchmean",
) -> IWAETerms:
    r"""Minus the importance-weighted bound of K samples, in nats.

    .. math::
        -\ln \frac1K \sum_{k=1}^K w_k, \qquad
        w_k = \frac{p(x \mid z_k)\, p(z_k)}{q(z_k \mid x)}
            = e^{-\mathrm{nll}_k - \mathrm{log\_ratio}_k}

    (Burda et al. 2016, arXiv:1509.00519). With K = 1, the loss is minus the ELBO, estimated from
    one sample. In expectation, the bound never exceeds ln p(x), and it does not decrease as K
    increases.

    Eager PyTorch computes the loss on every device, and the host does not read any tensor values.

    **Gradients.** ``gradient="standard"`` is the derivative of the loss. The derivative with
    respect to a log weight is minus the normalised weight. For the encoder, the signal-to-noise
    ratio of this gradient decreases as K increases. The doubly reparameterized gradient (Tucker et
    al. 2018, arXiv:1810.04152) has the same expectation for the encoder, but its signal-to-noise
    ratio increases with K. It is the derivative of ln w with respect to z alone, weighted by the
    *squared* normalised weights. The standard gradient is this derivative weighted by the
    normalised weights, plus a term with the score of q. A second reparameterization turns that
    term, in expectation, into the same derivative with other weights. The weights of the two terms
    add up to the squared weights.

    The doubly reparameterized gradient has two requirements: ``z`` is a reparameterized sample at
    temperature 1, and the parameters of q are constants in ``log_ratio``, so that they have an
    effect through z alone. :func:`vae_fused.reparameterize_kl` with ``estimator="sample"`` and
    ``stop_q=True`` returns such a ``z`` and ``log_ratio``. Without ``stop_q``, the gradient would
    be biased.

    The squared weights are correct only for the encoder. The decoder and the prior need the
    standard weights in the same step. There are two ways to combine these weights:

    - Use ``gradient="doubly"`` for the encoder and the standard gradient for everything else. This
      takes two backward passes and works for every model::

          z, log_ratio = vf.reparameterize_kl(                          # (K, B, D), (K, B)
              mu, logvar, prior=prior, sample_shape=K, reduction="sample",
              estimator="sample", stop_q=True,
          )
          nll = vf.nll(decoder(z), x, "bernoulli", dim=-1)              # (K, B)
          doubly = vf.iwae_loss(nll, log_ratio, gradient="doubly").loss
          doubly.backward(inputs=encoder_parameters, retain_graph=True)
          vf.iwae_loss(nll, log_ratio).loss.backward(inputs=other_parameters)

    - Use the standard gradient with the same ``z`` and ``log_ratio``, and multiply the gradients of
      both tensors by the weights once more on their way to the encoder. This takes one backward
      pass. It is correct for all parameters if ``elbo_weight`` is 0 and the prior has no
      parameters::

          terms = vf.iwae_loss(nll, log_ratio)
          z.register_hook(lambda grad: grad * terms.weights.unsqueeze(-1))
          log_ratio.register_hook(lambda grad: grad * terms.weights)
          terms.loss.backward()

    ``"doubly"`` treats the weights as constants, so its second derivatives are meaningless.

    **Infinities.** A sample with weight 0 (``nll`` or ``log_ratio`` is inf) gets a gradient of 0.
    If all weights of a group are 0, the loss is inf. If a weight is infinite, the loss is -inf, and
    the samples with infinite weight get equal normalised weights. In both cases, the gradient of
    the group is 0, except for the ELBO part that ``elbo_weight`` adds. NaN remains NaN.

    Args:
        nll: Minus the log likelihood of each sample, in nats, ``(K, B)`` or any other shape with
            the samples in dimension ``dim``; float32, float64, float16 or bfloat16. ``vf.nll(...,
            dim=-1)`` of outputs ``(K, B, G)`` has this shape.
        log_ratio: ln q(z|x) - ln p(z) at the drawn z, in the shape of ``nll``. It is the KL that
            :func:`vae_fused.reparameterize_kl` returns with ``estimator="sample"``. Mixed dtypes
            promote as in torch.
        dim: The dimension of the samples.
        groups: M, a divisor of the number of samples. The bound is the mean of M bounds of K / M
            consecutive samples each (MIWAE, Rainforth et al. 2018, arXiv:1802.04537). With as many
            groups as samples, it is the ELBO. For PIWAE, from the same paper, call the function
            without groups for the decoder's parameters, and with groups for the encoder's.
        elbo_weight: beta, between 0 and 1. The bound is beta ELBO + (1 - beta) IWAE (CIWAE,
            Rainforth et al. 2018). A number, or a 0-d tensor, which the host does not read and
            which gets no gradient.
        gradient: ``"standard"`` or ``"doubly"``.
        reduction: ``"batchmean"`` (sum, divided by the size of the first remaining dimension),
            ``"sum"``, ``"mean"`` (over all items) or ``"none"``.

    Returns:
        :class:`IWAETerms`: ``loss``, ``ess`` and ``weights``, float32 (float64 for float64 inputs).

    Raises:
        TypeError: An argument of the wrong type or dtype.
        ValueError: Shapes that differ, a ``dim`` out of range, no samples, ``groups`` that do not
            divide the samples, an ``elbo_weight`` that is out of range or requires grad, or an
            unknown ``gradient`` or ``reduction``.
        RuntimeError: Tensors on different devices.

    Example:
        >>> mu, logvar, x = torch.zeros(128, 8), torch.zeros(128, 8), torch.rand(128, 8)
        >>> z, log_ratio = vf.reparameterize_kl(
        ...     mu, logvar, sample_shape=5, estimator="sample", reduction="sample"
        ... )
        >>> nll = vf.nll(z, x, "bernoulli", dim=-1)
        >>> loss, ess, _ = vf.iwae_loss(nll, log_ratio)
    """
    if has_override(nll, log_ratio, elbo_weight):
        return call_override(iwae_loss, locals())
    elbo_weight = from_numpy(elbo_weight)
    check_iwae_options(groups, elbo_weight, gradient, reduction)
    dim = _check_samples(nll, log_ratio, dim, groups)
    dtype = promoted(nll, log_ratio)
    cost = widen(nll.to(dtype)) + widen(log_ratio.to(dtype))
    if groups > 1:
        cost = cost.unflatten(dim, (groups, cost.shape[dim] // groups))
    samples = dim + (groups > 1)
    loss, ess, weights = _terms(cost, samples, gradient)
    if groups > 1:
        loss, ess, weights = loss.mean(dim), ess.mean(dim), weights.flatten(dim, dim + 1)
    if isinstance(elbo_weight, Tensor) or elbo_weight != 0.0:
        all_samples = (dim, samples) if groups > 1 else dim
        loss = _combined(loss, cost.mean(all_samples), elbo_weight)
    return IWAETerms(_reduced(loss, reduction), ess, weights)


# --------------------------------------------------------------------------------------------------
# Formulas
# --------------------------------------------------------------------------------------------------


def _terms(cost: Tensor, dim: int, gradient: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return minus the log of the mean weight, the effective sample size, and the weights.

    ``cost`` is minus the log weight. The minimum cost is subtracted first, so the largest share is
    1 and the shares add up to between 1 and K. ``torch.logsumexp`` is not used, because its
    derivative would be computed from its rounded result, which in float32 has a rounding error of
    0.004 for losses of 1e5 nats.

    If the minimum cost is infinite, the loss is that infinity and has no gradient. Each sample with
    infinite weight then has a share of 1, and each other sample has a share of 0.
    """
    least = cost.detach().amin(dim, keepdim=True)
    is_infinite = least.isinf()
    moved = torch.where(is_infinite, 0.0, least - cost)
    relative = moved.exp()
    shares = torch.where(is_infinite, cost.detach() == -math.inf, relative.detach())
    # The sums are below 1 only if all shares are 0, and the results are then 0.
    total, squares = shares.sum(dim, keepdim=True), shares.square().sum(dim)
    weights = shares / total.clamp_min(1.0)
    ess = total.squeeze(dim).square() / squares.clamp_min(1.0)
    if gradient == "doubly":
        # This difference is 0 and only carries the gradient. A weight of 0 would make it inf - inf.
        change = torch.where(moved.detach() == -math.inf, 0.0, moved - moved.detach())
        log_mean = relative.detach().mean(dim).log() + (weights.square() * change).sum(dim)
    else:
        log_mean = relative.mean(dim).log()
    return least.squeeze(dim) - log_mean, ess, weights


def _combined(loss: Tensor, minus_elbo: Tensor, weight: float | Tensor) -> Tensor:
    """Return ``weight * minus_elbo + (1 - weight) * loss``. A factor of 0 removes infinities."""
    if isinstance(weight, Tensor):
        weight = weight.to(loss.device, loss.dtype, non_blocking=True)
        mixed = weight * minus_elbo + (1.0 - weight) * loss
        return torch.where(weight == 0.0, loss, torch.where(weight == 1.0, minus_elbo, mixed))
    return minus_elbo if weight == 1.0 else weight * minus_elbo + (1.0 - weight) * loss


def _reduced(loss: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return loss
    if reduction == "mean":
        return loss.mean()
    total = loss.sum()
    return total / loss.shape[0] if reduction == "batchmean" and loss.dim() > 0 else total


# --------------------------------------------------------------------------------------------------
# Checks
# --------------------------------------------------------------------------------------------------


def check_iwae_options(
    groups: int, elbo_weight: float | Tensor, gradient: str, reduction: str
) -> None:
    """Check the options that do not depend on the batch."""
    check_choice("gradient", gradient, GRADIENTS)
    check_choice("reduction", reduction, REDUCTIONS)
    if isinstance(groups, bool) or not isinstance(groups, int):
        raise TypeError(f"groups must be an int, got {type(groups).__name__}")
    if groups < 1:
        raise ValueError(f"groups must be at least 1, got {groups}")
    if not isinstance(elbo_weight, Tensor):
        if not 0.0 <= check_number("elbo_weight", elbo_weight) <= 1.0:
            raise ValueError(f"elbo_weight must be between 0 and 1, got {elbo_weight}")
        return
    if not elbo_weight.is_floating_point():
        raise TypeError(
            f"elbo_weight must be a floating-point tensor or a number, got {elbo_weight.dtype}"
        )
    if elbo_weight.dim() != 0:
        shape = tuple(elbo_weight.shape)
        raise ValueError(f"elbo_weight must be a number or a 0-d tensor, got shape {shape}")
    if elbo_weight.requires_grad:
        raise ValueError(
            "elbo_weight must not require a gradient, because none is computed; pass it with "
            ".detach()"
        )


def _check_samples(nll: Tensor, log_ratio: Tensor, dim: int, groups: int) -> int:
    """Check the tensors and ``dim``, and return ``dim`` as a nonnegative index."""
    for name, value in (("nll", nll), ("log_ratio", log_ratio)):
        check_tensor(name, value)
    check_device("log_ratio", log_ratio, nll, "nll")
    if nll.shape != log_ratio.shape:
        ours, theirs = tuple(log_ratio.shape), tuple(nll.shape)
        raise ValueError(f"log_ratio must have the shape of nll, {theirs}, got {ours}")
    if nll.dim() == 0:
        raise ValueError("nll must have a dimension of samples, got shape ()")
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise TypeError(f"dim must be an int, got {type(dim).__name__}")
    check_reduction(nll, "batchmean", dim, tensor="nll")
    dim %= nll.dim()
    samples = nll.shape[dim]
    if samples == 0:
        shape = tuple(nll.shape)
        raise ValueError(f"nll must have at least 1 sample in dimension {dim}, got shape {shape}")
    if samples % groups:
        raise ValueError(f"groups must divide the {samples} samples, got {groups}")
    return dim
