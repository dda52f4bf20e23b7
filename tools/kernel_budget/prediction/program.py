"""A kernel in the format of the simulation: each instruction is a line of numbers."""

from __future__ import annotations

import dataclasses
import re

from hot_path import hot_path
from kernels import elements
from occupancy import resident_blocks
from registers import use
from sass import Instruction, widest, width

from prediction.paths import is_of_step, way
from prediction.pipes import Kind, bytes_of_warp, timing

# The first number of each kind of register.
_FIRST = {"R": 0, "UR": 256, "P": 512, "UP": 520}


@dataclasses.dataclass(frozen=True)
class Program:
    name: str
    arch: str
    prologue: list[str]
    body: list[str]
    between: list[str]  # the path between two tiles; empty if a block has one tile
    epilogue: list[str]
    elements: int  # of a thread in one pass of the loop
    peeled: int  # passes that are outside of the loop
    in_loop: bool
    load_bytes: int  # of a warp in one pass
    other_bytes: int  # that a warp loads once: the gradient of the KL
    resident_blocks: int
    registers: int


def program(name: str, arch: str, usage: dict[str, int], code: list[Instruction]) -> Program | None:
    """The program; None for a kernel without countable elements (see kernels.py)."""
    served = elements(name, hot_path(code))
    if served is None:
        return None
    path = way(code)
    load, store = widest(path.body, "LDG"), widest(path.body, "STG")
    outside = [*path.prologue, *path.epilogue]
    stored = sum(width(i) for i in outside if i.base == "STG" and is_of_step(i, load, store))
    of_pass = sum(width(i) for i in path.body if i.base == "STG")

    def encoded(code: list[Instruction], *, in_body: bool) -> list[str]:
        return [_line(i, arch, off=not in_body and not is_of_step(i, load, store)) for i in code]

    return Program(
        name,
        arch,
        encoded(path.prologue, in_body=False),
        encoded(path.body, in_body=True),
        encoded(path.between, in_body=False),
        encoded(path.epilogue, in_body=False),
        served,
        stored // of_pass if of_pass else 0,
        path.in_loop,
        sum(bytes_of_warp(i) for i in path.body if i.base == "LDG"),
        sum(
            bytes_of_warp(i)
            for i in outside
            if i.base == "LDG" and not i.guard and not is_of_step(i, load, store)
        ),
        resident_blocks(arch, usage["REG"], usage["SHARED"]),
        usage["REG"],
    )


def _line(instruction: Instruction, arch: str, *, off: bool) -> str:
    """Pipe, its cycles, latency, kind, bytes, then the registers written and those read.

    `off`: guarded global accesses have no effect.
    """
    how = timing(instruction, arch)
    kind, moved = how.kind, bytes_of_warp(instruction)
    if off and instruction.guard and kind in (Kind.LOAD, Kind.STORE):
        kind = Kind.COMPUTE
    if kind not in (Kind.LOAD, Kind.STORE, Kind.SHARED):
        moved = 0
    used = use(instruction)
    lists = [sorted(map(_register, names)) for names in (used.writes, used.reads)]
    numbers = [how.pipe, how.occupied, how.latency, kind, moved]
    for registers in lists:
        numbers += [len(registers), *registers]
    return " ".join(str(int(n)) for n in numbers)


def _register(name: str) -> int:
    kind, number = re.fullmatch(r"(\D+)(\d+)", name).groups()  # type: ignore[union-attr]
    return _FIRST[kind] + int(number)
