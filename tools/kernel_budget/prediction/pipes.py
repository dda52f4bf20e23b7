"""The pipe of each instruction: for how many cycles it is occupied, and the result's latency.

Each of an SM's four parts has one pipe of each kind. Cycles follow from the throughputs in the CUDA
C++ Programming Guide (arithmetic instructions): at 128 results per cycle and SM the 32 lanes of a
warp take one cycle of a part, at 64 two, at 16 eight. Latencies are rounded from published
microbenchmarks of Volta to Hopper, and the model assumes the same ones for all architectures.
The throughput of IMAD.WIDE is not published; the model assumes half that of IMAD.

  sm_75, 80    One FMA pipe of 16 lanes for floats and integer products (64 per cycle and SM).
  sm_86, 89    Two FMA pipes, one of which multiplies integers; a double takes 64 cycles.
  sm_90        The same, and 64 doubles per cycle and SM.
  sm_100       As sm_90. FADD2, FMUL2 and FFMA2 take both FMA pipes for two cycles.
  sm_120       As sm_89, with FADD2, FMUL2 and FFMA2 as on sm_100.

For sm_100 and sm_120 this is little more than a guess.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from typing import NamedTuple

from ..occupancy import number
from ..sass import Instruction, width

# The numbers of both enumerations agree with those of simulate.cpp. FMA is either of its two pipes.
Pipe = enum.IntEnum("Pipe", "FMA FMA_HEAVY FMA_BOTH ALU XU FP64 LSU UNIFORM BRANCH", start=0)
# The effect of an instruction besides computing. SHARED passes data through the LSU.
Kind = enum.IntEnum("Kind", "COMPUTE LOAD STORE SHARED BRANCH", start=0)


class Timing(NamedTuple):
    pipe: Pipe
    occupied: int
    latency: int
    kind: Kind = Kind.COMPUTE


FP64_CYCLES = {80: 4, 90: 2, 100: 2}  # 64 on the others
SINGLE_FMA_PIPE = (75, 80)

# The first pattern that matches an opcode without modifiers counts.
TIMINGS = {
    r"LDG?": Timing(Pipe.LSU, 4, 0, Kind.LOAD),
    r"STG?": Timing(Pipe.LSU, 4, 0, Kind.STORE),
    r"LDS|STS|SHFL|LDL|STL|ATOMS": Timing(Pipe.LSU, 4, 30, Kind.SHARED),
    r"LDC": Timing(Pipe.LSU, 4, 30),
    r"ATOMG?|REDG?": Timing(Pipe.LSU, 4, 0),
    r"BAR": Timing(Pipe.BRANCH, 1, 30, Kind.BRANCH),
    r"FFMA|FMUL|FADD": Timing(Pipe.FMA, 2, 4),
    r"(FFMA|FMUL|FADD)2": Timing(Pipe.FMA_BOTH, 2, 4),
    r"IMAD": Timing(Pipe.FMA_HEAVY, 2, 4),
    r"HFMA2": Timing(Pipe.FMA_HEAVY, 2, 5),
    r"MUFU": Timing(Pipe.XU, 8, 20),
    r"F2F|I2F|F2I|FRND": Timing(Pipe.XU, 16, 22),
    r"DFMA|DMUL|DADD|DSETP": Timing(Pipe.FP64, 64, 16),
    r"BRA|BRX|JMP|JMX|CALL|RET|EXIT|MEMBAR": Timing(Pipe.BRANCH, 1, 10, Kind.BRANCH),
    r"BSSY|BSYNC|NOP|WARPSYNC|YIELD|ERRBAR|CGAERRBAR|CCTL|BREAK|DEPBAR|BMOV|ENDCOLLECTIVE": Timing(
        Pipe.BRANCH, 1, 1, Kind.BRANCH
    ),
    r"U.*|R2UR|LDCU": Timing(Pipe.UNIFORM, 2, 10),
    r"S2U?R": Timing(Pipe.UNIFORM, 2, 30),
    r".*": Timing(Pipe.ALU, 2, 4),
}


def timing(instruction: Instruction, arch: str) -> Timing:
    base, modifiers = instruction.base, instruction.modifiers
    if base == "IMAD" and {"WIDE", "HI"} & set(modifiers):
        return Timing(Pipe.FMA_HEAVY, 4, 5)
    found = next(how for pattern, how in TIMINGS.items() if re.fullmatch(pattern, base))
    if found.pipe is Pipe.FP64:
        return found._replace(occupied=FP64_CYCLES.get(number(arch), found.occupied))
    if found.pipe is Pipe.FMA and number(arch) in SINGLE_FMA_PIPE:
        return found._replace(pipe=Pipe.FMA_HEAVY)
    return found


def busy(code: Iterable[Instruction], arch: str) -> dict[str, float]:
    """Cycles for which a warp's instructions occupy each pipe. FMA is two pipes."""
    found: dict[str, float] = dict.fromkeys(Pipe.__members__, 0)
    for how in (timing(i, arch) for i in code):
        found[how.pipe.name] += how.occupied / (2 if how.pipe is Pipe.FMA else 1)
    return found


def bytes_of_warp(instruction: Instruction) -> int:
    """Bytes that the 32 lanes move between registers and memory."""
    return 32 * max(1, width(instruction) // 8)
