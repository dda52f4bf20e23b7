"""Whole training steps of released packages, untouched and with ``vae_fused`` in them.

    python -m benchmarks.steps                       all cases, ten minutes; table, JSON
    python -m benchmarks.steps --cases scvi pythae   cases whose names contain one of these
    python -m benchmarks.steps --list                the cases

A step is forward, backward and ``optimizer.step()`` on one batch that stays in memory. Both
variants of a case train the same parameters: only the latent and the likelihood differ.

work.py          what a case consists of: two losses of one model, and their parts
measure.py       a case from its check to its row of figures
single_cell.py   scvi-tools
images.py        the example of PyTorch, pythae, Pyro, diffusers
weights.py       bayesian-torch
sequences.py     torchrl, and a forecaster with a Student-t head
table.py         the table of the terminal, and those of README.md and docs/steps.md
"""
