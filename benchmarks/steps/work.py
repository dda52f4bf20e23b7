"""Contests between a package and its fused variant, which train the same model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import vae_fused as vf
from benchmarks.cases import Contest, Noise, part

THEIRS, OURS = "theirs", "ours"
LR = 1e-5  # small, so parameters and the work of a step hardly change during timing

Latent = Callable[..., Any]  # of the encoder's outputs; returns a sample and its KL
Loss = Callable[..., Tensor]  # of the decoder's output and, in a whole step, of the KL


def training(
    parameters: Any,
    theirs: Callable[[], Tensor],
    ours: Callable[[], Tensor],
    parts: dict[str, Contest],
    noise: Noise | None = None,
    **options: Any,
) -> Contest:
    """Return a contest of two losses of one model. ``theirs`` is the unmodified package.

    ``ours`` generates its noise, but in the check it uses noise from torch, as ``theirs`` does.
    """
    leaves: list[nn.Parameter] = list(parameters)
    options.setdefault("optimizer", torch.optim.Adam(leaves, lr=LR))
    functions = {THEIRS: theirs, OURS: ours}
    return Contest(leaves, functions, noise or Noise(), parts=parts, **options)


def autoencoder(
    parameters: Any,
    theirs: Callable[[], Tensor],
    encode: Callable[[], Sequence[Tensor]],
    decode: Callable[[Tensor], Tensor],
    latents: tuple[Latent, Latent],
    losses: tuple[Loss, Loss],
    noise: Noise,
) -> Contest:
    """Compare the package's whole loss with a combination of its networks and our functions.

    ``latents`` and ``losses`` are pairs of isolated parts: the package's part, then ours.
    """

    def ours() -> Tensor:
        z, kl = latents[1](*encode())
        return losses[1](decode(z), kl)

    moments = encode()
    z = latents[1](*moments)[0]
    parts = {
        "latent": part(moments, theirs=latents[0], ours=latents[1]),
        "loss": part([decode(z)], theirs=losses[0], ours=losses[1]),
    }
    return training(parameters, theirs, ours, parts, noise)


def fused_latent(noise: Noise) -> Latent:
    return lambda mu, logvar: vf.reparameterize_kl(mu, logvar, eps=noise(*mu.shape))


def fused_loss(x: Tensor, likelihood: Any, reduction: str = "batchmean") -> Loss:
    """Return the likelihood alone or, with a KL averaged over the batch, the negative ELBO."""

    def loss(output: Any, kl: Tensor | None = None) -> Tensor:
        if kl is None:
            return vf.nll(output, x, likelihood, reduction=reduction)
        return vf.elbo_loss(output, x, kl=kl, likelihood=likelihood, reduction=reduction).loss

    return loss
