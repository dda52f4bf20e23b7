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

import dataclasses
import re

from sass import Instruction, width


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


NO_DESTINATION = _names(
    "BAR BPT BRA BREAK BRX BSSY BSYNC CALL CCTL CCTLL CGAERRBAR DEPBAR ERRBAR EXIT JMP JMX KILL "
    "LDGDEPBAR LDGSTS MEMBAR NANOSLEEP NOP RED REDG REDAS RET ST STAS STG STL STS WARPSYNC "
    "YIELD"
)
TWO_PREDICATES = re.compile(r"U?(ISETP|FSETP|PLOP3|PSETP)$|DSETP$|HSETP2$")
CARRIES = re.compile(r"U?(IADD3|IADD|LEA|IMAD|VIADD|VIMNMX)$")
INTEGER_PAIRS = re.compile(r"U?(IMNMX|VIMNMX|ISETP)$")  # if their type is S64 or U64
VOTES = ("VOTE", "VOTEU")
LOADS = _names("LD LDC LDCU LDG LDL LDS ULDC ATOM ATOMG ATOMS")
GLOBAL = _names("LD LDG ST STG ATOM ATOMG RED REDG LDGSTS")
STORES = _names("ST STG STL STS RED REDG")
DOUBLES = _names("DADD DMUL DFMA DSETP DMNMX")
PAIRS = _names("FADD2 FMUL2 FFMA2")  # two floats at once

_PREDICATE = re.compile(r"U?P(T|\d)$")
_REGISTER = re.compile(r"(?<![\w.])(U?R)(\d+)((?:\.\w+)*)")
_NAMED = re.compile(r"(?<![\w.])(U?P\d)\b")
_GENERAL = re.compile(r"(U?R)(Z|\d+)(\.\w+)*$")


@dataclasses.dataclass(frozen=True)
class Use:
    reads: frozenset[str]
    writes: frozenset[str]


def use(instruction: Instruction) -> Use:
    """The registers that an instruction reads and writes."""
    operands = split(instruction.operands)
    count = _destinations(instruction, operands)
    writes: set[str] = set()
    reads = set(_NAMED.findall(instruction.guard.lstrip("@!")))
    for place, operand in enumerate(operands[:count]):
        writes |= _named(operand, _result_words(instruction, place))
    sources = operands[count:]
    for place, operand in enumerate(sources):
        reads |= _source(instruction, place, operand)
    if instruction.base == "R2P":
        writes |= {f"P{n}" for n in range(7)}
    if instruction.base == "P2R":
        reads |= {f"P{n}" for n in range(7)}
    return Use(frozenset(reads), frozenset(writes))


def split(operands: str) -> list[str]:
    """The operands between commas outside of brackets, including a label after a blank."""
    parts: list[str] = []
    depth, part = 0, ""
    for character in operands:
        depth += (character in "[({") - (character in "])}")
        if character == "," and depth == 0:
            parts.append(part.strip())
            part = ""
        else:
            part += character
    if part.strip():
        parts.append(part.strip())
    return parts


def _destinations(instruction: Instruction, operands: list[str]) -> int:
    """The number of leading operands that are written."""
    base = instruction.base
    if base in NO_DESTINATION or not operands:
        return 0
    if TWO_PREDICATES.match(base):
        return 2
    count = 0
    while count < len(operands) - 1 and _PREDICATE.match(operands[count]):
        count += 1
        if base in VOTES:
            return count
    if count < len(operands) and _GENERAL.match(operands[count]):
        count += 1
        behind = 2 if CARRIES.match(base) else 1 if base in VOTES else 0
        if "ENL2" in instruction.opcode:  # a 256-bit load names two groups of four
            count += 1
        while behind and count < len(operands) - 1 and _PREDICATE.match(operands[count]):
            count += 1
            behind -= 1
    return count


def _result_words(instruction: Instruction, place: int) -> int:
    base, modifiers = instruction.base, instruction.opcode.split(".")[1:]
    if "ENL2" in modifiers:
        return 4
    if base in LOADS:
        return max(1, width(instruction) // 32)
    if _of_64_bits(base, modifiers):
        return 2
    if base in ("IMAD", "UIMAD") and "WIDE" in modifiers:
        return 2
    if base == "CS2R" and "32" not in modifiers:
        return 2
    return _converted(base, modifiers)[0]


def _of_64_bits(base: str, modifiers: list[str]) -> bool:
    """Whether all operands of an instruction are pairs of registers."""
    if INTEGER_PAIRS.match(base) and {"S64", "U64"} & set(modifiers):
        return True
    return base in DOUBLES or base in PAIRS or "64" in modifiers


def _converted(base: str, modifiers: list[str]) -> tuple[int, int]:
    """Words of a conversion's result and of its source; one and one for other instructions."""
    wide = {kind: kind + "64" in modifiers for kind in "FSU"}
    integer = wide["S"] or wide["U"]
    if base == "I2F":
        return 1 + wide["F"], 1 + integer
    if base == "F2I":
        return 1 + integer, 1 + wide["F"]
    if base == "FRND":
        return 1 + wide["F"], 1 + wide["F"]
    types = [m for m in modifiers if re.fullmatch(r"F(16|32|64)", m)]
    if base == "F2F" and len(types) == 2:  # the result's type comes first
        return 1 + (types[0] == "F64"), 1 + (types[1] == "F64")
    return 1, 1


def _source(instruction: Instruction, place: int, operand: str) -> set[str]:
    base, modifiers = instruction.base, instruction.opcode.split(".")[1:]
    found = set(_NAMED.findall(operand))
    if "[" in operand:
        return found | _address(instruction, operand)
    words = 1
    if base in STORES or base in ("ATOM", "ATOMG", "ATOMS"):
        words = max(1, width(instruction) // 32)
    elif base not in LOADS and _of_64_bits(base, modifiers):
        words = 2
    elif base in ("IMAD", "UIMAD") and {"WIDE", "HI"} & set(modifiers):
        words = 2 if place == 2 else 1  # only the addend has 64 bits
    elif base in ("RET", "BRX", "JMX", "CALL"):
        words = 2
    else:
        words = _converted(base, modifiers)[1]
    return found | _named(operand, words)


def _address(instruction: Instruction, operand: str) -> set[str]:
    """The registers of `desc[UR18][R8.64+UR4+0x10]`, `[R13+UR4]` or `c[0x0][R2]`."""
    found: set[str] = set()
    extended = instruction.base in GLOBAL and "E" in instruction.opcode.split(".")
    for inside in re.findall(r"(\w*)\[([^\]]*)\]", operand):
        for kind, number, suffix in _REGISTER.findall(inside[1]):
            wide = inside[0] == "desc" or ".64" in suffix
            if extended and (kind == "UR" or ".U32" not in suffix):
                wide = True  # up to sm_75 the register of a 64-bit address has no suffix
            found |= {f"{kind}{int(number) + k}" for k in range(2 if wide else 1)}
    return found


def _named(operand: str, words: int) -> set[str]:
    """An operand's registers if it has `words` 32-bit words; predicates are single."""
    found = set(_NAMED.findall(operand))
    for kind, number, suffix in _REGISTER.findall(operand):
        count = 2 if ".64" in suffix else words
        found |= {f"{kind}{int(number) + k}" for k in range(count)}
    return found
