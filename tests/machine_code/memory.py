"""Memory that machine code may access: registered buffers and constant banks."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from .errors import BadAccessError

# A view of all addresses of this process. Only addresses that have been checked are accessed.
_LOWEST, _HIGHEST = 1 << 16, 1 << 48
_SPACE = np.frombuffer((ctypes.c_uint8 * (_HIGHEST - _LOWEST)).from_address(_LOWEST), np.uint8)
_WORDS = {1: _SPACE, 2: _SPACE.view(np.uint16), 4: _SPACE.view(np.uint32)}


class GlobalMemory:
    """The memory of this process, limited to registered buffers."""

    def __init__(self) -> None:
        self._buffers: list[tuple[int, int]] = []
        self._starts = self._ends = np.zeros(0, np.int64)

    @contextmanager
    def buffers(self, extents: list[tuple[int, int]]) -> Iterator[None]:
        """Make each [start, end) accessible within a context. They may overlap."""
        before = self._buffers
        self._set(before + extents)
        try:
            yield
        finally:
            self._set(before)

    def add(self, start: int, end: int) -> None:
        self._set([*self._buffers, (start, end)])

    def _set(self, buffers: list[tuple[int, int]]) -> None:
        self._buffers = buffers
        merged: list[list[int]] = []
        for start, end in sorted(buffers):
            if merged and start < merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], end)
            elif end > start:
                merged.append([start, end])
        table = np.array(merged, np.int64).reshape(-1, 2)
        self._starts, self._ends = table[:, 0].copy(), table[:, 1].copy()

    def _check(self, addresses: np.ndarray, size: int) -> None:
        if (addresses % size).any():
            worst = int(addresses[addresses % size != 0][0])
            raise BadAccessError(f"global access of {size} bytes at {worst:#x} is not aligned")
        at = np.searchsorted(self._starts, addresses, "right") - 1
        good = (at >= 0) & (addresses + size <= self._ends[at]) if len(self._ends) else at > 0
        if not good.all():
            worst = int(addresses[~good][0])
            raise BadAccessError(f"global access of {size} bytes at {worst:#x} is in no buffer")

    def load(self, addresses: np.ndarray, size: int) -> np.ndarray:
        """Return elements as 32-bit words [word, element]. Elements of 1 or 2 bytes are widened."""
        self._check(addresses, size)
        unit = min(size, 4)
        first = (addresses - _LOWEST) // unit
        words = [_WORDS[unit][first + k].astype(np.uint32) for k in range(size // unit)]
        return np.stack(words)

    def store(self, addresses: np.ndarray, size: int, words: np.ndarray) -> None:
        self._check(addresses, size)
        unit = min(size, 4)
        first = (addresses - _LOWEST) // unit
        for k in range(size // unit):
            _WORDS[unit][first + k] = words[k].astype(_WORDS[unit].dtype)


class ConstantBank:
    """A constant bank. Bytes that a launch does not define cannot be read."""

    def __init__(self, size: int) -> None:
        self.bytes = np.zeros(-(-size // 16) * 16, np.uint8)
        self.words = self.bytes.view(np.uint32)
        self._defined = np.zeros(len(self.bytes), bool)

    def define(self, offset: int, data: bytes) -> None:
        self.bytes[offset : offset + len(data)] = np.frombuffer(data, np.uint8)
        self._defined[offset : offset + len(data)] = True

    def allow(self, offset: int, size: int) -> None:
        """Allow reads of the padding between parameters, which wide loads may cover."""
        self._defined[offset : offset + size] = True

    def check(self, offsets: np.ndarray, size: int) -> None:
        """Raise an error unless every byte at these offsets is defined."""
        if (offsets % size).any():
            raise BadAccessError(f"constant access of {size} bytes at {int(offsets.max()):#x}")
        for k in range(size):
            inside = (offsets + k >= 0) & (offsets + k < len(self._defined))
            if not inside.all() or not self._defined[offsets + k].all():
                raise BadAccessError(f"constants at {int(offsets.ravel()[0]):#x} are not defined")
