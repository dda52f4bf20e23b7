"""The parts of a case: two losses of one model, the optimizer, and the isolated parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

import vae_fused as vf
from benchmarks.measuring import Step

THEIRS, OURS = "theirs", "ours"
LR = 1e-5  # small, so parameters and the work of a step hardly change during timing

Loss: TypeAlias = Callable[[], Tensor]


class NotInstalled(Exception):
    """A package that a case needs is not installed."""


class Noise:
    """The noise of the fused latent: its own, or ``torch.randn``'s during the check.

    Packages draw ``torch.randn_like``. In the check our variant draws the same after the same seed,
    so both variants compute one loss. In timed steps our variant generates the noise itself.
    """

    def __init__(self) -> None:
        self.is_given = False  # whether the variants are being compared

    def __call__(self, *shape: int) -> Tensor | None:
        return torch.randn(shape) if self.is_given else None

    def weight(self, timed: float, compared: float = 1.0) -> float:
        """A KL's weight, larger in the check: a tiny weight would hide a wrong KL."""
        return compared if self.is_given else timed


def negative_elbo(
    output: Any, target: Tensor, likelihood: Any, kl: Tensor, reduction: str = "batchmean"
) -> Tensor:
    """The loss of every case with an ELBO. ``kl`` is the mean over the batch."""
    return vf.elbo_loss(output, target, kl=kl, likelihood=likelihood, reduction=reduction).loss


@dataclasses.dataclass
class Part:
    """The latent or the loss alone, on detached inputs with the step's shapes."""

    leaves: Sequence[Tensor]
    theirs: Callable[..., Any]  # a function of the leaves; returns one or several tensors
    ours: Callable[..., Any]

    def __post_init__(self) -> None:
        self.leaves = [leaf.detach().clone().requires_grad_() for leaf in self.leaves]

    def step(self, name: str) -> Step:
        function: Callable[..., Any] = getattr(self, name)
        grads: list[Tensor] = []

        def backward(results: Any) -> Any:
            outputs = [results] if isinstance(results, Tensor) else list(results)
            if not grads:
                grads.extend(torch.ones_like(output) for output in outputs)
            return torch.autograd.grad(outputs, self.leaves, grads)

        return Step(lambda: function(*self.leaves), backward)


@dataclasses.dataclass
class Work:
    """One model with two losses, which train the same parameters.

    ``theirs`` is the unmodified package. ``ours`` takes its noise from ``noise``, or from torch as
    ``theirs`` does. ``tolerance`` bounds the relative difference of the losses and gradients.
    """

    parameters: Sequence[nn.Parameter]
    theirs: Loss
    ours: Loss
    noise: Noise
    parts: dict[str, Part]
    tolerance: float = 1e-4
    optimizer: torch.optim.Optimizer | None = None

    def __post_init__(self) -> None:
        self.parameters = [p for p in self.parameters if p.requires_grad]
        if self.optimizer is None:
            self.optimizer = torch.optim.Adam(self.parameters, lr=LR)

    def step(self, name: str) -> Step:
        loss: Loss = getattr(self, name)
        optimizer = self.optimizer
        assert optimizer is not None

        def backward(value: Tensor) -> None:
            optimizer.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        return Step(loss, backward)


@dataclasses.dataclass(frozen=True)
class Case:
    """A case, which imports its package only when it runs."""

    name: str
    package: str  # pip's name, or "" if the model is written here
    what: str
    make: Callable[[], Work]
    target: float | None = None  # least ratio of their time to ours
