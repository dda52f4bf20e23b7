"""Implementations of the latents. A contender returns a function of a case's arguments."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import vae_fused as vf
from benchmarks import formulas
from benchmarks.cases import PRIOR_STD, Case
from vae_fused import _ext

Latent = Callable[..., tuple[Any, Tensor]]  # returns z, or a list of them, and the KL


class Unable(Exception):
    """A contender does not support a case. The message gives the reason; this is not a defect."""


@dataclasses.dataclass(frozen=True)
class Contender:
    """The command-line name of an implementation, its description, and a factory of its function.

    Only contenders that are known to support CUDA graphs are captured, because a failed capture may
    leave the generator unusable for the rest of the process.
    """

    name: str
    what: str
    make: Callable[[Case, str], Latent]
    graph: bool = False
    slow_start: bool = False  # quick runs skip it unless it is selected
    traced: bool = False  # by torch.compile, so dispatches are not counted


# --- this library --------------------------------------------------------------------------------

_CLAMPED = vf.Scale("logvar", clamp=(-30.0, 20.0))
_DREAMER = vf.Scale("softplus", std_floor=0.1)
_WEIGHTS = {"scale": "softplus", "prior": vf.Prior(0.0, PRIOR_STD, "std"), "reduction": "sum"}


def library(functions: Any, family: str) -> Latent:
    """The call of a workload in ``vae_fused`` or in ``vae_fused.reference``."""
    call = functions.reparameterize_kl

    def rssm(mu: Tensor, raw: Tensor, prior_mu: Tensor, prior_raw: Tensor) -> tuple[Tensor, Tensor]:
        prior = vf.Prior(prior_mu, prior_raw, _DREAMER)
        z, kl = call(mu, raw, scale=_DREAMER, prior=prior, dim=-1)
        return z, kl.mean()

    def one_by_one(mus: list[Tensor], rhos: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        pairs = [call(mu, rho, **_WEIGHTS) for mu, rho in zip(mus, rhos, strict=True)]
        return [z for z, _ in pairs], torch.stack([kl for _, kl in pairs]).sum()

    multi = getattr(functions, "reparameterize_kl_multi", None)
    return {
        "plain": call,
        "moments": functools.partial(functions.reparameterize_kl_moments, scale=_CLAMPED),
        "rssm": rssm,
        "masked": lambda mu, logvar, mask: call(mu, logvar, mask=mask, reduction="mean"),
        "samples": lambda mu, logvar, count: call(mu, logvar, sample_shape=count),
        "layers": functools.partial(multi, **_WEIGHTS) if multi else one_by_one,
    }[family]


def _vae_fused(case: Case, device: str) -> Latent:
    if not _ext.available:
        raise Unable(f"no compiled code: {_ext.reason}")
    if device == "cuda" and not _ext.has_cuda:
        raise Unable("built without CUDA")
    return library(vf, case.family)


def _stand_in(case: Case, device: str) -> Latent:
    _vae_fused(case, device)
    module = importlib.import_module("vae_fused.compat.diffusers")
    return _posterior_class(module.DiagonalGaussianDistribution, case)


# --- eager PyTorch -------------------------------------------------------------------------------


def _eager(case: Case, device: str) -> Latent:
    latent: Latent = getattr(formulas, case.family)
    return latent


def _compiled(mode: str | None, case: Case, device: str) -> Latent:
    if mode and device != "cuda":
        raise Unable("for GPUs")
    compiled = torch.compile(_eager(case, device), dynamic=False, fullgraph=True, mode=mode)
    if not mode:
        return compiled

    def latent(*arguments: Any) -> tuple[Tensor, Tensor]:
        torch.compiler.cudagraph_mark_step_begin()  # allows reuse of the last step's outputs
        z, kl = compiled(*arguments)
        return z, kl

    return latent


# --- distributions -------------------------------------------------------------------------------


def _distributions(normal: Callable[..., Any], family: str, validate: bool = True) -> Latent:
    """``rsample`` and ``kl_divergence`` of a class like ``torch.distributions.Normal``.

    torch.distributions validates by default, but torch.compile disables that process-wide.
    """
    kl_divergence = torch.distributions.kl_divergence
    make = functools.partial(normal, validate_args=validate)

    def pair(q: Any, shape: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
        p = make(torch.zeros_like(q.loc), torch.ones_like(q.loc))
        return q.rsample(torch.Size(shape)), kl_divergence(q, p)

    def plain(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        z, kl = pair(make(mu, torch.exp(0.5 * logvar)))
        return z, kl.sum() / mu.shape[0]

    def moments(h: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = h.chunk(2, dim=1)
        z, kl = pair(make(mu, torch.exp(0.5 * logvar.clamp(-30.0, 20.0))))
        return z, kl.sum(dim=(1, 2, 3)).mean()

    def rssm(mu: Tensor, raw: Tensor, prior_mu: Tensor, prior_raw: Tensor) -> tuple[Tensor, Tensor]:
        softplus = torch.nn.functional.softplus
        q, p = make(mu, softplus(raw) + 0.1), make(prior_mu, softplus(prior_raw) + 0.1)
        return q.rsample(), kl_divergence(q, p).sum(-1).mean()

    def masked(mu: Tensor, logvar: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        z, kl = pair(make(mu, torch.exp(0.5 * logvar)))
        return z * mask, (kl * mask).sum() / (mask.sum() * mu.shape[-1])

    def samples(mu: Tensor, logvar: Tensor, count: int) -> tuple[Tensor, Tensor]:
        z, kl = pair(make(mu, torch.exp(0.5 * logvar)), (count,))
        return z, kl.sum() / mu.shape[0]

    def layers(mus: list[Tensor], rhos: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        zs, kls = [], []
        for mu, rho in zip(mus, rhos, strict=True):
            q = make(mu, torch.nn.functional.softplus(rho))
            p = make(torch.zeros_like(mu), torch.full_like(mu, PRIOR_STD))
            zs.append(q.rsample())
            kls.append(kl_divergence(q, p).sum())
        return zs, torch.stack(kls).sum()

    found = {f.__name__: f for f in (plain, moments, rssm, masked, samples, layers)}
    return found[family]


def _torch_distributions(validate: bool, case: Case, device: str) -> Latent:
    return _distributions(torch.distributions.Normal, case.family, validate)


# --- other packages, if they are installed -------------------------------------------------------


def _other(module: str) -> Any:
    if importlib.util.find_spec(module.split(".")[0]) is None:
        raise Unable("not installed")
    try:
        return importlib.import_module(module)
    except Exception as error:  # another package's import may raise anything
        raise Unable(f"does not import: {error}") from error


def _posterior_class(posterior: Callable[[Tensor], Any], case: Case) -> Latent:
    """diffusers' interface: a class of packed moments with ``sample`` and ``kl``."""
    if case.family != "moments":
        raise Unable("for packed moments")

    def latent(h: Tensor) -> tuple[Tensor, Tensor]:
        q = posterior(h)
        return q.sample(), q.kl().mean()

    return latent


