"""The formulas in plain PyTorch: of the Gaussian, of likelihoods, and of checked calls."""
