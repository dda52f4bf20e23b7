"""The sm_90 machine code of every kernel, interpreted: by value, against the CPU kernels.

What the other tests of this folder run is C++ on the emulated device. This is what nvcc and ptxas
make of the same sources, called by the same host code. Blocks run in random order, warps by turns,
and each MUFU returns another value within its documented error.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from . import build, machine_code, test_family, test_kernels, test_multi
from .calls import DTYPES, Call, backward, forward
from .machine_code import MachineCode

sys.path.insert(0, str(build.ROOT / "benchmarks"))

import budget
from hot_path import hot_path
from kernels import elements
from machine_code.count import count

pytestmark = pytest.mark.skipif(
    machine_code.missing() is not None, reason=str(machine_code.missing())
)

# Whole and partial tiles, whole rows written at once and staged in shared memory, rows of several
# tiles that the last block adds up, merged tiles, views; and which kernels access memory how.
DEFAULT = (
    ("one element", "dense"),
    ("two columns", "dense"),
    ("four columns", "dense"),
    ("five columns", "dense"),
    ("a row per sample", "dense"),
    ("partly summed images", "dense"),
    ("large deep images", "dense"),
    ("one long row", "dense"),
    ("long rows by groups of lanes", "dense"),
    ("longer rows", "dense"),
    ("many rows of three", "dense"),
    ("wide images", "chunked"),
    ("summed deep images", "chunked"),
    ("summed latents", "chunked"),
    ("long rows", "chunked"),
    ("runs that are no whole vectors", "chunked"),
    ("wide images", "transposed"),
    ("latents", "transposed"),
    ("summed latents", "transposed"),
    ("large deep images", "transposed"),
    ("many latents", "transposed"),
)
# Four times as many instructions, each of them slower.
LONG = ("long rows by groups of lanes", "longer rows", "many rows of three", "many latents")
OPTIONS = (
    ("defaults", "prior", "images", "channels last"),
    ("logstd", "samples", "(B, D)", "misaligned"),
    ("std", "every", "odd", "dense"),
    ("var", "none", "(B, D)", "dense"),
    ("floors of a std", "every", "(B, D)", "dense"),
    ("floors of a std", "prior", "images", "channels last"),
    ("floor of a var", "eps", "(B, D)", "chunked"),
    ("softplus", "samples of eps", "(B, D) none", "broadcast"),
    ("softplus", "prior", "(B, D)", "dense"),
    ("softplus", "mask", "long rows", "chunked"),
    ("softplus", "every", "images", "broadcast"),
    ("sigmoid", "eps", "odd", "channels last"),
    ("clamp", "prior mean", "(B, D)", "chunked"),
    ("soft clamps", "every", "(B, D)", "dense"),
    ("free bits", "mask", "images", "channels last"),
    ("balance", "every", "images", "misaligned"),
    ("temperature", "none", "(B, D) none", "dense"),
    ("linear", "none", "odd", "channels last"),
)
# nvcc fuses gain * raw + shift, which nearly cancels in one element: float32 of the CPU is wrong by
# 9e-5 there, and the machine code by 1e-5 (float64 tells).
CANCELS = ("float32", "floor of a var")
LISTS = (("dense", "softplus, fixed prior"), ("misaligned", "everything"))
# The code of float16 is that of bfloat16 but for conversions: a case for each of its kernels.
OF_FLOAT16 = (
    ("long rows by groups of lanes", "dense"),
    ("a row per sample", "dense"),
    ("wide images", "chunked"),
    ("latents", "transposed"),
    ("defaults", "prior", "images", "channels last"),
    ("softplus", "prior", "(B, D)", "dense"),
    ("sigmoid", "eps", "odd", "channels last"),
    ("misaligned", "everything"),
    ("by pointer",),
)
PARTS = ("z alone", "kl alone", "gradient of z alone", "gradient of kl alone", "of mu alone")


@dataclasses.dataclass(frozen=True)
class Case:
    kind: str
    dtype: str
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return "-".join((self.kind, self.dtype, *self.arguments))


def is_run(dtype: str, arguments: tuple[str, ...]) -> bool:
    if dtype == "float16":
        return arguments in OF_FLOAT16
    if dtype == "float64":
        return arguments[0] not in LONG and arguments != LISTS[0]
    return (dtype, arguments[0]) != CANCELS


CASES = [
    Case(kind, dtype, arguments)
    for dtype in DTYPES
    for kind, choices in (
        ("default", DEFAULT),
        ("options", OPTIONS),
        ("list", LISTS),
        ("part", [(part, layout) for part in PARTS for layout in ("dense", "transposed")]),
        ("key", [("by pointer",), ("2**32",), ("2**64",)]),
    )
    for arguments in choices
    if is_run(dtype, arguments)
]

# Those of the tests of the emulated device. What is added here, an error of MUFU of 2^-22 at most
# (2.4e-7) and fused multiplications, is less than a tenth of float's and an eighth of an ulp of
# float16's.
TOLERANCE = {
    "default": {"float32": 2e-6, "float64": 1e-13, "float16": 2e-3, "bfloat16": 1e-2},
    "options": test_family.TOLERANCE,
}


def results(native: Any, device: str, case: Case) -> dict[str, np.ndarray | None]:
    """What a call computes, by name."""
    if case.kind == "list":
        found = test_multi.run(native, device, case.dtype, *case.arguments)
        return {f"array {k}": x for k, x in enumerate(found)}
    if case.kind == "options":
        options, tensors, shape, layout = case.arguments
        call = test_family.run(native, device, options, tensors, shape, case.dtype, layout)
    elif case.kind == "part":
        call = part(native, device, case.dtype, *case.arguments)
    elif case.kind == "key":
        call = with_key(native, device, case.dtype, *case.arguments)
    else:
        shape, layout = case.arguments
        call = test_kernels.run(native, device, shape, case.dtype, layout)
    return {name: x for name, x in vars(call).items() if name != "keeps"}


def part(native: Any, device: str, dtype: str, which: str, layout: str) -> Call:
    """A call that has only some of its results."""
    sizes, dims = test_kernels.SHAPES["wide images"]
    mu, raw, _, grad_z = test_kernels.inputs(native, sizes, dtype, layout)
    options: dict[str, Any] = {"dims": dims, "key": test_kernels.KEY}
    if which in ("z alone", "kl alone"):
        return forward(
            native, device, mu, raw, sample=which[0] == "z", kl=which[0] == "k", **options
        )
    grad_kl = np.linspace(-1, 1, sizes[0], dtype=np.float64 if dtype == "float64" else np.float32)
    if which == "of mu alone":
        options["family"] = {"prior_mean": 0.5}
        return backward(native, device, mu, None, grad_z=grad_z, grad_kl=grad_kl, **options)
    grads = {"grad_z": grad_z} if "of z" in which else {"grad_kl": grad_kl}
    return backward(native, device, mu, raw, **grads, **options)


def with_key(native: Any, device: str, dtype: str, which: str) -> Call:
    if which == "by pointer":
        pointers = np.array([1, 40], np.uint64)
        options = {"key": (0, 8), "key_pointers": pointers, "shift": 2}
        return test_kernels.run(native, device, "images", dtype, "dense", **options)
    word = int(which.partition("**")[2])
    options = {"key": (7, 2**word - 600)}  # the counter's word overflows within a tile
    return test_kernels.run(native, device, "one long row", dtype, "dense", **options)


def compare(native: ModuleType, case: Case, found: Any, expected: Any) -> None:
    tolerance = TOLERANCE["options" if case.kind in ("options", "list") else "default"]
    for name, want in expected.items():
        got = found[name]
        assert (got is None) == (want is None), name
        if want is None:
            continue
        rtol = tolerance[case.dtype]
        if name == "kl":
            rtol = min(rtol, tolerance["float32"])
        a, b = (test_kernels.values(native, x) for x in (got, want))
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol, err_msg=name)


@pytest.fixture(scope="module")
def machine(native_module: ModuleType) -> MachineCode:
    if not native_module.has_cuda_kernels:
        pytest.skip("csrc/cuda is empty")
    return MachineCode(native_module)


@pytest.fixture
def outcome(machine: MachineCode) -> Iterator[Callable[[Case], dict[str, np.ndarray | None]]]:
    machine.emulator.configure()
    with machine.installed():
        yield lambda case: executed(machine, case)


@cache
def executed(machine: MachineCode, case: Case) -> dict[str, np.ndarray | None]:
    """Once for all tests, with the randomness of the case, not of the order of tests."""
    machine.reseed(CASES.index(case))
    return results(machine, "cuda", case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_machine_code_computes_what_the_cpu_does(
    machine: MachineCode, outcome: Callable[[Case], Any], case: Case
) -> None:
    compare(machine.native, case, outcome(case), results(machine.native, "cpu", case))


def without_tickets(native: ModuleType, dtype: str, report: Any) -> None:
    """In a process of its own, whose streams use up the slots: then a second kernel adds up."""
    try:
        machine = MachineCode(native)
        native.emulator.set_executor(lambda *_: None)
        streams = [native.emulator.Stream() for _ in range(1025)]
        mu = np.zeros(2049, np.float32)
        for stream in streams:
            forward(native, "cuda", mu, mu, dims=(0,), key=(1, 1), stream=stream)
        cases = (
            Case("default", dtype, ("long rows", "dense")),
            Case("list", dtype, ("dense", "defaults")),
        )
        last = {"stream": streams[-1]}
        with machine.installed():
            for case in cases:
                with_stream = WithStream(machine, last)
                compare(
                    native, case, results(with_stream, "cuda", case), results(native, "cpu", case)
                )
        report.send([name for name, _ in machine.launched])
    except BaseException as error:
        report.send(repr(error))


class WithStream:
    """A module whose calls of kernels are on a stream."""

    def __init__(self, machine: MachineCode, options: dict[str, Any]) -> None:
        self.machine, self.options = machine, options

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.machine, name)
        if name not in ("forward", "multi"):
            return found
        return lambda *args, **options: found(*args, **options, **self.options)


@cache
def launched_without_tickets(native: ModuleType, dtype: str) -> list[str] | str:
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=without_tickets, args=(native, dtype, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        return "the process has died"
    finally:
        process.join()


@pytest.mark.parametrize(("dtype", "total"), [("float32", "float"), ("float64", "double")])
def test_without_a_ticket_a_second_kernel_adds_up(
    machine: MachineCode, dtype: str, total: str
) -> None:
    names = launched_without_tickets(machine.native, dtype)
    assert isinstance(names, list), names
    assert {f"combine<{total}>", f"combine_multi<{total}>"} <= set(names)


def test_every_kernel_was_executed(machine: MachineCode, outcome: Callable[[Case], Any]) -> None:
    for case in CASES:
        outcome(case)
    names = {name for name, launched in machine.launched if launched.issued}
    for dtype in ("float32", "float64"):
        names |= set(launched_without_tickets(machine.native, dtype))
    assert names == set(machine.device.names) and len(names) > 40


# --- planted faults ------------------------------------------------------------------------------

# The keys of Philox's rounds 2 to 10: multiples of the two constants of Salmon et al., 2011.
ROUND_KEYS = {k * odd % 2**32 for k in range(1, 10) for odd in (0x9E3779B9, 0xBB67AE85)}


def wrong_round_key(i: Any) -> Any:
    for number in re.findall(r"-?0x[0-9a-f]+", i.operands):
        if int(number, 16) % 2**32 in ROUND_KEYS and "c[" not in i.operands:
            wrong = hex(int(number, 16) % 2**32 ^ 1)
            return dataclasses.replace(i, operands=i.operands.replace(number, wrong))
    return None


def wrong_lane_mask(i: Any) -> Any:
    """Step 8 of a butterfly twice, and no step 4."""
    if i.base != "SHFL" or ", 0x4, 0x1f" not in i.operands:
        return None
    return dataclasses.replace(i, operands=i.operands.replace(", 0x4, 0x1f", ", 0x8, 0x1f"))


def no_barrier(i: Any) -> Any:
    return dataclasses.replace(i, opcode="NOP", operands="") if i.base == "BAR" else None


FAULTS = {"a wrong round key": wrong_round_key, "a wrong lane mask": wrong_lane_mask}


def fails(machine: MachineCode, case: Case) -> bool:
    """Whether the values are wrong, or the interpreter says that something is."""
    try:
        compare(
            machine.native,
            case,
            results(machine, "cuda", case),
            results(machine.native, "cpu", case),
        )
    except (AssertionError, RuntimeError):
        return True
    return False


def planted(native: ModuleType, case: Case, fault: Callable[[Any], Any]) -> list[bool]:
    """For each instruction of the forward kernel that the case executes: whether it is missed."""
    machine = MachineCode(native)
    with machine.installed():
        assert not fails(machine, case)
        name, launched = machine.launched[0]
        code = launched.program.instructions
        noticed = []
        for k, (i, count) in enumerate(zip(code, launched.counts, strict=True)):
            wrong = fault(i) if count else None
            if wrong is None:
                continue
            found = False
            for seed in range(4):  # BRA.DIV may choose a path without the instruction
                faulty = MachineCode(native, seed)
                faulty.device.plant(name, [*code[:k], wrong, *code[k + 1 :]])
                with faulty.installed():
                    found = found or fails(faulty, case)
            noticed.append(found)
    return noticed


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_constant_is_noticed(machine: MachineCode, fault: str) -> None:
    # In float64: of a double's lower half float32 would not keep enough to tell.
    case = Case("default", "float64", ("one long row", "dense"))
    noticed = planted(machine.native, case, FAULTS[fault])
    assert noticed and all(noticed)


@pytest.mark.parametrize("shape", ["long rows", "many rows of three"])
def test_a_missing_barrier_is_noticed(machine: MachineCode, shape: str) -> None:
    """For the sum of a block, for the ticket, between the last block's rows, for staged rows."""
    noticed = planted(machine.native, Case("default", "float32", (shape, "dense")), no_barrier)
    assert noticed and all(noticed)


