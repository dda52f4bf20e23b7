"""Time, in interleaved rounds: in each one every contender has its turn, in a new order.

Drift and other work hit all alike then, and contenders are compared within each round: a ratio is
the median of the rounds' ratios, which holds still where the medians of both jump.

On a CPU a turn is one step by the wall clock, forward and backward apart. On a GPU it is

    cold, warm   forward and backward by CUDA events, the queue filled ahead so that the host's time
                 does not count; "cold" with a write over twice the L2 cache before each pass, as
                 a decoder runs between them. forward, backward and step are the cold ones
    wall         steps in a row by the wall clock, host and device together
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
AWAY = 0.5  # seconds after which a step is made once before it is timed
WALL = 2e-3  # seconds of steps in a row, at the least
GRAPHED = 2**22  # elements; above, launches do not matter
AHEAD_MOST = 5e-3  # seconds for which the device is kept waiting; its queue fills up in that time


@dataclasses.dataclass
class Step:
    """A forward pass, and a backward pass that takes what it returned."""

    forward: Callable[[], Any]
    backward: Callable[[Any], Any]

    def __call__(self) -> Any:
        return self.backward(self.forward())


def latent_step(latent: Latent, data: Inputs) -> Step:
    """Forward and backward of a latent. Outputs are fresh in each step, as in training."""

    def backward(pair: tuple[Any, Tensor]) -> tuple[Tensor, ...]:
        *zs, kl = outputs(pair)
        grads = [*data.grad_zs, data.grad_kl[kl.dtype]]
        return torch.autograd.grad([*zs, kl], data.leaves, grads)

    return Step(lambda: latent(*data.arguments), backward)


def copy_step(case: Case, device: str) -> Step:
    """Copies that read and write as many bytes as the passes have to, in memory that is there."""
    sizes = [max(1, n // 2) for n in case.bytes]
    source, target = (
        torch.zeros(max(sizes), dtype=torch.uint8, device=device) for _ in range(2)
    )  # zeros: pages that nothing was written to would all be one
    source.fill_(1)

    def copy(size: int) -> None:
        target[:size].copy_(source[:size])

    return Step(lambda: copy(sizes[0]), lambda _: copy(sizes[1]))


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median and quartiles in microseconds, and how many there were."""
    low, _, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else [seconds[0]] * 3
    us = {"median": statistics.median(seconds), "q1": low, "q3": high}
    return {k: float(f"{1e6 * v:.5g}") for k, v in us.items()} | {"rounds": len(seconds)}


Samples = dict[str, list[float]]  # seconds in each round, by each kind of time


def paired(samples: Sequence[float], base: Sequence[float]) -> list[float]:
    """What multiple of the base each is, round by round."""
    return [mine / other for mine, other in zip(samples, base, strict=True)]


def summary(samples: Samples, base: Samples | None) -> dict[str, Any]:
    """Of each kind of time the spread, and the ratio to the base's."""
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
        """What a step needs beside itself; called once, before the rounds."""
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
    """The wall clock and the processor's."""

    def turn(self, step: Step, prepared: Any, into: Samples) -> None:
        processor = time.process_time()
        super().turn(step, prepared, into)
        into.setdefault("processor", []).append(time.process_time() - processor)


class CudaClock(Clock):
    """Events, and the wall clock around steps in a row."""

    def __init__(self) -> None:
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        cache = getattr(properties, "L2_cache_size", 0) or 64 * 2**20
        self.scratch = torch.empty(2 * cache, dtype=torch.uint8, device="cuda")
        self.cycles = 1e3 * getattr(properties, "clock_rate", 2_000_000)  # kHz -> Hz

    def prepare(self, step: Step) -> tuple[float, int]:
        """For how long the host is busy with a step, and how many steps make a wall sample."""
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
    """Each step's times, in rounds for as long as told. ``tick`` gets the share of that which is
    over.

    A training loop never rests, but a step whose turn comes after those of many slow ones has. A
    virtual machine may have handed its free memory back to the host by then, which takes two
    seconds: 2^24 elements, 330 ms instead of 48. So after a while ``AWAY`` one step is not timed.
    """
    last = {}  # when each was made
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
    """Each step captured in a CUDA graph and replayed, interleaved; or why it could not be."""
    found: dict[str, list[float] | str] = {}
    graphs: dict[str, tuple[torch.cuda.CUDAGraph, Any]] = {}
    for name, step in steps.items():
        try:
            graphs[name] = _capture(step)
        except Exception as error:  # noted: nothing else depends on it
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
