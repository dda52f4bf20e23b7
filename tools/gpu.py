"""Checks the promises of vae_fused on a machine with a GPU, and records the measurements.

    python tools/gpu.py [first]     everything, in 240 s, offline
    python tools/gpu.py again       the steps that failed or were not run, in 200 s
    python tools/gpu.py bundle      without a GPU: prepares the files that such a machine lacks

The steps, in this order, each with its share of the time:

    machine             a description of the machine: GPU, driver, clocks, versions
    probe correctness   a program without torch: kernels against the host's formulas
    probe bandwidth     the same program: the kernels and variants of them, beside yardsticks
    counters            ncu on the headline kernels, stall reasons included; the report file is kept
    sanitizers          compute-sanitizer on small odd shapes
    smoke               a step of the package agrees with the CPU
    tests               the tests that run on the device
    bandwidth           the package's bytes per second over those of a copy and of the same streams
    likelihood          the same of likelihoods, and their losses against eager code
    step                a training step against eager code and torch.compile
    rest                the rest of the suite, in the time that is left

The results are in one folder, benchmarks/results/gpu-DEVICE-COMMIT/, and are on disk before the
next step begins. A step that cannot run is "not run", which is not a pass. The exit status is 0 if
everything passed, 1 if something failed, 2 without a GPU, 3 if nothing failed but something was
not run.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from gpu_checks import bundle, machine, probe, report
from gpu_checks.package import Package, Place, ask
from gpu_checks.report import ROOT, STATUS, WIDTH, Report, overall, summary, table
from gpu_checks.schedule import Deadlines, Step, run_steps
from gpu_checks.steps import Run

BUDGETS = {"first": 240.0, "again": 200.0}


def failed_tests(found: Report, most: int = 25) -> list[str]:
    """A line for each failed test, in addition to the one in the table."""
    lines = [
        f"{test.split('/')[-1]}: {reason}"[:WIDTH]
        for step in found.data["steps"].values()
        for test, reason in step["figures"].get("failed_tests", [])
    ]
    left = [f"... and {len(lines) - most} more"] if len(lines) > most else []
    return ["\nfailed tests", *lines[:most], *left] if lines else []


def remaining(steps: list[Step], found: Report) -> list[Step]:
    """The steps that did not pass in an earlier call, and the description of the machine."""
    done = found.data["steps"]

    def passed(step: Step) -> bool:
        promises = found.of(step.name)
        return step.name in done and all(p.verdict == report.PASS for p in promises)

    return [step for step in steps if step.name == "machine" or not passed(step)]


def results_folder(args: argparse.Namespace, made: bundle.Bundle, place: Place) -> Path | None:
    """The folder of this call's results; None, after printing why, if nothing has to be done."""
    name = machine.gpu_name()
    if not name:
        answer = ask(place)
        if not answer["gpus"] and args.device != "cpu":
            print(f"no GPU: nvidia-smi names none, and torch {answer.get('torch')} sees none here")
            return None
        name = str(answer.get("name", "cpu"))
    if args.command == "first":
        return report.new_folder(args.out, name, *report.commit(made.manifest.get("commit", "")))
    found: Path | None = args.results or report.newest_folder(args.out)
    if found is None:
        print(f"no earlier call has left results in {args.out}")
    elif args.results and found.parent != args.out:
        return Path(shutil.copytree(found, args.out / found.name, dirs_exist_ok=True))
    return found


