"""The part of an error message that describes an argument of the wrong type and names a remedy."""

from __future__ import annotations

from torch import Tensor

__all__ = ["kind_of"]


def kind_of(value: object) -> str:
    """Name the type of a value and, if a remedy is known, what to pass instead."""
    name = type(value).__name__
    # A schedule and a keras.Variable of the torch backend both have a ``value``, but only a
    # schedule is callable.
    if isinstance(getattr(value, "value", None), Tensor):
        part = "what it returns when it is called" if callable(value) else "its .value"
        return f"{name}; pass {part}, which is a Tensor"
    # Booleans and complex numbers get no remedy, because tensors of them would be refused too.
    if (
        type(value).__module__ == "numpy"
        and getattr(getattr(value, "dtype", None), "kind", "b") in "iuf"
    ):
        return f"{name}; pass torch.as_tensor of it"
    return name
