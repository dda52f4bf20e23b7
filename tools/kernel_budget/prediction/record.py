"""Predictions as JSON, and the comparison of two such records."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

from prediction import MODEL_VERSION
from prediction.chips import Chip
from prediction.model import predict
from prediction.program import Program

SLOWER = 0.98  # the least ratio that is not reported as slower
SHARES: tuple[Literal["share", "loop"], ...] = ("share", "loop")


class Row(TypedDict):
    kernel: str
    chip: str
    latency_ns: float
    share: float
    loop: float
    issue: float
    kb_in_flight: float
    us: float


class Record(TypedDict):
    """`model` is MODEL_VERSION; `chips` has the figures that were used."""

    model: int
    commit: str
    elements: int
    chips: dict[str, dict[str, float | str]]
    predictions: list[Row]


def make_record(
    programs: Sequence[Program],
    chips: Mapping[str, Chip],
    latencies_ns: Sequence[float],
    elements: int,
    commit: str,
) -> Record:
    rows: list[Row] = []
    used: dict[str, dict[str, float | str]] = {}
    for name, chip in chips.items():
        for program in sorted(programs, key=lambda p: p.name):
            if program.arch.rstrip("af") != chip.arch:
                continue
            used[name] = {
                "name": chip.name, "arch": chip.arch, "sms": chip.sms, "ghz": chip.ghz,
                "copy_tb_s": chip.copy_tb_s,
            }  # fmt: skip
            found = predict(program, chip, latencies_ns, elements)
            for latency, p in zip(latencies_ns, found, strict=True):
                rows.append(
                    {
                        "kernel": program.name, "chip": name, "latency_ns": latency,
                        "share": round(p.share, 4), "loop": round(p.loop, 4),
                        "issue": round(p.issue, 3),
                        "kb_in_flight": round(p.kb_in_flight, 1), "us": round(p.us, 2),
                    }
                )  # fmt: skip
    return {
        "model": MODEL_VERSION,
        "commit": commit,
        "elements": elements,
        "chips": used,
        "predictions": rows,
    }


def dump(record: Record) -> str:
    """JSON with a line for each prediction."""
    head = {k: v for k, v in record.items() if k != "predictions"}
    text = json.dumps(head, indent=2).removesuffix("\n}")
    rows = ",\n".join("    " + json.dumps(row) for row in record["predictions"])
    return f'{text},\n  "predictions": [\n{rows}\n  ]\n}}\n'


def compared(old: Record, new: Record) -> tuple[list[str], list[str]]:
    """A line for each row that both have, and the lines of rows that became slower."""
    was = {_key(row): row for row in old["predictions"]}
    lines, slower = [], []
    for row in new["predictions"]:
        before = was.get(_key(row))
        if before is None or old["elements"] != new["elements"]:
            continue
        ratios = {what: row[what] / before[what] for what in SHARES}
        line = f"{row['chip']:8} {row['kernel']:34} {row['latency_ns']:6.0f} ns"
        for what, ratio in ratios.items():
            line += f"  {what} {before[what]:.3f} -> {row[what]:.3f} x {ratio:.3f}"
        if min(ratios.values()) < SLOWER:
            line += "  SLOWER"
            slower.append(line)
        lines.append(line)
    return lines, slower


def _key(row: Row) -> tuple[str, str, float]:
    return row["kernel"], row["chip"], row["latency_ns"]
