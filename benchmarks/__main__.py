"""Times the fused latent against other implementations, and records the results.

    python -m benchmarks                        everything, some minutes; table, JSON
    python -m benchmarks --quick                under a minute
    python -m benchmarks --case plain rssm --dtype bfloat16 --contender vae_fused eager
    python -m benchmarks --compare old.json     the changes since an older run
    python -m benchmarks --show old.json        prints an older table, without measuring
    python -m benchmarks.plot FILE.json         figures

Every contender is checked against float64 before it is timed. A contender with wrong results is
reported and not timed. The JSON is written to benchmarks/results or to --json, and rewritten after
each case. With a selection of cases it is written only if --json is given. The exit status is 0, or
1 if vae_fused is wrong or was selected but not measured, 2 for bad arguments, 130 if interrupted.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks import cases, machine, measuring, report, running, training
from benchmarks.cases import Case
from benchmarks.contenders import CONTENDERS, Contender, Unable
from benchmarks.training import Training
from vae_fused import _ext

LARGEST = {"cpu": 24, "cuda": 28}  # log2 of elements
BUDGET = {"cpu": 900.0, "cuda": 480.0}
SECONDS = {"cpu": 4.0, "cuda": 1.0}
QUICK = {"seconds": 0.8, "budget": 50.0}


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = found.add_argument
    add("--quick", action="store_true", help="small cases, without torch.compile")
    families = ", ".join([*cases.FAMILIES, *training.TRAININGS])
    add("--case", nargs="+", metavar="CASE", help=f"{families}, or parts of a case's name")
    add("--contender", nargs="+", metavar="NAME", choices=CONTENDERS, help=", ".join(CONTENDERS))
    add("--dtype", nargs="+", choices=cases.DTYPES, help="float32; on CUDA a few in bfloat16, too")
    add("--device", choices=("cpu", "cuda"), help="default cuda, where torch and vae_fused have it")
    add("--largest", type=int, metavar="N", help="at most 2^N elements; default 24, on CUDA 28")
    add("--seconds", type=float, help="of rounds for each case; at least 7 are made")
    add("--budget", type=float, help="seconds after which no other case begins")
    add("--threads", type=int, help="of torch on the CPU; default: torch's")
    add("--json", type=Path, metavar="FILE", help="where to write the results")
    add("--plot", action="store_true", help="draw figures beside the JSON; needs matplotlib")
    add("--compare", type=Path, metavar="FILE", help="a JSON of an earlier run")
    add("--show", type=Path, metavar="FILE", help="print this JSON instead of measuring")
    add("--list", action="store_true", help="cases and contenders; nothing is measured")
    return found


class Progress:
    """A progress bar on standard error, shown only on a terminal."""

    def __init__(self, total: int) -> None:
        self.total, self.began, self.drawn = total, time.perf_counter(), sys.stderr.isatty()
        self.next = 0.0

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.began

    def draw(self, done: float, name: str) -> None:
        if self.drawn and self.elapsed >= self.next:
            self.next = self.elapsed + 0.2
            bar = "#" * round(40 * done / self.total)
            text = f"\r|{bar:40}| {self.elapsed:4.0f} s  {name}"
            print(f"{text[:WIDTH]:{WIDTH}}", end="", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Print to standard output in place of the bar."""
        if self.drawn:
            print(f"\r{'':{WIDTH}}\r", end="", file=sys.stderr, flush=True)
        print(text, flush=True)


WIDTH = report.WIDTH - 1  # width of the bar: a line that fills the terminal would wrap


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() and _ext.has_cuda else "cpu"


def chosen(args: argparse.Namespace) -> list[Case | Training]:
    """The cases that --case, --quick, --dtype and --largest select, ordered for a time budget."""
    first, others = [], []
    for dtype in args.dtype or ["float32"]:
        found = cases.cases(args.largest, dtype)
        first += found[: cases.QUICK]
        others += found[cases.QUICK :]
    if args.device == "cuda" and not args.dtype:
        first += cases.few(args.largest, "bfloat16")
    jobs: list[Any] = [*first, *training.TRAININGS.values(), *([] if args.quick else others)]
    return [job for job in jobs if not args.case or any(part in job.name for part in args.case)]


def contenders(args: argparse.Namespace) -> list[Contender]:
    if args.contender:
        return [c for c in CONTENDERS.values() if c.name in args.contender]
    return [c for c in CONTENDERS.values() if not (args.quick and c.slow_start)]


