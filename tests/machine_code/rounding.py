"""Fused multiply-add and directed rounding on arrays, rounded once as in hardware.

numpy rounds to nearest after each operation. The other operations are derived from two facts:

* The error of a sum, and of a product that neither overflows nor underflows, is a number of the
  same format, and a few operations compute it (Knuth's TwoSum, Dekker's product).
* A value that is first rounded to odd, with at least two more bits than the result, and then to
  nearest equals the value after a single rounding (Boldo and Melquiond, "Emulation of FMA and
  correctly rounded sums: proved algorithms using rounding to odd", 2008).
"""

from __future__ import annotations

import ctypes
import ctypes.util
import math
from fractions import Fraction

import numpy as np

F32, F64, I64, U64 = np.float32, np.float64, np.int64, np.uint64

_TINY32 = F64(2.0**-126)  # the smallest normal float
_BELOW = I64((1 << 29) - 1)  # the bits of a double that a float does not have
_TIE = I64(1 << 28)  # the value of these bits halfway between two floats


def two_sum(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rounded sum and its error."""
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)


def to_odd(total: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Round an exact sum to odd. `total` is the sum rounded to nearest, and `error` its error."""
    bits = total.view(I64)
    outward = np.signbit(total) == np.signbit(error)
    odd = bits + np.where(outward, I64(1), I64(-1))
    inexact = (error != 0) & ((bits & 1) == 0) & np.isfinite(total) & np.isfinite(error)
    return np.where(inexact, odd, bits).view(F64)


def fma32(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a b + c of floats, rounded once to nearest.

    The product is exact in double. Rounding the sum to double and then to float is wrong only if
    the double is halfway between two floats, or subnormal as a float.
    """
    product = np.multiply(a, b, dtype=F64)
    addend = np.asarray(c, F64)
    total = np.atleast_1d(product + addend)
    halfway = (total.view(I64) & _BELOW) == _TIE
    small = (np.abs(total) < _TINY32) & (total != 0)
    if (halfway | small).any():
        total, error = two_sum(np.atleast_1d(product), np.atleast_1d(addend))
        total = to_odd(total, error)
    return total.astype(F32)


def directed32(a: np.ndarray, b: np.ndarray, c: np.ndarray, upward: bool) -> np.ndarray:
    """a b + c of floats, rounded up or down.

    The exact result is the sum of a double and an error below half of the double's last bit. If the
    double is not a float, the exact result is on the same side of every float as the double. If it
    is a float, the sign of the error gives the side.
    """
    product = np.atleast_1d(np.multiply(a, b, dtype=F64))
    total, error = two_sum(product, np.atleast_1d(np.asarray(c, F64)))
    nearest = total.astype(F32)
    wide = nearest.astype(F64)
    if upward:
        wrong, beyond = (wide < total) | ((wide == total) & (error > 0)), F32(np.inf)
    else:
        wrong, beyond = (wide > total) | ((wide == total) & (error < 0)), F32(-np.inf)
    return np.where(wrong & np.isfinite(total), np.nextafter(nearest, beyond), nearest)


def toward_zero32(exact: np.ndarray) -> np.ndarray:
    """Round an exact result in double to float, towards 0."""
    nearest = exact.astype(F32)
    too_far = np.abs(nearest.astype(F64)) > np.abs(exact)
    return np.where(too_far, np.nextafter(nearest, F32(0)), nearest)


def upward32(low: np.ndarray, high: np.ndarray | None = None) -> np.ndarray:
    """Round unsigned or signed integers up to float. `high`: the upper words of 64-bit integers."""
    if high is None:
        exact = np.asarray(low, F64)
        nearest = exact.astype(F32)
        return np.where(
            nearest.astype(F64) < exact, np.nextafter(nearest, F32(np.inf)), nearest
        ).astype(F32)
    whole = np.asarray(low, U64) | (np.asarray(high, U64) << U64(32))
    results = [_round_up(int(x)) for x in whole.ravel()]
    return np.array(results, F32).reshape(whole.shape)


def _round_up(x: int) -> np.float32:
    nearest = F32(x)
    return np.nextafter(nearest, F32(np.inf)) if int(nearest) < x else nearest


# --- double --------------------------------------------------------------------------------------

_SPLITTER = F64(2**27 + 1)
# Within these bounds, no step of the algorithm overflows, and no error below 2^-1074 is lost.
_LARGE, _SMALL = F64(2.0**990), F64(2.0**-960)

_libm = ctypes.CDLL(ctypes.util.find_library("m") or "libm.so.6")
_libm.fma.restype = ctypes.c_double
_libm.fma.argtypes = [ctypes.c_double] * 3


def two_product(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rounded product and its error."""

    def halves(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scaled = _SPLITTER * x
        high = scaled - (scaled - x)
        return high, x - high

    product = a * b
    (a1, a2), (b1, b2) = halves(a), halves(b)
    return product, ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2


def fma64(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a b + c of doubles of one shape, rounded once to nearest."""
    product, product_error = two_product(a, b)
    low_sum, low_error = two_sum(c, product_error)
    high_sum, high_error = two_sum(product, low_sum)
    total, error = two_sum(low_error, high_error)
    result = high_sum + to_odd(total, error)
    easy = (np.abs(product) < _LARGE) & (np.abs(c) < _LARGE) & (np.abs(a) < _LARGE)
    easy &= (np.abs(b) < _LARGE) & ((np.abs(product) > _SMALL) | (a == 0) | (b == 0))
    if not easy.all():
        hard = ~easy
        triples = zip(a[hard].tolist(), b[hard].tolist(), c[hard].tolist(), strict=True)
        result[hard] = [_libm.fma(*triple) for triple in triples]
    # 0 b + c has the sign of c, which the sums above may lose.
    zero = easy & (product == 0)
    return np.where(zero, product + c, result)


def directed64(
    a: np.ndarray, b: np.ndarray, c: np.ndarray, upward: bool, wanted: np.ndarray | bool
) -> np.ndarray:
    """a b + c of doubles, rounded up or down where `wanted`, and to nearest elsewhere.

    It uses slow rational arithmetic, because only rare paths round up or down.
    """
    result = fma64(a, b, c)
    for at in zip(*np.nonzero(np.broadcast_to(wanted, a.shape)), strict=True):
        x, y, z, nearest = float(a[at]), float(b[at]), float(c[at]), float(result[at])
        if not all(map(math.isfinite, (x, y, z, nearest))):
            continue
        exact = Fraction(x) * Fraction(y) + Fraction(z)
        if upward and Fraction(nearest) < exact:
            result[at] = math.nextafter(nearest, math.inf)
        elif not upward and Fraction(nearest) > exact:
            result[at] = math.nextafter(nearest, -math.inf)
    return result
