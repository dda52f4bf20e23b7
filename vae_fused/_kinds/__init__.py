"""The kinds of likelihoods, one file for each sort of data; public in ``vae_fused.likelihoods``."""
