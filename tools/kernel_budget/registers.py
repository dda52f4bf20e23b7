"""Which registers a SASS instruction reads and writes.

Registers are named as in the listing: R0, UR0, P0, UP0. RZ, URZ, PT and UPT hold constants and are
never reported. A 64-bit operand is reported as two registers, a 128-bit operand as four. The guard
is read. A guarded instruction that does not run leaves its destination unchanged, so the
destination is written, but not read.

In a listing the destinations come first:

  [predicates] register [predicates] sources      ISETP has two predicates and no register;
                                                  IADD3 and LEA have their carries after it
  sources                                         for a store, a branch or a barrier
"""

from __future__ import annotations

import re
from typing import NamedTuple

from .sass import Instruction, width

NO_DESTINATION = re.compile(
    "(BAR|BPT|BRA|BREAK|BRX|BSSY|BSYNC|CALL|CCTLL?|CGAERRBAR|DEPBAR|ERRBAR|EXIT|JMP|JMX|KILL|"
    "LDGDEPBAR|LDGSTS|MEMBAR|NANOSLEEP|NOP|REDG?|REDAS|RET|ST|STAS|STG|STL|STS|WARPSYNC|YIELD)$"
)
TWO_PREDICATES = re.compile(r"U?(ISETP|FSETP|PLOP3|PSETP)$|DSETP$|HSETP2$")
CARRIES = re.compile(r"U?(IADD3|IADD|LEA|IMAD|VIADD|VIMNMX)$")
INTEGER_PAIRS = re.compile(r"U?(IMNMX|VIMNMX|ISETP)$")  # if their type is S64 or U64
VOTES = ("VOTE", "VOTEU")
ATOMICS = ("ATOM", "ATOMG", "ATOMS")
LOADS = ("LD", "LDC", "LDCU", "LDG", "LDL", "LDS", "ULDC", *ATOMICS)
GLOBAL = ("LD", "LDG", "ST", "STG", "ATOM", "ATOMG", "RED", "REDG", "LDGSTS")
STORES = ("ST", "STG", "STL", "STS", "RED", "REDG")
PAIRS = ("DADD", "DMUL", "DFMA", "DSETP", "DMNMX", "FADD2", "FMUL2", "FFMA2")
ALL_PREDICATES = frozenset(f"P{n}" for n in range(7))

_PREDICATE = re.compile(r"U?P(T|\d)$")
_REGISTER = re.compile(r"(?<![\w.])(U?R)(\d+)((?:\.\w+)*)")
_NAMED = re.compile(r"(?<![\w.])(U?P\d)\b")
_GENERAL = re.compile(r"(U?R)(Z|\d+)(\.\w+)*$")


class Use(NamedTuple):
    reads: frozenset[str]
    writes: frozenset[str]


def use(instruction: Instruction) -> Use:
    """The registers that an instruction reads and writes."""
    operands = split(instruction.operands)
    count = _destinations(instruction, operands)
    reads = frozenset(_NAMED.findall(instruction.guard.lstrip("@!")))
    reads = reads.union(*(_source(instruction, n, o) for n, o in enumerate(operands[count:])))
    words = _result_words(instruction)
    writes = frozenset[str]().union(*(_named(operand, words) for operand in operands[:count]))
    if instruction.base == "R2P":
        writes |= ALL_PREDICATES
    if instruction.base == "P2R":
        reads |= ALL_PREDICATES
    return Use(reads, writes)


def split(operands: str) -> list[str]:
    """The operands between commas outside of brackets, including a label after a blank."""
    found = re.findall(r"(?:\[[^\]]*\]|\([^)]*\)|\{[^}]*\}|[^,\[({])+", operands)
    return [part.strip() for part in found if part.strip()]


