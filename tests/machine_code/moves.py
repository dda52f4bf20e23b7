"""Moves, selections, special registers, and exchange between the lanes of a warp."""

from __future__ import annotations

from typing import Any

import numpy as np

from .errors import ConvergenceError
from .fields import I64, U32, U64, ZERO, Execute, Fields, Read, instruction
from .operands import PT, RZ, Predicate, Register
from .warps import LANES, Warps, Where, mask_of


@instruction("MOV", "UMOV")
def mov(f: Fields) -> Execute:
    write, a = f.result(), f.integer()
    f.done()
    return lambda s, w: write(s, w, a(s))


@instruction("SEL", "USEL")
def sel(f: Fields) -> Execute:
    write, a, b, chooses = f.result(), f.integer(), f.integer(), f.predicate()
    f.done()
    return lambda s, w: write(s, w, np.where(chooses(s), a(s), b(s)))


@instruction("PRMT")
def prmt(f: Fields) -> Execute:
    """Select four bytes of (b : a) by four digits; a digit above 7 replicates the byte's sign."""
    write, a, digits, b = f.result(), f.integer(), f.integer(), f.integer()
    f.done()

    def execute(s: Warps, w: Where) -> None:
        value, chosen = a(s).astype(U64) | (b(s).astype(U64) << U64(32)), digits(s)
        result: Any = ZERO
        for k in range(4):
            digit = (chosen >> U32(4 * k)) & U32(15)
            byte = (value >> ((digit & U32(7)).astype(U64) * U64(8))).astype(U32) & U32(255)
            sign = np.where(byte >= U32(128), U32(255), ZERO)
            byte = np.where(digit >= U32(8), sign, byte)
            result = result | (byte << U32(8 * k))
        write(s, w, result)

    return execute


@instruction("P2R")
def p2r(f: Fields) -> Execute:
    """Write the predicates that a mask selects. The other bits are those of the register `a`."""
    write = f.result()
    if f.name() != "PR":
        raise f.unknown("other flags")
    a, mask = f.integer(), f.immediate()
    f.done()

    def execute(s: Warps, w: Where) -> None:
        value = a(s) & U32(~mask & 0xFFFFFFFF)
        for k in range(7):
            if mask >> k & 1:
                value = value | (s.p[k].astype(U32) << U32(k))
        write(s, w, value)

    return execute


@instruction("R2P")
def r2p(f: Fields) -> Execute:
    if f.name() != "PR":
        raise f.unknown("other flags")
    a, mask = f.integer(), f.immediate()
    f.done()
    if mask >> 7:
        raise f.unknown("more predicates than there are")

    def execute(s: Warps, w: Where) -> None:
        value = a(s)
        for k in range(7):
            if mask >> k & 1:
                np.copyto(s.p[k], (value >> U32(k)) & U32(1) != ZERO, where=w)

    return execute


# --- special registers ---------------------------------------------------------------------------

SPECIAL: dict[str, Read] = {
    "SR_TID.X": lambda s: s.thread,
    "SR_TID.Y": lambda s: ZERO,
    "SR_TID.Z": lambda s: ZERO,
    "SR_LANEID": lambda s: s.thread & U32(LANES - 1),
    "SR_LTMASK": lambda s: (U32(1) << (s.thread & U32(LANES - 1))) - U32(1),  # the lower lanes
    "SR_CTAID.X": lambda s: s.block,
    "SR_CTAID.Y": lambda s: ZERO,
    "SR_CTAID.Z": lambda s: ZERO,
    "SR_CgaCtaId": lambda s: ZERO,  # a block is its own cluster
}


OF_LANES = ("SR_TID.X", "SR_LANEID", "SR_LTMASK")


@instruction("S2R", "S2UR")
def s2r(f: Fields) -> Execute:
    write, name = f.result(), f.name()
    f.done()
    if name not in SPECIAL or (f.base == "S2UR" and name in OF_LANES):
        raise f.unknown(f"special register {name}")
    read = SPECIAL[name]
    return lambda s, w: write(s, s.present if f.base == "S2UR" else w, read(s))


