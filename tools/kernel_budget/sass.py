"""Parses listings of `cuobjdump --dump-sass`: instructions, control flow, loops, paths."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

import networkx as nx  # torch requires it

JUMPS = ("BRA", "BRX", "JMP", "JMX")
NO_FALL = (*JUMPS, "RET", "EXIT")  # control does not fall through to the next instruction
ENDS = (*NO_FALL, "CALL", "BSYNC", "WARPSYNC")  # of a block

_LINE = re.compile(  # address, guard, opcode, operands, encoding
    r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:(@\S+)\s+)?([^\s;]+)\s*(.*?)\s*;"
    r"(?:\s*/\* 0x([0-9a-f]{16}) \*/)?"
)
_LABEL = re.compile(r"^\s*(\.[\w.$]+):")
_TARGET = re.compile(r"`\((\.[\w.$]+)\)|(?<![\w.])(\.L[\w.$]*)|(?<![\w.\[])(0x[0-9a-f]+)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    address: int
    guard: str  # "@P0", "@!UP1"; "" if it always runs
    opcode: str  # with modifiers: "LDG.E.128"
    operands: str
    targets: tuple[int, ...] = ()  # the addresses that a branch, call, BSSY or WARPSYNC names
    encoding: int | None = None  # its first 64 bits; the upper half is an immediate

    @functools.cached_property
    def base(self) -> str:
        return self.opcode.partition(".")[0]

    @property
    def modifiers(self) -> list[str]:
        return self.opcode.split(".")[1:]

    @property
    def conditional(self) -> bool:
        """Whether a branch may fall through."""
        if self.guard not in ("", "@PT", "@UPT"):
            return True
        # BRA P1, target; BRA.U !UP0, target; BRA.DIV UR5, target (without operand on sm_75)
        is_split = "," in self.operands or bool({"DIV", "CONV"} & set(self.modifiers))
        return self.base == "BRA" and is_split


class Graph(NamedTuple):
    """Basic blocks by address. All are reachable from the entry, some of them through calls."""

    entry: int
    blocks: dict[int, list[Instruction]]
    successors: nx.DiGraph


def functions(listing: str) -> dict[str, list[Instruction]]:
    """Return every function of a listing, by its mangled name."""
    _, *parts = re.split(r"^\s*Function : (\S+)", listing, flags=re.MULTILINE)
    return {name: parse(text.splitlines()) for name, text in zip(*[iter(parts)] * 2, strict=True)}


def parse(lines: Iterable[str]) -> list[Instruction]:
    """Parse the instructions of one function. Targets are absolute addresses or labels."""
    read: list[re.Match[str]] = []
    labels: dict[str, int] = {}
    pending: list[str] = []  # labels of the next instruction
    for line in lines:
        if match := _LINE.match(line):
            read.append(match)
            labels.update(dict.fromkeys(pending, int(match[1], 16)))
            pending = []
        elif match := _LABEL.match(line):
            pending.append(match[1])
    return [_instruction(match, labels) for match in read]


def _instruction(line: re.Match[str], labels: dict[str, int]) -> Instruction:
    address, guard, opcode, operands, encoding = line.groups("")
    targets: list[int] = []
    base = opcode.partition(".")[0]
    is_mask = base == "WARPSYNC" and "COLLECTIVE" not in opcode  # its operand is a lane mask
    if base in (*JUMPS, "CALL", "BSSY", "WARPSYNC") and not is_mask:
        # BRX R4 -0x170 (*"BRANCH_TARGETS .L_x_1,.L_x_2"*): only the list counts
        where = operands.partition("BRANCH_TARGETS")[2] if base in ("BRX", "JMX") else operands
        for label, bare, number in _TARGET.findall(where):
            target = int(number, 16) if number else labels.get(label or bare)
            targets += [] if target is None else [target]
    bits = int(encoding, 16) if encoding else None
    return Instruction(int(address, 16), guard, opcode, operands, tuple(targets), bits)


def width(instruction: Instruction) -> int:
    """Return the bits per thread of a load or store."""
    for modifier in instruction.modifiers:
        if re.fullmatch(r"[US]?(8|16|32|64|128|256)", modifier):
            return int(modifier.lstrip("US"))
    return 32


def widest(instructions: Iterable[Instruction], base: str) -> int:
    """Return the bits of the widest of these loads (LDG) or stores (STG), or 0 if there is none."""
    return max((width(i) for i in instructions if i.base == base), default=0)


def graph(code: list[Instruction]) -> Graph:
    """Blocks and edges.

    BSYNC leads to the target of the BSSY that set its barrier, which is tracked along the edges. A
    CALL leads to the next instruction, unless the code at its target never returns, because the
    compiler also writes long jumps as calls. RET and EXIT have no successor. An indirect branch
    without listed targets leads to every block that has no other predecessor.
    """
    jumps: frozenset[int] = frozenset()
    while True:
        flow = _graph(code, jumps)
        calls = {t for block in flow.blocks.values() for t in _call(block[-1])}
        found = frozenset(t for t in calls if not returns(flow, t))
        if found <= jumps:
            return flow
        jumps |= found


def _graph(code: list[Instruction], jumps: frozenset[int]) -> Graph:
    """Return the graph under the assumption that the calls in `jumps` never return."""
    following = {a.address: b.address for a, b in itertools.pairwise(code)}
    named = {code[0].address, *(target for i in code for target in i.targets)}
    starts = named | {following[i.address] for i in code[:-1] if i.base in ENDS}
    blocks: dict[int, list[Instruction]] = {}
    for i in code:
        if i.address in starts:
            block = blocks[i.address] = []
        block.append(i)
    falls = {following.get(i.address) for i in code if i.conditional or i.base not in NO_FALL}
    orphans = starts - named - falls

    barriers: dict[int, dict[str, frozenset[int]]] = {}  # at the start of a block
    successors: dict[int, list[int]] = {}
    work: list[tuple[int, dict[str, frozenset[int]]]] = [(code[0].address, {})]
    while work:
        start, state = work.pop()
        known = barriers.get(start, {})
        merged = known | {name: known.get(name, frozenset()) | state[name] for name in state}
        if start in barriers and merged == known:
            continue
        barriers[start] = merged
        set_here = (i for i in blocks[start] if i.base == "BSSY")
        merged = merged | {i.operands.split(",")[0]: frozenset(i.targets) for i in set_here}
        last = blocks[start][-1]
        after = [following[last.address]] if last.address in following else []
        following_blocks = _successors(last, merged, after, jumps)
        if last.base in ("BRX", "JMX") and not last.targets:
            following_blocks = sorted({*following_blocks, *orphans})
        successors[start] = following_blocks
        work += [(target, {}) for target in _call(last) if target in blocks]
        work += [(to, merged) for to in following_blocks]
    reachable = {start: blocks[start] for start in successors}
    return Graph(code[0].address, reachable, nx.DiGraph(successors))


def _call(instruction: Instruction) -> tuple[int, ...]:
    return instruction.targets if instruction.base == "CALL" else ()


def returns(flow: Graph, entry: int) -> bool:
    """Return whether a RET is reachable. A function outside the listing is assumed to return."""
    if entry not in flow.blocks:
        return True
    return any(flow.blocks[b][-1].base == "RET" for b in order(flow, entry))


def _successors(
    last: Instruction, barriers: dict[str, frozenset[int]], after: list[int], jumps: frozenset[int]
) -> list[int]:
    falls = after if last.conditional else []
    if last.base in ("RET", "EXIT"):
        return falls
    is_long_jump = last.base == "CALL" and last.targets and jumps.issuperset(last.targets)
    if last.base in JUMPS or is_long_jump:
        return sorted({*last.targets, *falls})
    if last.base == "BSYNC":
        return sorted({*(barriers.get(last.operands) or after), *falls})
    return sorted({*last.targets, *after}) if last.base == "WARPSYNC" else after


def order(flow: Graph, start: int, inside: Collection[int] | None = None) -> dict[int, int]:
    """Return the index of each reachable block in reverse postorder.

    An edge to a smaller index is a back edge, and the other edges form a DAG.
    """
    edges = flow.successors
    if inside is not None:
        edges = nx.DiGraph({b: [to for to in edges[b] if to in inside] for b in edges})
    blocks = list(nx.dfs_postorder_nodes(edges, start))
    return {block: place for place, block in enumerate(reversed(blocks))}


def loops(flow: Graph) -> dict[int, set[int]]:
    """Return the blocks of natural loops, by the address of the header, which dominates them."""
    edges = [(b, to) for b in order(flow, flow.entry) for to in flow.successors[b]]
    dominators = nx.immediate_dominators(flow.successors, flow.entry)
    found: dict[int, set[int]] = {}
    for b, header in edges:
        dominator = b
        while dominator not in (header, flow.entry):
            dominator = dominators[dominator]
        if dominator == header:
            body, work = found.setdefault(header, {header}), {b}
            while work := work - body:
                body |= work
                work = {before for before, to in edges if to in work}
    return found


def best_path(
    flow: Graph,
    start: int,
    ends: Collection[int],
    places: dict[int, int],
    worth: Callable[[int, int | None], tuple[int, ...]],
    after: int | None = None,
) -> list[int]:
    """Return the blocks of the path with the highest worth along edges to larger `places`, or [].

    `worth(block, successor)` is the worth of a block that is followed by `successor` on a path. The
    path ends in one of `ends`, and is followed by `after`.
    """
    best: dict[int, tuple[tuple[int, ...] | None, int | None]] = {start: (None, None)}

    def with_block(b: int, to: int | None) -> tuple[int, ...]:
        before, own = best[b][0], worth(b, to)
        return own if before is None else tuple(map(sum, zip(before, own, strict=True)))

    for b in sorted(places, key=places.__getitem__):
        for to in flow.successors[b] if b in best else ():
            if places.get(to, -1) > places[b]:
                total = with_block(b, to)
                if to not in best or total > (best[to][0] or ()):
                    best[to] = (total, b)
    found = [b for b in ends if b in best]
    path: list[int] = []
    at = max(found, key=lambda b: (with_block(b, after), -b)) if found else None
    while at is not None:
        path.insert(0, at)
        at = best[at][1]
    return path
