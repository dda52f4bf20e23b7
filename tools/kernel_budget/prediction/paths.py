"""The path of a warp through a kernel: to the hot loop, around it, to the next tile, to the exit.

  body      The hot path of hot_path.py.
  prologue  The path from the entry to the loop with the most of these: stores to shared memory
            (the keys of the noise), and loads and stores as wide as those of the loop (a step
            before it, or the first step's loads). Among those the shortest.
  between   If the hot loop is inside a loop over tiles: the path from its end to its beginning with
            the most stores to shared memory (a thread's sums), among those the shortest.
  epilogue  If a path from the loop reaches a global atomic: the path to it with the most additions
            (the block's sum), among those the shortest, and from there the shortest path to an exit
            (this block is not the last). Else the shortest path to an exit.

No path enters a loop that does not contain the hot one unless it must, and no path takes a back
edge.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

from hot_path import ADDITIONS, hot_path
from sass import Graph, Instruction, graph, loops, postorder, widest, width

ATOMICS = ("ATOM", "ATOMG", "RED", "REDG")


@dataclasses.dataclass(frozen=True)
class Way:
    prologue: list[Instruction]
    body: list[Instruction]
    between: list[Instruction]
    epilogue: list[Instruction]
    in_loop: bool


def way(code: list[Instruction]) -> Way:
    """The path through a kernel. Without a hot loop, the body is the whole path."""
    hot = hot_path(code)
    if not hot.in_loop:
        return Way([], hot.instructions, [], [], False)
    flow = graph(code)
    header = hot.instructions[0].address
    bodies = loops(flow)
    foreign: set[int] = set().union(*(b for b in bodies.values() if header not in b))
    inside = bodies[header]
    free = set(postorder(flow, flow.entry, lambda _: True)) - foreign
    taken = [i.address for i in hot.instructions if i.address in inside]  # blocks in their order
    exits = [s for b in taken[::-1] for s in flow.blocks[b].successors if s not in inside]
    outside = set(flow.blocks) - inside
    wide = widest(hot.instructions, "LDG"), widest(hot.instructions, "STG")

    def of_first_step(code: list[Instruction]) -> int:
        return sum(i.base == "STS" or is_of_step(i, *wide) for i in code)

    before = _best(flow, flow.entry, [header], free | {header}, of_first_step) or _best(
        flow, flow.entry, [header], set(flow.blocks), of_first_step
    )
    after = _epilogue(flow, exits, free & outside) or _epilogue(flow, exits, outside)
    between = _to_next_tile(flow, bodies, header, exits, free)
    return Way(
        _listed(flow, before[:-1]),
        hot.instructions,
        _listed(flow, between),
        _listed(flow, after),
        True,
    )


def _to_next_tile(
    flow: Graph, bodies: dict[int, set[int]], header: int, exits: Iterable[int], free: set[int]
) -> list[int]:
    """From the end of the hot loop to its header, around the loop over tiles; else empty."""
    around = [(len(b), h) for h, b in bodies.items() if header in b and h != header]
    if not around:
        return []
    tiles = min(around)[1]
    inside = (bodies[tiles] & free) - bodies[header]
    ends = [b for b in inside if tiles in flow.blocks[b].successors]

    def shared_stores(code: list[Instruction]) -> int:
        return sum(i.base == "STS" for i in code)

    for start in (b for b in exits if b in inside):
        end = _best(flow, start, ends, inside, shared_stores)
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
    order = _order(flow)
    atomics = [b for b in inside if any(i.base in ATOMICS for i in flow.blocks[b].instructions)]
    leaving = [
        b for b in inside if any(i.base in ("EXIT", "RET") for i in flow.blocks[b].instructions)
    ]
    for start in (b for b in exits if b in inside):
        # The first atomic in reverse postorder is the ticket; later code contains others.
        for ticket in sorted(atomics, key=lambda b: order[b]):
            head = _best(flow, start, [ticket], inside, _additions)
            tail = _best(flow, ticket, leaving, inside, _nothing)
            if head and tail:
                return head + tail[1:]
        if plain := _best(flow, start, leaving, inside, _nothing):
            return plain
    return []


def _best(
    flow: Graph,
    start: int,
    ends: Iterable[int],
    inside: set[int],
    worth: Callable[[list[Instruction]], int],
) -> list[int]:
    """Blocks of the path with the highest value, then the fewest instructions; empty without one.

    A path ends at the first of `ends` that it reaches.
    """
    last = set(ends)
    order = _order(flow)

    def weight(block: int) -> tuple[int, int]:
        code = flow.blocks[block].instructions
        return worth(code), -len(code)

    best: dict[int, tuple[tuple[int, int], int | None]] = {start: (weight(start), None)}
    for block in sorted(order, key=lambda b: order[b]):
        if block not in best or (block in last):
            continue
        for to in flow.blocks[block].successors:
            if to in inside and order[to] > order[block]:
                more = weight(to)
                total = (best[block][0][0] + more[0], best[block][0][1] + more[1])
                if to not in best or total > best[to][0]:
                    best[to] = (total, block)
    found = [b for b in best if b in last]
    if not found:
        return []
    at: int | None = max(found, key=lambda b: (best[b][0], -b))
    path: list[int] = []
    while at is not None:
        path.append(at)
        at = best[at][1]
    return path[::-1]


def _order(flow: Graph) -> dict[int, int]:
    """The index of each block in reverse postorder: edges to a smaller index are back edges."""
    blocks = postorder(flow, flow.entry, lambda _: True)[::-1]
    return {block: place for place, block in enumerate(blocks)}


def _listed(flow: Graph, blocks: Iterable[int]) -> list[Instruction]:
    return [i for b in blocks for i in flow.blocks[b].instructions]


def _additions(code: list[Instruction]) -> int:
    return sum(ADDITIONS.get(i.base, 0) for i in code)


def _nothing(_: list[Instruction]) -> int:
    return 0
