"""Predictions agree with pipelines that can be computed by hand.

The simulation needs a C++ compiler. Tests that only read listings need none.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tools.kernel_budget import sass
from tools.kernel_budget.prediction import model, simulation
from tools.kernel_budget.prediction.model import CHIPS, predict
from tools.kernel_budget.prediction.simulation import Program, Run, program, simulate

NAME = "forward<float, (Access)0>"
H200 = CHIPS["h200"]

needs_compiler = pytest.mark.skipif(
    simulation.compiler() is None, reason="the simulation needs a C++ compiler"
)


def planted(*texts: str, registers: int = 64, arch: str = "sm_90", name: str = NAME) -> Program:
    lines = [f"  /*{16 * n:04x}*/  {text} ;" for n, text in enumerate(texts)]
    found = program(name, arch, {"REG": registers, "SHARED": 1120}, sass.parse(lines))
    assert found is not None
    return found


LOADS = ["LDG.E.128 R8, desc[UR4][R2.64]", "LDG.E.128 R12, desc[UR4][R4.64]"]
USES = ["FADD R20, R8, R8", "FADD R21, R12, R12"]
STORE = "STG.E.128 desc[UR4][R6.64], R20"
# A warp waits for each result, as in real code, and eight warps fill every issue slot. A warp that
# never waits would keep the slot and delay the loads of the others.
WORK = ["FADD R30, R30, R1", "IADD3 R31, R30, R1, RZ", "NOP"]


def loop(*body: str, registers: int = 64, name: str = NAME) -> Program:
    """A kernel that consists of a loop, which begins with instruction 1."""
    return planted("NOP", *body, "@P0 BRA 0x10", "EXIT", registers=registers, name=name)


def cycles_of_pass(program: Program, **changes: float) -> float:
    """Cycles of one pass, without those before the first pass and after the last.

    By default of one block of two warps, with free and idle memory.
    """
    runs = [Run(2, 1, passes, 1e9, 100.0)._replace(**changes) for passes in (50, 150)]
    few, many = simulate(program, runs)
    return (many - few) / 100


# --- one part of an SM ---------------------------------------------------------------------------


@needs_compiler
def test_independent_instructions_issue_one_a_cycle() -> None:
    # No pipe is busy in more than two of three cycles.
    program = loop(*LOADS, *(WORK * 200), STORE)
    assert len(program.code) == 604
    assert cycles_of_pass(program, warps=8) == pytest.approx(8 * 604, rel=0.01)


@needs_compiler
@pytest.mark.parametrize(
    ("instruction", "cycles"),
    [
        ("MUFU.EX2 R30, R1", 8),
        ("IADD3 R30, R1, R1, RZ", 2),
        ("IMAD.WIDE.U32 R30, R1, R1, RZ", 4),
        ("FADD R30, R1, R1", 1),  # two pipes of two cycles
        ("DADD R30, R2, R2", 2),
        ("SHFL.BFLY PT, R30, R1, 0x1, 0x1f", 4),
    ],
)
def test_a_pipe_bounds_what_goes_through_it(instruction: str, cycles: int) -> None:
    few, many = (loop(*LOADS, *USES, *[instruction] * n, STORE) for n in (100, 200))
    more = cycles_of_pass(many, warps=4) - cycles_of_pass(few, warps=4)
    assert more == pytest.approx(4 * 100 * cycles, rel=0.03)


@needs_compiler
def test_a_dependent_chain_takes_its_latencies() -> None:
    short, long = (loop(*LOADS, *["FADD R30, R30, R1"] * n, STORE) for n in (100, 200))
    more = cycles_of_pass(long, warps=1) - cycles_of_pass(short, warps=1)
    assert more == pytest.approx(100 * 4, rel=0.01)


@needs_compiler
def test_a_lone_warp_takes_one_latency_for_each_round_of_loads() -> None:
    together = loop(*LOADS, *USES, STORE)
    in_turn = loop(LOADS[0], USES[0], LOADS[1], USES[1], STORE)
    once, twice = (cycles_of_pass(p, warps=1, latency=2000.0) for p in (together, in_turn))
    # A warp waits for the later of its two loads, which is up to a fifth of the latency late.
    assert once == pytest.approx(2000 * (1 + 0.2 / 3), rel=0.05)
    assert twice == pytest.approx(2 * 2000, rel=0.05)


@needs_compiler
def test_the_same_seed_gives_the_same_digits_and_another_gives_others() -> None:
    program = loop(*LOADS, *USES, STORE)
    runs = [Run(2, 4, 20, 8.0, 500.0, seed) for seed in (0, 0, 1)]
    one, again, other = simulate(program, runs)
    assert one == again and one != other


# --- a kernel on a chip --------------------------------------------------------------------------


def shares(program: Program, *latencies: float) -> list[float]:
    return [predict(program, H200, latency) for latency in latencies]


@needs_compiler
def test_a_loop_that_waits_for_nothing_but_memory_is_a_copy() -> None:
    (found,) = shares(loop(*LOADS, *USES, STORE, registers=32), 500.0)
    assert found == pytest.approx(1, abs=0.01)


@needs_compiler
def test_a_loop_that_is_bound_by_issue_has_the_share_that_the_slots_allow() -> None:
    program = loop(*LOADS, *USES, *(WORK * 200), STORE)
    (found,) = shares(program, 500.0)
    bytes_of_pass = 32 * 4 * 12
    slots = bytes_of_pass / (H200.copy_bytes_a_cycle / H200.sms / 4)
    assert len(program.code) > 1.5 * slots
    assert found == pytest.approx(slots / len(program.code), rel=0.02)


@needs_compiler
@pytest.mark.parametrize("registers", [64, 255])
def test_more_latency_never_gives_a_higher_share(registers: int) -> None:
    work = ["FADD R30, R30, R1", "IADD3 R31, R1, R1, RZ"] * 50
    found = shares(loop(*LOADS, *USES, *work, STORE, registers=registers), 200, 400, 800, 1600)
    for less, more in itertools.pairwise(found):
        assert more <= 1.002 * less  # both are 1 if memory is the bound
    assert found[-1] < 0.8 * found[0]


@needs_compiler
def test_two_loads_issued_together_beat_two_in_turn() -> None:
    (together,) = shares(loop(*LOADS, *USES, STORE, registers=128), 1000.0)
    in_turn = loop(LOADS[0], USES[0], LOADS[1], USES[1], STORE, registers=128)
    (apart,) = shares(in_turn, 1000.0)
    assert together > 1.6 * apart


@needs_compiler
def test_fewer_resident_threads_have_a_lower_share() -> None:
    many, few = (loop(*LOADS, *USES, STORE, registers=n) for n in (32, 255))
    assert (many.resident_blocks, few.resident_blocks) == (8, 1)
    (of_many,), (of_few,) = shares(many, 700.0), shares(few, 700.0)
    assert of_few < 0.5 * of_many


# --- the simulated parts of a kernel -------------------------------------------------------------


def test_an_unknown_kernel_has_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = sass.parse(["  /*0000*/  LDG.E R1, [R2.64] ;", "  /*0010*/  EXIT ;"])
    texts = ["NOP", *LOADS, *USES, STORE, "@P0 BRA 0x10", "EXIT"]
    known = sass.parse([f"  /*{16 * n:04x}*/  {text} ;" for n, text in enumerate(texts)])
    usage = {"REG": 32, "SHARED": 0}
    kernels = [("combine<float>", usage, unknown), (NAME, usage, known)]
    kernels.append(("forward<float, (Access)0, OptionsAtSample<float> >", usage, known))
    monkeypatch.setattr(simulation, "cubins", lambda file: [("sm_80", file), ("sm_90a", file)])
    monkeypatch.setattr(simulation, "kernels_of", lambda cubin: kernels)
    found = list(simulation.programs(Path("x.cubin"), "", ["sm_90"]))
    assert [(code.name, code.arch) for code in found] == [(NAME, "sm_90a")]
    assert list(simulation.programs(Path("x.cubin"), "backward", ["sm_90"])) == []


@pytest.mark.parametrize("instruction", ["BAR.SYNC.DEFER_BLOCKING 0x0", "MEMBAR.SC.GPU"])
def test_a_loop_that_synchronizes_has_no_program(instruction: str) -> None:
    texts = ["NOP", *LOADS, *USES, instruction, STORE, "@P0 BRA 0x10", "EXIT"]
    code = sass.parse([f"  /*{16 * n:04x}*/  {text} ;" for n, text in enumerate(texts)])
    assert program(NAME, "sm_90", {"REG": 32, "SHARED": 0}, code) is None


@pytest.mark.parametrize(
    ("arch", "instruction", "expected"),
    [
        ("sm_80", "FADD R1, R2, R3", [1, 2, 4]),  # one FMA pipe
        ("sm_90", "FADD R1, R2, R3", [0, 2, 4]),
        ("sm_100", "FFMA2 R2, R4, R6, R8", [2, 2, 4]),
        ("sm_89", "DADD R2, R4, R6", [5, 64, 16]),
        ("sm_80", "DADD R2, R4, R6", [5, 4, 16]),
        ("sm_90", "BSSY B0, 0x10", [8, 1, 1]),
    ],
)
def test_pipes_depend_on_the_architecture(arch: str, instruction: str, expected: list[int]) -> None:
    code = planted("NOP", *LOADS, instruction, *USES, STORE, "@P0 BRA 0x10", "EXIT", arch=arch)
    assert code.code[2][:3] == expected


def test_an_element_has_the_bytes_of_its_tensors() -> None:
    assert model.bytes_of_element("forward<BFloat16, (Access)0>") == 6
    assert model.bytes_of_element("backward<double, (Access)1>") == 40


def test_without_a_compiler_the_simulation_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "compiler", lambda: None)
    with pytest.raises(RuntimeError, match="C\\+\\+ compiler"):
        simulation._library.__wrapped__()
