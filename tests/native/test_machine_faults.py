"""Tests that faults planted in the machine code are detected, and the counts of instructions."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from machine_code.count import count

from tools.kernel_budget import __main__ as budget
from tools.kernel_budget import record
from tools.kernel_budget.hot_path import hot_path
from tools.kernel_budget.kernels import elements
from vae_fused import _ext

from . import machine_code, test_nll
from .machine_cases import Case, compare, results
from .machine_code import MachineCode

pytestmark = pytest.mark.skipif(
    machine_code.missing() is not None, reason=str(machine_code.missing())
)


# In rounds 2 to 10, Philox adds multiples of two constants to the seed (Salmon et al., 2011).
ROUND_KEYS = {k * odd % 2**32 for k in range(1, 10) for odd in (0x9E3779B9, 0xBB67AE85)}


def wrong_round_key(i: Any) -> Any:
    for number in re.findall(r"-?0x[0-9a-f]+", i.operands):
        if int(number, 16) % 2**32 in ROUND_KEYS and "c[" not in i.operands:
            wrong = hex(int(number, 16) % 2**32 ^ 1)
            return dataclasses.replace(i, operands=i.operands.replace(number, wrong))
    return None


def wrong_lane_mask(i: Any) -> Any:
    """Replaces step 4 of a butterfly with a second step 8."""
    if i.base != "SHFL" or ", 0x4, 0x1f" not in i.operands:
        return None
    return dataclasses.replace(i, operands=i.operands.replace(", 0x4, 0x1f", ", 0x8, 0x1f"))


def wrong_lanes(i: Any) -> Any:
    """Limits a warp exchange to segments of four lanes or to half a warp."""
    if i.base != "SHFL" or not i.operands.endswith(", 0x1f"):
        return None
    if i.opcode == "SHFL.IDX" and ", RZ, " not in i.operands:
        return None  # the compiler generates it for atomics, and one lane takes part
    limit = ", 0x101f" if i.opcode == "SHFL.IDX" else ", 0x3"
    return dataclasses.replace(i, operands=i.operands.removesuffix(", 0x1f") + limit)


def no_barrier(i: Any) -> Any:
    return dataclasses.replace(i, opcode="NOP", operands="") if i.base == "BAR" else None


FAULTS = {"a wrong round key": wrong_round_key, "a wrong lane mask": wrong_lane_mask}

# Raises an error if the machine code computes wrong values.
Check = Callable[[MachineCode], None]


def latent(case: Case) -> Check:
    def check(machine: MachineCode) -> None:
        expected = results(machine.native, "cpu", case)
        compare(machine.native, case, results(machine, "cuda", case), expected)

    return check


def fails(machine: MachineCode, check: Check) -> bool:
    """Returns whether the values are wrong or the interpreter raises an error."""
    try:
        check(machine)
    except (AssertionError, RuntimeError):
        return True
    return False


def planted(
    native: ModuleType, check: Check, fault: Callable[[Any], Any], kernel: str = "forward"
) -> list[bool]:
    """Plants a fault in each executed instruction of a kernel, and returns which are detected."""
    machine = MachineCode(native)
    with machine.installed():
        assert not fails(machine, check)
        name, launched = next(
            (name, launched) for name, launched in machine.launched if name.startswith(kernel + "<")
        )
        code = launched.program.instructions
        noticed = []
        for k, (i, count) in enumerate(zip(code, launched.counts, strict=True)):
            wrong = fault(i) if count else None
            if wrong is None:
                continue
            found = False
            for seed in range(4):  # the effect of a fault depends on the order of execution
                faulty = MachineCode(native, seed)
                faulty.device.plant(name, [*code[:k], wrong, *code[k + 1 :]])
                with faulty.installed():
                    found = found or fails(faulty, check)
            noticed.append(found)
    return noticed


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_constant_is_noticed(machine: MachineCode, fault: str) -> None:
    # A KL in float32 would not show an error in the lower half of a double.
    case = Case("default", "float64", ("one long row", "dense"))
    noticed = planted(machine.native, latent(case), FAULTS[fault])
    assert noticed and all(noticed)


@pytest.mark.parametrize("shape", ["long rows", "many rows of three"])
def test_a_missing_barrier_is_noticed(machine: MachineCode, shape: str) -> None:
    """Covers the barriers of a block's sum, the ticket, the last block's rows, and staged rows."""
    case = Case("default", "float32", (shape, "dense"))
    noticed = planted(machine.native, latent(case), no_barrier)
    # One missing barrier is not detected: the one before the ticket. It orders accesses to global
    # memory, in which races are not recorded.
    assert any(noticed) and noticed.count(False) <= 1


# --- likelihoods ---------------------------------------------------------------------------------


def likelihood(kind: str, shape: tuple[int, int], forward: bool, **options: Any) -> Check:
    """Returns a check of row sums in which one block computes all tiles one after the other."""
    check = test_nll.check_forward if forward else test_nll.check_backward

    def run(machine: MachineCode) -> None:
        machine.native.emulator.configure(enough_blocks=1)
        try:
            check(machine, test_nll.make(kind, shape, (1,), **options))
        finally:
            machine.native.emulator.configure()

    return run


@pytest.mark.parametrize(
    ("kernel", "kind", "shape", "forward"),
    [
        ("nll", "nb", (2, 300), True),
        ("nll_backward", "nb of softmax", (2, 300), False),
        ("softmax_rows", "poisson of softmax", (2, 600), True),
    ],
)
def test_wrong_lanes_of_a_likelihood_are_noticed(
    machine: MachineCode, kernel: str, kind: str, shape: tuple[int, int], forward: bool
) -> None:
    check = likelihood(kind, shape, forward, dtype="float64")
    noticed = planted(machine.native, check, wrong_lanes, kernel)
    assert noticed and all(noticed)


# `redundant` is the number of barriers that could be removed. One is the barrier before the first
# piece, because the loads of the piece end with another barrier. The sum of a tile ends with two
# barriers in a row, one of which would be enough. No barrier is needed where a thread reads only
# slots that it has written itself, or after the last sum of a column.
@pytest.mark.parametrize(
    ("kernel", "kind", "shape", "options", "redundant"),
    [
        ("nll", "nb", (20, 128), {}, 1),
        ("nll", "nb", (2, 1600), {}, 3),
        ("nll_backward", "zinb", (24, 128), {"second": (128,), "third": (128,)}, 3),
        ("nll_backward", "nb", (24, 128), {"second": (24, 1)}, 2),
        ("softmax_rows", "poisson of softmax", (3, 600), {}, 0),
    ],
)
def test_a_missing_barrier_of_a_likelihood_is_noticed(
    machine: MachineCode,
    kernel: str,
    kind: str,
    shape: tuple[int, int],
    options: dict[str, Any],
    redundant: int,
) -> None:
    check = likelihood(kind, shape, kernel != "nll_backward", **options)
    noticed = planted(machine.native, check, no_barrier, kernel)
    assert any(noticed) and noticed.count(False) <= redundant


# --- counting ------------------------------------------------------------------------------------


def test_the_loop_executes_what_the_hot_path_lists(machine: MachineCode) -> None:
    """The interpreter and the hot path agree within 2 %, and the whole kernel executes more."""
    kernel = "forward<float, (Access)0>"
    found = count(machine, kernel)
    path = hot_path(machine.device.program(kernel).instructions)
    listed = path.length / (elements(kernel, path) or 1)
    assert found.loop == pytest.approx(listed, rel=0.02)
    assert listed < found.whole < 1.5 * listed


def test_the_budget_records_what_is_executed(
    machine: MachineCode, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kernel, copy = "backward<BFloat16, (Access)0>", tmp_path / "budget.json"
    planted = record.load()
    planted["kernels"][kernel]["sm_90"]["executed_per_element"] = 1.0
    monkeypatch.setattr(record, "BUDGET", copy)
    record.save(planted)
    assert budget.main(["--executed", kernel, "--check"]) == 1
    table = tmp_path / "budget.md"
    assert budget.main(["--executed", kernel, "--update", "--markdown", str(table)]) == 0
    row = json.loads(copy.read_text())["kernels"][kernel]["sm_90"]
    assert row["executed_per_element"] == pytest.approx(count(machine, kernel).loop, abs=0.1)
    _, _, part = table.read_text().partition("## sm_90")
    (line,) = (line for line in part.partition("##")[0].splitlines() if f"`{kernel}`" in line)
    assert f" {row['executed_per_element']} |" in line
    # If a new record lacks this value, the update keeps the old value.
    new = {**record.load(), "kernels": {kernel: {"sm_90": {**row}}}}
    del new["kernels"][kernel]["sm_90"]["executed_per_element"]
    assert record.updated(record.load(), new)["kernels"][kernel]["sm_90"] == row


def test_the_kernels_execute_what_the_budget_records() -> None:
    if not record.same_nvcc(record.load(), {"nvcc": _ext.build_info.get("cuda")}):
        pytest.skip("the installed kernels were not compiled by the recorded nvcc")
    assert budget.main(["--executed", "--check"]) == 0


def test_what_a_likelihood_executes_and_has_in_flight_is_counted(machine: MachineCode) -> None:
    """Forward reads two outputs and a target in 16-byte vectors before the first barrier."""
    found = count(machine, "nll<float, Gaussian>")
    assert found.in_flight == 48
    assert 0 < found.loop < found.whole < 1.2 * found.loop
    assert all(not launched.trace for _, launched in machine.launched)  # other launches have none
