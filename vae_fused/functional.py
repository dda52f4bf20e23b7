"""The public latent functions: their names, their defaults and their operator calls.

Each function checks its arguments and then calls a compiled operator. If no operator supports the
device, the function computes the same result in eager PyTorch, as its twin in
``vae_fused.reference`` always does. The gradients of both agree. ``help`` and ``inspect`` show
``**options`` as keywords with defaults.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vae_fused import _ext, _sharding, _tracing
from vae_fused import _keywords as kw
from vae_fused._checks import (
    Reduced,
    check_call,
    check_moments,
    check_noise,
    check_reduction,
)
from vae_fused._formulas import latent
from vae_fused._native import latent as native
from vae_fused._native import registration
from vae_fused._overrides import call_override, has_override
from vae_fused.options import Options

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "gaussian_kl", "reparameterize", "reparameterize_kl", "reparameterize_kl_moments",
    "sampled_kl",
]  # fmt: skip

_ops = torch.ops.vae_fused
if _ext.available:
    _tracing.register()
    registration.register()


@kw.named(kw.LatentOptions)
def reparameterize_kl(
    mu: Tensor,
    raw: Tensor,
    /,
    *,
    reduction: str = "batchmean",
    dim: int | Sequence[int] | None = None,
    eps: Tensor | None = None,
    generator: torch.Generator | None = None,
    key: Tensor | None = None,
    _reference: bool = False,
    **options: Unpack[kw.LatentOptions],
) -> tuple[Tensor, Tensor]:
    r"""Reparameterized sample and KL divergence of a diagonal Gaussian, in one launch.

    .. math::
        z = \mu + \sigma \epsilon, \quad \epsilon \sim N(0, I), \qquad
        \mathrm{KL}\big(N(\mu, \sigma^2) \,\|\, N(m, \tau^2)\big)
            = \tfrac12 \Big(\frac{(\mu - m)^2}{\tau^2} + \frac{\sigma^2}{\tau^2} - 1
            - \ln \frac{\sigma^2}{\tau^2}\Big)

    (Kingma and Welling 2014, section 2.4 and appendix B). The KL of an element is never negative.
    Backward also takes one launch. It regenerates the noise from a 16-byte key, so the inputs are
    the only tensors of their size that autograd saves.

    **Options that change during training** (``free_bits``, ``temperature``, the weights of
    ``balance``) may be 0-d tensors. A schedule can then change a value in place, and compiled code
    and CUDA graphs read the new value without recompilation. If you pass a changing number instead,
    the code is compiled twice. These tensors get no gradient, so one that requires grad is refused:
    ``.detach()`` it. The host does not read the values, so it cannot refuse invalid ones: a
    ``free_bits`` below 0 acts as 0, and a negative T mirrors the noise. A 0-d CPU tensor is
    accepted on any device, but a captured CUDA graph requires tensors on its own device.

    Args:
        mu: Mean of the posterior, any shape; float32, float64, float16 or bfloat16, any strides.
        raw: Raw scale, broadcastable with ``mu``; by default ``ln sigma^2``. Mixed dtypes promote
            as in torch, across all tensors of the call.
        scale: How sigma is computed from ``raw``: ``"logvar"``, ``"logstd"``, ``"std"``, ``"var"``,
            ``"softplus"``, ``"sigmoid2"``, or a :class:`Scale`, which can also clamp, shift and add
            a floor.
        mu_soft_clamp: c, above 0. The mean is then ``c tanh(mu / c)``, in both the sample and the
            KL.
        prior: The :class:`Prior` N(m, tau^2), whose tensors broadcast to the posterior's shape and
            get gradients, or a module that returns one, such as
            :class:`vae_fused.nn.LearnedPrior`; default: the standard normal.
        reduction: How the elementwise KL is reduced: ``"batchmean"`` (sum over all latent
            dimensions, mean over dimension 0), ``"sum"``, ``"mean"``, ``"sample"`` (sum over all
            dimensions but the first, shape ``(B,)``) or ``"none"``.
        dim: Instead of ``reduction``: the dimension or dimensions to sum; the others remain.
        mask: Bool tensor that broadcasts to the posterior's shape. Where it is False, z, the KL and
            all gradients are 0, even if a tensor contains NaN there. ``"mean"`` divides by the
            number of unmasked elements, and ``"batchmean"`` still divides by the size of dimension
            0.
        free_bits: Floor of each element's KL, in nats. The gradient is 0 below the floor (Kingma et
            al. 2016, appendix C.8, with groups of one element). May be a 0-d tensor.
        balance: ``(wq, wp)``: the gradient of the KL is multiplied by wq for ``mu`` and ``raw``,
            and by wp for the prior. The value of the KL does not change (KL balancing, Hafner et
            al. 2021). The first and higher derivatives are those of ``wq KL(q, sg(p)) + wp
            KL(sg(q), p)``, where sg stops gradients. (1, 1) is the ordinary KL without stopped
            gradients. Either weight may be a 0-d tensor; the gradients are then stopped whatever
            its value.
        temperature: T, at least 0: ``z = mu + T sigma eps``. The analytic KL does not depend on
            it. May be a 0-d tensor.
        sample_shape: Shape of a batch of samples for each element. As in ``torch.distributions``,
            the shape of z is ``sample_shape`` followed by the posterior's shape. The KL is computed
            once, unless it is estimated from each sample.
        estimator: How the KL is computed: ``"analytic"``, by the formula above, or ``"sample"``, as
            ln q(z) - ln p(z) at the drawn z (before z is rounded to 16 bits). If T is 1, the mean
            of this value over z is the KL. A single value may be negative. Each sample has its own
            value, so the result has the shape ``sample_shape`` followed by the shape after
            ``reduction``. With ``reduction="sample"``, this is the ``log_ratio`` of
            :func:`iwae_loss`. Masks, priors and ``balance`` have their usual effect, and
            ``free_bits`` is refused.
        stop_q: With ``estimator="sample"``: the parameters of q are constants in ln q(z), so their
            gradient flows through z alone ("sticking the landing", Roeder et al. 2017,
            arXiv:1703.09194). For T = 1, the expectation of the gradient does not change. In a loss
            with the likelihood, the variance of the gradient goes to 0 as q approaches the true
            posterior. The value of the KL does not change.
        eps: Explicit noise in the shape of ``z``, for exact comparison with other code. It may
            require grad.
        generator: Source of the key, as in ``torch.randn``; default: the device's generator. At
            most one of ``eps``, ``generator`` and ``key`` may be given.
        key: ``(seed, offset)``, a uint64 or int64 tensor of two elements on the device of ``mu``,
            for example from ``torch.func._random.key`` of torch >= 2.14. The call is then a pure
            function: ``z == mu + exp(logvar / 2) * torch.func._random.normal(key, *z.shape)``, up
            to rounding.

    Returns:
        ``(z, kl)``. ``z`` has the broadcast shape of ``mu`` and ``raw``, preceded by
        ``sample_shape``, and the promoted dtype of the inputs. ``kl`` is in nats, float32 (float64
        for float64 inputs). If the inputs are DTensors that are sharded on dimension 0 or
        replicated, both results are DTensors: see ``docs/processes.md``.

    Raises:
        TypeError: An argument of the wrong type, or a dtype that is not floating point.
        ValueError: Incompatible shapes; an unknown ``scale``, ``reduction`` or ``estimator``; an
            out-of-range number or ``dim``; two sources of noise; a DTensor with another placement
            or on another mesh; an option that requires grad; ``stop_q`` without
            ``estimator="sample"``, or ``free_bits`` with it.
        RuntimeError: Tensors or a generator on different devices.
    """
    if dim is None and eps is None and key is None and not _reference:
        both = native.try_sample_and_kl(mu, raw, options, generator, reduction)
        if both is not None:
            return both
    if has_override(mu, raw, eps, key, *options.values()):
        return call_override(reparameterize_kl, locals())
    if _sharding.found(mu, raw, eps, options):
        return _sharding.call_latent(
            reparameterize_kl, {"mu": mu, "raw": raw}, options, reduced=("dim", reduction, dim),
            noise=(eps, generator, key), reference=_reference,
        )  # fmt: skip
    mu, raw, call = check_call(mu, raw, options, kw.LatentOptions)
    eps = check_noise(mu, eps, generator, key, call.sample_shape)
    reduced = check_reduction(mu, reduction, dim, call.mask)
    if _reference or not _ext.use_native(mu.device.type):
        return latent.sample_and_divergence(mu, raw, call, eps, generator, key, *reduced)
    how, dims, count = reduced
    z, kl = native.sample_and_kl(mu, raw, call, eps, generator, key, how, dims)
    return z, kl if count is None else kl / count


@kw.named(kw.LatentOptions)
def reparameterize_kl_moments(
    h: Tensor,
    /,
    *,
    dim: int = 1,
    reduction: str = "batchmean",
    kl_dim: int | Sequence[int] | None = None,
    eps: Tensor | None = None,
    generator: torch.Generator | None = None,
    key: Tensor | None = None,
    _reference: bool = False,
    **options: Unpack[kw.LatentOptions],
) -> tuple[Tensor, Tensor]:
    """:func:`reparameterize_kl` for ``mu, raw = h.chunk(2, dim)``, without unpacking ``h``.

    The kernels read the halves of ``h`` in place and write the gradient of ``h`` as one tensor, so
    the chunks are not copied, and backward does not concatenate their gradients.

    Args:
        h: ``mu`` and the raw scale, packed as the halves along ``dim``, as encoders return them,
            for example ``(B, 2C, H, W)``; any strides, channels_last included.
        dim: The dimension along which the halves are packed; ``h.shape[dim]`` must be even.
        reduction: How the elementwise KL is reduced, as in :func:`reparameterize_kl`.
        kl_dim: Instead of ``reduction``: the dimension or dimensions to sum the KL over.
        scale, mu_soft_clamp, prior, mask, free_bits, balance, temperature, sample_shape, estimator,
            stop_q, eps, generator, key: As in :func:`reparameterize_kl`; the posterior has the
            shape of one half.

    Returns:
        ``(z, kl)``, as from :func:`reparameterize_kl`. Without ``sample_shape``, ``z`` has half the
        size of ``h`` along ``dim``, and the memory format of ``h``.

    Raises:
        TypeError, ValueError, RuntimeError: As for :func:`reparameterize_kl`; also if ``h`` is 0-d
            or has an odd size in ``dim``, or if ``dim`` is out of range.
    """
    if kl_dim is None and eps is None and key is None and not _reference:
        both = native.try_moments(h, dim, options, generator, reduction)
        if both is not None:
            return both
    if has_override(h, eps, key, *options.values()):
        return call_override(reparameterize_kl_moments, locals())
    if _sharding.found(h, eps, options):
        return _sharding.call_latent(
            reparameterize_kl_moments, {"h": h}, options, packed=dim,
            reduced=("kl_dim", reduction, kl_dim), noise=(eps, generator, key),
            reference=_reference,
        )  # fmt: skip
    mu, raw, dim = check_moments(h, dim)
    mu, raw, call = check_call(mu, raw, options, kw.LatentOptions)
    eps = check_noise(mu, eps, generator, key, call.sample_shape)
    reduced = check_reduction(mu, reduction, kl_dim, call.mask, name="kl_dim")
    if _reference or not _ext.use_native(h.device.type):
        return latent.sample_and_divergence(mu, raw, call, eps, generator, key, *reduced)
    how, dims, count = reduced
    z, kl = native.moments(h, dim, mu, raw, call, eps, generator, key, how, dims)
    return z, kl if count is None else kl / count


@kw.named(kw.SampleOptions)
def reparameterize(
    mu: Tensor,
    raw: Tensor,
    /,
    *,
    eps: Tensor | None = None,
    generator: torch.Generator | None = None,
    key: Tensor | None = None,
    _reference: bool = False,
    **options: Unpack[kw.SampleOptions],
) -> Tensor:
    r"""Reparameterized sample :math:`z = \mu + T \sigma \epsilon` of a diagonal Gaussian.

    This is the sample of :func:`reparameterize_kl` without the KL. The same key produces the same
    noise in both functions.

    Args:
        mu: Mean, any shape; float32, float64, float16 or bfloat16, any strides.
        raw: Raw scale, broadcastable with ``mu``; by default ``ln sigma^2``.
        scale, mu_soft_clamp, mask, temperature, sample_shape: As in :func:`reparameterize_kl`.
        eps, generator, key: As in :func:`reparameterize_kl`.

    Returns:
        ``z``, with the broadcast shape of the inputs, preceded by ``sample_shape``, and their
        promoted dtype.

    Raises:
        TypeError, ValueError, RuntimeError: As for :func:`reparameterize_kl`.
    """
    if eps is None and key is None and not _reference:
        sample = native.try_sample(mu, raw, options, generator)
        if sample is not None:
            return sample
    if has_override(mu, raw, eps, key, *options.values()):
        return call_override(reparameterize, locals())
    if _sharding.found(mu, raw, eps, options):
        return _sharding.call_latent(
            reparameterize, {"mu": mu, "raw": raw}, options, noise=(eps, generator, key),
            reference=_reference,
        )  # fmt: skip
    mu, raw, call = check_call(mu, raw, options, kw.SampleOptions)
    eps = check_noise(mu, eps, generator, key, call.sample_shape)
    if _reference or not _ext.use_native(mu.device.type):
        return latent.sample(mu, raw, call, eps, generator, key)
    return native.sample(mu, raw, call, eps, generator, key)


@kw.named(kw.KlOptions)
def gaussian_kl(
    mu: Tensor,
    raw: Tensor,
    /,
    *,
    reduction: str = "batchmean",
    dim: int | Sequence[int] | None = None,
    _reference: bool = False,
    **options: Unpack[kw.KlOptions],
) -> Tensor:
    r"""KL divergence of a diagonal Gaussian from a prior, by default the standard normal, in nats.

    This is the KL of :func:`reparameterize_kl` without the sample.

    Args:
        mu: Mean, any shape; float32, float64, float16 or bfloat16, any strides.
        raw: Raw scale, broadcastable with ``mu``; by default ``ln sigma^2``.
        scale, mu_soft_clamp, prior, reduction, dim, mask, free_bits, balance: As in
            :func:`reparameterize_kl`.

    Returns:
        The KL, float32 (float64 for float64 inputs), shaped by ``reduction`` or ``dim``.

    Raises:
        TypeError, ValueError, RuntimeError: As for :func:`reparameterize_kl`.
    """
    if dim is None and not _reference:
        kl = native.try_kl(mu, raw, options, reduction)
        if kl is not None:
            return kl
    if has_override(mu, raw, *options.values()):
        return call_override(gaussian_kl, locals())
    if _sharding.found(mu, raw, options):
        return _sharding.call_latent(
            gaussian_kl, {"mu": mu, "raw": raw}, options, reduced=("dim", reduction, dim),
            reference=_reference,
        )  # fmt: skip
    mu, raw, call = check_call(mu, raw, options, kw.KlOptions)
    return _divergence(mu, raw, call, check_reduction(mu, reduction, dim, call.mask), _reference)


@kw.named(kw.SampledKlOptions)
def sampled_kl(
    z: Tensor,
    raw: Tensor,
    /,
    *,
    reduction: str = "batchmean",
    dim: int | Sequence[int] | None = None,
    _reference: bool = False,
    **options: Unpack[kw.SampledKlOptions],
) -> Tensor:
    r"""KL divergence estimated from a sample, in nats: :math:`-H(q) - \ln p(z)`, in one launch.

    .. math::
        \tfrac12 \Big(\frac{(z - m)^2}{\tau^2} - 1 - \ln \frac{\sigma^2}{\tau^2}\Big)

    If z is a sample of q, the Gaussian with the raw scale ``raw``, then the mean of the estimate
    over z is the KL of q from the prior N(m, tau^2). This also holds if z is a sample of q after a
    volume-preserving flow, as in VITS (Kim et al. 2021, section 2.1). Unlike a KL, the estimate may
    be negative.

    Args:
        z: The sample: float32, float64, float16 or bfloat16, any strides.
        raw: q's raw scale, broadcastable with ``z``; by default ``ln sigma^2``.
        scale, prior, reduction, dim, mask: As in :func:`reparameterize_kl`.

    Returns:
        The estimate, float32 (float64 for float64 inputs), shaped by ``reduction`` or ``dim``.

    Raises:
        TypeError, ValueError, RuntimeError: As for :func:`reparameterize_kl`.
    """
    if has_override(z, raw, *options.values()):
        return call_override(sampled_kl, locals())
    if _sharding.found(z, raw, options):
        return _sharding.call_latent(
            sampled_kl, {"z": z, "raw": raw}, options, reduced=("dim", reduction, dim),
            reference=_reference,
        )  # fmt: skip
    z, raw, call = check_call(z, raw, options, kw.SampledKlOptions, mu_name="z", linear=-1.0)
    return _divergence(z, raw, call, check_reduction(z, reduction, dim, call.mask), _reference)


def _divergence(
    mu: Tensor, raw: Tensor | None, call: Options, reduced: Reduced, reference: bool
) -> Tensor:
    """Compute ``latent.divergence``, with the operator if it supports the device."""
    if reference or not _ext.use_native(mu.device.type):
        return latent.divergence(mu, raw, call, *reduced)
    how, dims, count = reduced
    kl = native.kl(mu, raw, call, how, dims)
    return kl if count is None else kl / count
