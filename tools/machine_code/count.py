"""How many instructions the hot kernels issue for an element, counted by executing them.

The count is that of a call which has everything computed and written, on whole tiles: what
`per_element` of the budget is, but measured instead of found on a path through the listing.
Instructions are those that a warp issues, those skipped by their guard and slow paths included; one
of a warp serves 32 threads, so the numbers are 32 times the instructions over the elements.

  loop   what further tiles of a block cost: the difference of two calls with as many blocks
  whole  of a call with 4 tiles to a block, as 2^24 elements have: what blocks do before and after
         their elements, the sum over the block and the last block's work included

They need the native module of the tests, whose host code launches the kernels, and nvcc.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
from kernels import template_arguments

from .device import Launched

# With this many blocks at most, further tiles are merged into those of a block: the limit that the
# native tests compile with.
BLOCKS, TILE = 12, 2048
FEW, MANY = 4, 8  # tiles to a block
DTYPES = {"float": "float32", "double": "float64", "Half": "float16", "BFloat16": "bfloat16"}


@dataclasses.dataclass(frozen=True)
class Executed:
    loop: float
    whole: float


def is_hot(kernel: str) -> bool:
    """Whether `count` can call a kernel: those of the default options, except for lists."""
    return re.fullmatch(r"(forward|backward)<\w+, \(Access\)[012]>", kernel) is not None


def _tensors(access: int, tiles: int, dtype: np.dtype) -> tuple[list[np.ndarray], tuple[int, ...]]:
    """Six tensors of BLOCKS * tiles whole tiles that kernels access so, and the summed dimensions.

    Contiguous; the chunks of packed ones; channels_last images of four channels.
    """
    n = BLOCKS * tiles * TILE
    if access == 0:
        return [np.zeros(n, dtype) for _ in range(6)], (0,)
    if access == 1:
        pairs = [np.zeros((n // 1024, 2048), dtype) for _ in range(3)]
        return [half for pair in pairs for half in np.split(pair, 2, axis=1)], (0, 1)
    images = [np.zeros((BLOCKS, tiles * 8, 64, 4), dtype) for _ in range(6)]
    return [np.moveaxis(image, -1, 1) for image in images], (1, 2, 3)


def _launch(machine: Any, kernel: str, tiles: int) -> tuple[Launched, int]:
    direction, (name, access, *_) = kernel.partition("<")[0], template_arguments(kernel)
    stored = np.dtype({"BFloat16": np.uint16}.get(name, DTYPES.get(name)))
    total = np.float64 if name == "double" else np.float32
    (mu, raw, third, fourth, fifth, _), dims = _tensors(int(access[-1]), tiles, stored)
    rng = np.random.default_rng(0)
    for x in (mu, raw, third):
        values = rng.standard_normal(x.shape, np.float32)
        x[...] = machine.probes.to_bfloat16(values) if name == "BFloat16" else values
    kl = np.ones(BLOCKS if int(access[-1]) == 2 else 1, total)
    options: dict[str, Any] = {"dims": dims, "key": (7, 0)}
    with machine.installed():
        if direction == "forward":
            options |= {"z": third, "kl": kl, "partials": np.zeros(BLOCKS * tiles)}
        else:
            options |= {"grad_z": third, "grad_kl": kl, "grad_mu": fourth, "grad_raw": fifth}
        machine.emulator.configure()
        getattr(machine, direction)("cuda", mu, raw, **options)
    found, launched = machine.launched.pop()
    if found != kernel:
        raise ValueError(f"the call for {kernel} launches {found}")
    return launched, mu.size


def count(machine: Any, kernel: str) -> Executed:
    """What a kernel executes for an element; `machine`: the native module on machine code."""
    if not is_hot(kernel):
        raise ValueError(f"{kernel} is not a hot kernel")
    (few, n), (many, m) = (_launch(machine, kernel, tiles) for tiles in (FEW, MANY))
    return Executed(
        loop=32 * (many.issued - few.issued) / (m - n),
        whole=32 * few.issued / n,
    )
