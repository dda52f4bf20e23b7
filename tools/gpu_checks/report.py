"""Promises and their verdicts; the file and the table that tell them."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import textwrap
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = 1
WIDTH = 100

PASS, FAIL, NOT_RUN = "pass", "fail", "not run"
# Exit status. 2 is also what argparse ends with: nothing was tried.
STATUS = {PASS: 0, FAIL: 1, "no gpu": 2, NOT_RUN: 3}


@dataclasses.dataclass
class Promise:
    """One line of the table. `optional`: not being run keeps nobody from passing."""

    promise: str
    verdict: str
    target: str = ""
    measured: str = ""
    detail: str = ""
    stage: str = ""
    optional: bool = False


def at_least(promise: str, target: float, measured: float | None, detail: str = "") -> Promise:
    """A figure with a lower bound. None: it could not be measured, and `detail` says why."""
    bound = f">= {target:.2f}"
    if measured is None:
        return Promise(promise, NOT_RUN, bound, "", detail)
    # A figure that is not a number is not a pass.
    verdict = PASS if measured >= target else FAIL
    return Promise(promise, verdict, bound, f"{measured:.3g}", detail)


def exactly(promise: str, target: object, measured: object, detail: str = "") -> Promise:
    verdict = PASS if measured == target else FAIL
    return Promise(promise, verdict, str(target), str(measured), detail)


def overall(promises: list[Promise]) -> str:
    """Fail if anything failed; pass if everything that is not optional passed."""
    if any(p.verdict == FAIL for p in promises):
        return FAIL
    if not promises or any(p.verdict == NOT_RUN and not p.optional for p in promises):
        return NOT_RUN
    return PASS


# --- the file ------------------------------------------------------------------------------------


def commit() -> tuple[str, bool]:
    """The commit of this checkout, and whether it has been edited since.

    VAE_FUSED_COMMIT stands in for it where there is no git; "-dirty" at its end says edited.
    """
    given = os.environ.get("VAE_FUSED_COMMIT", "").strip()
    if not given:
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
        command += ["--exclude", "*"]  # no tag: the bare commit
        try:
            run = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
            given = run.stdout.strip()
        except (OSError, subprocess.SubprocessError):
            given = "unknown"
    return given.removesuffix("-dirty"), given.endswith("-dirty")


def slug(name: str) -> str:
    """'NVIDIA H200' -> 'h200'."""
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return words.removeprefix("nvidia-") or "unknown"


class Report:
    """Everything a run has found out, written down after every stage."""

    def __init__(self, folder: Path, command: str, budget: float) -> None:
        name, dirty = commit()
        self.folder = folder
        self.promises: list[Promise] = []
        self.data: dict[str, Any] = {
            "schema": SCHEMA,
            "command": command,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "commit": name,
            "dirty": dirty,
            "budget_s": budget,
            "seconds": 0.0,
            "verdict": NOT_RUN,
            "device": {},
            "versions": {},
            "promises": [],
            "stages": {},
        }

    @property
    def path(self) -> Path:
        device = slug(self.data["device"].get("name", "unknown"))
        dirty = "-dirty" if self.data["dirty"] else ""
        return self.folder / f"gpu-{device}-{self.data['commit'][:12]}{dirty}.json"

    def add(
        self,
        stage: str,
        promises: list[Promise],
        *,
        seconds: float = 0.0,
        reason: str = "",
        figures: Any = None,
    ) -> None:
        for promise in promises:
            promise.stage = stage
        self.promises += promises
        self.data["stages"][stage] = {
            "verdict": overall(promises),
            "seconds": round(seconds, 1),
            "reason": reason,
            "figures": figures if figures is not None else {},
        }

    def write(self, seconds: float) -> Path:
        """The whole file anew: what is on disk is complete, whenever the run ends."""
        self.data["seconds"] = round(seconds, 1)
        self.data["verdict"] = overall(self.promises)
        self.data["promises"] = [dataclasses.asdict(p) for p in self.promises]
        self.folder.mkdir(parents=True, exist_ok=True)
        scratch = self.path.with_suffix(".tmp")
        scratch.write_text(json.dumps(self.data, indent=1) + "\n", encoding="utf-8")
        scratch.replace(self.path)
        return self.path


# --- the table -----------------------------------------------------------------------------------


def table(promises: list[Promise]) -> str:
    """A line for each promise, by stage; below those that did not pass, why."""
    lines = [f"{'':7}  {'promise':<58}{'target':>10}{'measured':>12}"]
    stage = None
    for p in promises:
        if p.stage != stage:
            stage = p.stage
            lines.append(f"-- {stage}")
        name = p.promise
        if len(name) > 57:
            name = name[:54] + "..."
        lines.append(f"{p.verdict.upper():7}  {name:<58}{p.target:>10}{p.measured:>12}".rstrip())
        if p.detail and (p.verdict != PASS or p.target.startswith(">=")):
            indent = " " * 9
            lines += textwrap.wrap(
                p.detail, WIDTH, initial_indent=indent, subsequent_indent=indent, max_lines=6
            )
    return "\n".join(line[:WIDTH] for line in lines)


def summary(promises: list[Promise]) -> str:
    counts = {v: sum(p.verdict == v for p in promises) for v in (PASS, FAIL, NOT_RUN)}
    return ", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n) or "nothing"
