"""The public functions: names, defaults, and the way to the operators.

Each function checks its arguments, then calls a compiled operator or, where there is none for the
device, what its twin in ``vae_fused.reference`` computes. The gradients of both agree.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vae_fused import _ext, _tracing, reference
from vae_fused._checks import (
    check_call,
    check_density,
    check_moments,
    check_noise,
    check_reduction,
    check_sampled,
)
from vae_fused.options import Options, Prior, Scale

__all__ = [
    "gaussian_kl",
    "gaussian_log_prob",
    "reparameterize",
    "reparameterize_kl",
    "reparameterize_kl_moments",
    "sampled_kl",
]

_ops = torch.ops.vae_fused
if _ext.available:
    _tracing.register()


def reparameterize_kl(
    mu: Tensor,
    raw: Tensor,
    /,
    *,
    scale: str | Scale = "logvar",
    mu_soft_clamp: float | None = None,
    prior: Prior | None = None,
    reduction: str = "batchmean",
    dim: int | Sequence[int] | None = None,
    mask: Tensor | None = None,
    free_bits: float = 0.0,
    balance: tuple[float, float] | None = None,
    temperature: float = 1.0,
    sample_shape: int | Sequence[int] = (),
    eps: Tensor | None = None,
    generator: torch.Generator | None = None,
    key: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Reparameterized sample and KL divergence of a diagonal Gaussian, in one launch.

    .. math::
        z = \mu + \sigma \epsilon, \quad \epsilon \sim N(0, I), \qquad
        \mathrm{KL}\big(N(\mu, \sigma^2) \,\|\, N(m, \tau^2)\big)
            = \tfrac12 \Big(\frac{(\mu - m)^2}{\tau^2} + \frac{\sigma^2}{\tau^2} - 1
            - \ln \frac{\sigma^2}{\tau^2}\Big)

    (Kingma and Welling 2014, section 2.4 and appendix B). The KL of an element is never negative.
    Backward is one launch too: it regenerates the noise from a 16-byte key, so nothing tensor-sized
    is kept but the inputs.

    Args:
        mu: Mean of the posterior, any shape; float32, float64, float16 or bfloat16, any strides.
        raw: Raw scale, broadcastable with ``mu``; by default ``ln sigma^2``. Mixed dtypes promote
            as in torch, those of all tensors of the call together.
        scale: How sigma is read from ``raw``: ``"logvar"``, ``"logstd"``, ``"std"``, ``"var"``,
            ``"softplus"``, ``"sigmoid2"``, or a :class:`Scale`, which can also clamp, shift and
            add a floor.
        mu_soft_clamp: c, above 0: the mean is ``c tanh(mu / c)``, in the sample and in the KL.
        prior: The :class:`Prior` N(m, tau^2), whose tensors broadcast to the posterior's shape and
            get gradients; default: the standard normal.
        reduction: What becomes of the elementwise KL: ``"batchmean"`` (sum over all latent
            dimensions, mean over dimension 0), ``"sum"``, ``"mean"``, ``"sample"`` (sum over all
            dimensions but the first, shape ``(B,)``) or ``"none"``.
        dim: Instead of ``reduction``: the dimension or dimensions to sum; the others remain.
        mask: Bool tensor that broadcasts to the posterior's shape. Where it is False, z, the KL and
            all gradients are 0, even if a tensor holds NaN there. ``"mean"`` divides by the number
            of unmasked elements, ``"batchmean"`` by the size of dimension 0 as ever.
        free_bits: Floor of each element's KL, in nats; the gradient is 0 below it (Kingma et al.
            2016, appendix C.8, with groups of one element).
        balance: ``(wq, wp)``: the KL's gradient is multiplied by wq on its way to ``mu`` and
            ``raw``, by wp on its way to the prior; its value remains (KL balancing, Hafner et al.
            2021). It is the gradient of ``wq KL(q, sg(p)) + wp KL(sg(q), p)``, and so are further
            derivatives; (1, 1) is the plain KL, of which nothing is stopped.
        temperature: T, at least 0: ``z = mu + T sigma eps``. The KL does not see it.
        sample_shape: Shape of a batch of samples for each element: z has shape ``sample_shape``
            plus the posterior's, as in ``torch.distributions``; the KL is computed once.
        eps: Explicit noise in the shape of ``z``, for exact comparison with other code. It may
            require grad.
        generator: Source of the key, as in ``torch.randn``; default: the device's generator. At
            most one of ``eps``, ``generator`` and ``key`` may be given.
        key: ``(seed, offset)``, a uint64 or int64 tensor of two elements on the device of ``mu``,
            as ``torch.func._random.key`` of torch >= 2.14 makes it. Makes the call a pure function,
            ``z == mu + exp(logvar / 2) * torch.func._random.normal(key, *z.shape)`` to rounding.

    Returns:
        ``(z, kl)``. ``z`` has the broadcast shape of ``mu`` and ``raw``, after ``sample_shape``,
        and the promoted dtype of the inputs; ``kl`` is in nats, float32 (float64 for float64
        inputs).

    Raises:
        TypeError: An argument of the wrong type, or a dtype that is not floating point.
        ValueError: Shapes that do not fit, an unknown ``scale`` or ``reduction``, a number or a
            ``dim`` out of range, or two sources of noise.
        RuntimeError: Tensors or a generator on different devices.
    """
    mu, raw, options = check_call(
        mu, raw, scale=scale, mu_soft_clamp=mu_soft_clamp, prior=prior, mask=mask,
        free_bits=free_bits, balance=balance, temperature=temperature, sample_shape=sample_shape,
    )  # fmt: skip
    eps = check_noise(mu, eps, generator, key, options.sample_shape)
    reduction, dims, count = check_reduction(mu, reduction, dim, mask)
    if not _ext.use_native(mu.device.type):
        z = reference.sample(mu, raw, options, eps, generator, key)
        return z, reference.divergence(mu, raw, options, reduction, dims, count)
    more = options.arguments(mu)
    if eps is not None or key is not None:
        z, kl = _ops.reparameterize_kl.default(
            mu, raw, eps=eps, key=key, reduction=reduction, dim=dims, **more
        )
    else:
        z, kl, _ = _ops.reparameterize_kl.generator(
            mu, raw, generator=generator, reduction=reduction, dim=dims, **more
        )
    return z, kl if count is None else kl / count


