"""Instructions that determine where threads continue: branches, barriers, reconvergence."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from tools.kernel_budget.sass import Instruction

from .errors import ConvergenceError, UnknownInstructionError
from .fields import U32, Fields, Read, predicate_reader
from .operands import Predicate, parse, split
from .warps import LANES

if TYPE_CHECKING:
    from .schedule import Group

# The effect of an instruction on the lanes that execute it: each lane continues or waits.
Effect = Callable[["Group", np.ndarray], None]

_BIT = U32(1) << np.arange(LANES, dtype=U32)
# A collective is three instructions: WARPSYNC.COLLECTIVE, one instruction, ENDCOLLECTIVE.
_COLLECTIVE = 3
_BYTES = 16  # per instruction


@dataclasses.dataclass(frozen=True)
class Place:
    """The place of an instruction in the decoded program. It converts addresses to places."""

    at: int
    index_of: dict[int, int]
    instructions: list[Instruction]


Define = Callable[[Instruction, Place], Effect]
TABLE: dict[str, Define] = {}


def _control(base: str) -> Callable[[Define], Define]:
    def enter(define: Define) -> Define:
        TABLE[base] = define
        return define

    return enter


def _unknown(i: Instruction, what: str) -> UnknownInstructionError:
    return UnknownInstructionError(
        f"not supported: {what} in `{i.opcode} {i.operands}` at {i.address:#x}"
    )


def _modifiers(i: Instruction, *allowed: str) -> list[str]:
    found = i.opcode.split(".")[1:]
    for modifier in found:
        if modifier not in allowed:
            raise _unknown(i, f"modifier {modifier}")
    return found


def _target(i: Instruction, place: Place) -> int:
    if len(i.targets) != 1 or i.targets[0] not in place.index_of:
        raise _unknown(i, "no single target")
    return place.index_of[i.targets[0]]


@_control("BRA")
def _bra(i: Instruction, place: Place) -> Effect:
    modifiers, target = _modifiers(i, "U", "DIV"), _target(i, place)
    *before, _ = split(i.operands)
    if "DIV" in modifiers:
        return _diverged(
            Fields(dataclasses.replace(i, operands=before[0])).integer(), place, target
        )
    conditions = [parse(text) for text in before]
    if not all(isinstance(condition, Predicate) for condition in conditions):
        raise _unknown(i, "a condition that is no predicate")
    reads = [predicate_reader(c) for c in conditions if isinstance(c, Predicate)]

    def effect(group: Group, lanes: np.ndarray) -> None:
        taken = lanes
        for read in reads:
            taken = taken & read(group.warps)
        group.go(target, taken)
        if reads:
            group.go(place.at + 1, lanes & ~taken)

    return effect


@_control("BRX")
@_control("BRXU")
def _brx(i: Instruction, place: Place) -> Effect:
    """Branch to an address in a register pair, relative to the next instruction.

    The pair comes from a `switch` table in constant bank 2.
    """
    _modifiers(i)
    register, _, offset = i.operands.partition(" ")
    if not re.fullmatch(r"-?0x[0-9a-f]+", offset):
        raise _unknown(i, "no offset")
    # BRX reads per-thread registers, and BRXU reads uniform registers. `pair` accepts both.
    distance = Fields(dataclasses.replace(i, operands=register)).pair()
    origin = i.address + _BYTES + int(offset, 16)

    def effect(group: Group, lanes: np.ndarray) -> None:
        places = group.warps.full(distance(group.warps)).view(np.int64) + origin
        _go_each(i, place, group, lanes, places)

    return effect


def _go_each(
    i: Instruction, place: Place, group: Group, lanes: np.ndarray, places: np.ndarray
) -> None:
    """Send each lane to its own address."""
    for to in np.unique(places[lanes]).tolist():
        if to not in place.index_of:
            raise ConvergenceError(f"{i.base} at {i.address:#x} to {to:#x}")
        group.go(place.index_of[to], lanes & (places == to))


def _diverged(mask: Read, place: Place, target: int) -> Effect:
    """BRA.DIV: branch if not all lanes of the mask are converged.

    Both paths compute the same values. A warp whose lanes are converged takes one of the paths at
    random, because the path for divergent warps would otherwise never run.
    """

    def effect(group: Group, lanes: np.ndarray) -> None:
        warps = group.warps
        wanted = (warps.full(mask(warps)) & _BIT) != 0
        together = (lanes == wanted).all(axis=1, keepdims=True)
        by_chance = warps.environment.random.random((warps.count, 1)) < 0.5
        taken = lanes & (~together | by_chance)
        group.go(target, taken)
        group.go(place.at + 1, lanes & ~taken)

    return effect


@_control("BSSY")
def _bssy(i: Instruction, place: Place) -> Effect:
    """Record the lanes that will meet at the BSYNC just before the instruction's target."""
    _modifiers(i)
    barrier, target = split(i.operands)[0], _target(i, place)
    before = place.instructions[target - 1]
    if before.base != "BSYNC" or before.operands != barrier:
        raise _unknown(i, "no BSYNC in front of the target")

    def effect(group: Group, lanes: np.ndarray) -> None:
        group.remember(barrier, lanes)
        group.go(place.at + 1, lanes)

    return effect


