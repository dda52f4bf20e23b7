"""Finds the vector registers that a SASS instruction reads and writes.

An operand names its first register, and the opcode determines how many follow. Registers are named
as in the listing: R0, R1. RZ always holds zero and is omitted. Uniform registers and predicates are
omitted too, because no load from global memory writes them.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from .sass import Instruction, width

MEMORY = re.compile("(LD|ST|ATOM|RED)[GSL]?$|LDC$")
GLOBAL = ("LD", "LDG", "ST", "STG", "ATOM", "ATOMG", "RED", "REDG", "LDGSTS")
PAIRS = ("DADD", "DMUL", "DFMA", "DSETP", "DMNMX", "FADD2", "FMUL2", "FFMA2")
INTEGER_PAIRS = re.compile("(IMNMX|VIMNMX|ISETP)$")  # if their type is S64 or U64
ADDRESSES = ("RET", "BRX", "JMX", "CALL")  # their register holds a 64-bit address
NO_DESTINATION = re.compile(r"\w*SETP2?$|RET$|BRX$|JMX$|CALL$|BAR$|WARPSYNC$|NANOSLEEP$")

_OPERAND = re.compile(r"(?:\[[^\]]*\]|\([^)]*\)|\{[^}]*\}|[^,\[({])+")
_PREDICATE = re.compile(r"!?U?P(T|\d)$")
_REGISTER = re.compile(r"(?<![\w.])R(\d+)((?:\.\w+)*)")


class Use(NamedTuple):
    reads: frozenset[str]
    writes: frozenset[str]


def use(instruction: Instruction) -> Use:
    """Return the registers that an instruction reads and writes. Address registers are read."""
    operands = (text.strip() for text in _OPERAND.findall(instruction.operands))
    destinations = 0 if NO_DESTINATION.match(instruction.base) else 1
    if "ENL2" in instruction.modifiers:  # 256 bits are two groups of four registers
        destinations = 2
    reads, writes = set[str](), set[str]()
    for place, operand in enumerate(o for o in operands if not _PREDICATE.match(o)):
        named = writes if place < destinations and "[" not in operand else reads
        for first, suffix in _REGISTER.findall(operand):
            count = 2 if ".64" in suffix else _words(instruction, place, operand, suffix)
            named |= {f"R{int(first) + k}" for k in range(count)}
    return Use(frozenset(reads), frozenset(writes))


def _words(instruction: Instruction, place: int, operand: str, suffix: str) -> int:
    """Return how many registers an operand has. Place 0 is the destination, if there is one."""
    base, modifiers = instruction.base, set(instruction.modifiers)
    if "[" in operand:  # up to sm_75 the register of a 64-bit address has no suffix
        return 2 if base in GLOBAL and "E" in modifiers and ".U32" not in suffix else 1
    if MEMORY.match(base):
        return min(4, max(1, width(instruction) // 32))
    is_integer_pair = INTEGER_PAIRS.match(base) and {"S64", "U64"} & modifiers
    if base in (*PAIRS, *ADDRESSES) or "64" in modifiers or is_integer_pair:
        return 2
    if base == "IMAD" and {"WIDE", "HI"} & modifiers:  # the addend and a wide result have 64 bits
        return 2 if place == 3 or (place == 0 and "WIDE" in modifiers) else 1
    if base == "CS2R":
        return 1 if "32" in modifiers else 2
    return 2 if _has_wide_type(base, instruction.modifiers, place == 0) else 1


def _has_wide_type(base: str, modifiers: list[str], is_result: bool) -> bool:
    """Return whether the result or the source of a conversion has 64 bits."""
    is_floating, is_integer = "F64" in modifiers, bool({"S64", "U64"} & set(modifiers))
    if base == "F2F":  # the type of the result comes first
        types = [m for m in modifiers if re.fullmatch(r"F(16|32|64)", m)]
        return len(types) == 2 and types[0 if is_result else 1] == "F64"
    if base in ("I2F", "F2I"):
        return is_floating if is_result == (base == "I2F") else is_integer
    return base == "FRND" and is_floating
