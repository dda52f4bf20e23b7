"""Pickles the option classes as their fields, which are checked again on loading."""

from __future__ import annotations

import dataclasses
from numbers import Integral, Real
from typing import Any

__all__ = ["Restored"]


class Restored:
    """Base class of dataclasses whose pickles contain only the fields, without derived values.

    A field that is missing from a pickle gets its default value, so files from older versions can
    be read. An unknown field is an error.
    """

    __slots__ = ()

    def __getstate__(self) -> dict[str, Any]:
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        return {f.name: _plain(getattr(self, f.name)) for f in fields}

    def __setstate__(self, state: dict[str, Any]) -> None:
        names = {f.name for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        unknown = sorted(state.keys() - names)
        if unknown:
            raise TypeError(
                f"a pickled {type(self).__name__} must have only fields of this version of "
                f"vae_fused, got {', '.join(unknown)}; install the version that wrote the file, or "
                "a newer one"
            )
        type(self).__init__(self, **state)


def _plain(value: Any) -> Any:
    """Convert NumPy scalars to Python numbers, because ``torch.load`` refuses NumPy scalars."""
    if isinstance(value, tuple):
        return tuple(_plain(part) for part in value)
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)
