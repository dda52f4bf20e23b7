"""The checks of options that are numbers or strings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

from vae_fused._remedies import kind_of

__all__ = ["check_choice", "check_not_negative", "check_number", "check_positive"]


def check_number(
    name: str, value: float, wants: str = "a finite number", low: float = -math.inf
) -> float:
    """Check a finite number of at least ``low``. A tensor is refused, as reading it would wait."""
    if type(value) is float and low <= value and -math.inf < value < math.inf:
        return value
    if isinstance(value, bool) or not isinstance(value, Real):  # a NumPy scalar is one
        raise TypeError(f"{name} must be a number, got {kind_of(value)}")
    if not (low <= value and -math.inf < value < math.inf):  # also refuses NaN
        raise ValueError(f"{name} is {value}, wants {wants}")
    return float(value)


def check_not_negative(name: str, value: float) -> float:
    """Check a finite number of at least 0."""
    return check_number(name, value, "a number of at least 0", low=0.0)


def check_positive(name: str, value: float) -> float:
    """Check a finite number above 0."""
    if check_number(name, value) <= 0:
        raise ValueError(f"{name} is {value}, wants a number above 0")
    return float(value)


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Check that a value is one of a few strings."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, got {type(value).__name__}")
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, wants one of {', '.join(choices)}")
