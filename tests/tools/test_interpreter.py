"""The machine-code interpreter executes instructions as defined, and reports mistakes as errors.

These tests use small programs. `tests/native/test_machine_code.py` tests the results of the
project's kernels.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable

import numpy as np
import pytest
from machine_code.cubin import Kernel, Parameter
from machine_code.device import Device, Launched
from machine_code.errors import (
    BadAccessError,
    ConvergenceError,
    DeadlockError,
    LaunchError,
    MachineCodeError,
    RaceError,
    UnknownInstructionError,
)
from machine_code.program import decode_instructions

from tools.kernel_budget import sass

PARAMETERS = 0x210  # offset in constant bank 0
THREADS = 256


def planted(text: str) -> tuple[sass.Instruction, ...]:
    """Parses instructions in cuobjdump's format. A label is a line that ends with a colon."""
    lines, address = [], 0
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.endswith(":"):
            lines.append(line)
        else:
            lines.append(f"        /*{address:04x}*/          {line} ;")
            address += 16
    return tuple(sass.parse(lines))


def kernel(text: str, shared: int = 0) -> Kernel:
    return Kernel("planted", planted(text), (Parameter(0, 8),), PARAMETERS, 8, shared)


# R2 gets the address of each thread's word in an array, which is the kernel's argument. R4 gets the
# word.
PREAMBLE = """
S2R R0, SR_TID.X
S2R R1, SR_CTAID.X
LEA R0, R1, R0, 0x8
IMAD.WIDE.U32 R2, R0, 0x4, RZ
IADD3 R2, P0, R2, c[0x0][0x210], RZ
IADD3.X R3, R3, c[0x0][0x214], RZ, P0, !PT
LDG.E R4, desc[UR4][R2.64]
"""
EPILOGUE = "STG.E desc[UR4][R2.64], R4\nEXIT\n"


def run(
    text: str, data: np.ndarray, shared: int = 0, blocks: int = 1, seed: int = 1
) -> tuple[np.ndarray, Launched]:
    """Returns the array after these instructions have processed each thread's word in R4."""
    device = Device([], seed)
    device.add(kernel(PREAMBLE + text + "\n" + EPILOGUE, shared))
    out = np.array(data)
    with device.memory.buffers([(out.ctypes.data, out.ctypes.data + out.nbytes)]):
        launched = device.launch("planted", blocks, [struct.pack("<Q", out.ctypes.data)])
    return out, launched


def words(blocks: int = 1) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2**32, THREADS * blocks, np.uint32)


# --- instructions --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("IADD3 R4, R4, -0x5, RZ", lambda x: x - np.uint32(5)),
        ("SHF.L.U32 R4, R4, 0x20, RZ", lambda x: x & np.uint32(0)),
        ("SHF.R.S32.HI R4, RZ, 0x40, R4", lambda x: (x.view(np.int32) >> 31).view(np.uint32)),
        ("PRMT R4, R4, 0x123, RZ", lambda x: x.byteswap()),
        ("IMAD.HI.U32 R4, R4, 0x3, RZ", lambda x: ((x.astype(np.uint64) * 3) >> 32).astype("u4")),
        ("LEA.HI R4, R4, R4, RZ, 0x1", lambda x: x + (x >> np.uint32(31))),
        (
            "ISETP.GT.AND P1, PT, R4, -0x1, PT\nSEL R4, R4, RZ, P1",
            lambda x: np.where(x >> 31, 0, x),
        ),
        ("FLO.U32 R4, R4", lambda x: np.log2(x.astype(np.float64)).astype(np.uint32)),
        ("@!PT MOV R4, RZ", lambda x: x),
        ("VIMNMX R4, R4, 0x10, PT", lambda x: np.minimum(x.view(np.int32), 16).view(np.uint32)),
        ("VIMNMX.U32 R4, R4, 0x10, !PT", lambda x: np.maximum(x, np.uint32(16))),
        ("S2R R4, SR_LTMASK", lambda x: np.uint32(2) ** (np.arange(x.size) % 32) - 1),
        ("VOTEU.ANY UR4, UPT, PT\nUPOPC UR4, UR4\nMOV R4, UR4", lambda x: np.full(x.size, 32)),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else "",
)
def test_integers(text: str, expected: Callable[[np.ndarray], np.ndarray]) -> None:
    x = words()
    np.testing.assert_array_equal(run(text, x)[0], expected(x))


