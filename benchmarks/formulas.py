"""The latents as users write them in eager PyTorch; each function returns ``(z, kl)``."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[Tensor, Tensor]


def plain(mu: Tensor, logvar: Tensor) -> Pair:
    """The VAE of most tutorials; the KL is in nats per item of the batch."""
    std = torch.exp(0.5 * logvar)
    z = mu + std * torch.randn_like(std)
    return z, -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp()) / mu.shape[0]


def moments(h: Tensor) -> Pair:
    """The autoencoder of latent diffusion: packed moments, a clamp, images."""
    mu, logvar = h.chunk(2, dim=1)
    logvar = torch.clamp(logvar, -30.0, 20.0)
    std, var = torch.exp(0.5 * logvar), torch.exp(logvar)
    z = mu + std * torch.randn_like(std)
    return z, (0.5 * torch.sum(mu.pow(2) + var - 1.0 - logvar, dim=[1, 2, 3])).mean()


def rssm(mu: Tensor, raw: Tensor, prior_mu: Tensor, prior_raw: Tensor) -> Pair:
    """A recurrent state-space model: softplus and a floor, a learned prior; nats per time step."""
    std, prior_std = F.softplus(raw) + 0.1, F.softplus(prior_raw) + 0.1
    z = mu + std * torch.randn_like(std)
    ratio = (std / prior_std).pow(2)
    distance = ((mu - prior_mu) / prior_std).pow(2)
    return z, (0.5 * (ratio + distance - 1 - ratio.log())).sum(-1).mean()


def masked(mu: Tensor, logvar: Tensor, mask: Tensor) -> Pair:
    """Sequences that end at different times, with a mask (B, T, 1); nats per unmasked element."""
    std = torch.exp(0.5 * logvar)
    z = (mu + std * torch.randn_like(std)) * mask
    kl = -0.5 * (1 + logvar - mu.pow(2) - logvar.exp())
    return z, (kl * mask).sum() / (mask.sum() * mu.shape[-1])


def samples(mu: Tensor, logvar: Tensor, count: int) -> Pair:
    """Several samples of each posterior, as for importance-weighted bounds; nats per item."""
    std = torch.exp(0.5 * logvar)
    eps = torch.randn(count, *mu.shape, dtype=mu.dtype, device=mu.device)
    z = mu + std * eps
    return z, -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp()) / mu.shape[0]


def layers(mus: list[Tensor], rhos: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Weights of Bayesian layers (Blundell et al. 2015), prior N(0, 0.1^2); nats in total."""
    prior_std = 0.1
    zs, kls = [], []
    for mu, rho in zip(mus, rhos, strict=True):
        std = F.softplus(rho)
        zs.append(mu + std * torch.randn_like(std))
        kl = math.log(prior_std) - std.log() + (std.pow(2) + mu.pow(2)) / (2 * prior_std**2) - 0.5
        kls.append(kl.sum())
    return zs, torch.stack(kls).sum()
