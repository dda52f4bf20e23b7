"""The cost of the CUDA kernels, read from their machine code: `python -m tools.kernel_budget`.

kernels.py     reads an extension, and defines what is counted
sass.py        listings: instructions, control flow, loops, paths
hot_path.py    the instructions that determine a kernel's cost
registers.py   which vector registers an instruction reads and writes
in_flight.py   bytes that a thread requests before it waits
occupancy.py   how many threads of a kernel an SM holds at once
pipes.py       cycles for which instructions occupy an SM's pipes
record.py      budget.json, and the comparison of a build with it
document.py    the tables of a record
"""
