"""The public functions: names, defaults, and the way to the operators.

Each function checks its arguments, then calls a compiled operator or, where there is none for the
device, its twin in ``vae_fused.reference``. The gradients of both agree.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vae_fused import _ext, _tracing, reference
from vae_fused._checks import check_moments, check_noise, check_posterior, check_reduction

__all__ = ["gaussian_kl", "reparameterize", "reparameterize_kl", "reparameterize_kl_moments"]

_ops = torch.ops.vae_fused
if _ext.available:
    _tracing.register()


def reparameterize_kl(
    mu: Tensor,
    logvar: Tensor,
    /,
    *,
    reduction: str = "batchmean",
    dim: int | Sequence[int] | None = None,
    eps: Tensor | None = None,
    generator: torch.Generator | None = None,
    key: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Reparameterized sample and KL divergence of a diagonal Gaussian, in one launch.

    .. math::
        z = \mu + \sigma \epsilon, \quad \epsilon \sim N(0, I), \qquad
        \mathrm{KL}\big(N(\mu, \sigma^2) \,\|\, N(0, 1)\big)
            = \tfrac12 \big(\mu^2 + \sigma^2 - 1 - \ln \sigma^2\big)

    (Kingma and Welling 2014, section 2.4 and appendix B). The KL of an element is never negative.
    Backward is one launch too: it regenerates the noise from a 16-byte key, so nothing tensor-sized
    is kept but the inputs.

    Args:
        mu: Mean of the posterior, any shape; float32, float64, float16 or bfloat16, any strides.
        logvar: ``ln sigma^2``, broadcastable with ``mu``. Mixed dtypes promote as in torch.
        reduction: What becomes of the elementwise KL: ``"batchmean"`` (sum over all latent
            dimensions, mean over dimension 0), ``"sum"``, ``"mean"``, ``"sample"`` (sum over all
            dimensions but the first, shape ``(B,)``) or ``"none"``.
        dim: Instead of ``reduction``: the dimension or dimensions to sum; the others remain.
        eps: Explicit noise in the shape of ``z``, for exact comparison with other code. It may
            require grad.
        generator: Source of the key, as in ``torch.randn``; default: the device's generator. At
            most one of ``eps``, ``generator`` and ``key`` may be given.
        key: ``(seed, offset)``, a uint64 or int64 tensor of two elements on the device of ``mu``,
            as ``torch.func._random.key`` of torch >= 2.14 makes it. Makes the call a pure function,
            ``z == mu + exp(logvar / 2) * torch.func._random.normal(key, *mu.shape)`` to rounding.

    Returns:
        ``(z, kl)``. ``z`` has the broadcast shape and promoted dtype of the inputs; ``kl`` is in
        nats, float32 (float64 for float64 inputs).

    Raises:
        TypeError: An argument of the wrong type, or a dtype that is not floating point.
        ValueError: Shapes that do not fit, an unknown ``reduction``, a ``dim`` out of range, or two
            sources of noise.
        RuntimeError: Tensors or a generator on different devices.
    """
    mu, logvar = check_posterior(mu, logvar)
    reduction, dims = check_reduction(mu, reduction, dim)
    eps = check_noise(mu, eps, generator, key)
    if not _ext.use_native(mu.device.type):
        return reference.reparameterize_kl(
            mu, logvar, reduction=reduction, dim=dims, eps=eps, generator=generator, key=key
        )
    if eps is not None or key is not None:
        z, kl = _ops.reparameterize_kl.default(
            mu, logvar, eps=eps, key=key, reduction=reduction, dim=dims
        )
    else:
        z, kl, _ = _ops.reparameterize_kl.generator(
            mu, logvar, generator=generator, reduction=reduction, dim=dims
        )
    return z, kl


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
) -> tuple[Tensor, Tensor]:
    """:func:`reparameterize_kl` of ``mu, logvar = h.chunk(2, dim)``, packed in and packed out.

    The kernels read the halves of ``h`` where they lie and write the gradient of ``h`` as one
    tensor: neither copies of the chunks nor, in backward, their concatenation.

    Args:
        h: ``mu`` and ``logvar``, packed as the halves along ``dim``, as encoders make them: ``(B,
            2C, H, W)``, say; any strides, channels_last included.
        dim: Where they are packed; ``h.shape[dim]`` is even.
        reduction: What becomes of the elementwise KL, as in :func:`reparameterize_kl`.
        kl_dim: Instead of ``reduction``: the dimension or dimensions to sum the KL over.
        eps: Explicit noise in the shape of ``z``.
        generator: Source of the key, as in :func:`reparameterize_kl`.
        key: ``(seed, offset)``, as in :func:`reparameterize_kl`.

    Returns:
        ``(z, kl)``, as :func:`reparameterize_kl`; ``z`` has half the size of ``h`` along ``dim``,
        and its memory format.

    Raises:
        TypeError, ValueError, RuntimeError: As :func:`reparameterize_kl`; ``h`` is 0-d or odd along
            ``dim``, or ``dim`` is out of range.
    """
    mu, _, dim = check_moments(h, dim)
    reduction, dims = check_reduction(mu, reduction, kl_dim, "kl_dim")
    eps = check_noise(mu, eps, generator, key)
    if not _ext.use_native(h.device.type):
        return reference.reparameterize_kl_moments(
            h, dim=dim, reduction=reduction, kl_dim=dims, eps=eps, generator=generator, key=key
        )
    if eps is not None or key is not None:
        z, kl = _ops.reparameterize_kl_moments.default(
            h, packed_dim=dim, eps=eps, key=key, reduction=reduction, dim=dims
        )
    else:
        z, kl, _ = _ops.reparameterize_kl_moments.generator(
            h, packed_dim=dim, generator=generator, reduction=reduction, dim=dims
        )
    return z, kl


