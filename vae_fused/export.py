"""Decompositions that replace the operators of an exported program by eager PyTorch.

A runtime without this package's compiled extension, such as ONNX or ExecuTorch, can execute only
torch operators. ``torch.onnx.export`` needs nothing from this file, because the public functions
compute in eager PyTorch while it traces them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vae_fused import _ext, stats
from vae_fused._formulas import latent
from vae_fused._native.call import Maybe
from vae_fused._native.likelihood import elbo_of, nll_of
from vae_fused._native.registration import values_of_priors
from vae_fused.options import SCALARS, Options, Prior

__all__ = ["decompositions"]


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Return the decomposition of each operator into torch operators.

    Returns:
        A table for ``torch.export.ExportedProgram.run_decompositions``. It also contains torch's
        default decompositions, which that method would use without a table. Without compiled code,
        there are no operators to decompose, and the table contains only the defaults.

    The results agree with those of the operators up to rounding. The noise of a call with ``eps``
    or ``key`` remains the same. The noise of other calls comes from ``torch.randn``.

    The table is for inference. Decomposing a program that contains gradients raises a
    ``RuntimeError``.

    Example:
        >>> class Encoder(torch.nn.Module):
        ...     def forward(self, mu, logvar):
        ...         return vf.reparameterize_kl(mu, logvar)
        >>> program = torch.export.export(Encoder(), (torch.zeros(2, 3), torch.zeros(2, 3)))
        >>> program = program.run_decompositions(vf.export.decompositions())
    """
    table: dict[Any, Callable[..., Any]] = dict(torch.export.default_decompositions())
    if not _ext.available:
        return table
    for name, function in _FUNCTIONS.items():
        packet = getattr(torch.ops.vae_fused, name)
        for overload in packet.overloads():
            table[getattr(packet, overload)] = function
    for name in _BACKWARD:
        packet = getattr(torch.ops.vae_fused, name)
        for overload in packet.overloads():
            table[getattr(packet, overload)] = partial(_refuse, name)
    return table


def _refuse(name: str, *_: Any, **__: Any) -> Any:
    raise RuntimeError(
        f"vae_fused: the program must not contain gradients, got the operator {name}, which has no "
        "decomposition; export the module under torch.no_grad()"
    )


def _options_of(given: dict[str, Any]) -> Options:
    """Remove the options from ``given``, the arguments of an operator, and return them."""
    scalars = {name: given.pop(name) for name in SCALARS if given.get(name) is not None}
    tensors = {name: given.pop(name, None) for name in ("prior_mean", "prior_raw", "mask")}
    options = Options.unpacked(given.pop("options", None), **tensors, scalars=scalars)
    return options._replace(sample_shape=tuple(given.pop("sample_shape", None) or ()))


def _no_key(mu: Tensor) -> Tensor:
    """Return a placeholder for the key of an operator, which only backward operators read."""
    return torch.zeros(2, dtype=torch.int64, device=mu.device).view(torch.uint64)


def _reparameterize_kl(mu: Tensor, raw: Tensor, **given: Any) -> tuple[Tensor, ...]:
    options, dim = _options_of(given), given["dim"]
    dims = None if dim is None else tuple(dim)
    z, kl = latent.sample_and_divergence(
        mu, raw, options, given.get("eps"), given.get("generator"), given.get("key"),
        given["reduction"], dims, None,
    )  # fmt: skip
    return (z, kl, _no_key(mu)) if "generator" in given else (z, kl)


def _moments(h: Tensor, *, packed_dim: int, **given: Any) -> tuple[Tensor, ...]:
    return _reparameterize_kl(*h.chunk(2, packed_dim), **given)


def _reparameterize(mu: Tensor, raw: Tensor, **given: Any) -> Tensor | tuple[Tensor, Tensor]:
    options = _options_of(given)
    noise = given.get("eps"), given.get("generator"), given.get("key")
    z = latent.sample(mu, raw, options, *noise)
    return (z, _no_key(mu)) if "generator" in given else z


def _gaussian_kl(mu: Tensor, raw: Maybe, **given: Any) -> Tensor:
    options, dim = _options_of(given), given["dim"]
    dims = None if dim is None else tuple(dim)
    return latent.divergence(mu, raw, options, given["reduction"], dims, None)


def _each_options(mus: Sequence[Tensor], given: dict[str, Any]) -> list[Options]:
    """Return the options of each tensor of a list."""
    numbers = given.pop("prior_numbers")
    means = values_of_priors(mus, given.pop("prior_mean"), numbers[::2])
    raws = values_of_priors(mus, given.pop("prior_raw"), numbers[1::2])
    shared = [
        {**given, "prior_mean": mean, "prior_raw": raw}
        for mean, raw in zip(means, raws, strict=True)
    ]
    return [_options_of(each) for each in shared]


def _multi(mus: Sequence[Tensor], raws: Sequence[Tensor], **given: Any) -> tuple[Any, ...]:
    zs, kls = [], []
    noises = latent.noise_of_multi(mus, None, given.get("generator"), given.get("key"))
    each = zip(mus, raws, _each_options(mus, given), noises, strict=True)
    for mu, raw, options, noise in each:
        sources = None, noise.get("generator"), noise.get("key")
        z, kl = latent.sample_and_divergence(
            mu, raw, options, *sources, given["reduction"], None, None
        )
        zs.append(z)
        kls.append(kl)
    total = torch.stack(kls).sum()
    return (zs, total, _no_key(mus[0])) if "generator" in given else (zs, total)


def _kl_multi(mus: Sequence[Tensor], raws: Sequence[Tensor], **given: Any) -> Tensor:
    each = zip(mus, raws, _each_options(mus, given), strict=True)
    kls = [latent.divergence(mu, raw, o, given["reduction"], None, None) for mu, raw, o in each]
    return torch.stack(kls).sum()


def _latent_stats(mu: Tensor, raw: Tensor, *, dim: Sequence[int], **given: Any) -> tuple[Any, ...]:
    options = _options_of(given)
    more: dict[str, Any] = {"scale": options.scale, "mask": options.mask}
    if options.mu_soft_clamp is not None:
        more["mu_soft_clamp"] = options.mu_soft_clamp
    if options.prior is not None:
        more["prior"] = Prior(*options.prior)
    return tuple(stats.latent_stats(mu, raw, dim=tuple(dim), _reference=True, **more))


def _nll(*tensors: Maybe, **numbers: Any) -> tuple[Tensor, Tensor]:
    (loss,) = nll_of(tensors, numbers)
    return loss, loss.new_empty(0)


def _elbo_loss(*tensors: Maybe, grad_mask: Sequence[bool], **numbers: Any) -> tuple[Maybe, ...]:
    if any(grad_mask):
        _refuse("elbo_loss with grad='forward'")
    loss, *parts = elbo_of(tensors, numbers)
    reconstruction, kl = parts or (None, None)
    return loss, reconstruction, kl, loss.new_empty(0), None, None, None, None, None


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "reparameterize_kl": _reparameterize_kl,
    "reparameterize_kl_moments": _moments,
    "reparameterize_kl_multi": _multi,
    "reparameterize": _reparameterize,
    "gaussian_kl": _gaussian_kl,
    "gaussian_kl_multi": _kl_multi,
    "latent_stats": _latent_stats,
    "nll": _nll,
    "elbo_loss": _elbo_loss,
}
_BACKWARD = (
    "reparameterize_kl_backward",
    "reparameterize_kl_moments_backward",
    "reparameterize_kl_multi_backward",
    "nll_backward",
    "elbo_loss_backward",
    "kl_term_backward",
)
