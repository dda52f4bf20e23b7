"""Computes how many threads of a kernel an SM holds at once, by architecture.

Sources: CUDA C++ Programming Guide, technical specifications per compute capability. Registers are
allocated per warp in units of 256 registers, as in the CUDA occupancy calculator.
"""

from __future__ import annotations

import re
from typing import NamedTuple

REGISTERS = 65536  # per SM, on every architecture here
REGISTER_UNIT = 256  # a warp's registers are rounded up to this
SHARED_UNIT = 128  # a block's shared memory is rounded up to this
WARP = 32
THREADS_OF_BLOCK = 256  # kThreads in csrc/cuda/launch.cuh


class Limits(NamedTuple):
    """The limits of an SM. `reserved` is the shared memory in bytes that the driver takes per
    block, unless cuobjdump already includes it, as it does from sm_90 on."""

    threads: int
    blocks: int
    shared: int
    reserved: int = 0


LIMITS = {
    75: Limits(1024, 16, 64 << 10),
    80: Limits(2048, 32, 164 << 10, 1024),
    86: Limits(1536, 16, 100 << 10, 1024),
    89: Limits(1536, 24, 100 << 10, 1024),
    90: Limits(2048, 32, 228 << 10),
    120: Limits(1536, 24, 100 << 10),
}


def number(arch: str) -> int:
    """``sm_90a`` -> 90."""
    return int(re.sub(r"\D", "", arch))


def resident_blocks(arch: str, registers: int, shared: int, threads: int = THREADS_OF_BLOCK) -> int:
    """Return how many blocks an SM holds at once. `shared` is the bytes per block from cuobjdump.

    An unknown architecture gets the limits of the newest known architecture that precedes it.
    """
    most = LIMITS[max(n for n in LIMITS if n <= number(arch))]
    of_warp = -(-registers * WARP // REGISTER_UNIT) * REGISTER_UNIT
    of_block = -(-(shared + most.reserved) // SHARED_UNIT) * SHARED_UNIT
    found = [most.blocks, most.threads // threads]
    if of_warp:
        # Each of the four parts of an SM has a quarter of the registers. A warp stays in one part.
        found.append(REGISTERS // 4 // of_warp * 4 // (threads // WARP))
    if of_block:
        found.append(most.shared // of_block)
    return min(found)


def resident_threads(arch: str, registers: int, shared: int) -> int:
    return THREADS_OF_BLOCK * resident_blocks(arch, registers, shared)