def reparameterize(
    mu: Tensor,
    logvar: Tensor,
    /,
    *,
    eps: Tensor | None = None,
    generator: torch.Generator | None = None,
    key: Tensor | None = None,
) -> Tensor:
    r"""Reparameterized sample :math:`z = \mu + \sigma \epsilon` of a diagonal Gaussian.

    The sample of :func:`reparameterize_kl` without its KL; the same key gives the same noise.

    Args:
        mu: Mean, any shape; float32, float64, float16 or bfloat16, any strides.
        logvar: ``ln sigma^2``, broadcastable with ``mu``.
        eps: Explicit noise in the shape of ``z``.
        generator: Source of the key, as in ``torch.randn``.
        key: ``(seed, offset)``, a uint64 or int64 tensor of two elements.

    Returns:
        ``z``, in the broadcast shape and promoted dtype of the inputs.

    Raises:
        TypeError, ValueError, RuntimeError: As :func:`reparameterize_kl`.
    """
    mu, logvar = check_posterior(mu, logvar)
    eps = check_noise(mu, eps, generator, key)
    if not _ext.use_native(mu.device.type):
        return reference.reparameterize(mu, logvar, eps=eps, generator=generator, key=key)
    z: Tensor
    if eps is not None or key is not None:
        z = _ops.reparameterize.default(mu, logvar, eps=eps, key=key)
    else:
        z, _ = _ops.reparameterize.generator(mu, logvar, generator=generator)
    return z


def gaussian_kl(
    mu: Tensor,
    logvar: Tensor,
    /,
    *,
    reduction: str = "batchmean",
    dim: int | Sequence[int] | None = None,
) -> Tensor:
    r"""KL divergence of a diagonal Gaussian from the standard normal, in nats.

    The KL of :func:`reparameterize_kl` without its sample.

    Args:
        mu: Mean, any shape; float32, float64, float16 or bfloat16, any strides.
        logvar: ``ln sigma^2``, broadcastable with ``mu``.
        reduction: ``"batchmean"``, ``"sum"``, ``"mean"``, ``"sample"`` or ``"none"``.
        dim: Instead of ``reduction``: the dimension or dimensions to sum.

    Returns:
        The KL, float32 (float64 for float64 inputs), shaped by ``reduction`` or ``dim``.

    Raises:
        TypeError, ValueError, RuntimeError: As :func:`reparameterize_kl`.
    """
    mu, logvar = check_posterior(mu, logvar)
    reduction, dims = check_reduction(mu, reduction, dim)
    if not _ext.use_native(mu.device.type):
        return reference.gaussian_kl(mu, logvar, reduction=reduction, dim=dims)
    kl: Tensor = _ops.gaussian_kl.default(mu, logvar, reduction=reduction, dim=dims)
    return kl
