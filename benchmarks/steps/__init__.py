"""Whole training steps of released packages: see ``python -m benchmarks.steps --help``."""
