"""A VAE whose evidence is known: p(z) = N(0, I), p(x|z) = N(Wz + b, s^2 I), in float64.

Then x ~ N(b, W W^T + s^2 I). The columns of W are orthogonal, so the true posterior is a diagonal
Gaussian, which the posterior of a VAE can match exactly.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

import vae_fused as vf

F64 = torch.float64


class LinearGaussian(NamedTuple):
    weight: Tensor  # W, (D, L)
    bias: Tensor  # b, (D,)
    noise: float  # s
    x: Tensor  # drawn from the model, (B, D)

    def log_evidence(self) -> Tensor:
        """ln p(x), of shape (B,)."""
        covariance = self.weight @ self.weight.T + self.noise**2 * torch.eye(len(self.bias)).to(F64)
        return torch.distributions.MultivariateNormal(self.bias, covariance).log_prob(self.x)

    def posterior(self) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of p(z|x), each of shape (B, L)."""
        precision = 1.0 + self.weight.square().sum(0) / self.noise**2
        mean = (self.x - self.bias) @ self.weight / self.noise**2 / precision
        return mean, (-precision.log()).expand_as(mean)

    def nll(self, z: Tensor) -> Tensor:
        """-ln p(x|z), of shape (..., B), for samples of shape (..., B, L)."""
        likelihood = vf.likelihoods.Gaussian(sigma=self.noise)
        return vf.nll(z @ self.weight.T + self.bias, self.x, likelihood, dim=-1)

    def expected_nll(self, mu: Tensor, logvar: Tensor) -> Tensor:
        """E_q[-ln p(x|z)]: the value at q's mean, plus the term that q's variance adds."""
        spread = (logvar.exp() * self.weight.square().sum(0)).sum(-1)
        return self.nll(mu) + spread / (2.0 * self.noise**2)

    def elbo(self, mu: Tensor, logvar: Tensor) -> Tensor:
        """The exact evidence lower bound, of shape (B,)."""
        return -self.expected_nll(mu, logvar) - vf.gaussian_kl(mu, logvar, reduction="sample")

    def log_ratio(self, z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
        """ln q(z|x) - ln p(z), of shape (..., B)."""
        zero = torch.zeros((), dtype=F64)
        log_q = vf.gaussian_log_prob(z, mu, logvar, dim=-1)
        return log_q - vf.gaussian_log_prob(z, zero, zero, dim=-1)


def linear_gaussian(
    batch: int, data: int = 5, latent: int = 3, noise: float = 0.7, seed: int = 0
) -> LinearGaussian:
    """Returns a model with data drawn from it."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=F64)

    directions, _ = torch.linalg.qr(normal(data, latent))
    weight = directions * torch.linspace(0.5, 1.5, latent, dtype=F64)
    bias = normal(data)
    x = normal(batch, latent) @ weight.T + bias + noise * normal(batch, data)
    return LinearGaussian(weight, bias, noise, x)


def standard_error(samples: Tensor, dim: int = 0) -> Tensor:
    """The standard error of the mean over ``dim``."""
    return samples.std(dim) / math.sqrt(samples.shape[dim])
