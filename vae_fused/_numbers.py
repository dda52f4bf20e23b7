"""Checks for options that are numbers or strings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

from vae_fused._remedies import kind_of

__all__ = ["check_choice", "check_not_negative", "check_number", "check_pair", "check_positive"]


def check_number(name: str, value: float, requirement: str = "a finite number") -> float:
    """Require a finite number. Refuse a tensor, because reading it would wait for the device."""
    if type(value) is float and -math.inf < value < math.inf:
        return value
    if isinstance(value, bool) or not isinstance(value, Real):  # a NumPy scalar is one
        raise TypeError(f"{name} must be a number, got {kind_of(value)}")
    if not -math.inf < value < math.inf:  # also refuses NaN
        raise ValueError(f"{name} must be {requirement}, got {value}")
    return float(value)


def check_not_negative(name: str, value: float, unit: str = "") -> float:
    """Require a finite number of at least 0. ``unit`` begins with a space, as in ``" nats"``."""
    number = check_number(name, value)
    if number < 0:
        raise ValueError(f"{name} must be at least 0{unit}, got {value}")
    return number


def check_positive(name: str, value: float) -> float:
    """Require a finite number above 0."""
    if check_number(name, value) <= 0:
        raise ValueError(f"{name} must be above 0, got {value}")
    return float(value)


def check_pair(name: str, value: object, parts: str) -> None:
    """Require a pair of values. Refuse a tensor, because reading it would wait for the device."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"{name} must be a pair {parts}, got {kind_of(value)}")
    if len(value) != 2:
        raise TypeError(f"{name} must be a pair {parts}, got {len(value)} values")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Require one of the strings in ``choices``."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, got {type(value).__name__}")
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
