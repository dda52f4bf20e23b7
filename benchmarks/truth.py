"""Checks the results of a contender, before it is timed.

Each contender draws its own noise, so the check solves for it: eps = (z - mean) / sigma in float64.
The noise must look standard normal. With this noise, the KL and every gradient must agree with the
formula in float64. A backward pass that regenerates different noise from forward's would fail.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases import PRIOR_STD, Case, Inputs, outputs
from benchmarks.contenders import Latent

TOLERANCE = {"float64": 1e-9, "float32": 2e-4, "bfloat16": 4e-2, "float16": 1e-2}


class Wrong(Exception):
    """A contender's result differs from the formula's."""


def joined(tensors: list[Tensor]) -> Tensor:
    """A single tensor unchanged, or several joined into one."""
    return tensors[0] if len(tensors) == 1 else torch.cat([t.flatten() for t in tensors])


def posterior(case: Case, leaves: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and sigma of a case."""
    if case.family == "moments":
        mu, logvar = leaves[0].chunk(2, dim=1)
        return mu, torch.exp(0.5 * logvar.clamp(-30.0, 20.0))
    if case.family == "rssm":
        return leaves[0], F.softplus(leaves[1]) + 0.1
    if case.family == "layers":
        half = len(leaves) // 2
        return joined(leaves[:half]), F.softplus(joined(leaves[half:]))
    return leaves[0], torch.exp(0.5 * leaves[1])


def divergence(case: Case, data: Inputs, leaves: list[Tensor], mu: Tensor, sigma: Tensor) -> Tensor:
    """The KL of a case, reduced."""
    if case.family == "rssm":
        tau = F.softplus(leaves[3]) + 0.1
        mu, sigma = (mu - leaves[2]) / tau, sigma / tau
    elif case.family == "layers":
        mu, sigma = mu / PRIOR_STD, sigma / PRIOR_STD
    kl = 0.5 * (mu * mu + sigma * sigma - 1) - torch.log(sigma)
    if case.family == "masked":
        mask = data.arguments[2]
        return (kl * mask).sum() / (mask.sum() * case.shape[-1])
    items = {"rssm": math.prod(case.shape[:-1]), "layers": 1}.get(case.family, case.shape[0])
    return kl.sum() / items


def check(latent: Latent, case: Case, data: Inputs) -> None:
    """Raise Wrong, with the quantity that differs, if the contender's results are wrong."""
    *zs, kl = outputs(latent(*data.arguments))
    found = [(tuple(z.shape), z.dtype) for z in zs]
    if found != [(s, data.leaves[0].dtype) for s in case.z_shapes] or kl.numel() != 1:
        raise Wrong(f"z is {found[0]}, kl {tuple(kl.shape)}")
    grads = torch.autograd.grad([*zs, kl], data.leaves, [*data.grad_zs, data.grad_kl[kl.dtype]])
    # Cloned, as a graph may overwrite its outputs.
    z, kl, grads = joined(zs).detach().clone(), kl.detach().clone(), tuple(g.clone() for g in grads)
    again = joined(outputs(latent(*data.arguments))[:-1]).detach()

    tolerance = TOLERANCE[case.dtype]
    leaves = [leaf.detach().double().requires_grad_() for leaf in data.leaves]
    mu, sigma = posterior(case, leaves)
    eps = ((z.double() - mu) / sigma).detach()
    exact_z, exact_kl = mu + sigma * eps, divergence(case, data, leaves, mu, sigma)
    if case.family == "masked":
        mask = data.arguments[2]
        if bool((z * ~mask).ne(0).any()):
            raise Wrong("z is not 0 where it is masked")
        exact_z = exact_z * mask
        eps = eps[mask.expand_as(eps)]
    check_noise(eps, tolerance)
    if case.elements > 1 and bool(torch.equal(z, again)):
        raise Wrong("two calls drew the same noise")
    close("kl", kl, exact_kl.detach(), tolerance)
    grad_z = joined(data.grad_zs).double()
    exact = torch.autograd.grad([exact_z, exact_kl], leaves, [grad_z, None])
    for i, (grad, want) in enumerate(zip(grads, exact, strict=True)):
        close(f"gradient {i}", grad, want, tolerance)


def close(name: str, got: Tensor, want: Tensor, tolerance: float) -> None:
    """Compare relative to the largest: the rounding of a sum is proportional to its terms."""
    error = (got.double() - want).abs().max() / want.abs().max().clamp_min(1e-30)
    if not float(error) <= tolerance:  # also rejects NaN
        raise Wrong(f"{name} is off by {float(error):.1e}, allowed {tolerance:.0e}")


def check_noise(eps: Tensor, tolerance: float) -> None:
    """Check the moments, each within six standard errors, and that the two halves differ."""
    n = max(1, eps.numel())
    moments = {"mean": (1, 0.0, 1.0), "variance": (2, 1.0, 2.0), "fourth moment": (4, 3.0, 96.0)}
    for name, (power, want, variance) in moments.items():
        got = float(eps.pow(power).mean())
        if not abs(got - want) <= 6 * math.sqrt(variance / n) + power * tolerance:
            raise Wrong(f"the noise has {name} {got:.4f}, wants {want}")
    half = len(eps) // 2
    if half:
        pairs = eps[:half] * eps[half : 2 * half]
        if not abs(float(pairs.mean())) <= 6 / math.sqrt(pairs.numel()) + tolerance:
            raise Wrong("the noise of one half is that of the other")