@pytest.mark.parametrize("table", [0x00, 0x6A, 0x96, 0xCA, 0xF8, 0xFF])
def test_truth_tables(table: int) -> None:
    x = words()
    found, _ = run(f"MOV R5, 0xf0f0f0f0\nLOP3.LUT R4, R4, R5, 0xff00ff00, {table:#x}, !PT", x)
    for bit in range(32):
        a, b, c = x >> bit & 1, 0xF0F0F0F0 >> bit & 1, 0xFF00FF00 >> bit & 1
        np.testing.assert_array_equal(found >> bit & 1, table >> (4 * a + 2 * b + c) & 1)


def test_64_bit_sums_carry() -> None:
    x = words()
    text = "IADD3 R6, P1, R4, R4, RZ\nIADD3.X R4, RZ, 0x5, RZ, P1, !PT"
    np.testing.assert_array_equal(run(text, x)[0], 5 + (x >> np.uint32(31)))
    text = "IADD3 R6, P1, RZ, -R4, RZ\nIADD3.X R4, RZ, ~RZ, RZ, P1, !PT"  # the high word of -x
    np.testing.assert_array_equal(run(text, x)[0], np.where(x == 0, 0, 2**32 - 1))
    text = "LEA R6, P1, -R4, RZ, 0x1\nIADD3.X R4, RZ, ~RZ, RZ, P1, !PT"  # and of -2 x, x < 2^31
    small = x >> np.uint32(1)
    small[::7] = 0
    np.testing.assert_array_equal(run(text, small)[0], np.where(small == 0, 0, 2**32 - 1))


def test_a_nan_is_the_one_of_the_encoding() -> None:
    """The listing also writes the upper half of the double NaN, 0x7ff80000, as +QNAN."""
    line = "/*0000*/ FSEL R4, RZ, +QNAN , !PT ; /* 0x7ff80000ff047808 */"
    (select,) = sass.parse([line])
    code = [*planted(PREAMBLE), dataclasses.replace(select, address=0x70), *planted(EPILOGUE)]
    device = Device([])
    device.add(kernel(PREAMBLE + "NOP\n" + EPILOGUE))
    device.plant("planted", [dataclasses.replace(i, address=16 * k) for k, i in enumerate(code)])
    out = words()
    with device.memory.buffers([(out.ctypes.data, out.ctypes.data + out.nbytes)]):
        device.launch("planted", 1, [struct.pack("<Q", out.ctypes.data)])
    assert (out == 0x7FF80000).all()
    with pytest.raises(UnknownInstructionError, match="NaN without its bits"):
        decode_instructions("planted", planted("FSEL R4, RZ, +QNAN , !PT"))


def test_comparisons_of_64_bits_go_by_the_low_words_where_the_high_ones_are_equal() -> None:
    x = words()
    text = """
    LOP3.LUT R5, R4, 0x1, RZ, 0xc0, !PT
    ISETP.{low} P1, PT, R4, 0x80000000, PT
    ISETP.{high} P1, PT, R5, 0x1, PT, P1
    SEL R4, RZ, 0x1, !P1
    """
    value = (x & 1).astype(np.uint64) << np.uint64(32) | x
    limit = np.uint64(0x180000000)
    for low, high, expected in (
        ("GE.U32.AND", "GE.U32.AND.EX", value >= limit),
        ("GT.U32.AND", "GT.AND.EX", value > limit),
        ("LT.U32.AND", "LT.U32.AND.EX", value < limit),
        ("NE.U32.AND", "NE.AND.EX", value != limit),
    ):
        found, _ = run(text.format(low=low, high=high), x)
        np.testing.assert_array_equal(found, expected)


def test_integers_of_64_bits_become_floats_and_back() -> None:
    x = words()
    text = "MOV R6, R4\nMOV R7, 0x5\nI2F.U64.RP R4, R6"
    found = run(text, x)[0].view(np.float32)
    exact = (5 * 2**32 + x.astype(np.uint64)).astype(np.float64)
    assert ((found >= exact) & (found <= exact * (1 + 2.0**-23))).all()
    text += "\nF2I.U64.TRUNC R6, R4\nMOV R4, R{}"
    whole = found.astype(np.uint64)
    np.testing.assert_array_equal(run(text.format(6), x)[0], whole.astype(np.uint32))
    np.testing.assert_array_equal(run(text.format(7), x)[0], whole >> np.uint64(32))


