"""The cost of options and integrations for small latents, where call overhead dominates.

``OPTIONS`` compares calls with an option to the default call. ``CONTESTS`` compares the code that
users of other libraries write today with its equivalent here. Each function returns its steps as
functions without arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import softplus

import vae_fused as vf
from benchmarks.measuring import Step

Function: TypeAlias = Callable[[], Any]

SHAPE = (128, 20)
DREAMER = vf.Scale("softplus", std_floor=0.1)
SCVI = vf.Scale("logvar", var_floor=1e-4)


def options() -> dict[str, Function]:
    """Forward calls: the default one, and one with each option."""
    mu, raw, mean, prior_raw = (torch.randn(SHAPE) for _ in range(4))
    mask = torch.rand(SHAPE) > 0.1

    def call(**option: Any) -> Function:
        return lambda: vf.reparameterize_kl(mu, raw, **option)

    return {
        "default": call(),
        "kind of scale": call(scale="logstd"),
        "Scale": call(scale=DREAMER),
        "mask": call(mask=mask),
        "prior of tensors": call(prior=vf.Prior(mean, prior_raw)),
        "estimate": call(estimator="sample"),
    }


# The largest allowed time, in multiples of the default call's.
OPTIONS = {
    "kind of scale": 1.5, "Scale": 1.5, "mask": 1.5, "prior of tensors": 2.0, "estimate": 1.5,
}  # fmt: skip


def kl_of_distributions() -> tuple[Function, Function]:
    """``kl_divergence`` of existing distributions."""
    mu, sigma = torch.randn(SHAPE), torch.rand(SHAPE) + 0.1
    ours, theirs = vf.DiagonalGaussian(mu, sigma, scale="std"), Normal(mu, sigma)
    p = Normal(torch.zeros(SHAPE), torch.ones(SHAPE))
    return lambda: kl_divergence(ours, p), lambda: kl_divergence(theirs, p)


def kl_of_new_distributions() -> tuple[Function, Function]:
    """``kl_divergence`` of distributions that are constructed for each call."""
    mu, sigma = torch.randn(SHAPE), torch.rand(SHAPE) + 0.1
    mean, std = torch.zeros(SHAPE), torch.ones(SHAPE)

    def ours() -> Any:
        return kl_divergence(vf.DiagonalGaussian(mu, sigma, scale="std"), Normal(mean, std))

    return ours, lambda: kl_divergence(Normal(mu, sigma), Normal(mean, std))


def rssm_step(scale: str | vf.Scale, sigma_of: Callable[[Any], Any]) -> tuple[Function, Function]:
    """The sample of one time step and its gradients. ``sigma_of`` computes ``scale``'s sigma."""
    mu = torch.randn(50, 30, requires_grad=True)
    raw = torch.rand(50, 30).add(0.1).requires_grad_()

    def ours() -> None:
        vf.reparameterize(mu, raw, scale=scale).sum().backward()

    def theirs() -> None:
        sigma = sigma_of(raw)
        (mu + sigma * torch.randn_like(sigma)).sum().backward()

    return ours, theirs


def scvi_latent() -> tuple[Function, Function]:
    """The latent of scvi-tools: sample, KL and gradients, through ``torch.distributions``."""
    mu, raw = torch.randn(128, 10, requires_grad=True), torch.randn(128, 10, requires_grad=True)

    def step(q: Normal) -> None:
        z = q.rsample()
        p = Normal(torch.zeros_like(mu), torch.ones_like(mu))
        (z.sum() + kl_divergence(q, p).sum(-1).mean()).backward()

    return (
        lambda: step(vf.DiagonalGaussian(mu, raw, scale=SCVI)),
        lambda: step(Normal(mu, (raw.exp() + 1e-4).sqrt())),
    )


# The least time of theirs, in multiples of ours.
CONTESTS: dict[str, tuple[Callable[[], tuple[Function, Function]], float]] = {
    "KL of distributions": (kl_of_distributions, 1.0),
    "KL of new distributions": (kl_of_new_distributions, 1.0),
    "RSSM step, std": (lambda: rssm_step("std", lambda raw: raw), 0.5),
    "RSSM step, softplus": (lambda: rssm_step(DREAMER, lambda raw: softplus(raw) + 0.1), 0.7),
    "latent of scVI": (scvi_latent, 1.0),
}


def steps(functions: dict[str, Function], calls: int = 50) -> dict[str, Step]:
    """Steps that repeat each function ``calls`` times: one call is too short for the clock."""

    def repeated(function: Function) -> Callable[[], None]:
        def loop() -> None:
            for _ in range(calls):
                function()

        return loop

    return {name: Step(repeated(f), lambda _: None) for name, f in functions.items()}
