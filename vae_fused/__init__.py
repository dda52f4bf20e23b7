"""Fused sampling and KL for models with a diagonal-Gaussian posterior.

One forward launch computes the reparameterized sample ``z = mu + sigma * eps`` and the Gaussian KL.
One backward launch computes all gradients and regenerates the noise from a 16-byte key.

    >>> import torch, vae_fused as vf
    >>> mu, logvar = torch.zeros(128, 20), torch.zeros(128, 20)
    >>> z, kl = vf.reparameterize_kl(mu, logvar)

``vae_fused.reference`` contains the same functions in eager PyTorch. ``python -m vae_fused.env``
prints what was built and which code is in use.
"""

import sys

from vae_fused._install import version as __version__

try:
    from vae_fused import export, functional, likelihoods, nn, reference
    from vae_fused.distributions import DiagonalGaussian
    from vae_fused.elbo import ELBOTerms, elbo_loss
    from vae_fused.functional import (
        gaussian_kl,
        reparameterize,
        reparameterize_kl,
        reparameterize_kl_moments,
        sampled_kl,
    )
    from vae_fused.iwae import IWAETerms, iwae_loss
    from vae_fused.keys import key, normal
    from vae_fused.lists import gaussian_kl_multi, reparameterize_kl_multi
    from vae_fused.losses import gaussian_log_prob, nll
    from vae_fused.options import Prior, Scale
    from vae_fused.stats import LatentStats, latent_stats
except Exception:
    # `python -m vae_fused.env` imports this file first and must print even if torch fails to load.
    if "vae_fused.env" not in sys.orig_argv:
        raise

__all__ = [
    "DiagonalGaussian",
    "ELBOTerms",
    "IWAETerms",
    "LatentStats",
    "Prior",
    "Scale",
    "__version__",
    "elbo_loss",
    "export",
    "functional",
    "gaussian_kl",
    "gaussian_kl_multi",
    "gaussian_log_prob",
    "iwae_loss",
    "key",
    "latent_stats",
    "likelihoods",
    "nll",
    "nn",
    "normal",
    "reference",
    "reparameterize",
    "reparameterize_kl",
    "reparameterize_kl_moments",
    "reparameterize_kl_multi",
    "sampled_kl",
]
