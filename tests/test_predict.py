"""What the predictions promise: pipelines that can be computed by hand come out as computed.

Needs a C++ compiler for the simulation, and cuobjdump and a CUDA build for the last test alone.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import re
import sys
from pathlib import Path

import pytest

from vae_fused import _ext

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tools")]

import budget  # noqa: E402
import kernels  # noqa: E402
import predict as command  # noqa: E402
import sass  # noqa: E402
from prediction import MODEL_VERSION, geometry, simulation  # noqa: E402
from prediction.chips import CHIPS, LATENCIES_NS  # noqa: E402
from prediction.model import Prediction, predict  # noqa: E402
from prediction.program import Program, program  # noqa: E402
from prediction.reading import programs  # noqa: E402
from prediction.record import Record, compared, dump, make_record  # noqa: E402
from prediction.simulation import Outcome, Run, simulate  # noqa: E402
from prediction.table import markdown  # noqa: E402

BASELINE = ROOT / "tools" / "prediction" / "baseline-8c2bdcc.json"
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
# A warp waits for each result, as in real code, and eight warps fill every slot. A warp that never
# waits keeps the slot, and makes the others' loads late.
WORK = ["FADD R30, R30, R1", "IADD3 R31, R30, R1, RZ", "NOP"]


def loop(*body: str, registers: int = 64, name: str = NAME) -> Program:
    """A kernel that is all loop: instruction 1 is its first."""
    return planted("NOP", *body, "@P0 BRA 0x10", "EXIT", registers=registers, name=name)


def simulated(program: Program, passes: int, **changes: float) -> Outcome:
    """The loop alone, in one block of two warps unless told otherwise; memory is free and idle."""
    run = Run(2, 1, 1, passes, 100.0, 1e9, 1 << 40, 0)
    alone = dataclasses.replace(program, prologue=[], epilogue=[])
    return simulate(alone, [dataclasses.replace(run, **changes)])[0]


def cycles_of_pass(program: Program, **changes: float) -> float:
    """Of one pass, without what precedes the first and follows the last."""
    few, many = (simulated(program, n, **changes).cycles for n in (50, 150))
    return (many - few) / 100


# --- one part of an SM ---------------------------------------------------------------------------


@needs_compiler
def test_independent_instructions_issue_one_a_cycle() -> None:
    # No pipe is asked for more than two of three cycles.
    program = loop(*LOADS, *(WORK * 200), STORE)
    assert len(program.body) == 604
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
    # Of two loads the later one counts, by up to a fifth of the latency.
    assert once == pytest.approx(2000 * (1 + 0.2 / 3), rel=0.05)
    assert twice == pytest.approx(2 * 2000, rel=0.05)


@needs_compiler
def test_a_barrier_waits_for_the_last_warp() -> None:
    code = ["MUFU.EX2 R30, R30"] * 40
    free = loop(*LOADS, *code, STORE)
    bound = loop(*LOADS, *code, "BAR.SYNC.DEFER_BLOCKING 0x0", STORE)
    assert simulated(bound, 100).issued == simulated(free, 100).issued + 2 * 100
    assert cycles_of_pass(bound) > cycles_of_pass(free) + 20


@needs_compiler
def test_the_same_seed_gives_the_same_digits_and_another_gives_others() -> None:
    program = loop(*LOADS, *USES, STORE)
    runs = [Run(2, 8, 4, 20, 500.0, 8.0, 20 * 1024, seed) for seed in (0, 0, 1)]
    one, again, other = simulate(program, runs)
    assert one == again and one.cycles != other.cycles


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
    assert len(program.body) > 1.5 * slots
    assert found.loop == pytest.approx(slots / len(program.body), rel=0.02)


@needs_compiler
@pytest.mark.parametrize("registers", [64, 255])
def test_more_latency_never_gives_a_higher_share(registers: int) -> None:
    work = ["FADD R30, R30, R1", "IADD3 R31, R1, R1, RZ"] * 50
    found = shares(loop(*LOADS, *USES, *work, STORE, registers=registers), 200, 400, 800, 1600)
    for figures in ([f.share for f in found], [f.loop for f in found]):
        for less, more in itertools.pairwise(figures):
            assert more <= 1.002 * less  # where memory is the bound, both are 1
    assert found[-1].share < 0.8 * found[0].share


@needs_compiler
def test_two_loads_issued_together_beat_two_in_turn() -> None:
    (together,) = shares(loop(*LOADS, *USES, STORE, registers=128), 1000.0)
    in_turn = loop(LOADS[0], USES[0], LOADS[1], USES[1], STORE, registers=128)
    (apart,) = shares(in_turn, 1000.0)
    assert together.loop > 1.6 * apart.loop and together.share > 1.5 * apart.share


@needs_compiler
def test_fewer_resident_threads_have_less_in_flight_and_a_lower_share() -> None:
    many, few = (loop(*LOADS, *USES, STORE, registers=n) for n in (32, 255))
    assert (many.resident_blocks, few.resident_blocks) == (8, 1)
    (of_many,), (of_few,) = shares(many, 700.0), shares(few, 700.0)
    assert of_few.share < 0.5 * of_many.share
    assert of_few.kb_in_flight < 0.5 * of_many.kb_in_flight


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
    assert len(fenced.epilogue) == 4  # the last block is another path
    (a,), (b,) = shares(plain, 700.0), shares(fenced, 700.0)
    assert a.loop == b.loop and b.share < 0.99 * a.share


# --- what is simulated of a kernel ---------------------------------------------------------------


def test_a_step_in_front_of_the_loop_is_not_passed_again() -> None:
    assert loop(*LOADS, *USES, STORE).peeled == 0
    first = [*LOADS, *USES, STORE]
    code = planted(*first, *LOADS, *USES, STORE, "@P0 BRA 0x50", "EXIT")
    assert code.peeled == 1 and len(code.prologue) == 5
    assert (code.elements, code.load_bytes) == (4, 2 * 16 * 32)


def test_the_prologue_makes_the_keys_and_loads_what_the_first_step_needs() -> None:
    code = planted(
        "@P1 BRA 0x20",  # threads that make no key
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
    kinds = [line.split()[3] for line in code.prologue]
    assert kinds.count("3") == 1 and kinds.count("1") == 2  # a shared store, two loads
    assert len(code.prologue) == 6 and code.other_bytes == 0


def test_an_unknown_kernel_has_no_program() -> None:
    usage = {"REG": 32, "SHARED": 0}
    code = sass.parse(["  /*0000*/  LDG.E R1, [R2.64] ;", "  /*0010*/  EXIT ;"])
    assert program("combine<float>", "sm_90", usage, code) is None


@pytest.mark.parametrize(
    ("arch", "instruction", "expected"),
    [
        ("sm_80", "FADD R1, R2, R3", "1 2 4"),  # one FMA pipe
        ("sm_90", "FADD R1, R2, R3", "0 2 4"),
        ("sm_100", "FFMA2 R2, R4, R6, R8", "2 2 4"),
        ("sm_89", "DADD R2, R4, R6", "5 64 16"),
        ("sm_80", "DADD R2, R4, R6", "5 4 16"),
        ("sm_90", "MEMBAR.ALL.CTA", "8 1 10"),
    ],
)
def test_pipes_depend_on_the_architecture(arch: str, instruction: str, expected: str) -> None:
    code = planted("NOP", *LOADS, instruction, *USES, STORE, "@P0 BRA 0x10", "EXIT", arch=arch)
    assert code.body[2].startswith(expected + " ")


def test_the_grid_is_that_of_the_sources() -> None:
    def number(file: str, pattern: str) -> int:
        found = re.search(pattern, (ROOT / "csrc" / file).read_text())
        assert found is not None
        return int(found[1])

    assert number("params.h", r"kTile = (\d+)") == geometry.TILE
    enough = number("cuda/access.cuh", r"define VAE_FUSED_ENOUGH_BLOCKS (\d+)")
    assert enough == geometry.ENOUGH_BLOCKS
    assert geometry.grid(2**24) == geometry.Grid(2048, 8192)
    assert geometry.grid(2**20) == geometry.Grid(512, 2048)
    assert geometry.bytes_of_element("forward<BFloat16, (Access)0>") == 6
    assert geometry.bytes_of_element("backward<double, (Access)1>") == 40


def test_without_a_compiler_the_simulation_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "compiler", lambda: None)
    with pytest.raises(simulation.NoCompilerError, match="C\\+\\+ compiler"):
        simulation._binary.__wrapped__()


# --- records -------------------------------------------------------------------------------------


def baseline() -> Record:
    record: Record = json.loads(BASELINE.read_text())
    return record


def test_the_baseline_has_every_hot_kernel_and_latency_of_this_model() -> None:
    record = baseline()
    assert record["model"] == MODEL_VERSION and record["elements"] == 2**24
    assert record["chips"]["h200"]["ghz"] == 1.755
    hot = {
        f"{kernel}<{dtype}, (Access){access}>"
        for kernel in ("forward", "backward")
        for dtype in ("float", "double", "Half", "BFloat16")
        for access in (0, 1, 2)
    }
    rows = {(row["kernel"], row["latency_ns"]) for row in record["predictions"]}
    assert rows == {(name, ns) for name in hot for ns in LATENCIES_NS}


def test_a_record_is_written_as_it_is_read() -> None:
    assert dump(baseline()) == BASELINE.read_text()


@pytest.mark.parametrize("what", ["share", "loop"])
def test_losing_more_than_two_percent_of_either_share_is_slower(what: str) -> None:
    old = baseline()
    assert compared(old, old)[1] == [] and len(compared(old, old)[0]) == len(old["predictions"])
    new = copy.deepcopy(old)
    new["predictions"][7][what] *= 0.985  # type: ignore[literal-required]
    assert compared(old, new)[1] == []
    new["predictions"][7][what] *= 0.985  # type: ignore[literal-required]
    (line,) = compared(old, new)[1]
    assert new["predictions"][7]["kernel"] in line and "SLOWER" in line


def test_records_of_other_sizes_are_not_compared() -> None:
    assert compared(baseline(), {**baseline(), "elements": 2**20}) == ([], [])


@needs_compiler
def test_the_tables_call_predictions_by_their_name() -> None:
    found = [loop(*LOADS, *USES, STORE), loop(*LOADS, *USES, STORE, name="forward<float, 4>")]
    record = make_record(
        found, {"h200": H200, "b200": CHIPS["b200"]}, [500.0, 2000.0], 2**20, "abc"
    )
    text = markdown(record)
    assert text.startswith("Predictions of the code at abc, not measurements (issue model ")
    assert f"issue model {MODEL_VERSION}" in text and "1,048,576 elements" in text
    row = next(line for line in text.splitlines() if f"`{NAME}`" in line)
    low, high = (f"{r['share']:.2f}" for r in record["predictions"][-1:-3:-1])
    assert row == f"| `{NAME}` | {high} | {low} | {low} to {high} |"
    assert "B200" not in text  # whose machine code is another


@needs_compiler
def test_the_command_compares_with_a_record_and_answers_by_its_status(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "programs", lambda file, kernel: [loop(*LOADS, *USES, STORE)])
    asked = ["x.cubin", "--chip", "h200", "--latency", "700", "--elements", "2^20"]
    assert command.main([*asked, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [row["kernel"] for row in record["predictions"]] == [NAME]
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record))
    assert command.main([*asked, "--compare", str(path)]) == 0
    record["predictions"][0]["share"] *= 1.1
    path.write_text(json.dumps(record))
    assert command.main([*asked, "--compare", str(path)]) == 1
    assert "SLOWER" in capsys.readouterr().out
    path.write_text(json.dumps(record | {"model": MODEL_VERSION + 1}))
    assert command.main([*asked, "--compare", str(path)]) == 2
    assert command.main([*asked[:2], "b200", *asked[3:]]) == 2  # no such machine code


@pytest.mark.slow
@needs_compiler
@pytest.mark.skipif(not _ext.has_cuda, reason="needs a CUDA build")
@pytest.mark.skipif("-O0" in str(_ext.build_info), reason="a DEBUG build has no speed")
@pytest.mark.skipif(kernels.find_cuobjdump() is None, reason="needs cuobjdump")
def test_no_installed_kernel_is_predicted_slower_than_the_baseline() -> None:
    extension = kernels.installed_extension()
    if (kernels.build_info(extension).get("cuda") or "") != budget.load()["nvcc"]:
        pytest.skip("the baseline is of another nvcc")
    found = [p for p in programs(extension) if p.arch == "sm_90"]
    if not found:
        pytest.skip("the extension has no code for sm_90")
    new = make_record(found, {"h200": H200}, [660.0], 2**24, "")
    lines, slower = compared(baseline(), new)
    assert len(lines) == len(baseline()["predictions"]) // len(LATENCIES_NS)
    assert not slower, "\n".join(slower)
