"""Workloads with a latent: their sizes, inputs, exact results, and minimum memory traffic."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases import Wrong

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
}
Function = Callable[..., tuple[Any, Tensor]]  # returns z, or a list of them, and the KL
SAMPLES = 8
PRIOR_STD = 0.1  # for the weights of Bayesian layers
TOLERANCE = {"float64": 1e-9, "float32": 2e-4, "bfloat16": 4e-2, "float16": 1e-2}


@dataclasses.dataclass(frozen=True)
class Family:
    """The properties that the cases of one workload share.

    ``streams`` is the minimum number of posterior-sized tensors that forward and backward read and
    write. ``needed`` is the memory in bytes per element for the check and the timing; the check in
    float64 uses the most. In ``shapes`` the most informative shapes come first, because shapes for
    which no time remains are not measured.
    """

    what: str
    streams: tuple[int, int]
    needed: int
    shapes: tuple[tuple[int, ...], ...]


FAMILIES = {
    "plain": Family("mu and logvar, KL per item of the batch", (3, 5), 220, (
        (128, 20), (1024, 1024), (4096, 4096), (256, 256), (16384, 16384), (64, 64), (2048, 2048),
        (512, 512), (8192, 8192), (128, 128))),
    "moments": Family("images, mu and logvar packed on dimension 1, logvar clamped to (-30, 20)",
        (3, 5), 220, ((8, 8, 64, 64), (16, 8, 128, 128), (64, 8, 256, 256))),
    "rssm": Family("sigma = softplus(raw) + 0.1, a learned prior of that kind, KL per time step",
        (5, 9), 400, ((50, 50, 30), (64, 256, 256), (256, 256, 256))),
    "masked": Family("sequences with a mask, KL per unmasked element", (3, 5), 220,
        ((32, 100, 64), (64, 512, 128), (64, 1024, 256))),
    "samples": Family(f"{SAMPLES} samples of each posterior, KL per item of the batch",
        (2 + SAMPLES, 4 + SAMPLES), 900, ((128, 20), (1024, 256), (8192, 512))),
    "layers": Family("so many Bayesian layers of a width, softplus, prior N(0, 0.1^2), summed KL",
        (3, 5), 220, ((20, 64), (3, 400), (8, 1024))),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Latent:
    """A latent with a workload, a shape and a dtype. ``shape`` is that of mu or of packed moments,
    or the number and the width of layers."""

    family: str
    shape: tuple[int, ...]
    dtype: str = "float32"

    @property
    def name(self) -> str:
        return f"{self.family} {'x'.join(map(str, self.shape))} {self.dtype}"

    @property
    def posteriors(self) -> list[tuple[int, ...]]:
        """The shape of each mu."""
        if self.family == "moments":
            return [(self.shape[0], self.shape[1] // 2, *self.shape[2:])]
        if self.family == "layers":
            depth, width = self.shape
            return [(width, width), (width,)] * depth
        return [self.shape]

    @property
    def z_shapes(self) -> list[tuple[int, ...]]:
        before = (SAMPLES,) if self.family == "samples" else ()
        return [before + shape for shape in self.posteriors]

    @property
    def elements(self) -> int:
        return sum(map(math.prod, self.posteriors))

    @property
    def bytes(self) -> tuple[int, int]:
        """Return the minimum bytes of forward and backward: each input, incoming gradient and mask
        is read once, and each output is written once. Noise and saved tensors are not counted."""
        size = DTYPES[self.dtype].itemsize * self.elements
        forward, backward = (streams * size for streams in FAMILIES[self.family].streams)
        mask = self.elements // self.shape[-1] if self.family == "masked" else 0
        return forward + mask, backward + mask

    @property
    def needed(self) -> int:
        """Bytes of free memory that a measurement requires."""
        return FAMILIES[self.family].needed * self.elements


class Inputs(NamedTuple):
    """The tensors of a latent. Contenders are called with ``arguments``. Backward starts from the
    gradients of z, and ends at the leaves."""

    leaves: list[Tensor]
    arguments: list[Any]
    grad_zs: list[Tensor]


def outputs(pair: tuple[Any, Tensor]) -> list[Tensor]:
    """Return ``(z, kl)`` or ``(zs, kl)`` as a flat list."""
    z, kl = pair
    return [*([z] if isinstance(z, Tensor) else z), kl]


def arguments(latent: Latent, leaves: list[Tensor]) -> list[Any]:
    if latent.family == "masked":
        items, steps, _ = latent.shape
        at, lengths = (torch.arange(n, device=leaves[0].device) for n in (steps, items))
        return [*leaves, (at < (lengths * steps // items + 1)[:, None]).unsqueeze(-1)]
    if latent.family == "samples":
        return [*leaves, SAMPLES]
    if latent.family == "layers":
        return [leaves[: len(leaves) // 2], leaves[len(leaves) // 2 :]]
    return list(leaves)


def inputs(latent: Latent, device: str) -> Inputs:
    """Return random inputs, generated on the device."""
    generator = torch.Generator(device).manual_seed(0)
    dtype, shape = DTYPES[latent.dtype], latent.shape

    def normal(shape: tuple[int, ...], scale: float = 1.0, mean: float = 0.0) -> Tensor:
        drawn = torch.empty(shape, dtype=dtype, device=device)
        return drawn.normal_(mean, scale, generator=generator)

    if latent.family == "moments":
        leaves = [normal(shape)]
    elif latent.family == "layers":
        leaves = [normal(s, PRIOR_STD) for s in latent.posteriors]
        leaves += [normal(s, 0.5, -3.0) for s in latent.posteriors]
    else:
        leaves = [normal(shape, s) for s in (1.0, 0.5) * (1 + (latent.family == "rssm"))]
    for leaf in leaves:
        leaf.requires_grad_()
    return Inputs(leaves, arguments(latent, leaves), [normal(s) for s in latent.z_shapes])


LARGEST = {"cpu": 24, "cuda": 28}  # log2 of elements


def latents(device: str, dtype: str = "float32") -> list[Latent]:
    """Return the cases for a device: the first of each workload, then the second, and so on."""
    rows = itertools.zip_longest(*([(f, s) for s in FAMILIES[f].shapes] for f in FAMILIES))
    found = [Latent(family, shape, dtype) for row in rows for family, shape in filter(None, row)]
    return [latent for latent in found if latent.elements <= 2 ** LARGEST[device]]


QUICK = len(FAMILIES) + 1  # the first case of each workload, and another size of the first workload


# --- the exact results, with which contenders are compared before they are timed -----------------


class Normals(NamedTuple):
    """A posterior and its prior."""

    mu: Tensor
    sigma: Tensor
    prior_mu: Tensor
    prior_sigma: Tensor


def normals(family: str, arguments: list[Any]) -> Iterator[Normals]:
    """Yield the distributions of a workload, one at a time."""

    def fixed(mu: Tensor, sigma: Tensor, std: float = 1.0) -> Normals:
        return Normals(mu, sigma, torch.zeros_like(mu), torch.full_like(mu, std))

    if family == "moments":
        mu, logvar = arguments[0].chunk(2, dim=1)
        yield fixed(mu, torch.exp(0.5 * logvar.clamp(-30.0, 20.0)))
    elif family == "rssm":
        mu, raw, prior_mu, prior_raw = arguments
        yield Normals(mu, F.softplus(raw) + 0.1, prior_mu, F.softplus(prior_raw) + 0.1)
    elif family == "layers":
        for mu, rho in zip(*arguments, strict=True):
            yield fixed(mu, F.softplus(rho), PRIOR_STD)
    else:
        yield fixed(arguments[0], torch.exp(0.5 * arguments[1]))


def reduced(family: str, kls: list[Tensor], arguments: list[Any]) -> Tensor:
    """The reduction of a workload."""
    kl = kls[0]
    if family == "masked":
        mask: Tensor = arguments[2]
        return (kl * mask).sum() / (mask.sum() * kl.shape[-1])
    if family == "layers":
        return torch.stack([kl.sum() for kl in kls]).sum()
    return kl.sum(-1).mean() if family == "rssm" else kl.sum() / kl.shape[0]


def joined(tensors: list[Tensor]) -> Tensor:
    """Return a single tensor unchanged, or several tensors joined into one."""
    return tensors[0] if len(tensors) == 1 else torch.cat([t.flatten() for t in tensors])


def check(function: Function, latent: Latent, data: Inputs) -> None:
    """Raise Wrong, which names the quantity that differs, if a contender's results are wrong.

    Each contender draws its own noise, so the check solves for it: eps = (z - mu) / sigma in
    float64. The noise must look standard normal. With this noise, the KL and every gradient must
    agree with the formula in float64. The check fails if backward and forward draw different noise.
    """
    *zs, kl = outputs(function(*data.arguments))
    found = [(tuple(z.shape), z.dtype) for z in zs]
    if found != [(s, data.leaves[0].dtype) for s in latent.z_shapes] or kl.numel() != 1:
        raise Wrong(f"z is {found[0]}, kl {tuple(kl.shape)}")
    grads = torch.autograd.grad([*zs, kl], data.leaves, [*data.grad_zs, torch.ones_like(kl)])
    # Clone the results, because a CUDA graph may overwrite its outputs.
    *zs, kl = (t.detach().clone() for t in (*zs, kl))
    grads = tuple(grad.clone() for grad in grads)
    again = joined(outputs(function(*data.arguments))[:-1]).detach()

    tolerance = TOLERANCE[latent.dtype]
    leaves = [leaf.detach().double().requires_grad_() for leaf in data.leaves]
    exact = arguments(latent, leaves)
    pairs = list(normals(latent.family, exact))
    eps = [((z.double() - q.mu) / q.sigma).detach() for z, q in zip(zs, pairs, strict=True)]
    exact_zs = [q.mu + q.sigma * e for q, e in zip(pairs, eps, strict=True)]
    drawn = joined(eps)
    if latent.family == "masked":
        mask = exact[2]
        if bool((zs[0] * ~mask).ne(0).any()):
            raise Wrong("z is not 0 where it is masked")
        exact_zs = [exact_zs[0] * mask]
        drawn = drawn[mask.expand_as(drawn)]
    check_noise(drawn, tolerance)
    if latent.elements > 1 and bool(torch.equal(joined(zs), again)):
        raise Wrong("two calls drew the same noise")
    exact_kl = reduced(latent.family, [divergence(q) for q in pairs], exact)
    close("kl", kl, exact_kl.detach(), tolerance)
    grad_zs = [grad.double() for grad in data.grad_zs]
    exact_grads = torch.autograd.grad([*exact_zs, exact_kl], leaves, [*grad_zs, None])
    for i, (grad, want) in enumerate(zip(grads, exact_grads, strict=True)):
        close(f"gradient {i}", grad, want, tolerance)


def divergence(q: Normals) -> Tensor:
    mu, sigma = (q.mu - q.prior_mu) / q.prior_sigma, q.sigma / q.prior_sigma
    return 0.5 * (mu * mu + sigma * sigma - 1) - torch.log(sigma)


def close(name: str, got: Tensor, want: Tensor, tolerance: float) -> None:
    """Compare the largest error with the largest magnitude in ``want``, because the rounding error
    of a sum is proportional to the size of its terms."""
    error = (got.double() - want).abs().max() / want.abs().max().clamp_min(1e-30)
    if not float(error) <= tolerance:  # also rejects NaN
        raise Wrong(f"{name} is off by {float(error):.1e}, allowed {tolerance:.0e}")


def check_noise(eps: Tensor, tolerance: float) -> None:
    """Check that each moment is within six standard errors, and that the two halves differ."""
    n = max(1, eps.numel())
    moments = {"mean": (1, 0.0, 1.0), "variance": (2, 1.0, 2.0), "fourth moment": (4, 3.0, 96.0)}
    for name, (power, want, variance) in moments.items():
        got = float(eps.pow(power).mean())
        if not abs(got - want) <= 6 * math.sqrt(variance / n) + power * tolerance:
            raise Wrong(f"the noise has {name} {got:.4f}, must have {want}")
    half = len(eps) // 2
    if half:
        pairs = eps[:half] * eps[half : 2 * half]
        if not abs(float(pairs.mean())) <= 6 / math.sqrt(pairs.numel()) + tolerance:
            raise Wrong("the noise of one half is that of the other")
