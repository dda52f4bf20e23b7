"""Recipes for calls, and float64 formulas for the results of these calls.

There is a recipe for each option, and there are random recipes with several options.

A recipe is plain data: keyword arguments, and descriptions from which ``prior`` and ``mask`` are
made for each dtype and device. The formulas share no code with the package. Like textbook formulas,
they are written for moderate inputs.
"""

from __future__ import annotations

import math
import random as python_random
from typing import Any

import torch
import torch.nn.functional as F
from conftest import random
from torch import Tensor
from torch.distributions import Normal

import vae_fused as vf

Recipe = dict[str, Any]
SHAPE = (4, 3, 5)

SCALES: dict[str, str | vf.Scale] = {
    **{kind: kind for kind in ("logvar", "logstd", "std", "var", "softplus", "sigmoid2")},
    "clamp": vf.Scale("logvar", clamp=(-0.5, 0.7)),
    "clamp beside 0": vf.Scale("logvar", clamp=(0.1, 0.7)),
    "clamp from below": vf.Scale("logstd", clamp=(-0.4, None)),
    "clamp from above": vf.Scale("softplus", clamp=(None, 0.3)),
    "soft clamp": vf.Scale("logstd", soft_clamp=1.5),
    "gain and shift": vf.Scale("logvar", gain=0.7, shift=-0.2),
    "beta": vf.Scale("softplus", beta=1.5),
    "std floor": vf.Scale("softplus", std_floor=0.1),
    "var floor": vf.Scale("logvar", var_floor=0.05),
    "both floors": vf.Scale("sigmoid2", std_floor=0.1, var_floor=0.2),
    "floor of a std": vf.Scale("std", var_floor=0.3),
    **{
        f"least {kind}": vf.Scale(kind, std_min=0.8)
        for kind in ("logvar", "logstd", "std", "var", "softplus", "sigmoid2")
    },
    "least beside floors": vf.Scale("logvar", std_floor=0.1, var_floor=0.05, std_min=1.0),
    "everything": vf.Scale(
        "softplus", soft_clamp=2.0, gain=1.3, shift=0.1, beta=0.7, std_floor=0.05, var_floor=0.1
    ),
}

# prior_mean and prior_raw: a number, or the shape of a tensor.
OPTIONS: dict[str, Recipe] = {
    **{name: {"scale": scale} for name, scale in SCALES.items()},
    "mu soft clamp": {"mu_soft_clamp": 1.2},
    "prior of numbers": {"prior_mean": 0.3, "prior_raw": -0.4},
    "prior of tensors": {"prior_mean": SHAPE, "prior_raw": SHAPE},
    "prior that broadcasts": {"prior_mean": (5,), "prior_raw": (4, 1, 1)},
    "prior of 0-d tensors": {"prior_mean": (), "prior_raw": ()},
    "prior with a mean alone": {"prior_mean": SHAPE},
    "prior with a scale alone": {"prior_raw": (3, 1)},
    **{
        f"prior, {name}": {"prior_mean": SHAPE, "prior_raw": SHAPE, "prior_scale": scale}
        for name, scale in SCALES.items()
        if name != "logvar"
    },
    "mask": {"mask": SHAPE},
    "mask that broadcasts": {"mask": (4, 1, 5)},
    "mask of rows": {"mask": (3, 1)},
    "free bits": {"free_bits": 0.3},
    "balance": {"balance": (0.2, 0.8), "prior_mean": SHAPE, "prior_raw": SHAPE},
    "balance without a prior": {"balance": (0.3, 2.0)},
    "temperature": {"temperature": 0.7},
    "temperature 0": {"temperature": 0.0},
    "one more dimension": {"sample_shape": 2},
    "two more dimensions": {"sample_shape": (2, 3)},
}


