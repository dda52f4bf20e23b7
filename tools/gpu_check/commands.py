"""Processes with time limits and logs, and how to call NVIDIA's tools."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
from glob import glob
from pathlib import Path
from typing import NamedTuple

# Clocks, power, temperature and throttling, each second.
WATCH = ["nvidia-smi", "dmon", "-s", "pucv", "-o", "DT", "-d", "1"]
USUAL = ("/usr/local/cuda*/bin", "/usr/local/cuda*/compute-sanitizer", "/opt/nvidia/nsight-comp*/*")


class Finished(NamedTuple):
    """A command that has ended. The status is None if it was stopped at its time limit."""

    status: int | None
    output: str

    def ended(self) -> str:
        last = " | ".join(line for line in self.output.splitlines()[-6:] if line.strip())[-300:]
        return f"{'stopped' if self.status is None else f'status {self.status}'}: {last}"


def accept_interrupts() -> None:
    """A shell ignores interrupts in what it starts in the background, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Running:
    """A command whose output goes to a file: a process that keeps a pipe open would block us."""

    every: set[Running] = set()  # noqa: RUF012

    def __init__(self, command: list[str], env: dict[str, str], cwd: Path, log: Path) -> None:
        self.log, null = log, subprocess.DEVNULL
        with log.open("wb") as out:
            self.process = subprocess.Popen(command, env=env, cwd=cwd, start_new_session=True,
                                            stdin=null, stdout=out, stderr=out,
                                            preexec_fn=accept_interrupts)  # fmt: skip
        self.every.add(self)

    def wait(self, seconds: float, patience: float = 0.0) -> Finished:
        """Wait until the limit, interrupt the command ``patience`` before it, and end its group."""
        status: int | None = None
        try:
            status = self.process.wait(max(0.0, seconds - patience))
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(patience)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.every.discard(self)
        return Finished(status, self.log.read_bytes().decode("utf-8", "replace"))


def device() -> dict[str, str]:
    """nvidia-smi's answer for the first GPU; empty without a GPU."""
    fields = ("name", "driver_version", "compute_cap")  # every version of nvidia-smi has these
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(fields, run.stdout.split("\n")[0].split(", "), strict=False))


def find(tool: str) -> str:
    """A tool on the PATH or in a toolkit's usual folder, the newest if there are several."""
    usual = [folder for pattern in USUAL for folder in sorted(glob(pattern), reverse=True)]
    found = shutil.which(tool, path=os.pathsep.join([os.environ.get("PATH", ""), *usual]))
    if found is None:
        raise FileNotFoundError(f"{tool} is neither on the PATH nor in {USUAL}")
    return found


def sanitizer(binary: str, tool: str, help_text: str) -> list[str]:
    """Filter kernels by the option that this version supports. Without a filter it is slower."""
    command = [binary, "--tool", tool, "--error-exitcode", "86", "--print-limit", "20"]
    filters = re.findall(r"--kernel-(?:name|regex)\b(?!-)", help_text)
    command += [filters[0], "kns=vae_fused"] if filters else []
    if "--launch-timeout" in help_text:
        command += ["--launch-timeout", "0"]  # importing torch may take longer than the default
    if tool == "memcheck" and "--report-api-errors" in help_text:
        command += ["--report-api-errors", "no"]  # torch probes the API; our launches are checked
    return command


def ncu(binary: str, report: Path) -> list[str]:
    """The clocks are not locked: other programs may share them, and other steps measure time.

    ncu stops at a metric or section that it does not have. All versions have those of this set.
    """
    command = [binary, "--force-overwrite", "--export", str(report), "--clock-control", "none"]
    command += ["--set", "detailed", "--section", "WarpStateStats"]
    return [*command, "--kernel-name", "regex:(forward|backward|nll|softmax_rows|stats)_kernel"]