def _destinations(instruction: Instruction, operands: list[str]) -> int:
    """The number of leading operands that are written."""
    base = instruction.base
    if NO_DESTINATION.match(base) or not operands:
        return 0
    if TWO_PREDICATES.match(base):
        return 2
    count = 0
    while count < len(operands) - 1 and _PREDICATE.match(operands[count]):
        count += 1
        if base in VOTES:
            return count
    if count < len(operands) and _GENERAL.match(operands[count]):
        # A 256-bit load names two groups of four registers.
        count += 2 if "ENL2" in instruction.modifiers else 1
        behind = 2 if CARRIES.match(base) else 1 if base in VOTES else 0
        while behind and count < len(operands) - 1 and _PREDICATE.match(operands[count]):
            count += 1
            behind -= 1
    return count


def _result_words(instruction: Instruction) -> int:
    base, modifiers = instruction.base, instruction.modifiers
    if "ENL2" in modifiers:
        return 4
    if base in LOADS:
        return max(1, width(instruction) // 32)
    is_wide = base in ("IMAD", "UIMAD") and "WIDE" in modifiers
    if _has_pairs(instruction) or is_wide or (base == "CS2R" and "32" not in modifiers):
        return 2
    return _converted(base, modifiers)[0]


def _has_pairs(instruction: Instruction) -> bool:
    """Whether all operands of an instruction are pairs of registers."""
    base, modifiers = instruction.base, instruction.modifiers
    is_integer = INTEGER_PAIRS.match(base) and {"S64", "U64"} & set(modifiers)
    return bool(is_integer) or base in PAIRS or "64" in modifiers


def _converted(base: str, modifiers: list[str]) -> tuple[int, int]:
    """Words of a conversion's result and of its source; one and one for other instructions."""
    floating = 1 + ("F64" in modifiers)
    integer = 1 + bool({"S64", "U64"} & set(modifiers))
    if base == "I2F":
        return floating, integer
    if base == "F2I":
        return integer, floating
    if base == "FRND":
        return floating, floating
    types = [m for m in modifiers if re.fullmatch(r"F(16|32|64)", m)]
    if base == "F2F" and len(types) == 2:  # the result's type comes first
        return 1 + (types[0] == "F64"), 1 + (types[1] == "F64")
    return 1, 1


def _source(instruction: Instruction, place: int, operand: str) -> set[str]:
    base, modifiers = instruction.base, instruction.modifiers
    if "[" in operand:
        return set(_NAMED.findall(operand)) | _address(instruction, operand)
    if base in STORES or base in ATOMICS:
        words = max(1, width(instruction) // 32)
    elif base not in LOADS and _has_pairs(instruction):
        words = 2
    elif base in ("IMAD", "UIMAD") and {"WIDE", "HI"} & set(modifiers):
        words = 2 if place == 2 else 1  # only the addend has 64 bits
    elif base in ("RET", "BRX", "JMX", "CALL"):
        words = 2
    else:
        words = _converted(base, modifiers)[1]
    return _named(operand, words)


def _address(instruction: Instruction, operand: str) -> set[str]:
    """The registers of `desc[UR18][R8.64+UR4+0x10]`, `[R13+UR4]` or `c[0x0][R2]`."""
    found: set[str] = set()
    is_global = instruction.base in GLOBAL and "E" in instruction.modifiers
    for kind, inside in re.findall(r"(\w*)\[([^\]]*)\]", operand):
        for register, number, suffix in _REGISTER.findall(inside):
            # Up to sm_75 the register of a 64-bit address has no suffix.
            is_wide = is_global and (register == "UR" or ".U32" not in suffix)
            words = 2 if is_wide or kind == "desc" or ".64" in suffix else 1
            found |= {f"{register}{int(number) + k}" for k in range(words)}
    return found


def _named(operand: str, words: int) -> set[str]:
    """An operand's registers if it has `words` 32-bit words; predicates are single."""
    found = set(_NAMED.findall(operand))
    for kind, number, suffix in _REGISTER.findall(operand):
        count = 2 if ".64" in suffix else words
        found |= {f"{kind}{int(number) + k}" for k in range(count)}
    return found
