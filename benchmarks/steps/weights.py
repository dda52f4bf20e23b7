"""A network of Bayesian layers, whose weights are the latent."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vae_fused as vf
from benchmarks.cases import Case, Contest, Noise, part
from benchmarks.steps.work import THEIRS, training

BATCH, WIDTH, LAYERS = 128, 512, 3
DATA = 50_000  # the number of items over which the weights' KL is averaged
OPTIONS = {
    "prior_mu": 0.0, "prior_sigma": 1.0, "posterior_mu_init": 0.0, "posterior_rho_init": -3.0,
    "type": "Reparameterization", "moped_enable": False,
}  # fmt: skip


def bayesian_torch(converted: bool) -> Contest:
    """One of the two documented uses of bayesian-torch. Our variant is one call for all weights.

    Args:
        converted: Whether ``get_kl_loss`` computes the KL, as for layers that ``dnn_to_bnn`` has
            converted. Otherwise the layers return their KL from ``forward``.
    """
    from bayesian_torch.models.dnn_to_bnn import dnn_to_bnn, get_kl_loss

    model = nn.Sequential()
    for i in range(LAYERS):
        model.extend([nn.ReLU()] * bool(i) + [nn.Linear(WIDTH, WIDTH)])
    dnn_to_bnn(model, OPTIONS)
    model.to(torch.get_default_device())
    layers: list[Any] = [module for module in model if hasattr(module, "mu_weight")]
    for layer in layers:
        layer.dnn_to_bnn_flag = converted
    noise = Noise()
    x, labels = torch.randn(BATCH, WIDTH), torch.randint(WIDTH, (BATCH,))
    mus = [t for layer in layers for t in (layer.mu_weight, layer.mu_bias)]
    rhos = [t for layer in layers for t in (layer.rho_weight, layer.rho_bias)]
    prior = vf.Prior(0.0, 1.0, "std")

    def total(logits: Tensor, kl: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels) + noise.weight(1 / DATA) * kl

    def theirs() -> Tensor:
        if converted:
            return total(model(x), get_kl_loss(model))
        y, kls = x, torch.zeros(())
        for i, layer in enumerate(layers):
            y, kl = layer(F.relu(y) if i else y)
            kls = kls + kl
        return total(y, kls)

    def fused(*leaves: Tensor) -> list[Tensor]:
        """Return all weights, and their KL."""
        eps = [noise(*leaf.shape) for leaf in leaves[: 2 * LAYERS]]
        weights, kl = vf.reparameterize_kl_multi(
            leaves[: 2 * LAYERS],
            leaves[2 * LAYERS :],
            scale="softplus",
            prior=prior,
            reduction="mean",
            eps=[e for e in eps if e is not None] or None,
        )
        return [*weights, kl]

    def ours() -> Tensor:
        *weights, kl = fused(*mus, *rhos)
        y = x
        for i in range(LAYERS):
            y = F.linear(F.relu(y) if i else y, weights[2 * i], weights[2 * i + 1])
        return total(y, kl)

    def their_latent(*leaves: Tensor) -> list[Tensor]:
        """Compute what ``LinearReparameterization.forward`` does, with its own KL function."""
        results = []
        for i, layer in enumerate(layers):
            for k, name in enumerate(("weight", "bias")):
                mu, rho = leaves[2 * i + k], leaves[2 * LAYERS + 2 * i + k]
                sigma = torch.log1p(torch.exp(rho))
                results.append(mu + sigma * getattr(layer, f"eps_{name}").data.normal_())
                if converted:  # get_kl_loss computes sigma again
                    sigma = torch.log1p(torch.exp(rho))
                prior = (getattr(layer, f"prior_{name}_{part}") for part in ("mu", "sigma"))
                results.append(layer.kl_div(mu, sigma, *prior))
        return results

    parts = {"latent": part([*mus, *rhos], theirs=their_latent, ours=fused)}
    return training(model.parameters(), theirs, ours, parts, noise)


_MADE: dict[str, Any] = {"package": "bayesian-torch", "targets": {THEIRS: 2.0}}
CASES = [
    Case("bayesian-torch", partial(bayesian_torch, True),
         f"{LAYERS} Bayesian layers of {WIDTH} by dnn_to_bnn and get_kl_loss, batch {BATCH}",
         **_MADE),
    Case("bayesian-torch layers", partial(bayesian_torch, False),
         f"{LAYERS} LinearReparameterization layers of {WIDTH}, which return their KL", **_MADE),
]  # fmt: skip
