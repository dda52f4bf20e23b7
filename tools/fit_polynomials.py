"""Computes the polynomial coefficients in csrc/math.

Run with mpmath installed: ``python tools/fit_polynomials.py``. Each fit is a Remez exchange in
60-digit arithmetic on the relative error of the *function* (not of the polynomial), after which
the coefficients are rounded to the target precision. The printed error is that of the rounded
polynomial evaluated exactly, so the rounding of the evaluation itself comes on top.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import mpmath as mp

mp.mp.dps = 60
Fn = Callable[[mp.mpf], mp.mpf]


def remez(target: Fn, weight: Fn, lo: float, hi: float, degree: int) -> list[mp.mpf]:
    """Coefficients c with max |weight(x) (sum c_k x^k - target(x))| minimal on [lo, hi]."""
    count = degree + 2
    mid, half = (mp.mpf(lo) + hi) / 2, (mp.mpf(hi) - lo) / 2
    nodes = [mid - half * mp.cos(mp.pi * i / (count - 1)) for i in range(count)]
    coefficients: list[mp.mpf] = []
    for _ in range(12):
        rows = [
            [x**k for k in range(degree + 1)] + [(-1) ** i / weight(x)] for i, x in enumerate(nodes)
        ]
        solution = mp.lu_solve(mp.matrix(rows), mp.matrix([target(x) for x in nodes]))
        coefficients = [solution[k] for k in range(degree + 1)]

        def error(x: mp.mpf, c: list[mp.mpf] = coefficients) -> mp.mpf:
            return weight(x) * (mp.polyval(c[::-1], x) - target(x))

        grid = [mp.mpf(lo) + (mp.mpf(hi) - lo) * i / 600 for i in range(601)]
        values = [error(x) for x in grid]
        peaks, start = [], 0
        for i in range(1, len(grid) + 1):  # one extremum for each run of equal sign
            if i == len(grid) or (values[i] > 0) != (values[start] > 0):
                peaks.append(max(range(start, i), key=lambda j: abs(values[j])))
                start = i
        if len(peaks) < count:
            break
        while len(peaks) > count:
            peaks.pop(0 if abs(values[peaks[0]]) < abs(values[peaks[-1]]) else -1)
        nodes = [grid[i] for i in peaks]
    return coefficients


def rounded(value: mp.mpf, bits: int) -> float:
    return struct.unpack("f", struct.pack("f", float(value)))[0] if bits == 32 else float(value)


def report(name: str, target: Fn, weight: Fn, lo: float, hi: float, degree: int, bits: int) -> None:
    fit = [rounded(c, bits) for c in remez(target, weight, lo, hi, degree)]
    grid = [mp.mpf(lo) + (mp.mpf(hi) - lo) * i / 3000 for i in range(3001)]
    worst = max(abs(weight(x) * (mp.polyval(fit[::-1], x) - target(x))) for x in grid)
    print(f"{name}: fp{bits}, degree {degree}, worst relative error {mp.nstr(worst, 3)}")
    digits = 9 if bits == 32 else 17
    print("  " + ", ".join(f"{c:.{digits}g}" for c in fit))


def series(coefficient: Callable[[int], mp.mpf], x: mp.mpf, terms: int = 48) -> mp.mpf:
    """A Taylor series, because the closed forms below suffer from cancellation at 0."""
    return mp.fsum(coefficient(n) * x**n for n in range(terms))


def excess(x: mp.mpf) -> mp.mpf:  # (e^x - 1 - x) / x^2
    return series(lambda n: 1 / mp.factorial(n + 2), x)


def log_tail(f: mp.mpf) -> mp.mpf:  # (ln(1 + f) - f + f^2 / 2) / f^3
    if abs(f) < mp.mpf("1e-3"):
        return series(lambda n: mp.mpf(-1) ** n / (n + 3), f, 24)
    return (mp.log1p(f) - f + f * f / 2) / f**3


def log1p_tail(e: mp.mpf) -> mp.mpf:  # (ln(1 + e) - e) / e^2
    if abs(e) < mp.mpf("1e-3"):
        return series(lambda n: mp.mpf(-1) ** (n + 1) / (n + 2), e, 24)
    return (mp.log1p(e) - e) / e**2


def sin_tail(z: mp.mpf) -> mp.mpf:  # (sin x - x) / x^3, z = x^2
    return series(lambda n: mp.mpf(-1) ** (n + 1) / mp.factorial(2 * n + 3), z, 20)


def cos_tail(z: mp.mpf) -> mp.mpf:  # (cos x - 1 + z / 2) / z^2, z = x^2
    return series(lambda n: mp.mpf(-1) ** n / mp.factorial(2 * n + 4), z, 20)


def tanh_tail(z: mp.mpf) -> mp.mpf:  # (tanh t - t) / t^3, z = t^2
    if z < mp.mpf("1e-6"):
        return mp.mpf(-1) / 3 + 2 * z / 15 - 17 * z * z / 315
    t = mp.sqrt(z)
    return (mp.tanh(t) - t) / t**3


def artanh_tail(w: mp.mpf) -> mp.mpf:  # (artanh z - z) / z^3, w = z^2
    return series(lambda n: mp.mpf(1) / (2 * n + 3), w, 60)


def excess_of_log1p(w: mp.mpf) -> mp.mpf:  # 2 z^3 / E, the tail's weight in E; see math/special.h
    z = mp.sqrt(w)
    y = 2 * z / (1 - z)
    return 2 * z**3 / (mp.log1p(y) - y / (1 + y)) if y > 1e-3 else z


# The remainder of Stirling's series, and minus its derivative, over t = 1 / (z^2 + shift).
def stirling_z(t: mp.mpf, shift: float) -> mp.mpf:
    return mp.sqrt(1 / t - mp.mpf(shift))


def stirling_error(t: mp.mpf) -> mp.mpf:
    z = stirling_z(t, 0.18)
    if z > 200:
        return series(lambda k: mp.bernoulli(2 * k + 2) / ((2 * k + 1) * (2 * k + 2)), z**-2, 8) / (
            z * z * t
        )
    exact = mp.loggamma(z + 1) - (z + 0.5) * mp.log(z) + z - mp.log(2 * mp.pi) / 2
    return exact / (z * t)


def stirling_slope(t: mp.mpf) -> mp.mpf:
    z = stirling_z(t, 0.32)
    if z > 200:
        return series(lambda k: mp.bernoulli(2 * k + 2) / (2 * k + 2), z**-2, 8) / (z * z * t)
    return (mp.log(z) - mp.digamma(z) - 1 / (2 * z)) / t


# The excess of Student's normalizer over the Gaussian's, and minus its derivative, over
# t = 1 / (n^2 + shift); see math/likelihood/student_t.h.
def student_n(t: mp.mpf, shift: float) -> mp.mpf:
    return mp.sqrt(1 / t - mp.mpf(shift))


def student_excess(t: mp.mpf) -> mp.mpf:
    n = student_n(t, 0.7)
    if n > 400:
        terms = ((4**k - 1) * mp.bernoulli(2 * k) / (4 * k * k - 2 * k) for k in range(1, 9))
        return mp.fsum(term / n ** (2 * k) for k, term in enumerate(terms)) / (n * n * t)
    return (mp.log(n / 2) / 2 + mp.loggamma(n / 2) - mp.loggamma((n + 1) / 2)) / (n * t)


def student_slope(t: mp.mpf) -> mp.mpf:
    n = student_n(t, 1.3)
    if n > 400:
        terms = ((4**k - 1) * mp.bernoulli(2 * k) / (2 * k) for k in range(1, 9))
        return mp.fsum(term / n ** (2 * k) for k, term in enumerate(terms)) / (n * n * t)
    return ((mp.digamma((n + 1) / 2) - mp.digamma(n / 2)) / 2 - 1 / (2 * n)) / t


# Over w = l^2: the logarithm of sinh(l/2) / (l/2) over w, and its derivative by l over l.
def log_sinhc(w: mp.mpf) -> mp.mpf:
    if w < mp.mpf("1e-4"):
        tau = 2 * mp.pi
        return series(lambda n: (-1) ** n * mp.zeta(2 * n + 2) / (n + 1) / tau ** (2 * n + 2), w, 6)
    h = mp.sqrt(w) / 2
    return mp.log(mp.sinh(h) / h) / w


def log_sinhc_slope(w: mp.mpf) -> mp.mpf:
    if w < mp.mpf("1e-4"):
        tau = 2 * mp.pi
        return series(lambda n: 2 * (-1) ** n * mp.zeta(2 * n + 2) / tau ** (2 * n + 2), w, 6)
    h = mp.sqrt(w) / 2
    return (mp.coth(h) - 1 / h) / (4 * h)


def main() -> None:
    half_ln2 = float(mp.log(2) / 2) * 1.0001
    half_pi = float((mp.pi / 2) ** 2) * 1.0001
    lo, hi = float(mp.sqrt(0.5)) - 1, float(mp.sqrt(2)) - 1
    for bits, degree, top in ((32, 5, 0.75), (32, 7, 1), (64, 15, 1)):
        report("excess", excess, lambda x: 1 / excess(x), -top, top, degree, bits)
    report("exp", excess, lambda x: 1 / excess(x), -half_ln2, half_ln2, 4, 32)
    log_weight: Fn = lambda f: f * f / (1 - f / 2 + f * f / 3)  # noqa: E731
    report("log", log_tail, log_weight, lo, hi, 6, 32)
    log1p_weight: Fn = lambda e: e * e / mp.log1p(e) if e > 0 else mp.mpf("1e-9")  # noqa: E731
    report("log1p", log1p_tail, log1p_weight, 0, 1, 9, 32)
    report("sin", sin_tail, lambda z: z * mp.sqrt(z) + mp.mpf("1e-6"), 0, half_pi, 3, 32)
    report("cos", cos_tail, lambda z: z * z + mp.mpf("1e-6"), 0, half_pi, 3, 32)
    report("artanh", artanh_tail, lambda w: excess_of_log1p(w) + mp.mpf("1e-3"), 0, 0.45**2, 4, 32)
    report(
        "S",
        stirling_error,
        lambda t: stirling_z(t, 0.18) * t + mp.mpf("1e-2"),
        1e-12,
        1 / 1.18,
        4,
        32,
    )
    report("-S'", stirling_slope, lambda _: mp.mpf(12), 1e-12, 1 / 1.32, 4, 32)
    near, shifted = 1e-9, lambda shift: 1 / (16 + shift)
    report("K", student_excess, lambda t: 1 / student_excess(t), near, shifted(0.7), 3, 32)
    report("-K'", student_slope, lambda t: 1 / student_slope(t), near, shifted(1.3), 4, 32)
    report("log sinhc", log_sinhc, lambda w: 1 / log_sinhc(w), 0, 4, 4, 32)
    report("its slope", log_sinhc_slope, lambda w: 1 / log_sinhc_slope(w), 0, 4, 4, 32)
    report("tanh", tanh_tail, lambda z: z + mp.mpf("1e-6"), 0, 0.55**2, 3, 32)


if __name__ == "__main__":
    main()