def test_integers_of_other_sizes_become_floats() -> None:
    x = words()
    found = run("MOV R5, R4\nMOV R4, RZ\nI2F.S64 R4, R4", x)[0].view(np.float32)
    wide = x.view(np.int32).astype(np.int64) << np.int64(32)
    np.testing.assert_array_equal(found, wide.astype(np.float32))
    text = "I2F.U16 R4, R4"  # ignores the upper half
    np.testing.assert_array_equal(
        run(text, x)[0].view(np.float32), (x & np.uint32(0xFFFF)).astype(np.float32)
    )
    text = "I2F.F64.{kind} R6, R4\nMOV R4, R7"
    for kind, exact in (("S64", wide), ("U16", x & np.uint32(0xFFFF))):
        moved = "MOV R5, R4\nMOV R4, RZ\n" if kind == "S64" else ""
        found, _ = run(moved + text.format(kind=kind), x)
        high = exact.astype(np.float64).view(np.uint64) >> np.uint64(32)
        np.testing.assert_array_equal(found, high)


def test_only_ftz_flushes_subnormals() -> None:
    x = words()
    x[::2] &= np.uint32(0x807FFFFF)
    small = (x & np.uint32(0x7F800000)) == 0
    sign = np.uint32(0x80000000)
    np.testing.assert_array_equal(run("FADD R4, R4, -RZ", x)[0][small], x[small])
    np.testing.assert_array_equal(run("FADD.FTZ R4, R4, -RZ", x)[0][small], x[small] & sign)
    compared = "FSETP.NEU{}.AND P1, PT, R4, RZ, PT\nSEL R4, RZ, 0x1, !P1"
    number = ~np.isnan(x.view(np.float32))
    np.testing.assert_array_equal(run(compared.format(".FTZ"), x)[0][number], ~small[number])
    np.testing.assert_array_equal(
        run(compared.format(""), x)[0][number], (x.view(np.float32) != 0)[number]
    )


def test_a_comparison_is_a_number() -> None:
    x = words()
    found = run("FSET.BF.GT.AND R4, R4, RZ, PT", x)[0].view(np.float32)
    np.testing.assert_array_equal(found, np.where(x.view(np.float32) > 0, 1.0, 0.0))
    not_equal = run("FSET.BF.NEU.AND R4, R4, RZ, PT", x)[0].view(np.float32)
    number = x.view(np.float32)
    np.testing.assert_array_equal(not_equal, np.where(number != 0, 1.0, 0.0))  # true for NaN


@pytest.mark.parametrize(("extreme", "function"), [("MIN", np.fmin), ("MAX", np.fmax)])
def test_the_extreme_of_doubles_is_a_number_if_one_of_them_is(
    extreme: str, function: Callable[..., np.ndarray]
) -> None:
    x = words()
    x[::5] = 0x7FF80000
    text = f"""
    MOV R7, R4
    MOV R6, RZ
    DSETP.{extreme}.AND P1, P2, R6, 1.5, PT
    SEL R4, R7, 0x3ff80000, P1
    """
    value = (x.astype(np.uint64) << np.uint64(32)).view(np.float64)
    found, _ = run(text, x)
    np.testing.assert_array_equal(
        (found.astype(np.uint64) << np.uint64(32)).view(np.float64), function(value, 1.5)
    )


def test_shuffles_exchange_lanes() -> None:
    x = words()
    found, _ = run("SHFL.BFLY PT, R4, R4, 0x3, 0x1f", x)
    np.testing.assert_array_equal(found, x[np.arange(THREADS) ^ 3])


def test_a_shuffle_from_a_lane_that_takes_no_part_is_an_error() -> None:
    text = "ISETP.NE.AND P1, PT, R0, 0x7, PT\n@P1 SHFL.BFLY PT, R4, R4, 0x1, 0x1f"
    with pytest.raises(
        ConvergenceError, match=r"lane 6 reads from lane 7, which does not participate"
    ):
        run(text, words())


