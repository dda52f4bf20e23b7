"""In small planted SASS listings, the budget's hot path follows the GPU's execution."""

from __future__ import annotations

import pytest

from tools.kernel_budget import sass
from tools.kernel_budget.hot_path import hot_path


def planted(text: str) -> list[sass.Instruction]:
    """Parses instructions in cuobjdump's format: an address, the text, and the encoding."""
    lines = []
    address = 0
    for line in map(str.strip, text.strip().splitlines()):
        if line.endswith(":"):
            lines.append(line)
        else:
            lines.append(f"        /*{address:04x}*/          {line} ;     /* 0x000fe200 */")
            address += 16
    return sass.parse(lines)


def path(text: str) -> list[str]:
    return [i.opcode for i in hot_path(planted(text)).instructions]


def test_a_loop_is_its_own_instructions() -> None:
    found = hot_path(planted("MOV R1, R2\n.L_1:\nFFMA R1, R1, R1, R1\n@P0 BRA `(.L_1)\nEXIT"))
    assert found.in_loop and [i.opcode for i in found.instructions] == ["FFMA", "BRA"]


def test_targets_may_be_addresses() -> None:
    assert path("MOV R1, R2\nFFMA R1, R1, R1, R1\n@P0 BRA 0x10\nEXIT") == ["FFMA", "BRA"]


def test_what_a_call_may_ask_for_is_on_the_path() -> None:
    assert path("""
        .L_loop:
        LDG.E.128 R4, [R2]
        @!P0 BRA `(.L_skipped)
        FFMA R4, R4, R4, R4
        FADD R4, R4, R4
        .L_skipped:
        @!P1 BRA `(.L_not_stored)
        STG.E.128 [R2], R4
        .L_not_stored:
        @P2 BRA `(.L_loop)
        EXIT
    """) == ["LDG.E.128", "BRA", "FFMA", "FADD", "BRA", "STG.E.128", "BRA"]


def test_what_only_multiplies_is_an_option_and_is_left_out() -> None:
    listing = ".L_1:\nFADD R1, R1, R1\n@P0 BRA `(.L_2)\nFMUL R2, R2, R2\n.L_2:\n"
    assert path(listing + "@P1 BRA `(.L_1)\nEXIT") == ["FADD", "BRA", "BRA"]


def test_whole_vectors_are_the_shorter_way() -> None:
    assert path("""
        .L_loop:
        FFMA R4, R4, R4, R4
        @P0 BRA `(.L_whole)
        @P1 STG.E [R2], R4
        @P2 STG.E [R2+0x4], R5
        @P3 STG.E [R2+0x8], R6
        BRA `(.L_stored)
        .L_whole:
        STG.E.128 [R2], R4
        .L_stored:
        @P4 BRA `(.L_loop)
        EXIT
    """) == ["FFMA", "BRA", "STG.E.128", "BRA"]


def test_of_two_forms_of_a_loop_the_shorter_counts() -> None:
    careful = ".L_1:\n" + "FFMA R1, R1, R1, R1\n" * 10 + "LOP3 R2, R2, R2\n@P0 BRA `(.L_1)\n"
    whole = ".L_2:\n" + "FADD R1, R1, R1\n" * 9 + "@P1 BRA `(.L_2)\n"
    less = ".L_3:\nFMUL R1, R1, R1\nFADD R1, R1, R1\n@P2 BRA `(.L_3)\n"
    assert path(careful + whole + less + "EXIT") == ["FADD"] * 9 + ["BRA"]


def test_a_first_round_in_front_of_its_loop_is_not_the_loop() -> None:
    first = "FFMA R1, R1, R1, R1\n" * 12
    loop = ".L_1:\n" + "FADD R1, R1, R1\n" * 10 + "@P0 BRA `(.L_1)\n"
    assert path(first + loop + "EXIT") == ["FADD"] * 10 + ["BRA"]


def test_what_is_in_no_loop_counts_where_loops_are_unrolled_away() -> None:
    sums = ".L_1:\n" + "DADD R1, R1, R1\n" * 3 + "@P0 BRA `(.L_1)\n"
    assert path(sums + "FFMA R1, R1, R1, R1\n" * 12 + "EXIT").count("FFMA") == 12


def test_torn_stores_do_not_count_twice() -> None:
    assert path("""
        .L_loop:
        FFMA R4, R4, R4, R4
        @!P3 STG.E [R2], R4
        @!P3 STG.E [R2+0x4], R5
        @!P3 BRA `(.L_stored)
        @P1 STG.E [R2], R4
        @P2 STG.E [R2+0x4], R5
        .L_stored:
        @P4 BRA `(.L_loop)
        EXIT
    """) == ["FFMA", "STG.E", "STG.E", "BRA", "BRA"]


@pytest.mark.parametrize(
    "branch", ["@P0 BRA", "BRA.U !UP0,", "@!P0 BRA P1,", "BRA.DIV UR5,", "BRA.DIV ~URZ,", "BRA.DIV"]
)
def test_conditional_branches_may_fall_through(branch: str) -> None:
    code = planted(f"{branch} `(.L_1)\nNOP\n.L_1:\nEXIT")
    assert list(sass.graph(code).successors[0]) == [0x10, 0x20]


