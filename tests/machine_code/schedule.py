"""Selects the threads that execute next.

The warps of the blocks that are resident together are assigned to groups at random. In each step, a
group executes all of its lanes that are at the instruction with the lowest address. Groups take
turns at random, so that a missing barrier or a broken ticket has an effect.

Diverged lanes converge as in hardware, where BSYNC and WARPSYNC make them wait for each other.
Here, they also converge when they reach the same instruction.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .errors import DeadlockError, MachineCodeError
from .program import Program
from .warps import LANES, Shared, Warps, Where, mask_of

Key = tuple[str, int]


class Fragment:
    """Lanes that are at the same instruction."""

    def __init__(self, lanes: np.ndarray) -> None:
        self.lanes = lanes
        self.where: Where = True if lanes.all() else lanes
        present = lanes.any(axis=1, keepdims=True)
        self.warps = int(present.sum())
        self.present: Where = True if self.warps == len(present) else present


class Group:
    def __init__(self, program: Program, warps: Warps, counts: np.ndarray) -> None:
        self.program, self.warps, self.counts = program, warps, counts
        everyone = np.ones((warps.count, LANES), bool)
        self.live = everyone.copy()
        self.fragments = {0: Fragment(everyone)}
        self.members: dict[str, np.ndarray] = {}  # for each BSSY's barrier: a mask per lane
        self.meeting: dict[Key, tuple[np.ndarray, Callable[[], np.ndarray]]] = {}
        self.at_barrier: dict[int, np.ndarray] = {}  # waiting lanes, by their next instruction
        self.changed = False  # whether a block's barrier may be complete
        self._current: Fragment | None = None
        self.traced: int | None = None  # the warp whose instructions are recorded
        self.trace: list[int] = []

    # --- effects of control instructions ---------------------------------------------------------

    def go(self, to: int, lanes: np.ndarray) -> None:
        """Send lanes to an instruction, where other lanes may already be."""
        current = self._current
        if current is not None and lanes is current.lanes:
            fragment = current
        elif lanes.any():
            fragment = Fragment(lanes)
        else:
            return
        there = self.fragments.get(to)
        self.fragments[to] = Fragment(there.lanes | lanes) if there else fragment

    def remember(self, barrier: str, lanes: np.ndarray) -> None:
        """Record, for each of `lanes`, which lanes it will wait for at a BSYNC of `barrier`.

        It will wait for all of `lanes` in its warp. The other lanes of the warp may be in the other
        branch of an `if`, which uses the same barrier.
        """
        members = self.members.setdefault(barrier, np.zeros(lanes.shape, np.uint32))
        np.copyto(members, mask_of(lanes), where=lanes)

    def meet(self, key: Key, lanes: np.ndarray, wanted: Callable[[], np.ndarray]) -> None:
        """Hold each lane until all live lanes of its mask are at the same place, key[1].

        `wanted` returns the masks, one for each lane or for each warp.
        """
        waiting = lanes
        if key in self.meeting:
            waiting = lanes | self.meeting.pop(key)[0]
        incomplete = waiting & (wanted() & mask_of(self.live & ~waiting) != 0)
        if not incomplete.any():
            self.go(key[1] + 1, waiting)
            return
        self.go(key[1] + 1, waiting & ~incomplete)
        self.meeting[key] = incomplete, wanted

    def wait_for_block(self, then: int, lanes: np.ndarray) -> None:
        others = self.at_barrier.get(then)
        self.at_barrier[then] = lanes if others is None else others | lanes
        self.changed = True

    def leave(self, lanes: np.ndarray) -> None:
        self.live &= ~lanes
        self.changed = True
        for key in list(self.meeting):  # others may have waited for these lanes
            self.meet(key, *self.meeting.pop(key))

    def release(self, slots: np.ndarray) -> None:
        """Release the lanes of blocks whose barrier is complete."""
        chosen = np.isin(self.warps.slot, slots)
        for then in list(self.at_barrier):
            lanes = self.at_barrier.pop(then)
            self.go(then, lanes & chosen)
            if (rest := lanes & ~chosen).any():
                self.at_barrier[then] = rest

    # --- execution -------------------------------------------------------------------------------

    def step(self) -> None:
        """Execute the straight-line code of the lanes at the lowest address."""
        program, warps = self.program, self.warps
        start = min(self.fragments)
        if start == len(program.instructions):
            raise MachineCodeError(f"{program.name}: execution runs over the end")
        fragment = self.fragments.pop(start)
        line_end = program.line_ends[start]
        end = min(line_end, min(self.fragments, default=line_end))
        warps.present, where = fragment.present, fragment.where
        if self.traced is not None and fragment.lanes[self.traced].any():
            self._step_traced(start, end, fragment)
        else:
            for execute in program.executes[start:end]:
                execute(warps, where)
        self.counts[start:end] += fragment.warps
        self._current = fragment
        if end == line_end and end in program.controls:
            self._control(end, fragment)
        else:
            self.go(end, fragment.lanes)
        self._current = None

    def _step_traced(self, start: int, end: int, fragment: Fragment) -> None:
        """Record the instructions that are not predicated off."""
        for at in range(start, end):
            guard = self.program.guards[at]
            taken = fragment.lanes if guard is None else fragment.lanes & guard(self.warps)
            if taken[self.traced].any():
                self.trace.append(at)
            self.program.executes[at](self.warps, fragment.where)

    def _control(self, at: int, fragment: Fragment) -> None:
        self.counts[at] += fragment.warps
        control = self.program.controls[at]
        lanes = fragment.lanes
        if control.guard is not None:
            lanes = fragment.lanes & control.guard(self.warps)
            self.go(at + 1, fragment.lanes & ~lanes)
        if lanes.any():
            control.effect(self, fragment.lanes if lanes.all() else lanes)

    def where_lanes_wait(self) -> list[str]:
        code = self.program.instructions
        places = [(key[1], key[0]) for key in self.meeting]
        places += [(then - 1, "BAR") for then in self.at_barrier]
        return [f"{what} at {code[at].address:#x}" for at, what in sorted(places)]


def run_blocks(
    program: Program, make: Callable[[np.ndarray, np.ndarray, Shared], Warps], blocks: np.ndarray,
    warps_of_block: int, shared: Shared, random: np.random.Generator, groups: int,
    trace: list[int] | None = None,
) -> np.ndarray:  # fmt: skip
    """Run these blocks together. Return how often each instruction was issued to a warp.

    `trace` receives the executed instructions of the first block's first warp, in order.
    """
    counts = np.zeros(len(program.instructions), np.int64)
    dealt = _dealt(len(blocks), warps_of_block, random, groups)
    all_groups = [
        Group(program, make(part // warps_of_block, part % warps_of_block, shared), counts)
        for part in dealt
    ]
    for group, part in zip(all_groups, dealt, strict=True):
        if trace is not None and 0 in part:
            group.traced, group.trace = int(np.flatnonzero(part == 0)[0]), trace
    while True:
        ready = [group for group in all_groups if group.fragments]
        if not ready:
            if not any(group.live.any() for group in all_groups):
                return counts
            waiting = sorted({text for group in all_groups for text in group.where_lanes_wait()})
            raise DeadlockError(f"{program.name}: threads wait forever: {', '.join(waiting)}")
        group = ready[random.integers(len(ready))]
        for _ in range(1 << random.integers(0, 11)):  # from one step to all that are left
            group.step()
            if not group.fragments:
                break
        if any(group.changed for group in all_groups):
            _complete_barriers(all_groups, len(blocks))


def _dealt(
    blocks: int, warps_of_block: int, random: np.random.Generator, groups: int
) -> list[np.ndarray]:
    """Return each group's warps. Some blocks are not split, so one may end while another waits."""
    group_of = random.integers(groups, size=(blocks, warps_of_block))
    together = random.random((blocks, 1)) < 0.5
    group_of = np.where(together, group_of[:, :1], group_of).ravel()
    parts = [np.flatnonzero(group_of == k) for k in range(groups)]
    return [part for part in parts if len(part)]


def _complete_barriers(groups: list[Group], blocks: int) -> None:
    live, waiting = np.zeros(blocks, np.int64), np.zeros(blocks, np.int64)
    for group in groups:
        slots = group.warps.slot[:, 0]
        np.add.at(live, slots, group.live.sum(axis=1))
        for lanes in group.at_barrier.values():
            np.add.at(waiting, slots, lanes.sum(axis=1))
        group.changed = False
    complete = np.flatnonzero((waiting > 0) & (waiting == live))
    if len(complete):
        groups[0].warps.shared.epoch[complete] += 1
        for group in groups:
            group.release(complete)
