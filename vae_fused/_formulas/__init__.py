"""Eager PyTorch: the formulas of the Gaussian and of the likelihoods, and whole checked calls."""
