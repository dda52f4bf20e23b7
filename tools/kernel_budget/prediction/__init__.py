"""Predicts the share of a copy's bandwidth that a kernel's hot loop reaches, from machine code.

No GPU has confirmed this model. It is frozen: predictions are comparable only with the same
MODEL_VERSION, so each change to the list below increments it and renews the baseline.

Launches approach the share of the loop as tensors grow. One of the four parts of an SM is
simulated, cycle by cycle:

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
  blocks     Registers, shared memory and threads limit the resident blocks. They start within 400
             cycles and stay in the hot loop (`hot_path.py`). A kernel whose hot loop contains a
             barrier, a fence or an atomic is not predicted.
  result     The bytes of the passes over the copy's bandwidth and their time, as an average over
             seeds, which vary the starts of blocks and the return of requests.

Not modelled: caches of instructions and constants, DRAM rows and read-write turnaround, partially
read or written sectors, register banks, the launch, and the ways to and from the loop.
"""

MODEL_VERSION = 1
