"""The results of a run, in report.json. The file is complete after each step."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

PASS, FAIL, NOT_RUN = "pass", "fail", "not run"


def overall(verdicts: Collection[str]) -> str:
    """Combine verdicts. A part that was not run is no pass, and neither is an empty collection."""
    return next((found for found in (FAIL, NOT_RUN, PASS) if found in verdicts), NOT_RUN)


class Report:
    """The results of steps, which are added to any earlier results in the folder."""

    def __init__(self, folder: Path, steps: Iterable[str]) -> None:
        self.folder, self.path = folder, folder / "report.json"
        self.data: dict[str, Any] = {"schema": 4, "verdict": NOT_RUN, "steps": {}}
        if self.path.exists():
            self.data = json.loads(self.path.read_text(encoding="utf-8"))
        folder.mkdir(parents=True, exist_ok=True)
        for name in steps:
            self.data["steps"].setdefault(name, {"verdict": NOT_RUN, "lines": {}})

    def verdict(self, step: str) -> str:
        return str(self.data["steps"][step]["verdict"])

    def add(self, step: str, lines: dict[str, str], figures: dict[str, Any]) -> None:
        """Replace the verdicts on a step, and then rewrite the file."""
        found = {"verdict": overall(lines.values()), "lines": lines, "figures": figures}
        self.data["steps"][step] = found
        self.data["verdict"] = overall([*map(self.verdict, self.data["steps"])])
        scratch = self.path.with_suffix(".tmp")
        scratch.write_text(json.dumps(self.data, indent=1) + "\n", encoding="utf-8")
        scratch.replace(self.path)

    def table(self) -> str:
        rows = []
        for step, found in self.data["steps"].items():
            rows.append(f"{found['verdict'].upper():8} {step}")
            rows += [f"{verdict.upper():>16} {line}" for line, verdict in found["lines"].items()]
        return "\n".join([*rows, f"{self.data['verdict']}: {self.folder}"])
