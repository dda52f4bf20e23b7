"""Times contenders in interleaved rounds: each contender has one turn per round, in a new order.

Drift and other work then affect all contenders alike. Contenders are compared within each round. A
ratio is the median of the rounds' ratios, which stays stable even if both medians fluctuate.

On a CPU a turn is one step by the wall clock, with separate times for both passes. On a GPU it has

    cold, warm   forward and backward by CUDA events. The queue is filled ahead, so that host time
                 does not count. "cold" first overwrites twice the L2 cache before each pass, like a
                 decoder between the passes. forward, backward and step are the cold times
    wall         consecutive steps by the wall clock, host and device together
    graph        the step replayed from a CUDA graph
"""

from __future__ import annotations

import dataclasses
import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import Case, Inputs, outputs
from benchmarks.contenders import Latent

FEWEST, MOST = 7, 3000  # rounds
AWAY = 0.5  # seconds since its last step after which a contender runs one untimed step first
WALL = 2e-3  # seconds that a series of steps takes at least
GRAPHED = 2**22  # elements; above this, launches do not matter
AHEAD_MOST = 5e-3  # seconds that the device waits at most while its queue is filled


@dataclasses.dataclass
class Step:
    """A forward pass, and a backward pass that takes the outputs of forward."""

    forward: Callable[[], Any]
    backward: Callable[[Any], Any]

    def __call__(self) -> Any:
        return self.backward(self.forward())


def latent_step(latent: Latent, data: Inputs) -> Step:
    """Forward and backward of a latent. Each step allocates new outputs, as in training."""

    def backward(pair: tuple[Any, Tensor]) -> tuple[Tensor, ...]:
        *zs, kl = outputs(pair)
        grads = [*data.grad_zs, data.grad_kl[kl.dtype]]
        return torch.autograd.grad([*zs, kl], data.leaves, grads)

    return Step(lambda: latent(*data.arguments), backward)


