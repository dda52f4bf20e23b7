"""What each CUDA kernel costs, read from the compiled extension and held to a recorded budget.

    python benchmarks/budget.py [EXTENSION]             what it costs, architecture by architecture
    python benchmarks/budget.py [EXTENSION] --check     violations of budget.json; status 1 if any
    python benchmarks/budget.py [EXTENSION] --update    writes budget.json and docs/budget.md
    python benchmarks/budget.py --table                 docs/budget.md again, from budget.json alone
    python benchmarks/budget.py --hot 'forward<float, (Access)0>'       lists a hot path
    python benchmarks/budget.py --executed [--update]   what hot kernels execute; records it

EXTENSION is a `_C*.so` or a .cubin; without it, the `_C*.so` of the installed package. Needs no GPU
and no torch, but cuobjdump: from PATH, the CUDA toolkit, or the triton that torch's CUDA wheels
come with.
tools/kernels.py says what is counted, tools/hot_path.py what the hot path is.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

from kernels import Row, build_info, die, installed_extension, measure, show_hot_path  # noqa: E402
from toolchain import numbers  # noqa: E402

BUDGET = ROOT / "benchmarks" / "budget.json"
TABLE = ROOT / "docs" / "budget.md"

MORE_REGISTERS = 4
MORE_PER_ELEMENT = (1.05, 1.0)  # times the recorded number, plus
MORE_BYTES = 1.1
LARGEST = 4_000_000  # bytes of an architecture

# KB of loads that all threads of an SM have in flight at least, on the hot path of contiguous
# tensors. An SM's share of an H200 is 32.6 bytes a nanosecond, and a load under load takes some
# 660: 21 KB, of which two thirds are loads. That suffices only if loads never pause. A thread that
# loads and computes in turn pauses for about half of the time, and CUB's tuning for Hopper asks
# for 48 KB. Backward has that: three vectors of 16 bytes in each of 1024 threads. Forward loads
# two: it has 32 KB unless one load waits for the other.
FLOORS = {
    "sm_90": {
        f"{kernel}<{dtype}, (Access)0>": kilobytes
        for kernel, kilobytes in (("forward", 32), ("backward", 48))
        for dtype in ("float", "Half", "BFloat16")
    }
}

Budget = dict[str, Any]


# --- the record ----------------------------------------------------------------------------------


def archs_of(budget: Budget) -> list[str]:
    return sorted(budget["sizes"], key=lambda arch: (int(re.sub(r"\D", "", arch)), arch))


def load() -> Budget:
    budget: Budget = json.loads(BUDGET.read_text())
    return budget


def dump(budget: Budget) -> str:
    """JSON with a line for each kernel and architecture, in a fixed order: small diffs."""
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
    """`new` recorded over `old`: architectures that `new` lacks stay, and so do known reasons."""
    kernels: dict[str, dict[str, Row]] = {}
    for name in sorted({*old["kernels"], *new["kernels"]}):
        kept = {a: r for a, r in old["kernels"].get(name, {}).items() if a not in new["sizes"]}
        if rows := kept | new["kernels"].get(name, {}):
            kernels[name] = rows
        for arch, row in new["kernels"].get(name, {}).items():
            before = old["kernels"].get(name, {}).get(arch, {})
            if "executed_per_element" in before:  # which is counted by itself
                row.setdefault("executed_per_element", before["executed_per_element"])
    sizes = old["sizes"] | new["sizes"]
    spilling = [n for n, rows in kernels.items() if any(r["spills"] for r in rows.values())]
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
    """One line for each thing in `found` that `budget` does not allow."""
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
                if new["spills"] and name not in budget["spilling"]:
                    lines.append(excess(where, "spills", None, 0, new["spills"]))
            else:
                lines += compare(where, old, new, same, name in budget["spilling"])
    return lines


def compare(where: str, old: Row, new: Row, same: bool, may_spill: bool) -> Iterator[str]:
    """What is wrong with one kernel; `same`: compiled by the nvcc of the record."""
    for what in ("load", "store"):
        if new[what] < old[what]:
            yield excess(where, what, old[what], old[what], new[what], "at least")
    limits: dict[str, float] = {}
    if same or not may_spill:
        limits["spills"] = old["spills"] if may_spill else 0
    if same:
        limits["registers"] = old["registers"] + MORE_REGISTERS
        limits |= {"stack": old["stack"], "shared": old["shared"]}
        if old["per_element"] is not None:
            factor, more = MORE_PER_ELEMENT
            limits["per_element"] = round(old["per_element"] * factor + more, 1)
    for what, limit in limits.items():
        if new[what] is None or new[what] > limit:
            yield excess(where, what, old[what], limit, new[what])


def below_floor(arch: str, name: str, new: Row) -> list[str]:
    """What a kernel lacks of the bytes in flight that FLOORS asks for, whatever the record has."""
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

HEADINGS = {
    "regs": "{registers}",
    "stack": "{stack}",
    "shared": "{shared:,}",
    "spills": "{spills}/{all_spills}",
    "instr.": "{instructions:,}",
    "per elem.": "{per_element}",
    "ld/st": "{load}/{store}",
}

INTRODUCTION = """# Budget

