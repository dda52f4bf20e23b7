"""Computes for how many cycles a warp's instruction occupies a pipe of an SM.

Each of an SM's four parts has one pipe of each kind. The cycles follow from the throughputs in the
CUDA C++ Programming Guide (arithmetic instructions). With 128 results per cycle per SM, a warp of
32 lanes occupies a pipe for one cycle, with 64 results for two cycles, and with 16 for eight. The
throughput of IMAD.WIDE is not published; it is assumed to be half that of IMAD.

  sm_75, 80    One FMA pipe of 16 lanes for floats and integer products (64 per cycle per SM).
  sm_86, 89    Two FMA pipes, one of which multiplies integers; a double takes 64 cycles.
  sm_90        As sm_89, with 64 doubles per cycle per SM.
  sm_100       As sm_90. FADD2, FMUL2 and FFMA2 take both FMA pipes for two cycles.
  sm_120       As sm_89, with FADD2, FMUL2 and FFMA2 as on sm_100.

For sm_100 and sm_120 these cycles are little more than a guess.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from .occupancy import number
from .sass import Instruction

FP64_CYCLES = {80: 4, 90: 2, 100: 2}  # 64 on the others
SINGLE_FMA_PIPE = (75, 80)

# The first pattern that matches an opcode without modifiers determines the pipe and the cycles. FMA
# stands for either of the two FMA pipes, so its cycles are half of those of one pipe.
PIPES = {
    r"(LD|ST)[GSL]?|SHFL|LDC|ATOM[SG]?|REDG?": ("LSU", 4.0),
    r"FFMA|FMUL|FADD": ("FMA", 1.0),
    r"(FFMA|FMUL|FADD)2": ("FMA_BOTH", 2.0),
    r"IMAD|HFMA2": ("FMA_HEAVY", 2.0),
    r"MUFU": ("XU", 8.0),
    r"F2F|I2F|F2I|FRND": ("XU", 16.0),
    r"DFMA|DMUL|DADD|DSETP": ("FP64", 64.0),
    r"BAR|BRA|BRX|JMP|JMX|CALL|RET|EXIT|MEMBAR|BSSY|BSYNC|NOP|WARPSYNC|YIELD|(CGA)?ERRBAR|CCTL|BREAK|"
    r"DEPBAR|BMOV|ENDCOLLECTIVE": ("BRANCH", 1.0),
    r"U.*|R2UR|LDCU|S2U?R": ("UNIFORM", 2.0),
    r".*": ("ALU", 2.0),
}


def pipe(instruction: Instruction, arch: str) -> tuple[str, float]:
    """Return the pipe of an instruction, and the cycles for which a warp occupies the pipe."""
    base = instruction.base
    if base == "IMAD" and {"WIDE", "HI"} & set(instruction.modifiers):
        return "FMA_HEAVY", 4.0
    name, cycles = next(found for pattern, found in PIPES.items() if re.fullmatch(pattern, base))
    if name == "FP64":
        return name, float(FP64_CYCLES.get(number(arch), cycles))
    if name == "FMA" and number(arch) in SINGLE_FMA_PIPE:
        return "FMA_HEAVY", 2.0
    return name, cycles


def busy(code: Iterable[Instruction], arch: str) -> dict[str, float]:
    """Return the cycles for which a warp's instructions occupy each pipe."""
    found: dict[str, float] = {}
    for name, cycles in (pipe(i, arch) for i in code):
        found[name] = found.get(name, 0.0) + cycles
    return found
