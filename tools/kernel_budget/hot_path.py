"""The hot path of a kernel: the sequence of instructions that its budget counts.

  region  The loop with the most additions (FADD, FFMA, DADD, DFMA), without those in inner loops.
          Several loops with nearly as many are forms of one loop (for whole vectors and for
          others), and the one with the shortest path counts. If at least twice as many additions
          are outside of all loops, the region is the code outside: the compiler has unrolled the
          loop completely. About as many outside are a peeled first iteration.
  path    Once around that loop, or once through the kernel, passing each inner loop at most once:
            1. with the fewest calls of functions that return,
            2. among those with the most additions,
            3. among those the one that stores the most bits to global memory,
            4. among those the shortest.

A kernel branches around work that a call does not need (an output, the KL) or takes from a cheaper
source (explicit noise). The shortest path alone would skip all such work. The path with the most
additions generates noise and computes and sums the KL, because polynomials and sums consist of
additions, while options add at most multiplications. The path with the most stores writes the
results. The shortest path has whole vectors, which are one access instead of several, and computes
no index. In a kernel without such branches it is the shortest path through the loads and stores.

Predicated instructions are counted (they issue), and so are the instructions of a function that is
called on the path, by its shortest way to RET. Additions in it do not count, because calls are slow
paths.
"""

from __future__ import annotations

import dataclasses

from sass import Block, Graph, Instruction, graph, loops, postorder, returns, width

ADDITIONS = dict.fromkeys(("FADD", "FFMA", "DADD", "DFMA"), 1)
ADDITIONS |= dict.fromkeys(("FADD2", "FFMA2"), 2)  # of two floats at once, from sm_100 on

# The share of the most additions from which a loop is another form of the same one. A kernel that
# branches on how the KL is reduced has the additions of each case in its loop.
ALIKE = 0.7
# Minus the calls, the additions, the bits stored, and minus the instructions.
Weight = tuple[int, int, int, int]


@dataclasses.dataclass
class HotPath:
    instructions: list[Instruction]
    in_loop: bool
    called: int  # instructions of called functions, by their shortest way

    @property
    def length(self) -> int:
        return len(self.instructions) + self.called

    def count(self, *bases: str) -> int:
        return sum(i.base in bases for i in self.instructions)


def hot_path(code: list[Instruction]) -> HotPath:
    """The hot path of a kernel, as the head of this file defines it."""
    flow = graph(code)
    additions = {
        start: sum(ADDITIONS.get(i.base, 0) for i in block.instructions)
        for start, block in flow.blocks.items()
    }
    bodies = loops(flow)
    kernel = set(postorder(flow, flow.entry, lambda _: True))  # without called functions

    def own(body: set[int]) -> int:
        return sum(additions[b] for b in body.difference(*(b for b in bodies.values() if b < body)))

    amounts = {header: own(body) for header, body in bodies.items()}
    most = max(amounts.values(), default=-1)
    if 2 * most <= own(kernel):
        return _path(flow, additions, flow.entry, kernel, in_loop=False)
    alike = [header for header, amount in amounts.items() if amount >= ALIKE * most]
    paths = [_path(flow, additions, header, bodies[header], in_loop=True) for header in alike]
    return min(paths, key=lambda path: path.length)


def _path(
    flow: Graph, additions: dict[int, int], start: int, body: set[int], *, in_loop: bool
) -> HotPath:
    """The best path through a region that begins with the block `start`."""
    called: dict[int, int] = {}

    def weight(b: int) -> Weight:
        inside = flow.blocks[b].instructions
        lengths = [_called(flow, i, called) for i in inside]
        return -sum(n > 0 for n in lengths), additions[b], 0, -len(inside) - sum(lengths)

    def left(b: int, to: int | None) -> Weight:
        """The weight of the best path to the end of a block whose successor is `to`."""
        calls, done, stored, length = best[b][0]
        return calls, done, stored + _stored(flow.blocks[b], to), length

    # Reverse postorder without back edges is a DAG, in which the best path to a block follows from
    # the best paths to its predecessors.
    order = postorder(flow, start, lambda b: b in body)[::-1]
    position = {b: n for n, b in enumerate(order)}
    best: dict[int, tuple[Weight, int | None]] = {start: (weight(start), None)}
    for b in order:
        for s in flow.blocks[b].successors:
            if position.get(s, -1) > position[b]:
                c, a, m, n = (x + y for x, y in zip(left(b, s), weight(s), strict=True))
                total = c, a, m, n
                if s not in best or total > best[s][0]:
                    best[s] = (total, b)
    if in_loop:
        ends = [b for b in order if start in flow.blocks[b].successors]
    else:
        ends = [b for b in order if not flow.blocks[b].successors] or [order[-1]]
    last = start if in_loop else None
    at: int | None = max(ends, key=lambda b: (left(b, last), -b))
    path: list[int] = []
    while at is not None:
        path.append(at)
        at = best[at][1]
    instructions = [i for b in reversed(path) for i in flow.blocks[b].instructions]
    return HotPath(instructions, in_loop, sum(_called(flow, i, called) for i in instructions))


def _stored(block: Block, to: int | None) -> int:
    """Bits that a block stores if its successor is `to`.

    A predicate that guards both a store and the branch has the same value for both: in
    `@P0 STG; @P0 BRA` nothing is stored unless the branch is taken.
    """
    branch = block.instructions[-1]
    never = ""
    if branch.base == "BRA" and branch.guard and to is not None:
        sign = "@" if branch.guard.startswith("@!") else "@!"
        never = sign + branch.guard.lstrip("@!") if to in branch.targets else branch.guard
    stores = (i for i in block.instructions if i.base == "STG")
    return sum(width(i) for i in stores if not i.guard or i.guard != never)


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
        known[entry] = 0  # for a recursive call
        done: set[int] = set()
        work = {entry: 0}  # blocks, and the number of instructions before each
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
