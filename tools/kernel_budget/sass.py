"""SASS listings in the format of `cuobjdump --dump-sass`: instructions, control flow, loops."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable

# Instructions that end a block.
ENDS = ("BRA", "BRX", "JMP", "JMX", "CALL", "RET", "EXIT", "BSYNC", "WARPSYNC")

_LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;(?:\s*/\* 0x([0-9a-f]{16}) \*/)?")
_LABEL = re.compile(r"^\s*(\.[\w.$]+):")
_TARGET = re.compile(r"`\((\.[\w.$]+)\)|(?<![\w.])(\.L[\w.$]*)|(?<![\w.\[])(0x[0-9a-f]+)")
_FUNCTION = re.compile(r"^\s*Function : (\S+)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    address: int
    guard: str  # "@P0", "@!UP1"; "" if it always runs
    opcode: str  # with modifiers: "LDG.E.128"
    operands: str
    targets: tuple[int, ...] = ()  # the addresses that a branch, call, BSSY or WARPSYNC names
    encoding: int | None = None  # its first 64 bits; the upper half is an immediate

    @property
    def base(self) -> str:
        return self.opcode.split(".")[0]

    @property
    def conditional(self) -> bool:
        """Whether a branch may fall through."""
        if self.guard not in ("", "@PT", "@UPT"):
            return True
        if self.base != "BRA":
            return False
        # BRA P1, target; BRA.U !UP0, target; BRA.DIV UR5, target (without operand on sm_75)
        return "," in self.operands or bool({"DIV", "CONV"} & set(self.opcode.split(".")))


@dataclasses.dataclass
class Block:
    """Instructions without a branch between them, and the successors of the last one."""

    instructions: list[Instruction]
    successors: list[int] = dataclasses.field(default_factory=list)  # addresses of blocks


# --- reading -------------------------------------------------------------------------------------


def functions(listing: str) -> dict[str, list[Instruction]]:
    """Every function of a listing, by its mangled name."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in listing.splitlines():
        if "Function" in line and (match := _FUNCTION.match(line)):
            lines = found.setdefault(match[1], [])
        else:
            lines.append(line)
    return {name: parse(lines) for name, lines in found.items()}


def parse(lines: Iterable[str]) -> list[Instruction]:
    """The instructions of one function. Targets are absolute addresses or labels."""
    read: list[tuple[int, str, str | None]] = []
    labels: dict[str, int] = {}
    pending: list[str] = []  # labels of the next instruction
    for line in lines:
        if match := _LINE.match(line):
            address = int(match[1], 16)
            read.append((address, match[2], match[3]))
            labels.update(dict.fromkeys(pending, address))
            pending = []
        elif match := _LABEL.match(line):
            pending.append(match[1])
    return [_instruction(address, text, bits, labels) for address, text, bits in read]


def _instruction(address: int, text: str, bits: str | None, labels: dict[str, int]) -> Instruction:
    guard = ""
    if text.startswith("@"):
        guard, text = text.split(None, 1)
    opcode, _, operands = text.partition(" ")
    operands = operands.strip()
    targets: list[int] = []
    base = opcode.split(".")[0]
    if base == "WARPSYNC" and "COLLECTIVE" not in opcode:
        base = ""  # its operand is a lane mask
    if base in ("BRA", "BRX", "JMP", "JMX", "CALL", "BSSY", "WARPSYNC"):
        # BRX R4 -0x170 (*"BRANCH_TARGETS .L_x_1,.L_x_2"*): only the list counts
        where = operands.partition("BRANCH_TARGETS")[2] if base in ("BRX", "JMX") else operands
        for label, bare, number in _TARGET.findall(where):
            if number:
                targets.append(int(number, 16))
            elif (label or bare) in labels:
                targets.append(labels[label or bare])
    encoding = None if bits is None else int(bits, 16)
    return Instruction(address, guard, opcode, operands, tuple(targets), encoding)


def width(instruction: Instruction) -> int:
    """Bits per thread of a load or store."""
    for modifier in instruction.opcode.split(".")[1:]:
        if re.fullmatch(r"[US]?(8|16|32|64|128|256)", modifier):
            return int(modifier.lstrip("US"))
    return 32


def widest(instructions: Iterable[Instruction], base: str) -> int:
    """Bits of the widest of these loads (LDG) or stores (STG); 0 if there is none."""
    return max((width(i) for i in instructions if i.base == base), default=0)


# --- flow ----------------------------------------------------------------------------------------


@dataclasses.dataclass
class Graph:
    entry: int
    blocks: dict[int, Block]  # by address: all reachable from the entry, including calls


def graph(code: list[Instruction]) -> Graph:
    """Blocks and edges.

    BSYNC leads to the target of the BSSY that set its barrier, which is tracked along the edges. A
    CALL leads to the next instruction, unless no code at its target returns: the compiler also
    writes long jumps as calls. RET and EXIT have no successor. An indirect branch without listed
    targets leads to every block that has no other predecessor.
    """
    jumps: frozenset[int] = frozenset()
    while True:
        flow = _graph(code, jumps)
        calls = {t for block in flow.blocks.values() for t in _call(block.instructions[-1])}
        found = frozenset(t for t in calls if not returns(flow, t))
        if found <= jumps:
            return flow
        jumps |= found


