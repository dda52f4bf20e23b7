"""Integer arithmetic, shifts and logic. Carries are as in hardware: -x is ~x + 1."""

from __future__ import annotations

from typing import Any

import numpy as np

from .fields import I32, I64, U32, U64, ZERO, Execute, Fields, Read, instruction, join
from .operands import Predicate
from .warps import Warps, Where

MASK = U64(0xFFFFFFFF)
COMPARISONS = {
    "EQ": np.equal,
    "NE": np.not_equal,
    "LT": np.less,
    "LE": np.less_equal,
    "GT": np.greater,
    "GE": np.greater_equal,
}


def no_predicate(s: Warps) -> np.bool_:
    return np.False_


@instruction("IADD3", "UIADD3")
def iadd3(f: Fields) -> Execute:
    extended = f.flag("X")
    write = f.result()
    carries = f.results_predicate()
    terms = [f.addend() for _ in range(3)]
    carry_in = [f.predicate() for _ in range(2)] if extended else []
    f.done()

    def execute(s: Warps, w: Where) -> None:
        total: Any = terms[0](s) + terms[1](s) + terms[2](s)
        for carry in carry_in:
            total = total + carry(s)
        write(s, w, (total & MASK).astype(U32))
        for k, carry_out in enumerate(carries):
            carry_out(s, w, (total >> U64(32)) > U64(k))

    return execute


@instruction("VIADD")
def viadd(f: Fields) -> Execute:
    write, a, b = f.result(), f.integer(), f.integer()
    f.done()
    return lambda s, w: write(s, w, a(s) + b(s))


def signed(read: Read) -> Read:
    return lambda s: read(s).view(I32)


@instruction("VIMNMX", "VIADDMNMX")
def vimnmx(f: Fields) -> Execute:
    adds = f.base == "VIADDMNMX"
    unsigned = f.flag("U32")
    write, a = f.result(), f.integer()
    b = f.integer() if adds else None
    c, minimum = f.integer(), f.predicate()
    f.done()
    kind = U32 if unsigned else I32

    def execute(s: Warps, w: Where) -> None:
        x = (a(s) if b is None else a(s) + b(s)).view(kind)
        y = c(s).view(kind)
        chosen = np.where(minimum(s), np.minimum(x, y), np.maximum(x, y))
        write(s, w, chosen.astype(kind).view(U32))

    return execute


@instruction("IABS")
def iabs(f: Fields) -> Execute:
    write, a = f.result(), signed(f.integer())
    f.done()
    return lambda s, w: write(s, w, np.abs(a(s)).view(U32))


@instruction("IMAD", "UIMAD")
def imad(f: Fields) -> Execute:
    if f.flag("WIDE"):
        return _imad_wide(f)
    if f.flag("HI"):
        return _imad_high(f)
    # MOV, SHL and IADD are special cases of a product.
    f.choice("MOV", "SHL", "IADD", default="")
    extended = f.flag("X")
    f.flag("U32")  # signedness does not affect the low word
    write, a, b = f.result(), f.integer(), f.integer()
    c = f.integer()
    carry = f.predicate() if extended else None
    f.done()
    if carry is None:
        return lambda s, w: write(s, w, a(s) * b(s) + c(s))
    return lambda s, w: write(s, w, a(s) * b(s) + c(s) + carry(s))


def _product(f: Fields, unsigned: bool) -> Read:
    a, b = f.integer(), f.integer()
    if unsigned:
        return lambda s: a(s).astype(U64) * b(s).astype(U64)

    def wide(x: Any) -> Any:
        return x.view(I32).astype(I64)

    return lambda s: (wide(a(s)) * wide(b(s))).view(U64)


def _imad_wide(f: Fields) -> Execute:
    """The 64 bits of a b + c, where c is a register pair."""
    unsigned, extended = f.flag("U32"), f.flag("X")
    write = f.result_pair()
    carries = f.results_predicate()
    product, c = _product(f, unsigned), f.pair()
    carry_in = f.predicate() if extended else None
    f.done()
    if carries and (not unsigned or extended):
        raise f.unknown("a carry")

    def execute(s: Warps, w: Where) -> None:
        addend = c(s)
        total = product(s) + addend
        if carry_in is not None:
            total = total + carry_in(s)
        write(s, w, np.asarray(total))
        for carry_out in carries:
            carry_out(s, w, total < addend)

    return execute


def _imad_high(f: Fields) -> Execute:
    """The high word of a b + c, where c is a register pair."""
    if not f.flag("U32"):
        raise f.unknown("a signed product")
    write = f.result()
    carries = f.results_predicate()
    product, c = _product(f, unsigned=True), f.pair()
    f.done()

    def execute(s: Warps, w: Where) -> None:
        addend = c(s)
        total = product(s) + addend
        write(s, w, (total >> U64(32)).astype(U32))
        for carry_out in carries:
            carry_out(s, w, total < addend)

    return execute


@instruction("LEA", "ULEA")
def lea(f: Fields) -> Execute:
    """(a << shift) + b, or, with HI, the high word of (high : a) << shift, plus b.

    The shifted `a` is negated as ~x + 1. The carry of this sum is part of the result's carry, so
    that -0 carries.
    """
    high, extended, from_signed = f.flag("HI"), f.flag("X"), f.flag("SX32")
    write = f.result()
    carries = f.results_predicate()
    (negated, a), b = f.magnitude(), f.addend()
    above = f.integer() if high and not from_signed else None
    if high and negated:
        raise f.unknown("the high word of a negated number")
    shift = U64(f.immediate())
    carry_in = f.predicate() if extended else no_predicate
    f.done()
    if from_signed and not high:
        raise f.unknown("modifier SX32")

    def execute(s: Warps, w: Where) -> None:
        low = a(s)
        if from_signed:
            wide = low.view(I32).astype(I64).view(U64)
        else:
            wide = low.astype(U64) if above is None else join(low, above(s))
        shifted = (wide << shift) >> U64(32 if high else 0)
        term = (~shifted & MASK) + U64(1) if negated else shifted & MASK
        total = term + b(s) + carry_in(s)
        write(s, w, (total & MASK).astype(U32))
        for k, carry_out in enumerate(carries):
            carry_out(s, w, (total >> U64(32)) > U64(k))

    return execute


