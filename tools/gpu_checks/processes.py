"""Commands with a time limit and a log file. `supervise.py` ends each of them with this process.

The output goes to a file, so a grandchild that keeps a pipe open cannot block this process.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from pathlib import Path

SUPERVISOR = Path(__file__).with_name("supervise.py")
# The supervisor's longest time to end all processes, and a margin.
PATIENCE = 8.0


@dataclasses.dataclass
class Finished:
    """A command that has ended. The status is None if it was stopped at its time limit."""

    status: int | None
    output: str
    seconds: float

    def tail(self, lines: int = 12) -> str:
        return "\n".join(self.output.strip().splitlines()[-lines:])

    @property
    def crashed(self) -> bool:
        return self.status is not None and self.status > 128

    def ended(self) -> str:
        if self.status is None:
            return f"stopped after {self.seconds:.0f} s"
        if self.crashed:
            return f"killed by signal {self.status - 128}"
        return f"ended with status {self.status}"


class Running:
    """A command that was started and will be waited for."""

    def __init__(
        self, command: list[str], *, env: dict[str, str] | None, cwd: Path | None, log: Path
    ) -> None:
        self.start = time.monotonic()
        self.log = log
        with log.open("wb") as sink:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(SUPERVISOR), *command],
                stdin=subprocess.PIPE,  # our end is closed in all other children
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=env,
                cwd=cwd,
                start_new_session=True,
            )

    def stop(self) -> None:
        """End the command and all processes that it has started."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def wait(self, timeout: float) -> Finished:
        status: int | None
        try:
            status = self.process.wait(timeout=max(0.0, timeout))
        except subprocess.TimeoutExpired:
            status = None
        finally:
            self.stop()
        text = self.log.read_bytes().decode("utf-8", "replace")
        return Finished(status, text, time.monotonic() - self.start)


def execute(
    command: list[str],
    timeout: float,
    *,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    log: Path,
) -> Finished:
    return Running(command, env=env, cwd=cwd, log=log).wait(timeout)