@pytest.mark.parametrize("branch", ["BRA", "@PT BRA", "BRA.U"])
def test_unconditional_branches_may_not(branch: str) -> None:
    code = planted(f"{branch} `(.L_1)\nNOP\n.L_1:\nEXIT")
    assert list(sass.graph(code).successors[0]) == [0x20]


def test_bsync_leads_where_the_last_bssy_says() -> None:
    code = planted("""
        BSSY B0, `(.L_far)
        @P0 BRA `(.L_other)
        BSYNC B0
        .L_other:
        BSSY.RECONVERGENT B0, `(.L_far2)
        BSYNC.RECONVERGENT B0
        .L_far:
        EXIT
        .L_far2:
        EXIT
    """)
    successors = sass.graph(code).successors
    assert list(successors[0x20]) == [0x50]
    assert list(successors[0x30]) == [0x60]


def test_a_mask_of_lanes_is_no_target() -> None:
    code = planted("WARPSYNC 0xffffffff\nEXIT")
    assert list(sass.graph(code).successors[0]) == [0x10]


def test_inner_loops_are_passed_once_and_do_not_win() -> None:
    listing = """
        .L_outer:
        FFMA R1, R1, R1, R1
        .L_inner:
        FADD R2, R2, R2
        @P0 BRA `(.L_inner)
        FFMA R1, R1, R1, R1
        @P1 BRA `(.L_outer)
        EXIT
    """
    assert path(listing) == ["FFMA", "FADD", "BRA", "FFMA", "BRA"]
    assert sass.loops(sass.graph(planted(listing))) == {0x10: {0x10}, 0x0: {0x0, 0x10, 0x30}}


def test_a_loop_around_the_hot_one_is_not_on_the_path() -> None:
    assert path("""
        .L_tiles:
        MOV R1, R1
        .L_vectors:
        FFMA R1, R1, R1, R1
        FFMA R1, R1, R1, R1
        @P0 BRA `(.L_vectors)
        FADD R1, R1, R1
        @P1 BRA `(.L_tiles)
        EXIT
    """) == ["FFMA", "FFMA", "BRA"]


def test_without_a_loop_it_is_the_way_through_the_kernel() -> None:
    found = hot_path(
        planted("""
        @P0 EXIT
        FFMA R1, R1, R1, R1
        FFMA R1, R1, R1, R1
        .L_sum:
        FADD R1, R1, R1
        @P1 BRA `(.L_sum)
        EXIT
        .L_end:
        BRA `(.L_end)
        NOP
    """)
    )
    assert not found.in_loop
    assert [i.opcode for i in found.instructions] == ["EXIT", "FFMA", "FFMA", "FADD", "BRA", "EXIT"]


CALLS = """
    .L_loop:
    FFMA R1, R1, R1, R1
    {guard} CALL.REL.NOINC `(.L_far)
    FFMA R1, R1, R1, R1
    @P0 BRA `(.L_loop)
    EXIT
    .L_far:
    @P1 BRA `(.L_short)
    IMAD R1, R1, R1, R1
    .L_short:
    MOV R1, R1
    {end}
"""


def test_a_call_counts_by_its_shortest_way() -> None:
    found = hot_path(planted(CALLS.format(guard="", end="RET.REL.NODEC R20 0x0")))
    assert len(found.instructions) == 4 and found.called == 3 and found.length == 7


def test_a_call_that_may_be_skipped_adds_nothing() -> None:
    assert hot_path(planted(CALLS.format(guard="@P3", end="RET.REL.NODEC R20 0x0"))).length == 4


def test_a_long_jump_written_as_a_call_leaves_the_loop() -> None:
    found = hot_path(planted(CALLS.format(guard="@!P3", end="EXIT")))
    assert found.length == 4 and found.called == 0
    assert 0x50 in sass.graph(planted(CALLS.format(guard="@!P3", end="EXIT"))).successors[0]


@pytest.mark.parametrize("targets", ['(*"BRANCH_TARGETS .L_a,.L_b"*)', ""])
def test_indirect_branches_lead_to_what_is_listed_or_else_orphaned(targets: str) -> None:
    code = planted(f"BRX R2 -0x10 {targets}\n.L_a:\nBRA `(.L_c)\n.L_b:\nNOP\n.L_c:\nEXIT")
    assert list(sass.graph(code).successors[0]) == [0x10, 0x20]


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("LDG.E.128 R4, [R2]", 128),
        ("LDG.E.EF.128.CONSTANT R4, [R2]", 128),
        ("LDG.E.ENL2.256 R4, R8, [R2]", 256),
        ("STG.E.U16 [R2], R4", 16),
        ("LDG.E.64.STRONG.GPU R4, [R2]", 64),
        ("LDG.E R4, [R2]", 32),
    ],
)
def test_widths(text: str, bits: int) -> None:
    (instruction,) = planted(text)
    assert sass.width(instruction) == bits
