"""A kernel's instructions, decoded once into functions, and the ends of straight-line code."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

from tools.kernel_budget.sass import Instruction, width

from . import access, control, conversion, floating, integer, moves
from .cubin import Kernel
from .errors import UnknownInstructionError
from .fields import TABLE, Execute, Fields, Read, predicate_reader
from .operands import Predicate, parse
from .warps import Warps, Where

# These imports have filled the table of instructions.
DEFINITIONS = (access, conversion, floating, integer, moves)


@dataclasses.dataclass(frozen=True)
class Control:
    """An instruction that ends straight-line code. Lanes with a false guard fall through."""

    effect: control.Effect
    guard: Read | None


@dataclasses.dataclass
class Program:
    name: str
    instructions: list[Instruction]
    executes: list[Execute]  # no-ops for control instructions
    guards: list[Read | None]
    controls: dict[int, Control]
    line_ends: list[int]  # the next control instruction of each instruction
    constants: set[tuple[int, int, int]]

    @functools.cached_property
    def shared_unit(self) -> int:
        """Bytes of the narrowest access to shared memory, at most 4."""
        accesses = (i for i in self.instructions if i.base in ("LDS", "STS", "ATOMS"))
        return min((width(i) // 8 for i in accesses), default=4)


def decode(kernel: Kernel) -> Program:
    """Decode a kernel. Unknown instructions raise UnknownInstructionError even if unreachable."""
    return decode_instructions(kernel.name, kernel.code)


def decode_instructions(name: str, code: Sequence[Instruction]) -> Program:
    instructions = _without_padding(code)
    index_of = {i.address: k for k, i in enumerate(instructions)}
    program = Program(name, instructions, [], [], {}, [], set())
    for k, i in enumerate(instructions):
        try:
            program.guards.append(_guard(i))
            if i.base in control.TABLE:
                effect = control.TABLE[i.base](i, control.Place(k, index_of, instructions))
                program.controls[k] = Control(effect, _guard(i))
                program.executes.append(lambda s, w: None)
            else:
                program.executes.append(_decoded(i, program.constants))
        except UnknownInstructionError as error:
            raise UnknownInstructionError(f"{name}: {error}") from error
    end = len(instructions)
    for k in reversed(range(end)):
        end = k if k in program.controls else end
        program.line_ends.append(end)
    program.line_ends.reverse()
    return program


def _without_padding(code: Sequence[Instruction]) -> list[Instruction]:
    """Remove the branch to itself and the NOPs at the end of a function."""
    end = len(code)
    while end > 0 and (
        code[end - 1].base == "NOP" or code[end - 1].targets == (code[end - 1].address,)
    ):
        end -= 1
    return list(code[:end])


def _guard(i: Instruction) -> Read | None:
    if not i.guard or i.guard in ("@PT", "@UPT"):
        return None
    predicate = parse(i.guard.removeprefix("@"))
    if not isinstance(predicate, Predicate):
        raise UnknownInstructionError(f"guard {i.guard}")
    return predicate_reader(predicate)


def _decoded(i: Instruction, constants: set[tuple[int, int, int]]) -> Execute:
    if i.base not in TABLE:
        raise UnknownInstructionError(f"instruction `{i.opcode} {i.operands}` at {i.address:#x}")
    fields = Fields(i)
    execute = TABLE[i.base](fields)
    guard = _guard(i)
    if guard is None:
        constants |= fields.constants
    elif fields.uniform and not i.guard.removeprefix("@").removeprefix("!").startswith("U"):
        raise fields.unknown("a guard of threads")
    if guard is not None:
        execute = _guarded(execute, guard)
    return _for_warps(execute) if fields.uniform else execute


def _for_warps(execute: Execute) -> Execute:
    return lambda s, w: execute(s, s.present)


def _guarded(execute: Execute, guard: Read) -> Execute:
    def run(s: Warps, w: Where) -> None:
        condition = guard(s)
        # Copy the guard, because the instruction may write it.
        where = condition.copy() if w is True else condition & w
        if where.any():
            execute(s, where)

    return run
