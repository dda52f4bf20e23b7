"""Conversions between number formats."""

from __future__ import annotations

import numpy as np

from . import rounding
from .fields import F32, F64, I32, I64, U32, U64, Execute, Fields, instruction
from .operands import RZ, Number, Register
from .warps import Warps, Where

NAN16 = U32(0x7FFF)  # of both 16-bit formats


@instruction("I2FP")
def i2fp(f: Fields) -> Execute:
    f.choice("F32")
    kind = U32 if f.choice("U32", "S32") == "U32" else I32
    write, a = f.result_float(), f.integer()
    f.done()
    return lambda s, w: write(s, w, a(s).view(kind).astype(F32))


@instruction("I2F")
def i2f(f: Fields) -> Execute:
    """Round to nearest, or up with RP (divisions). With U16, ignore the upper half of a
    register."""
    double = f.flag("F64")
    if f.flag("S64"):
        write, pair = f.result_double() if double else f.result_float(), f.pair()
        f.done()
        return lambda s, w: write(s, w, pair(s).view(I64).astype(F64 if double else F32))
    if f.flag("U16"):
        write, word = f.result_double() if double else f.result_float(), f.integer()
        f.done()
        return lambda s, w: write(s, w, (word(s) & U32(0xFFFF)).astype(F64 if double else F32))
    if double:
        kind = U32 if f.choice("U32", "S32", default="S32") == "U32" else I32
        write_double, word = f.result_double(), f.integer()
        f.done()
        return lambda s, w: write_double(s, w, word(s).view(kind).astype(F64))
    wide = f.flag("U64")
    kind = U32 if f.flag("U32") else I32
    f.choice("RP")  # rounding up is the only mode that divisions use
    write = f.result_float()
    if wide:
        pair = f.pair()
        f.done()

        def execute(s: Warps, w: Where) -> None:
            value = s.full(pair(s))
            low, high = value.astype(U32), (value >> U64(32)).astype(U32)
            write(s, w, rounding.upward32(low, high))

        return execute
    a = f.integer()
    f.done()
    return lambda s, w: write(s, w, rounding.upward32(s.full(a(s)).view(kind)))


@instruction("F2I")
def f2i(f: Fields) -> Execute:
    kind = f.choice("U32", "S64", "U64")
    rounded = np.trunc if f.flag("TRUNC") else np.rint
    f.flag("FTZ")  # a subnormal becomes 0 with or without it
    to_zero = f.flag("NTZ")
    double = f.flag("F64")
    bits, lowest = int(kind[1:]), 0 if kind[0] == "U" else -(2**63)
    highest = 2**bits - 1 if kind[0] == "U" else 2**63 - 1
    write = f.result() if bits == 32 else f.result_pair()
    a = f.double() if double else f.single()
    f.done()
    nan = 0 if to_zero else 1 << (bits - 1)

    def convert(x: float) -> int:
        if np.isnan(x):
            return nan
        limited = min(max(x, float(lowest)), float(highest))
        return min(int(limited), highest) & (2**bits - 1)

    def execute(s: Warps, w: Where) -> None:
        value = rounded(s.full(a(s)).astype(F64))
        found = [convert(x) for x in value.ravel().tolist()]
        words = np.array(found, U64).reshape(value.shape)
        write(s, w, words.astype(U32) if bits == 32 else words)

    return execute


@instruction("F2F")
def f2f(f: Fields) -> Execute:
    if f.flag("F32", "F64"):
        # "F32.F64" converts to float, and "F64.F32" converts to double.
        to_float = f.source.opcode.endswith("F32.F64")
        write = f.result_float() if to_float else f.result_double()
        a = f.double() if to_float else f.single()
        f.done()
        kind = F32 if to_float else F64
        return lambda s, w: write(s, w, a(s).astype(kind))
    raise f.unknown("formats")


def bfloat16(x: np.ndarray) -> np.ndarray:
    """Round floats to bfloat16, to nearest with ties to even, and return the bits."""
    bits = x.view(U32).astype(U64)
    rounded = ((bits + U64(0x7FFF) + ((bits >> U64(16)) & U64(1))) >> U64(16)).astype(U32)
    return np.where(np.isnan(x), NAN16, rounded)


def float16(x: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(x), NAN16, x.astype(np.float16).view(np.uint16).astype(U32))


@instruction("F2FP")
def f2fp(f: Fields) -> Execute:
    """Convert two floats to 16 bits each, the first in the upper half."""
    narrowed = bfloat16 if f.choice("BF16", "F16") == "BF16" else float16
    f.choice("F32")
    f.choice("PACK_AB")
    write, a, b = f.result(), f.single(), f.single()
    f.done()

    def execute(s: Warps, w: Where) -> None:
        high, low = narrowed(s.full(a(s))), narrowed(s.full(b(s)))
        write(s, w, (high << U32(16)) | low)

    return execute


@instruction("HADD2")
def hadd2(f: Fields) -> Execute:
    """Used only to convert a half to float: -0 + x."""
    f.choice("F32")
    write, zero, half = f.result_float(), f.take(Register), f.take(Register)
    f.done()
    if zero != Register(RZ, negated=True) or half.half is None or half.uniform:
        raise f.unknown("a sum of halves")
    number, shift = half.number, U32(16 * half.half)

    def execute(s: Warps, w: Where) -> None:
        bits = (s.r[number] >> shift).astype(np.uint16)
        value = bits.view(np.float16).astype(F32)
        write(s, w, -value if half.negated else value)

    return execute


@instruction("HFMA2")
def hfma2(f: Fields) -> Execute:
    """Used only to move two 16-bit constants: -0 * 0 + x."""
    f.flag("MMA")
    write, a, b = f.result(), f.take(Register), f.take(Register)
    parts = [f.take(Number).value for _ in range(2)]
    f.done()
    if a != Register(RZ, negated=True) or b != Register(RZ) or np.isnan(parts).any():
        raise f.unknown("a product of halves")
    high, low = (int(np.float16(x).view(np.uint16)) for x in parts)
    value = U32(high << 16 | low)
    return lambda s, w: write(s, w, value)
