"""Losses with gradients computed in backward or in forward: see ``grad=`` of ``vf.nll``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import vae_fused as vf

Losses = tuple[list[Tensor], dict[str, Callable[[], Tensor]]]
FORWARD, SCALED = 'grad="forward"', 'grad="forward", scaled'


def ways(outputs: list[Tensor], target: Tensor, likelihood: Any, **options: Any) -> Losses:
    """The loss by default, with gradients in forward, and multiplied by a GradScaler's factor."""

    def loss(grad: str) -> Tensor:
        return vf.nll(tuple(outputs), target, likelihood, grad=grad, **options)

    scale = torch.tensor(2.0**16)

    def scaled() -> Tensor:
        return loss("forward") * scale

    return outputs, {"vae_fused": lambda: loss("backward"), FORWARD: lambda: loss("forward"),
                     SCALED: scaled}  # fmt: skip


def bernoulli(*shape: int) -> Losses:
    return ways([torch.randn(shape)], torch.rand(shape), "bernoulli")


def gaussian(*shape: int) -> Losses:
    return ways([torch.randn(shape), 0.3 * torch.randn(shape)], torch.randn(shape), "gaussian")


def counts(kind: Any, cells: int, genes: int, nonzero: float) -> Losses:
    more = 1.0 + torch.poisson(torch.ones(cells, genes))
    x = torch.where(torch.rand(cells, genes) < nonzero, more, 0.0)
    outputs = [torch.randn(cells, genes), torch.randn(genes)]
    if isinstance(kind, vf.likelihoods.ZeroInflatedNegativeBinomial):
        outputs.append(torch.randn(cells, genes))
    return ways(outputs, x, kind, library=torch.full((cells, 1), 8.0))
