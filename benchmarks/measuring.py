"""Times contenders in interleaved rounds: each contender has one turn per round, in a new order.

Drift and other work then affect all contenders alike. Contenders are compared within each round. A
ratio is the median of the rounds' ratios, which is stable even if both contenders' medians
fluctuate. ``torch.utils.benchmark`` is not used, because it times one statement after the other.

On a CPU, a turn is one step by the wall clock, with a separate time for each pass. On a GPU it
consists of

    step         forward and backward by CUDA events. The queue is filled in advance, so host time
                 is not included. Twice the L2 cache's size is overwritten before each pass, as a
                 decoder would do between the passes
    step_wall    consecutive steps by the wall clock, host and device together

``processor`` is the processor time of a step, summed over all threads of this process.
"""

from __future__ import annotations

import dataclasses
import gc
import math
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

FEWEST, MOST = 7, 3000  # rounds
AWAY = 0.5  # seconds since its last run after which a step first runs once, untimed
WALL = 2e-3  # minimum duration of a series of steps, in seconds
AHEAD_MOST = 5e-3  # maximum seconds for which the device waits while its queue is filled

Samples = dict[str, list[float]]  # seconds in each round, for each kind of time


@dataclasses.dataclass
class Step:
    """A forward pass, and a backward pass that takes the outputs of forward."""

    forward: Callable[[], Any]
    backward: Callable[[Any], Any] = lambda _: None

    def __call__(self) -> Any:
        return self.backward(self.forward())


def repeated(call: Callable[[], Any], calls: int) -> Step:
    """Return a step of several calls, for calls that are too short for a clock."""

    def loop() -> None:
        for _ in range(calls):
            call()

    return Step(loop)


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Return the median and the quartiles in microseconds, and the number of samples."""
    low, _, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else [seconds[0]] * 3
    us = {"median": statistics.median(seconds), "q1": low, "q3": high}
    return {k: float(f"{1e6 * v:.5g}") for k, v in us.items()} | {"rounds": len(seconds)}


def paired(samples: Sequence[float], base: Sequence[float]) -> list[float]:
    """Return the ratios of the samples to the base, round by round."""
    return [mine / other for mine, other in zip(samples, base, strict=True)]


def summary(samples: Samples, base: Samples | None) -> dict[str, Any]:
    """Return the spread of each kind of time, and its ratio to the base."""
    found: dict[str, Any] = {"times": {k: spread(v) for k, v in samples.items()}}
    if base:
        kinds = [kind for kind in samples if kind in base]
        ratio = {k: statistics.median(paired(samples[k], base[k])) for k in kinds}
        found["ratio"] = {kind: round(value, 3) for kind, value in ratio.items()}
    return found


def ratios(theirs: Samples, ours: Samples) -> dict[str, float]:
    """Return the ratios of their times to ours. Other work affects the minima least."""
    found = {"median": statistics.median(paired(theirs["step"], ours["step"]))}
    for name, kind in (("minima", "step"), ("processor", "processor")):
        found[name] = min(theirs[kind]) / min(ours[kind])
    return {name: round(value, 3) for name, value in found.items()}


class Clock:
    """The clocks of a CPU."""

    def prepare(self, step: Step) -> Any:
        """Return the state that a step requires. Call this once, before the rounds."""

    def turn(self, step: Step, prepared: Any, into: Samples) -> None:
        processor, start = time.process_time(), time.perf_counter()
        result = step.forward()
        middle = time.perf_counter()
        result = step.backward(result)
        end = time.perf_counter()
        processor = time.process_time() - processor
        del result
        add(into, forward=middle - start, backward=end - middle, step=end - start)
        add(into, processor=processor)


class CudaClock(Clock):
    """CUDA events, and the clocks of the CPU around consecutive steps."""

    def __init__(self) -> None:
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        cache = getattr(properties, "L2_cache_size", 0) or 64 * 2**20
        self.scratch = torch.empty(2 * cache, dtype=torch.uint8, device="cuda")
        self.cycles = 1e3 * getattr(properties, "clock_rate", 2_000_000)  # kHz -> Hz

    def prepare(self, step: Step) -> tuple[float, int]:
        """Return a step's wall-clock time, and how many steps to run per wall-clock sample."""
        once = min(self._wall(step, 1) for _ in range(5))
        return once, max(1, min(200, math.ceil(WALL / max(once, 1e-6))))

    def turn(self, step: Step, prepared: Any, into: Samples) -> None:
        once, calls = prepared
        forward, backward = self._events(step, once)
        add(into, forward=forward, backward=backward, step=forward + backward)
        processor = time.process_time()
        add(into, step_wall=self._wall(step, calls))
        add(into, processor=(time.process_time() - processor) / calls)

    @staticmethod
    def _wall(step: Step, calls: int) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            step()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / calls

    def _events(self, step: Step, once: float) -> tuple[float, float]:
        begin, middle, again, end = (torch.cuda.Event(enable_timing=True) for _ in range(4))
        torch.cuda.synchronize()
        torch.cuda._sleep(int(self.cycles * min(1.5 * once + 5e-5, AHEAD_MOST)))
        self.scratch.fill_(1)
        begin.record()
        result = step.forward()
        middle.record()
        self.scratch.fill_(1)
        again.record()
        result = step.backward(result)
        end.record()
        end.synchronize()
        del result
        return 1e-3 * begin.elapsed_time(middle), 1e-3 * again.elapsed_time(end)


