"""The tables of a budget, in Markdown."""

from __future__ import annotations

from typing import Any

from .kernels import Row
from .occupancy import resident_threads
from .record import EXECUTED, EXECUTED_IN_FLIGHT, LARGEST, Budget, archs_of

COLUMNS = ("kernel", "regs", "stack", "shared", "spills", "instr.", "per elem.", "executed",
           "in flight", "ld/st")  # fmt: skip
INTRODUCTION = """# Budget

What each kernel costs, read from the extension that nvcc {nvcc} compiles. The section "The budget"
of CONTRIBUTING.md says how to read and change it, and `tools/kernel_budget/kernels.py` defines the
counts. Names are `kernel<element type, ...>`, with enumerators by their number.

- spills: on the hot path, and in the whole kernel
- per elem.: instructions on the hot path for an element
- executed: instructions for an element that the interpreter of machine code executes
- in flight: bytes of loads that a thread has in flight, and KB of all threads of an SM. For kernels
  of likelihoods they are counted along the executed instructions, and are those while every block
  loads. No block loads while it computes, and the other blocks of the SM have to fill that time.
- ld/st: bits of the widest global load and store on the hot path
"""


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """Return a table with a left-aligned first column."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells: list[str]) -> str:
        first, *rest = zip(cells, widths, strict=True)
        return "| " + " | ".join([first[0].ljust(first[1]), *(c.rjust(w) for c, w in rest)]) + " |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(head), line(rule), *map(line, rows)]) + "\n"


def cell(value: Any) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _cells(name: str, arch: str, row: Row) -> list[str]:
    flying, kilobytes = row.get("in_flight"), row.get("in_flight_kb")
    if EXECUTED_IN_FLIGHT in row:
        flying = row[EXECUTED_IN_FLIGHT]
        kilobytes = flying * resident_threads(arch, row["registers"], row["shared"]) / 1024
    return [
        f"`{name}`",
        *(cell(row[what]) for what in ("registers", "stack", "shared")),
        f"{row['spills']}/{row['all_spills']}",
        *(cell(row.get(what)) for what in ("instructions", "per_element", EXECUTED)),
        "" if flying is None else f"{flying:g}/{kilobytes:g}",
        f"{row['load']}/{row['store']}",
    ]


def section(budget: Budget, arch: str) -> str:
    """The table of an architecture."""
    kernels = sorted(budget["kernels"].items())
    rows = [_cells(name, arch, of[arch]) for name, of in kernels if arch in of]
    return f"## {arch}: {budget['sizes'][arch]:,} bytes\n\n{markdown(list(COLUMNS), rows)}"


def document(budget: Budget) -> str:
    """Return the tables of a record, and its exceptions."""
    parts = [INTRODUCTION.format(nvcc=budget["nvcc"]), "## Exceptions\n"]
    for what, names in (
        (f"The cubins of an architecture have less than {LARGEST:,} bytes", budget["oversized"]),
        ("No kernel touches local memory", budget["spilling"]),
    ):
        listed = [f"- `{name}`: {why}\n" for name, why in names.items()]
        parts.append(f"{what}, with these exceptions:\n\n" + ("".join(listed) or "- none\n"))
    return "\n".join([*parts, *(section(budget, arch) for arch in archs_of(budget))])