@instruction("CS2R")
def cs2r(f: Fields) -> Execute:
    """Write zeros: the only special register that is supported is SRZ, which is always 0."""
    writes = f.result_words(1 if f.flag("32") else 2)
    if f.take(Register) != Register(RZ):
        raise f.unknown("a special register")
    f.done()

    def execute(s: Warps, w: Where) -> None:
        for write in writes:
            write(s, w, ZERO)

    return execute


@instruction("R2UR")
def r2ur(f: Fields) -> Execute:
    """The hardware uses one lane's value; in correct code, all lanes have the same value."""
    write, a = f.result(), f.integer()
    f.done()

    def execute(s: Warps, w: Where) -> None:
        value, active = s.full(a(s)), s.all(w)
        largest = np.where(active, value, ZERO).max(axis=1, keepdims=True)
        if (active & (value != largest)).any():
            raise ConvergenceError(f"R2UR at {f.source.address:#x}: the lanes' values differ")
        write(s, active.any(axis=1, keepdims=True), largest)

    return execute


# --- exchange ------------------------------------------------------------------------------------


@instruction("SHFL")
def shfl(f: Fields) -> Execute:
    """shfl.sync of the PTX ISA. A read from a lane that does not participate is an error."""
    mode = f.choice("BFLY", "IDX", "UP", "DOWN")
    inside, write = f.result_predicate(), f.result()
    a, lanes, clamp = f.integer(), f.integer(), f.integer()
    f.done()
    own = np.arange(LANES, dtype=I64)

    def execute(s: Warps, w: Where) -> None:
        active = s.all(w)
        by = s.full(lanes(s)).astype(I64) & 31
        limits = s.full(clamp(s)).astype(I64)
        segment = (limits >> 8) & 31
        first, last = own & segment, (own & segment) | (limits & 31 & ~segment)
        if mode == "UP":
            source = own - by
            valid = source >= last
        else:
            source = {"BFLY": own ^ by, "DOWN": own + by, "IDX": first | (by & ~segment)}[mode]
            valid = source <= last
        source = np.where(valid, source, own)
        value = np.take_along_axis(s.full(a(s)), source, axis=1)
        taking_part = np.take_along_axis(active, source, axis=1)
        if (active & ~taking_part).any():
            warp, lane = np.argwhere(active & ~taking_part)[0]
            raise ConvergenceError(
                f"SHFL at {f.source.address:#x}: lane {lane} reads from lane "
                f"{source[warp, lane]}, which does not participate"
            )
        write(s, w, value)
        inside(s, w, valid)

    return execute


@instruction("VOTE")
def vote(f: Fields) -> Execute:
    """Write the mask of the executing lanes whose argument is true, and whether any or all are."""
    mode = f.choice("ANY", "ALL")
    number = f.result()
    result = f.result_predicate()
    brings = f.predicate()
    f.done()

    def execute(s: Warps, w: Where) -> None:
        active = s.all(w)
        true = active & brings(s)
        some = true.any(axis=1, keepdims=True)
        every = (true == active).all(axis=1, keepdims=True)
        number(s, w, mask_of(true))
        result(s, w, some if mode == "ANY" else every)

    return execute


@instruction("VOTEU")
def voteu(f: Fields) -> Execute:
    """Only ANY of true is supported: a uniform register gets the mask of the executing lanes."""
    f.choice("ANY")
    number, result, brings = f.result(), f.take(Predicate), f.take(Predicate)
    f.done()
    if result != Predicate(PT, uniform=True) or brings != Predicate(PT):
        raise f.unknown("another vote")

    def execute(s: Warps, w: Where) -> None:
        active = s.all(w)
        number(s, active.any(axis=1, keepdims=True), mask_of(active))

    return execute


# --- nothing -------------------------------------------------------------------------------------

# Instructions that have no effect if memory is sequentially consistent, and their modifiers.
NOTHING: dict[str, set[str]] = {
    "NOP": set(),
    "MEMBAR": {"SC", "ALL", "GPU", "CTA", "SYS"},
    "FENCE": {"VIEW", "ASYNC"},
    "ERRBAR": set(),
    "CGAERRBAR": set(),
    "CCTL": {"IVALL"},
    "YIELD": set(),
    "ENDCOLLECTIVE": set(),
}


@instruction(*NOTHING)
def nothing(f: Fields) -> Execute:
    for modifier in NOTHING[f.base]:
        f.flag(modifier)
    f.done()
    return lambda s, w: None
