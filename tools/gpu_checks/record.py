"""A pytest plugin that writes each result down at once: a run that is stopped loses nothing.

GPU_CHECKS_RECORD names the file; each line is a JSON object. Workers of xdist report to the process
that started them, which writes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

_collected: set[str] = set()


def _write(config: pytest.Config | None, **record: Any) -> None:
    path = os.environ.get("GPU_CHECKS_RECORD")
    if path and not os.environ.get("PYTEST_XDIST_WORKER"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    text = report.longrepr
    if isinstance(text, tuple):  # of a skip: file, line, reason
        return str(text[2]).removeprefix("Skipped: ")
    crash = getattr(text, "reprcrash", None)
    message = str(getattr(crash, "message", None) or text or "").strip()
    return " ".join(message.splitlines()[:4])[:400]


def _note(ids: Iterable[str]) -> None:
    new = sorted(set(ids) - _collected)
    if new:
        _collected.update(new)
        _write(None, collected=new)


def pytest_collection_finish(session: pytest.Session) -> None:
    _note(item.nodeid for item in getattr(session, "items", []))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any, ids: list[str]) -> None:
    _note(ids)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        _write(None, test=report.nodeid, outcome="failed", seconds=0, reason=_reason(report))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """One record a test: its call, unless setup or teardown is where it ended."""
    if report.when != "call" and report.outcome == "passed":
        return
    outcome = report.outcome
    if hasattr(report, "wasxfail"):
        outcome = "passed"  # as expected; an unexpected pass is a failure already (strict)
    _write(
        None,
        test=report.nodeid,
        outcome=outcome,
        seconds=round(report.duration, 3),
        reason="" if outcome == "passed" else _reason(report),
    )
