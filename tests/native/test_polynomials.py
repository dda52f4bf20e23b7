"""The coefficients of the polynomials in csrc/math are those of the minimax fits."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from .polynomials import FITS, Fit, remez, rounded

MATH = Path(__file__).resolve().parents[2] / "csrc" / "math"
NUMBER = re.compile(r"(?<![\w.])(?:\d+\.\d*(?:e[-+]?\d+)?|\d+e[-+]?\d+)")


@pytest.fixture(scope="module")
def literals() -> np.ndarray:
    """All floating-point literals of csrc/math, sorted."""
    texts = [path.read_text(encoding="utf-8") for path in MATH.rglob("*.h")]
    return np.unique([float(n) for text in texts for n in NUMBER.findall(text)])


@pytest.mark.slow
@pytest.mark.parametrize("fit", FITS, ids=lambda fit: f"{fit.name}, degree {fit.degree}")
def test_the_coefficients_of_a_fit_are_in_the_sources(fit: Fit, literals: np.ndarray) -> None:
    """The coefficients match within 1.5 ulp, because the last step of a fit depends on its grid.

    Signs are not compared, because a formula may subtract a term.
    """
    for coefficient in np.abs([rounded(c, fit.bits) for c in remez(fit)]):
        unit = np.spacing(coefficient.astype(np.float32 if fit.bits == 32 else np.float64))
        assert np.abs(literals - coefficient).min() <= 1.5 * float(unit), coefficient
