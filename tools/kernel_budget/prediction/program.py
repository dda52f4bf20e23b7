"""A kernel in the format of the simulation."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from ..hot_path import hot_path
from ..kernels import cubins, elements, has_many_paths, kernels_of
from ..occupancy import resident_blocks
from ..registers import use
from ..sass import Instruction, widest, width
from .paths import is_of_step, way
from .pipes import Kind, bytes_of_warp, timing

# The first number of each kind of register.
_FIRST = {"R": 0, "UR": 256, "P": 512, "UP": 520}


class Program(NamedTuple):
    """A kernel. `sections` are the prologue, the body, the path between two tiles and the epilogue.

    An instruction is a list of numbers: its pipe, cycles, latency, kind and bytes, then the number
    of the registers that it writes and these registers, then the same for those that it reads.
    """

    name: str
    arch: str
    sections: tuple[list[list[int]], ...]
    elements: int  # of a thread in one pass of the loop
    peeled: int  # passes that are outside of the loop
    load_bytes: int  # of a warp in one pass
    other_bytes: int  # that a warp loads once: the gradient of the KL
    resident_blocks: int


def programs(file: Path, kernel: str, archs: Collection[str]) -> Iterator[Program]:
    """The programs of these architectures' kernels whose short name contains `kernel`."""
    for arch, cubin in cubins(file):
        for name, usage, code in kernels_of(cubin) if arch.rstrip("af") in archs else ():
            is_asked = kernel in name and not has_many_paths(name)
            if is_asked and (served := elements(name, hot_path(code))):
                yield program(name, arch, usage, code, served)


def program(
    name: str, arch: str, usage: dict[str, int], code: list[Instruction], served: int
) -> Program:
    """The program of a kernel whose hot path serves a number of elements."""
    path = way(code)
    wide = widest(path.body, "LDG"), widest(path.body, "STG")
    outside = [*path.prologue, *path.epilogue]
    stored = sum(width(i) for i in outside if i.base == "STG" and is_of_step(i, *wide))
    of_pass = sum(width(i) for i in path.body if i.base == "STG")
    loads = (i for i in outside if i.base == "LDG" and not i.guard)

    def encoded(section: list[Instruction]) -> list[list[int]]:
        is_on = section is path.body
        return [_numbers(i, arch, off=not is_on and not is_of_step(i, *wide)) for i in section]

    return Program(
        name,
        arch,
        tuple(map(encoded, path)),
        served,
        stored // of_pass if of_pass else 0,
        sum(bytes_of_warp(i) for i in path.body if i.base == "LDG"),
        sum(bytes_of_warp(i) for i in loads if not is_of_step(i, *wide)),
        resident_blocks(arch, usage["REG"], usage["SHARED"]),
    )


def _numbers(instruction: Instruction, arch: str, *, off: bool) -> list[int]:
    """An instruction of a Program. `off`: guarded global accesses have no effect."""
    how = timing(instruction, arch)
    kind = how.kind
    if off and instruction.guard and kind in (Kind.LOAD, Kind.STORE):
        kind = Kind.COMPUTE
    moved = bytes_of_warp(instruction) if kind in (Kind.LOAD, Kind.STORE, Kind.SHARED) else 0
    found = [*how[:3], kind, moved]
    for names in reversed(use(instruction)):
        found += [len(names), *sorted(map(_register, names))]
    return found


def _register(name: str) -> int:
    kind = name.rstrip("0123456789")
    return _FIRST[kind] + int(name.removeprefix(kind))