def combinations(n: int, seed: int) -> list[Recipe]:
    """Returns random recipes with several options each."""
    rng, recipes = python_random.Random(seed), []
    shapes = (0.2, SHAPE, SHAPE, (5,), (3, 1), (4, 1, 1), ())
    every: dict[str, Any] = {
        "scale": lambda: rng.choice([*SCALES.values()]),
        "mu_soft_clamp": lambda: rng.choice((0.8, 3.0)),
        "prior_mean": lambda: rng.choice(shapes),
        "prior_raw": lambda: rng.choice(shapes),
        "prior_scale": lambda: rng.choice([*SCALES.values()]),
        "mask": lambda: rng.choice((SHAPE, (4, 1, 5), (5,))),
        "free_bits": lambda: rng.choice((0.05, 0.3)),
        "balance": lambda: (rng.random(), rng.random()),
        "temperature": lambda: rng.choice((0.0, 0.5, 1.7)),
        "sample_shape": lambda: rng.choice((1, 2, (2, 2), ())),
    }
    for _ in range(n):
        names = [name for name in every if rng.random() < 0.5]
        recipe = {name: every[name]() for name in names}
        if "prior_scale" in recipe:  # the default, 0, is not a valid std
            recipe.setdefault("prior_raw", SHAPE)
        recipes.append(recipe)
    return recipes


def tensors(
    recipe: Recipe, dtype: torch.dtype = torch.float64, device: str = "cpu", seed: int = 0
) -> dict[str, Tensor]:
    """Returns the leaves: mu, raw, eps and the prior's tensors.

    A raw scale is positive if its kind requires a positive value.
    """
    sample_shape = recipe.get("sample_shape", ())
    sample_shape = (sample_shape,) if isinstance(sample_shape, int) else sample_shape
    shapes = {"mu": SHAPE, "raw": SHAPE, "eps": (*sample_shape, *SHAPE)}
    for name in ("prior_mean", "prior_raw"):
        if isinstance(recipe.get(name), tuple):
            shapes[name] = recipe[name]
    leaves = {}
    for i, (name, shape) in enumerate(shapes.items()):
        value = 0.7 * random(*shape, seed=10 * seed + i)
        scale = recipe.get({"raw": "scale", "prior_raw": "prior_scale"}.get(name, ""), "logvar")
        if (scale if isinstance(scale, str) else scale.kind) in ("std", "var"):
            value = 0.3 + value.abs()
        leaves[name] = value.to(dtype).to(device).requires_grad_()
    return leaves


def mask_of(recipe: Recipe, device: str = "cpu") -> Tensor | None:
    if "mask" not in recipe:
        return None
    return (random(*recipe["mask"], seed=99) > -0.5).to(device)


def arguments(recipe: Recipe, leaves: dict[str, Tensor]) -> dict[str, Any]:
    """Returns the keyword arguments of ``vf.reparameterize_kl``, except reduction and noise."""
    kwargs = {k: v for k, v in recipe.items() if k != "mask" and not k.startswith("prior")}
    prior = {k: leaves.get(f"prior_{k}", recipe.get(f"prior_{k}", 0.0)) for k in ("mean", "raw")}
    if any(k.startswith("prior") for k in recipe):
        kwargs["prior"] = vf.Prior(**prior, scale=recipe.get("prior_scale", "logvar"))
    mask = mask_of(recipe, leaves["mu"].device.type)
    return kwargs if mask is None else {**kwargs, "mask": mask}


def only(kwargs: dict[str, Any], *names: str) -> dict[str, Any]:
    return {k: v for k, v in kwargs.items() if k in names}


FOR_KL = ("scale", "mu_soft_clamp", "prior", "mask", "free_bits", "balance")
FOR_SAMPLE = ("scale", "mu_soft_clamp", "mask", "temperature", "sample_shape")


# --------------------------------------------------------------------------------------------------
# The formulas
# --------------------------------------------------------------------------------------------------


def sigma_of(raw: Tensor, scale: str | vf.Scale) -> Tensor:
    s = vf.Scale(scale) if isinstance(scale, str) else scale
    x = raw.double()
    if s.clamp is not None:
        lo, hi = s.clamp
        inside = (x >= (-math.inf if lo is None else lo)) & (x <= (math.inf if hi is None else hi))
        x = torch.where(inside, x, torch.clamp(x, lo, hi).detach())
    if s.soft_clamp is not None:
        x = s.soft_clamp * torch.tanh(x / s.soft_clamp)
    x = s.gain * x + s.shift
    sigma = {
        "logvar": lambda: torch.exp(x / 2),
        "logstd": lambda: torch.exp(x),
        "std": lambda: x,
        "var": lambda: torch.sqrt(x),
        "softplus": lambda: F.softplus(x, beta=s.beta, threshold=1e4),
        "sigmoid2": lambda: 2 * torch.sigmoid(x / 2),
    }[s.kind]()
    return (torch.sqrt(sigma**2 + s.var_floor) + s.std_floor).clamp_min(s.std_min)


