"""A pytest plugin that keeps a GPU test from spoiling the results of other tests.

After some errors, every later CUDA call in the process fails. The plugin therefore fails the test
that caused the error and ends its process, and xdist starts another one for the remaining tests.

When a test passes, its node ID is immediately appended to the file GPU_CHECK_PASSED. Tests whose
IDs are in the file GPU_CHECK_EARLIER do not run again. That file must not change during a run,
because a process that xdist starts late has to collect the same tests as the others.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

PASSED, EARLIER = (
    Path(os.environ.get(f"GPU_CHECK_{n}", os.devnull)) for n in ("PASSED", "EARLIER")
)
WORKER = bool(os.environ.get("PYTEST_XDIST_WORKER"))
lost = ""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    earlier = set(EARLIER.read_text(encoding="utf-8").splitlines())
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in earlier])
    items[:] = [item for item in items if item.nodeid not in earlier]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and report.passed and not WORKER:
        with PASSED.open("a", encoding="utf-8") as file:
            file.write(f"{report.nodeid}\n")


def context_error() -> str:
    """Returns the error that every further CUDA call in this process raises, or ''."""
    torch, error = sys.modules.get("torch"), ""
    for _ in range(2):  # an error that affects only one launch is reported once
        try:
            if torch is not None and torch.cuda.is_initialized():
                torch.cuda.synchronize()
            return ""
        except Exception as raised:
            error = str(raised).strip().split("\n")[0]
    return error


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    global lost
    report = yield
    if not lost and (lost := context_error()):
        report.outcome = "failed"
        report.longrepr = f"the CUDA context is lost: {lost}\n{report.longreprtext}"
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    result = yield
    if lost and WORKER:  # the test's report has already been sent
        os._exit(70)
    return result
