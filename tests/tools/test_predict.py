"""Predictions agree with pipelines that can be computed by hand.

The simulation needs a C++ compiler. Tests that only read listings need none.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from tools.kernel_budget import kernels, sass
from tools.kernel_budget.hot_path import hot_path
from tools.kernel_budget.prediction import model, simulation
from tools.kernel_budget.prediction import program as reading
from tools.kernel_budget.prediction.model import CHIPS, Prediction, predict
from tools.kernel_budget.prediction.paths import is_of_step, way
from tools.kernel_budget.prediction.program import Program, program
from tools.kernel_budget.prediction.simulation import Outcome, Run, simulate

ROOT = Path(__file__).resolve().parents[2]
NAME = "forward<float, (Access)0>"
H200 = CHIPS["h200"]

needs_compiler = pytest.mark.skipif(
    simulation.compiler() is None, reason="the simulation needs a C++ compiler"
)


def planted(*texts: str, registers: int = 64, arch: str = "sm_90", name: str = NAME) -> Program:
    lines = [f"  /*{16 * n:04x}*/  {text} ;" for n, text in enumerate(texts)]
    usage, code = {"REG": registers, "SHARED": 1120}, sass.parse(lines)
    served = kernels.elements(name, hot_path(code))
    assert served is not None
    return program(name, arch, usage, code, served)


LOADS = ["LDG.E.128 R8, desc[UR4][R2.64]", "LDG.E.128 R12, desc[UR4][R4.64]"]
USES = ["FADD R20, R8, R8", "FADD R21, R12, R12"]
STORE = "STG.E.128 desc[UR4][R6.64], R20"
# A warp waits for each result, as in real code, and eight warps fill every issue slot. A warp that
# never waits would keep the slot and delay the loads of the others.
WORK = ["FADD R30, R30, R1", "IADD3 R31, R30, R1, RZ", "NOP"]


def loop(*body: str, registers: int = 64, name: str = NAME) -> Program:
    """A kernel that consists of a loop, which begins with instruction 1."""
    return planted("NOP", *body, "@P0 BRA 0x10", "EXIT", registers=registers, name=name)


def simulated(program: Program, passes: int, **changes: float) -> Outcome:
    """The loop alone, by default in one block of two warps, with free and idle memory."""
    run = Run(2, 1, 1, 1, passes, 1e9, 1 << 40, 100.0)
    alone = program._replace(sections=([], program.sections[1], [], []))
    return simulate(alone, [run._replace(**changes)])[0]


def cycles_of_pass(program: Program, **changes: float) -> float:
    """Cycles of one pass, without those before the first pass and after the last."""
    few, many = (simulated(program, n, **changes).cycles for n in (50, 150))
    return (many - few) / 100


# --- one part of an SM ---------------------------------------------------------------------------


@needs_compiler
def test_independent_instructions_issue_one_a_cycle() -> None:
    # No pipe is busy in more than two of three cycles.
    program = loop(*LOADS, *(WORK * 200), STORE)
    assert len(program.sections[1]) == 604
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
    few, many = (loop(*LOADS, *[instruction] * n, STORE) for n in (100, 200))
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
def test_a_barrier_waits_for_the_last_warp() -> None:
    free = loop(*LOADS, *USES, STORE)
    bound = loop(*LOADS, *USES, "BAR.SYNC.DEFER_BLOCKING 0x0", STORE)
    assert simulated(bound, 100).issued == simulated(free, 100).issued + 2 * 100
    # A load returns within a fifth of the latency around its middle. The last of n is on average
    # (n - 1) / (n + 1) of that fifth late. Each warp waits for its own two, the block for all 16.
    once, all_ = (cycles_of_pass(p, warps=8, latency=4000.0) for p in (free, bound))
    assert once == pytest.approx(4000 * (1 + 0.2 / 3), rel=0.05)
    assert all_ == pytest.approx(4000 * (1 + 0.2 * 15 / 17), rel=0.05)


@needs_compiler
def test_the_same_seed_gives_the_same_digits_and_another_gives_others() -> None:
    program = loop(*LOADS, *USES, STORE)
    runs = [Run(2, 8, 4, 1, 20, 8.0, 20 * 1024, 500.0, seed) for seed in (0, 0, 1)]
    one, again, other = simulate(program, runs)
    assert one == again and one.cycles != other.cycles


TILES = [
    "NOP",
    "IADD3 R40, R40, R1, RZ",  # the loop over tiles begins
    *LOADS,  # the hot loop
    *USES,
    STORE,
    "@P0 BRA 0x20",
    "@P2 BRA 0xa0",
    "STS.64 [R5], R20",
    "IADD3 R41, R41, R1, RZ",
    "@P1 BRA 0x10",
    "EXIT",
]


def test_what_stands_between_two_tiles_leads_back_to_the_hot_loop() -> None:
    lines = [f"  /*{16 * n:04x}*/  {text} ;" for n, text in enumerate(TILES)]
    path = way(sass.parse(lines))
    assert [i.opcode for i in path.between] == ["BRA", "STS.64", "IADD3", "BRA", "IADD3"]
    assert [i.opcode for i in path.prologue] == ["NOP", "IADD3"]
    assert path.epilogue[-1].opcode == "EXIT"
    assert not way(sass.parse([lines[0], *lines[2:8], lines[-1]])).between


@needs_compiler
def test_a_block_of_several_tiles_executes_what_stands_between_them() -> None:
    program = planted(*TILES)
    run = Run(1, 1, 1, 1, 6, 1e9, 1 << 40, 100.0)
    runs = [run._replace(tiles=t, passes=6 // t) for t in (1, 2, 3, 6)]
    issued = [outcome.issued for outcome in simulate(program, runs)]
    between = len(program.sections[2])
    assert between > 0
    assert [n - issued[0] for n in issued] == [0, between, 2 * between, 5 * between]


# --- a kernel on a chip --------------------------------------------------------------------------


def shares(program: Program, *latencies: float, elements: int = 2**24) -> list[Prediction]:
    return predict(program, H200, latencies, elements)


@needs_compiler
def test_a_loop_that_waits_for_nothing_but_memory_is_a_copy() -> None:
    (found,) = shares(loop(*LOADS, *USES, STORE, registers=32), 500.0)
    assert found.loop == pytest.approx(1, abs=0.01)
    assert found.share == pytest.approx(1, abs=0.04)
    (long,) = shares(loop(*LOADS, *USES, STORE, registers=32), 500.0, elements=2**26)
    assert long.share == pytest.approx(1, abs=0.02)


@needs_compiler
def test_a_loop_that_is_bound_by_issue_has_the_share_that_the_slots_allow() -> None:
    program = loop(*LOADS, *USES, *(WORK * 200), STORE)
    (found,) = shares(program, 500.0)
    bytes_of_pass = 32 * 4 * 12
    slots = bytes_of_pass / (H200.copy_bytes_a_cycle / H200.sms / 4)
    assert len(program.sections[1]) > 1.5 * slots
    assert found.loop == pytest.approx(slots / len(program.sections[1]), rel=0.02)


@needs_compiler
@pytest.mark.parametrize("registers", [64, 255])
def test_more_latency_never_gives_a_higher_share(registers: int) -> None:
    work = ["FADD R30, R30, R1", "IADD3 R31, R1, R1, RZ"] * 50
    found = shares(loop(*LOADS, *USES, *work, STORE, registers=registers), 200, 400, 800, 1600)
    for figures in ([f.share for f in found], [f.loop for f in found]):
        for less, more in itertools.pairwise(figures):
            assert more <= 1.002 * less  # both are 1 if memory is the bound
    assert found[-1].share < 0.8 * found[0].share


@needs_compiler
def test_two_loads_issued_together_beat_two_in_turn() -> None:
    (together,) = shares(loop(*LOADS, *USES, STORE, registers=128), 1000.0)
    in_turn = loop(LOADS[0], USES[0], LOADS[1], USES[1], STORE, registers=128)
    (apart,) = shares(in_turn, 1000.0)
    assert together.loop > 1.6 * apart.loop and together.share > 1.5 * apart.share


@needs_compiler
def test_fewer_resident_threads_have_a_lower_share() -> None:
    many, few = (loop(*LOADS, *USES, STORE, registers=n) for n in (32, 255))
    assert (many.resident_blocks, few.resident_blocks) == (8, 1)
    (of_many,), (of_few,) = shares(many, 700.0), shares(few, 700.0)
    assert of_few.share < 0.5 * of_many.share


TICKET = [
    "MEMBAR.SC.GPU",
    "ATOMG.E.INC.STRONG.GPU PT, R30, desc[UR4][R2.64], R5",
    "ISETP.NE.AND P1, PT, R30, R5, PT",
    "@P1 EXIT",
    "EXIT",
]


@needs_compiler
def test_the_end_of_a_block_costs_the_launch_but_not_the_loop() -> None:
    body = ["NOP", *LOADS, *USES, STORE, "@P0 BRA 0x10"]
    plain, fenced = planted(*body, "EXIT"), planted(*body, *TICKET)
    assert len(fenced.sections[3]) == 4  # the last block takes another path
    (a,), (b,) = shares(plain, 700.0), shares(fenced, 700.0)
    assert a.loop == b.loop and b.share < 0.99 * a.share


# --- the simulated parts of a kernel -------------------------------------------------------------


def test_a_step_in_front_of_the_loop_is_not_passed_again() -> None:
    assert loop(*LOADS, *USES, STORE).peeled == 0
    first = [*LOADS, *USES, STORE]
    code = planted(*first, *LOADS, *USES, STORE, "@P0 BRA 0x50", "EXIT")
    assert code.peeled == 1 and len(code.sections[0]) == 5
    assert (code.elements, code.load_bytes) == (4, 2 * 16 * 32)


def test_a_launch_has_the_passes_that_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Run] = []

    def simulate(program: Program, runs: Sequence[Run]) -> list[Outcome]:
        seen.extend(runs if program.sections[3] else [])
        return [Outcome(float(run.passes), 1) for run in runs]

    monkeypatch.setattr(model, "simulate", simulate)
    first = [*LOADS, *USES, STORE]
    for code, passes in (
        (loop(*first), 8),  # 8192 elements per block, over 256 threads with 4 elements each
        (planted(*first, *first, "@P0 BRA 0x50", "EXIT"), 7),
    ):
        seen.clear()
        shares(code, 660.0)
        assert {run.passes for run in seen} == {passes}
        assert {(r.blocks, r.resident, r.load_bytes) for r in seen} == {(16, 4, 8 * 1024)}
        assert seen[0].latency == pytest.approx(660 * 1.755)
        # 2048 blocks share the bandwidth. The parts of an SM share the bandwidth of its 16 blocks.
        assert seen[0].bandwidth == pytest.approx(4.3e12 / 1.755e9 * 16 / 2048 / 4)


def test_the_prologue_makes_the_keys_and_loads_what_the_first_step_needs() -> None:
    code = planted(
        "@P1 BRA 0x20",  # threads without a key
        "STS [R1], R2",
        "@P2 BRA 0x50",  # nothing to load
        *LOADS,
        "@P3 LDG.E.64 R40, desc[UR4][R2.64]",  # an optional key: off
        *USES,
        STORE,
        *LOADS,
        "@P0 BRA 0x60",
        "EXIT",
    )
    kinds = [line[3] for line in code.sections[0]]
    assert kinds.count(3) == 1 and kinds.count(1) == 2  # a shared store, two loads
    assert len(code.sections[0]) == 6 and code.other_bytes == 0


def test_an_unknown_kernel_has_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = sass.parse(["  /*0000*/  LDG.E R1, [R2.64] ;", "  /*0010*/  EXIT ;"])
    texts = ["NOP", *LOADS, *USES, STORE, "@P0 BRA 0x10", "EXIT"]
    known = sass.parse([f"  /*{16 * n:04x}*/  {text} ;" for n, text in enumerate(texts)])
    usage = {"REG": 32, "SHARED": 0}
    kernels = [("combine<float>", usage, unknown), (NAME, usage, known)]
    kernels.append(("forward<float, (Access)0, OptionsAtSample<float> >", usage, known))
    monkeypatch.setattr(reading, "cubins", lambda file: [("sm_80", file), ("sm_90a", file)])
    monkeypatch.setattr(reading, "kernels_of", lambda cubin: kernels)
    found = list(reading.programs(Path("x.cubin"), "", ["sm_90"]))
    assert [(code.name, code.arch) for code in found] == [(NAME, "sm_90a")]
    assert list(reading.programs(Path("x.cubin"), "backward", ["sm_90"])) == []


@pytest.mark.parametrize(
    ("arch", "instruction", "expected"),
    [
        ("sm_80", "FADD R1, R2, R3", [1, 2, 4]),  # one FMA pipe
        ("sm_90", "FADD R1, R2, R3", [0, 2, 4]),
        ("sm_100", "FFMA2 R2, R4, R6, R8", [2, 2, 4]),
        ("sm_89", "DADD R2, R4, R6", [5, 64, 16]),
        ("sm_80", "DADD R2, R4, R6", [5, 4, 16]),
        ("sm_90", "MEMBAR.ALL.CTA", [8, 1, 10]),
    ],
)
def test_pipes_depend_on_the_architecture(arch: str, instruction: str, expected: list[int]) -> None:
    code = planted("NOP", *LOADS, instruction, *USES, STORE, "@P0 BRA 0x10", "EXIT", arch=arch)
    assert code.sections[1][2][:3] == expected


def test_the_grid_is_that_of_the_sources() -> None:
    def number(file: str, pattern: str) -> int:
        found = re.search(pattern, (ROOT / "csrc" / file).read_text())
        assert found is not None
        return int(found[1])

    assert number("iteration/space.h", r"kTile = (\d+)") == model.TILE
    enough = number("cuda/select.cuh", r"define VAE_FUSED_ENOUGH_BLOCKS (\d+)")
    assert enough == model.ENOUGH_BLOCKS
    most = number("cuda/reduce.cuh", r"kTilesOfBlock = (\d+)")
    assert most == model.TILES_OF_BLOCK
    assert model.grid(2**24, has_loop=False) == (2048, 1, 8192)
    assert model.grid(2**24, has_loop=True) == (1024, 2, 8192)
    assert model.grid(2**20, has_loop=True) == (512, 1, 2048)
    assert model.bytes_of_element("forward<BFloat16, (Access)0>") == 6
    assert model.bytes_of_element("backward<double, (Access)1>") == 40


def test_without_a_compiler_the_simulation_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "compiler", lambda: None)
    with pytest.raises(RuntimeError, match="C\\+\\+ compiler"):
        simulation._library.__wrapped__()


def test_the_way_to_and_from_the_hot_loop_passes_no_other() -> None:
    code = planted(
        "NOP",  # 000: the tiles of a block begin here
        "@P1 BRA 0x050",
        "FADD R30, R30, R30",  # 020: the loop of other steps, which stores to shared memory
        "STS [R1], R2",
        "@P2 BRA 0x020",
        "NOP",  # 050
        *LOADS,  # 060: the hot loop
        *(["FADD R31, R31, R31"] * 4),
        STORE,
        "@P0 BRA 0x060",
        "@P3 BRA 0x000",  # 0e0: another tile
        "@P4 EXIT",  # the call has no sum
        "FADD R32, R32, R32",
        "@P5 BRA 0x130",  # threads without the ticket
        "ATOMG.E.INC.STRONG.GPU PT, R40, desc[UR4][R2.64], R5",  # 120
        "NOP",  # 130
        "@P6 EXIT",  # this block is not the last
        "FADD R33, R33, R33",
        "EXIT",
    )
    assert (len(code.sections[0]), len(code.sections[1]), len(code.sections[3])) == (3, 8, 7)
    assert code.sections[3][-3][3] == 6  # the atomic, then a NOP and the exit


@pytest.mark.parametrize(
    ("text", "load", "store", "expected"),
    [
        ("LDG.E.128 R8, desc[UR4][R2.64]", 128, 128, True),
        ("@!P0 LDG.E.128 R8, desc[UR4][R2.64]", 128, 128, True),  # the first step's loads
        ("LDG.E.64 R8, desc[UR4][R2.64]", 128, 128, False),
        ("LDG.E.64 R8, desc[UR4][R2.64]", 64, 64, True),
        ("@P0 LDG.E.64 R8, desc[UR4][R2.64]", 64, 64, False),  # the key, if it is a tensor
        ("STG.E.128 desc[UR4][R2.64], R8", 32, 128, True),
        ("STG.E desc[UR4][R2.64], R8", 32, 128, False),
        ("STS.128 [R2], R8", 128, 128, False),
    ],
)
def test_accesses_in_front_of_the_loop_belong_to_a_step_by_their_width(
    text: str, load: int, store: int, expected: bool
) -> None:
    (instruction,) = sass.parse([f"  /*0000*/  {text} ;"])
    assert is_of_step(instruction, load, store) == expected
