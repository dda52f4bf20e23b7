"""The state of warps that run together: registers, predicates and the data of their launch.

The values of a register are an array of shape (warps, 32). The values of a uniform register are an
array of shape (warps, 1), which numpy broadcasts. Row 255 of the registers and row 63 of the
uniform registers are always 0.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from .memory import ConstantBank, GlobalMemory
from .operands import PT

LANES = 32
Where = np.ndarray | bool  # the lanes that write: all, or those of a mask


_BIT = np.uint32(1) << np.arange(LANES, dtype=np.uint32)


def mask_of(lanes: np.ndarray) -> np.ndarray:
    """Return the lanes of each warp as the bits of a word, in the shape (warps, 1)."""
    return np.where(lanes, _BIT, np.uint32(0)).sum(axis=1, keepdims=True, dtype=np.uint32)


@dataclasses.dataclass(frozen=True)
class Environment:
    """The data that all warps of a launch share."""

    memory: GlobalMemory
    constants: dict[int, ConstantBank]
    random: np.random.Generator
    perturb: bool  # perturb results of MUFU within their error
    salt: np.uint32  # of the perturbation

    def noise(self, bits: np.ndarray) -> np.ndarray:
        """A hash of each word, uniform in [-1, 1]. All results are 0 unless `perturb` is set."""
        if not self.perturb:
            return np.zeros(bits.shape)
        mixed = (bits ^ self.salt) * np.uint32(0x7FEB352D)
        mixed = (mixed ^ (mixed >> np.uint32(15))) * np.uint32(0x846CA68B)
        return (mixed ^ (mixed >> np.uint32(16))) * 2.0**-31 - 1.0


class Shared:
    """The shared memory of several blocks, stored consecutively.

    It is initialized to values that are NaN in every format, so that reads of unwritten memory are
    detected. Accesses since the block's last barrier are recorded, so that a missing barrier is
    detected whatever the order of the warps, even if the values happen to be right. Accesses by
    lanes of the same warp are treated as ordered.
    """

    # The first KiB of a block's memory belongs to the system; a kernel's variables follow it.
    RESERVED = 0x400
    _SEVERAL, _ATOMIC = -2, -3  # in place of a warp: several warps, or any number of atomics

    def __init__(self, blocks: int, size: int, unit: int = 4) -> None:
        """`unit`: the size in bytes of the narrowest access, which is the record's granularity."""
        self.size, self.unit = size, min(unit, 4)
        self.stride = -(-size // 16) * 16
        total = max(blocks * self.stride, 16)
        self.bytes = np.full(total, 0xFF, np.uint8)
        self.epoch = np.zeros(blocks, np.int64)  # number of barriers that a block has completed
        # These arrays are indexed by the first byte of an accessed unit. Their values are the last
        # warp that accessed the unit, and the epoch of that access.
        self._writer, self._reader = np.full((2, total), -1, np.int64)
        self._written, self._read = np.full((2, total), -1, np.int64)

    def races(
        self, at: np.ndarray, warp: np.ndarray, slot: np.ndarray, writes: bool, atomic: bool = False
    ) -> np.ndarray:
        """Record accesses of blocks' warps, and return those that conflict with another warp's.

        Reads do not conflict with reads, and atomics do not conflict with atomics.
        """
        now = self.epoch[slot]
        found = (self._written[at] == now) & (self._writer[at] != warp)
        read_now = self._read[at] == now
        if atomic:
            found &= self._writer[at] != self._ATOMIC
            found |= read_now & (self._reader[at] != warp)
            self._written[at], self._writer[at] = now, self._ATOMIC
            return found
        if writes:
            found |= read_now & (self._reader[at] != warp)
            self._written[at], self._writer[at] = now, warp
            return found | (self._writer[at] != warp)  # by the same instruction
        others = read_now & (self._reader[at] != warp)
        self._read[at], self._reader[at] = now, np.where(others, self._SEVERAL, warp)
        self._reader[at[self._reader[at] != warp]] = self._SEVERAL
        return found


class Warps:
    """A group of warps: the block of each warp, and all state that its threads can read."""

    def __init__(
        self,
        environment: Environment,
        shared: Shared,
        slots: np.ndarray,
        blocks: np.ndarray,
        warp_of_block: np.ndarray,
    ) -> None:
        """`slots`: indices of the shared memories; `blocks`: the blocks' indices in the grid."""
        count = len(blocks)
        self.environment, self.shared = environment, shared
        self.constants = environment.constants
        self.count, self.shape = count, (count, LANES)
        self.everyone = np.ones(self.shape, bool)
        self.slot = slots.reshape(-1, 1)
        self.block = blocks.astype(np.uint32).reshape(-1, 1)
        lane = np.arange(LANES, dtype=np.uint32)
        self.thread = warp_of_block.astype(np.uint32).reshape(-1, 1) * np.uint32(LANES) + lane
        self.warp = warp_of_block.reshape(-1, 1)  # its index within the block
        self.shared_base = (slots.astype(np.int64) * shared.stride).reshape(-1, 1)
        registers = np.zeros((256, count, LANES), np.uint32)
        uniform = np.zeros((64, count, 1), np.uint32)
        # Rows are in lists, as integers and as floats, because indexing a list is the fastest
        # access.
        self.r, self.rf = list(registers), list(registers.view(np.float32))
        self.u, self.uf = list(uniform), list(uniform.view(np.float32))
        predicates = np.zeros((8, count, LANES), bool)
        uniform_predicates = np.zeros((8, count, 1), bool)
        predicates[PT] = uniform_predicates[PT] = True
        self.p, self.up = list(predicates), list(uniform_predicates)
        self.present: Where = True  # the warps that execute now, as (warps, 1)

    def all(self, where: Where) -> np.ndarray:
        """The mask of the lanes as an array, even if `where` is True."""
        if where is True:
            return self.everyone
        return self.full(where)

    def full(self, value: Any) -> np.ndarray:
        """A value for each lane; read-only."""
        if np.shape(value) == self.shape:  # broadcast_to would take longer than most instructions
            return value
        return np.broadcast_to(value, self.shape)