def _graph(code: list[Instruction], jumps: frozenset[int]) -> Graph:
    """The graph under the assumption that the calls in `jumps` never return."""
    following = {a.address: b.address for a, b in itertools.pairwise(code)}
    known = {i.address for i in code}
    leaders = {code[0].address}
    for i in code:
        leaders.update(i.targets)
        if i.base in ENDS and i.address in following:
            leaders.add(following[i.address])
    blocks: dict[int, Block] = {}
    for i in code:
        if i.address in leaders:
            block = blocks[i.address] = Block([])
        block.instructions.append(i)
    orphans = leaders.difference(*(i.targets for i in code), [code[0].address])
    orphans -= {following[i.address] for i in code if i.address in following and _falls(i)}

    barriers: dict[int, dict[str, frozenset[int]]] = {}  # at the start of a block
    reached: dict[int, Block] = {}
    work: list[tuple[int, dict[str, frozenset[int]]]] = [(code[0].address, {})]
    while work:
        start, state = work.pop()
        before = barriers.get(start)
        merged = dict(before or {})
        for name, targets in state.items():
            merged[name] = merged.get(name, frozenset()) | targets
        if before is not None and merged == before:
            continue
        barriers[start] = dict(merged)
        block = reached[start] = blocks[start]
        for i in block.instructions:
            if i.base == "BSSY":
                merged[i.operands.split(",")[0]] = frozenset(i.targets)
        last = block.instructions[-1]
        work += [(target, {}) for target in _call(last) if target in known]
        block.successors = _successors(last, merged, following.get(last.address), jumps)
        if last.base in ("BRX", "JMX") and not last.targets:
            block.successors = sorted({*block.successors, *orphans})
        work += [(next_, merged) for next_ in block.successors]
    return Graph(code[0].address, reached)


def _falls(i: Instruction) -> bool:
    """Whether the next instruction in the listing may be the next to run."""
    return i.conditional or i.base not in ("BRA", "BRX", "JMP", "JMX", "RET", "EXIT")


def _call(instruction: Instruction) -> tuple[int, ...]:
    return instruction.targets if instruction.base == "CALL" else ()


def returns(flow: Graph, entry: int) -> bool:
    """Whether a RET is reachable. A function outside the listing is assumed to return."""
    if entry not in flow.blocks:
        return True
    reach = postorder(flow, entry, lambda _: True)
    return any(flow.blocks[b].instructions[-1].base == "RET" for b in reach)


def _successors(
    last: Instruction,
    barriers: dict[str, frozenset[int]],
    following: int | None,
    jumps: frozenset[int],
) -> list[int]:
    after = [] if following is None else [following]
    falls = after if last.conditional else []
    if last.base in ("RET", "EXIT"):
        return falls
    if last.base in ("BRA", "BRX", "JMP", "JMX"):
        return sorted({*last.targets, *falls})
    if last.base == "CALL" and jumps.issuperset(last.targets) and last.targets:
        return sorted({*last.targets, *falls})
    if last.base == "BSYNC":
        return sorted({*(barriers.get(last.operands) or after), *falls})
    if last.base == "WARPSYNC":
        return sorted({*last.targets, *after})
    return after


def loops(flow: Graph) -> dict[int, set[int]]:
    """Natural loops: the blocks of each loop, by the address of its header."""
    order = postorder(flow, flow.entry, lambda _: True)[::-1]
    known = set(order)
    predecessors: dict[int, list[int]] = {b: [] for b in order}
    for b in order:
        for s in flow.blocks[b].successors:
            predecessors[s].append(b)
    dominators = dict.fromkeys(order, known) | {flow.entry: {flow.entry}}
    changed = True
    while changed:
        changed = False
        for b in order[1:]:
            new = {b} | set.intersection(*(dominators[p] for p in predecessors[b]))
            changed |= new != dominators[b]
            dominators[b] = new
    found: dict[int, set[int]] = {}
    for b in order:
        for header in flow.blocks[b].successors:
            if header in dominators[b]:
                body = found.setdefault(header, {header})
                work = [b]
                while work:
                    block = work.pop()
                    if block not in body:
                        body.add(block)
                        work += predecessors[block]
    return found


def postorder(flow: Graph, start: int, inside: Callable[[int], bool]) -> list[int]:
    order: list[int] = []
    seen = {start}
    stack = [(start, iter(flow.blocks[start].successors))]
    while stack:
        block, successors = stack[-1]
        for s in successors:
            if s not in seen and inside(s):
                seen.add(s)
                stack.append((s, iter(flow.blocks[s].successors)))
                break
        else:
            order.append(block)
            stack.pop()
    return order
