"""The test suite on the device, as promises: a line for each file, or for each test."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu_checks.package import EXTRA_MODULES, TEST_MODULES, Place, missing_modules
from gpu_checks.report import FAIL, NOT_RUN, PASS, ROOT, Promise
from gpu_checks.run import Outcome

TESTS = ROOT / "tests"


def by_file(test: str) -> str:
    """'tests/test_shapes.py::test_x[1]' -> 'test_shapes.py'."""
    return Path(test.split("::")[0]).name


def by_test(test: str) -> str:
    """'tests/test_cuda.py::test_a_second_gpu[x]' -> 'a second gpu'."""
    name = test.split("::")[-1].split("[")[0]
    return name.removeprefix("test_").replace("_", " ")


def read(record: Path) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """What was collected, and the result of each test that ended."""
    collected: list[str] = []
    results: dict[str, dict[str, Any]] = {}
    lines = record.read_text(encoding="utf-8").splitlines() if record.exists() else []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:  # cut off in the middle
            continue
        if "collected" in entry:
            collected += entry["collected"]
        elif entry["outcome"] == "failed" or entry["test"] not in results:
            results[entry["test"]] = entry
    return collected, results


def excuse(results: dict[str, dict[str, Any]], missing: list[str]) -> None:
    """A test that fails for want of a module that is not installed here has not been run."""
    for result in results.values():
        needed = re.search(r"No module named '(\w+)", result["reason"])
        if result["outcome"] == "failed" and needed and needed[1] in missing:
            result.update(outcome="skipped", reason=f"{needed[1]} is not installed")


def judge(
    collected: list[str],
    results: dict[str, dict[str, Any]],
    group: Callable[[str], str],
    ended: str,
) -> list[Promise]:
    """A promise for each group: kept if all its tests ended, none failed and one passed."""
    names = list(dict.fromkeys(group(t) for t in [*collected, *results]))
    promises = []
    for name in names:
        mine = [r for t, r in results.items() if group(t) == name]
        counts = Counter(r["outcome"] for r in mine)
        absent = sum(group(t) == name and t not in results for t in collected)
        failed = [r for r in mine if r["outcome"] == "failed"]
        measured = f"{counts['passed']} passed"
        if failed:
            first = failed[0]
            where = first["test"].split("::", 1)[-1]
            detail = f"{len(failed)} of {len(mine)} failed; {where}: {first['reason']}"
            promises.append(Promise(name, FAIL, "", measured, detail))
        elif absent:
            detail = f"not run: {absent} of {absent + len(mine)} tests ({ended})"
            promises.append(Promise(name, NOT_RUN, "", measured, detail))
        elif not counts["passed"]:
            reasons = Counter(r["reason"] for r in mine).most_common(1)
            detail = f"not run: {reasons[0][0] if reasons else ended}"
            # One GPU is not a failing of this machine.
            promises.append(Promise(name, NOT_RUN, "", "", detail, optional="one GPU" in detail))
        else:
            skipped = Counter(r["reason"] for r in mine if r["outcome"] == "skipped")
            unexcused = [r for r in skipped if "one GPU" not in r]
            if unexcused:
                detail = f"not run: {skipped.total()} of {len(mine)} tests ({unexcused[0]})"
                promises.append(Promise(name, NOT_RUN, "", measured, detail))
            else:
                promises.append(Promise(name, PASS, "", measured))
    return promises


def workers(cores: int) -> int:
    """Processes for one GPU: each has a context and compiles for itself."""
    return max(1, min(8, cores // 2))


def run(
    place: Place,
    timeout: float,
    name: str,
    arguments: list[str],
    group: Callable[[str], str] = by_file,
    parallel: bool = True,
) -> Outcome:
    """Runs pytest with these arguments; what it found, however it ended."""
    record = place.scratch / f"{name}.jsonl"
    record.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml")]
    command += ["--rootdir", str(ROOT), "-q", "-p", "no:cacheprovider", "-p", "gpu_checks.record"]
    command += ["--continue-on-collection-errors", "--tb=short", *arguments]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
    many = workers(cores) if parallel and importlib.util.find_spec("xdist") else 1
    if many > 1:
        command += ["-n", str(many)]
    env = place.env(
        GPU_CHECKS_RECORD=str(record),
        OMP_NUM_THREADS=str(max(1, cores // many // 2)),
        PYTHONDONTWRITEBYTECODE="1",
    )
    env.pop("VAE_FUSED_STRICT")  # the tests ask for falling back
    done = place.run(command, timeout, name, env)
    collected, results = read(record)
    excuse(results, missing_modules(TEST_MODULES + EXTRA_MODULES))
    counts = Counter(r["outcome"] for r in results.values())
    slowest = sorted(results.values(), key=lambda r: -r["seconds"])[:5]
    figures = {
        **counts,
        "collected": len(collected),
        "processes": many,
        "ended": done.ended(),
        "slowest": [[r["test"].split("/")[-1], r["seconds"]] for r in slowest],
        "failed_tests": [[t, r["reason"]] for t, r in results.items() if r["outcome"] == "failed"][
            :50
        ],
        "skipped": Counter(r["reason"] for r in results.values() if r["outcome"] == "skipped"),
    }
    promises = judge(collected, results, group, done.ended())
    if not results or counts["failed"]:
        figures["output"] = done.tail(80)
    reason = "" if done.status == 0 else done.ended()
    if not promises:
        tail = done.tail(4)
        promises = [Promise(f"pytest {name}", NOT_RUN, detail=f"{reason}: {tail}")]
    return Outcome(promises, figures, reason)
