"""In each row of the table in docs/likelihoods.md, both columns have equal values and gradients."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import random
from torch import Tensor

import vae_fused as vf

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "likelihoods.md"
ROWS = re.findall(r"^\| `(.+)` \| `(vf\..+)` \|$", DOCUMENT.read_text(), re.MULTILINE)


def inputs(requires_grad: bool) -> dict[str, Tensor]:
    shape, dtype = (4, 6), torch.float64

    def draw(seed: int) -> Tensor:
        return random(*shape, seed=seed, dtype=dtype)

    learned = {
        "logits": draw(0), "mean": draw(1), "var": draw(2).exp(), "std": draw(3).exp(),
        "logvar": draw(4), "log_b": draw(4),
        "log_rate": draw(5), "rate": draw(6).exp(), "theta": draw(7)[0].exp(),
        "df": draw(13)[0].exp() + 1.0, "total": draw(14)[0].exp(), "log_scale": draw(15) - 1.0,
    }  # fmt: skip
    data = {
        "x": torch.sigmoid(draw(8)), "y": draw(9), "w": draw(10).exp(),
        "n": torch.floor(4.0 * draw(11).abs()), "bits": (draw(12) > 0.0).to(dtype),
        "pixels": torch.round(255.0 * torch.sigmoid(draw(16))),
    }  # fmt: skip
    return {**{k: v.requires_grad_(requires_grad) for k, v in learned.items()}, **data}


def test_the_table_is_found() -> None:
    text = DOCUMENT.read_text()
    assert len(ROWS) == text.count("| `F.") + text.count("| `-D.") >= 24
    for loss in ("binary_cross_entropy_with_logits", "mse_loss", "l1_loss", "gaussian_nll_loss"):
        assert any(loss in row[0] for row in ROWS)


@pytest.mark.parametrize(("theirs", "ours"), ROWS)
def test_a_row(theirs: str, ours: str) -> None:
    results = []
    for expression in (theirs, ours):
        names: dict[str, Any] = inputs(requires_grad=True)
        leaves = [t for t in names.values() if t.requires_grad]
        names |= {
            "torch": torch, "F": torch.nn.functional, "D": torch.distributions, "vf": vf,
            "k": vf.likelihoods,
        }  # fmt: skip
        value = eval(expression, names)  # code from the document
        weights = torch.arange(1.0, value.numel() + 1.0, dtype=value.dtype).view(value.shape)
        grads = torch.autograd.grad((value * weights).sum(), leaves, allow_unused=True)
        results.append((value, grads))
    (a, grads_a), (b, grads_b) = results
    assert a.shape == b.shape
    torch.testing.assert_close(a, b)
    for expected, got in zip(grads_a, grads_b, strict=True):
        assert (expected is None) == (got is None)
        if got is not None:
            torch.testing.assert_close(got, expected)
