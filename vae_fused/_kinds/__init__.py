"""The likelihood kinds, one file for each type of data; public in ``vae_fused.likelihoods``."""
