"""Runs the test suite on the device: a line per file, or per test for tests that need a GPU."""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu_checks.package import Place
from gpu_checks.processes import Finished
from gpu_checks.report import FAIL, NOT_RUN, PASS, ROOT, Promise, read_lines
from gpu_checks.schedule import Outcome

TESTS = ROOT / "tests"
# Folders of tests of the public functions. Tests of the package and of the native code need no
# device. Tests of the tools, including this one, run where the tools are developed.
ON_DEVICE = ("functional", "layers", "usage")
RESTARTS = 50  # after more lost processes, the GPU itself is considered lost

Results = dict[str, dict[str, Any]]


def device_arguments() -> list[str]:
    """Tests that only a GPU can run come first, then all others that take a device."""
    return [str(TESTS / "gpu"), *(str(TESTS / name) for name in ON_DEVICE), "-k", "cuda"]


def rest_arguments() -> list[str]:
    """All other tests. The native tests compile for minutes and come last."""
    package = sorted((TESTS / "package").glob("test_*.py"))  # some have "cuda" in their names
    folders = (*ON_DEVICE, "package", "native")
    chosen = " or ".join(["not cuda", *(path.stem for path in package)])
    return [*(str(TESTS / name) for name in folders), "-k", chosen]


def group_of(test: str) -> str:
    """The file of a test; for tests that only a GPU can run, the test itself.
    'tests/functional/test_shapes.py::test_x[1]' -> 'test_shapes.py'
    'tests/gpu/test_streams.py::test_a_second_gpu[x]' -> 'a second gpu'
    """
    file, _, name = test.partition("::")
    if not name or Path(file).parent.name != "gpu":
        return Path(file).name
    return name.split("::")[-1].split("[")[0].removeprefix("test_").replace("_", " ")


def read(record: Path) -> tuple[list[str], Results]:
    """The collected tests, and the result of each test that ended.

    A failure keeps its first reason, because later ones only report the end of the process.
    """
    collected: list[str] = []
    results: Results = {}
    for entry in read_lines(record):
        if "collected" in entry:
            collected += entry["collected"]
            continue
        known = results.get(entry["test"])
        if known is None or (entry["outcome"] == "failed" != known["outcome"]):
            results[entry["test"]] = entry
    return collected, results


def resume(earlier: Path | None, record: Path) -> None:
    """Start the record with the tests that passed in an earlier call, which then do not rerun."""
    collected, results = read(earlier) if earlier else ([], {})
    lines: list[dict[str, Any]] = [{"collected": collected}] if collected else []
    passed = [result for result in results.values() if result["outcome"] == "passed"]
    lines += [result | {"earlier": True} for result in passed]
    record.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def excuse(results: Results, missing: list[str]) -> None:
    """Count a test that fails because of a module that is not installed as not run."""
    for result in results.values():
        needed = re.search(r"No module named '(\w+)", result["reason"])
        if result["outcome"] == "failed" and needed and needed[1] in missing:
            result.update(outcome="skipped", reason=f"{needed[1]} is not installed")


def judge_group(name: str, results: list[dict[str, Any]], absent: int, ended: str) -> Promise:
    """A group passes if all its tests ended, none failed and at least one passed."""
    counts = Counter(result["outcome"] for result in results)
    measured = f"{counts['passed']} passed"
    failed = [result for result in results if result["outcome"] == "failed"]
    if failed:
        where = failed[0]["test"].split("::", 1)[-1]
        detail = f"{len(failed)} of {len(results)} failed; {where}: {failed[0]['reason']}"
        return Promise(name, FAIL, "", measured, detail)
    if absent:
        detail = f"not run: {absent} of {absent + len(results)} tests ({ended})"
        return Promise(name, NOT_RUN, "", measured, detail)
    skipped = Counter(result["reason"] for result in results if result["outcome"] == "skipped")
    if not counts["passed"]:
        reasons = skipped.most_common(1)
        detail = f"not run: {reasons[0][0] if reasons else ended}"
        return Promise(name, NOT_RUN, "", "", detail, optional="one GPU" in detail)
    unexcused = [reason for reason in skipped if "one GPU" not in reason]
    if unexcused:
        detail = f"not run: {skipped.total()} of {len(results)} tests ({unexcused[0]})"
        return Promise(name, NOT_RUN, "", measured, detail)
    return Promise(name, PASS, "", measured)


def judge(
    collected: list[str],
    results: Results,
    ended: str,
    group: Callable[[str], str] = group_of,
) -> list[Promise]:
    promises = []
    for name in dict.fromkeys(group(test) for test in [*collected, *results]):
        mine = [result for test, result in results.items() if group(test) == name]
        absent = sum(group(test) == name and test not in results for test in set(collected))
        promises.append(judge_group(name, mine, absent, ended))
    return promises


def figures_of(collected: list[str], results: Results, done: Finished) -> dict[str, Any]:
    failed = [[t, r["reason"]] for t, r in results.items() if r["outcome"] == "failed"]
    slowest = sorted(results.values(), key=lambda result: -result["seconds"])[:5]
    return {
        **Counter(result["outcome"] for result in results.values()),
        "collected": len(set(collected)),
        "ended": done.ended(),
        "slowest": [[r["test"].split("/")[-1], r["seconds"]] for r in slowest],
        "failed_tests": failed[:50],
        "skipped": Counter(r["reason"] for r in results.values() if r["outcome"] == "skipped"),
    }


def run(
    place: Place,
    timeout: float,
    name: str,
    arguments: list[str],
    missing: list[str],
    earlier: Path | None = None,
    test_limit: float = 45.0,
) -> Outcome:
    """Run pytest in several processes. Returns the results, however the run ended.

    Even a single test runs in an xdist worker, which is replaced if a test ends it.
    """
    record = place.logs / f"{name}.jsonl"
    resume(earlier, record)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
    workers = max(1, min(8, cores // 2))  # each has its own context and compiles separately
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml")]
    command += ["--rootdir", str(ROOT), "-q", "--tb=short", "-p", "no:cacheprovider"]
    command += ["-p", "xdist.plugin", "--continue-on-collection-errors", "-n", str(workers)]
    # With small portions, tests start in order, and a hang delays few others.
    command += [f"--max-worker-restart={RESTARTS}", "--dist=load", "--maxschedchunk=4", *arguments]
    env = place.env(
        PYTEST_DISABLE_PLUGIN_AUTOLOAD="1",  # plugins of other projects take seconds to import
        PYTEST_PLUGINS="gpu_checks.plugin",
        GPU_CHECKS_RECORD=str(record),
        GPU_CHECKS_HANGS=str(place.logs / f"{name}-hangs.txt"),
        GPU_CHECKS_LIMIT=str(test_limit),
        OMP_NUM_THREADS=str(max(1, cores // workers // 2)),
    )
    env.pop("VAE_FUSED_STRICT")  # the tests check the fallback, too
    done = place.run(command, timeout, name, env)
    collected, results = read(record)
    excuse(results, missing)
    figures = figures_of(collected, results, done) | {"processes": workers}
    promises = judge(collected, results, done.ended())
    if not results or figures.get("failed"):
        figures["output"] = done.tail(80)
    reason = "" if done.status == 0 else done.ended()
    if not promises:
        promises = [Promise(f"pytest {name}", NOT_RUN, detail=f"{reason}: {done.tail(4)}")]
    return Outcome(promises, figures, reason)
