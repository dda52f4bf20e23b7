"""Benchmarks that you can repeat: ``python -m benchmarks --help``.

cases.py       the cases: workloads with a latent, their sizes, inputs and least memory traffic
formulas.py    each workload in eager PyTorch, as users write it
contenders.py  the implementations: this library, the formulas, torch.distributions, other packages
truth.py       checks the values, gradients and noise of a contender against float64
measuring.py   times contenders in interleaved rounds
counting.py    counts bytes kept for backward, peak memory, dispatches and launches
calls.py       the cost of options and integrations for small latents
losses.py      likelihoods, and training steps of scvi-tools: ``python -m benchmarks.losses``
training.py    whole training steps, with the latent as the only difference
steps/         whole training steps of released packages: ``python -m benchmarks.steps``
running.py     takes one case from its inputs to its row of results
machine.py     device, versions, commit
report.py      the table, the JSON, and the comparison with an older JSON
plot.py        figures of a JSON: ``python -m benchmarks.plot FILE.json``
readme.py      writes the measured parts of README.md from JSONs

test_regressions.py compares ratios with floors in CI, with pytest-benchmark.
"""

from __future__ import annotations

import importlib.machinery
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def prefer_installed(root: Path = ROOT) -> None:
    """Let ``import vae_fused`` find an installed package before the sources of this checkout.

    ``python -m benchmarks`` and pytest put the checkout first on the path, which contains the
    sources of ``vae_fused`` without compiled code. The checkout stays first if it contains compiled
    code (``setup.py build_ext --inplace``) or if the package is not installed.
    """
    if "vae_fused" in sys.modules or any((root / "vae_fused").glob("_C*.so")):
        return
    here = [entry for entry in sys.path if Path(entry or ".").resolve() == root]
    others = [entry for entry in sys.path if entry not in here]
    if here and importlib.machinery.PathFinder.find_spec("vae_fused", others):
        sys.path[:] = [*others, *here]


prefer_installed()
