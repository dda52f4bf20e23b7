"""Checks that a tensor is strided, which the operators and the formulas require."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["check_layout"]


def check_layout(name: str, value: Tensor) -> None:
    """Raise TypeError for a nested, sparse or wrapped tensor, and name a remedy."""
    if type(value).__name__ == "ExpandedWeight":
        # This subclass has rules for the layers of torch.nn and for no other functions. Reading the
        # attributes below would raise an error that names neither the tensor nor a remedy.
        raise TypeError(
            f"{name} must be a plain tensor, got an ExpandedWeight of call_for_per_sample_grads, "
            "which has no rule for sampled weights; use torch.func.vmap(torch.func.grad(...)), or "
            "with Opacus a grad sampler: see docs/frameworks.md"
        )
    if value.layout != torch.strided or value.is_nested:
        if value.is_nested:
            got, remedy = "a nested one", "to_padded_tensor(0.0)"
        else:
            got, remedy = str(value.layout), "to_dense()"
        raise TypeError(f"{name} must be a strided tensor, got {got}; pass its .{remedy}")
