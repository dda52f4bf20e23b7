"""Reads the cost of each CUDA kernel from the compiled extension and compares it with a budget.

    python benchmarks/budget.py [EXTENSION]             the cost for each architecture
    python benchmarks/budget.py [EXTENSION] --check     violations of budget.json; status 1 if any
    python benchmarks/budget.py [EXTENSION] --update    writes budget.json and docs/budget.md
    python benchmarks/budget.py --table                 writes docs/budget.md from budget.json alone
    python benchmarks/budget.py --hot 'forward<float, (Access)0>'       lists a hot path
    python benchmarks/budget.py --executed              instructions that hot kernels execute; with
                                                        --check or --update, as for the budget

EXTENSION is a `_C*.so` or a .cubin. The default is the `_C*.so` of the installed package. This
needs no GPU and no torch, but it needs cuobjdump: from PATH, the CUDA toolkit, or the triton that
torch's CUDA wheels depend on.
tools/kernels.py defines the counts, and tools/hot_path.py defines the hot path.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "benchmarks")]

from budget_document import (  # noqa: E402
    EXECUTED,
    EXECUTED_IN_FLIGHT,
    Budget,
    archs_of,
    document,
    section,
)
from kernels import Row, build_info, die, installed_extension, measure, show_hot_path  # noqa: E402
from toolchain import numbers  # noqa: E402

BUDGET = ROOT / "benchmarks" / "budget.json"
TABLE = ROOT / "docs" / "budget.md"

MORE_REGISTERS = 4
MORE_PER_ELEMENT = (1.05, 1.0)  # times the recorded number, plus
MORE_BYTES = 1.1
# Limit for the bytes of an architecture's cubins. On sm_120 the latent takes 3.9 MB and the
# likelihoods 5.6 MB: ten kinds of eight kernels each, two of which compute the loss and its
# gradients in one pass, and one kernel with all kinds for double.
LARGEST = 10_000_000

# The least KB of loads that all threads of an SM have in flight on the hot path of contiguous
# tensors. An SM's share of an H200's bandwidth is 32.6 bytes/ns, and a load takes about 660 ns
# under load. The product is 21 KB, two thirds of which are loads. That suffices only if loads never
# pause. A thread that loads and computes in turn pauses for about half of the time, and CUB's
# tuning for Hopper targets 48 KB. Backward reaches this with three vectors of 16 bytes in each of
# 1024 threads. Forward loads two and has 32 KB, unless one load waits for the other.
FLOORS = {
    "sm_90": {
        f"{kernel}<{dtype}, (Access)0>": kilobytes
        for kernel, kilobytes in (("forward", 32), ("backward", 48))
        for dtype in ("float", "Half", "BFloat16")
    }
}


# --- the record ----------------------------------------------------------------------------------


def load() -> Budget:
    budget: Budget = json.loads(BUDGET.read_text())
    return budget


def dump(budget: Budget) -> str:
    """JSON in a fixed order with one line for each kernel and architecture, so diffs are small."""
    order = archs_of(budget)
    kernels = []
    for name in sorted(budget["kernels"]):
        rows = budget["kernels"][name]
        lines = [f'      "{a}": {json.dumps(rows[a])}' for a in order if a in rows]
        kernels.append(f"    {json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n    }")
    head = {
        "nvcc": budget["nvcc"],
        "sizes": {arch: budget["sizes"][arch] for arch in order},
        "spilling": dict(sorted(budget["spilling"].items())),
        "oversized": {a: budget["oversized"][a] for a in order if a in budget["oversized"]},
    }
    text = json.dumps(head, indent=2).removesuffix("\n}")
    return text + ',\n  "kernels": {\n' + ",\n".join(kernels) + "\n  }\n}\n"


def updated(old: Budget, new: Budget) -> Budget:
    """`old` updated by `new`: architectures missing from `new` and recorded reasons remain."""
    kernels: dict[str, dict[str, Row]] = {}
    for name in sorted({*old["kernels"], *new["kernels"]}):
        kept = {a: r for a, r in old["kernels"].get(name, {}).items() if a not in new["sizes"]}
        if rows := kept | new["kernels"].get(name, {}):
            kernels[name] = rows
        for arch, row in new["kernels"].get(name, {}).items():
            before = old["kernels"].get(name, {}).get(arch, {})
            for what in (EXECUTED, EXECUTED_IN_FLIGHT):  # which are counted separately
                if what in before:
                    row.setdefault(what, before[what])
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


# --- the check -----------------------------------------------------------------------------------


def violations(budget: Budget, found: Budget) -> list[str]:
    """One line for each violation of `budget` in `found`."""
    same = same_nvcc(budget, found)
    lines = [
        f"budget.json: {what}: {name}: without a reason"
        for what in ("spilling", "oversized")
        for name, why in budget[what].items()
        if not why
    ]
    for arch in archs_of(found):
        size, recorded = found["sizes"][arch], budget["sizes"].get(arch)
        if recorded is not None and size > recorded * MORE_BYTES:
            lines.append(excess(arch, "size", recorded, int(recorded * MORE_BYTES), size))
        if size >= LARGEST and arch not in budget["oversized"]:
            lines.append(excess(arch, "size", recorded, LARGEST - 1, size))
        for name in sorted({*budget["kernels"], *found["kernels"]}):
            old = budget["kernels"].get(name, {}).get(arch)
            new = found["kernels"].get(name, {}).get(arch)
            where = f"{arch} {name}"
            if new is not None:
                lines += below_floor(arch, name, new)
            if new is None:
                lines += [f"{where}: is recorded, but gone"] if old else []
            elif old is None:
                lines += [f"{where}: is not recorded"] if recorded is not None else []
                if new["all_spills"] and name not in budget["spilling"]:
                    lines.append(excess(where, "all_spills", None, 0, new["all_spills"]))
            else:
                lines += compare(where, old, new, same, name in budget["spilling"])
    return lines


def compare(where: str, old: Row, new: Row, same: bool, may_spill: bool) -> Iterator[str]:
    """Violations of one kernel. `same`: the nvcc version is that of the record."""
    for what in ("load", "store"):
        if new[what] < old[what]:
            yield excess(where, what, old[what], old[what], new[what], "at least")
    limits: dict[str, float] = {}
    if same or not may_spill:
        limits["all_spills"] = old["all_spills"] if may_spill else 0
    if same:
        limits["registers"] = old["registers"] + MORE_REGISTERS
        limits |= {"stack": old["stack"], "shared": old["shared"]}
        if old["per_element"] is not None:
            limits["per_element"] = most_per_element(old["per_element"])
    for what, limit in limits.items():
        if new[what] is None or new[what] > limit:
            yield excess(where, what, old[what], limit, new[what])


def most_per_element(recorded: float) -> float:
    factor, more = MORE_PER_ELEMENT
    return round(recorded * factor + more, 1)


def executed_too_many(budget: Budget, loops: dict[str, float]) -> Iterator[str]:
    """One line for each hot kernel that executes more than recorded, or has no record."""
    for name, found in loops.items():
        recorded = budget["kernels"].get(name, {}).get("sm_90", {}).get(EXECUTED)
        limit = None if recorded is None else most_per_element(recorded)
        if limit is None or found > limit:
            yield excess(f"sm_90 {name}", EXECUTED, recorded, limit, found)


def fewer_in_flight(budget: Budget, flying: dict[str, float]) -> Iterator[str]:
    """One line for each likelihood with less in flight than recorded, or without a record."""
    for name, found in flying.items():
        recorded = budget["kernels"].get(name, {}).get("sm_90", {}).get(EXECUTED_IN_FLIGHT)
        if recorded is None or found < recorded:
            yield excess(f"sm_90 {name}", EXECUTED_IN_FLIGHT, recorded, recorded, found, "at least")


def below_floor(arch: str, name: str, new: Row) -> list[str]:
    """The shortfall of a kernel's bytes in flight against FLOORS, independent of the record."""
    floor = FLOORS.get(arch, {}).get(name)
    found = new.get("in_flight_kb")
    if floor is None or (found is not None and found >= floor):
        return []
    return [f"{arch} {name}: in_flight_kb: at least {floor}, found {found}"]


