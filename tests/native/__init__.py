"""Tests of `csrc/` below PyTorch: the mathematics, and the kernels on both devices."""
