"""Interprets the sm_90 machine code of every kernel and compares its values with an oracle.

The latent kernels are compared with the CPU kernels. The likelihood kernels are compared with the
formulas, as in test_nll.py.

The other tests in this folder run the C++ code on the emulated device. These tests run the machine
code that nvcc and ptxas generate from the same sources, and the same host code launches it. Blocks
run in random order, and warps take turns. Each launch has different MUFU errors, within the
documented bounds.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from . import machine_code, machine_nll_cases, test_elbo, test_nll
from .calls import forward
from .machine_cases import CASES, Case, compare, results
from .machine_code import LAUNCHING, MachineCode
from .machine_nll_cases import ELBO_CASES, NLL_CASES, ElboCase, NllCase

pytestmark = pytest.mark.skipif(
    machine_code.missing() is not None, reason=str(machine_code.missing())
)


@pytest.fixture
def outcome(machine: MachineCode) -> Iterator[Callable[[Case], dict[str, np.ndarray | None]]]:
    machine.emulator.configure()
    with machine.installed():
        yield lambda case: executed(machine, case)


@cache
def executed(machine: MachineCode, case: Case) -> dict[str, np.ndarray | None]:
    """Runs a case once for all tests. Its seed depends on the case, not on the order of tests."""
    machine.reseed(CASES.index(case))
    return results(machine, "cuda", case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_machine_code_computes_what_the_cpu_does(
    machine: MachineCode, outcome: Callable[[Case], Any], case: Case
) -> None:
    compare(machine.native, case, outcome(case), results(machine.native, "cpu", case))


@cache
def check_likelihood(machine: MachineCode, case: NllCase) -> None:
    """Checks a case. If the check succeeds, it runs only once for all tests."""
    machine.reseed(NLL_CASES.index(case))
    with machine.installed():
        machine_nll_cases.check(machine, case)


@pytest.mark.parametrize("case", NLL_CASES, ids=str)
def test_the_machine_code_of_likelihoods_computes_the_formulas(
    machine: MachineCode, case: NllCase
) -> None:
    check_likelihood(machine, case)


@pytest.mark.parametrize("case", ELBO_CASES, ids=str)
def test_the_machine_code_computes_loss_and_gradients_in_one_pass(
    machine: MachineCode, case: ElboCase
) -> None:
    check_elbo(machine, case)


@cache
def check_elbo(machine: MachineCode, case: ElboCase) -> None:
    machine.reseed(ELBO_CASES.index(case))
    with machine.installed():
        case.check(machine)


def without_tickets(native: ModuleType, dtype: str, report: Any) -> None:
    """Uses up all ticket slots of its own process, so that second launches combine the sums."""
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
            Case("stats", dtype, ("clamp", "one column", "dense", "none")),
        )
        last = {"stream": streams[-1]}
        with machine.installed():
            for case in cases:
                with_stream = WithStream(machine, last)
                compare(
                    native, case, results(with_stream, "cuda", case), results(native, "cpu", case)
                )
            with_stream = WithStream(machine, last)
            test_nll.check(with_stream, test_nll.make("nb of softmax", (2, 4100), (1,), dtype))
            for shape in ((3, 700), (3, 7)):  # several units, and a single one
                one_pass = test_nll.make("gaussian", shape, (0, 1), dtype)
                test_elbo.check_one_pass(with_stream, one_pass, is_exact=False)
        report.send([name for name, _ in machine.launched])
    except BaseException as error:
        report.send(repr(error))


class WithStream:
    """A module that calls kernels on a stream."""

    def __init__(self, machine: MachineCode, options: dict[str, Any]) -> None:
        self.machine, self.options = machine, options

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.machine, name)
        if name not in LAUNCHING or name == "backward":
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
    combining = ("combine", "combine_multi", "end_rows", "combine_softmax", "finish_stats")
    assert {f"{name}<{total}>" for name in combining} <= set(names)


def test_every_kernel_was_executed(machine: MachineCode, outcome: Callable[[Case], Any]) -> None:
    for case in CASES:
        outcome(case)
    for likelihood in NLL_CASES:
        check_likelihood(machine, likelihood)
    for elbo in ELBO_CASES:
        check_elbo(machine, elbo)
    names = {name for name, launched in machine.launched if launched.issued}
    for dtype in ("float32", "float64"):
        names |= set(launched_without_tickets(machine.native, dtype))
    assert sorted(set(machine.device.names) - names) == [] and len(names) > 90
