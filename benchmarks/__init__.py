"""Benchmarks that you can repeat: ``python -m benchmarks --help``.

Three commands measure, and each compares results before it times anything:

    python -m benchmarks          latents
    python -m benchmarks.losses   likelihoods
    python -m benchmarks.steps    whole training steps of released packages

They share these modules:

    cases.py       a case: contenders that compute the same outputs from the same leaves
    measuring.py   times contenders in interleaved rounds
    counting.py    counts dispatches, and the bytes kept for backward
    record.py      the JSON: machine, versions, commit, results
    tables.py      the tables of the terminal, and the comparison of two JSONs
    command.py     the options, and the loop over cases

    latents.py     workloads with a latent: sizes, inputs, exact results, minimum memory traffic
    formulas.py    each workload in eager PyTorch, as users write it
    contenders.py  the implementations: this library, the formulas, torch.distributions, packages
    running.py     measures a latent, and returns its row of results

    losses.py      likelihoods and the code that they are compared with
    steps/         the models of released packages: images, sequences, single cells, weights

``python -m benchmarks.plot`` draws the figure of a JSON, and ``python -m benchmarks.readme`` writes
the measured parts of README.md. In CI, tests/speed compares ratios with floors.
"""

from __future__ import annotations

import importlib.machinery
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def prefer_installed(root: Path = ROOT) -> None:
    """Let ``import vae_fused`` find an installed package before the sources of this checkout.

    ``python -m benchmarks`` and pytest put the checkout first on the path. The checkout has the
    sources of ``vae_fused``, but usually no compiled code. The checkout stays first if it contains
    compiled code (``setup.py build_ext --inplace``) or if the package is not installed.
    """
    if "vae_fused" in sys.modules or any((root / "vae_fused").glob("_C*.so")):
        return
    here = [entry for entry in sys.path if Path(entry or ".").resolve() == root]
    others = [entry for entry in sys.path if entry not in here]
    if here and importlib.machinery.PathFinder.find_spec("vae_fused", others):
        sys.path[:] = [*others, *here]


prefer_installed()
