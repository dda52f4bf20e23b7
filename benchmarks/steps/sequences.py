"""Sequence models: torchrl's Dreamer world model, and a forecaster with a Student-t head."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import StudentT

import vae_fused as vf
from benchmarks.cases import Case, Contest, Noise, part
from benchmarks.steps.work import training

# --- torchrl -------------------------------------------------------------------------------------

SEQUENCES, STEPS, STATE, BELIEF, ACTION = 4, 25, 30, 200, 6
RSSM = vf.Scale("softplus", std_min=0.1)  # tensordict's NormalParamExtractor
SQUARED_ERROR = vf.likelihoods.Gaussian(sigma=0.5**0.5, constants=False)
MOMENTS = [f"{q}_{part}" for q in ("posterior", "prior") for part in ("mean", "std")]


def sampled(projector: Any, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, raw scale and sample. Omit the projector's last module, which computes sigma."""
    mean, raw = projector[:-1](x).chunk(2, dim=-1)
    return mean, raw, vf.reparameterize(mean, raw, scale=RSSM, eps=noise(*mean.shape))


def world_model(encoder: Any, decoder: Any, prior: Any, posterior: Any, reward: Any) -> Any:
    """Wire the modules as in torchrl's own Dreamer."""
    from tensordict.nn import TensorDictModule, TensorDictSequential
    from torchrl.modules import RSSMRollout, WorldModelWrapper

    def wired(module: Any, inputs: list[Any], outputs: list[str]) -> Any:
        after = [name if name == "_" else ("next", name) for name in outputs]
        return TensorDictModule(module, in_keys=inputs, out_keys=after)

    state_and_belief = [("next", "state"), ("next", "belief")]
    rollout = RSSMRollout(
        wired(prior, ["state", "belief", "action"], ["prior_mean", "prior_std", "_", "belief"]),
        wired(
            posterior,
            [("next", "belief"), ("next", "encoded_latents")],
            ["posterior_mean", "posterior_std", "state"],
        ),
    )
    transition = TensorDictSequential(
        wired(encoder, [("next", "pixels")], ["encoded_latents"]),
        rollout,
        wired(decoder, state_and_belief, ["reco_pixels"]),
    )
    return WorldModelWrapper(transition, wired(reward, state_and_belief, ["reward"]))


def fused_kl(mean: Tensor, raw: Tensor, prior_mean: Tensor, prior_raw: Tensor) -> Tensor:
    """The KL of each time step."""
    prior = vf.Prior(prior_mean, prior_raw, RSSM)
    return vf.gaussian_kl(mean, raw, scale=RSSM, prior=prior, dim=-1)


