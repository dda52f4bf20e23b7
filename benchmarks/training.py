"""Whole training steps with the latent as the only difference: its effect on a model's step time.

``no latent`` decodes the mean and has no KL. Its time is the step without the latent, and so the
bound of any saving. All latents train one model, so that even addresses agree. Images are
random, because no time here depends on their content.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import machine
from benchmarks.cases import Case, inputs
from benchmarks.contenders import Contender, Latent
from benchmarks.measuring import Clock, Samples, Step, interleaved, paired, summary
from benchmarks.running import BASES, Row, admitted, reason, tidy

NONE = "no latent"
LONGER = 3  # factor on a case's time, because the differences are small
CONTENDERS = ("vae_fused", "eager", "distributions", "compile", "diffusers")


@dataclasses.dataclass(frozen=True)
class Training:
    """A model and its batch. ``latent`` is the case that matches its encoder's output."""

    name: str
    what: str
    model: Callable[[], nn.Module]
    images: tuple[int, ...]
    latent: Case


class Digits(nn.Module):
    """The model of examples/train_digits.py."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(64, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 20)
        )
        self.decoder = nn.Sequential(
            nn.Linear(10, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 64)
        )

    def loss(self, x: Tensor, latent: Latent) -> Tensor:
        mu, logvar = self.encoder(x).chunk(2, dim=1)
        z, kl = latent(mu, logvar)
        logits = self.decoder(z)
        return F.binary_cross_entropy_with_logits(logits, x, reduction="sum") / len(x) + kl


class Autoencoder(nn.Module):
    """A small autoencoder with packed moments at a quarter of the image's side length."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, 4, stride=2, padding=1), nn.SiLU(),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1), nn.SiLU(),
            nn.Conv2d(2 * width, 8, 3, padding=1),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Conv2d(4, 2 * width, 3, padding=1), nn.SiLU(),
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1), nn.SiLU(),
            nn.ConvTranspose2d(width, 3, 4, stride=2, padding=1),
        )  # fmt: skip

    def loss(self, x: Tensor, latent: Latent) -> Tensor:
        z, kl = latent(self.encoder(x))
        return F.mse_loss(self.decoder(z), x, reduction="sum") / len(x) + 1e-6 * kl


TRAININGS = {
    t.name: t
    for t in [
        Training(
            "digits",
            "the model of examples/train_digits.py, batch 100, latent 10",
            Digits,
            (100, 64),
            Case("plain", (100, 10)),
        ),
        Training(
            "autoencoder",
            "convolutions, 16 images of 64x64, moments 16x8x16x16",
            Autoencoder,
            (16, 3, 64, 64),
            Case("moments", (16, 8, 16, 16)),
        ),
    ]
}


def no_latent(*moments: Tensor) -> tuple[Tensor, Tensor]:
    mu = moments[0] if len(moments) > 1 else moments[0].chunk(2, dim=1)[0]
    return mu, mu.new_zeros(())


def training_step(model: Any, optimizer: Any, x: Tensor, latent: Latent) -> Step:
    def backward(loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return Step(lambda: model.loss(x, latent), backward)


def measure(
    training: Training,
    contenders: Sequence[Contender],
    device: str,
    clock: Clock,
    seconds: float,
    tick: Callable[[float], None] = lambda _: None,
    fewest: int = 7,
) -> Row:
    """Times of the whole step with each latent, and the latent's share of each."""
    tidy(device, reset=True)
    chosen = [c for c in contenders if c.name in CONTENDERS]
    data = inputs(training.latent, device)
    latents, unable, wrong = admitted(chosen, training.latent, device, data)
    torch.manual_seed(0)
    model = training.model().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    x = torch.rand(training.images, device=device)
    steps = {}
    for name, latent in (*latents.items(), (NONE, no_latent)):
        step = training_step(model, optimizer, x, latent)
        try:
            step()
        except Exception as error:
            unable[name] = reason(error)
        else:
            steps[name] = step
    others = machine.Others()
    samples = interleaved(steps, clock, LONGER * seconds, tick, fewest)
    others_took = others.share()
    kind = "step_wall" if device == "cuda" else "step"
    base = next(name for name in (*BASES, NONE) if name in steps)
    figures = {name: summary(samples[name], samples[base]) for name in steps}
    for name, figure in figures.items():
        rest = statistics.median(paired(samples[NONE][kind], samples[name][kind]))
        figure["latent_share"] = round(1 - rest, 4)
    return {
        "training": training.name,
        "what": training.what,
        "latent": training.latent.name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "clock": kind,
        "base": base,
        "others": others_took,
        "contenders": figures,
        "saved_of_eager_step": saved(samples, kind),
        "unable": unable,
        "wrong": wrong,
    }


def saved(samples: dict[str, Samples], kind: str) -> dict[str, float] | None:
    """The share of the eager step that this library saves, and its uncertainty."""
    if not {"vae_fused", "eager"} <= set(samples):
        return None
    shares = [1 - ratio for ratio in paired(samples["vae_fused"][kind], samples["eager"][kind])]
    low, median, high = statistics.quantiles(shares, n=4)
    # The standard error of a normal's median: 1.25 sigma / sqrt(n), sigma = (q3 - q1) / 1.35.
    error = 0.93 * (high - low) / math.sqrt(len(shares))
    return {"share": round(median, 5), "standard_error": round(error, 5)}
