"""The pipe of each instruction: for how many cycles it is occupied, and the result's latency.

Each of an SM's four parts has one pipe of each kind. Cycles follow from the throughputs in the CUDA
C++ Programming Guide (arithmetic instructions): at 128 results per cycle and SM the 32 lanes of a
warp take one cycle of a part, at 64 two, at 16 eight. Latencies are rounded from published
microbenchmarks of Volta to Hopper. The model uses the same latencies for every
architecture. The throughput of IMAD.WIDE is not published; the model assumes half that of IMAD.

  sm_75, 80    One FMA pipe of 16 lanes for floats and integer products (64 per cycle and SM).
  sm_86, 89    Two FMA pipes, one of which multiplies integers; a double takes 64 cycles.
  sm_90        The same, and 64 doubles per cycle and SM.
  sm_100       As sm_90. FADD2, FMUL2 and FFMA2 take both FMA pipes for two cycles.
  sm_120       As sm_89, with FADD2, FMUL2 and FFMA2 as on sm_100.

For sm_100 and sm_120 this is little more than a guess.
"""

from __future__ import annotations

import dataclasses
import enum
import re

from occupancy import number
from sass import Instruction, width


class Pipe(enum.IntEnum):
    """The numbers agree with those of simulate.cpp."""

    FMA = 0  # either of the two
    FMA_HEAVY = 1
    FMA_BOTH = 2
    ALU = 3
    XU = 4
    FP64 = 5
    LSU = 6
    UNIFORM = 7
    BRANCH = 8


class Kind(enum.IntEnum):
    """The effect of an instruction besides computing. The numbers agree with simulate.cpp."""

    COMPUTE = 0
    LOAD = 1  # global
    STORE = 2  # global
    SHARED = 3  # passes data through the LSU
    BARRIER = 4
    FENCE = 5
    ATOMIC = 6
    BRANCH = 7


@dataclasses.dataclass(frozen=True)
class Timing:
    pipe: Pipe
    occupied: int
    latency: int
    kind: Kind = Kind.COMPUTE


FP64_CYCLES = {75: 64, 80: 4, 86: 64, 89: 64, 90: 2, 100: 2, 103: 64, 120: 64}
SINGLE_FMA_PIPE = (75, 80)

_ALU = Timing(Pipe.ALU, 2, 4)
_FLOAT = re.compile(r"(FFMA|FMUL|FADD)$")
_PACKED = re.compile(r"(FFMA|FMUL|FADD)2$")
_DOUBLE = re.compile(r"(DFMA|DMUL|DADD|DSETP)$")
_BRANCH = re.compile(r"(BRA|BRX|JMP|JMX|CALL|RET|EXIT)$")
_CONTROL = re.compile(
    r"(BSSY|BSYNC|NOP|WARPSYNC|YIELD|ERRBAR|CGAERRBAR|CCTL|BREAK|DEPBAR|BMOV|ENDCOLLECTIVE)$"
)


def timing(instruction: Instruction, arch: str) -> Timing:
    base = instruction.base
    modifiers = instruction.opcode.split(".")[1:]
    known = _memory(instruction, base, modifiers)
    if known:
        return known
    single = number(arch) in SINGLE_FMA_PIPE
    if _FLOAT.match(base):
        return Timing(Pipe.FMA_HEAVY if single else Pipe.FMA, 2, 4)
    if _PACKED.match(base):
        return Timing(Pipe.FMA_BOTH, 2, 4)
    if base == "IMAD":
        wide = bool({"WIDE", "HI"} & set(modifiers))
        return Timing(Pipe.FMA_HEAVY, 4 if wide else 2, 5 if wide else 4)
    if base == "HFMA2":
        return Timing(Pipe.FMA_HEAVY, 2, 5)
    if base == "MUFU":
        return Timing(Pipe.XU, 8, 20)
    if base in ("F2F", "I2F", "F2I", "FRND"):
        return Timing(Pipe.XU, 16, 22)
    if _DOUBLE.match(base):
        return Timing(Pipe.FP64, FP64_CYCLES.get(number(arch), 64), 16)
    if _BRANCH.match(base):
        return Timing(Pipe.BRANCH, 1, 10, Kind.BRANCH)
    if _CONTROL.match(base):
        return Timing(Pipe.BRANCH, 1, 1, Kind.BRANCH)
    if base.startswith("U") or base in ("R2UR", "LDCU"):
        return Timing(Pipe.UNIFORM, 2, 10)
    if base in ("S2R", "S2UR"):
        return Timing(Pipe.UNIFORM, 2, 30)
    return _ALU


def _memory(instruction: Instruction, base: str, modifiers: list[str]) -> Timing | None:
    if base in ("LDG", "LD"):
        return Timing(Pipe.LSU, 4, 0, Kind.LOAD)
    if base in ("STG", "ST"):
        return Timing(Pipe.LSU, 4, 0, Kind.STORE)
    if base in ("LDS", "STS", "SHFL", "LDL", "STL", "ATOMS"):
        return Timing(Pipe.LSU, 4, 30, Kind.SHARED)
    if base == "LDC":
        return Timing(Pipe.LSU, 4, 30)
    if base in ("ATOM", "ATOMG", "RED", "REDG"):
        return Timing(Pipe.LSU, 4, 0, Kind.ATOMIC)
    if base == "BAR":
        return Timing(Pipe.BRANCH, 1, 30, Kind.BARRIER)
    if base == "MEMBAR":
        of_block = "CTA" in modifiers
        return Timing(Pipe.BRANCH, 1, 10, Kind.BRANCH if of_block else Kind.FENCE)
    return None


def bytes_of_warp(instruction: Instruction) -> int:
    """Bytes that the 32 lanes move between registers and memory."""
    return 32 * max(1, width(instruction) // 8)
