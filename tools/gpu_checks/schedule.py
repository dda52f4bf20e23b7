"""Runs steps in turn, each with a share of the budget, and writes the results after each step."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from gpu_checks.report import NOT_RUN, Promise, Report, summary

RESERVE = 10.0  # seconds reserved for the table, the files, and processes that end slowly
LEAST = 2.0  # seconds that must remain to start a step


@dataclasses.dataclass
class Outcome:
    """The result of a step."""

    promises: list[Promise]
    figures: Any = None
    reason: str = ""


@dataclasses.dataclass
class Step:
    """A part of the run. `share` is its part of the budget, in seconds of 240.

    `action` receives the seconds that the step may take. A run can pass even if an optional step
    was not run.
    """

    name: str
    share: float
    action: Callable[[float], Outcome]
    optional: bool = False


class Deadlines:
    """The deadline of each step, in seconds since the start.

    A step that ends early leaves its time to the next one. A step that hangs does not reduce the
    time of later ones.
    """

    def __init__(
        self, steps: list[Step], seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.clock = clock
        self.start = clock()
        unit = max(0.0, seconds - RESERVE) / max(1.0, sum(step.share for step in steps))
        self.ends: list[float] = []
        end = 0.0
        for step in steps:
            end += unit * step.share
            self.ends.append(end)

    def elapsed(self) -> float:
        return self.clock() - self.start

    def left(self, position: int) -> float:
        return self.ends[position] - self.elapsed()


def guarded(step: Step, seconds: float) -> Outcome:
    """The step's outcome. An error affects only this step."""
    try:
        outcome = step.action(seconds)
    except Exception as error:
        detail = f"{type(error).__name__}: {error}"
        outcome = Outcome([Promise(step.name, NOT_RUN, detail=detail)], reason=detail)
    if not outcome.promises:
        reason = outcome.reason or "it reported nothing"
        outcome.promises = [Promise(step.name, NOT_RUN, detail=reason)]
    for promise in outcome.promises:
        promise.optional = promise.optional or step.optional
    return outcome


def run_steps(
    steps: list[Step], deadlines: Deadlines, report: Report, say: Callable[[str], None]
) -> None:
    for position, step in enumerate(steps):
        seconds = deadlines.left(position)
        begun = deadlines.elapsed()
        if seconds < LEAST:
            detail = "not run: out of time"
            outcome = Outcome([Promise(step.name, NOT_RUN, detail=detail, optional=step.optional)])
            outcome.reason = "out of time"
        else:
            say(f"{step.name}: started, at most {seconds:.0f} s")
            outcome = guarded(step, seconds)
        took = deadlines.elapsed() - begun
        report.add(
            step.name, outcome.promises, took, reason=outcome.reason, figures=outcome.figures
        )
        report.write(deadlines.elapsed())
        say(f"{step.name}: {summary(outcome.promises)}, in {took:.0f} s")
