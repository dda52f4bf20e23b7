"""Computes the share of a copy's bandwidth from a program, a chip and a latency."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

from occupancy import THREADS_OF_BLOCK, WARP

from prediction.chips import Chip
from prediction.geometry import bytes_of_element, grid
from prediction.program import Program
from prediction.simulation import Run, simulate

# A single launch varies by up to 4 %, depending on the blocks that share an SM with its last ones.
# The loop alone varies by 1 %. With these numbers of seeds the averages vary by less than 1 %.
SEEDS, LOOP_SEEDS = 32, 4
PARTS = 4  # of an SM
WARPS_OF_PART = THREADS_OF_BLOCK // WARP // PARTS  # per block
MOST_BYTES_A_CYCLE = 64.0  # the most that an SM takes from L2, even if few SMs have work

# The loop alone is timed between these passes, when the warps are no longer in lockstep.
WARM, LONG = 16, 80


@dataclasses.dataclass(frozen=True)
class Prediction:
    share: float  # of the copy's bandwidth, by the whole launch
    loop: float  # by the hot loop alone
    issue: float  # share of the issue slots that the launch uses
    kb_in_flight: float  # of an SM, on average over the launch
    us: float


def predict(
    program: Program, chip: Chip, latencies_ns: Sequence[float], elements: int
) -> list[Prediction]:
    """One prediction for each latency."""
    loops = _loop_shares(program, chip, latencies_ns)
    shape = grid(elements, has_loop=bool(program.between))
    of_sm = -(-shape.blocks // chip.sms)  # blocks of the SM with the most
    bandwidth = min(chip.copy_bytes_a_cycle * of_sm / shape.blocks, MOST_BYTES_A_CYCLE) / PARTS
    passes = max(1, round(shape.elements_of_tile / THREADS_OF_BLOCK / program.elements))
    runs = [
        Run(
            WARPS_OF_PART,
            of_sm,
            program.resident_blocks,
            shape.tiles_of_block,
            max(1, passes - program.peeled),
            latency * chip.ghz,
            bandwidth,
            shape.tiles_of_block * passes * program.load_bytes + program.other_bytes,
            seed,
        )
        for latency in latencies_ns
        for seed in range(SEEDS)
    ]
    outcomes = simulate(program, runs)
    moved = elements * bytes_of_element(program.name)
    found = []
    for n, (latency, loop) in enumerate(zip(latencies_ns, loops, strict=True)):
        of_latency = outcomes[n * SEEDS : (n + 1) * SEEDS]
        copy = moved / chip.copy_bytes_a_cycle + latency * chip.ghz
        found.append(
            Prediction(
                share=statistics.fmean(copy / o.cycles for o in of_latency),
                loop=loop,
                issue=statistics.fmean(o.issued / o.cycles for o in of_latency),
                kb_in_flight=PARTS * statistics.fmean(o.bytes_in_flight for o in of_latency) / 1024,
                us=statistics.fmean(o.cycles for o in of_latency) / chip.ghz / 1000,
            )
        )
    return found


def _loop_shares(program: Program, chip: Chip, latencies_ns: Sequence[float]) -> list[float]:
    """Shares of the bandwidth for the loop alone in all resident warps, one per latency."""
    alone = dataclasses.replace(program, prologue=[], between=[], epilogue=[])
    bandwidth = chip.copy_bytes_a_cycle / chip.sms / PARTS
    resident = program.resident_blocks
    runs = [
        Run(WARPS_OF_PART, resident, resident, 1, passes, latency * chip.ghz, bandwidth,
            passes * program.load_bytes, seed)
        for latency in latencies_ns
        for seed in range(LOOP_SEEDS)
        for passes in (WARM, LONG)
    ]  # fmt: skip
    cycles = [o.cycles for o in simulate(alone, runs)]
    of_pass = bytes_of_element(program.name) * program.elements * WARP
    moved = (LONG - WARM) * of_pass * resident * WARPS_OF_PART
    shares = [
        moved / bandwidth / (long - warm)
        for warm, long in zip(cycles[::2], cycles[1::2], strict=True)
    ]
    return [
        statistics.fmean(shares[n * LOOP_SEEDS : (n + 1) * LOOP_SEEDS])
        for n in range(len(latencies_ns))
    ]
