"""Times: bandwidth against a copy and against the same streams, a step against eager code.

All contenders of a case run in turn within each repeat, so that clock drift affects all alike.
Medians are compared. On a CPU the same code runs with the wall clock, which serves its tests.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from gpu_checks.cases import DTYPES, inputs

L2_FACTOR = 8  # size of all tensor sets in multiples of the L2 cache
SAMPLE = 1e-3  # least seconds of work between two clock readings
REPEATS = 11
Run = Callable[[], object]


# --- clocks --------------------------------------------------------------------------------------


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def elapsed(run: Run, times: int, device: str) -> float:
    """Seconds of each of `times` consecutive runs.

    On a GPU an untimed run goes first. While it keeps the GPU busy, the host queues the timed runs,
    so that none of them waits for the host.
    """
    if device == "cpu":
        start = time.perf_counter()
        for _ in range(times):
            run()
        return (time.perf_counter() - start) / times
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    run()
    begin.record()
    for _ in range(times):
        run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) * 1e-3 / times


def wall(run: Run, times: int, device: str) -> float:
    """Wall-clock seconds of each of `times` consecutive runs, host and device together."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(times):
        run()
    synchronize(device)
    return (time.perf_counter() - start) / times


def in_turn(
    runs: dict[str, Run],
    device: str,
    clock: Callable[[Run, int, str], float] = elapsed,
    repeats: int = REPEATS,
    sample: float = SAMPLE,
) -> dict[str, float]:
    """The median seconds of each function, with interleaved runs."""
    counts = {}
    for name, run in runs.items():
        run()
        once = min(clock(run, 1, device) for _ in range(2))
        counts[name] = max(1, min(1000, math.ceil(sample / max(once, 1e-7))))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(clock(run, counts[name], device))
    return {name: statistics.median(t) for name, t in times.items()}


@dataclasses.dataclass
class Loop:
    """Consecutive calls of a run, which cycle through the sets of tensors."""

    run: Run
    calls: int
    mode: str
    keep: object = None  # keeps a graph and its outputs alive


def loop(functions: list[Run], calls: int, device: str, graph: bool = True) -> Loop:
    """Capture the calls in a CUDA graph, which excludes host time, or else call one by one."""
    calls = max(calls, len(functions))
    results: list[object] = [None] * len(functions)

    def run() -> None:
        for i in range(calls):
            results[i % len(functions)] = functions[i % len(functions)]()

    if device == "cpu" or not graph:
        return Loop(run, calls, "calls", results)
    try:
        run()
        torch.cuda.synchronize()
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            run()
        captured.replay()
        torch.cuda.synchronize()
        return Loop(captured.replay, calls, "graph", (captured, results))
    except RuntimeError as error:
        return Loop(run, calls, f"calls ({str(error).splitlines()[0]})", results)


# --- bandwidth -----------------------------------------------------------------------------------


