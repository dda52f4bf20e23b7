"""An interpreter for sm_90 machine code, which runs the compiled kernels without a GPU.

The kernels that nvcc compiles are executed instruction by instruction on the memory of this
process, so that a test can compare the results of the machine code with an oracle.

  cubin.py       reads a cubin: its kernels, their parameters, shared memory and constants
  operands.py    parses the text of an operand
  fields.py      modifiers and operands of an instruction, for the functions that define it
  integer.py, floating.py, conversion.py, moves.py, access.py, control.py
                 define the instructions
  rounding.py    fused multiply-add and directed rounding, exactly as the hardware rounds
  mufu.py        the approximate functions, within their documented errors
  program.py     decodes a kernel's listing into a list of functions
  warps.py       registers, predicates and shared memory of the warps that run together
  schedule.py    selects the threads that execute next; barriers and reconvergence
  memory.py      global memory: registered buffers only
  device.py      modules, launches, the order of blocks
  count.py       counts the instructions that the hot kernels issue, for the budget
  errors.py      the exceptions

An instruction, modifier or operand that is not defined here causes an error when the kernel is
decoded. Accesses outside of registered buffers and of shared memory are errors, and so are races
between the warps of a block, shuffles from absent lanes and threads that wait forever.

Limits: Memory is sequentially consistent, so a missing fence is not detected. A NaN that arithmetic
produces has the payload that numpy gives it. Timing, caches and the scoreboard are not modelled.
"""