@instruction("SHF", "USHF")
def shf(f: Fields) -> Execute:
    """A funnel shift of (high : low); the distance is clamped to the width of the type."""
    left = f.choice("L", "R") == "L"
    kind = f.choice("U32", "S32", "U64", "S64")
    high = f.flag("HI")
    write, a, distance, b = f.result(), f.integer(), f.integer(), f.integer()
    f.done()
    is_signed, most = kind[0] == "S", U64(int(kind[1:]))
    if is_signed and left:
        raise f.unknown("an arithmetic shift to the left")

    def execute(s: Warps, w: Where) -> None:
        value = join(a(s), b(s))
        by = np.minimum(distance(s).astype(U64), most)
        beyond = by > U64(63)  # numpy's shifts are undefined here
        inside = np.where(beyond, U64(63), by)
        if left:
            shifted = np.where(beyond, U64(0), value << inside)
        elif is_signed:
            shifted = (value.view(I64) >> inside.astype(I64)).view(U64)
        else:
            shifted = np.where(beyond, U64(0), value >> inside)
        write(s, w, ((shifted >> U64(32)) if high else (shifted & MASK)).astype(U32))

    return execute


def truth_table(table: int, a: Any, b: Any, c: Any) -> Any:
    """The bitwise function of three words whose value is bit 4a + 2b + c of the table."""
    result = a & ~a
    for k in range(8):
        if table >> k & 1:
            result = result | ((a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c))
    return result


# Shorter expressions for the most common functions.
SHORT = {
    0xC0: lambda a, b, c: a & b,
    0xFC: lambda a, b, c: a | b,
    0x3C: lambda a, b, c: a ^ b,
    0x96: lambda a, b, c: a ^ b ^ c,
    0x33: lambda a, b, c: ~b,
    0xF8: lambda a, b, c: a | (b & c),
    0xEA: lambda a, b, c: (a & b) | c,
}


@instruction("LOP3", "ULOP3")
def lop3(f: Fields) -> Execute:
    f.choice("LUT")
    nonzero = f.result_predicate() if f.peek(Predicate) else None
    write, a, b, c = f.result(), f.integer(), f.integer(), f.integer()
    table, also = f.immediate(), f.predicate()
    f.done()
    function = SHORT.get(table)

    def execute(s: Warps, w: Where) -> None:
        if function is not None:
            value = function(a(s), b(s), c(s))
        else:
            value = truth_table(table, a(s), b(s), c(s))
        if nonzero is not None:
            found = (value != ZERO) | also(s)
            write(s, w, value)
            nonzero(s, w, found)
        else:
            write(s, w, value)

    return execute


@instruction("PLOP3", "UPLOP3")
def plop3(f: Fields) -> Execute:
    f.choice("LUT")
    first, second = f.result_predicate(), f.result_predicate()
    a, b, c = f.predicate(), f.predicate(), f.predicate()
    tables = f.immediate(), f.immediate()
    f.done()

    def execute(s: Warps, w: Where) -> None:
        values = a(s), b(s), c(s)
        results = [truth_table(table, *values) for table in tables]
        first(s, w, results[0])
        second(s, w, results[1])

    return execute


@instruction("ISETP", "UISETP")
def isetp(f: Fields) -> Execute:
    """A comparison. With EX, it compares high words, and `low` is the result for the low words."""
    name = f.choice(*COMPARISONS)
    unsigned = f.flag("U32")
    combine = {"AND": np.logical_and, "OR": np.logical_or}[f.choice("AND", "OR")]
    extended = f.flag("EX")
    first, second = f.result_predicate(), f.result_predicate()
    a, b, also = f.integer(), f.integer(), f.predicate()
    low = f.predicate() if extended else None
    f.done()
    kind = U32 if unsigned else I32
    compare = COMPARISONS[name]
    # If the high words are equal, the low words determine the result.
    strictly = COMPARISONS[{"LE": "LT", "GE": "GT"}.get(name, name)]

    def execute(s: Warps, w: Where) -> None:
        x, y = a(s).view(kind), b(s).view(kind)
        if low is None:
            result = compare(x, y)
        elif name == "NE":
            result = (x != y) | low(s)
        elif name == "EQ":
            result = (x == y) & low(s)
        else:
            result = strictly(x, y) | ((x == y) & low(s))
        others = also(s)
        pair = combine(result, others), combine(~result, others)
        first(s, w, pair[0])
        second(s, w, pair[1])

    return execute


@instruction("FLO")
def flo(f: Fields) -> Execute:
    """The index of the highest set bit. The result for 0 is a word of ones."""
    f.choice("U32")
    write, a = f.result(), f.integer()
    f.done()

    def execute(s: Warps, w: Where) -> None:
        # The exponent of the double that represents the word exactly.
        bits = a(s).astype(np.float64).view(U64) >> U64(52)
        write(s, w, np.where(bits == U64(0), U32(0xFFFFFFFF), (bits - U64(1023)).astype(U32)))

    return execute


@instruction("POPC", "UPOPC")
def popc(f: Fields) -> Execute:
    write, a = f.result(), f.integer()
    f.done()

    def execute(s: Warps, w: Where) -> None:
        x = a(s)
        write(s, w, sum((x >> U32(k)) & U32(1) for k in range(32)))

    return execute
