"""The part of a message that describes an argument of the wrong type and names a remedy."""

from __future__ import annotations

from torch import Tensor

__all__ = ["kind_of"]


def kind_of(value: object) -> str:
    """The type of a value, and what to pass instead if it is known to contain a tensor."""
    name = type(value).__name__
    # A keras.Variable of the torch backend. A schedule has a value as well, and is called.
    if isinstance(getattr(value, "value", None), Tensor) and not callable(value):
        return f"{name}; pass its .value, which is a Tensor"
    if type(value).__module__ == "numpy" and hasattr(value, "__array__"):
        return f"{name}; pass torch.as_tensor of it"
    return name
