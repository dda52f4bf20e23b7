"""Promises and their verdicts; the folder of results with its JSON file; the table."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import tarfile
import textwrap
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
SCHEMA = 2
WIDTH = 100

PASS, FAIL, NOT_RUN = "pass", "fail", "not run"
# Exit status. argparse also exits with 2, which means that nothing was tried.
STATUS = {PASS: 0, FAIL: 1, "no gpu": 2, NOT_RUN: 3}


@dataclasses.dataclass
class Promise:
    """One line of the table. A run can pass even if an optional promise was not run."""

    promise: str
    verdict: str
    target: str = ""
    measured: str = ""
    detail: str = ""
    step: str = ""
    optional: bool = False


def at_least(promise: str, target: float, measured: float | None, detail: str = "") -> Promise:
    """A figure with a lower bound. None means not measured, and `detail` gives the reason."""
    bound = f">= {target:.2f}"
    if measured is None:
        return Promise(promise, NOT_RUN, bound, "", detail)
    # NaN does not pass.
    verdict = PASS if measured >= target else FAIL
    return Promise(promise, verdict, bound, f"{measured:.3g}", detail)


def exactly(promise: str, target: object, measured: object, detail: str = "") -> Promise:
    verdict = PASS if measured == target else FAIL
    return Promise(promise, verdict, str(target), str(measured), detail)


def overall(promises: list[Promise]) -> str:
    """Fail if any failed. Pass if at least one passed and no required one was not run."""
    if any(p.verdict == FAIL for p in promises):
        return FAIL
    if any(p.verdict == NOT_RUN and not p.optional for p in promises):
        return NOT_RUN
    return PASS if any(p.verdict == PASS for p in promises) else NOT_RUN


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file, without a last line that was cut off."""
    rows = []
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


# --- the folder ----------------------------------------------------------------------------------


def commit(bundled: str = "") -> tuple[str, bool]:
    """The commit of this checkout, and whether it has uncommitted changes.

    Without git, VAE_FUSED_COMMIT or the bundle's manifest gives the commit, and the suffix "-dirty"
    marks uncommitted changes.
    """
    given = os.environ.get("VAE_FUSED_COMMIT", "").strip()
    if not given:
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
        command += ["--exclude", "*"]  # no tags, only the commit
        try:
            run = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
            given = run.stdout.strip()
        except (OSError, subprocess.SubprocessError):
            given = bundled or "unknown"
    return given.removesuffix("-dirty"), given.endswith("-dirty")


def slug(name: str) -> str:
    """'NVIDIA H200' -> 'h200'."""
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return words.removeprefix("nvidia-") or "unknown"


def new_folder(parent: Path, device: str, name: str, dirty: bool) -> Path:
    """A new folder for the results of a run; earlier results are kept."""
    base = f"gpu-{slug(device)}-{name[:12]}{'-dirty' if dirty else ''}"
    for number in range(1, 100):
        folder = parent / (base if number == 1 else f"{base}-{number}")
        if not folder.exists():
            break
    folder.mkdir(parents=True)
    return folder


def newest_folder(parent: Path) -> Path | None:
    found = sorted(parent.glob("gpu-*/report.json"), key=lambda path: path.stat().st_mtime)
    return found[-1].parent if found else None


class Report:
    """All results of a run's calls, in one folder of at most eight files.

    `report.json` and `logs.tar.gz` are replaced after each step, so the results of finished steps
    are always kept. The logs of the current step are in `running/`.
    """

    def __init__(self, folder: Path, scratch: Path) -> None:
        self.folder = folder
        self.path = folder / "report.json"
        self.archive = folder / "logs.tar.gz"
        self.running = folder / "running"
        self.logs = scratch / "logs"  # of finished steps
        self.promises: list[Promise] = []
        self.data: dict[str, Any] = {
            "schema": SCHEMA,
            "commit": "unknown",
            "dirty": False,
            "verdict": NOT_RUN,
            "device": {},
            "versions": {},
            "calls": [],
            "promises": [],
            "steps": {},
        }
        if self.path.exists():  # of an earlier call
            self.data |= json.loads(self.path.read_text(encoding="utf-8"))
            self.promises = [Promise(**p) for p in self.data["promises"]]
        self.logs.mkdir(parents=True, exist_ok=True)
        if self.archive.exists():
            with tarfile.open(self.archive) as archive:
                archive.extractall(self.logs, filter="data")
        self.running.mkdir(exist_ok=True)

    def begin(self, command: str, budget: float) -> None:
        """Record that a call of the command line starts here."""
        self.file_logs()  # of an earlier call that was killed
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        call = {"command": command, "date": date, "budget_s": budget, "seconds": 0.0, "steps": []}
        self.data["calls"].append(call | {k: self.data[k] for k in ("commit", "dirty")})
        self.write(0.0)

    def of(self, step: str) -> list[Promise]:
        return [p for p in self.promises if p.step == step]

    def add(
        self,
        step: str,
        promises: list[Promise],
        seconds: float = 0.0,
        *,
        reason: str = "",
        figures: Any = None,
    ) -> None:
        """Replace an earlier call's results of this step, except those that are passed again."""
        for promise in promises:
            promise.step = step
        self.data["steps"][step] = {
            "verdict": overall(promises),
            "seconds": round(seconds, 1),
            "call": len(self.data["calls"]),
            "reason": reason,
            "figures": figures if figures is not None else {},
        }
        others = [p for p in self.promises if p.step != step]
        order = list(self.data["steps"])
        self.promises = sorted([*others, *promises], key=lambda p: order.index(p.step))
        self.data["calls"][-1]["steps"].append(step)

    @property
    def call_logs(self) -> Path:
        """A folder outside of the results, whose contents are added to the archive."""
        folder = self.logs / f"call-{len(self.data['calls'])}"
        folder.mkdir(exist_ok=True)
        return folder

    def file_logs(self) -> None:
        """Move the logs of the finished step to the archive."""
        call = self.call_logs
        for log in sorted(self.running.iterdir()):
            (call / log.name).write_bytes(log.read_bytes())
        if any(self.logs.rglob("*.*")):
            made = self.archive.with_suffix(".tmp")
            with tarfile.open(made, "w:gz") as archive:
                archive.add(self.logs, arcname=".")
            made.replace(self.archive)
        for log in list(self.running.iterdir()):
            log.unlink()

    def log(self, name: str) -> Path | None:
        """The newest log of that name from an earlier step or call."""
        found = sorted(self.logs.glob(f"call-*/{name}"))
        return found[-1] if found else None

    def write(self, seconds: float) -> None:
        """Replace whole files, so that the files are complete whenever the run ends."""
        self.file_logs()
        self.data["calls"][-1]["seconds"] = round(seconds, 1)
        self.data["verdict"] = overall(self.promises)
        self.data["promises"] = [dataclasses.asdict(p) for p in self.promises]
        made = self.path.with_suffix(".tmp")
        with made.open("w", encoding="utf-8") as file:
            file.write(json.dumps(self.data, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        made.replace(self.path)

    def close(self, seconds: float) -> None:
        self.write(seconds)
        self.running.rmdir()


# --- the table -----------------------------------------------------------------------------------


def table(promises: list[Promise]) -> str:
    """A line for each promise, by step, with the reason below those that did not pass."""
    lines = [f"{'':7}  {'promise':<58}{'target':>10}{'measured':>12}"]
    step = None
    for p in promises:
        if p.step != step:
            step = p.step
            lines.append(f"-- {step}")
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
