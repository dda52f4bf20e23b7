"""Checks ``estimator`` and ``stop_q``, which select how a KL and its gradient are computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vae_fused._numbers import check_choice

__all__ = ["check_estimator"]

ESTIMATORS = ("analytic", "sample")


def check_estimator(given: Mapping[str, Any]) -> None:
    """Check both options, and refuse other options that are incompatible with them."""
    estimator, stop_q = given.get("estimator", "analytic"), given.get("stop_q", False)
    check_choice("estimator", estimator, ESTIMATORS)
    if not isinstance(stop_q, bool):
        raise TypeError(f"stop_q must be a bool, got {type(stop_q).__name__}")
    if estimator == "analytic":
        if stop_q:
            raise ValueError(
                "stop_q must be False for estimator='analytic', whose KL does not depend on z, got "
                "True; pass estimator='sample'"
            )
        return
    if "free_bits" in given or "free_bits" in (given.get("scalars") or {}):
        raise ValueError(
            "estimator must be 'analytic' for free_bits, because elements of a KL at a sample may "
            "be negative by chance, got 'sample'"
        )