def same_nvcc(budget: Budget, found: Budget) -> bool:
    built, recorded = (numbers(b["nvcc"] or "") for b in (found, budget))
    return built == recorded


def excess(
    where: str, what: str, recorded: Any, limit: Any, found: Any, bound: str = "at most"
) -> str:
    was = "nothing" if recorded is None else recorded
    return f"{where}: {what}: recorded {was}, allowed {bound} {limit}, found {found}"


def check(extension: Path) -> int:
    if "-O0" in build_info(extension).get("flags", {}).get("nvcc", []):
        die(f"{extension.name} is a DEBUG build, which has no budget")
    budget, found = load(), measure(extension)
    if not same_nvcc(budget, found):
        print(
            f"budget: warning: recorded with nvcc {budget['nvcc']}, built with {found['nvcc']}: "
            "only spills, widths and sizes are checked"
        )
    for arch in archs_of(found):
        if arch not in budget["sizes"]:
            print(f"budget: warning: {arch} is not recorded: only spills and size are checked")
    lines = violations(budget, found)
    for line in lines:
        print(f"budget: {line}")
    archs = " ".join(archs_of(found))
    outcome = f"{len(lines)} violations" if lines else "within budget"
    print(f"budget: {len(found['kernels'])} kernels, {archs}: {outcome}")
    return 1 if lines else 0