def copies(sizes: list[int], count: int, device: str) -> dict[int, list[Run]]:
    """`count` copies for each size, in shared buffers. `size` is the bytes read plus written."""
    most = max(sizes) // 2
    buffers = [
        [torch.randint(256, (most,), dtype=torch.uint8, device=device) for _ in range(2)]
        for _ in range(count)
    ]
    return {
        size: [partial(copy_bytes, pair[0], pair[1], size // 2) for pair in buffers]
        for size in sizes
    }


def copy_bytes(target: Tensor, source: Tensor, size: int) -> None:
    target[:size].copy_(source[:size])


def add_and_copy(a: Tensor, b: Tensor, c: Tensor, x: Tensor, y: Tensor) -> None:
    """Read three tensors and write two, in two kernels."""
    torch.add(a, b, out=x)
    y.copy_(c)


FUSED = "template <typename T> void fused(T a, T b, T c, T& x, T& y) { x = a + b; y = b + c; }"


def streams(case: Measured, count: int, device: str) -> dict[str, list[Run]]:
    """Yardsticks with the streams of a call and almost no arithmetic, in PyTorch's own kernels.

    Forward reads two tensors and writes one. Backward reads three and writes two. Some GPUs move
    such a mixture at another rate than a copy. One kernel with two results is compiled at run time,
    which may fail. Two consecutive kernels always work.
    """
    found: dict[str, list[Run]] = {"forward": [], "backward": [], "backward, one kernel": []}
    fused = None
    if device != "cpu":
        create = getattr(torch.cuda.jiterator, "_create_multi_output_jit_fn", None)
        fused = create and create(FUSED, num_outputs=2)
    for _ in range(count):
        dtype = DTYPES[case.dtype]
        a, b, c, x, y = (torch.ones(case.numel, dtype=dtype, device=device) for _ in range(5))
        found["forward"].append(partial(torch.add, a, b, out=x))
        found["backward"].append(partial(add_and_copy, a, b, c, x, y))
        if fused:
            found["backward, one kernel"].append(partial(fused, a, b, c))
    try:
        for run in found["backward, one kernel"][:1]:
            run()
    except RuntimeError:
        found["backward, one kernel"] = []
    return {name: runs for name, runs in found.items() if runs}


class Measured(Protocol):
    """A case of cases.py or of likelihoods.py."""

    group: str
    dtype: str

    @property
    def name(self) -> str: ...
    @property
    def numel(self) -> int: ...
    def bytes(self, direction: str) -> int: ...


def spread(case: Measured, device: str) -> int:
    """The number of tensor sets to cycle through, so that no set is in the L2 cache when used."""
    if device == "cpu":
        return 1
    cache = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0) or 64 * 2**20
    return max(1, min(16, math.ceil(L2_FACTOR * cache / case.bytes("forward"))))


def measure_case(
    case: Measured,
    device: str,
    repeats: int = REPEATS,
    make: Callable[[Any, str, int], Any] = inputs,
) -> dict[str, Any]:
    """Times, bytes per second, and their ratio to those of a copy and of the same streams.

    `make` returns an object with the methods `forward` and `backward`. The streams are always those
    of the latent: a yardstick for kernels that read more than they write.
    """
    sets = spread(case, device)
    row: dict[str, Any] = {"case": case.name, "group": case.group, "dtype": case.dtype}
    # Inputs and grad_z, the outputs of a pass, two buffers of the copy, five of the streams.
    needed = sets * 5 * case.bytes("backward")
    if device != "cpu" and torch.cuda.mem_get_info()[0] < 1.2 * needed:
        return row | {"skipped": f"less than {1.2 * needed / 1e9:.0f} GB of memory are free"}
    tensors = [make(case, device, seed) for seed in range(sets)]
    moved = {way: case.bytes(way) for way in ("forward", "backward")}
    plain = {"forward": 3, "backward": 5}  # number of tensors that the yardstick moves
    plain = {way: count * DTYPES[case.dtype].itemsize * case.numel for way, count in plain.items()}
    copiers = copies(list(moved.values()), sets, device)
    yardsticks = streams(case, sets, device)
    loops: dict[str, Loop] = {}
    for way, size in moved.items():
        calls = 1 if device == "cpu" else math.ceil(SAMPLE * 4e12 / size)
        loops[way] = loop([getattr(t, way) for t in tensors], calls, device)
        # A graph may copy by another method than a stream. The faster one is the yardstick.
        loops[f"copy {way}"] = loop(copiers[size], calls, device)
        loops[f"copy {way}, calls"] = loop(copiers[size], calls, device, graph=False)
        for name in (name for name in yardsticks if name.startswith(way)):
            loops[f"streams {name}"] = loop(yardsticks[name], calls, device)
    seconds = in_turn({name: item.run for name, item in loops.items()}, device, repeats=repeats)
    each = {name: seconds[name] / item.calls for name, item in loops.items()}
    for way, size in moved.items():
        copy = min(t for name, t in each.items() if name.startswith(f"copy {way}"))
        same = min(t for name, t in each.items() if name.startswith(f"streams {way}"))
        row[way] = {
            "bytes": size,
            "us": round(each[way] * 1e6, 3),
            "copy_us": round(copy * 1e6, 3),
            "gb_per_s": round(size / each[way] / 1e9, 1),
            "copy_gb_per_s": round(size / copy / 1e9, 1),
            "streams_gb_per_s": round(plain[way] / same / 1e9, 1),
            "ratio": round(copy / each[way], 4),
            "streams_ratio": round((size / each[way]) / (plain[way] / same), 4),
            "mode": loops[way].mode,
        }
    return row


# --- a training step -----------------------------------------------------------------------------

Latent = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclasses.dataclass(frozen=True)
class Step:
    """A training step's latent, and the required speedup over its contenders."""

    shape: tuple[int, int]
    dtype: str
    clock: str  # device | wall
    targets: dict[str, float]

    @property
    def name(self) -> str:
        return f"{self.shape[0]}x{self.shape[1]} {self.dtype}"


def steps(exponent: int = 24) -> list[Step]:
    """Large steps by GPU time, the small step by wall-clock time: there host time dominates."""
    shape = (2 ** (exponent // 2), 2 ** (exponent - exponent // 2))
    return [
        Step((128, 20), "float32", "wall", {"eager": 3.0, "torch.compile": 2.0}),
        Step(shape, "float32", "device", {"eager": 6.0, "torch.compile": 1.3}),
        Step(shape, "bfloat16", "device", {"eager": 6.0, "torch.compile": 1.8}),
    ]


def check(latent: Latent, mu: Tensor, logvar: Tensor) -> None:
    """Check a contender's KL, its gradients, and the variance of its noise."""
    z, kl = latent(mu, logvar)
    m, x = (t.detach().double() for t in (mu, logvar))
    tolerance = 1e-4 if mu.dtype == torch.float32 else 5e-2
    want = 0.5 * (m * m + torch.expm1(x) - x).sum() / m.shape[0]
    torch.testing.assert_close(kl.double(), want, rtol=tolerance, atol=1e-3)
    grads = torch.autograd.grad(kl, [mu, logvar])
    for got, exact in zip(grads, (m, 0.5 * torch.expm1(x)), strict=True):
        torch.testing.assert_close(
            got.double() * m.shape[0], exact, rtol=tolerance, atol=20 * tolerance
        )
    eps = (z.detach().double() - m) / torch.exp(0.5 * x)
    assert abs(float(eps.std()) - 1) < 6 / eps.numel() ** 0.5 + 1e-2


def contenders(eager: Latent, compiled: bool) -> tuple[dict[str, Latent], dict[str, str]]:
    import vae_fused as vf

    found: dict[str, Latent] = {"vae_fused": vf.reparameterize_kl, "eager": eager}
    if compiled:
        found["torch.compile"] = torch.compile(eager, dynamic=False)
        return found, {}
    return found, {"torch.compile": "left out"}


def kept_bytes(latent: Latent, mu: Tensor, logvar: Tensor) -> int | None:
    """Bytes kept for backward in addition to inputs and outputs; None if torch cannot count."""
    if mu.device.type != "cuda":
        return None
    now = "requested_bytes.all.current"
    before = torch.cuda.memory_stats().get(now)
    z, kl = latent(mu, logvar)
    after = torch.cuda.memory_stats().get(now)
    return None if before is None else after - before - z.nbytes - kl.nbytes


def measure_step(
    step: Step, eager: Latent, device: str, compiled: bool = True, repeats: int = REPEATS
) -> dict[str, Any]:
    """Median time of each contender's forward and backward, and the bytes it keeps for backward."""
    dtype = getattr(torch, step.dtype)
    mu, logvar = (
        (0.5 * torch.randn(step.shape, device=device)).to(dtype).requires_grad_() for _ in range(2)
    )
    grad_z = torch.randn(step.shape, device=device).to(dtype)
    latents, unable = contenders(eager, compiled)
    runs: dict[str, Run] = {}
    kept: dict[str, int | None] = {}
    for name, latent in latents.items():
        try:
            check(latent, mu, logvar)
            kept[name] = kept_bytes(latent, mu, logvar)
        except Exception as error:
            unable[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
            continue

        one = torch.ones_like(latent(mu, logvar)[1].detach())

        def run(latent: Latent = latent, one: Tensor = one) -> None:
            torch.autograd.grad(latent(mu, logvar), [mu, logvar], [grad_z, one])

        runs[name] = run
    clock = wall if step.clock == "wall" else elapsed
    seconds = in_turn(runs, device, clock, repeats, sample=0.02 if clock is wall else 5e-3)
    return {
        "step": step.name,
        "clock": step.clock,
        "targets": step.targets,
        "us": {name: round(s * 1e6, 2) for name, s in seconds.items()},
        "kept_bytes": kept,
        "unable": unable,
        "elements": math.prod(step.shape),
    }


def quiet() -> None:
    warnings.filterwarnings("ignore")
