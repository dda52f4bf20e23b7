"""The path of a warp through a kernel: to the hot loop, around it, to the next tile, to the exit.

  body      The hot path of hot_path.py.
  prologue  The path from the entry to the loop with the most of these: stores to shared memory
            (the keys of the noise), and loads and stores as wide as those of the loop (a step
            before it, or the first step's loads). Among those the shortest.
  between   If the hot loop is inside a loop over tiles: the path from its end to its beginning with
            the most stores to shared memory (a thread's sums), among those the shortest.
  epilogue  If a path from the loop reaches a global atomic: the path to it with the most additions
            (the block's sum), among those the shortest, and from there the shortest path to an exit
            (this block is not the last). Otherwise it is the shortest path to an exit.

No path enters a loop that does not contain the hot one unless it must, and no path takes a back
edge.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

from ..hot_path import additions, hot_path
from ..sass import Graph, Instruction, best_path, graph, loops, order, widest, width

ATOMICS = ("ATOM", "ATOMG", "RED", "REDG")
Worth = Callable[[list[Instruction]], int]


class Way(NamedTuple):
    prologue: list[Instruction]
    body: list[Instruction]
    between: list[Instruction]
    epilogue: list[Instruction]


def way(code: list[Instruction]) -> Way:
    """The path through a kernel. Without a hot loop, the body is the whole path."""
    hot = hot_path(code)
    if not hot.in_loop:
        return Way([], hot.instructions, [], [])
    flow = graph(code)
    header = hot.instructions[0].address
    bodies = loops(flow)
    inside, outside = bodies[header], set(flow.blocks) - bodies[header]
    free = set(order(flow, flow.entry)).difference(*(b for b in bodies.values() if header not in b))
    taken = [i.address for i in hot.instructions if i.address in inside]  # blocks in their order
    exits = [s for b in taken[::-1] for s in flow.successors[b] if s not in inside]
    wide = widest(hot.instructions, "LDG"), widest(hot.instructions, "STG")

    def of_first_step(code: list[Instruction]) -> int:
        return sum(i.base == "STS" or is_of_step(i, *wide) for i in code)

    before = _best(flow, flow.entry, [header], free | {header}, of_first_step)
    before = before or _best(flow, flow.entry, [header], set(flow.blocks), of_first_step)
    after = _epilogue(flow, exits, free & outside) or _epilogue(flow, exits, outside)
    between = _to_next_tile(flow, bodies, header, exits, free)
    sections = ([i for b in blocks for i in flow.blocks[b]]
                for blocks in (before[:-1], between, after))  # fmt: skip
    prologue, middle, epilogue = sections
    return Way(prologue, hot.instructions, middle, epilogue)


def _to_next_tile(
    flow: Graph, bodies: dict[int, set[int]], header: int, exits: Iterable[int], free: set[int]
) -> list[int]:
    """From the end of the hot loop to its header, around the loop over tiles; else empty."""
    around = [(len(b), h) for h, b in bodies.items() if header in b and h != header]
    if not around:
        return []
    tiles = min(around)[1]
    inside = (bodies[tiles] & free) - bodies[header]
    ends = [b for b in inside if tiles in flow.successors[b]]
    for start in (b for b in exits if b in inside):
        end = _best(flow, start, ends, inside, lambda code: sum(i.base == "STS" for i in code))
        begin = _best(flow, tiles, [header], inside | {header}, _nothing)
        if end and begin:
            return end + begin[:-1]
    return []


def is_of_step(instruction: Instruction, load: int, store: int) -> bool:
    """Whether an access moves elements, in a kernel whose loop has loads and stores of these bits.

    Before the loop a guarded access counts only if it has 128 bits. Narrower ones belong to the key
    and to the gradient of the KL.
    """
    bits = {"LDG": load, "STG": store}.get(instruction.base, 0)
    if not bits or width(instruction) != bits:
        return False
    return bits == 128 or not instruction.guard


def _epilogue(flow: Graph, exits: Iterable[int], inside: set[int]) -> list[int]:
    """`exits`: possible successors of the loop, the usual one first."""

    def with_any(*bases: str) -> list[int]:
        has_any = (b for b in inside if any(i.base in bases for i in flow.blocks[b]))
        return sorted(has_any, key=order(flow, flow.entry).__getitem__)

    leaving = with_any("EXIT", "RET")
    for start in (b for b in exits if b in inside):
        for ticket in with_any(*ATOMICS):  # the first is the ticket; later code contains others
            head = _best(flow, start, [ticket], inside, additions)
            tail = _best(flow, ticket, leaving, inside, _nothing)
            if head and tail:
                return head + tail[1:]
        if plain := _best(flow, start, leaving, inside, _nothing):
            return plain
    return []


def _nothing(_: list[Instruction]) -> int:
    return 0


def _best(
    flow: Graph, start: int, ends: Collection[int], inside: set[int], worth: Worth
) -> list[int]:
    """The blocks of the path with the highest worth, then the fewest instructions, or []."""

    def worths(block: int, _: int | None) -> tuple[int, ...]:
        code = flow.blocks[block]
        return worth(code), -len(code)

    places = {b: n for b, n in order(flow, flow.entry).items() if b in inside or b == start}
    return best_path(flow, start, ends, places, worths)