def copy_step(case: Case, device: str) -> Step:
    """Copies of the least bytes that the passes read and write, in preallocated memory."""
    sizes = [max(1, n // 2) for n in case.bytes]
    source, target = (
        torch.zeros(max(sizes), dtype=torch.uint8, device=device) for _ in range(2)
    )  # zeros: untouched pages would all map to one page
    source.fill_(1)

    def copy(size: int) -> None:
        target[:size].copy_(source[:size])

    return Step(lambda: copy(sizes[0]), lambda _: copy(sizes[1]))


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median and quartiles in microseconds, and the number of samples."""
    low, _, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else [seconds[0]] * 3
    us = {"median": statistics.median(seconds), "q1": low, "q3": high}
    return {k: float(f"{1e6 * v:.5g}") for k, v in us.items()} | {"rounds": len(seconds)}


Samples = dict[str, list[float]]  # seconds in each round, for each kind of time


def paired(samples: Sequence[float], base: Sequence[float]) -> list[float]:
    """The ratios of the samples to the base, round by round."""
    return [mine / other for mine, other in zip(samples, base, strict=True)]


def summary(samples: Samples, base: Samples | None) -> dict[str, Any]:
    """The spread of each kind of time, and its ratio to the base."""
    found: dict[str, Any] = {"times": {k: spread(v) for k, v in samples.items()}}
    if base:
        found["ratio"] = {
            kind: round(statistics.median(paired(seconds, base[kind])), 3)
            for kind, seconds in samples.items()
            if kind in base
        }
    return found


class Clock:
    """The wall clock."""

    def prepare(self, step: Step) -> Any:
        """State that a step requires; called once, before the rounds."""
        return None

    def turn(self, step: Step, prepared: Any, into: Samples) -> None:
        start = time.perf_counter()
        result = step.forward()
        middle = time.perf_counter()
        result = step.backward(result)
        end = time.perf_counter()
        del result
        for name, seconds in (
            ("forward", middle - start),
            ("backward", end - middle),
            ("step", end - start),
        ):
            into.setdefault(name, []).append(seconds)


class ProcessorClock(Clock):
    """The wall clock and the processor's clock."""

    def turn(self, step: Step, prepared: Any, into: Samples) -> None:
        processor = time.process_time()
        super().turn(step, prepared, into)
        into.setdefault("processor", []).append(time.process_time() - processor)


class CudaClock(Clock):
    """CUDA events, and the wall clock around consecutive steps."""

    def __init__(self) -> None:
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        cache = getattr(properties, "L2_cache_size", 0) or 64 * 2**20
        self.scratch = torch.empty(2 * cache, dtype=torch.uint8, device="cuda")
        self.cycles = 1e3 * getattr(properties, "clock_rate", 2_000_000)  # kHz -> Hz

    def prepare(self, step: Step) -> tuple[float, int]:
        """How long the host is busy with a step, and the number of steps in a wall sample."""
        seconds = []
        for _ in range(5):
            torch.cuda.synchronize()
            start = time.perf_counter()
            step()
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        once = min(seconds)
        return once, max(1, min(200, math.ceil(WALL / max(once, 1e-6))))

    def turn(self, step: Step, prepared: Any, into: Samples) -> None:
        once, calls = prepared
        for kind in ("cold", "warm"):
            forward, backward = self._events(step, once, cold=kind == "cold")
            into.setdefault(f"step_{kind}", []).append(forward + backward)
            if kind == "cold":
                into.setdefault("forward", []).append(forward)
                into.setdefault("backward", []).append(backward)
                into.setdefault("step", []).append(forward + backward)
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            step()
        torch.cuda.synchronize()
        into.setdefault("step_wall", []).append((time.perf_counter() - start) / calls)

    def _events(self, step: Step, once: float, *, cold: bool) -> tuple[float, float]:
        begin, middle, again, end = (torch.cuda.Event(enable_timing=True) for _ in range(4))
        torch.cuda.synchronize()
        torch.cuda._sleep(int(self.cycles * min(1.5 * once + 5e-5, AHEAD_MOST)))
        if cold:
            self.scratch.fill_(1)
        begin.record()
        result = step.forward()
        middle.record()
        if cold:
            self.scratch.fill_(1)
        again.record()
        result = step.backward(result)
        end.record()
        end.synchronize()
        return 1e-3 * begin.elapsed_time(middle), 1e-3 * again.elapsed_time(end)


def clock_for(device: str) -> Clock:
    return CudaClock() if device == "cuda" else Clock()


def interleaved(
    steps: dict[str, Step],
    clock: Clock,
    seconds: float,
    tick: Callable[[float], None] = lambda _: None,
    fewest: int = FEWEST,
) -> dict[str, Samples]:
    """Times of each step, in rounds for ``seconds``. ``tick`` receives the elapsed fraction.

    A training loop never rests, but a step rests while many slow ones take their turns. Meanwhile a
    virtual machine may return its free memory to the host, and getting it back takes two seconds:
    a step of 2^24 elements takes 330 ms instead of 48 ms. Therefore a step that has rested for
    longer than ``AWAY`` runs once without being timed.
    """
    last = {}  # the time of each step's last run
    for name, step in steps.items():
        for _ in range(2):
            step()
        last[name] = time.perf_counter()
    prepared = {name: clock.prepare(step) for name, step in steps.items()}
    times: dict[str, Samples] = {name: {} for name in steps}
    order, shuffle = list(steps), random.Random(0).shuffle
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        for i in range(MOST):
            share = (time.perf_counter() - start) / seconds if seconds > 0 else 1.0
            tick(min(1.0, max(share, 0.0)))
            if share >= 1 and i >= fewest:
                break
            shuffle(order)
            for name in order:
                if time.perf_counter() - last[name] > AWAY:
                    steps[name]()
                clock.turn(steps[name], prepared[name], times[name])
                last[name] = time.perf_counter()
    finally:
        if collecting:
            gc.enable()
    return times


def graph_times(steps: dict[str, Step], rounds: int = 15) -> dict[str, list[float] | str]:
    """Times of each step replayed from a CUDA graph, interleaved, or why capture failed."""
    found: dict[str, list[float] | str] = {}
    graphs: dict[str, tuple[torch.cuda.CUDAGraph, Any]] = {}
    for name, step in steps.items():
        try:
            graphs[name] = _capture(step)
        except Exception as error:  # recorded; nothing else depends on it
            found[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
    calls, times = 20, dict[str, list[float]]()
    for _ in range(rounds):
        for name, (graph, _) in graphs.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            graph.replay()
            begin.record()
            for _ in range(calls):
                graph.replay()
            end.record()
            end.synchronize()
            times.setdefault(name, []).append(1e-3 * begin.elapsed_time(end) / calls)
    return found | times


def _capture(step: Step) -> tuple[torch.cuda.CUDAGraph, Any]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()
    graph.replay()
    torch.cuda.synchronize()
    return graph, result
