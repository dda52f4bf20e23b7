"""Bytes in flight and occupancy on small planted loops."""

from __future__ import annotations

import pytest

from tools.kernel_budget import kernels, sass
from tools.kernel_budget.in_flight import bytes_in_flight
from tools.kernel_budget.occupancy import resident_blocks, resident_threads

LOAD_A, LOAD_B = "LDG.E.128 R8, desc[UR4][R2.64]", "LDG.E.128 R12, desc[UR4][R4.64]"
USE_A, USE_B = "FADD R20, R8, R9", "FADD R21, R15, R15"
STORE = "STG.E.128 desc[UR4][R6.64], R20"


def listing(*texts: str) -> list[sass.Instruction]:
    return sass.parse([f"  /*{16 * n:04x}*/  {text} ;" for n, text in enumerate(texts)])


def in_loop(*texts: str) -> float:
    return bytes_in_flight(listing(*texts), in_loop=True)


def test_loads_that_are_issued_together_count_together() -> None:
    assert in_loop(LOAD_A, LOAD_B, USE_A, USE_B) == 32


def test_a_load_behind_a_use_has_to_wait_for_it() -> None:
    assert in_loop(LOAD_A, USE_A, LOAD_B, USE_B) == 16


def test_several_rounds_count_by_their_mean() -> None:
    third = "LDG.E.128 R16, desc[UR4][R6.64]"
    assert in_loop(LOAD_A, LOAD_B, USE_A, USE_B, third, "FADD R21, R19, R1") == 24


def test_the_first_use_counts_whichever_register_of_the_load_it_is() -> None:
    assert in_loop(LOAD_A, "FADD R20, R11, R1", LOAD_B, USE_B) == 16
    assert in_loop(LOAD_A, "FADD R20, R7, R1", LOAD_B, "FADD R22, R16, R1", USE_A, USE_B) == 32


def test_a_store_never_counts_but_uses_what_it_stores() -> None:
    assert in_loop(LOAD_A, STORE, STORE, LOAD_B, USE_A, USE_B) == 32
    assert in_loop(LOAD_A, "STG.E.128 desc[UR4][R6.64], R8", LOAD_B, USE_B) == 16


def test_a_guard_and_an_address_are_uses() -> None:
    assert in_loop(LOAD_A, "LDG.E.128 R12, desc[UR4][R8.64]", USE_B) == 16
    assert in_loop(LOAD_A, "ISETP.NE.AND P0, PT, R8, RZ, PT", LOAD_B, USE_B) == 16


def test_what_the_next_pass_uses_is_in_flight_beside_what_this_one_loads() -> None:
    # The first load precedes the loop. Each pass then loads before it uses the previous load.
    moves = ["MOV R8, R16", "MOV R9, R17"]
    assert in_loop("LDG.E.64 R16, desc[UR4][R2.64]", USE_A, *moves) == 8
    # With two sets of registers, each load is used one pass later, after the next load.
    ahead = ["LDG.E.128 R8, desc[UR4][R2.64]", "FADD R20, R12, R1"]
    behind = ["LDG.E.128 R12, desc[UR4][R2.64]", "FADD R20, R8, R1"]
    assert in_loop(*ahead, *behind) == 32


def test_a_loop_that_is_rotated_counts_as_it_runs() -> None:
    assert in_loop(USE_A, USE_B, LOAD_A, LOAD_B) == 32
    assert in_loop(USE_B, LOAD_A, USE_A, LOAD_B) == 16


def test_a_register_that_is_overwritten_is_no_longer_waited_for() -> None:
    code = [LOAD_A, "MOV R8, R1", "FADD R20, R8, R1", LOAD_B, "FADD R1, R9, R1", USE_B]
    assert in_loop(*code) == 32


def test_narrow_loads_count_by_their_width() -> None:
    narrow = ["LDG.E.U16 R8, desc[UR4][R2.64]", "LDG.E R9, desc[UR4][R2.64]"]
    assert in_loop(*narrow, "FADD R20, R8, R9") == 6


def test_code_without_a_loop_is_passed_once() -> None:
    code = listing(LOAD_A, USE_A, LOAD_B, LOAD_A, USE_B, "EXIT")
    assert bytes_in_flight(code, in_loop=False) == 24
    assert bytes_in_flight(listing(LOAD_A, "EXIT"), in_loop=False) == 0


@pytest.mark.parametrize(
    ("arch", "registers", "shared", "blocks"),
    [
        ("sm_90", 32, 1024, 8),  # 2048 threads
        ("sm_90", 64, 1120, 4),
        ("sm_90", 65, 1120, 3),  # registers are rounded up to a multiple of 8: 72
        ("sm_90", 80, 1120, 3),
        ("sm_90", 81, 1120, 2),
        ("sm_90", 128, 1120, 2),
        ("sm_90", 255, 1120, 1),
        ("sm_90", 32, 60 << 10, 3),  # 228 KB of shared memory
        ("sm_80", 32, 60 << 10, 2),  # 164 KB, and the driver reserves one more KB per block
        ("sm_89", 32, 96, 6),  # 1536 threads
        ("sm_75", 32, 96, 4),  # 1024 threads
        ("sm_120", 40, 1120, 6),
        ("sm_100a", 64, 1120, 4),
    ],
)
def test_registers_shared_memory_and_threads_bound_what_an_sm_holds(
    arch: str, registers: int, shared: int, blocks: int
) -> None:
    assert resident_blocks(arch, registers, shared) == blocks
    assert resident_threads(arch, registers, shared) == 256 * blocks


def test_each_part_of_an_sm_holds_whole_warps() -> None:
    # A warp uses 96 registers for each of 32 lanes. The 16384 registers of one of an SM's four
    # parts are enough for 5.33 warps, so an SM holds 20.
    assert resident_blocks("sm_90", 96, 0, threads=32) == 20


def test_a_row_of_the_budget_has_bytes_a_thread_and_kilobytes_an_sm() -> None:
    code = listing(LOAD_A, LOAD_B, USE_A, USE_B, STORE, "@P0 BRA 0x0", "EXIT")
    usage = {"REG": 64, "STACK": 0, "SHARED": 1120}
    row = kernels.row("forward<float, (Access)0>", "sm_90", usage, code)
    assert (row["in_flight"], row["in_flight_kb"]) == (32, 32)
    usage["REG"] = 80
    assert kernels.row("forward<float, (Access)0>", "sm_90", usage, code)["in_flight_kb"] == 24
    general = kernels.row(
        "forward<float, (Access)1, OptionsOnDevice<float> >", "sm_90", usage, code
    )
    assert general["in_flight"] is None and general["in_flight_kb"] is None
