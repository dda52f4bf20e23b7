"""Whole training steps with the latent as the only difference: its effect on a model's step time.

Without a latent a model decodes the mean and has no KL. That is the bound of any saving. Images are
random, because no time here depends on their content.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.cases import Contest
from benchmarks.latents import Function, Latent

NONE = "no latent"
LONGER = 3  # factor on a case's time, because the differences are small
CONTENDERS = ("vae_fused", "eager", "distributions", "compile", "diffusers")


class Autoencoder(nn.Module):
    """A model whose encoder returns the moments of its latent, packed on dimension 1."""

    def __init__(self, encoder: list[nn.Module], decoder: list[nn.Module]) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Sequential(*encoder), nn.Sequential(*decoder)

    def forward(self, x: Tensor, latent: Function, family: str) -> tuple[Tensor, Tensor]:
        """The output of the decoder, and the KL."""
        h = self.encoder(x)
        z, kl = latent(*(h.chunk(2, dim=1) if family == "plain" else [h]))
        return self.decoder(z), kl


def digits() -> Autoencoder:
    """The model of examples/train_digits.py."""

    def layers(first: int, last: int) -> list[nn.Module]:
        inner = [nn.Linear(first, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU()]
        return [*inner, nn.Linear(256, last)]

    return Autoencoder(layers(64, 20), layers(10, 64))


def images(width: int = 32) -> Autoencoder:
    """Convolutions to a quarter of the image's side length."""
    down, up = nn.Conv2d, nn.ConvTranspose2d
    half: Any = {"stride": 2, "padding": 1}
    return Autoencoder(
        [down(3, width, 4, **half), nn.SiLU(), down(width, 2 * width, 4, **half), nn.SiLU(),
         down(2 * width, 8, 3, padding=1)],
        [down(4, 2 * width, 3, padding=1), nn.SiLU(), up(2 * width, width, 4, **half), nn.SiLU(),
         up(width, 3, 4, **half)],
    )  # fmt: skip


def no_latent(*moments: Tensor) -> tuple[Tensor, Tensor]:
    mu = moments[0] if len(moments) > 1 else moments[0].chunk(2, dim=1)[0]
    return mu, mu.new_zeros(())


@dataclasses.dataclass(frozen=True)
class Training:
    """A model and its batch. ``latent`` is the case that matches its encoder's output."""

    name: str
    what: str
    model: Callable[[], Autoencoder]
    images: tuple[int, ...]
    latent: Latent
    error: Any
    weight: float = 1.0  # of the KL

    def contest(self, functions: dict[str, Function], device: str) -> Contest:
        """All latents train one model, so that even addresses agree."""
        torch.manual_seed(0)
        model, x = self.model().to(device), torch.rand(self.images, device=device)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

        def loss(latent: Function) -> Any:
            output, kl = model(x, latent, self.latent.family)
            return self.error(output, x, reduction="sum") / len(x) + self.weight * kl

        losses = {n: partial(loss, f) for n, f in {**functions, NONE: no_latent}.items()}
        return Contest(list(model.parameters()), losses, optimizer=optimizer)


TRAININGS = [
    Training("digits", "the model of examples/train_digits.py, batch 100, latent 10", digits,
             (100, 64), Latent("plain", (100, 10)), F.binary_cross_entropy_with_logits),
    Training("autoencoder", "convolutions, 16 images of 64x64, moments 16x8x16x16", images,
             (16, 3, 64, 64), Latent("moments", (16, 8, 16, 16)), F.mse_loss, 1e-6),
]  # fmt: skip
