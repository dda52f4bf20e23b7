"""Predicts from machine code which share of a copy's bandwidth a kernel reaches.

No GPU has confirmed this model. It is frozen: predictions are comparable only under the same
MODEL_VERSION, so a change to anything listed here raises it and renews the baseline.

One of the four parts of an SM is simulated, cycle by cycle:

  issue      One instruction a cycle, of one warp. The warp that issued last goes first, then the
             others in turn. A warp issues in order.
  operands   An instruction waits until its sources are there, and until the last write to its
             destinations is (a scoreboard; `registers.py` says what is read and written).
  pipes      `pipes.py` has the pipe of each instruction, for how many cycles it occupies the pipe,
             and after how many its result is there. 32-bit floats go by either of two FMA pipes
             from compute capability 8.6 on, integers by the heavy one.
  loads      LSU accepts an instruction every four cycles. Data pass at 32 bytes a cycle, a
             quarter of the SM's 128. A request reaches memory after half of the latency, is served
             in order at this part's share of the copy's bandwidth, and returns after the other
             half, which varies by a fifth of the whole latency. Stores take the same bandwidth and
             nobody waits for them. Nothing is found in a cache.
  blocks     Registers, shared memory and threads decide how many are resident. All warps of a
             block run the same path: from the entry to the hot loop, around it, and to the exit
             (`paths.py`). In front of the loop and behind it guarded global accesses are off, but
             for those of a step in front of it. A barrier waits for the block's warps in this part.
             The first blocks start within 400 cycles; a finished block is replaced after 100.
  fences     An atomic and a fence of the GPU's scope each take half of the latency: a trip to L2.
  size       The SM with the most blocks decides. It has its blocks' share of the bandwidth, so a
             kernel that is bound by bandwidth reaches 1 with any number of blocks.
  copy       A copy of as many bytes takes them over its bandwidth, and one latency.
  results    Both are averages over seeds, which vary the starts of blocks and the return of
             requests:
               share   The time of the copy over that of the whole launch.
               loop    The same of the hot loop alone, with all resident warps in it all the time:
                       what `share` approaches as tensors grow.

Not modelled: caches of instructions and constants, DRAM rows and the turn from reading to writing,
sectors that are read or written in parts, register banks, the launch itself.
"""

MODEL_VERSION = 1
