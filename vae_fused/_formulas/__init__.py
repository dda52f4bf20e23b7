"""The formulas in eager PyTorch: of the Gaussian, of the likelihoods, and of checked calls."""
