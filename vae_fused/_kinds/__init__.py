"""The kinds of likelihoods, in a file for each sort of data. ``vae_fused.likelihoods`` has them."""
