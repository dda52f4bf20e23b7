"""Parses the text of one operand in cuobjdump's format."""

from __future__ import annotations

import dataclasses
import functools
import re

from .errors import UnknownInstructionError

RZ = 255  # the register that reads as 0
URZ = 63
PT = 7  # the predicate that is true

_REGISTER = re.compile(r"(U?)R(\d+|Z)(?:\.(H0_H0|H1_H1))?$")
_PREDICATE = re.compile(r"(!?)(U?)P([0-6T])$")
_CONSTANT = re.compile(r"c\[0x([0-9a-f]+)\]\[(?:(U?)R(\d+|Z)\+?)?(-?0x[0-9a-f]+)?\]$")
_ADDRESS = re.compile(
    r"(?:desc\[UR\d+\])?\[(?P<base>U?R(?:\d+|Z))?(?P<wide>\.64)?"
    r"(?:\+?(?P<uniform>UR\d+))?(?:\+?(?P<offset>-?0x[0-9a-f]+))?\]$"
)
_INTEGER = re.compile(r"-?0x[0-9a-f]+$")
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?(e[-+]?\d+)?|INF|QNAN)$", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Register:
    number: int
    uniform: bool = False
    negated: bool = False
    absolute: bool = False
    inverted: bool = False
    half: int | None = None  # the half that is selected


@dataclasses.dataclass(frozen=True)
class Predicate:
    number: int
    uniform: bool = False
    negated: bool = False


@dataclasses.dataclass(frozen=True)
class Constant:
    bank: int
    offset: int
    index: Register | None = None
    negated: bool = False
    absolute: bool = False
    inverted: bool = False


@dataclasses.dataclass(frozen=True)
class Integer:
    """Bits in hexadecimal, without a sign."""

    value: int


@dataclasses.dataclass(frozen=True)
class Number:
    """A floating-point value in decimal."""

    value: float


@dataclasses.dataclass(frozen=True)
class Address:
    base: Register | None
    wide: bool  # the base is a register pair
    uniform: Register | None
    offset: int


@dataclasses.dataclass(frozen=True)
class Name:
    """A special register, the barrier of a BSSY, or "PR"."""

    text: str


Operand = Register | Predicate | Constant | Integer | Number | Address | Name


def split(text: str) -> list[str]:
    """The operands of an instruction, without hints that do not affect values."""
    text = text.replace(".reuse", "")
    return [part.strip() for part in text.split(",")] if text.strip() else []


def _register(text: str) -> Register | None:
    match = _REGISTER.match(text)
    if match is None:
        return None
    uniform, number, half = match.groups()
    zero = URZ if uniform else RZ
    which = None if half is None else int(half[1])
    return Register(zero if number == "Z" else int(number), bool(uniform), half=which)


@functools.lru_cache(maxsize=1 << 16)
def parse(text: str) -> Operand:
    """Return the parsed operand. Raises UnknownInstructionError for unknown forms."""
    if match := _PREDICATE.match(text):
        negated, uniform, number = match.groups()
        return Predicate(PT if number == "T" else int(number), bool(uniform), bool(negated))
    if _INTEGER.match(text):
        return Integer(int(text, 16))
    if _NUMBER.match(text):
        return Number(float(text.upper().replace("QNAN", "NAN")))
    if text == "SRZ":
        return Register(RZ)
    if re.fullmatch(r"SR_[\w.]+|B\d+|PR", text):
        return Name(text)
    if match := _ADDRESS.match(text):
        base = _register(match["base"]) if match["base"] else None
        uniform = _register(match["uniform"]) if match["uniform"] else None
        return Address(base, bool(match["wide"]), uniform, int(match["offset"] or "0", 16))
    return _value(text)


def _value(text: str) -> Operand:
    """A register or a constant with its signs: "-R4", "~R4", "|R4|", "-|c[0x0][0x10]|"."""
    bare = text
    negated = bare.startswith("-")
    bare = bare.removeprefix("-")
    inverted = bare.startswith("~")
    bare = bare.removeprefix("~")
    absolute = len(bare) > 2 and bare[0] == bare[-1] == "|"
    bare = bare[1:-1] if absolute else bare
    signs = {"negated": negated, "absolute": absolute, "inverted": inverted}
    if register := _register(bare):
        return dataclasses.replace(register, **signs)
    if match := _CONSTANT.match(bare):
        bank, uniform, number, offset = match.groups()
        index = None
        if number is not None and number != "Z":
            index = Register(int(number), uniform == "U")
        return Constant(int(bank, 16), int(offset or "0", 16), index, **signs)
    raise UnknownInstructionError(f"operand {text}")
