"""The folder of results, which is complete after each step, and the table."""

from __future__ import annotations

import json
import os
import re
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from . import ROOT

VERDICTS = {True: "pass", False: "fail", None: "not run"}
STATUS = {"pass": 0, "fail": 1, "no gpu": 2, "not run": 3}  # of the process


class Line(NamedTuple):
    """A promise, and whether it is kept; None if this was not found out."""

    name: str
    kept: bool | None
    detail: str = ""


def overall(verdicts: list[str]) -> str:
    """A part that was not run is not a pass, and nothing at all is not a pass either."""
    return next((v for v in ("fail", "not run", "pass") if v in verdicts), "not run")


def commit(bundled: str = "") -> str:
    """The commit of this checkout, or of the bundle where there is no git."""
    command = f"git -C '{ROOT}' describe --always --dirty --abbrev=12 --exclude '*'"  # no tags
    found = subprocess.run(command, shell=True, capture_output=True, text=True).stdout.strip()
    return os.environ.get("VAE_FUSED_COMMIT", "").strip() or found or bundled or "unknown"


def new_folder(parent: Path, device: str, name: str) -> Path:
    """A new folder, such as `gpu-h200-0123456789ab`. Earlier results are kept."""
    words = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-").removeprefix("nvidia-")
    names = (f"gpu-{words}-{name}{number}" for number in ["", *(f"-{n}" for n in range(2, 100))])
    folder = next(parent / name for name in names if not (parent / name).exists())
    folder.mkdir(parents=True)
    return folder


class Report:
    """The results of all calls of a run. `report.json` is replaced after each step.

    The output of a program moves to `log.txt` at its end: some machines return only eight files.
    """

    def __init__(self, folder: Path, command: str, name: str) -> None:
        self.folder, self.path, self.running = folder, folder / "report.json", folder / "running"
        self.data: dict[str, Any] = {"schema": 3, "commit": name, "device": {}, "versions": {}}
        self.data |= {"verdict": "not run", "calls": [], "steps": {}}
        if self.path.exists():
            self.data |= json.loads(self.path.read_text(encoding="utf-8"))
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.data["calls"].append({"command": command, "date": date, "commit": name, "steps": []})
        self.running.mkdir(exist_ok=True)
        for log in self.running.iterdir():  # of an earlier call that was killed
            self.file_log(log)

    def add(self, step: str, lines: list[Line], figures: Any, seconds: float) -> None:
        """Replace what an earlier call found in this step, and then the whole file."""
        found: list[Any] = [(line.name, VERDICTS[line.kept], line.detail) for line in lines]
        data = {"verdict": overall([verdict for _, verdict, _ in found]), "lines": found}
        self.data["steps"][step] = data | {"seconds": round(seconds, 1), "figures": figures}
        self.data["calls"][-1]["steps"].append(step)
        self.data["verdict"] = overall([s["verdict"] for s in self.data["steps"].values()])
        made = self.path.with_suffix(".tmp")
        made.write_text(json.dumps(self.data, indent=1) + "\n", encoding="utf-8")
        made.replace(self.path)

    def file_log(self, log: Path) -> None:
        with (self.folder / "log.txt").open("ab") as whole:
            whole.write(f"\n===== {log.stem}\n".encode() + log.read_bytes())
        log.unlink()

    def table(self) -> str:
        """A line for each promise, by step, with its figures or the reason."""
        lines = [f"{name}: {self.data[name]}" for name in ("commit", "device", "versions")]
        for step, found in self.data["steps"].items():
            lines.append(f"-- {step}, {found['seconds']:.0f} s")
            for name, verdict, detail in found["lines"]:
                lines.append(f"{verdict.upper():8} {name}. {' '.join(detail.split())[:400]}")
        return "\n".join(lines)
