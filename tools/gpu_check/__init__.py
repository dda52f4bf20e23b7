"""Checks vae_fused on a machine with a GPU: see ``python -m tools.gpu_check --help``."""
