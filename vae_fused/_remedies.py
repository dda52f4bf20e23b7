"""The part of a message that describes an argument of the wrong type and names a remedy."""

from __future__ import annotations

from torch import Tensor

__all__ = ["kind_of"]


def kind_of(value: object) -> str:
    """The type of a value, and what to pass instead if it is known to contain a tensor."""
    name = type(value).__name__
    # A schedule and a keras.Variable of the torch backend have a ``value``. Only a schedule is
    # callable.
    if isinstance(getattr(value, "value", None), Tensor):
        part = "what it returns when it is called" if callable(value) else "its .value"
        return f"{name}; pass {part}, which is a Tensor"
    # There is no remedy for booleans and complex numbers. Tensors of them would be refused, too.
    if (
        type(value).__module__ == "numpy"
        and getattr(getattr(value, "dtype", None), "kind", "b") in "iuf"
    ):
        return f"{name}; pass torch.as_tensor of it"
    return name
