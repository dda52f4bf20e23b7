"""Predicts each kernel's share of a copy's bandwidth from its machine code alone.

    python tools/predict.py FILE...                          .cubin files or a _C*.so
    python tools/predict.py FILE... --kernel 'forward<BF'    kernels whose names contain this
    python tools/predict.py FILE... --chip b200 --latency 530 660 --clock 1.9 --elements 2^22
    python tools/predict.py FILE... --markdown               a table by kernel, chip and latency
    python tools/predict.py FILE... --json > RECORD          a record of the predictions
    python tools/predict.py FILE... --compare RECORD         ratios to a record; status 1 if slower

`share` is that of a whole launch. `loop` is that of the hot loop alone with all resident warps in
it. These are predictions: no GPU has confirmed the model. tools/prediction/__init__.py documents
its assumptions. Without --chip, each architecture is predicted for all its chips. You need
cuobjdump, as for the budget, and a C++ compiler, but neither a GPU nor torch.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from prediction import MODEL_VERSION
from prediction.chips import CHIPS, LATENCIES_NS, Chip
from prediction.reading import programs
from prediction.record import Record, compared, dump, make_record
from prediction.table import markdown, plain


def _number(text: str) -> int:
    base, _, exponent = text.partition("^")
    return int(base) ** int(exponent) if exponent else int(text)


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--kernel", default="", help="part of the names of the kernels")
    parser.add_argument("--chip", nargs="+", choices=sorted(CHIPS), default=[])
    parser.add_argument("--latency", nargs="+", type=float, default=list(LATENCIES_NS), help="ns")
    parser.add_argument("--clock", type=float, help="GHz, instead of the chip's")
    parser.add_argument("--elements", type=_number, default=2**24)
    parser.add_argument("--commit", default="", help="what --json and --markdown call the source")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true")
    output.add_argument("--markdown", action="store_true")
    output.add_argument("--compare", type=Path, metavar="RECORD")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    asked = _arguments(arguments)
    chips: dict[str, Chip] = {name: CHIPS[name] for name in asked.chip or CHIPS}
    if asked.clock:
        chips = {n: dataclasses.replace(c, ghz=asked.clock) for n, c in chips.items()}
    archs = {chip.arch for chip in chips.values()}
    found = [p for file in asked.files for p in programs(file, asked.kernel, archs)]
    record: Record = make_record(found, chips, asked.latency, asked.elements, asked.commit)
    if not record["predictions"]:
        print(
            "predict: error: the files must contain a kernel for these chips, got none",
            file=sys.stderr,
        )
        return 2
    if asked.json:
        print(dump(record), end="")
    elif asked.markdown:
        print(markdown(record), end="")
    elif asked.compare:
        old: Record = json.loads(asked.compare.read_text())
        if old["model"] != MODEL_VERSION:
            wrong = f"{asked.compare} must be of model {MODEL_VERSION}, got {old['model']}"
            print(f"predict: error: {wrong}", file=sys.stderr)
            return 2
        lines, slower = compared(old, record)
        print("\n".join(lines))
        return 1 if slower else 0
    else:
        print(plain(record), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
