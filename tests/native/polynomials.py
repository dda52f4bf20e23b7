"""Computes the polynomial coefficients in csrc/math: `python tests/native/polynomials.py`.

This script requires mpmath. Each fit is a Remez exchange on the relative error of the *function*
(not of the polynomial), after which the coefficients are rounded to the target precision. The
printed error is that of the rounded polynomial evaluated exactly, so it does not include the
rounding errors of the evaluation.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import mpmath as mp

# The formulas below cancel near 0. At TINY, which replaces 0, they lose at most 75 digits.
mp.mp.dps = 140
TINY = mp.mpf("1e-25")
Fn = Callable[[mp.mpf], mp.mpf]


class Fit(NamedTuple):
    """A polynomial for `target` on [lo, hi], whose error is multiplied by `weight`."""

    name: str
    target: Fn
    weight: Fn
    lo: float
    hi: float
    degree: int
    bits: int


def relative(target: Fn) -> Fn:
    """The weight of a polynomial that is itself the result."""
    return lambda x: 1 / target(x)


def excess(x: mp.mpf) -> mp.mpf:
    return (mp.expm1(x) - x) / x**2


def excess_of_log1p(w: mp.mpf) -> mp.mpf:
    """The weight of the tail in E, 2 z^3 / E, for w = z^2. See math/special.h."""
    z = mp.sqrt(w)
    y = 2 * z / (1 - z)
    return 2 * z**3 / (mp.log1p(y) - y / (1 + y))


def artanh_tail(w: mp.mpf) -> mp.mpf:
    z = mp.sqrt(w)
    return (mp.atanh(z) - z) / z**3


def over_square(function: Fn, shift: float) -> Fn:
    """Returns a function of t = 1 / (z^2 + shift) that is `function` of z, divided by z t."""

    def divided(t: mp.mpf) -> mp.mpf:
        z = mp.sqrt(1 / t - mp.mpf(shift))
        return function(z) / (z * t)

    return divided


def stirling(z: mp.mpf) -> mp.mpf:
    """The remainder of Stirling's series."""
    return mp.loggamma(z + 1) - (z + 0.5) * mp.log(z) + z - mp.log(2 * mp.pi) / 2


def student(n: mp.mpf) -> mp.mpf:
    """The excess of Student's normalizer over the Gaussian's; see math/likelihood/student_t.h."""
    return mp.log(n / 2) / 2 + mp.loggamma(n / 2) - mp.loggamma((n + 1) / 2)


STIRLING_SLOPE = over_square(lambda z: z * (mp.log(z) - mp.digamma(z) - 1 / (2 * z)), 0.32)
STUDENT = over_square(student, 0.7)
STUDENT_SLOPE = over_square(
    lambda n: n * ((mp.digamma((n + 1) / 2) - mp.digamma(n / 2)) / 2 - 1 / (2 * n)), 1.3
)
# Functions of w = l^2: ln(sinh(l/2) / (l/2)) divided by w, and the derivative of this logarithm
# with respect to l, divided by l.
LOG_SINHC: Fn = lambda w: mp.log(mp.sinh(mp.sqrt(w) / 2) / (mp.sqrt(w) / 2)) / w  # noqa: E731
SINHC_SLOPE: Fn = lambda w: (mp.coth(mp.sqrt(w) / 2) - 2 / mp.sqrt(w)) / (2 * mp.sqrt(w))  # noqa: E731

