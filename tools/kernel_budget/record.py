"""The record of the budget, budget.json, and the comparison of a build with it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from build_support.toolchain import numbers

from .kernels import Row
from .occupancy import number

Budget = dict[str, Any]
BUDGET = Path(__file__).with_name("budget.json")

# These values are counted for sm_90. tests/machine_code/count.py describes the counted calls.
EXECUTED = "executed_per_element"
EXECUTED_IN_FLIGHT = "executed_in_flight"  # bytes of each thread, for likelihoods
AT_LEAST = {"load", "store", EXECUTED_IN_FLIGHT}  # the recorded values of these are minima

MORE_REGISTERS = 4
MORE_PER_ELEMENT = (1.05, 1.0)  # a factor for the recorded number, and an added constant
MORE_BYTES = 1.1
# The limit for the total bytes of an architecture's cubins. On sm_120 the latent kernels take 3.9
# MB and the likelihood kernels 5.6 MB: ten kinds with eight kernels each, two of which compute the
# loss and its gradients in one pass, and one double-precision kernel for all kinds.
LARGEST = 10_000_000

# The minimum kilobytes of loads that an SM's threads must have in flight on the hot path of
# contiguous tensors. An SM's share of an H200's bandwidth is 32.6 bytes/ns, and in a busy memory
# system a load takes about 660 ns. The product is 21 KB, two thirds of which are loads. That
# suffices only if loads never pause. A thread that alternates between loading and computing pauses
# for about half of the time, and CUB's tuning for Hopper targets 48 KB. Backward reaches 48 KB with
# three 16-byte vectors in each of 1024 threads. Forward loads two vectors and has 32 KB in flight,
# unless one load waits for the other.
FLOORS = {
    "sm_90": {
        f"{kernel}<{dtype}, (Access)0>": kilobytes
        for kernel, kilobytes in (("forward", 32), ("backward", 48))
        for dtype in ("float", "Half", "BFloat16")
    }
}


def load() -> Budget:
    budget: Budget = json.loads(BUDGET.read_text())
    return budget


def save(budget: Budget) -> None:
    BUDGET.write_text(dump(budget))


def dump(budget: Budget) -> str:
    """Return JSON in a fixed order, with one line for each kernel and architecture."""
    order = archs_of(budget)
    ordered = {
        "nvcc": budget["nvcc"],
        "sizes": {arch: budget["sizes"][arch] for arch in order},
        "spilling": dict(sorted(budget["spilling"].items())),
        "oversized": {a: budget["oversized"][a] for a in order if a in budget["oversized"]},
        "kernels": {
            name: {arch: rows[arch] for arch in order if arch in rows}
            for name, rows in sorted(budget["kernels"].items())
        },
    }
    text = json.dumps(ordered, indent=2)
    return re.sub(r"\{([^{}]*)\}", lambda leaf: f"{{{' '.join(leaf[1].split())}}}", text) + "\n"


def archs_of(budget: Budget) -> list[str]:
    return sorted(budget["sizes"], key=lambda arch: (number(arch), arch))


def updated(old: Budget, new: Budget) -> Budget:
    """Return `old` updated by `new`. Architectures not in `new` are kept, and so are reasons."""
    kernels: dict[str, dict[str, Row]] = {}
    for name in sorted({*old["kernels"], *new["kernels"]}):
        before, after = (budget["kernels"].get(name, {}) for budget in (old, new))
        kept = {arch: row for arch, row in before.items() if arch not in new["sizes"]}
        if rows := kept | after:
            kernels[name] = rows
        for arch, row in after.items():
            for what in (EXECUTED, EXECUTED_IN_FLIGHT):  # they are counted separately
                if what in before.get(arch, {}):
                    row.setdefault(what, before[arch][what])
    sizes = old["sizes"] | new["sizes"]
    spilling = [n for n, rows in kernels.items() if any(r["all_spills"] for r in rows.values())]
    oversized = [a for a, size in sizes.items() if size >= LARGEST]
    return {
        "nvcc": new["nvcc"],
        "sizes": sizes,
        "spilling": {name: old["spilling"].get(name, "") for name in spilling},
        "oversized": {arch: old["oversized"].get(arch, "") for arch in oversized},
        "kernels": kernels,
    }


def without_reason(budget: Budget) -> list[str]:
    kinds = ("spilling", "oversized")
    return [f"{kind}: {name}" for kind in kinds for name, why in budget[kind].items() if not why]


def violations(budget: Budget, found: Budget) -> list[str]:
    """Return one line for each violation of `budget` in `found`."""
    same = same_nvcc(budget, found)
    lines = [f"budget.json: {exception}: without a reason" for exception in without_reason(budget)]
    for arch in archs_of(found):
        size, recorded = found["sizes"][arch], budget["sizes"].get(arch)
        if recorded is not None:
            lines += excess(arch, "size", recorded, int(recorded * MORE_BYTES), size)
        if arch not in budget["oversized"]:
            lines += excess(arch, "size", recorded, LARGEST - 1, size)
        for name in sorted({*budget["kernels"], *found["kernels"]}):
            old, new = (b["kernels"].get(name, {}).get(arch) for b in (budget, found))
            where, may_spill = f"{arch} {name}", name in budget["spilling"]
            if new is None:
                lines += [f"{where}: is recorded, but gone"] if old else []
                continue
            lines += below_floor(arch, name, new)
            if old is None and recorded is not None:
                lines.append(f"{where}: is not recorded")
            for what, limit in limits(old, same, may_spill).items():
                lines += excess(where, what, old and old[what], limit, new[what])
    return lines


def limits(old: Row | None, same: bool, may_spill: bool) -> dict[str, float]:
    """Return the limits of a kernel. `same` is whether nvcc has the recorded version."""
    found: dict[str, float] = {} if may_spill else {"all_spills": 0}
    if old is not None:
        found |= {what: old[what] for what in ("load", "store")}
    if old is not None and same:
        found |= {what: old[what] for what in ("stack", "shared")}
        found["registers"] = old["registers"] + MORE_REGISTERS
        if may_spill:
            found["all_spills"] = old["all_spills"]
        if old["per_element"] is not None:
            found["per_element"] = most_per_element(old["per_element"])
    return found


def most_per_element(recorded: float) -> float:
    factor, more = MORE_PER_ELEMENT
    return round(recorded * factor + more, 1)


def executed_violations(budget: Budget, counted: Mapping[str, Row]) -> list[str]:
    """Return a line for each number of a hot kernel that is worse than recorded or not recorded."""
    lines = []
    for name, row in counted.items():
        recorded = budget["kernels"].get(name, {}).get("sm_90", {})
        for what, found in row.items():
            limit = old = recorded.get(what)
            if old is not None and what == EXECUTED:
                limit = most_per_element(old)
            lines += excess(f"sm_90 {name}", what, old, limit, found)
    return lines


def below_floor(arch: str, name: str, new: Row) -> list[str]:
    """Return a line if a kernel has fewer bytes in flight than FLOORS, whatever is recorded."""
    floor = FLOORS.get(arch, {}).get(name, 0)
    found = new.get("in_flight_kb")
    is_enough = not floor or (found is not None and found >= floor)
    return [] if is_enough else [f"{arch} {name}: in_flight_kb: at least {floor}, found {found}"]


def same_nvcc(budget: Budget, found: Budget) -> bool:
    built, recorded = (numbers(b["nvcc"] or "") for b in (found, budget))
    return built == recorded


def excess(where: str, what: str, recorded: Any, limit: Any, found: Any) -> list[str]:
    """Return a line if a number is beyond its limit, or if the number or its limit is missing."""
    is_least = what in AT_LEAST
    if None not in (limit, found) and (found >= limit if is_least else found <= limit):
        return []
    was = "nothing" if recorded is None else recorded
    bound = "at least" if is_least else "at most"
    return [f"{where}: {what}: recorded {was}, allowed {bound} {limit}, found {found}"]