def add(into: Samples, **seconds: float) -> None:
    for kind, value in seconds.items():
        into.setdefault(kind, []).append(value)


def interleaved(
    steps: dict[str, Step], device: str, seconds: float, fewest: int = FEWEST
) -> tuple[dict[str, Samples], float | None]:
    """Run at least ``fewest`` rounds, for at least ``seconds``, but at most ``MOST`` rounds. Return
    the times of each step, and the share of processor time that other processes took meanwhile.

    Unlike in a training loop, a step here waits while other, slow steps take their turns. A virtual
    machine may then return free memory to its host, and the next step of 2^24 elements takes 330
    instead of 48 ms. After ``AWAY`` seconds without a run, a step first runs once, untimed.
    """
    clock = CudaClock() if device == "cuda" else Clock()
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
    others = Others()
    try:
        start = time.perf_counter()
        for i in range(MOST):
            if i >= fewest and time.perf_counter() - start >= seconds:
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
    return times, others.share()


def tidy(device: str) -> None:
    """Free memory, and discard torch.compile's results."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    if "torch._inductor.cudagraph_trees" in sys.modules:
        sys.modules["torch._inductor.cudagraph_trees"].reset_cudagraph_trees()
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


class Others:
    """Measures the share of processor time that other processes use after this object is made.

    An operator with several threads waits for the slowest thread. Another process on the same
    processors makes the operator many times slower, and does not slow all contenders equally.
    """

    def __init__(self) -> None:
        self.began = self._seconds()

    def share(self) -> float | None:
        """Return the share of the time of all processors, or None if it is not available."""
        if self.began is None or (now := self._seconds()) is None or now[1] <= self.began[1]:
            return None
        return round(max(0.0, (now[0] - self.began[0]) / (now[1] - self.began[1])), 2)

    @staticmethod
    def _seconds() -> tuple[float, float] | None:
        """Return processor seconds spent outside this process, and the total available seconds."""
        try:
            words = Path("/proc/stat").read_text(encoding="utf-8").split("\n")[0].split()[1:9]
        except OSError:
            return None
        tick = os.sysconf("SC_CLK_TCK")
        user, nice, system, idle, waiting, *rest = (int(word) / tick for word in words)
        busy = user + nice + system + sum(rest)  # interrupts, and time taken by a hypervisor
        mine = os.times()
        return busy - mine.user - mine.system, busy + idle + waiting
