"""Losses of real data, grey values and pixels: ours, and common torch code for the same losses.

Each function returns the leaves of a loss, and the loss of each contender: see benchmarks.losses.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch import distributions as td

import vae_fused as vf

L = vf.likelihoods
Losses: TypeAlias = tuple[list[Tensor], dict[str, Callable[[], Tensor]]]
OURS = "vae_fused"
MILLION = 2**20


def student_t(learned: bool) -> Losses:
    """With a learned scale, and degrees of freedom that are learned or fixed."""
    mean, raw = torch.randn(MILLION), 0.3 * torch.randn(MILLION)
    x, df = mean + td.StudentT(4.0).sample((MILLION,)), 1.0 + 4.0 * torch.rand(MILLION)
    kind = L.StudentT("logstd") if learned else L.StudentT("logstd", df=4.0)
    leaves = [mean, raw, df] if learned else [mean, raw]
    freedom = df if learned else 4.0
    return leaves, {
        OURS: lambda: vf.nll(leaves, x, kind, reduction="sum"),
        "StudentT.log_prob": lambda: -td.StudentT(freedom, mean, raw.exp()).log_prob(x).sum(),
    }


def continuous_bernoulli() -> Losses:
    logits, x = torch.randn(MILLION), torch.rand(MILLION)

    def theirs() -> Tensor:
        return -td.ContinuousBernoulli(logits=logits).log_prob(x).sum()

    return [logits], {
        OURS: lambda: vf.nll(logits, x, "continuous_bernoulli", reduction="sum"),
        "ContinuousBernoulli.log_prob": theirs,
    }


def negative_binomial_logits() -> Losses:
    """Counts, 11 % of which are not 0."""
    total, logits = 0.5 + torch.rand(MILLION), torch.randn(MILLION)
    counts = torch.poisson(torch.full((MILLION,), 2.0)) + 1
    counts *= torch.rand(MILLION) < 0.11

    def theirs() -> Tensor:
        return -td.NegativeBinomial(total, logits=logits).log_prob(counts).sum()

    return [total, logits], {
        OURS: lambda: vf.nll((total, logits), counts, "negative_binomial_logits", reduction="sum"),
        "NegativeBinomial.log_prob": theirs,
    }


def discretized_logistic() -> Losses:
    """8-bit pixels, against the formula of vdvae and others."""
    x = torch.randint(0, 256, (MILLION,)) / 127.5 - 1.0
    mean, log_scale = x + 0.05 * torch.randn(MILLION), -3.0 + 0.3 * torch.randn(MILLION)

    def theirs() -> Tensor:
        scale = log_scale.clamp(min=-7.0)
        inverse, c = torch.exp(-scale), x - mean
        p, q, middle = inverse * (c + 1 / 255), inverse * (c - 1 / 255), inverse * c
        difference = torch.sigmoid(p) - torch.sigmoid(q)
        density = middle - scale - 2.0 * F.softplus(middle) - math.log(127.5)
        inner = torch.where(difference > 1e-5, torch.log(difference.clamp(min=1e-12)), density)
        inner = torch.where(x > 0.999, -F.softplus(q), inner)
        return -torch.where(x < -0.999, p - F.softplus(p), inner).sum()

    return [mean, log_scale], {
        OURS: lambda: vf.nll((mean, log_scale), x, "discretized_logistic", reduction="sum"),
        "vdvae's formula": theirs,
    }
