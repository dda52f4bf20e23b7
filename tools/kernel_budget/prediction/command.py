"""Predicts each kernel's share of a copy's bandwidth from its machine code alone.

    python -m tools.kernel_budget predict FILE...                         .cubin files or a _C*.so
    python -m tools.kernel_budget predict FILE... --kernel 'forward<BF'   kernels with such a name
    python -m tools.kernel_budget predict FILE... --chip b200 --latency 530 660
    python -m tools.kernel_budget predict FILE... --json > RECORD         a record
    python -m tools.kernel_budget predict FILE... --compare RECORD        status 1 if one is slower

The output is a table for each chip. These are predictions: no GPU has confirmed the model, whose
assumptions are in __init__.py. Without --chip, each architecture is predicted for all its chips.
You need cuobjdump, as for the budget, and a C++ compiler, but neither a GPU nor torch.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..document import markdown
from ..record import json_text
from . import MODEL_VERSION
from .model import CHIPS, LATENCIES_NS, predict
from .simulation import Program, programs

SLOWER = 0.98  # the least ratio that is not reported as slower
Record = dict[str, Any]  # the version of the model, and a dict for each prediction


def make_record(
    found: Iterable[Program], chips: Sequence[str], latencies_ns: Sequence[float]
) -> Record:
    kernels = sorted(found, key=lambda program: program.name)
    rows = [
        {"kernel": program.name, "chip": chip, "latency_ns": latency,
         "loop": round(predict(program, CHIPS[chip], latency), 4)}
        for chip, program in itertools.product(chips, kernels)
        if program.arch.rstrip("af") == CHIPS[chip].arch
        for latency in latencies_ns
    ]  # fmt: skip
    return {"model": MODEL_VERSION, "predictions": rows}


def dump(record: Record) -> str:
    """JSON with a line for each prediction."""
    return json_text(record, 2) + "\n"


def compared(old: Record, new: Record) -> Iterator[str]:
    """A line for each row that both have. It ends with SLOWER if the new row is slower."""
    was = {(r["kernel"], r["chip"], r["latency_ns"]): r for r in old["predictions"]}
    for row in new["predictions"]:
        if before := was.get((row["kernel"], row["chip"], row["latency_ns"])):
            ratio = row["loop"] / before["loop"]
            line = f"{row['chip']:8} {row['kernel']:34} {row['latency_ns']:6.0f} ns"
            line += f"  {before['loop']:.3f} -> {row['loop']:.3f} x {ratio:.3f}"
            yield line + "  SLOWER" * (ratio < SLOWER)


def tables(record: Record) -> str:
    """A table for each chip: a row for each kernel, a column for each latency."""
    parts = [
        f"Predictions, not measurements (issue model {record['model']}): the share of a copy's "
        "bandwidth that a hot loop reaches, by the latency of a load. Launches approach it as "
        "tensors grow. The clock and the copy's bandwidth are assumptions.\n"
    ]
    rows = record["predictions"]
    for chip in dict.fromkeys(row["chip"] for row in rows):
        latencies = sorted({row["latency_ns"] for row in rows if row["chip"] == chip})
        cells = []
        for kernel in sorted({row["kernel"] for row in rows if row["chip"] == chip}):
            of = [row for row in rows if (row["chip"], row["kernel"]) == (chip, kernel)]
            of.sort(key=lambda row: row["latency_ns"])
            cells.append([f"`{kernel}`", *(f"{row['loop']:.2f}" for row in of)])
        name, _, sms, ghz, copy, _ = CHIPS[chip]
        parts.append(f"**{name}** ({sms} SMs, {ghz} GHz, copy {copy} TB/s)\n")
        parts.append(markdown(["kernel", *(f"{ns:.0f} ns" for ns in latencies)], cells))
    return "\n".join(parts)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("predict", description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--kernel", default="", help="part of the names of the kernels")
    parser.add_argument("--chip", nargs="+", choices=sorted(CHIPS), default=list(CHIPS))
    parser.add_argument("--latency", nargs="+", type=float, default=list(LATENCIES_NS), help="ns")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--compare", type=Path, metavar="RECORD")
    given = parser.parse_args(arguments)
    archs = {CHIPS[chip].arch for chip in given.chip}
    found = [p for file in given.files for p in programs(file, given.kernel, archs)]
    record = make_record(found, given.chip, given.latency)
    if not record["predictions"]:
        wrong = "the files must contain a kernel for these chips, got none"
        print(f"predict: error: {wrong}", file=sys.stderr)
        return 2
    if not given.compare:
        print(dump(record) if given.json else tables(record), end="")
        return 0
    old: Record = json.loads(given.compare.read_text())
    if old["model"] != MODEL_VERSION:
        wrong = f"{given.compare} must be of model {MODEL_VERSION}, got {old['model']}"
        print(f"predict: error: {wrong}", file=sys.stderr)
        return 2
    lines = list(compared(old, record))
    print("\n".join(lines))
    return int(any(line.endswith("SLOWER") for line in lines))