def reparameterize_kl_moments(
    h: Tensor,
    /,
    *,
    dim: int = 1,
    scale: str | Scale = "logvar",
    mu_soft_clamp: float | None = None,
    prior: Prior | None = None,
    reduction: str = "batchmean",
    kl_dim: int | Sequence[int] | None = None,
    mask: Tensor | None = None,
    free_bits: float = 0.0,
    balance: tuple[float, float] | None = None,
    temperature: float = 1.0,
    sample_shape: int | Sequence[int] = (),
    eps: Tensor | None = None,
    generator: torch.Generator | None = None,
    key: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`reparameterize_kl` of ``mu, raw = h.chunk(2, dim)``, packed in and packed out.

    The kernels read the halves of ``h`` where they lie and write the gradient of ``h`` as one
    tensor: neither copies of the chunks nor, in backward, their concatenation.

    Args:
        h: ``mu`` and the raw scale, packed as the halves along ``dim``, as encoders make them:
            ``(B, 2C, H, W)``, say; any strides, channels_last included.
        dim: Where they are packed; ``h.shape[dim]`` is even.
        reduction: What becomes of the elementwise KL, as in :func:`reparameterize_kl`.
        kl_dim: Instead of ``reduction``: the dimension or dimensions to sum the KL over.
        scale, mu_soft_clamp, prior, mask, free_bits, balance, temperature, sample_shape, eps,
            generator, key: As in :func:`reparameterize_kl`; the posterior's shape is that of a
            half.

    Returns:
        ``(z, kl)``, as :func:`reparameterize_kl`; without ``sample_shape``, ``z`` has half the size
        of ``h`` along ``dim``, and its memory format.

    Raises:
        TypeError, ValueError, RuntimeError: As :func:`reparameterize_kl`; ``h`` is 0-d or odd along
            ``dim``, or ``dim`` is out of range.
    """
    mu, raw, dim = check_moments(h, dim)
    mu, raw, options = check_call(
        mu, raw, scale=scale, mu_soft_clamp=mu_soft_clamp, prior=prior, mask=mask,
        free_bits=free_bits, balance=balance, temperature=temperature, sample_shape=sample_shape,
    )  # fmt: skip
    eps = check_noise(mu, eps, generator, key, options.sample_shape)
    reduction, dims, count = check_reduction(mu, reduction, kl_dim, mask, name="kl_dim")
    if not _ext.use_native(h.device.type):
        z = reference.sample(mu, raw, options, eps, generator, key)
        return z, reference.divergence(mu, raw, options, reduction, dims, count)
    h, more = h.to(mu.dtype), options.arguments(mu)  # a prior's dtype may be wider
    if eps is not None or key is not None:
        z, kl = _ops.reparameterize_kl_moments.default(
            h, packed_dim=dim, eps=eps, key=key, reduction=reduction, dim=dims, **more
        )
    else:
        z, kl, _ = _ops.reparameterize_kl_moments.generator(
            h, packed_dim=dim, generator=generator, reduction=reduction, dim=dims, **more
        )
    return z, kl if count is None else kl / count


def reparameterize(
    mu: Tensor,
    raw: Tensor,
    /,
    *,
    scale: str | Scale = "logvar",
    mu_soft_clamp: float | None = None,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    sample_shape: int | Sequence[int] = (),
    eps: Tensor | None = None,
    generator: torch.Generator | None = None,
    key: Tensor | None = None,
) -> Tensor:
    r"""Reparameterized sample :math:`z = \mu + T \sigma \epsilon` of a diagonal Gaussian.

    The sample of :func:`reparameterize_kl` without its KL; the same key gives the same noise.

    Args:
        mu: Mean, any shape; float32, float64, float16 or bfloat16, any strides.
        raw: Raw scale, broadcastable with ``mu``; by default ``ln sigma^2``.
        scale, mu_soft_clamp, mask, temperature, sample_shape: As in :func:`reparameterize_kl`.
        eps: Explicit noise in the shape of ``z``.
        generator: Source of the key, as in ``torch.randn``.
        key: ``(seed, offset)``, a uint64 or int64 tensor of two elements.

    Returns:
        ``z``, in the broadcast shape of the inputs, after ``sample_shape``, and their promoted
        dtype.

    Raises:
        TypeError, ValueError, RuntimeError: As :func:`reparameterize_kl`.
    """
    mu, raw, options = check_call(
        mu, raw, scale=scale, mu_soft_clamp=mu_soft_clamp, mask=mask,
        temperature=temperature, sample_shape=sample_shape,
    )  # fmt: skip
    eps = check_noise(mu, eps, generator, key, options.sample_shape)
    if not _ext.use_native(mu.device.type):
        return reference.sample(mu, raw, options, eps, generator, key)
    more = options.arguments(mu)
    z: Tensor
    if eps is not None or key is not None:
        z = _ops.reparameterize.default(mu, raw, eps=eps, key=key, **more)
    else:
        z, _ = _ops.reparameterize.generator(mu, raw, generator=generator, **more)
    return z


def gaussian_kl(
    mu: Tensor,
    raw: Tensor,
    /,
    *,
    scale: str | Scale = "logvar",
    mu_soft_clamp: float | None = None,
    prior: Prior | None = None,
    reduction: str = "batchmean",
    dim: int | Sequence[int] | None = None,
    mask: Tensor | None = None,
    free_bits: float = 0.0,
    balance: tuple[float, float] | None = None,
) -> Tensor:
    r"""KL divergence of a diagonal Gaussian from a prior, in nats; default: the standard normal.

    The KL of :func:`reparameterize_kl` without its sample.

    Args:
        mu: Mean, any shape; float32, float64, float16 or bfloat16, any strides.
        raw: Raw scale, broadcastable with ``mu``; by default ``ln sigma^2``.
        reduction: ``"batchmean"``, ``"sum"``, ``"mean"``, ``"sample"`` or ``"none"``.
        dim: Instead of ``reduction``: the dimension or dimensions to sum.
        scale, mu_soft_clamp, prior, mask, free_bits, balance: As in :func:`reparameterize_kl`.

    Returns:
        The KL, float32 (float64 for float64 inputs), shaped by ``reduction`` or ``dim``.

    Raises:
        TypeError, ValueError, RuntimeError: As :func:`reparameterize_kl`.
    """
    mu, raw, options = check_call(
        mu, raw, scale=scale, mu_soft_clamp=mu_soft_clamp, prior=prior, mask=mask,
        free_bits=free_bits, balance=balance,
    )  # fmt: skip
    return _divergence(mu, raw, options, *check_reduction(mu, reduction, dim, mask))


def gaussian_log_prob(
    value: Tensor,
    mu: Tensor,
    raw: Tensor,
    /,
    *,
    scale: str | Scale = "logvar",
    reduction: str = "none",
    dim: int | Sequence[int] | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Log density of a diagonal Gaussian, in nats, in one launch.

    .. math::
        \ln N(v; \mu, \sigma^2) = -\tfrac12 \big(t^2 + \ln\sigma^2 + \ln 2\pi\big),
        \quad t = (v - \mu) / \sigma

    Args:
        value: Where the density is asked for: float32, float64, float16 or bfloat16, any strides.
        mu: Mean. ``value``, ``mu`` and ``raw`` broadcast together and promote as in torch; all
            three get gradients.
        raw: Raw scale; by default ``ln sigma^2``.
        scale: As in :func:`reparameterize_kl`.
        reduction: As in :func:`reparameterize_kl`, but ``"none"`` by default.
        dim: Instead of ``reduction``: the dimension or dimensions to sum.
        mask: As in :func:`reparameterize_kl`: masked elements count as 0.

    Returns:
        The log density, float32 (float64 for float64 inputs), shaped by ``reduction`` or ``dim``.

    Raises:
        TypeError, ValueError, RuntimeError: As :func:`reparameterize_kl`.
    """
    value, options = check_density(value, mu, raw, scale=scale, mask=mask)
    reduced = check_reduction(value, reduction, dim, mask, default="none")
    return -_divergence(value, None, options, *reduced)


def sampled_kl(
    z: Tensor,
    raw: Tensor,
    /,
    *,
    scale: str | Scale = "logvar",
    prior: Prior | None = None,
    reduction: str = "batchmean",
    dim: int | Sequence[int] | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    r"""KL divergence estimated from a sample, in nats: :math:`-H(q) - \ln p(z)`, in one launch.

    .. math::
        \tfrac12 \Big(\frac{(z - m)^2}{\tau^2} - 1 - \ln \frac{\sigma^2}{\tau^2}\Big)

    Its mean over z is the KL of q, whose scale is ``raw``, from the prior N(m, tau^2), if z is a
    sample of q, or a sample of q sent through a flow that preserves volume, as in VITS (Kim et al.
    2021, section 2.1). Other than a KL it may be negative.

    Args:
        z: The sample: float32, float64, float16 or bfloat16, any strides.
        raw: q's raw scale, broadcastable with ``z``; by default ``ln sigma^2``.
        scale, prior, reduction, dim, mask: As in :func:`reparameterize_kl`.

    Returns:
        The estimate, float32 (float64 for float64 inputs), shaped by ``reduction`` or ``dim``.

    Raises:
        TypeError, ValueError, RuntimeError: As :func:`reparameterize_kl`.
    """
    z, raw, options = check_sampled(z, raw, scale=scale, prior=prior, mask=mask)
    return _divergence(z, raw, options, *check_reduction(z, reduction, dim, mask))


def _divergence(
    mu: Tensor,
    raw: Tensor | None,
    options: Options,
    reduction: str,
    dims: tuple[int, ...] | None,
    count: Tensor | None,
) -> Tensor:
    """``reference.divergence`` by the operator, if there is one."""
    if not _ext.use_native(mu.device.type):
        return reference.divergence(mu, raw, options, reduction, dims, count)
    kl: Tensor = _ops.gaussian_kl.default(
        mu, raw, reduction=reduction, dim=dims, **options.arguments(mu)
    )
    return kl if count is None else kl / count
