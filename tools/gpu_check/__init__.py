"""Checks the promises of vae_fused on a machine with a GPU, with pytest and the benchmarks.

__main__.py   the command line: the steps in turn, each with its share of the time
steps.py      the steps
commands.py   processes with time limits and logs, and how to call NVIDIA's tools
report.py     the folder of results and the table
bundle.py     the files that are prepared on a machine without a GPU

Its pytest plugin is tests/gpu_plugin.py, and tests/gpu contains what NVIDIA's tools run.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
