"""Computes the share of a copy's bandwidth from a program, a chip and a latency."""

from __future__ import annotations

import itertools
import statistics
from typing import NamedTuple

from ..kernels import ELEMENT_BITS, TENSORS, template_arguments
from ..occupancy import THREADS_OF_BLOCK, WARP
from .simulation import Program, Run, simulate

SEEDS = 4  # a run varies by 1 %, and the average over so many seeds by less
PARTS = 4  # of an SM
WARPS_OF_PART = THREADS_OF_BLOCK // WARP // PARTS  # per block
# The loop is timed between these passes, when the warps are no longer in lockstep.
WARM, LONG = 16, 80


class Chip(NamedTuple):
    """A chip. The document of `source` was not available for a check.

    The clock is the rated boost clock, except for Hopper, whose power limit keeps it lower: 1.755
    GHz is assumed. A copy's rate has been measured on none of the chips. The model assumes 0.9 of
    the memory's bandwidth, the ratio of 4.3 TB/s to the 4.8 TB/s of an H200.
    """

    name: str
    arch: str  # of the machine code that it runs
    sms: int
    ghz: float
    copy_tb_s: float
    source: str  # of the other figures

    @property
    def copy_bytes_a_cycle(self) -> float:
        """Bytes per cycle of the whole chip."""
        return self.copy_tb_s * 1e12 / (self.ghz * 1e9)


CHIPS = {
    "h200": Chip("H200 SXM", "sm_90", 132, 1.755, 4.3, "H200 data sheet, Hopper whitepaper"),
    "h100": Chip("H100 SXM", "sm_90", 132, 1.755, 3.0, "H100 data sheet, Hopper whitepaper"),
    "a100": Chip("A100 80 GB SXM", "sm_80", 108, 1.41, 1.83, "A100 data sheet"),
    "l40s": Chip("L40S", "sm_89", 142, 2.52, 0.78, "L40S data sheet"),
    "rtx4090": Chip("RTX 4090", "sm_89", 128, 2.52, 0.91, "Ada whitepaper"),
    # The sources differ: 1.965 to 1.98 GHz, and 7.7 to 8 TB/s of memory.
    "b200": Chip("B200", "sm_100", 148, 1.965, 7.2, "reviews"),
    "rtx5090": Chip("RTX 5090", "sm_120", 170, 2.407, 1.61, "RTX Blackwell whitepaper"),
}
LATENCIES_NS = (530.0, 660.0, 850.0, 1010.0)  # of a load under load; assumed


def bytes_of_element(name: str) -> int:
    """Bytes per element of a short name such as ``forward<BFloat16, (Access)0>``."""
    return sum(TENSORS[name.partition("<")[0]]) * ELEMENT_BITS[template_arguments(name)[0]] // 8


def predict(program: Program, chip: Chip, latency_ns: float) -> float:
    """The share of a copy's bandwidth."""
    bandwidth = chip.copy_bytes_a_cycle / chip.sms / PARTS
    blocks, latency = program.resident_blocks, latency_ns * chip.ghz
    runs = [
        Run(WARPS_OF_PART, blocks, passes, bandwidth, latency, seed)
        for seed, passes in itertools.product(range(SEEDS), (WARM, LONG))
    ]
    cycles = simulate(program, runs)
    of_pass = bytes_of_element(program.name) * program.elements * WARP
    moved = (LONG - WARM) * of_pass * blocks * WARPS_OF_PART
    times = (long - warm for warm, long in zip(cycles[::2], cycles[1::2], strict=True))
    return statistics.fmean(moved / bandwidth / time for time in times)
