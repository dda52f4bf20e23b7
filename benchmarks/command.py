"""The parts that the benchmark commands share: options, the loop over cases, and its output."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from benchmarks import record, tables
from benchmarks.cases import Case, Unable, reason
from benchmarks.latents import Latent
from vae_fused import _ext

N = TypeVar("N", Case, Latent)


def described(module: str, about: str | None) -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(f"python -m {module}", description=about, formatter_class=layout)


def parser(module: str, about: str | None, seconds: str) -> argparse.ArgumentParser:
    """Return a parser with the options of all commands that measure."""
    found = described(module, about)
    add = found.add_argument
    add("--case", "--cases", nargs="+", metavar="PART", help="parts of names; commas separate, too")
    add("--device", choices=("cpu", "cuda"), help="default cuda, where torch and vae_fused have it")
    add("--seconds", type=float, help=f"of rounds for each case; default {seconds}")
    add("--threads", type=int, help="of torch on the CPU; default: torch's")
    add("--json", type=Path, metavar="FILE", help="where to write the results")
    add("--show", type=Path, metavar="FILE", help="print this JSON instead of measuring")
    add("--list", action="store_true", help="the cases; nothing is measured")
    return found


def selected(cases: Iterable[N], words: Sequence[str] | None) -> list[N]:
    """Return the cases whose names contain one of the parts."""
    parts = [part.strip() for word in words or [""] for part in word.split(",")]
    return [case for case in cases if any(part in case.name for part in parts)]


def complete(args: argparse.Namespace, found: argparse.ArgumentParser) -> None:
    """Fill in the default device, and set the number of threads if it is given."""
    has_cuda = torch.cuda.is_available()
    args.device = args.device or ("cuda" if has_cuda and _ext.has_cuda else "cpu")
    if args.device == "cuda" and not has_cuda:
        found.error("torch sees no GPU here")
    if args.threads:
        torch.set_num_threads(args.threads)


def read(found: argparse.ArgumentParser, path: Path | None, module: str) -> record.Data | None:
    """Read the record that an option names. Return None if the option is not given."""
    try:
        return record.read(path, module) if path else None
    except record.NotARecord as error:
        found.error(str(error))


def run(
    cases: Sequence[N], measure: Callable[[N], str], data: record.Data, path: Path | None,
    budget: float = math.inf,
) -> int:  # fmt: skip
    """Measure the cases, and print and write each result as it arrives.

    ``measure`` adds its rows to ``data`` and returns their table. ``run`` returns 0, or 1 if a case
    fails, or 130 if the run is interrupted.
    """
    began, status = time.perf_counter(), 0
    for case in cases:
        try:
            if time.perf_counter() - began > budget:
                raise Unable(f"the budget of {budget:.0f} s was spent")
            with _quiet():
                text = measure(case)
        except KeyboardInterrupt:
            print("stopped")
            return 130
        except Exception as error:  # recorded; the other cases continue
            data["not_run"][case.name] = reason(error)
            text = tables.not_run(data)[-1]
            status = status if isinstance(error, Unable) else 1
        print(text, flush=True)
        data["seconds"] = round(time.perf_counter() - began, 1)
        if path:
            record.write(data, path)
    if path:
        print(f"written: {path}")
    return status


def main(
    module: str, about: str | None, argv: list[str] | None, cases: Sequence[Case], seconds: float,
    measure: Callable[[Case, record.Data, str, float], str], text: Callable[[record.Data], str],
    head: str,
) -> int:  # fmt: skip
    """Run the command for a list of cases. ``text`` returns the table of a record."""
    argv = sys.argv[1:] if argv is None else argv
    found = parser(module, about, f"{seconds:.0f}")
    args = found.parse_args(argv)
    if data := read(found, args.show, module):
        print(text(data))
        return 0
    chosen = selected(cases, args.case)
    if not chosen:
        found.error(f"no case is like {' or '.join(args.case)}; --list names them")
    if args.list:
        print("\n".join(f"{case.name:32}{case.package:16}{case.what}" for case in chosen))
        return 0
    complete(args, found)
    seconds = seconds if args.seconds is None else args.seconds
    packages = sorted({case.package for case in cases} - {""})
    data = record.new(module, argv, args.device, {"seconds": seconds}, packages)
    path = args.json or (None if args.case else record.default_path(module, data))
    print(f"{record.package()}\n{tables.head(data)}\n\n{head}", flush=True)
    return run(chosen, lambda case: measure(case, data, args.device, seconds), data, path)


@contextlib.contextmanager
def _quiet() -> Iterator[Any]:
    """Suppress the output and the warnings of packages while they set up a model."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
