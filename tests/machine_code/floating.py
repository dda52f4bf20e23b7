"""Arithmetic and comparisons of float and double. Only FTZ and MUFU flush subnormals to zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import rounding
from .fields import F32, F64, Execute, Fields, Read, instruction
from .mufu import FUNCTIONS, HIGH_WORDS, TINY, flushed, mufu, mufu_high
from .operands import PT, Predicate
from .warps import Warps, Where


@instruction("FADD")
def fadd(f: Fields) -> Execute:
    flushes = f.flag("FTZ")
    write, a, b = f.result_float(), f.single(), f.single()
    f.done()
    if flushes:
        x, y = _flushed(a), _flushed(b)
        return lambda s, w: write(s, w, flushed(np.asarray(x(s) + y(s)), TINY))
    return lambda s, w: write(s, w, a(s) + b(s))


def _flushed(read: Read) -> Read:
    return lambda s: flushed(np.asarray(read(s)), TINY)


@instruction("FMUL")
def fmul(f: Fields) -> Execute:
    halves, truncates = f.flag("D2"), f.flag("RZ")
    write, a, b = f.result_float(), f.single(), f.single()
    f.done()
    if not halves and not truncates:
        return lambda s, w: write(s, w, a(s) * b(s))

    def execute(s: Warps, w: Where) -> None:
        exact = np.multiply(a(s), b(s), dtype=F64) * F64(0.5 if halves else 1.0)
        result = rounding.toward_zero32(np.asarray(exact)) if truncates else exact.astype(F32)
        write(s, w, result)

    return execute


@instruction("FFMA")
def ffma(f: Fields) -> Execute:
    direction = f.choice("RM", "RP", default="")
    write, a, b, c = f.result_float(), f.single(), f.single(), f.single()
    f.done()
    if direction:
        upward = direction == "RP"
        return lambda s, w: write(s, w, rounding.directed32(a(s), b(s), c(s), upward))
    return lambda s, w: write(s, w, rounding.fma32(a(s), b(s), c(s)))


@instruction("DADD")
def dadd(f: Fields) -> Execute:
    write, a, b = f.result_double(), f.double(), f.double()
    f.done()
    return lambda s, w: write(s, w, a(s) + b(s))


def _double(s: Warps, value: Any) -> np.ndarray:
    return s.full(np.asarray(value, F64))


def _fma64(f: Fields, write: Any, a: Read, b: Read, c: Read) -> Execute:
    direction = f.choice("RM", "RP", default="")
    f.done()

    def execute(s: Warps, w: Where) -> None:
        x, y, z = _double(s, a(s)), _double(s, b(s)), _double(s, c(s))
        if direction:
            write(s, w, rounding.directed64(x, y, z, direction == "RP", w))
        else:
            write(s, w, rounding.fma64(x, y, z))

    return execute


@instruction("DMUL")
def dmul(f: Fields) -> Execute:
    write, a, b = f.result_double(), f.double(), f.double()
    if "RM" in f.source.opcode or "RP" in f.source.opcode:
        zero = F64(-0.0)
        return _fma64(f, write, a, b, lambda s: zero)
    f.done()
    return lambda s, w: write(s, w, a(s) * b(s))


@instruction("DFMA")
def dfma(f: Fields) -> Execute:
    write, a, b, c = f.result_double(), f.double(), f.double(), f.double()
    return _fma64(f, write, a, b, c)


@instruction("FMNMX")
def fmnmx(f: Fields) -> Execute:
    """Minimum or maximum; -0 is below 0. With NAN, a NaN propagates. Otherwise, it is ignored."""
    propagates = f.flag("NAN")
    write, a, b, minimum = f.result_float(), f.single(), f.single(), f.predicate()
    f.done()

    def execute(s: Warps, w: Where) -> None:
        x, y = s.full(a(s)), s.full(b(s))
        first = (x < y) | ((x == y) & np.signbit(x))
        chosen = np.where(first == minimum(s), x, y)
        odd = np.isnan(x) | np.isnan(y)
        if odd.any():
            other = F32(np.nan) if propagates else np.where(np.isnan(x), y, x)
            chosen = np.where(odd, other, chosen)
        write(s, w, chosen)

    return execute


def _or_unordered(opposite: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda x, y: ~opposite(x, y)


# In numpy, comparisons with a NaN are false, except for !=. The comparisons whose names end in U
# are true if an operand is NaN.
COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "LT": np.less,
    "EQ": np.equal,
    "LE": np.less_equal,
    "GT": np.greater,
    "GE": np.greater_equal,
    "NE": lambda x, y: (x < y) | (x > y),
    "LTU": _or_unordered(np.greater_equal),
    "EQU": lambda x, y: ~((x < y) | (x > y)),
    "LEU": _or_unordered(np.greater),
    "GTU": _or_unordered(np.less_equal),
    "GEU": _or_unordered(np.less),
    "NEU": np.not_equal,
    "NUM": lambda x, y: ~(np.isnan(x) | np.isnan(y)),
    "NAN": lambda x, y: np.isnan(x) | np.isnan(y),
}


@instruction("FSETP", "DSETP")
def fsetp(f: Fields) -> Execute:
    if f.flag("MIN") or f.flag("MAX"):
        return _dsetp_extreme(f)
    flushes = f.flag("FTZ")
    compare = COMPARISONS[f.choice(*COMPARISONS)]
    combine = {"AND": np.logical_and, "OR": np.logical_or}[f.choice("AND", "OR")]
    first, second = f.result_predicate(), f.result_predicate()
    argument = f.single if f.base == "FSETP" else f.double
    a, b, also = argument(), argument(), f.predicate()
    f.done()
    if flushes:
        if f.base != "FSETP":
            raise f.unknown("modifier FTZ")
        a, b = _flushed(a), _flushed(b)

    def execute(s: Warps, w: Where) -> None:
        result, others = compare(a(s), b(s)), also(s)
        pair = combine(result, others), combine(~result, others)
        first(s, w, pair[0])
        second(s, w, pair[1])

    return execute


def _dsetp_extreme(f: Fields) -> Execute:
    """Half of `fmin` or `fmax`: whether `a` is the result, and whether both are NaN.

    This instruction is undocumented. The surrounding code uses the first predicate to select the
    words of `a` or `b`, and the second one to make the result a quiet NaN.
    """
    is_minimum = ".MIN." in f.source.opcode
    f.choice("AND")
    first, second = f.result_predicate(), f.result_predicate()
    a, b, also = f.double(), f.double(), f.take(Predicate)
    f.done()
    if f.base != "DSETP" or also != Predicate(PT):
        raise f.unknown("another form of a minimum or maximum")

    def execute(s: Warps, w: Where) -> None:
        x, y = s.full(a(s)), s.full(b(s))
        smaller = (x < y) | ((x == y) & np.signbit(x))
        chosen = smaller if is_minimum else ~smaller
        first(s, w, np.where(np.isnan(x) | np.isnan(y), np.isnan(y), chosen))
        second(s, w, np.isnan(x) & np.isnan(y))

    return execute


@instruction("FSET")
def fset(f: Fields) -> Execute:
    """A comparison whose result is 1.0 if it is true and 0.0 otherwise."""
    f.choice("BF")
    compare = COMPARISONS[f.choice(*COMPARISONS)]
    f.choice("AND")
    write, a, b, also = f.result_float(), f.single(), f.single(), f.predicate()
    f.done()

    def execute(s: Warps, w: Where) -> None:
        write(s, w, np.where(compare(a(s), b(s)) & also(s), np.float32(1), np.float32(0)))

    return execute


@instruction("FSEL")
def fsel(f: Fields) -> Execute:
    write, a, b, chooses = f.result_float(), f.single(), f.single(), f.predicate()
    f.done()
    return lambda s, w: write(s, w, np.where(chooses(s), a(s), b(s)))


@instruction("MUFU")
def mufu_(f: Fields) -> Execute:
    function = f.choice(*FUNCTIONS, *HIGH_WORDS)
    write = f.result()
    if function in HIGH_WORDS:
        bits = f.integer()
        f.done()
        return lambda s, w: write(s, w, mufu_high(function, s.full(bits(s)), s.environment.noise))
    a = f.single()
    f.done()
    return lambda s, w: write(s, w, mufu(function, s.full(a(s)), s.environment.noise))


@instruction("FRND")
def frnd(f: Fields) -> Execute:
    """Round to an integer in floating-point format."""
    double = f.flag("F64")
    function = np.trunc if f.flag("TRUNC") else np.rint
    write = f.result_double() if double else f.result_float()
    a = f.double() if double else f.single()
    f.done()
    return lambda s, w: write(s, w, function(a(s)))