REVERSE = """
MOV R5, 0x400
LEA R6, R0, R5, 0x2
STS [R6], R4
{barrier}
LOP3.LUT R6, R0, 0xff, RZ, 0x3c, !PT
LEA R6, R6, R5, 0x2
LDS R4, [R6]
"""


def test_threads_exchange_through_shared_memory_with_a_barrier_and_not_without() -> None:
    x = words()
    for seed in range(5):
        with_barrier = REVERSE.format(barrier="BAR.SYNC.DEFER_BLOCKING 0x0")
        np.testing.assert_array_equal(run(with_barrier, x, 0x800, seed=seed)[0], x[::-1])
        with pytest.raises(RaceError, match=r"warp \d and another access 0x\w+ of shared memory"):
            run(REVERSE.format(barrier="NOP"), x, 0x800, seed=seed)


def test_a_barrier_is_missed_even_where_the_values_are_right() -> None:
    """All warps write the same value, or one warp writes again while others may still read."""
    for text in (
        "MOV R5, 0x7\nSTS [0x400], R5",
        "ISETP.NE.AND P1, PT, R0, RZ, PT\n@!P1 STS [0x400], RZ\n"
        "BAR.SYNC.DEFER_BLOCKING 0x0\nLDS R5, [0x400]\n@!P1 STS [0x400], RZ",
    ):
        with pytest.raises(RaceError):
            run(text, words(), 0x500)


NEIGHBOURS = """
MOV R5, 0x400
LOP3.LUT R8, R0, 0x1f, RZ, 0xc0, !PT
SHF.R.U32.HI R9, RZ, 0x5, R0
LEA R6, R8, R9, 0x3
IADD3 R6, R6, R5, RZ
STS.U8 [R6], R4
"""


def test_bytes_beside_each_other_are_not_the_same_memory() -> None:
    """Eight warps write adjacent bytes, and a 32-bit load reads four of them together."""
    run(NEIGHBOURS, words(), 0x600)
    with pytest.raises(RaceError):
        run(NEIGHBOURS + "LDS R7, [0x400]", words(), 0x600)


def test_atomics_of_several_warps_are_no_race_but_a_load_beside_them_is() -> None:
    text = """
    ISETP.NE.AND P0, PT, R0, RZ, PT
    @!P0 STS [0x400], RZ
    BAR.SYNC.DEFER_BLOCKING 0x0
    MOV R5, 0x1
    MOV R6, 0x400
    ATOMS.ADD R4, [R6], R5
    {barrier}
    LDS R7, [0x400]
    IMAD R4, R7, 0x1000, R4
    """
    found, _ = run(text.format(barrier="BAR.SYNC.DEFER_BLOCKING 0x0"), words(), 0x500)
    assert sorted(found & 0xFFF) == list(range(THREADS))
    assert set(found >> np.uint32(12)) == {THREADS}
    with pytest.raises(RaceError):
        run(text.format(barrier="NOP"), words(), 0x500)


def test_what_was_not_written_to_shared_memory_is_nan() -> None:
    found, _ = run("LDS R4, [0x400]", words(), 0x500)
    assert np.isnan(found.view(np.float32)).all()


DIVERGED = """
LOP3.LUT R5, R0, 0x1, RZ, 0xc0, !PT
ISETP.NE.AND P1, PT, R5, RZ, PT
BSSY B0, `(.L_together)
@P1 BRA `(.L_odd)
MOV R4, 0x10
BRA `(.L_meet)
.L_odd:
MOV R4, 0x20
.L_meet:
BSYNC B0
.L_together:
SHFL.BFLY PT, R4, R4, 0x1, 0x1f
"""


