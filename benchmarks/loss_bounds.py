"""The loss of an importance-weighted model after its decoder, against common eager code."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Normal

import vae_fused as vf
from benchmarks.steps.work import Noise

SAMPLES, BATCH, LATENT, PIXELS = 50, 128, 20, 784
EAGER = "torch.distributions"


def iwae(noise: Noise) -> tuple[list[Tensor], dict[str, Callable[[], Tensor]]]:
    """Samples, their log ratios, the likelihoods of given logits, and the bound.

    The decoder is not part of the loss, so z affects only the log ratio.
    """
    mu, logvar = torch.randn(BATCH, LATENT), 0.3 * torch.randn(BATCH, LATENT)
    logits, pixels = torch.randn(SAMPLES, BATCH, PIXELS), torch.rand(BATCH, PIXELS)
    standard = Normal(torch.zeros(LATENT), torch.ones(LATENT))

    def ours() -> Tensor:
        _, log_ratio = vf.reparameterize_kl(
            mu, logvar, sample_shape=SAMPLES, estimator="sample", reduction="sample",
            eps=noise(SAMPLES, BATCH, LATENT),
        )  # fmt: skip
        nll = vf.nll(logits, pixels, "bernoulli", dim=-1)
        return vf.iwae_loss(nll, log_ratio, reduction="sum").loss

    def eager() -> Tensor:
        q = Normal(mu, torch.exp(0.5 * logvar))
        z = q.rsample((SAMPLES,))
        log_ratio = (q.log_prob(z) - standard.log_prob(z)).sum(-1)
        nll = F.binary_cross_entropy_with_logits(
            logits, pixels.expand(SAMPLES, -1, -1), reduction="none"
        ).sum(-1)
        return -(torch.logsumexp(-nll - log_ratio, 0) - math.log(SAMPLES)).sum()

    return [mu, logvar, logits], {"vae_fused": ours, EAGER: eager}
