"""How the classes of options are pickled: by their fields, and checked again when they are read."""

from __future__ import annotations

import dataclasses
from numbers import Integral, Real
from typing import Any

__all__ = ["Restored"]


class Restored:
    """Base of dataclasses whose pickles hold the fields and nothing that is derived from them.

    A field that a pickle lacks gets its default, so files of older versions can be read. A field
    that the class lacks is an error.
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
                f"a pickled {type(self).__name__} must have fields of this version of vae_fused, "
                f"got {', '.join(unknown)}; install the version that wrote the file, or a newer one"
            )
        type(self).__init__(self, **state)


def _plain(value: Any) -> Any:
    """A number of Python for one of NumPy, which ``torch.load`` refuses."""
    if isinstance(value, tuple):
        return tuple(_plain(part) for part in value)
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)