def call(args: argparse.Namespace, scratch: Path) -> int:
    """The first call, or a later call that continues with the results of an earlier one."""
    made = bundle.load()
    place = Place(scratch, scratch, args.device)
    folder = results_folder(args, made, place)
    if folder is None:
        return STATUS["no gpu"]
    found = Report(folder, scratch)
    place.logs = found.running
    name, dirty = report.commit(made.manifest.get("commit", ""))
    found.data |= {"commit": name, "dirty": dirty}
    found.begin(" ".join(["python tools/gpu.py", *sys.argv[1:]]), args.budget)
    run = Run(place, found, made, Package(place), args.exponent, args.tests)
    steps = run.steps() if args.command == "first" else remaining(run.steps(), found)
    if args.only:
        steps = [step for step in steps if step.name in ("machine", *args.only)]
    deadlines = Deadlines(steps, args.budget)

    def say(line: str) -> None:
        print(f"[{deadlines.elapsed():5.0f} s] {line}"[:WIDTH], flush=True)

    clocks = machine.watch(found.call_logs / "clocks.csv")
    try:
        run_steps(steps, deadlines, found, say)
    finally:
        for process in (clocks, run.package.build):
            if process is not None:
                process.stop()
        found.close(deadlines.elapsed())
        print_results(found, deadlines.elapsed())
    return STATUS[overall(found.promises)]


def print_results(found: Report, seconds: float) -> None:
    device, versions = found.data["device"], found.data["versions"]
    dirty = " with changes" if found.data["dirty"] else ""
    print(
        f"\n{device.get('name', 'unknown device')}, driver {device.get('driver_version')}", end=""
    )
    print(f", CUDA {versions.get('torch_cuda')}, torch {versions.get('torch')}", end="")
    print(f", commit {found.data['commit']}{dirty}")
    print(table(found.promises))
    for line in probe.table(found.data["steps"].get("probe bandwidth", {}).get("figures", {})):
        print(line)
    for line in failed_tests(found):
        print(line)
    print(f"\n{summary(found.promises)}; {seconds:.0f} s; {found.folder}", flush=True)


def make_bundle(args: argparse.Namespace) -> int:
    try:
        parts = bundle.Parts(args.package, args.probe, args.modules, args.arch)
        print(bundle.make(args.out, args.folder, parts, args.limit))
    except bundle.BundleError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    hidden = argparse.SUPPRESS  # used by the tests of this tool
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = made.add_subparsers(dest="command", required=True)
    for name, budget in BUDGETS.items():
        one = commands.add_parser(name)
        one.add_argument("--budget", type=float, default=budget, help=f"seconds ({budget:.0f})")
        one.add_argument("--out", type=Path, default=report.RESULTS, help="parent of the folder")
        one.add_argument("--device", default="cuda", help=hidden)
        one.add_argument("--exponent", type=int, default=24, help=hidden)
        one.add_argument("--tests", default="", help=hidden)
        one.add_argument("--only", nargs="+", help="names of steps, beside the machine")
        if name == "again":
            one.add_argument("--results", type=Path, help="the earlier call's folder (the newest)")
    one = commands.add_parser("bundle")
    one.add_argument("--out", type=Path, default=ROOT / "build" / "gpu-bundle.tar.gz")
    one.add_argument("--folder", type=Path, default=bundle.FOLDER, help="the parts, unpacked")
    one.add_argument("--package", type=Path, help="folder of a compiled vae_fused (the installed)")
    one.add_argument("--probe", type=Path, help="the probe's program (built)")
    one.add_argument("--modules", type=Path, help="folder of test modules (downloaded)")
    one.add_argument("--arch", default="sm_90", help="what the probe is built for (sm_90)")
    one.add_argument("--limit", type=int, default=bundle.LIMIT, help="bytes (64,000,000)")
    return made


def main(argv: list[str]) -> int:
    if "--driver" in argv:
        from gpu_checks import driver

        driver.main(argv)
        return 0
    if not argv or (argv[0].startswith("-") and argv[0] not in ("-h", "--help")):
        argv = ["first", *argv]
    args = parser().parse_args(argv)
    if args.command == "bundle":
        return make_bundle(args)
    if getattr(args, "results", None):
        args.results = args.results.resolve()
    args.out = args.out.resolve()
    scratch = Path(tempfile.mkdtemp(prefix="vae_fused-gpu-"))
    try:
        return call(args, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
