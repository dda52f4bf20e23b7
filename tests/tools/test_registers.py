"""registers.py returns the vector registers that an instruction reads and writes."""

from __future__ import annotations

import pytest

from tools.kernel_budget import sass
from tools.kernel_budget.registers import use


def used(text: str) -> tuple[str, str]:
    """Returns, as sorted text, the registers that an instruction writes and those that it reads."""
    (instruction,) = sass.parse([f"  /*0000*/  {text} ;"])
    found = use(instruction)
    return " ".join(sorted(found.writes)), " ".join(sorted(found.reads))


@pytest.mark.parametrize(
    ("text", "writes", "reads"),
    [
        ("FFMA R1, R2, R3.reuse, R4", "R1", "R2 R3 R4"),
        ("FADD R1, -R2, |R3|", "R1", "R2 R3"),
        ("LOP3.LUT R1, R2, UR3, RZ, 0x3c, !PT", "R1", "R2"),
        ("HADD2.F32 R1, -RZ, R2.reuse.H0_H0", "R1", "R2"),
        ("S2R R0, SR_TID.X", "R0", ""),
        ("LDC.64 R2, c[0x0][0x4e8]", "R2 R3", ""),
        ("R2UR UR7, R0", "", "R0"),
    ],
)
def test_the_destination_comes_first(text: str, writes: str, reads: str) -> None:
    assert used(text) == (writes, reads)


@pytest.mark.parametrize(
    ("text", "writes", "reads"),
    [
        ("ISETP.GE.U32.AND P1, PT, R2, UR5, P0", "", "R2"),
        ("PLOP3.LUT P0, P2, PT, P3, UP0, 0x80, 0x0", "", ""),
        ("LOP3.LUT P0, RZ, R2, 0x7, R3, 0xc8, !PT", "", "R2 R3"),
        ("IADD3 R8, P0, P1, R3, UR20, R4", "R8", "R3 R4"),
        ("IADD3.X R9, R4, UR21, RZ, P0, !P1", "R9", "R4"),
        ("UIADD3 UR4, UP0, UPT, -UR6, UR7, URZ", "", ""),
        ("LEA.HI.X R4, R5, RZ, R6, 0x1, P0", "R4", "R5 R6"),
        ("IMAD.X R20, RZ, RZ, R8, P0", "R20", "R8"),
        ("SEL R1, R2, R3, P0", "R1", "R2 R3"),
        ("FMNMX R1, R2, R3, !P4", "R1", "R2 R3"),
        ("VOTEU.ANY UP0, P0", "", ""),
        ("VOTE.ANY R4, PT, P0", "R4", ""),
        ("SHFL.BFLY PT, R5, R3, 0x10, 0x1f", "R5", "R3"),
        ("R2P PR, R3, 0x3", "", "R3"),
        ("P2R R2, PR, RZ, 0x1", "R2", ""),
    ],
)
def test_predicates_and_uniform_registers_are_left_out(text: str, writes: str, reads: str) -> None:
    assert used(text) == (writes, reads)


@pytest.mark.parametrize(
    ("text", "writes", "reads"),
    [
        ("IMAD.WIDE.U32 R2, R4, 0x3, R6", "R2 R3", "R4 R6 R7"),
        ("IMAD.WIDE.U32 R2, R4, 0x3, RZ", "R2 R3", "R4"),
        ("IMAD.WIDE.U32 R2, P0, R4, R5, R6", "R2 R3", "R4 R5 R6 R7"),
        ("IMAD.HI.U32 R2, R4, R5, R6", "R2", "R4 R5 R6 R7"),
        ("DFMA R2, R4, UR6, R8", "R2 R3", "R4 R5 R8 R9"),
        ("DSETP.GT.AND P1, PT, R2, R4, PT", "", "R2 R3 R4 R5"),
        ("F2F.F64.F32 R2, R4", "R2 R3", "R4"),
        ("F2F.F32.F64 R2, R4", "R2", "R4 R5"),
        ("I2F.U64.RP R2, R4", "R2", "R4 R5"),
        ("F2I.U64.TRUNC R2, R4", "R2 R3", "R4"),
        ("FRND.F64 R2, R4", "R2 R3", "R4 R5"),
        ("SHF.R.U64 R2, R4, R6, R8", "R2", "R4 R6 R8"),
        ("CS2R R2, SRZ", "R2 R3", ""),
        ("CS2R.32 R2, SR_CLOCKLO", "R2", ""),
        ("IADD.64 R2, R4, UR6", "R2 R3", "R4 R5"),
        ("ISETP.GE.S64.AND P1, PT, R2, 0x2, PT", "", "R2 R3"),
        ("FFMA2 R2, R4, R6, R8", "R2 R3", "R4 R5 R6 R7 R8 R9"),
        ("LDCU.128 UR4, c[0x0][0x620]", "", ""),
        ("RET.REL.NODEC R4 0x0", "", "R4 R5"),
    ],
)
def test_wide_operands_are_as_many_registers_as_they_take(
    text: str, writes: str, reads: str
) -> None:
    assert used(text) == (writes, reads)


@pytest.mark.parametrize(
    ("text", "writes", "reads"),
    [
        ("LDG.E.128 R8, desc[UR4][R2.64+0x10]", "R10 R11 R8 R9", "R2 R3"),
        ("LDG.E.128.SYS R8, [R2]", "R10 R11 R8 R9", "R2 R3"),
        ("LDG.E R8, desc[UR4][R2.U32+UR6]", "R8", "R2"),
        ("LDG.E.ENL2.256 R8, R16, desc[UR4][R2.64]", "R10 R11 R16 R17 R18 R19 R8 R9", "R2 R3"),
        ("LDS.128 R8, [R2+UR4]", "R10 R11 R8 R9", "R2"),
        ("LDS.U8 R8, [UR4+0x860]", "R8", ""),
        ("STG.E.64 desc[UR4][R2.64], R8", "", "R2 R3 R8 R9"),
        ("STS [R2+0x50], R8", "", "R2 R8"),
        ("ATOMG.E.INC.STRONG.GPU PT, R2, desc[UR4][R6.64], R5", "R2", "R5 R6 R7"),
        ("RED.E.ADD.STRONG.GPU desc[UR4][R6.64], R5", "", "R5 R6 R7"),
        ("BAR.SYNC.DEFER_BLOCKING 0x0", "", ""),
    ],
)  # fmt: skip
def test_loads_write_and_stores_read_their_data(text: str, writes: str, reads: str) -> None:
    assert used(text) == (writes, reads)
