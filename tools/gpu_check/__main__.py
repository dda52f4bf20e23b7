"""Checks the promises of vae_fused on a machine with a GPU, and records the measurements.

    python -m tools.gpu_check [first]   everything, in 240 s, offline
    python -m tools.gpu_check again     what failed or was not run, in 200 s
    python -m tools.gpu_check bundle    without a GPU: prepares the files that such a machine lacks

The results are in one folder, benchmarks/results/gpu-DEVICE-COMMIT/, and are on disk before the
next step begins. A step that cannot run is "not run", which is not a pass. The exit status is 0 if
everything passed, 1 if something failed, 2 without a GPU, and 3 if something was not run.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path

from . import ROOT, bundle, commands
from .report import STATUS, Line, Report, commit, new_folder
from .steps import Steps

# Seconds of 240, the most important step for a first run on a GPU first. A step also gets what
# earlier ones left, and one that hangs takes nothing from later ones.
SHARES = {
    "machine": 34, "smoke": 20, "device-tests": 70, "bandwidth": 22, "likelihoods": 14,
    "sanitizers": 34, "counters": 18, "training-step": 20, "other-tests": 4,
}  # fmt: skip
RESERVE = 10.0  # seconds for the end of the run


def run_steps(steps: Steps, names: list[str], budget: float) -> None:
    start, deadline, total = time.monotonic(), 0.0, sum(SHARES[name] for name in names)
    for name in names:
        deadline += (budget - RESERVE) * SHARES[name] / total
        begun = time.monotonic() - start
        print(f"[{begun:4.0f} s] {name}, at most {deadline - begun:.0f} s", flush=True)
        try:
            lines, figures = steps.step(name, deadline - begun)
        except Exception as error:  # affects only this step
            lines, figures = [Line(name, None, f"{type(error).__name__}: {error}")], None
        steps.report.add(name, lines, figures, time.monotonic() - start - begun)


def call(args: argparse.Namespace, budget: float) -> int:
    """The first call, or a later call that continues with the newest results."""
    if not (device := commands.device()):
        print("no GPU: nvidia-smi names none")
        return STATUS["no gpu"]
    name, out = commit(bundle.load()[0].get("commit", "")), args.out.resolve()
    found = sorted(out.glob("gpu-*/report.json"), key=lambda path: path.stat().st_mtime)
    if (again := args.command == "again") and not found:
        sys.exit(f"no earlier call has left results in {out}")
    folder = found[-1].parent if again else new_folder(out, device["name"], name)
    report = Report(folder, " ".join(sys.argv[1:]), name)
    report.data["device"] = device
    done = {name for name, step in report.data["steps"].items() if step["verdict"] == "pass"}
    wanted = {*(args.only or SHARES)} - done | {"machine"}  # which chooses the package
    with tempfile.TemporaryDirectory(prefix="vae_fused-gpu-") as scratch:
        steps = Steps(report, Path(scratch), args.device, args.tests)
        steps.start("clocks", commands.WATCH)
        try:
            run_steps(steps, [name for name in SHARES if name in wanted], budget)
        finally:
            for running in [*commands.Running.every]:
                steps.end(running, 0)
    report.running.rmdir()
    print(f"{report.table()}\n\n{report.data['verdict']}: {folder}")
    return STATUS[report.data["verdict"]]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.gpu_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("command", nargs="?", default="first", choices=("first", "again", "bundle"))
    add("--out", type=Path, default=ROOT / "benchmarks" / "results", help="parent of the folder")
    add("--budget", type=float, help="seconds")
    add("--only", nargs="+", choices=SHARES, help="names of steps")
    add("--device", default="cuda", help=argparse.SUPPRESS)  # this and the next are for tests
    add("--tests", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.command != "bundle":
        return call(args, args.budget or {"first": 240.0, "again": 200.0}[args.command])
    print(bundle.make())
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # children end with this process
    sys.exit(main())