HALF_LN2 = float(mp.log(2) / 2) * 1.0001
HALF_PI = float((mp.pi / 2) ** 2) * 1.0001
FITS = (
    *(Fit("excess", excess, relative(excess), -top, top, degree, bits)
      for bits, degree, top in ((32, 5, 0.75), (32, 7, 1), (64, 15, 1))),
    Fit("exp", excess, relative(excess), -HALF_LN2, HALF_LN2, 4, 32),
    Fit("log", lambda f: (mp.log1p(f) - f + f * f / 2) / f**3,
        lambda f: f * f / (1 - f / 2 + f * f / 3),
        float(mp.sqrt(0.5)) - 1, float(mp.sqrt(2)) - 1, 6, 32),
    Fit("log1p", lambda e: (mp.log1p(e) - e) / e**2,
        lambda e: max(e * e / mp.log1p(e), mp.mpf("1e-9")), 0, 1, 9, 32),
    # The tails of the sine, cosine and hyperbolic tangent of x, as functions of z = x^2.
    Fit("sin", lambda z: (mp.sin(mp.sqrt(z)) - mp.sqrt(z)) / (z * mp.sqrt(z)),
        lambda z: z * mp.sqrt(z) + mp.mpf("1e-6"), 0, HALF_PI, 3, 32),
    Fit("cos", lambda z: (mp.cos(mp.sqrt(z)) - 1 + z / 2) / z**2,
        lambda z: z * z + mp.mpf("1e-6"), 0, HALF_PI, 3, 32),
    Fit("artanh", artanh_tail, lambda w: excess_of_log1p(w) + mp.mpf("1e-3"), 0, 0.45**2, 4, 32),
    Fit("S", over_square(stirling, 0.18),
        lambda t: mp.sqrt(1 / t - mp.mpf(0.18)) * t + mp.mpf("1e-2"), 1e-12, 1 / 1.18, 4, 32),
    Fit("-S'", STIRLING_SLOPE, lambda _: mp.mpf(12), 1e-12, 1 / 1.32, 4, 32),
    Fit("K", STUDENT, relative(STUDENT), 1e-9, 1 / 16.7, 3, 32),
    Fit("-K'", STUDENT_SLOPE, relative(STUDENT_SLOPE), 1e-9, 1 / 17.3, 4, 32),
    Fit("log sinhc", LOG_SINHC, relative(LOG_SINHC), 0, 4, 4, 32),
    Fit("its slope", SINHC_SLOPE, relative(SINHC_SLOPE), 0, 4, 4, 32),
    Fit("tanh", lambda z: (mp.tanh(mp.sqrt(z)) - mp.sqrt(z)) / (z * mp.sqrt(z)),
        lambda z: z + mp.mpf("1e-6"), 0, 0.55**2, 3, 32),
)  # fmt: skip


def error(fit: Fit, x: mp.mpf, coefficients: list[mp.mpf]) -> mp.mpf:
    x = x if abs(x) > TINY else TINY
    return fit.weight(x) * (mp.polyval(coefficients[::-1], x) - fit.target(x))


def grid(fit: Fit, count: int) -> list[mp.mpf]:
    return [mp.mpf(fit.lo) + (mp.mpf(fit.hi) - fit.lo) * i / count for i in range(count + 1)]


def remez(fit: Fit) -> list[mp.mpf]:
    """Returns c that minimizes max |weight(x) (sum c_k x^k - target(x))| on [lo, hi]."""
    # Every iteration evaluates the same grid, and the functions take most of the time.
    fit = fit._replace(target=cache(fit.target), weight=cache(fit.weight))
    count = fit.degree + 2
    mid, half = (mp.mpf(fit.lo) + fit.hi) / 2, (mp.mpf(fit.hi) - fit.lo) / 2
    nodes = [mid - half * mp.cos(mp.pi * i / (count - 1)) for i in range(count)]
    xs = grid(fit, 600)
    coefficients: list[mp.mpf] = []
    for _ in range(12):
        nodes = [x if abs(x) > TINY else TINY for x in nodes]
        rows = [[*(x**k for k in range(fit.degree + 1)), (-1) ** i / fit.weight(x)]
                for i, x in enumerate(nodes)]  # fmt: skip
        solution = mp.lu_solve(mp.matrix(rows), mp.matrix([fit.target(x) for x in nodes]))
        coefficients = list(solution)[:-1]
        values = [error(fit, x, coefficients) for x in xs]
        peaks, start = [], 0
        for i in range(1, len(xs) + 1):  # one extremum for each run of equal sign
            if i == len(xs) or (values[i] > 0) != (values[start] > 0):
                peaks.append(max(range(start, i), key=lambda j: abs(values[j])))
                start = i
        if len(peaks) < count:
            break
        while len(peaks) > count:
            peaks.pop(0 if abs(values[peaks[0]]) < abs(values[peaks[-1]]) else -1)
        before, nodes = nodes, [xs[i] for i in peaks]
        if nodes == before:  # converged
            break
    return coefficients


def rounded(value: mp.mpf, bits: int) -> float:
    return struct.unpack("f", struct.pack("f", float(value)))[0] if bits == 32 else float(value)


def main() -> None:
    for fit in FITS:
        coefficients = [rounded(c, fit.bits) for c in remez(fit)]
        worst = mp.nstr(max(abs(error(fit, x, coefficients)) for x in grid(fit, 3000)), 3)
        print(f"{fit.name}: fp{fit.bits}, degree {fit.degree}, worst relative error {worst}")
        digits = 9 if fit.bits == 32 else 17
        print("  " + ", ".join(f"{c:.{digits}g}" for c in coefficients))


if __name__ == "__main__":
    main()
