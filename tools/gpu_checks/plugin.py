"""A pytest plugin for tests on a GPU, which keeps a test from spoiling the results of another.

- Each result is recorded at once, so an interrupted run keeps its results. xdist workers report to
  their parent process, which writes the record.
- A test that the record lists as passed in an earlier call does not run again.
- After some errors every later CUDA call of a process fails. The test that caused the error fails,
  and its process ends, so that xdist starts another one for the remaining tests.
- A test that exceeds its time limit ends its process, with the traceback of each thread.

Environment variables are the parameters: GPU_CHECKS_RECORD is the file of records, a JSON object
per line, GPU_CHECKS_HANGS the file for tracebacks, and GPU_CHECKS_LIMIT a test's limit in seconds.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import time
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import pytest

from gpu_checks.report import read_lines

LOST = "the CUDA context is lost"
LOST_STATUS = 70
LIMIT = float(os.environ.get("GPU_CHECKS_LIMIT") or 0)
WORKER = bool(os.environ.get("PYTEST_XDIST_WORKER"))

_collected: set[str] = set()
_begun: dict[str, float] = {}
_lost = ""


# --- records -------------------------------------------------------------------------------------


def _write(**record: Any) -> None:
    path = os.environ.get("GPU_CHECKS_RECORD")
    if path and not WORKER:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    text = report.longrepr
    if isinstance(text, tuple):  # a skip's file, line and reason
        return str(text[2]).removeprefix("Skipped: ")
    crash = getattr(text, "reprcrash", None)
    message = str(getattr(crash, "message", None) or text or "").strip()
    return " ".join(message.splitlines()[:4])[:400]


def _note(ids: Iterable[str]) -> None:
    new = sorted(set(ids) - _collected)
    if new:
        _collected.update(new)
        _write(collected=new)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    entries = read_lines(Path(os.environ.get("GPU_CHECKS_RECORD", os.devnull)))
    passed = {e["test"] for e in entries if e.get("outcome") == "passed" and e.get("earlier")}
    again = [item for item in items if item.nodeid not in passed]
    if len(again) < len(items):
        config.hook.pytest_deselected(items=[i for i in items if i.nodeid in passed])
        items[:] = again


def pytest_collection_finish(session: pytest.Session) -> None:
    _note(item.nodeid for item in getattr(session, "items", []))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any, ids: list[str]) -> None:
    _note(ids)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        _write(test=report.nodeid, outcome="failed", seconds=0, reason=_reason(report))


def pytest_runtest_logstart(nodeid: str) -> None:
    _begun[nodeid] = time.monotonic()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write one record for each test: its call, unless it ended in setup or teardown."""
    if report.when != "call" and report.outcome == "passed":
        return
    outcome = report.outcome
    if hasattr(report, "wasxfail"):
        outcome = "passed"  # an unexpected pass counts as a failure, because xfail is strict
    reason = "" if outcome == "passed" else _reason(report)
    took = time.monotonic() - _begun.get(report.nodeid, time.monotonic())
    if LIMIT and took >= LIMIT and "crashed while running" in reason:
        reason = f"it did not end within {LIMIT:.0f} s"
    seconds = round(report.duration or took, 3)
    _write(test=report.nodeid, outcome=outcome, seconds=seconds, reason=reason)


# --- processes -----------------------------------------------------------------------------------


def context_error() -> str:
    """The error that every further CUDA call of this process raises, or ''."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return ""
    error = ""
    for _ in range(2):  # an error of a single launch is reported once
        try:
            torch.cuda.synchronize()
        except Exception as raised:
            error = str(raised).strip().splitlines()[0]
        else:
            return ""
    return error


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    global _lost
    report = yield
    if not _lost:
        _lost = context_error()
        if _lost:
            report.outcome = "failed"
            report.longrepr = f"{LOST}: {_lost}\n{report.longreprtext}"
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    if LIMIT and WORKER:
        hangs = open(os.environ.get("GPU_CHECKS_HANGS", os.devnull), "a", encoding="utf-8")  # noqa: SIM115
        faulthandler.dump_traceback_later(LIMIT, exit=True, file=hangs)
    try:
        return (yield)
    finally:
        if LIMIT and WORKER:
            faulthandler.cancel_dump_traceback_later()
            hangs.close()
        if _lost and WORKER:  # the test's report has been sent already
            os._exit(LOST_STATUS)
