"""Eager PyTorch: the Gaussian and likelihood formulas, and complete checked calls."""
