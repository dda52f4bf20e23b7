"""The cases: workloads with a latent, their sizes, their inputs, and their least memory traffic."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import torch
from torch import Tensor

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
SAMPLES = 8
PRIOR_STD = 0.1  # for the weights of Bayesian layers


@dataclasses.dataclass(frozen=True)
class Family:
    """The properties that the cases of one workload share.

    ``streams``: the least number of tensors of the posterior's size that forward and backward read
    and write. ``needed``: bytes of memory per element for the check and the timing; the check in
    float64 uses the most. ``shapes``: the most informative shapes come first, because shapes for
    which no time remains are not measured.
    """

    what: str
    streams: tuple[int, int]
    needed: int
    shapes: tuple[tuple[int, ...], ...]


FAMILIES = {
    "plain": Family(
        "mu and logvar, KL per item of the batch",
        (3, 5),
        220,
        (
            (128, 20), (1024, 1024), (4096, 4096), (256, 256), (16384, 16384), (64, 64),
            (2048, 2048), (512, 512), (8192, 8192), (128, 128),
        ),
    ),
    "moments": Family(
        "images, mu and logvar packed on dimension 1, logvar clamped to (-30, 20)",
        (3, 5),
        220,
        ((8, 8, 64, 64), (16, 8, 128, 128), (64, 8, 256, 256)),
    ),
    "rssm": Family(
        "sigma = softplus(raw) + 0.1, a learned prior of that kind, KL per time step",
        (5, 9),
        400,
        ((50, 50, 30), (64, 256, 256), (256, 256, 256)),
    ),
    "masked": Family(
        "sequences with a mask, KL per unmasked element",
        (3, 5),
        220,
        ((32, 100, 64), (64, 512, 128), (64, 1024, 256)),
    ),
    "samples": Family(
        f"{SAMPLES} samples of each posterior, KL per item of the batch",
        (2 + SAMPLES, 4 + SAMPLES),
        900,
        ((128, 20), (1024, 256), (8192, 512)),
    ),
    "layers": Family(
        "so many Bayesian layers of a width, softplus, prior N(0, 0.1^2), summed KL",
        (3, 5),
        220,
        ((20, 64), (3, 400), (8, 1024)),
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Case:
    """A latent of one workload, shape and dtype. ``shape`` is that of mu or of packed moments, or
    the number and width of layers."""

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
        """The least bytes of forward and backward: each input, incoming gradient and mask is read
        once, and each output is written once. Noise and saved tensors do not count."""
        size = DTYPES[self.dtype].itemsize * self.elements
        forward, backward = (streams * size for streams in FAMILIES[self.family].streams)
        mask = self.elements // self.shape[-1] if self.family == "masked" else 0
        return forward + mask, backward + mask

    @property
    def needed(self) -> int:
        """Bytes of free memory that a measurement requires."""
        return FAMILIES[self.family].needed * self.elements


@dataclasses.dataclass
class Inputs:
    """The tensors of a case. Contenders are called with ``arguments``. Backward starts from the
    gradients of z and KL and ends at the leaves."""

    leaves: list[Tensor]
    arguments: list[Any]
    grad_zs: list[Tensor]
    grad_kl: dict[torch.dtype, Tensor]  # a 1 in each dtype that a contender's KL may have


def outputs(pair: tuple[Any, Tensor]) -> list[Tensor]:
    """``(z, kl)`` or ``(zs, kl)`` as a flat list."""
    z, kl = pair
    return [*([z] if isinstance(z, Tensor) else z), kl]


def inputs(case: Case, device: str, seed: int = 0) -> Inputs:
    """Random inputs, generated on the device."""
    generator = torch.Generator(device).manual_seed(seed)
    dtype, shape = DTYPES[case.dtype], case.shape

    def normal(shape: tuple[int, ...], scale: float = 1.0, mean: float = 0.0) -> Tensor:
        drawn = torch.empty(shape, dtype=dtype, device=device)
        return drawn.normal_(mean, scale, generator=generator)

    if case.family == "moments":
        leaves = [normal(shape)]
    elif case.family == "rssm":
        leaves = [normal(shape, scale) for scale in (1.0, 0.5, 1.0, 0.5)]
    elif case.family == "layers":
        leaves = [normal(s, PRIOR_STD) for s in case.posteriors]
        leaves += [normal(s, 0.5, -3.0) for s in case.posteriors]
    else:
        leaves = [normal(shape), normal(shape, 0.5)]
    for leaf in leaves:
        leaf.requires_grad_()
    arguments: list[Any] = list(leaves)
    if case.family == "masked":
        lengths = torch.arange(shape[0], device=device) * shape[1] // shape[0] + 1
        arguments.append((torch.arange(shape[1], device=device) < lengths[:, None]).unsqueeze(-1))
    elif case.family == "samples":
        arguments.append(SAMPLES)
    elif case.family == "layers":
        arguments = [leaves[: len(leaves) // 2], leaves[len(leaves) // 2 :]]
    return Inputs(
        leaves,
        arguments,
        [normal(s) for s in case.z_shapes],
        {kl_dtype: torch.ones((), dtype=kl_dtype, device=device) for kl_dtype in DTYPES.values()},
    )


def cases(largest: int, dtype: str = "float32") -> list[Case]:
    """Cases of at most 2^largest elements: the first of each workload, then the second, etc."""
    rows = itertools.zip_longest(*([(f, s) for s in FAMILIES[f].shapes] for f in FAMILIES))
    found = [Case(family, shape, dtype) for row in rows for family, shape in filter(None, row)]
    return [case for case in found if case.elements <= 2**largest]


QUICK = len(FAMILIES) + 1  # the first case of each workload, and another size of the first workload


def few(largest: int, dtype: str) -> list[Case]:
    """A few cases that show the effect of another dtype."""
    return [case for case in cases(largest, dtype) if case.family in ("plain", "moments")][:5]
