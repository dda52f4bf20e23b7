"""The measured cases: shapes, strides, and the least bytes that must move."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from vae_fused.options import Options, Scale

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
REDUCTIONS = ("sum", "batchmean", "mean", "sample", "none")
FAMILIES = ("clamp", "mask", "prior", "softplus")


@dataclasses.dataclass(frozen=True)
class Case:
    """A posterior of one shape and layout, and how its KL is reduced."""

    group: str  # a key of judge.TARGETS, or "small", which has no target
    layout: str  # contiguous | chunk(dim) | channels_last | channels_last chunk
    shape: tuple[int, ...]
    reduction: str
    dtype: str
    family: str = "plain"  # or one of FAMILIES

    @property
    def name(self) -> str:
        size = "x".join(map(str, self.shape))
        family = "" if self.family == "plain" else f" {self.family}"
        return f"{self.dtype} {size} {self.layout} {self.reduction}{family}"

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def kl_numel(self) -> int:
        return {"sample": self.shape[0], "none": self.numel}.get(self.reduction, 1)

    def bytes(self, direction: str) -> int:
        """Forward reads mu and logvar and writes z; backward reads both and grad_z and writes two
        gradients. The KL, or its gradient, is float32 (float64 for float64). A prior has two
        tensors and two gradients more, a mask a byte.
        """
        size = DTYPES[self.dtype].itemsize
        streams = {"forward": 3, "backward": 5}[direction]
        if self.family == "prior":
            streams += {"forward": 2, "backward": 4}[direction]
        mask = self.numel if self.family == "mask" else 0
        return streams * size * self.numel + max(size, 4) * self.kl_numel + mask


def cases(
    exponent: int, dtypes: tuple[str, ...], big: int | None = None, small: int | None = None
) -> list[Case]:
    """All cases at 2^exponent elements, and those that differ in size at 2^small and at 2^big.

    At 2^22 elements a kernel takes some ten microseconds, so its start and end are significant.
    """
    found: list[Case] = []

    def square(n: int) -> tuple[int, int]:
        return 2 ** (n // 2), 2 ** (n - n // 2)

    for dtype in dtypes:
        n = 2**exponent
        for reduction in REDUCTIONS:
            found.append(Case("contiguous", "contiguous", square(exponent), reduction, dtype))
        for cols in (2, 20, 256, 16384, 2**20):
            if cols <= n:
                found.append(Case("rows", "contiguous", (n // cols, cols), "sample", dtype))
        side = 128 if exponent >= 20 else 4
        image = (max(1, n // (4 * side * side)), 4, side, side)
        wide = (max(1, n // (64 * side * side)), 64, side, side)
        found.append(Case("chunked", "chunk(1)", image, "batchmean", dtype))
        found.append(Case("chunked", "chunk(-1)", (max(1, n // 256), 256), "sample", dtype))
        found.append(Case("channels_last", "channels_last", image, "batchmean", dtype))
        found.append(Case("channels_last", "channels_last", wide, "batchmean", dtype))
        found.append(Case("channels_last", "channels_last chunk(1)", image, "batchmean", dtype))
        for family in FAMILIES:
            found.append(Case("family", "contiguous", square(exponent), "sample", dtype, family))
        found.append(Case("family", "chunk(1)", image, "batchmean", dtype, "clamp"))
        found.append(Case("family", "channels_last chunk(1)", image, "batchmean", dtype, "clamp"))
        if small:
            shape = square(small)
            image = (max(1, 2**small // (4 * side * side)), 4, side, side)
            for reduction in ("sum", "sample"):
                found.append(Case("small", "contiguous", shape, reduction, dtype))
            for layout in ("chunk(1)", "channels_last"):
                found.append(Case("small", layout, image, "batchmean", dtype))
        if big:
            for reduction in ("sum", "sample", "none"):
                found.append(Case("contiguous", "contiguous", square(big), reduction, dtype))
            for cols in (2, 2**20):
                shape = (2**big // cols, cols)
                if shape[0]:
                    found.append(Case("rows", "contiguous", shape, "sample", dtype))
    return found


def posterior(case: Case, device: str) -> tuple[Tensor, Tensor]:
    """Random `mu` and `logvar` of the case's shape and strides."""
    dtype = DTYPES[case.dtype]
    shape = list(case.shape)
    if "chunk" not in case.layout:
        pair = [torch.randn(shape, dtype=dtype, device=device) for _ in range(2)]
        if case.layout == "channels_last":
            pair = [t.contiguous(memory_format=torch.channels_last) for t in pair]
        return pair[0], pair[1]
    dim = -1 if "chunk(-1)" in case.layout else 1
    shape[dim] *= 2
    moments = torch.randn(shape, dtype=dtype, device=device)
    if case.layout.startswith("channels_last"):
        moments = moments.contiguous(memory_format=torch.channels_last)
    mu, logvar = moments.chunk(2, dim=dim)
    return mu, logvar


@dataclasses.dataclass
class Inputs:
    """The tensors of one call. `forward` and `backward` are the bare operators."""

    case: Case
    mu: Tensor
    logvar: Tensor
    grad_z: Tensor
    grad_kl: Tensor
    key: Tensor
    family: dict[str, Any]

    def forward(self) -> tuple[Tensor, ...]:
        z, kl = torch.ops.vae_fused.reparameterize_kl.default(
            self.mu, self.logvar, eps=None, key=self.key, reduction=self.case.reduction, dim=None,
            **self.family,
        )  # fmt: skip
        return z, kl

    def backward(self) -> tuple[Tensor, ...]:
        grads = torch.ops.vae_fused.reparameterize_kl_backward.default(
            self.grad_z,
            self.grad_kl,
            self.mu,
            self.logvar,
            eps=None,
            key=self.key,
            reduction=self.case.reduction,
            dim=None,
            output_mask=[True, True, False, *["prior_mean" in self.family] * 2],
            **self.family,
        )
        return tuple(g for g in grads if g is not None)


def family(case: Case, mu: Tensor) -> dict[str, Any]:
    """The operators' arguments for the options of a case."""
    scale = {
        "clamp": Scale("logvar", clamp=(-30.0, 20.0)),
        "softplus": Scale("softplus", std_floor=0.1),
    }.get(case.family)
    if scale is not None:
        return {"options": Options(scale=scale).packed()}
    if case.family == "prior":
        return {"prior_mean": torch.randn_like(mu), "prior_raw": torch.randn_like(mu)}
    return {"mask": torch.rand_like(mu) > 0.1} if case.family == "mask" else {}


def inputs(case: Case, device: str, seed: int = 0) -> Inputs:
    mu, logvar = posterior(case, device)
    kl_dtype = torch.float64 if case.dtype == "float64" else torch.float32
    shape = {"sample": case.shape[:1], "none": case.shape}.get(case.reduction, ())
    grad_z = torch.empty_like(mu).normal_()
    grad_kl = torch.empty(shape, dtype=kl_dtype, device=device).normal_()
    key = torch.tensor([seed, 0], dtype=torch.int64).to(device)
    return Inputs(case, mu, logvar, grad_z, grad_kl, key, family(case, mu))
