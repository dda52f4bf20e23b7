"""An interpreter of sm_90 machine code, which runs the compiled kernels without a GPU.

The kernels that nvcc compiles are executed instruction by instruction on the memory of this
process, so that a test can compare what the machine code computes with an oracle.

  cubin.py       reads a cubin: its kernels, their parameters, shared memory and constants
  operands.py    the text of an operand -> a description
  fields.py      one instruction's modifiers and operands, for the functions that define it
  integer.py, floating.py, conversion.py, moves.py, access.py, control.py
                 what each instruction does
  rounding.py    fused multiply-add and directed rounding, exactly as the hardware rounds
  mufu.py        the approximate functions, within their documented errors
  program.py     a kernel's listing -> a list of functions
  warps.py       registers, predicates and shared memory of the warps that run together
  schedule.py    which threads go on, barriers, reconvergence
  memory.py      global memory: buffers that were registered, and nothing else
  device.py      modules, launches, the order of blocks
  count.py       how many instructions a launch issues
  errors.py      what can go wrong, each by its name

An instruction, modifier or operand that is not defined here is an error when the kernel is decoded.
Accesses outside of registered buffers and of shared memory are errors, and so are races between the
warps of a block, shuffles from absent lanes and threads that wait forever.

Limits. Memory is sequentially consistent, so a missing fence is not noticed. The payload of a
computed NaN is numpy's. Timing, caches and the scoreboard do not exist.
"""