# --- the table -----------------------------------------------------------------------------------


def table(budget: Budget) -> str:
    """The text of docs/budget.md."""
    return document(budget, LARGEST)


# --- commands ------------------------------------------------------------------------------------


def executed(asked: argparse.Namespace) -> int:
    """Count the instructions per element of the hot kernels with tools/machine_code/count.py."""
    sys.path.insert(0, str(ROOT))
    from machine_code.count import count, is_hot

    from tests.native import build
    from tests.native.machine_code import MachineCode, missing

    if reason := missing():
        die(reason)
    budget, machine = load(), MachineCode(build.module())
    counts = {}
    for name in filter(is_hot, machine.device.names):
        found = counts[name] = count(machine, name)
        flying = "" if found.in_flight is None else f", {found.in_flight:g} bytes in flight"
        print(
            f"{name}: {found.loop:.1f} in the loop, {found.whole:.1f} of the whole{flying}",
            flush=True,
        )
    flights = {
        name: round(found.in_flight, 1)
        for name, found in counts.items()
        if found.in_flight is not None
    }
    loops = {name: round(found.loop, 1) for name, found in counts.items()}
    if asked.update:
        for name in loops.keys() & budget["kernels"].keys():
            budget["kernels"][name]["sm_90"][EXECUTED] = loops[name]
        for name in flights.keys() & budget["kernels"].keys():
            budget["kernels"][name]["sm_90"][EXECUTED_IN_FLIGHT] = flights[name]
        BUDGET.write_text(dump(budget))
        TABLE.write_text(table(budget))
    lines = []
    if asked.check:
        lines = [*executed_too_many(budget, loops), *fewer_in_flight(budget, flights)]
    for line in lines:
        print(f"budget: {line}")
    return 1 if lines else 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("extension", nargs="?", type=Path)
    parser.add_argument("--check", action="store_true", help="compare with budget.json")
    parser.add_argument("--update", action="store_true", help="write budget.json, docs/budget.md")
    parser.add_argument("--table", action="store_true", help="write docs/budget.md")
    parser.add_argument("--hot", metavar="KERNEL", help="list the hot path of a kernel")
    parser.add_argument("--arch", help="with --hot: of one architecture")
    parser.add_argument("--executed", action="store_true", help="count executed instructions")
    asked = parser.parse_args(arguments)
    if asked.executed:
        return executed(asked)
    if asked.table and not asked.update:
        TABLE.write_text(table(load()))
        return 0
    extension = asked.extension or installed_extension()
    if asked.hot:
        show_hot_path(extension, asked.hot, asked.arch)
    elif asked.update:
        empty: Budget = {"sizes": {}, "spilling": {}, "oversized": {}, "kernels": {}}
        budget = updated(load() if BUDGET.exists() else empty, measure(extension))
        BUDGET.write_text(dump(budget))
        TABLE.write_text(table(load()))
        for name in [*budget["spilling"], *budget["oversized"]]:
            if not {**budget["spilling"], **budget["oversized"]}[name]:
                print(f"budget: {name} needs a reason in {BUDGET.name}, or a repair")
    elif not asked.check:
        found = measure(extension)
        for arch in archs_of(found):
            print(f"{arch}: {found['sizes'][arch]:,} bytes\n{section(found, arch)}")
    return check(extension) if asked.check else 0


if __name__ == "__main__":
    sys.exit(main())
