"""Prints a line for each finished test file, instead of a dot for each test."""

from __future__ import annotations

import collections
import time
from typing import Any

import pytest

PATIENCE = 30.0  # seconds without output, after which a file that still runs gets a line as well


class Progress:
    """Counts the finished tests in each file: `[ 12%] tests/functional/test_elbo.py  410`.

    With pytest-xdist, the plugin counts in the process that collects the reports.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.expected: collections.Counter[str] = collections.Counter()
        self.finished: collections.Counter[str] = collections.Counter()
        self.seconds: collections.Counter[str] = collections.Counter()
        self.failed: collections.Counter[str] = collections.Counter()
        self.began = self.written = time.monotonic()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._expect([item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        self._expect(ids)  # each worker collects all tests

    def _expect(self, ids: list[str]) -> None:
        if ids:
            self.expected = collections.Counter(name.split("::")[0] for name in ids)
            self.began = self.written = time.monotonic()

    def pytest_report_teststatus(self, report: Any) -> tuple[str, str, str] | None:
        """Counts a passed or skipped test without printing a letter for it."""
        if report.when == "call" and report.passed and not hasattr(report, "wasxfail"):
            return "passed", "", ""
        return ("skipped", "", "") if report.skipped and not hasattr(report, "wasxfail") else None

    def pytest_runtest_logreport(self, report: Any) -> None:
        file = report.nodeid.split("::")[0]
        self.seconds[file] += report.duration
        self.failed[file] += report.failed
        if report.when != "teardown":
            return
        self.finished[file] += 1
        if self.finished[file] == self.expected[file]:
            self._write(file, f"{self.expected[file]} tests in {self.seconds[file]:.0f} s")
        elif time.monotonic() - self.written > PATIENCE:
            self._write(file, f"{self.finished[file]} of {self.expected[file]} tests")

    def _write(self, file: str, message: str) -> None:
        self.written = time.monotonic()
        terminal = self.config.pluginmanager.get_plugin("terminalreporter")
        percent = 100 * self.finished.total() // self.expected.total()
        failed = f", {self.failed[file]} FAILED" if self.failed[file] else ""
        terminal.ensure_newline()
        terminal.write_line(
            f"[{percent:3}%] {self.written - self.began:4.0f} s  {file}: {message}{failed}",
            red=bool(failed),
        )
