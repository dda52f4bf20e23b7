"""Runs simulate.cpp on the hot loops of kernels. The C++ compiler builds it on first use."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..hot_path import hot_path
from ..kernels import cubins, elements, has_many_paths, kernels_of
from ..occupancy import resident_blocks
from ..registers import use
from ..sass import Instruction
from .pipes import Kind, bytes_of_warp, timing

SOURCE = Path(__file__).with_name("simulate.cpp")
SYNCHRONIZING = ("ATOM", "ATOMG", "BAR", "MEMBAR", "RED", "REDG")
FIRST = {"R": 0, "UR": 256, "P": 512, "UP": 520}  # the first number of each kind of register


class Program(NamedTuple):
    """The hot loop of a kernel.

    An instruction is a list of numbers: its pipe, cycles, latency, kind and bytes, then the number
    of the registers that it writes and these registers, then the same for those that it reads.
    """

    name: str
    arch: str
    code: list[list[int]]
    elements: int  # of a thread in one pass
    resident_blocks: int


class Run(NamedTuple):
    """The work of one part of an SM, which has `warps` of each block."""

    warps: int
    blocks: int
    passes: int
    bandwidth: float  # bytes per cycle
    latency: float  # cycles
    seed: int = 0


def programs(file: Path, kernel: str, archs: Collection[str]) -> Iterator[Program]:
    """The programs of these architectures' kernels whose short name contains `kernel`."""
    for arch, cubin in cubins(file):
        for name, usage, code in kernels_of(cubin) if arch.rstrip("af") in archs else ():
            is_asked = kernel in name and not has_many_paths(name)
            if is_asked and (found := program(name, arch, usage, code)):
                yield found


def program(name: str, arch: str, usage: dict[str, int], code: list[Instruction]) -> Program | None:
    """The program of a kernel; None if it has no hot loop over elements that runs freely."""
    path = hot_path(code)
    is_free = path.in_loop and not any(i.base in SYNCHRONIZING for i in path.instructions)
    if not is_free or not (served := elements(name, path)):
        return None
    encoded = [_numbers(i, arch) for i in path.instructions]
    resident = resident_blocks(arch, usage["REG"], usage["SHARED"])
    return Program(name, arch, encoded, served, resident)


def _numbers(instruction: Instruction, arch: str) -> list[int]:
    how = timing(instruction, arch)
    is_moving = how.kind in (Kind.LOAD, Kind.STORE, Kind.SHARED)
    found = [*how, bytes_of_warp(instruction) if is_moving else 0]
    for names in reversed(use(instruction)):
        found += [len(names), *sorted(map(_register, names))]
    return found


def _register(name: str) -> int:
    kind = name.rstrip("0123456789")
    return FIRST[kind] + int(name.removeprefix(kind))


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


def simulate(program: Program, runs: Sequence[Run]) -> list[float]:
    """The cycles of each run."""
    numbers = [n for line in program.code for n in line]
    code = (ctypes.c_int * len(numbers))(*numbers)
    fields = [(ctypes.c_double * len(run))(*run) for run in runs]
    return [_library()(len(program.code), code, run) for run in fields]
