"""Times whole training steps of released packages, unmodified and with ``vae_fused``.

    python -m benchmarks.steps                       all cases, ten minutes; table, JSON
    python -m benchmarks.steps --cases scvi,pythae   cases whose names contain one of these
    python -m benchmarks.steps --list                the cases, without measuring
    python -m benchmarks.steps --show FILE.json      prints an older table

Before timing, the losses and all gradients of both variants are compared for the same noise. The
variants then run in turn in this process, as do the latent and the likelihood alone. The table
names packages that are not installed: ``pip install -r requirements/steps.txt``. The JSON is
written to benchmarks/results or to --json. With a selection it is written only if --json is given.
The exit status is 0, or 1 if a case fails or its loss differs from its package's.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine, report
from benchmarks.running import reason
from benchmarks.steps import images, sequences, single_cell, table, weights
from benchmarks.steps.measure import measure
from benchmarks.steps.work import Case, NotInstalled

CASES: list[Case] = [
    *single_cell.CASES,
    *images.CASES,
    *weights.CASES,
    *sequences.CASES,
]
SECONDS = 20.0


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="python -m benchmarks.steps",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = found.add_argument
    add("--cases", metavar="PART,PART", help="parts of names of cases, separated by commas")
    add("--seconds", type=float, default=SECONDS, help="of rounds for each case; at least 7 rounds")
    add("--threads", type=int, help="of torch; default: torch's")
    add("--json", type=Path, metavar="FILE", help="where to write the results")
    add("--show", type=Path, metavar="FILE", help="print this JSON instead of measuring")
    add("--list", action="store_true", help="the cases; nothing is measured")
    return found


def chosen(parts: str | None) -> list[Case]:
    """The cases whose names contain one of the parts."""
    wanted = [part.strip() for part in (parts or "").split(",")]
    return [case for case in CASES if any(part in case.name for part in wanted)]


def run(
    cases: list[Case], data: dict[str, Any], path: Path | None, seconds: float, fewest: int = 7
) -> int:
    """Measure the cases, printing and writing as they are done."""
    began, status = time.perf_counter(), 0
    for case in cases:
        try:
            with _quiet():
                row = measure(case, seconds, fewest)
        except NotInstalled as error:
            data["not_run"][case.name] = str(error)
        except Exception as error:  # noted: the other cases go on
            data["not_run"][case.name] = reason(error)
            status = 1
        else:
            data["steps"].append(row)
        why = data["not_run"].get(case.name)
        print(f"{case.name}: {why}" if why else table.terminal(row), flush=True)
        data["seconds"] = round(time.perf_counter() - began, 1)
        if path:
            report.write(data, path)
    return status


@contextlib.contextmanager
def _quiet() -> Any:
    """Without what packages print and warn about while they set up a model."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    found = parser()
    args = found.parse_args(argv)
    if args.show:
        try:
            data = table.read(args.show)
        except report.NotAReport as error:
            found.error(str(error))
        print(f"{report.head(data)}\n\n{table.whole(data)}")
        return 0
    cases = chosen(args.cases)
    if not cases:
        found.error(f"no case is like {args.cases}; --list names them")
    if args.list:
        print("\n".join(f"{case.name:24}{case.package:16}{case.what}" for case in cases))
        return 0
    if args.threads:
        torch.set_num_threads(args.threads)
    data = table.new(argv, {"seconds": args.seconds}, sorted({c.package for c in CASES} - {""}))
    path = args.json or (None if args.cases else table.default_path(data))
    print(f"{machine.package()}\n{report.head(data)}\n\n{table.LEGEND}\n\n{table.HEAD}", flush=True)
    status = run(cases, data, path, args.seconds)
    if path:
        print(f"written: {path}")
    return status


if __name__ == "__main__":
    sys.exit(main())