def kl_of(mu: Tensor, sigma: Tensor, m: Tensor, tau: Tensor) -> Tensor:
    """The KL, computed by the formula in torch.distributions."""
    return torch.log(tau / sigma) + (sigma**2 + (mu - m) ** 2) / (2 * tau**2) - 0.5


def formula(recipe: Recipe, leaves: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Returns the sample and the elementwise KL in float64."""
    mu, eps = leaves["mu"].double(), leaves["eps"].double()
    if "mu_soft_clamp" in recipe:
        c = recipe["mu_soft_clamp"]
        mu = c * torch.tanh(mu / c)
    sigma = sigma_of(leaves["raw"], recipe.get("scale", "logvar"))
    z = mu + recipe.get("temperature", 1.0) * sigma * eps
    prior = (leaves.get(k, recipe.get(k, 0.0)) for k in ("prior_mean", "prior_raw"))
    m, prior_raw = (torch.as_tensor(v, dtype=torch.float64, device=mu.device) for v in prior)
    tau = sigma_of(prior_raw, recipe.get("prior_scale", "logvar"))
    kl = kl_of(mu, sigma, m, tau)
    if "balance" in recipe:
        wq, wp = recipe["balance"]
        halves = wq * kl_of(mu, sigma, m.detach(), tau.detach())
        halves = halves + wp * kl_of(mu.detach(), sigma.detach(), m, tau)
        kl = halves + (kl - halves).detach()
    kl = torch.clamp(kl, min=recipe.get("free_bits", 0.0))
    mask = mask_of(recipe, mu.device.type)
    if mask is not None:
        z, kl = z * mask, kl * mask
    return z, kl


def total(kl: Tensor, mask: Tensor | None, reduction: str) -> Tensor:
    """Reduces the elementwise KL with torch. A mean is taken over the unmasked elements."""
    if reduction == "mean":
        count = kl.numel() if mask is None else mask.expand(kl.shape).sum()
        return kl.sum() / count
    return {
        "batchmean": lambda: kl.sum() / kl.shape[0],
        "sum": kl.sum,
        "sample": lambda: kl.flatten(1).sum(1),
        "none": lambda: kl,
    }[reduction]()


def density(mean: Tensor, sigma: Tensor) -> Normal:
    """Returns a ``torch.distributions.Normal`` without checks: sigma may be 0 or NaN."""
    return Normal(mean, sigma, validate_args=False)


def log_ratio(
    recipe: Recipe, leaves: dict[str, Tensor], *, stop_q: bool = False
) -> tuple[Tensor, Tensor]:
    """Returns the sample, and ln q(z) - ln p(z) at each of its elements, in float64.

    With ``stop_q``, the parameters of q are constants in ln q(z).
    """
    mu, eps = leaves["mu"].double(), leaves["eps"].double()
    if "mu_soft_clamp" in recipe:
        c = recipe["mu_soft_clamp"]
        mu = c * torch.tanh(mu / c)
    sigma = sigma_of(leaves["raw"], recipe.get("scale", "logvar"))
    z = mu + recipe.get("temperature", 1.0) * sigma * eps
    prior = (leaves.get(k, recipe.get(k, 0.0)) for k in ("prior_mean", "prior_raw"))
    m, prior_raw = (torch.as_tensor(v, dtype=torch.float64, device=mu.device) for v in prior)
    tau = sigma_of(prior_raw, recipe.get("prior_scale", "logvar"))
    q = density(mu.detach(), sigma.detach()) if stop_q else density(mu, sigma)
    ratio = q.log_prob(z) - density(m, tau).log_prob(z)
    if "balance" in recipe:
        wq, wp = recipe["balance"]
        toward_q = q.log_prob(z) - density(m.detach(), tau.detach()).log_prob(z)
        toward_p = -density(m, tau).log_prob(z.detach())
        weighted = wq * toward_q + wp * toward_p
        ratio = weighted + (ratio - weighted).detach()
    mask = mask_of(recipe, mu.device.type)
    return (z, ratio) if mask is None else (z * mask, ratio * mask)


def each_total(ratio: Tensor, mask: Tensor | None, reduction: str) -> Tensor:
    """Returns the result of ``total`` for each sample."""
    lead = ratio.shape[: ratio.dim() - len(SHAPE)]
    parts = [total(part, mask, reduction) for part in ratio.reshape(-1, *SHAPE)]
    return torch.stack(parts).reshape((*lead, *parts[0].shape))
