"""Checks the promises of vae_fused on a machine with a GPU, and records the measurements.

    python -m tools.gpu_check [first]   everything, in 240 s, offline
    python -m tools.gpu_check again     what failed or was not run, in 200 s

The results are written to one folder, benchmarks/results/gpu-DATE-DEVICE/, before the next step
begins. A step that cannot run is reported as "not run", which is not a pass. The exit status is 0
if everything passed, 1 if something failed, 2 without a GPU, and 3 if something was not run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .report import FAIL, NOT_RUN, PASS, Report
from .steps import STEPS, Step, judge

ROOT = Path(__file__).resolve().parents[2]
BUDGET = {"first": 240.0, "again": 200.0}  # seconds
RESERVE = 10.0  # seconds for the end of the run
PATIENCE = 5.0  # seconds that a command may take to write its results after an interrupt
VARIABLES = {
    "ROOT": str(ROOT),
    "PYTHON": sys.executable,
    "PYTEST_ADDOPTS": f"-c '{ROOT}/pyproject.toml' -q --tb=short -p no:cacheprovider",
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # plugins of other projects take seconds to import
}


def finish(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """Wait for a command, interrupt its process group shortly before the limit, and end the group.

    Returns the exit status, or None if the command was interrupted.
    """
    patience = min(PATIENCE, seconds / 4)
    try:
        return process.wait(seconds - patience)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run(name: str, step: Step, seconds: float, folder: Path) -> tuple[dict[str, str], Any]:
    """Run a command whose output goes to log.txt. Return the verdicts and the figures."""
    env = os.environ | VARIABLES | {"OUT": str(folder), "STEP": name}
    env["PATH"] = os.environ["PATH"] + ":/usr/local/cuda/bin"  # compute-sanitizer and ncu
    with tempfile.TemporaryDirectory() as scratch, (folder / "log.txt").open("ab+", 0) as log:
        for package in ("benchmarks", "build_support"):
            Path(scratch, package).symlink_to(ROOT / package)
        log.write(f"\n===== {name}\n".encode())
        begin = log.tell()
        process = subprocess.Popen(
            step.command, shell=True, cwd=scratch, env=env, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
        status = finish(process, seconds)
        log.seek(begin)
        last = log.read().decode("utf-8", "replace").strip().split("\n")[-1]
        written = Path(scratch, "figures.json")
        figures = json.loads(written.read_text(encoding="utf-8")) if written.exists() else {}
    return judge(step, status, last[:200], figures), figures


def check(steps: dict[str, Step], report: Report, budget: float) -> None:
    """Run the first step. If it passes, run the other steps that have not passed yet.

    A step also gets the time that earlier steps left, and a step that hangs takes none from others.
    """
    first, *others = steps
    names = [first, *(name for name in others if report.verdict(name) != PASS)]
    start, deadline, total = time.monotonic(), 0.0, sum(steps[name].share for name in names)
    for name in names:
        deadline += (budget - RESERVE) * steps[name].share / total
        begun = time.monotonic() - start
        print(f"[{begun:4.0f} s] {name}, at most {deadline - begun:.0f} s", flush=True)
        try:
            lines, figures = run(name, steps[name], deadline - begun, report.folder)
        except Exception as error:  # affects only this step
            lines, figures = {repr(error): NOT_RUN}, {}
        report.add(name, lines, figures)
        if report.verdict(first) != PASS:
            return


def main() -> int:
    layout, program = argparse.RawDescriptionHelpFormatter, "python -m tools.gpu_check"
    parser = argparse.ArgumentParser(program, description=__doc__, formatter_class=layout)
    add = parser.add_argument
    add("command", nargs="?", default="first", choices=BUDGET)
    add("--out", type=Path, default=ROOT / "benchmarks" / "results", help="parent of the folder")
    add("--budget", type=float, help="seconds")
    add("--only", nargs="+", default=[*STEPS], choices=STEPS, help="steps after the first one")
    args = parser.parse_args()
    status, names = subprocess.getstatusoutput("nvidia-smi --query-gpu=name --format=csv,noheader")
    if status != 0:
        print("no GPU: nvidia-smi names none")
        return 2
    device = re.sub(r"\W+", "-", names.split("\n")[0].lower()).removeprefix("nvidia-")
    folder = args.out / f"gpu-{datetime.now(timezone.utc):%Y%m%d-%H%M%S}-{device}"
    if args.command == "again":  # without earlier results this is the first call
        folder = max(args.out.glob("gpu-*"), default=folder)
    first = next(iter(STEPS))
    steps = {name: step for name, step in STEPS.items() if name in (first, *args.only)}
    report = Report(folder.resolve(), steps)
    check(steps, report, args.budget or BUDGET[args.command])
    print(report.table())
    return {PASS: 0, FAIL: 1, NOT_RUN: 3}[report.data["verdict"]]


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the command ends with this process
    # A shell makes its background processes ignore interrupts, and commands inherit this setting.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
