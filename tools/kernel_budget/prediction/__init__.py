"""Predicts a kernel's share of a copy's bandwidth from its machine code.

No GPU has confirmed this model. It is frozen: predictions are comparable only with the same
MODEL_VERSION, so each change to the list below increments it and renews the baseline.

One of the four parts of an SM is simulated, cycle by cycle:

  issue      One instruction per cycle, from one warp. The warp that issued last has priority, then
             the others in turn. A warp issues in order.
  operands   An instruction waits for its sources and for the last write to its destinations (a
             scoreboard; `registers.py` defines what an instruction reads and writes).
  pipes      `pipes.py` defines the pipe of each instruction, for how many cycles it occupies the
             pipe, and its latency. 32-bit floats use either of two FMA pipes from compute
             capability 8.6 on, integers use the heavy one.
  loads      LSU accepts an instruction every four cycles. Data pass at 32 bytes per cycle, a
             quarter of the SM's 128. A request reaches memory after half of the latency, is served
             in order at this part's share of the copy's bandwidth, and returns after the other
             half, which varies by a fifth of the whole latency. Stores take the same bandwidth, but
             no instruction waits for them. All accesses miss the caches.
  blocks     Registers, shared memory and threads limit the resident blocks. All warps of a block
             run the same path: from the entry to the hot loop, around it, and to the exit
             (`paths.py`). Before and after the loop guarded global accesses are off, except those
             of a step before it. A barrier waits for the block's warps in this part.
             The first blocks start within 400 cycles. A finished block is replaced after 100.
  fences     An atomic and a fence of the GPU's scope each take half of the latency: a trip to L2.
  size       The SM with the most blocks determines the time. It has its blocks' share of the
             bandwidth, so a bandwidth-bound kernel reaches 1 with any number of blocks.
  copy       A copy of as many bytes takes the bytes over its bandwidth, plus one latency.
  results    Both are averages over seeds, which vary the starts of blocks and the return of
             requests:
               share   The time of the copy over that of the whole launch.
               loop    The same for the hot loop alone, with all resident warps always in it. This
                       is the limit of `share` for large tensors.

Not modelled: caches of instructions and constants, DRAM rows and read-write turnaround, partially
read or written sectors, register banks, the launch itself.
"""

MODEL_VERSION = 1
