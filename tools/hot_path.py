"""The hot path of a kernel: the sequence of instructions that its budget counts.

  region  Of all loops the one that holds the most floating-point arithmetic (FADD, FMUL, FFMA,
          DADD, DMUL, DFMA), loops inside it not counted; or, if that is more still, what is in no
          loop: then the compiler has unrolled the loop away.
  path    Once around that loop, or once through the kernel, passing each inner loop at most once:
            1. with the most floating-point arithmetic,
            2. among those with the most global loads and stores of the region's widest kinds,
            3. among those the shortest.

Why so: what a call does not ask for (an output, the KL), and what has a cheaper source (explicit
noise), a kernel skips by a branch. The plainly shortest path would skip all of it. Arithmetic first
makes it the path of the call that asks for everything and draws its noise; the widest accesses then
say that vectors are whole, and the shortest that no index is computed: neither has any arithmetic
to add. In a kernel without such branches it is the shortest path through the widest accesses. What
may be asked for together is counted together, even where no caller does.

Predicated instructions are counted (they issue), and so are the instructions of a function that is
called on the path, by its shortest way to RET; its arithmetic is not, because calls are slow paths.
"""

from __future__ import annotations

import dataclasses

from sass import Graph, Instruction, graph, loops, postorder, returns, widest, width

ARITHMETIC = dict.fromkeys(("FADD", "FMUL", "FFMA", "DADD", "DMUL", "DFMA"), 1)
ARITHMETIC |= dict.fromkeys(("FADD2", "FMUL2", "FFMA2"), 2)  # two floats at once, from sm_100 on


@dataclasses.dataclass
class HotPath:
    instructions: list[Instruction]
    in_loop: bool
    called: int  # instructions of the functions that it calls, by their shortest way

    @property
    def length(self) -> int:
        return len(self.instructions) + self.called

    def count(self, *bases: str) -> int:
        return sum(i.base in bases for i in self.instructions)

    @property
    def widest_stores(self) -> int:
        """How many of its stores are as wide as its widest."""
        most = widest(self.instructions, "STG")
        return sum(i.base == "STG" and width(i) == most for i in self.instructions)


def hot_path(code: list[Instruction]) -> HotPath:
    """The hot path of a kernel, as the head of this file defines it."""
    flow = graph(code)
    arithmetic = {
        start: sum(ARITHMETIC.get(i.base, 0) for i in block.instructions)
        for start, block in flow.blocks.items()
    }
    bodies = loops(flow)
    kernel = set(postorder(flow, flow.entry, lambda _: True))  # without what is only called

    def own(body: set[int]) -> int:
        return sum(
            arithmetic[b] for b in body.difference(*(b for b in bodies.values() if b < body))
        )

    start, body = flow.entry, kernel
    most, in_loop = own(kernel), False
    for header in sorted(bodies):
        if (amount := own(bodies[header])) >= most:
            start, body, most, in_loop = header, bodies[header], amount, True

    widths = {
        base: widest((i for b in body for i in flow.blocks[b].instructions), base)
        for base in ("LDG", "STG")
    }
    called: dict[int, int] = {}

    def weight(b: int) -> tuple[int, int, int]:
        wide = length = 0
        for i in flow.blocks[b].instructions:
            wide += i.base in widths and width(i) == widths[i.base]
            length += 1 + _called(flow, i, called)
        return arithmetic[b], wide, -length

    # Reverse postorder without the edges that lead back: a DAG, through which the best path follows
    # from the best paths to each block's predecessors.
    order = postorder(flow, start, lambda b: b in body)[::-1]
    position = {b: n for n, b in enumerate(order)}
    best: dict[int, tuple[tuple[int, int, int], int | None]] = {start: (weight(start), None)}
    for b in order:
        for s in flow.blocks[b].successors:
            if position.get(s, -1) > position[b]:
                total = tuple(x + y for x, y in zip(best[b][0], weight(s), strict=True))
                if s not in best or total > best[s][0]:
                    best[s] = (total, b)  # type: ignore[assignment]
    if in_loop:
        ends = [b for b in order if start in flow.blocks[b].successors]
    else:
        ends = [b for b in order if not flow.blocks[b].successors]
        ends = ends or [order[-1]]
    at: int | None = max(ends, key=lambda b: (best[b][0], -b))
    path: list[int] = []
    while at is not None:
        path.append(at)
        at = best[at][1]
    instructions = [i for b in reversed(path) for i in flow.blocks[b].instructions]
    return HotPath(instructions, in_loop, sum(_called(flow, i, called) for i in instructions))


def _called(flow: Graph, call: Instruction, known: dict[int, int]) -> int:
    """The instructions that a CALL adds: the shortest way from its target to a RET.

    None for a jump written as a call, or for one that a predicate may skip.
    """
    if call.base != "CALL" or call.guard or not call.targets:
        return 0
    entry = call.targets[0]
    if entry not in flow.blocks or not returns(flow, entry):
        return 0
    if entry not in known:
        known[entry] = 0  # of a recursive call
        done: set[int] = set()
        work = {entry: 0}  # blocks, and the instructions before each
        while work:
            block = min(work, key=lambda b: (work[b], b))
            inside = flow.blocks[block].instructions
            length = work.pop(block) + sum(1 + _called(flow, i, known) for i in inside)
            if inside[-1].base == "RET":
                known[entry] = length
                break
            done.add(block)
            for s in flow.blocks[block].successors:
                if s not in done:
                    work[s] = min(work.get(s, length), length)
    return known[entry]
