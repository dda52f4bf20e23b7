"""Runs one command that cannot outlive the process that started it: `supervise.py COMMAND...`

Standard input is a pipe. The starter keeps its other end open and writes nothing, so this process
reads an end of file when the starter closes the pipe or dies, even by SIGKILL. It then ends the
command and all processes that the command has started, including those in other sessions, because
as a "child subreaper" it inherits every orphan. The exit status is that of the command, or 128 plus
the signal that killed it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Callable

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
PATIENCE = 1.5  # seconds between SIGTERM and SIGKILL
LAST_RESORT = 4.0  # seconds until a process that survives SIGKILL is given up
POLL = 0.05


def descendants(root: int) -> list[int]:
    """All live processes below `root`, by their parents in /proc."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                state, parent = file.read().rpartition(")")[2].split()[:2]
        except OSError:  # it has just ended
            continue
        if state != "Z":
            children.setdefault(int(parent), []).append(int(name))
    found: list[int] = []
    pending = [root]
    while pending:
        below = children.get(pending.pop(), [])
        found += below
        pending += below
    return found


def reap(child: int) -> int | None:
    """Collect every ended process. Returns the wait status of `child` if it is among them."""
    status = None
    while True:
        try:
            pid, ended = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status
        if pid == 0:
            return status
        if pid == child:
            status = ended


def end_all(child: int, running: bool) -> None:
    """End all processes below this one, with SIGTERM first while the command still runs."""
    start = time.monotonic()
    polite = PATIENCE if running else 0.0
    if running:
        signal_all(signal.SIGTERM)
    while time.monotonic() - start < polite + LAST_RESORT:
        reap(child)
        left = descendants(os.getpid())
        if not left:
            return
        if time.monotonic() - start >= polite:
            signal_all(signal.SIGKILL)
        time.sleep(POLL)


def signal_all(number: int) -> None:
    for pid in descendants(os.getpid()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def start(command: list[str], prctl: Callable[..., int]) -> int:
    """Start the command. The kernel kills it if this process is killed."""
    pid = os.fork()
    if pid:
        return pid
    try:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.execvp(command[0], command)
    except OSError as error:
        print(f"{command[0]}: {error}", file=sys.stderr, flush=True)
    os._exit(127)


def main(command: list[str]) -> int:
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    child = start(command, prctl)
    status = None
    while status is None:
        ready, _, _ = select.select([0], [], [], POLL)
        status = reap(child)
        if ready and not os.read(0, 1):  # the starter died or closed the pipe
            break
    end_all(child, running=status is None)
    if status is None:
        return 128 + signal.SIGTERM
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
