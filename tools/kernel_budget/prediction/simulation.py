"""Runs simulate.cpp, which the host's C++ compiler builds on first use into a temporary folder."""

from __future__ import annotations

import atexit
import dataclasses
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from prediction.program import Program

SOURCE = Path(__file__).with_name("simulate.cpp")


@dataclasses.dataclass(frozen=True)
class Run:
    """The work of one part of an SM, which has `warps` of each block."""

    warps: int
    blocks: int
    resident: int
    tiles: int  # per block
    passes: int  # per tile
    latency: float  # cycles
    bandwidth: float  # bytes per cycle
    load_bytes: int  # per warp
    seed: int


@dataclasses.dataclass(frozen=True)
class Outcome:
    cycles: float
    issued: int
    bytes_in_flight: float  # of this part, on average


class NoCompilerError(RuntimeError):
    pass


def compiler() -> str | None:
    return next(
        (c for c in (os.environ.get("CXX"), "c++", "g++", "clang++") if c and shutil.which(c)), None
    )


@functools.cache
def _binary() -> Path:
    found = compiler()
    if found is None:
        raise NoCompilerError(
            "a C++ compiler must be installed as CXX, c++, g++ or clang++, got none"
        )
    folder = tempfile.mkdtemp(prefix="issue-model-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    binary = Path(folder) / "simulate"
    # Without contraction and extended precision the results are equal on every machine.
    flags = ["-std=c++17", "-O2", "-ffp-contract=off"]
    subprocess.run([found, *flags, "-o", binary, SOURCE], check=True)
    return binary


def simulate(program: Program, runs: Sequence[Run]) -> list[Outcome]:
    sections = (program.prologue, program.body, program.between, program.epilogue)
    lines = ["program " + " ".join(str(len(s)) for s in sections)]
    for section in sections:
        lines += section
    for run in runs:
        lines.append("run " + " ".join(str(v) for v in dataclasses.astuple(run)))
    text = "\n".join(lines) + "\n"
    done = subprocess.run([_binary()], input=text, capture_output=True, text=True, check=False)
    answers = done.stdout.splitlines()
    if done.returncode or len(answers) != len(runs):
        raise RuntimeError(f"the simulation failed on {program.name}")
    rows = [answer.split() for answer in answers]
    return [Outcome(float(c), int(i), float(b)) for c, i, b in rows]
