"""Reads the cost of each CUDA kernel from the compiled extension and compares it with a budget.

    python -m tools.kernel_budget [EXTENSION]             the cost for each architecture
    python -m tools.kernel_budget [EXTENSION] --check     violations of budget.json; status 1 if any
    python -m tools.kernel_budget [EXTENSION] --update    writes budget.json
    python -m tools.kernel_budget --markdown FILE         writes the tables of budget.json
    python -m tools.kernel_budget --hot 'forward<float, (Access)0>'       lists a hot path
    python -m tools.kernel_budget --executed [KERNEL]     what hot kernels execute; with --check or
                                                          --update, as for the budget

EXTENSION is a `_C*.so` or a .cubin. The default is the `_C*.so` of the installed package. This tool
needs no GPU and no torch, but it needs cuobjdump: from PATH, the CUDA toolkit, or the triton that
torch's CUDA wheels depend on. kernels.py defines the counts, and hot_path.py the hot path.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from . import kernels, record
from .document import document, section
from .hot_path import hot_path
from .in_flight import bytes_in_flight
from .pipes import busy

ROOT = Path(__file__).resolve().parents[2]


def check(extension: Path) -> int:
    if "-O0" in kernels.build_info(extension).get("flags", {}).get("nvcc", []):
        kernels.die(f"{extension.name} is a DEBUG build, which has no budget")
    budget, found = record.load(), kernels.measure(extension)
    if not record.same_nvcc(budget, found):
        versions = f"recorded with nvcc {budget['nvcc']}, built with {found['nvcc']}"
        print(f"budget: warning: {versions}: only spills, widths and sizes are checked")
    archs = record.archs_of(found)
    for arch in archs:
        if arch not in budget["sizes"]:
            print(f"budget: warning: {arch} is not recorded: only spills and size are checked")
    summary = f"{len(found['kernels'])} kernels, {' '.join(archs)}"
    return report(record.violations(budget, found), summary)


def report(violations: list[str], what: str) -> int:
    for line in violations:
        print(f"budget: {line}")
    found = f"{len(violations)} violations" if violations else "within budget"
    print(f"budget: {what}: {found}")
    return int(bool(violations))


def update(extension: Path) -> None:
    empty: record.Budget = {"sizes": {}, "spilling": {}, "oversized": {}, "kernels": {}}
    old = record.load() if record.BUDGET.exists() else empty
    record.save(budget := record.updated(old, kernels.measure(extension)))
    for exception in record.without_reason(budget):
        print(f"budget: {exception} needs a reason in {record.BUDGET.name}, or a repair")


def executed(kernel: str, *, is_update: bool, is_check: bool) -> int:
    """Count executed instructions with the interpreter of the tests, in a separate process."""
    count = [sys.executable, "-m", "machine_code.count", *([kernel] if kernel else [])]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    done = subprocess.run(count, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return done.returncode
    counted: dict[str, kernels.Row] = json.loads(done.stdout)
    budget = record.load()
    if is_update:
        for name in counted.keys() & budget["kernels"].keys():
            budget["kernels"][name]["sm_90"] |= counted[name]
        record.save(budget)
    if not is_check:
        return 0
    return report(record.executed_violations(budget, counted), f"{len(counted)} executed kernels")


def show_hot_path(extension: Path, kernel: str, arch: str | None) -> None:
    names: set[str] = set()
    for of, cubin in kernels.cubins(extension):
        for name, _, code in kernels.kernels_of(cubin) if arch in (of, None) else ():
            names.add(name)
            if name != kernel:
                continue
            path = hot_path(code)
            served = kernels.elements(name, path)
            print(f"=== {of} {name}: {path.length} instructions, {served} elements")
            for i in path.instructions:
                print(f"{i.address:06x}  {i.guard:5} {i.opcode} {i.operands}".rstrip())
            print()
            for opcode, count in Counter(i.base for i in path.instructions).most_common():
                print(f"{count:6}  {opcode}")
            flying = bytes_in_flight(path.instructions, in_loop=path.in_loop)
            print(f"{flying:6g}  bytes in flight")
            for pipe, cycles in {"issue": path.length, **busy(path.instructions, of)}.items():
                print(f"{cycles / (served or 1):6.1f}  cycles of {pipe} an element")
    if kernel not in names:
        kernels.die(f"the kernel must be one of {', '.join(sorted(names))}, got {kernel}")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "python -m tools.kernel_budget",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("extension", nargs="?", type=Path)
    parser.add_argument("--check", action="store_true", help="compare with budget.json")
    parser.add_argument("--update", action="store_true", help="write budget.json")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables")
    parser.add_argument("--hot", metavar="KERNEL", help="list the hot path of a kernel")
    parser.add_argument("--arch", help="with --hot: of one architecture")
    parser.add_argument("--executed", nargs="?", const="", metavar="KERNEL", help="execute kernels")
    given = parser.parse_args(arguments)
    status = 0
    if given.executed is not None:
        status = executed(given.executed, is_update=given.update, is_check=given.check)
    elif given.hot or given.check or given.update or not given.markdown:
        extension = given.extension or kernels.installed_extension()
        if given.hot:
            show_hot_path(extension, given.hot, given.arch)
        elif given.update:
            update(extension)
        elif not given.check:
            found = kernels.measure(extension)
            print("\n".join(section(found, arch) for arch in record.archs_of(found)))
        status = check(extension) if given.check else 0
    if given.markdown:
        given.markdown.parent.mkdir(parents=True, exist_ok=True)
        given.markdown.write_text(document(record.load()))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
