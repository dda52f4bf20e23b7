"""Holds vae_fused to its promises on a machine with a GPU, and writes down what it measured.

    python tools/gpu.py [--quick] [--budget SECONDS] [--out FOLDER] [--build | --no-build]

It tests the vae_fused with CUDA that this Python imports, or (if there is none, or with --build)
compiles this checkout to a folder of its own: offline, with what is installed. Then, in order of
importance and as far as the budget goes:

  suite, streams, memory, calls   the tests on the device
  sanitizers                      compute-sanitizer on a short list, beside the tests
  bandwidth                       bytes per second over those of a copy, in the same run
  step                            a training step against eager code and torch.compile
  counters                        ncu on both kernels
  rest                            the rest of the suite, on the CPU

What does not fit or cannot run is "not run", which is not a pass. The results are in one JSON file,
written anew after each stage. Exit status: 0 all passed, 1 something failed, 2 no GPU or nothing to
test, 3 nothing failed but something was not run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from gpu_checks import outside, suite
from gpu_checks.package import (
    EXTRA_MODULES,
    TEST_MODULES,
    Place,
    ask,
    build,
    missing_modules,
    usable,
)
from gpu_checks.report import (
    FAIL,
    NOT_RUN,
    PASS,
    ROOT,
    STATUS,
    WIDTH,
    Promise,
    Report,
    overall,
    summary,
    table,
)
from gpu_checks.run import Budget, Finished, Outcome, Stage, guarded, run_stages

# Tests that have "cuda" in their names and nothing to do with a device.
NOT_ON_DEVICE = ("test_build", "test_ext", "test_layering", "test_gpu_script", "test_gpu_measures")


def run_driver(place: Place, name: str, timeout: float, *more: str) -> tuple[Any, Finished]:
    """Runs a driver program; what it wrote (None: nothing), however it ended."""
    out = place.scratch / f"{name}.json"
    out.unlink(missing_ok=True)
    done = place.run(outside.driver(name, "--out", str(out), *more), timeout, name)
    try:
        return json.loads(out.read_text(encoding="utf-8")), done
    except (OSError, ValueError):
        return None, done


def measured(place: Place, name: str, timeout: float, *more: str) -> Outcome:
    """A measuring driver, judged by what it has measured before it ended."""
    from gpu_checks import measure  # imports torch

    rows, done = run_driver(place, name, timeout, *more)
    judges = {"bandwidth": measure.judge_bandwidth, "step": measure.judge_steps}
    promises = judges[name](rows or [])
    reason = "" if done.status == 0 else done.ended()
    figures: dict[str, Any] = {"rows": rows or []}
    if reason:
        figures["output"] = done.tail(30)
        detail = f"not run to its end: {reason}: {done.tail(2)}"
        promises.append(Promise(f"{name}: all measured", NOT_RUN, detail=detail))
    return Outcome(promises, figures, reason)


def smoke(place: Place, report: Report, timeout: float) -> Outcome:
    """Fills the head of the report; one step must agree with the CPU."""
    found, done = run_driver(place, "probe", timeout)
    name = "a step on the GPU agrees with the CPU"
    if found is None:
        return Outcome([Promise(name, FAIL, detail=f"{done.ended()}: {done.tail(3)}")])
    report.data["device"] = found["device"] | {"driver": driver_version()}
    report.data["versions"] = found["versions"]
    if done.status == 0:
        return Outcome([Promise(name, PASS, "", f"{found['smoke']:.1g}")])
    return Outcome([Promise(name, FAIL, detail=f"{done.ended()}: {done.tail(3)}")])


def driver_version() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        run = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
        return run.stdout.split("\n")[0].strip()
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown ({type(error).__name__})"


def stages(place: Place, quick: bool) -> list[list[Stage]]:
    """What is run: groups in turn, the stages of a group side by side.

    What measures time runs alone.
    """
    tests = str(suite.TESTS)
    elsewhere = [f"--ignore={tests}/{name}.py" for name in NOT_ON_DEVICE]
    elsewhere += [f"--ignore-glob={tests}/test_cuda*.py", f"--ignore={tests}/native"]
    on_device = [tests, "-k", "cuda", *elsewhere]
    if quick:
        on_device = [f"{tests}/test_{n}.py" for n in ("noise", "shapes")] + ["-k", "cuda"]
    rest = f"not cuda or {' or '.join(NOT_ON_DEVICE)}"

    def pytest(name: str, arguments: list[str], least: float, most: float, **more: Any) -> Stage:
        return Stage(name, lambda t: suite.run(place, t, name, arguments, **more), least, most)

    def cuda(name: str, file: str) -> Stage:
        path = f"{tests}/{file}"
        return pytest(name, [path], 15, 150, group=suite.by_test, parallel=False)

    def sanitizer(tool: str, plant: bool = False) -> Stage:
        name = f"{tool}, planted error" if plant else tool
        return Stage(name, lambda t: outside.sanitize(place, t, tool, plant), 20, 150)

    tools = ("memcheck", "racecheck") if quick else outside.SANITIZERS
    correctness = [
        cuda("streams and graphs", "test_cuda.py"),
        cuda("calls", "test_cuda_calls.py"),
        cuda("memory", "test_cuda_memory.py"),
        pytest("suite on the device", on_device, 30, 160),
        *(sanitizer(tool) for tool in tools),
    ]
    if not quick:
        correctness += [sanitizer(tool, plant=True) for tool in ("memcheck", "initcheck")]
    exponent = ["--exponent", "22" if quick else "24"]
    more = [*exponent, "--quick"] if quick else exponent
    groups = [
        correctness,
        [Stage("bandwidth", lambda t: measured(place, "bandwidth", t, *more), 25, 120)],
        [Stage("step", lambda t: measured(place, "step", t, *more), 40, 150)],
    ]
    if not quick:
        groups.append([Stage("counters", lambda t: outside.ncu(place, t), 20, 80, optional=True)])
        last = pytest("rest", [tests, "-k", rest, f"--ignore-glob={tests}/test_cuda*.py"], 30, 300)
        last.optional = True
        groups.append([last])
    return groups


def failed_tests(report: Report, most: int = 25) -> list[str]:
    """A line for each test that failed, beyond the one that the table has."""
    found = [
        f"{test.split('/')[-1]}: {reason}"[:WIDTH]
        for stage in report.data["stages"].values()
        for test, reason in stage["figures"].get("failed_tests", [])
    ]
    left = [f"... and {len(found) - most} more"] if len(found) > most else []
    return ["", "failed tests", *found[:most], *left] if found else []


def prepare(place: Place, args: argparse.Namespace, report: Report, budget: Budget) -> str:
    """Finds or builds the package. '' or why there is nothing to test."""
    answer = ask(place)
    if "error" in answer:
        return f"nothing to test: importing torch fails: {answer['error']}"
    if not answer["gpus"]:
        cuda = answer["torch_cuda"]
        built = f"built for CUDA {cuda}" if cuda else "built without CUDA"
        return f"no GPU: torch {answer['torch']} ({built}) sees none here"
    report.data["device"]["name"] = answer["name"]
    problem = usable(answer)
    if args.no_build and problem:
        return f"nothing to test: {problem}"
    if args.build or problem:
        print(f"building: {problem or 'asked for'}", flush=True)
        seconds = max(60.0, min(240.0, budget.remaining()))
        stage = Stage("build", lambda t: build(place, str(answer["capability"]), t), 60, 240)
        outcome, took = guarded(stage, seconds)
        report.add(
            "build", outcome.promises, seconds=took, reason=outcome.reason, figures=outcome.figures
        )
        print(f"build: {summary(outcome.promises)}, in {took:.0f} s", flush=True)
    return ""


def run(args: argparse.Namespace, place: Place, report: Report, budget: Budget) -> int:
    def say(line: str) -> None:
        print(f"[{budget.elapsed():5.0f} s] {line}"[:100], flush=True)

    try:
        nothing = prepare(place, args, report, budget)
        if nothing:
            print(nothing)
            return STATUS["no gpu"]
        for kind, names in (("test", TEST_MODULES), ("optional", EXTRA_MODULES)):
            missing = missing_modules(names)
            report.data[f"missing_{kind}_modules"] = missing
            if missing:
                say(f"{kind} modules that are not installed: {', '.join(missing)}")
        if overall(report.promises) != FAIL:  # a build that failed leaves nothing to test
            outcome, took = guarded(Stage("smoke", lambda t: smoke(place, report, t), 10, 90), 90)
            report.add("smoke", outcome.promises, seconds=took, reason=outcome.reason)
            say(f"smoke: {summary(outcome.promises)}, in {took:.0f} s")
            cores = os.cpu_count() or 1
            groups = stages(place, args.quick)
            run_stages(groups, budget, report, say, workers=16 if cores >= 8 else 2)
    finally:
        if report.promises:
            path = report.write(budget.elapsed())
            head = report.data["device"].get("name", "unknown device")
            versions = report.data["versions"]
            print(f"\n{head}, driver {report.data['device'].get('driver')}", end="")
            print(f", CUDA {versions.get('cuda')}, torch {versions.get('torch')}", end="")
            dirty = " with changes" if report.data["dirty"] else ""
            print(f", commit {report.data['commit']}{dirty}")
            print(table(report.promises))
            print(*failed_tests(report), sep="\n")
            print(f"\n{summary(report.promises)}; {budget.elapsed():.0f} s; {path}", flush=True)
    return STATUS[overall(report.promises)]


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if "--driver" in argv:
        from gpu_checks import driver

        driver.main(argv)
        return 0
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer cases, smaller tensors")
    parser.add_argument("--budget", type=float, default=480.0, help="seconds for all (default 480)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--build", action="store_true", help="compile this checkout in any case")
    how.add_argument("--no-build", action="store_true", help="test what is installed, or nothing")
    args = parser.parse_args(argv)
    budget = Budget(args.budget)
    report = Report(args.out.resolve(), " ".join(["python tools/gpu.py", *argv]), args.budget)
    scratch = Path(tempfile.mkdtemp(prefix="vae_fused-gpu-"))
    try:
        return run(args, Place(scratch), report, budget)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
