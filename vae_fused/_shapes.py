"""Shape comparisons that also work with symbolic sizes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

__all__ = ["expands", "has_shape"]


def has_shape(value: Tensor, shape: Sequence[int]) -> bool:
    """Return whether a tensor has this shape.

    The ranks are compared first. Python compares even tuples of different lengths element by
    element, so ``torch.export`` would otherwise record that a symbolic batch size differs from an
    unrelated size.
    """
    return value.dim() == len(shape) and value.shape == shape


def expands(shape: Sequence[int], whole: Sequence[int]) -> bool:
    """Return whether a tensor of this shape broadcasts to ``whole``."""
    if len(shape) > len(whole):
        return False
    if shape == whole[len(whole) - len(shape) :]:  # the common case, and the fastest
        return True
    return all(s == w or s == 1 for s, w in zip(shape[::-1], whole[::-1], strict=False))
