"""MUFU, the approximate functions: exact values, perturbed within NVIDIA's documented error.

The hardware's exact bits are not documented, so a test must pass for any value within the bound.
Here, each argument has a random error. Within a launch, the error depends only on the argument, as
in hardware, because divisions of uniform values rely on that. Another launch has different errors.

The bounds are those of the PTX ISA ("Floating Point Instructions") for the `.approx.ftz` forms of
`rcp`, `sqrt`, `rsqrt`, `sin`, `cos`, `lg2` and `ex2`, each of which ptxas compiles to a single
MUFU. The table of intrinsic functions in the CUDA C++ Programming Guide agrees. Because of `.ftz`,
subnormal arguments and results are flushed to zeros of the same sign.

  RCP     1 ulp
  SQRT    2^-23 of the result
  RSQ     2^-22.9 of the result
  EX2     2^-22 of the result, but 0 if the argument is an integer, because CUDA's own double
          functions, such as `tanh`, compute powers of 2 with EX2 and rely on 53 correct bits
  LG2     2^-22 absolute for arguments in (0.5, 2), 2^-22 of the result otherwise
  SIN     2^-20.5 absolute, which includes the multiplication by 1 / 2 pi before the MUFU
  COS     2^-20.5 absolute, as for SIN
  RCP64H, RSQ64H   read the high word of a double, whose low word counts as 0. The PTX ISA gives no
          bound for `rcp.approx.ftz.f64` and `rsqrt.approx.ftz.f64`, which return 20 bits of
          mantissa. The bound here is one unit of these bits, 2^-20 of the result.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

F32, F64, I64, U32 = np.float32, np.float64, np.int64, np.uint32

TINY = F32(2.0**-126)
TINY64 = F64(2.0**-1022)
CANONICAL_NAN = U32(0x7FFFFFFF)
HALF_ULP = 2.0**-24  # the relative error that rounding to float may add

Noise = Callable[[np.ndarray], np.ndarray]  # for the bits of each argument, uniform in [-1, 1]


def flushed(x: np.ndarray, tiny: np.floating) -> np.ndarray:
    return np.where(np.abs(x) < tiny, np.copysign(x.dtype.type(0), x), x)


def _relative(bound: float) -> Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    return lambda x, exact, noise: exact * (1 + (bound - HALF_ULP) * noise)


def _absolute(bound: float) -> Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    # The results are at most 1, and half an ulp below 1 is 2^-25.
    return lambda x, exact, noise: np.clip(exact + (bound - HALF_ULP / 2) * noise, -1, 1)


def _of_log(x: np.ndarray, exact: np.ndarray, noise: np.ndarray) -> np.ndarray:
    beside_one = (x > 0.5) & (x < 2)
    error = (2.0**-22 - HALF_ULP) * noise
    return np.where(beside_one, exact + error, exact * (1 + error))


def _of_power(x: np.ndarray, exact: np.ndarray, noise: np.ndarray) -> np.ndarray:
    error = (2.0**-22 - HALF_ULP) * noise
    return np.where(np.rint(x) == x, exact, exact * (1 + error))


def _of_ulp(x: np.ndarray, exact: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Add an error of up to half an ulp. Rounding adds at most another half."""
    spacing = np.spacing(np.abs(exact).astype(F32)).astype(F64)
    moved = exact + np.where(np.isfinite(spacing), 0.499 * spacing, 0.0) * noise
    return np.where(np.isfinite(exact), moved, exact)


# For each function, two functions that compute its exact value and its perturbed value.
FUNCTIONS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], Callable[..., np.ndarray]]] = {
    "RCP": (lambda x: 1 / x, _of_ulp),
    "SQRT": (np.sqrt, _relative(2.0**-23)),
    "RSQ": (lambda x: 1 / np.sqrt(x), _relative(2.0**-22.9)),
    "EX2": (np.exp2, _of_power),
    "LG2": (np.log2, _of_log),
    "SIN": (lambda x: np.sin(2 * np.pi * np.remainder(x, 1)), _absolute(2.0**-20.5)),
    "COS": (lambda x: np.cos(2 * np.pi * np.remainder(x, 1)), _absolute(2.0**-20.5)),
}
HIGH_WORDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "RCP64H": lambda x: 1 / x,
    "RSQ64H": lambda x: 1 / np.sqrt(x),
}


def mufu(function: str, x: np.ndarray, noise: Noise) -> np.ndarray:
    """The bits of the result for floats."""
    exact_of, perturbed = FUNCTIONS[function]
    argument = flushed(x, TINY).astype(F64)
    exact = exact_of(argument)
    result = flushed(perturbed(argument, exact, noise(x.view(U32))).astype(F32), TINY)
    return np.where(np.isnan(result), CANONICAL_NAN, result.view(U32))


def mufu_high(function: str, high: np.ndarray, noise: Noise) -> np.ndarray:
    """Return the high word of the result for doubles whose high word is `high`."""
    argument = flushed((high.astype(I64) << I64(32)).view(F64), TINY64)
    exact = HIGH_WORDS[function](argument)
    moved = np.where(np.isfinite(exact), exact * (1 + 2.0**-21 * noise(high)), exact)
    bits = flushed(moved, TINY64).view(I64)
    ordinary = np.isfinite(moved) & (moved != 0)
    nearest = np.where(ordinary, bits + I64(1 << 31), bits) >> I64(32)
    return np.where(np.isnan(moved), CANONICAL_NAN, nearest.astype(U32))