def dreamer() -> Contest:
    from tensordict import TensorDict
    from torchrl.modules import MLP, ObsDecoder, ObsEncoder, RSSMPosterior, RSSMPrior
    from torchrl.objectives import DreamerModelLoss

    noise = Noise()
    prior = RSSMPrior(action_spec=torch.zeros(ACTION), hidden_dim=BELIEF, rnn_hidden_dim=BELIEF)
    posterior = RSSMPosterior(hidden_dim=BELIEF)
    encoder, decoder = ObsEncoder(), ObsDecoder()
    reward = MLP(out_features=1, depth=2, num_cells=300, activation_class=nn.ELU)
    networks = world_model(encoder, decoder, prior, posterior, reward)
    shape = (SEQUENCES, STEPS)
    batch = TensorDict(
        {
            "state": torch.zeros(*shape, STATE),
            "belief": torch.zeros(*shape, BELIEF),
            "action": torch.randn(*shape, ACTION),
            "next": {"pixels": torch.rand(*shape, 3, 64, 64), "reward": torch.randn(*shape, 1)},
        },
        shape,
    )
    networks(batch.clone())  # initializes the lazy layers
    loss, pixels = DreamerModelLoss(networks), batch["next", "pixels"]

    def fused_prior(state: Tensor, belief: Tensor, action: Tensor) -> tuple[Tensor, ...]:
        projected = prior.action_state_projector(torch.cat([state, action], dim=-1))
        belief = prior.rnn(projected, belief)
        return *sampled(prior.rnn_to_prior_projector, belief, noise), belief

    def fused_posterior(belief: Tensor, embedding: Tensor) -> tuple[Tensor, ...]:
        x = torch.cat([belief, embedding], dim=-1)
        return sampled(posterior.obs_rnn_to_post_projector, x, noise)

    def fused_error(y: Tensor) -> Tensor:
        return vf.nll(y, pixels, SQUARED_ERROR, dim=(2, 3, 4)).mean()

    def free_nats() -> float:
        """Return 3 as in torchrl, or 0 in the check: an untrained KL below 3 has no gradient."""
        return noise.weight(3.0, compared=0.0)

    def lambda_kl() -> float:
        return noise.weight(1.0, compared=1e3)

    def theirs() -> Tensor:
        loss.free_nats, loss.lambda_kl = free_nats(), lambda_kl()
        found: Tensor = sum(loss(batch)[0].values(), torch.zeros(())).sum()
        return found

    def ours() -> Tensor:
        with (
            mock.patch.object(prior, "forward", fused_prior),
            mock.patch.object(posterior, "forward", fused_posterior),
        ):
            td = networks(batch.copy().exclude(("next", "reward")))["next"]
        kl = fused_kl(*(td[name] for name in MOMENTS)).clamp_min(free_nats()).mean()
        rewards = vf.nll(td["reward"], batch["next", "reward"], SQUARED_ERROR, reduction="mean")
        return lambda_kl() * kl + fused_error(td["reco_pixels"]) + rewards

    td = networks(batch.clone())["next"]
    moments = [td[name] for name in MOMENTS]
    raws = [t.expm1().log() if i % 2 else t for i, t in enumerate(moments)]  # inverse of softplus

    def states(draw: Callable[[Tensor, Tensor], Tensor], *moments: Tensor) -> Tensor:
        """Draw one time step after the other, as the rollout does."""
        steps = zip(*(t.unbind(1) for t in moments), strict=True)
        drawn = [draw(*pair) for step in steps for pair in (step[:2], step[2:])]
        return torch.stack(drawn).sum()

    def their_latent(*leaves: Tensor) -> Tensor:
        q_mean, q_raw, p_mean, p_raw = leaves
        q_std, p_std = (F.softplus(raw).clamp_min(0.1) for raw in (q_raw, p_raw))
        kl: Tensor = loss.kl_loss(p_mean, p_std, q_mean, q_std)
        return kl + states(
            lambda mean, std: mean + torch.randn_like(std) * std, q_mean, q_std, p_mean, p_std
        )

    def our_latent(*leaves: Tensor) -> Tensor:
        kl = fused_kl(*leaves).clamp_min(loss.free_nats).mean()
        return kl + states(partial(vf.reparameterize, scale=RSSM), *leaves)

    parts = {
        "latent": part(raws, theirs=their_latent, ours=our_latent),
        "loss": part(
            [td["reco_pixels"]],
            theirs=lambda y: F.mse_loss(y, pixels, reduction="none").sum((-3, -2, -1)).mean(),
            ours=fused_error,
        ),
    }
    return training(networks.parameters(), theirs, ours, parts, noise)


# --- a forecaster, written here after DeepAR -----------------------------------------------------

SERIES, LENGTH, FEATURES = 64, 168, 8


class Forecaster(nn.Module):
    """An LSTM that returns three values for each time step: location, raw scale, raw df."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1 + FEATURES, 40, num_layers=2, batch_first=True)
        self.head = nn.Linear(40, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.head(self.lstm(x)[0]).unbind(-1))


def deepar() -> Contest:
    model, kind = Forecaster(), vf.likelihoods.StudentT("softplus")
    inputs, x = torch.randn(SERIES, LENGTH, 1 + FEATURES), torch.randn(SERIES, LENGTH)

    def loss(mean: Tensor, raw: Tensor, raw_df: Tensor) -> Any:
        q = StudentT(2.0 + F.softplus(raw_df), mean, F.softplus(raw))
        return -q.log_prob(x).mean()

    def fused(mean: Tensor, raw: Tensor, raw_df: Tensor) -> Tensor:
        return vf.nll((mean, raw, 2.0 + F.softplus(raw_df)), x, kind, reduction="mean")

    parts = {"loss": part([t.contiguous() for t in model(inputs)], theirs=loss, ours=fused)}
    return training(
        model.parameters(), lambda: loss(*model(inputs)), lambda: fused(*model(inputs)), parts
    )


CASES = [
    Case("torchrl dreamer", dreamer,
         f"Dreamer's world model: RSSM rollout and loss, {SEQUENCES} sequences of {STEPS} images",
         "torchrl"),
    Case("student-t", deepar,
         f"LSTM with a Student-t head after DeepAR, {SERIES} series of {LENGTH} steps"),
]  # fmt: skip
