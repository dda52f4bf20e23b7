"""The budget, subprocesses that cannot outlive it, and stages: in turn, or side by side."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gpu_checks.report import NOT_RUN, Promise, Report, summary

GRACE = 10.0  # seconds kept for the table and the file


class Budget:
    """Seconds from the start to the end of everything."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self.clock = clock
        self.start = clock()

    def elapsed(self) -> float:
        return self.clock() - self.start

    def remaining(self) -> float:
        return self.seconds - self.elapsed() - GRACE

    def allow(self, least: float, most: float, reserved: float) -> float:
        """Seconds for a stage, after what is reserved for the later ones; 0: it does not fit.

        A stage that fits at its least may take what the later ones do not need, up to its most.
        """
        remaining = self.remaining()
        if remaining < least:
            return 0.0
        return min(most, max(least, remaining - reserved))


@dataclasses.dataclass
class Outcome:
    """What a stage found."""

    promises: list[Promise]
    figures: Any = None
    reason: str = ""


@dataclasses.dataclass
class Stage:
    """A part of the run. `least` and `most`: seconds it wants to start with, and is stopped at."""

    name: str
    action: Callable[[float], Outcome]  # of the seconds it may take
    least: float
    most: float
    optional: bool = False


@dataclasses.dataclass
class Finished:
    """A subprocess that has ended. `status` None: it was stopped at its time limit."""

    status: int | None
    output: str
    seconds: float

    def tail(self, lines: int = 12) -> str:
        return "\n".join(self.output.strip().splitlines()[-lines:])

    def ended(self) -> str:
        if self.status is None:
            return f"stopped after {self.seconds:.0f} s"
        if self.status < 0:
            return f"killed by signal {-self.status}"
        return f"ended with status {self.status}"


def execute(
    command: list[str],
    timeout: float,
    *,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    log: Path,
) -> Finished:
    """Runs a command in a process group of its own, which is stopped as a whole.

    Output goes to a file: a grandchild that keeps a pipe open cannot hold us up.
    """
    start = time.monotonic()
    with log.open("wb") as sink:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=env,
                cwd=cwd,
                start_new_session=True,
            )
        except OSError as error:
            return Finished(127, f"{command[0]}: {error}", 0.0)
        status: int | None
        try:
            status = process.wait(timeout=timeout)
        except subprocess.TimeoutExpired:
            status = None
        except BaseException:  # an interrupt: leave nothing behind
            stop(process, 0.0)
            raise
        stop(process, 3.0 if status is None else 0.0)
    text = log.read_bytes().decode("utf-8", "replace")
    return Finished(status, text, time.monotonic() - start)


def stop(process: subprocess.Popen[bytes], patience: float) -> None:
    """Ends what is left of the group that `execute` started."""
    for sig in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sig)
        except (ProcessLookupError, PermissionError):
            break
        if sig == signal.SIGTERM and patience:
            try:
                process.wait(timeout=patience)
            except subprocess.TimeoutExpired:
                continue
    process.wait()


# --- stages --------------------------------------------------------------------------------------


def guarded(stage: Stage, seconds: float) -> tuple[Outcome, float]:
    """A stage's outcome and time; an error inside it is its own alone."""
    start = time.monotonic()
    try:
        outcome = stage.action(seconds)
    except Exception as error:
        detail = f"{type(error).__name__}: {error}"
        outcome = Outcome([Promise(stage.name, NOT_RUN, detail=detail)], reason=detail)
    if not outcome.promises:
        reason = outcome.reason or "it says nothing"
        outcome.promises = [Promise(stage.name, NOT_RUN, detail=reason)]
    for promise in outcome.promises:
        promise.optional = promise.optional or stage.optional
    return outcome, time.monotonic() - start


def run_stages(
    groups: list[list[Stage]],
    budget: Budget,
    report: Report,
    say: Callable[[str], None],
    workers: int = 16,
) -> None:
    """Runs groups in turn, the stages of a group side by side, as far as the budget goes."""
    lock = threading.Lock()
    for position, group in enumerate(groups):
        later = groups[position + 1 :]
        reserved = sum(max((s.least for s in g), default=0.0) for g in later)
        with ThreadPoolExecutor(max(1, min(workers, len(group)))) as pool:

            def job(stage: Stage, reserved: float = reserved) -> None:
                seconds = budget.allow(stage.least, stage.most, reserved)
                if not seconds:
                    skipped = Promise(stage.name, NOT_RUN, detail="not run: out of time")
                    skipped.optional = stage.optional
                    with lock:
                        report.add(stage.name, [skipped], reason="out of time")
                        say(f"{stage.name}: not run, out of time")
                    return
                with lock:
                    say(f"{stage.name}: started, at most {seconds:.0f} s")
                outcome, took = guarded(stage, seconds)
                with lock:
                    report.add(
                        stage.name,
                        outcome.promises,
                        seconds=took,
                        reason=outcome.reason,
                        figures=outcome.figures,
                    )
                    report.write(budget.elapsed())
                    say(f"{stage.name}: {summary(outcome.promises)}, in {took:.0f} s")

            for future in [pool.submit(job, stage) for stage in group]:
                future.result()
    report.write(budget.elapsed())
