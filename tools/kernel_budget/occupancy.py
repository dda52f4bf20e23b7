"""How many threads of a kernel an SM holds at once, by architecture.

Sources: CUDA C++ Programming Guide, technical specifications per compute capability. Registers are
allocated per warp in units of 256 registers, as in the CUDA occupancy calculator.
"""

from __future__ import annotations

import dataclasses
import re

REGISTERS = 65536  # per SM, on every architecture here
REGISTER_UNIT = 256  # a warp's registers are rounded up to this
SHARED_UNIT = 128  # a block's shared memory is rounded up to this
WARP = 32
THREADS_OF_BLOCK = 256  # kThreads in csrc/cuda/launch.cuh


@dataclasses.dataclass(frozen=True)
class Limits:
    """The limits of an SM. `reserved`: bytes of shared memory per block that the driver takes,
    unless cuobjdump already counts them, as it does from sm_90 on."""

    threads: int
    blocks: int
    shared: int
    reserved: int


LIMITS = {
    75: Limits(1024, 16, 64 << 10, 0),
    80: Limits(2048, 32, 164 << 10, 1024),
    86: Limits(1536, 16, 100 << 10, 1024),
    89: Limits(1536, 24, 100 << 10, 1024),
    90: Limits(2048, 32, 228 << 10, 0),
    100: Limits(2048, 32, 228 << 10, 0),
    103: Limits(2048, 32, 228 << 10, 0),
    120: Limits(1536, 24, 100 << 10, 0),
}


def number(arch: str) -> int:
    """``sm_90a`` -> 90."""
    found = re.search(r"\d+", arch)
    if found is None:
        raise ValueError(f"arch must contain a number, as sm_90 does, got {arch!r}")
    return int(found[0])


def limits(arch: str) -> Limits:
    """The limits of the newest known architecture that is not newer than this one."""
    return LIMITS[max((n for n in LIMITS if n <= number(arch)), default=min(LIMITS))]


def resident_blocks(arch: str, registers: int, shared: int, threads: int = THREADS_OF_BLOCK) -> int:
    """Blocks that an SM holds at once. `shared`: bytes per block, as cuobjdump counts them."""
    most = limits(arch)
    of_warp = -(-registers * WARP // REGISTER_UNIT) * REGISTER_UNIT
    of_block = -(-(shared + most.reserved) // SHARED_UNIT) * SHARED_UNIT
    warps = threads // WARP
    found = [most.blocks, most.threads // threads]
    if of_warp:
        # Each of the four parts of an SM has a quarter of the registers and whole warps.
        found.append(REGISTERS // 4 // of_warp * 4 // warps)
    if of_block:
        found.append(most.shared // of_block)
    return min(found)


def resident_threads(
    arch: str, registers: int, shared: int, threads: int = THREADS_OF_BLOCK
) -> int:
    return threads * resident_blocks(arch, registers, shared, threads)