def test_lanes_that_part_meet_again() -> None:
    found, launched = run(DIVERGED, words())
    assert found.tolist() == [0x20, 0x10] * (THREADS // 2)
    # Each of the 8 warps issued both branches, and issued the shuffle once.
    assert launched.by_opcode()["SHFL.BFLY"] == 8
    assert launched.by_opcode()["MOV"] == 16


# Both branches use barrier B1, and the lanes diverge again in each branch.
NESTED = """
LOP3.LUT R5, R0, 0x1, RZ, 0xc0, !PT
ISETP.NE.AND P1, PT, R5, RZ, PT
LOP3.LUT R5, R0, 0x2, RZ, 0xc0, !PT
ISETP.NE.AND P2, PT, R5, RZ, PT
BSSY B0, `(.L_together)
@P1 BRA `(.L_odd)
BSSY B1, `(.L_even_end)
@P2 BRA `(.L_even_two)
MOV R4, 0x10
BRA `(.L_even_meet)
.L_even_two:
MOV R4, 0x11
.L_even_meet:
BSYNC B1
.L_even_end:
BRA `(.L_meet)
.L_odd:
BSSY B1, `(.L_odd_end)
@P2 BRA `(.L_odd_two)
MOV R4, 0x20
BRA `(.L_odd_meet)
.L_odd_two:
MOV R4, 0x21
.L_odd_meet:
BSYNC B1
.L_odd_end:
NOP
.L_meet:
BSYNC B0
.L_together:
SHFL.BFLY PT, R4, R4, 0x1, 0x1f
"""


def test_the_branches_of_an_if_may_use_the_same_barrier() -> None:
    found, launched = run(NESTED, words())
    assert found.tolist() == [0x20, 0x10, 0x21, 0x11] * (THREADS // 4)
    assert launched.by_opcode()["SHFL.BFLY"] == 8


@pytest.mark.parametrize("uniform", [False, True])
def test_a_table_leads_each_lane_to_its_branch(uniform: bool) -> None:
    begin, end = 16 * len(planted(PREAMBLE)), len(planted(PREAMBLE)) + 5
    lines = """
    LOP3.LUT R5, {index}, 0x1, RZ, 0xc0, !PT
    SHF.L.U32 R5, R5, 0x2, RZ
    LDC R6, c[0x2][R5]
    MOV R7, RZ
    BRX R6 -{next}
    MOV R4, 0x10
    BRA `(.L_end)
    MOV R4, 0x20
    .L_end:
    """
    if uniform:
        lines = lines.replace("MOV R7, RZ", "R2UR UR6, R6").replace("BRX R6", "BRXU UR6")
    text = lines.format(index="R1" if uniform else "R0", next=hex(16 * end))
    one = kernel(PREAMBLE + text + EPILOGUE)
    table = struct.pack("<2i", begin + 16 * 5, begin + 16 * 7)
    device = Device([])
    device.add(dataclasses.replace(one, tables=table))
    out = words(2)
    with device.memory.buffers([(out.ctypes.data, out.ctypes.data + out.nbytes)]):
        device.launch("planted", 2, [struct.pack("<Q", out.ctypes.data)])
    expected = [0x10] * THREADS + [0x20] * THREADS if uniform else [0x10, 0x20] * THREADS
    assert out.tolist() == expected
    device.add(dataclasses.replace(one, name="astray", tables=bytes([4] * 8)))
    with (
        pytest.raises(ConvergenceError, match="BRX"),
        device.memory.buffers([(out.ctypes.data, out.ctypes.data + out.nbytes)]),
    ):
        device.launch("astray", 2, [struct.pack("<Q", out.ctypes.data)])


def test_threads_that_wait_forever_are_reported() -> None:
    text = "ISETP.GE.AND P1, PT, R0, 0x20, PT\n@P1 WARPSYNC.ALL\n@P1 BAR.SYNC.DEFER_BLOCKING 0x0"
    with pytest.raises(DeadlockError, match=r"B0 at 0x[0-9a-f]+, BAR at|BAR at 0x[0-9a-f]+, B0 at"):
        run(DIVERGED.replace("BRA `(.L_meet)", "BAR.SYNC.DEFER_BLOCKING 0x0"), words())
    assert run(text, words())[1].blocks == 1  # a warp that has exited does not block the others


def test_blocks_run_in_any_order_and_count_on_tickets() -> None:
    """Each block takes a ticket, and writes its block index at the ticket's position."""
    counter = np.zeros(64, np.uint32)
    text = """
    S2R R1, SR_CTAID.X
    LDC.64 R2, c[0x0][0x210]
    S2R R0, SR_TID.X
    ISETP.NE.AND P1, PT, R0, RZ, PT
    @P1 EXIT
    MOV R5, 0x1e
    ATOMG.E.INC.STRONG.GPU PT, R6, desc[UR4][R2.64], R5
    IMAD.WIDE.U32 R2, R6, 0x4, R2
    STG.E desc[UR4][R2.64+0x4], R1
    EXIT
    """
    orders = []
    for seed in (1, 2):
        device = Device([], seed)
        device.add(kernel(text))
        with device.memory.buffers([(counter.ctypes.data, counter.ctypes.data + counter.nbytes)]):
            device.launch("planted", 31, [struct.pack("<Q", counter.ctypes.data)])
        assert counter[0] == 0 and sorted(counter[1:32]) == list(range(31))
        orders.append(counter[1:32].tolist())
    assert orders[0] != orders[1] and orders[0] != sorted(orders[0])


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("TEX R4, R4, 0x1", "TEX"),
        ("FADD.SAT R4, R4, R4", "SAT"),
        ("DADD.FTZ R4, R4, R4", "FTZ"),
        ("ATOMS.MIN R4, [R6], R4", "ADD"),
        ("BRX R4", "no offset"),
        ("VOTEU.ANY UR4, UPT, P1", "another vote"),
        ("IADD3 R4, R4, R4, R4, R4", "operand too many"),
        ("LDG.E.256 R4, desc[UR4][R2.64]", "256"),
        ("MUFU.TANH R4, R4", "RCP"),
        ("BAR.SYNC 0x1", "barrier"),
        ("BAR.RED.POPC 0x0", "RED"),
        ("HFMA2 R4, R4, R4, 1, 1", "halves"),
        ("MOV R4, c[0x0][R5+0x10]", "indexed"),
        ("S2R R4, SR_CLOCKLO", "SR_CLOCKLO"),
        ("MOV R4, ?", r"\?"),
    ],
)
def test_what_is_not_known_is_named(text: str, name: str) -> None:
    """The error is raised even if the instruction would not be executed."""
    with pytest.raises(UnknownInstructionError, match=name):
        decode_instructions("planted", planted("EXIT\n" + text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("LDG.E R4, desc[UR4][R2.64+0x400]", r"LDG.E at 0x70: .* in no buffer"),
        ("STG.E.64 desc[UR4][R2.64], R4", "is not aligned|in no buffer"),
        ("STS [0x600], R4", r"0x600 of shared memory of 0x600"),
        ("LDS R4, [0x3fc]", "of shared memory"),
        ("LDS.64 R4, [0x404]", "of shared memory"),
        ("LDC R4, c[0x0][R0+0x210]", "constant"),
    ],
)
def test_accesses_outside_of_memory_are_named(text: str, message: str) -> None:
    with pytest.raises(BadAccessError, match=message):
        run(text, words(), shared=0x600)


