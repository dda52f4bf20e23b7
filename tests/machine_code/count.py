"""Counts the instructions that the hot kernels issue per element by executing them.

    PYTHONPATH=tests python -m machine_code.count [KERNEL]    a JSON of the rows of the budget

The counted call computes all outputs of whole tiles. The count corresponds to `per_element` of the
budget, but it is measured rather than derived from a path through the listing. It includes all
instructions that a warp issues, even those that are predicated off and those of slow paths. One
warp instruction executes for 32 threads, so the count is 32 times the number of instructions
divided by the number of elements.

  loop   the cost of additional tiles of a block: the difference between two calls with the same
         number of blocks
  whole  the cost of a call with 4 tiles per block, as for 2^24 elements. It includes a block's
         work before and after its elements, the sum over the block and the last block's work.

A likelihood call has contiguous outputs and a target of the same dtype. It sums rows of 2048
elements, or all elements if it computes the loss and its gradients together. It computes every
output's gradient, without a mask and without weights. For count likelihoods, a tenth of the targets
are not 0. Bytes in flight are those of the rounds (in_flight.py) that additional tiles add to a
warp's execution.

This module requires cuobjdump, the kernels' machine code, which a CUDA build or nvcc provides, and
the native module of the tests, whose host code launches the kernels.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import re
import sys
from typing import Any

import numpy as np

from tools.kernel_budget.in_flight import rounds_of_trace
from tools.kernel_budget.kernels import Likelihood, likelihood, template_arguments
from tools.kernel_budget.record import EXECUTED, EXECUTED_IN_FLIGHT

from .device import Launched

# Tiles beyond this number of blocks are merged into the existing blocks. The native tests are
# compiled with this limit.
BLOCKS, TILE = 12, 2048
FEW, MANY = 4, 8  # tiles per block; likelihoods, which take longer, use half as many
DTYPES = {"float": "float32", "double": "float64", "Half": "float16", "BFloat16": "bfloat16"}
# For each kind, in the order of LikelihoodKind: its options, and which outputs are positive.
LIKELIHOODS: dict[str, tuple[dict[str, Any], tuple[bool, ...]]] = {
    "Bernoulli": ({}, (False,)),
    "Gaussian": ({"scale": {"base": "exp", "gain": 0.5}}, (False, False)),
    "Laplace": ({"scale": {"base": "exp"}}, (False, False)),
    "Poisson": ({"mean": "exp"}, (False,)),
    "NegativeBinomial": ({}, (True, True)),
    "ZeroInflatedNegativeBinomial": ({}, (True, True, False)),
    "StudentT": ({"scale": {"base": "exp", "gain": 0.5}, "df": 0.0}, (False, False, True)),
    "ContinuousBernoulli": ({}, (False,)),
    "NegativeBinomialLogits": ({}, (False, True)),
    "DiscretizedLogistic": ({"half_step": 1 / 255, "log_scale_min": -7.0}, (False, False)),
}
HEADLINES = ("Bernoulli", "Gaussian", "NegativeBinomial", "ZeroInflatedNegativeBinomial")
COUNTS = (
    "Poisson", "NegativeBinomial", "ZeroInflatedNegativeBinomial", "NegativeBinomialLogits"
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Executed:
    loop: float
    whole: float
    in_flight: float | None = None  # bytes of a thread; counted only for likelihoods


def is_hot(kernel: str) -> bool:
    """Whether `count` can call a kernel.

    These are the latent kernels for default options, except for the list kernels, and the kernels
    for a single likelihood kind. `count` can call all of the latter in float, and a few in
    bfloat16, which uses the same arithmetic. A count takes 4 s.
    """
    if found := likelihood(kernel):
        return found.element == "float" or (
            found.element == "BFloat16" and found.direction != "both" and found.kind in HEADLINES
        )
    return re.fullmatch(r"(forward|backward)<\w+, \(Access\)[012]>", kernel) is not None


def _tensors(access: int, tiles: int, dtype: np.dtype) -> tuple[list[np.ndarray], tuple[int, ...]]:
    """Return six tensors of BLOCKS * tiles tiles for a kernel's access, and the summed dimensions.

    They are contiguous tensors, chunks of packed tensors, or channels_last images of four channels.
    """
    n = BLOCKS * tiles * TILE
    if access == 0:
        return [np.zeros(n, dtype) for _ in range(6)], (0,)
    if access == 1:
        pairs = [np.zeros((n // 1024, 2048), dtype) for _ in range(3)]
        return [half for pair in pairs for half in np.split(pair, 2, axis=1)], (0, 1)
    images = [np.zeros((BLOCKS, tiles * 8, 64, 4), dtype) for _ in range(6)]
    return [np.moveaxis(image, -1, 1) for image in images], (1, 2, 3)


def _stored(machine: Any, element: str, values: np.ndarray) -> np.ndarray:
    """Convert float32 values to the dtype of a kernel."""
    if element == "BFloat16":
        return machine.probes.to_bfloat16(values).astype(np.uint16)
    return values.astype(DTYPES[element])


def _launch_likelihood(machine: Any, of: Likelihood, tiles: int) -> int:
    """Call the kernel and return the number of elements."""
    options, positive = LIKELIHOODS[of.kind]
    kind = list(LIKELIHOODS).index(of.kind)
    rng = np.random.default_rng(0)
    shape = (BLOCKS * tiles, TILE)
    arrays: dict[str, np.ndarray] = {}
    names = ("output", "second", "third")[: len(positive)]
    for name, is_positive in zip(names, positive, strict=True):
        values = rng.uniform(0.1 if is_positive else -1.5, 1.5, shape).astype(np.float32)
        arrays[name] = _stored(machine, of.element, values)
    x = rng.random(shape, np.float32)
    if of.kind in COUNTS:
        x = np.where(x < 0.9, np.float32(0), np.floor(x * 30 - 26))
    arrays["target"] = _stored(machine, of.element, x)
    if of.direction == "forward":
        result = np.zeros(shape[0], np.float32)
        machine.nll(kind, options, arrays, dims=(1,), factor=1.0, result=result)
    else:
        arrays |= {f"grad_{name}": np.zeros_like(arrays[name]) for name in names}
        value = np.zeros(1, np.float32) if of.direction == "both" else None
        if value is None:
            arrays["grad"] = np.broadcast_to(np.ones((shape[0], 1), np.float32), shape)
        machine.nll_backward(kind, options, arrays, dims=(), factor=1.0, value=value)
    return x.size


def _launch_latent(machine: Any, kernel: str, tiles: int) -> int:
    """Call a latent kernel and return the number of elements."""
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
    if direction == "forward":
        options |= {"z": third, "kl": kl, "partials": np.zeros(BLOCKS * tiles)}
    else:
        options |= {"grad_z": third, "grad_kl": kl, "grad_mu": fourth, "grad_raw": fifth}
    getattr(machine, direction)("cuda", mu, raw, **options)
    return mu.size


def _launch(machine: Any, kernel: str, tiles: int) -> tuple[Launched, int]:
    of = likelihood(kernel)
    machine.emulator.configure()
    machine.reseed(1)  # so that a count does not depend on earlier launches
    machine.device.traces = of is not None
    try:
        with machine.installed():
            if of is not None:
                n = _launch_likelihood(machine, of, tiles)
            else:
                n = _launch_latent(machine, kernel, tiles)
    finally:
        machine.device.traces = False
    found, launched = machine.launched.pop()
    if found != kernel:
        raise ValueError(f"the call for {kernel} must launch it, got {found}")
    return launched, n


def count(machine: Any, kernel: str) -> Executed:
    """Return a kernel's instructions per element. `machine` launches the machine code."""
    if not is_hot(kernel):
        raise ValueError(f"kernel must be a hot one, got {kernel}")
    of_likelihood = likelihood(kernel) is not None
    sizes = (FEW // 2, MANY // 2) if of_likelihood else (FEW, MANY)
    (few, n), (many, m) = (_launch(machine, kernel, tiles) for tiles in sizes)
    flying = None
    if of_likelihood:
        before, after = rounds_of_trace(few.trace), rounds_of_trace(many.trace)
        flying = (sum(after) - sum(before)) / (len(after) - len(before))
    return Executed(
        loop=32 * (many.issued - few.issued) / (m - n),
        whole=32 * few.issued / n,
        in_flight=flying,
    )


shared_machine: Any = None  # inherited by the processes that main() forks, as it cannot be sent


def _count(kernel: str) -> Executed:
    return count(shared_machine, kernel)


def main(kernels: list[str]) -> int:
    """Count these kernels, or all hot ones, and print the rows that the budget records."""
    from native import build, machine_code  # they import this package

    if reason := machine_code.missing():
        raise SystemExit(f"count: error: {reason}")
    global shared_machine
    shared_machine = machine_code.MachineCode(build.module())
    names = kernels or list(filter(is_hot, shared_machine.device.names))
    rows: dict[str, dict[str, float]] = {}
    with multiprocessing.get_context("fork").Pool() as pool:
        for name, found in zip(names, pool.imap(_count, names), strict=True):
            row = rows[name] = {EXECUTED: round(found.loop, 1)}
            text = f"{name}: {found.loop:.1f} in the loop, {found.whole:.1f} of the whole"
            if found.in_flight is not None:
                row[EXECUTED_IN_FLIGHT] = round(found.in_flight, 1)
                text += f", {found.in_flight:g} bytes in flight"
            print(text, file=sys.stderr, flush=True)
    print(json.dumps(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
