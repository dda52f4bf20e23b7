"""Whole training steps of released packages, unmodified and with ``vae_fused``.

    python -m benchmarks.steps                       all cases, ten minutes; table, JSON
    python -m benchmarks.steps --cases scvi pythae   cases whose names contain one of these
    python -m benchmarks.steps --list                the cases

A step is forward, backward and ``optimizer.step()`` on one batch that stays in memory. Both
variants of a case train the same parameters. Only the latent and the likelihood differ.

work.py          the parts of a case: two losses of one model, and their isolated parts
measure.py       takes a case from its check to its row of figures
single_cell.py   scvi-tools
images.py        PyTorch's example, pythae, Pyro, diffusers
weights.py       bayesian-torch
sequences.py     torchrl, and a forecaster with a Student-t head
table.py         the table of the terminal, and those of README.md and docs/steps.md
"""