What each kernel costs, read from the extension that nvcc {nvcc} compiles. Written by `make budget`;
not to be edited. [CONTRIBUTING.md](../CONTRIBUTING.md#the-budget) says how to read and change it,
the head of [tools/kernels.py](../tools/kernels.py) what is counted, that of
[tools/hot_path.py](../tools/hot_path.py) what the hot path is. Spills are those on the hot path and
those of the whole kernel; ld/st are the bits of the widest global load and store on the hot path.
"""

IN_FLIGHT = """Bytes that a thread has in flight on the hot path, and KB of all threads of an SM.
The head of [tools/in_flight.py](../tools/in_flight.py) says what counts, FLOORS in
[benchmarks/budget.py](../benchmarks/budget.py) what is asked for.
"""


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table with the first column flush left."""
    widths = [max(len(r[c]) for r in [head, *rows]) for c in range(len(head))]

    def line(cells: list[str]) -> str:
        first, *rest = (
            c.ljust(w) if n == 0 else c.rjust(w)
            for n, (c, w) in enumerate(zip(cells, widths, strict=True))
        )
        return "| " + " | ".join([first, *rest]) + " |"

    rule = [("-" * w if n == 0 else "-" * (w - 1) + ":") for n, w in enumerate(widths)]
    return "\n".join([line(head), line(rule), *map(line, rows)]) + "\n"


def cell(value: Any) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def overview(budget: Budget, what: str) -> str:
    archs = archs_of(budget)
    rows = [
        [f"`{name}`", *(cell(of.get(arch, {}).get(what)) for arch in archs)]
        for name, of in sorted(budget["kernels"].items())
        if any(r[what] is not None for r in of.values())
    ]
    return markdown(["kernel", *archs], rows)


def in_flight(budget: Budget) -> list[str]:
    """The part on bytes in flight; nothing of a record that is older than this column."""
    archs = archs_of(budget)
    rows = []
    for name, of in sorted(budget["kernels"].items()):
        found = [of.get(arch, {}) for arch in archs]
        if any(row.get("in_flight") is not None for row in found):
            rows.append([f"`{name}`", *map(_in_flight_cell, found)])
    if not rows:
        return []
    return ["## Bytes in flight\n", IN_FLIGHT, markdown(["kernel", *archs], rows)]


def _in_flight_cell(row: Row) -> str:
    if row.get("in_flight") is None:
        return ""
    return f"{row['in_flight']:g}/{row['in_flight_kb']:g}"


def section(budget: Budget, arch: str) -> str:
    rows = [
        [f"`{name}`", *(c.format_map(of[arch]).replace("None", "") for c in HEADINGS.values())]
        for name, of in sorted(budget["kernels"].items())
        if arch in of
    ]
    return markdown(["kernel", *HEADINGS], rows)


def reasons(exceptions: dict[str, str]) -> str:
    lines = [f"- `{name}`: {why}\n" for name, why in exceptions.items()]
    return "".join(lines) if lines else "- none\n"


def table(budget: Budget) -> str:
    """docs/budget.md."""
    sizes = [[arch, cell(budget["sizes"][arch])] for arch in archs_of(budget)]
    parts = [
        INTRODUCTION.format(nvcc=budget["nvcc"]),
        "## Instructions per element\n",
        "On the hot path; `kernel<element type, ...>`, enumerators by their number.\n",
        overview(budget, "per_element"),
        "## Registers\n",
        overview(budget, "registers"),
        *in_flight(budget),
        "## Size\n",
        f"Bytes of an architecture's cubins, with debug information; below {LARGEST:,}, but for\n",
        reasons(budget["oversized"]),
        markdown(["architecture", "bytes"], sizes),
        "## Spills\n",
        "Kernels whose hot path touches local memory, on some architecture:\n",
        reasons(budget["spilling"]),
    ]
    for arch in archs_of(budget):
        parts += [f"## {arch}\n", section(budget, arch)]
    return "\n".join(parts)


def executed(update: bool) -> int:
    """Counts what the hot kernels execute for an element, as tools/machine_code/count.py says."""
    sys.path.insert(0, str(ROOT))
    from machine_code.count import count, is_hot

    from tests.native import build
    from tests.native.machine_code import MachineCode, missing

    if reason := missing():
        die(reason)
    budget, machine = load(), MachineCode(build.module())
    for name in filter(is_hot, machine.device.names):
        found = count(machine, name)
        print(f"{name}: {found.loop:.1f} in the loop, {found.whole:.1f} of the whole")
        if "sm_90" in budget["kernels"].get(name, {}):
            budget["kernels"][name]["sm_90"]["executed_per_element"] = round(found.loop, 1)
    if update:
        BUDGET.write_text(dump(budget))
    return 0


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
        return executed(asked.update)
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