def test_a_constant_that_no_launch_defines_cannot_be_read() -> None:
    with pytest.raises(BadAccessError, match="0x100 are not defined"):
        run("MOV R4, c[0x0][0x100]", words())


def test_execution_ends_with_exit() -> None:
    device = Device([])
    device.add(kernel("MOV R4, RZ"))
    with pytest.raises(MachineCodeError, match="over the end"):
        device.launch("planted", 1, [bytes(8)])


def test_a_launch_fits_the_parameters() -> None:
    device = Device([])
    device.add(kernel("EXIT"))
    with pytest.raises(LaunchError, match=r"\[8\] bytes, got \[4\]"):
        device.launch("planted", 1, [bytes(4)])
    with pytest.raises(LaunchError, match=r"the kernel must be one of .*, got other"):
        device.launch("other", 1, [])


def test_an_approximation_is_a_function_of_its_argument_and_another_one_in_each_launch() -> None:
    x = np.repeat(np.linspace(1, 2, THREADS // 8, dtype=np.float32).view(np.uint32), 8)
    results = [run("MUFU.RCP R4, R4", x, seed=seed)[0] for seed in range(3)]
    for result in results:
        np.testing.assert_array_equal(result[::8].repeat(8), result)
    assert (results[0] != results[1]).any() and (results[1] != results[2]).any()


def test_a_uniform_value_is_uniform() -> None:
    with pytest.raises(ConvergenceError, match="R2UR"):
        run("R2UR UR6, R0\nMOV R4, UR6", words())