def _diffusers(case: Case, device: str) -> Latent:
    if case.family != "moments":
        raise Unable("for packed moments")
    module = _other("diffusers.models.autoencoders.vae")
    return _posterior_class(module.DiagonalGaussianDistribution, case)


def _pyro(case: Case, device: str) -> Latent:
    return _distributions(_other("pyro.distributions").Normal, case.family)


CONTENDERS = {
    c.name: c
    for c in [
        Contender("vae_fused", "this library", _vae_fused, graph=True),
        Contender("eager", "the formula as people write it", _eager, graph=True),
        Contender(
            "distributions",
            "torch.distributions, which validates by default",
            functools.partial(_torch_distributions, True),
        ),
        Contender(
            "distributions-unchecked",
            "torch.distributions with validate_args=False",
            functools.partial(_torch_distributions, False),
            graph=True,
        ),
        Contender(
            "compile",
            "torch.compile of the formula",
            functools.partial(_compiled, None),
            graph=True,
            slow_start=True,
            traced=True,
        ),
        Contender(
            "compile-reduce-overhead",
            "the same with mode='reduce-overhead', on a GPU",
            functools.partial(_compiled, "reduce-overhead"),
            slow_start=True,
            traced=True,
        ),
        Contender(
            "reference",
            "vae_fused.reference, the library's oracle in plain PyTorch",
            lambda case, device: library(vf.reference, case.family),
        ),
        Contender("compat-diffusers", "the library's stand-in for diffusers' class", _stand_in),
        Contender("diffusers", "diffusers' class of the posterior", _diffusers),
        Contender("pyro", "pyro.distributions", _pyro),
    ]
}