@_control("BSYNC")
def _bsync(i: Instruction, place: Place) -> Effect:
    _modifiers(i)
    barrier = split(i.operands)[0]

    def effect(group: Group, lanes: np.ndarray) -> None:
        members = group.members.get(barrier)
        if members is None or (members[lanes] == 0).any():
            raise ConvergenceError(f"BSYNC at {i.address:#x} by lanes that no BSSY has joined")
        group.meet((barrier, place.at), lanes, lambda: members)

    return effect


@_control("WARPSYNC")
def _warpsync(i: Instruction, place: Place) -> Effect:
    modifiers = _modifiers(i, "ALL", "COLLECTIVE")
    everyone = np.full((1, 1), 0xFFFFFFFF, np.uint32)
    if "ALL" in modifiers:
        wanted = lambda s: everyone  # noqa: E731
    else:
        text = split(i.operands)[0]
        mask = Fields(dataclasses.replace(i, operands=text)).integer()
        wanted = lambda s: s.full(mask(s))  # noqa: E731
    if "COLLECTIVE" in modifiers and _target(i, place) != place.at + _COLLECTIVE:
        raise _unknown(i, "more than one collective instruction")

    def effect(group: Group, lanes: np.ndarray) -> None:
        group.meet(("WARPSYNC", place.at), lanes, lambda: wanted(group.warps))

    return effect


@_control("BAR")
def _bar(i: Instruction, place: Place) -> Effect:
    _modifiers(i, "SYNC", "DEFER_BLOCKING")
    if i.operands != "0x0":
        raise _unknown(i, "a barrier other than 0")
    return lambda group, lanes: group.wait_for_block(place.at + 1, lanes)


@_control("EXIT")
def _exit(i: Instruction, place: Place) -> Effect:
    _modifiers(i)
    return lambda group, lanes: group.leave(lanes)


@_control("CALL")
def _call(i: Instruction, place: Place) -> Effect:
    """Jump. The code before the CALL has stored the return address in registers."""
    _modifiers(i, "REL", "NOINC")
    target = _target(i, place)
    return lambda group, lanes: group.go(target, lanes)


@_control("RET")
def _ret(i: Instruction, place: Place) -> Effect:
    """Branch to the address in a register pair, relative to the kernel's first instruction."""
    _modifiers(i, "REL", "NODEC")
    register, _, base = i.operands.partition(" ")
    if base.strip() != "0x0":
        raise _unknown(i, "a base other than the kernel's")
    address = Fields(dataclasses.replace(i, operands=register)).pair()

    def effect(group: Group, lanes: np.ndarray) -> None:
        _go_each(i, place, group, lanes, group.warps.full(address(group.warps)))

    return effect
