"""Runs simulate.cpp, which the host's C++ compiler builds on first use into a temporary folder."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .program import Program

SOURCE = Path(__file__).with_name("simulate.cpp")


class Run(NamedTuple):
    """The work of one part of an SM, which has `warps` of each block."""

    warps: int
    blocks: int
    resident: int
    tiles: int  # per block
    passes: int  # per tile
    bandwidth: float  # bytes per cycle
    load_bytes: int  # per warp
    latency: float = 0.0  # cycles
    seed: int = 0


class Outcome(NamedTuple):
    cycles: float
    issued: int


def compiler() -> str | None:
    return next(filter(shutil.which, (os.environ.get("CXX", ""), "c++", "g++", "clang++")), None)


@functools.cache
def _library() -> Any:
    found = compiler()
    if found is None:
        raise RuntimeError("a C++ compiler must be installed as CXX, c++, g++ or clang++, got none")
    with tempfile.TemporaryDirectory(prefix="issue-model-") as folder:
        library = Path(folder) / "simulate.so"
        # Without contraction and extended precision the results are equal on every machine.
        flags = ["-std=c++17", "-O2", "-ffp-contract=off", "-fPIC", "-shared"]
        subprocess.run([found, *flags, "-o", library, SOURCE], check=True)
        function = ctypes.CDLL(str(library)).simulate
    function.restype = ctypes.c_double
    return function


def simulate(program: Program, runs: Sequence[Run]) -> list[Outcome]:
    numbers = [n for section in program.sections for line in section for n in line]
    code = (ctypes.c_int * len(numbers))(*numbers)
    lengths = (ctypes.c_int * 4)(*map(len, program.sections))
    issued = ctypes.c_int()
    found = []
    for run in runs:
        fields = (ctypes.c_double * len(run))(*run)
        cycles = _library()(lengths, code, fields, ctypes.byref(issued))
        found.append(Outcome(cycles, issued.value))
    return found