# --- counting ------------------------------------------------------------------------------------


def test_the_loop_executes_what_the_hot_path_lists(machine: MachineCode) -> None:
    """They find the same by different means: within 2 %, and the whole is more."""
    kernel = "forward<float, (Access)0>"
    found = count(machine, kernel)
    path = hot_path(machine.device.program(kernel).instructions)
    listed = path.length / (elements(kernel, path) or 1)
    assert found.loop == pytest.approx(listed, rel=0.02)
    assert listed < found.whole < 1.5 * listed


def test_the_budget_records_what_is_executed(
    machine: MachineCode, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kernel, record = "backward<BFloat16, (Access)0>", tmp_path / "budget.json"
    record.write_text(budget.BUDGET.read_text())
    monkeypatch.setattr(budget, "BUDGET", record)
    monkeypatch.setattr("machine_code.count.is_hot", lambda name: name == kernel)
    assert budget.main(["--executed", "--update"]) == 0
    row = json.loads(record.read_text())["kernels"][kernel]["sm_90"]
    assert row["executed_per_element"] == pytest.approx(count(machine, kernel).loop, abs=0.1)
    # A new record of the rest keeps it.
    new = {**budget.load(), "kernels": {kernel: {"sm_90": {**row}}}}
    del new["kernels"][kernel]["sm_90"]["executed_per_element"]
    assert budget.updated(budget.load(), new)["kernels"][kernel]["sm_90"] == row
