"""Computes the share of a copy's bandwidth from a program, a chip and a latency."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from ..kernels import ELEMENT_BITS, TENSORS, template_arguments
from ..occupancy import THREADS_OF_BLOCK, WARP
from .program import Program
from .simulation import Run, simulate

# A single launch varies by up to 4 %, depending on the blocks that share an SM with its last ones.
# The loop alone varies by 1 %. With these numbers of seeds the averages vary by less than 1 %.
SEEDS, LOOP_SEEDS = 32, 4
PARTS = 4  # of an SM
WARPS_OF_PART = THREADS_OF_BLOCK // WARP // PARTS  # per block
MOST_BYTES_A_CYCLE = 64.0  # the most that an SM takes from L2, even if few SMs have work
# The loop alone is timed between these passes, when the warps are no longer in lockstep.
WARM, LONG = 16, 80

# Numbers of csrc/iteration and csrc/cuda.
TILE = 2048  # kTile: elements of a tile before tiles are merged
ENOUGH_BLOCKS = 2048  # VAE_FUSED_ENOUGH_BLOCKS: with more blocks, tiles are merged
TILES_OF_BLOCK = 4  # kTilesOfBlock: the most tiles of a block


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


def grid(elements: int, *, has_loop: bool) -> tuple[int, int, int]:
    """Blocks, tiles of a block and elements of a tile, for long rows, whose tiles merge freely.

    `has_loop`: the kernel has a loop over tiles, in which it keeps a sum for each of them.
    """
    tiles = -(-elements // TILE)
    merged = (tiles - 1) // ENOUGH_BLOCKS + 1
    tiles = -(-tiles // merged)
    of_block = min(max(2 * tiles // ENOUGH_BLOCKS, 1), TILES_OF_BLOCK) if has_loop else 1
    return -(-tiles // of_block), of_block, merged * TILE


def bytes_of_element(name: str) -> int:
    """Bytes per element of a short name such as ``forward<BFloat16, (Access)0>``."""
    return sum(TENSORS[name.partition("<")[0]]) * ELEMENT_BITS[template_arguments(name)[0]] // 8


class Prediction(NamedTuple):
    """Shares of the copy's bandwidth."""

    share: float  # by the whole launch
    loop: float  # by the hot loop alone


def predict(
    program: Program, chip: Chip, latencies_ns: Sequence[float], elements: int
) -> list[Prediction]:
    """One prediction for each latency."""
    blocks, tiles, of_tile = grid(elements, has_loop=bool(program.sections[2]))
    of_sm = -(-blocks // chip.sms)  # blocks of the SM with the most
    bandwidth = min(chip.copy_bytes_a_cycle * of_sm / blocks, MOST_BYTES_A_CYCLE) / PARTS
    passes = max(1, round(of_tile / THREADS_OF_BLOCK / program.elements))
    of_launch = Run(
        WARPS_OF_PART, of_sm, program.resident_blocks, tiles, max(1, passes - program.peeled),
        bandwidth, tiles * passes * program.load_bytes + program.other_bytes,
    )  # fmt: skip
    moved = elements * bytes_of_element(program.name)
    found = []
    for latency in latencies_ns:
        cycles = latency * chip.ghz
        copy = moved / chip.copy_bytes_a_cycle + cycles
        runs = [of_launch._replace(latency=cycles, seed=seed) for seed in range(SEEDS)]
        shares = [copy / outcome.cycles for outcome in simulate(program, runs)]
        found.append(Prediction(statistics.fmean(shares), _loop_share(program, chip, cycles)))
    return found


def _loop_share(program: Program, chip: Chip, latency: float) -> float:
    """The share of the bandwidth for the loop alone in all resident warps."""
    alone = program._replace(sections=([], program.sections[1], [], []))
    bandwidth = chip.copy_bytes_a_cycle / chip.sms / PARTS
    resident = program.resident_blocks
    runs = [
        Run(WARPS_OF_PART, resident, resident, 1, passes, bandwidth, passes * program.load_bytes,
            latency, seed)
        for seed, passes in itertools.product(range(LOOP_SEEDS), (WARM, LONG))
    ]  # fmt: skip
    cycles = [outcome.cycles for outcome in simulate(alone, runs)]
    of_pass = bytes_of_element(program.name) * program.elements * WARP
    moved = (LONG - WARM) * of_pass * resident * WARPS_OF_PART
    times = (long - warm for warm, long in zip(cycles[::2], cycles[1::2], strict=True))
    return statistics.fmean(moved / bandwidth / time for time in times)
