"""Finds the hot path of a kernel: the sequence of instructions that its budget counts.

  region  The loop with the most additions (FADD, FFMA, DADD, DFMA), without those in inner loops.
          Loops with nearly as many are other forms of this loop (for partial vectors, say), and the
          form with the shortest path is used. If at least twice as many additions are outside all
          loops, the region is the code outside, because the compiler has unrolled the loop
          completely. If about as many are outside, they are a peeled first iteration.
  path    A path goes once around that loop, or once through the kernel, and through each inner loop
          at most once. The best path has the fewest calls of functions that return. Of those, it
          has the most additions, then the most bits stored to global memory, then the fewest
          instructions.

A kernel branches around work that a call does not need (an output, the KL) or for which it has a
cheaper source (explicit noise). The shortest path alone would skip all such work. The path with the
most additions generates noise and computes and sums the KL, because polynomials and sums consist of
additions, while options add at most multiplications. The path with the most stores writes the
results. The shortest path accesses a whole vector at once, and computes no index. If a kernel has
no such branches, its best path is the shortest one that loads and stores.

Predicated instructions are counted, because they are issued. The instructions of a function that is
called on the path are also counted, along the function's shortest path to RET. Additions in such a
function do not make a path better, because calls are slow paths.
"""

from __future__ import annotations

import dataclasses

from .sass import Graph, Instruction, best_path, graph, loops, order, returns, width

ADDITIONS = dict.fromkeys(("FADD", "FFMA", "DADD", "DFMA"), 1)
ADDITIONS |= dict.fromkeys(("FADD2", "FFMA2"), 2)  # of two floats at once, from sm_100 on

# A loop with at least this share of the most additions is another form of the same loop. Forms may
# differ: if a kernel branches on how the KL is reduced, its loop contains each case's additions.
ALIKE = 0.7


@dataclasses.dataclass
class HotPath:
    instructions: list[Instruction]
    in_loop: bool
    called: int  # instructions of called functions, along their shortest paths

    @property
    def length(self) -> int:
        return len(self.instructions) + self.called


def additions(code: list[Instruction]) -> int:
    return sum(ADDITIONS.get(i.base, 0) for i in code)


def hot_path(code: list[Instruction]) -> HotPath:
    """Return the hot path of a kernel, as the head of this file defines it."""
    flow = graph(code)
    bodies = loops(flow)
    kernel = set(order(flow, flow.entry))  # without called functions

    def own(body: set[int]) -> int:
        inner = (b for b in bodies.values() if b < body)
        return sum(additions(flow.blocks[b]) for b in body.difference(*inner))

    amounts = {header: own(body) for header, body in bodies.items()}
    most = max(amounts.values(), default=-1)
    if 2 * most <= own(kernel):
        return _path(flow, flow.entry, kernel, in_loop=False)
    alike = [header for header, amount in amounts.items() if amount >= ALIKE * most]
    paths = [_path(flow, header, bodies[header], in_loop=True) for header in alike]
    return min(paths, key=lambda path: path.length)


def _path(flow: Graph, start: int, body: set[int], *, in_loop: bool) -> HotPath:
    """Return the best path through a region that begins with the block `start`."""
    called: dict[int, int] = {}

    def worth(b: int, to: int | None) -> tuple[int, ...]:
        inside = flow.blocks[b]
        lengths = [_called(flow, i, called) for i in inside]
        calls, length = sum(n > 0 for n in lengths), len(inside) + sum(lengths)
        return -calls, additions(inside), _stored(flow.blocks[b], to), -length

    places = order(flow, start, body)
    if in_loop:
        ends = [b for b in places if start in flow.successors[b]]
    else:
        ends = [b for b in places if not flow.successors[b]] or [list(places)[-1]]
    path = best_path(flow, start, ends, places, worth, start if in_loop else None)
    instructions = [i for b in path for i in flow.blocks[b]]
    return HotPath(instructions, in_loop, sum(_called(flow, i, called) for i in instructions))


def _stored(block: list[Instruction], to: int | None) -> int:
    """Return how many bits a block stores if its successor is `to`.

    A predicate that guards both a store and the branch has the same value for both: in
    `@P0 STG; @P0 BRA` nothing is stored unless the branch is taken.
    """
    branch = block[-1]
    never = ""
    if branch.base == "BRA" and branch.guard and to is not None:
        sign = "@" if branch.guard.startswith("@!") else "@!"
        never = sign + branch.guard.lstrip("@!") if to in branch.targets else branch.guard
    stores = (i for i in block if i.base == "STG")
    return sum(width(i) for i in stores if not i.guard or i.guard != never)


def _called(flow: Graph, call: Instruction, known: dict[int, int]) -> int:
    """Return how many instructions a CALL adds: the shortest path from its target to a RET.

    A jump that is written as a call adds 0, and so does a call that a predicate may skip.
    """
    if call.base != "CALL" or call.guard or not call.targets:
        return 0
    entry = call.targets[0]
    if entry not in flow.blocks or not returns(flow, entry):
        return 0
    if entry not in known:
        known[entry] = 0  # for a recursive call
        lengths = {
            b: sum(1 + _called(flow, i, known) for i in flow.blocks[b]) for b in order(flow, entry)
        }
        ends = [b for b in lengths if flow.blocks[b][-1].base == "RET"]
        way = best_path(flow, entry, ends, order(flow, entry), lambda b, _: (-lengths[b],))
        known[entry] = sum(lengths[b] for b in way)
    return known[entry]
