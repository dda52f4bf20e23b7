"""Benchmarks that anybody can repeat: ``python -m benchmarks --help``.

cases.py       what is computed: families of latents, their sizes, their inputs, the least bytes
formulas.py    each family as people write it, in plain PyTorch
contenders.py  who computes it: this library, the formulas, torch.distributions, other packages
truth.py       whether a contender computes it: values, gradients and noise against float64
measuring.py   time, in interleaved rounds
counting.py    bytes kept for backward, peak memory, dispatches, launches
calls.py       small latents: what options and integrations cost
losses.py      likelihoods, and training steps of scvi-tools: ``python -m benchmarks.losses``
training.py    whole training steps, with the latent as the only difference
steps/         whole training steps of released packages: ``python -m benchmarks.steps``
running.py     a case from its inputs to its row of results
machine.py     device, versions, commit
report.py      the table, the JSON, the comparison with an older one
plot.py        figures of a JSON: ``python -m benchmarks.plot FILE.json``
readme.py      README's measured parts, from JSONs
budget.py      apart from these: what each CUDA kernel costs, read from the machine code

test_regressions.py holds ratios to floors in CI, with pytest-benchmark.
"""

from __future__ import annotations

import importlib.machinery
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def prefer_installed(root: Path = ROOT) -> None:
    """Lets ``import vae_fused`` find an installed package before the sources of this checkout.

    ``python -m benchmarks`` and pytest put the checkout first on the path, where ``vae_fused`` is
    the sources, without compiled code. They keep that place if something was compiled beside them
    (``setup.py build_ext --inplace``), or if nothing is installed.
    """
    if "vae_fused" in sys.modules or any((root / "vae_fused").glob("_C*.so")):
        return
    here = [entry for entry in sys.path if Path(entry or ".").resolve() == root]
    others = [entry for entry in sys.path if entry not in here]
    if here and importlib.machinery.PathFinder.find_spec("vae_fused", others):
        sys.path[:] = [*others, *here]


prefer_installed()
