"""Implementations of the latents. A contender returns a function of a latent's arguments."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import vae_fused as vf
from benchmarks import formulas
from benchmarks.cases import Unable
from benchmarks.latents import PRIOR_STD, Function, Latent, normals, reduced
from vae_fused import _ext


@dataclasses.dataclass(frozen=True)
class Contender:
    """An implementation: its name on the command line, and a factory for its function."""

    name: str
    what: str
    make: Callable[[Latent, str], Function]
    slow_start: bool = False  # quick runs skip it unless it is selected
    traced: bool = False  # by torch.compile, so dispatches are not counted


# --- this library --------------------------------------------------------------------------------

_CLAMPED = vf.Scale("logvar", clamp=(-30.0, 20.0))
_DREAMER = vf.Scale("softplus", std_floor=0.1)
_WEIGHTS = {"scale": "softplus", "prior": vf.Prior(0.0, PRIOR_STD, "std"), "reduction": "sum"}


def library(functions: Any, family: str) -> Function:
    """Return the function of a workload in ``vae_fused`` or in ``vae_fused.reference``."""
    call = functions.reparameterize_kl

    def rssm(mu: Tensor, raw: Tensor, prior_mu: Tensor, prior_raw: Tensor) -> tuple[Tensor, Tensor]:
        prior = vf.Prior(prior_mu, prior_raw, _DREAMER)
        z, kl = call(mu, raw, scale=_DREAMER, prior=prior, dim=-1)
        return z, kl.mean()

    def one_by_one(mus: list[Tensor], rhos: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        pairs = [call(mu, rho, **_WEIGHTS) for mu, rho in zip(mus, rhos, strict=True)]
        return [z for z, _ in pairs], torch.stack([kl for _, kl in pairs]).sum()

    multi = getattr(functions, "reparameterize_kl_multi", None)
    found: dict[str, Function] = {
        "plain": call,
        "moments": partial(functions.reparameterize_kl_moments, scale=_CLAMPED),
        "rssm": rssm,
        "masked": lambda mu, logvar, mask: call(mu, logvar, mask=mask, reduction="mean"),
        "samples": lambda mu, logvar, count: call(mu, logvar, sample_shape=count),
        "layers": partial(multi, **_WEIGHTS) if multi else one_by_one,
    }
    return found[family]


def _vae_fused(latent: Latent, device: str) -> Function:
    if not _ext.available:
        raise Unable(f"no compiled code: {_ext.reason}")
    if device == "cuda" and not _ext.has_cuda:
        raise Unable("built without CUDA")
    return library(vf, latent.family)


# --- eager PyTorch -------------------------------------------------------------------------------


def _eager(latent: Latent, device: str) -> Function:
    found: Function = getattr(formulas, latent.family)
    return found


def _compiled(mode: str | None, latent: Latent, device: str) -> Function:
    if mode and device != "cuda":
        raise Unable("for GPUs")
    compiled = torch.compile(_eager(latent, device), dynamic=False, fullgraph=True, mode=mode)

    def call(*arguments: Any) -> tuple[Any, Tensor]:
        torch.compiler.cudagraph_mark_step_begin()  # allows reuse of the last step's outputs
        return compiled(*arguments)

    return call if mode else compiled


# --- distributions, and other packages if they are installed -------------------------------------


def _other(module: str) -> Any:
    if importlib.util.find_spec(module.split(".")[0]) is None:
        raise Unable("not installed")
    try:
        return importlib.import_module(module)
    except Exception as error:  # another package's import may raise anything
        raise Unable(f"does not import: {error}") from error


def _distributions(module: str, validate: bool, latent: Latent, device: str) -> Function:
    """Use ``rsample`` and ``kl_divergence`` of a class like ``torch.distributions.Normal``.

    torch.distributions validates by default, but torch.compile turns this off for the process.
    """
    normal = partial(_other(module).Normal, validate_args=validate)
    family, kl_divergence = latent.family, torch.distributions.kl_divergence

    def call(*arguments: Any) -> tuple[Any, Tensor]:
        zs, kls = [], []
        for mu, sigma, prior_mu, prior_sigma in normals(family, list(arguments)):
            q, p = normal(mu, sigma), normal(prior_mu, prior_sigma)
            zs.append(q.rsample(arguments[2:] if family == "samples" else ()))
            kls.append(kl_divergence(q, p))
        kl = reduced(family, kls, list(arguments))
        if family == "masked":
            return zs[0] * arguments[2], kl
        return (zs if family == "layers" else zs[0]), kl

    return call


def _posterior_class(module: str, latent: Latent, device: str) -> Function:
    """Use diffusers' interface: a class of packed moments that has ``sample`` and ``kl``."""
    if latent.family != "moments":
        raise Unable("for packed moments")
    if module.startswith("vae_fused"):
        _vae_fused(latent, device)
    posterior = _other(module).DiagonalGaussianDistribution

    def call(h: Tensor) -> tuple[Tensor, Tensor]:
        q = posterior(h)
        return q.sample(), q.kl().mean()

    return call


_TORCH, _COMPAT = "torch.distributions", "vae_fused.compat.diffusers"
_DIFFUSERS = "diffusers.models.autoencoders.vae"
_COMPILED = {"slow_start": True, "traced": True}
CONTENDERS = {
    c.name: c
    for c in (
        Contender("vae_fused", "this library", _vae_fused),
        Contender("eager", "the formula as people write it", _eager),
        Contender("distributions", "torch.distributions, which validates by default",
                  partial(_distributions, _TORCH, True)),
        Contender("distributions-unchecked", "torch.distributions with validate_args=False",
                  partial(_distributions, _TORCH, False)),
        Contender("compile", "torch.compile of the formula", partial(_compiled, None),
                  **_COMPILED),
        Contender("compile-reduce-overhead", "the same with mode='reduce-overhead', on a GPU",
                  partial(_compiled, "reduce-overhead"), **_COMPILED),
        Contender("reference", "vae_fused.reference, the library's oracle in eager PyTorch",
                  lambda latent, device: library(vf.reference, latent.family)),
        Contender("compat-diffusers", "the library's stand-in for diffusers' class",
                  partial(_posterior_class, _COMPAT)),
        Contender("diffusers", "diffusers' class of the posterior",
                  partial(_posterior_class, _DIFFUSERS)),
        Contender("pyro", "pyro.distributions",
                  partial(_distributions, "pyro.distributions", True)),
    )
}  # fmt: skip