def run(args: argparse.Namespace, data: dict[str, Any], path: Path | None) -> int:
    """Measure the selected cases, and print and write each result as it arrives."""
    jobs, against, clock = chosen(args), contenders(args), measuring.clock_for(args.device)
    fewest = 3 if args.quick else measuring.FEWEST
    progress = Progress(len(jobs))
    for done, job in enumerate(jobs):

        def tick(share: float, done: int = done, name: str = job.name) -> None:
            progress.draw(done + share, name)

        tick(0.0)
        try:
            if progress.elapsed > args.budget:
                raise Unable(f"the budget of {args.budget:.0f} s was spent")
            setting = (against, args.device, clock, args.seconds, tick, fewest)
            if isinstance(job, Case):
                row = running.measure(job, *setting)
                data["results"].append(row)
                progress.say(report.table(row) + "\n")
            else:
                row = training.measure(job, *setting)
                data["training"].append(row)
                progress.say(report.training_table(row) + "\n")
        except KeyboardInterrupt:
            progress.say("stopped")
            return 130
        except Exception as error:  # recorded; the other cases continue
            data["not_run"][job.name] = running.reason(error)
            progress.say(report.not_run(job.name, data["not_run"][job.name]) + "\n")
        data["seconds"] = round(progress.elapsed, 1)
        if path:
            report.write(data, path)
    return status(data, "vae_fused" in [c.name for c in against])


def status(data: dict[str, Any], asked: bool) -> int:
    rows = [*data["results"], *data["training"]]
    wrong = any("vae_fused" in row["wrong"] for row in rows)
    measured = any("vae_fused" in row["contenders"] for row in rows)
    return int(wrong or (asked and not measured))


def show_list() -> None:
    print("cases")
    for family, about in cases.FAMILIES.items():
        shapes = ", ".join("x".join(map(str, shape)) for shape in about.shapes)
        print(f"  {family:12}{about.what}")
        print(textwrap.fill(shapes, 84, initial_indent=" " * 14, subsequent_indent=" " * 14))
    for item in training.TRAININGS.values():
        print(f"  {item.name:12}a training step: {item.what}")
    print("contenders\n" + "\n".join(f"  {c.name:24}{c.what}" for c in CONTENDERS.values()))


def complete(args: argparse.Namespace, found: argparse.ArgumentParser) -> None:
    """Fill in defaults, and reject invalid combinations."""
    args.device = args.device or default_device()
    if args.device == "cuda" and not torch.cuda.is_available():
        found.error("torch sees no GPU here")
    if args.threads:
        torch.set_num_threads(args.threads)
    for name, usual in (("seconds", SECONDS), ("budget", BUDGET)):
        if getattr(args, name) is None:
            setattr(args, name, QUICK[name] if args.quick else usual[args.device])
    args.largest = args.largest or LARGEST[args.device]
    if not chosen(args):
        found.error(f"no case is like {' or '.join(args.case)}; --list tells them")
    if args.plot and not args.json and (args.case or args.contender or args.dtype):
        found.error("--plot wants --json where cases, contenders or dtypes are chosen")


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    found = parser()
    args = found.parse_args(argv)
    if args.list:
        show_list()
        return 0
    try:
        old, shown = (report.read(path) if path else None for path in (args.compare, args.show))
    except report.NotAReport as error:
        found.error(str(error))
    if shown:
        print(report.tables(shown))
        if old:
            print("\n" + report.comparison(shown, old))
        return 0
    complete(args, found)
    settings = {k: getattr(args, k) for k in ("quick", "seconds", "budget", "largest")}
    data = report.new(argv, args.device, settings)
    selected = args.case or args.contender or args.dtype
    path = args.json or (None if selected else report.default_path(data, args.quick))
    print(f"{machine.package()}\n{report.head(data)}\n\n{report.legend(args.device)}\n", flush=True)
    others = machine.Others()
    time.sleep(0.3)
    if (share := others.share() or 0.0) > report.DISTURBED:
        print(f"Other work takes {share:.0%} of the processors, for which several threads wait")
        print("in each operator: measure at rest, or with --threads 1.\n")
    with warnings.catch_warnings():  # warnings of other packages would break the bar
        warnings.simplefilter("ignore")
        code = run(args, data, path)
    if old:
        print(report.comparison(data, old) + "\n")
    if path:
        print(f"written: {path}")
    if args.plot and path:
        from benchmarks import plot

        plot.main([str(path)])
    return code


if __name__ == "__main__":
    sys.exit(main())
