"""Writes docs/budget.md from budget.json; see budget.py."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

from kernels import Row  # noqa: E402
from occupancy import resident_threads  # noqa: E402

Budget = dict[str, Any]

# These are counted for sm_90. tools/machine_code/count.py describes the counted calls.
EXECUTED = "executed_per_element"
EXECUTED_IN_FLIGHT = "executed_in_flight"  # bytes of each thread, for likelihoods


def archs_of(budget: Budget) -> list[str]:
    return sorted(budget["sizes"], key=lambda arch: (int(re.sub(r"\D", "", arch)), arch))


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


EXECUTED_PART = """Instructions that the hot kernels of sm_90 execute for an element, counted by the
interpreter of machine code. The head of
[tools/machine_code/count.py](../tools/machine_code/count.py) says for which calls. Kernels of
likelihoods load and compute in different loops, so no hot path shows their bytes in flight. They
are counted along what a warp executes instead: bytes of a thread, and KB of all threads of an SM.
The KB are those while every block loads. No block loads while it computes, and the other blocks of
the SM have to fill that time.
"""


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table with a left-aligned first column."""
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
    """The section on bytes in flight; empty for a record that is older than this column."""
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


def executed_part(budget: Budget) -> list[str]:
    """The section on executed instructions; empty for a record without them."""
    rows = []
    for name, of in sorted(budget["kernels"].items()):
        row = of.get("sm_90", {})
        if EXECUTED not in row:
            continue
        flying, cells = row.get(EXECUTED_IN_FLIGHT), ""
        if flying is not None:
            threads = resident_threads("sm_90", row["registers"], row["shared"])
            cells = f"{flying:g}/{flying * threads / 1024:g}"
        rows.append([f"`{name}`", f"{row[EXECUTED]}", cells])
    if not rows:
        return []
    head = ["kernel", "per element", "in flight"]
    return ["## Executed instructions\n", EXECUTED_PART, markdown(head, rows)]


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


def document(budget: Budget, largest: int) -> str:
    """The text of docs/budget.md. `largest` is the limit of an architecture's bytes."""
    sizes = [[arch, cell(budget["sizes"][arch])] for arch in archs_of(budget)]
    parts = [
        INTRODUCTION.format(nvcc=budget["nvcc"]),
        "## Instructions per element\n",
        "On the hot path; `kernel<element type, ...>`, enumerators by their number.\n",
        overview(budget, "per_element"),
        "## Registers\n",
        overview(budget, "registers"),
        *in_flight(budget),
        *executed_part(budget),
        "## Size\n",
        f"Bytes of an architecture's cubins, with debug information; below {largest:,}, but for\n",
        reasons(budget["oversized"]),
        markdown(["architecture", "bytes"], sizes),
        "## Spills\n",
        "Kernels that touch local memory on some architecture:\n",
        reasons(budget["spilling"]),
    ]
    for arch in archs_of(budget):
        parts += [f"## {arch}\n", section(budget, arch)]
    return "\n".join(parts)
