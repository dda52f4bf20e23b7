"""Counts the bytes that a kernel has in flight: requested from global memory, but not yet arrived.

A thread runs in order until it uses a loaded value that has not arrived. All loads that it has
issued by then are in flight together, and their latencies overlap. The loads of a hot path
therefore form rounds:

  A round begins with the first load after the end of the previous round. It ends where an
  instruction, even a move or a store, first uses the value of any of the round's loads. All loads
  before that point belong to it, including those before the loop and in earlier passes. A loop that
  loads the next pass's values before it uses the current ones therefore has both in flight.

`rounds_of_trace` takes the instructions that a warp executed. It is used for kernels whose loads
and arithmetic are in different loops, separated by barriers, so that no single loop is hot.

`bytes_in_flight` returns the mean number of bytes per round in a loop's steady state. Two 16-byte
loads count as 32 bytes if they are issued together, and as 16 if one waits for the other. Stores
are not counted, because no instruction waits for them.
"""

from __future__ import annotations

from collections.abc import Sequence

from .registers import use
from .sass import Instruction, width

# The number of passes before the steady state, and the number of passes that are counted.
SETTLE, COUNT = 8, 24


def bytes_in_flight(path: Sequence[Instruction], *, in_loop: bool) -> float:
    """Return a thread's bytes in flight on a hot path, or 0 if the thread uses no loaded value."""
    by_pass = _rounds(path, SETTLE + COUNT)[SETTLE:] if in_loop else _rounds(path, 1)
    rounds = [r for passed in by_pass for r in passed]
    return sum(rounds) / len(rounds) if rounds else 0.0


def rounds_of_trace(trace: Sequence[Instruction]) -> list[int]:
    """Return the bytes of each round of a thread that executed these instructions."""
    return _rounds(trace, 1)[0]


def _rounds(path: Sequence[Instruction], passes: int) -> list[list[int]]:
    """Return the bytes of the rounds that end in each pass."""
    uses = [use(i) for i in path]
    loads = [max(1, width(i) // 8) if i.base in ("LDG", "LD") else 0 for i in path]
    waiting: set[str] = set()  # registers that loads of this round will write
    requested = 0
    found: list[list[int]] = []
    for _ in range(passes):
        ended: list[int] = []
        for used, loaded in zip(uses, loads, strict=True):
            if waiting & used.reads:
                ended.append(requested)
                waiting, requested = set(), 0
            if loaded:
                waiting |= used.writes
                requested += loaded
            else:
                waiting -= used.writes
        found.append(ended)
    return found
