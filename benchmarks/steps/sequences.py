"""Models of sequences: torchrl's Dreamer world model, and a forecaster with a Student-t head."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import StudentT

import vae_fused as vf
from benchmarks.steps.work import Case, Noise, NotInstalled, Part, Work

# --- torchrl -------------------------------------------------------------------------------------

SEQUENCES, STEPS, STATE, BELIEF, ACTION = 4, 25, 30, 200, 6
RSSM = vf.Scale("softplus", std_min=0.1)  # tensordict's NormalParamExtractor
SQUARED_ERROR = vf.likelihoods.Gaussian(sigma=0.5**0.5, constants=False)


class FusedPrior(nn.Module):
    """torchrl's RSSMPrior with a fused sample; it returns the raw scale in place of sigma."""

    def __init__(self, prior: Any, noise: Noise) -> None:
        super().__init__()
        self.prior, self.noise = prior, noise
        self.moments = prior.rnn_to_prior_projector[:-1]

    def forward(self, state: Tensor, belief: Tensor, action: Tensor) -> tuple[Tensor, ...]:
        belief = self.prior.rnn(
            self.prior.action_state_projector(torch.cat([state, action], dim=-1)), belief
        )
        mean, raw = self.moments(belief).chunk(2, dim=-1)
        state = vf.reparameterize(mean, raw, scale=RSSM, eps=self.noise(*mean.shape))
        return mean, raw, state, belief


class FusedPosterior(nn.Module):
    """torchrl's RSSMPosterior with the same change."""

    def __init__(self, posterior: Any, noise: Noise) -> None:
        super().__init__()
        self.noise = noise
        self.moments = posterior.obs_rnn_to_post_projector[:-1]

    def forward(self, belief: Tensor, embedding: Tensor) -> tuple[Tensor, ...]:
        mean, raw = self.moments(torch.cat([belief, embedding], dim=-1)).chunk(2, dim=-1)
        return mean, raw, vf.reparameterize(mean, raw, scale=RSSM, eps=self.noise(*mean.shape))


def world_model(encoder: Any, decoder: Any, prior: Any, posterior: Any, reward: Any) -> Any:
    """The modules wired as in torchrl's own Dreamer."""
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


def dreamer() -> Work:
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
    fused = world_model(
        encoder, decoder, FusedPrior(prior, noise), FusedPosterior(posterior, noise), reward
    )
    loss = DreamerModelLoss(networks)

    def free_nats() -> float:
        """An untrained network's KL is below torchrl's three free nats, so it has no gradient."""
        return noise.weight(3.0, compared=0.0)

    def lambda_kl() -> float:
        return noise.weight(1.0, compared=1e3)

    def theirs() -> Tensor:
        loss.free_nats, loss.lambda_kl = free_nats(), lambda_kl()
        found: Tensor = sum(loss(batch)[0].values(), torch.zeros(())).sum()
        return found

    def ours() -> Tensor:
        td = fused(batch.copy().exclude(("next", "reward")))
        get = {name: td["next", name] for name in (
            "posterior_mean", "posterior_std", "prior_mean", "prior_std", "reco_pixels", "reward"
        )}  # fmt: skip
        kl = fused_kl(*(get[f"{q}_{part}"] for q in ("posterior", "prior") for part in MOMENTS))
        images = vf.nll(get["reco_pixels"], batch["next", "pixels"], SQUARED_ERROR, dim=(2, 3, 4))
        rewards = vf.nll(get["reward"], batch["next", "reward"], SQUARED_ERROR, reduction="mean")
        return lambda_kl() * kl.clamp_min(free_nats()).mean() + images.mean() + rewards

    td = networks(batch.clone())["next"]
    moments = [td[f"{q}_{part}"] for q in ("posterior", "prior") for part in MOMENTS]
    raws = [t.expm1().log() if i % 2 else t for i, t in enumerate(moments)]  # inverse of softplus

    def their_latent(*leaves: Tensor) -> Tensor:
        """Draw one time step after the other, then compute the KL of all, as the rollout does."""
        q_mean, q_raw, p_mean, p_raw = leaves
        q_std, p_std = (F.softplus(raw).clamp_min(0.1) for raw in (q_raw, p_raw))
        states = [
            mean + torch.randn_like(std) * std
            for pair in ((q_mean, q_std), (p_mean, p_std))
            for mean, std in zip(*(t.unbind(1) for t in pair), strict=True)
        ]
        kl: Tensor = loss.kl_loss(p_mean, p_std, q_mean, q_std)
        return torch.stack(states).sum() + kl

    def our_latent(*leaves: Tensor) -> Tensor:
        q_mean, q_raw, p_mean, p_raw = leaves
        states = [
            vf.reparameterize(mean, raw, scale=RSSM)
            for pair in ((q_mean, q_raw), (p_mean, p_raw))
            for mean, raw in zip(*(t.unbind(1) for t in pair), strict=True)
        ]
        kl = fused_kl(q_mean, q_raw, p_mean, p_raw).clamp_min(loss.free_nats).mean()
        return torch.stack(states).sum() + kl

    pixels = batch["next", "pixels"]
    parts = {
        "latent": Part(raws, their_latent, our_latent),
        "loss": Part(
            [td["reco_pixels"]],
            lambda y: F.mse_loss(y, pixels, reduction="none").sum((-3, -2, -1)).mean(),
            lambda y: vf.nll(y, pixels, SQUARED_ERROR, dim=(2, 3, 4)).mean(),
        ),
    }
    return Work(list(networks.parameters()), theirs, ours, noise, parts)


MOMENTS = ("mean", "std")

# --- a forecaster, written here after DeepAR -----------------------------------------------------

SERIES, LENGTH, FEATURES = 64, 168, 8


class Forecaster(nn.Module):
    """An LSTM that returns three numbers for each time step: location, raw scale, raw df."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1 + FEATURES, 40, num_layers=2, batch_first=True)
        self.head = nn.Linear(40, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.head(self.lstm(x)[0]).unbind(-1))


def student_t_nll(mean: Tensor, raw_scale: Tensor, raw_df: Tensor, x: Tensor) -> Tensor:
    """The fused loss, the mean over all time steps."""
    df = 2.0 + F.softplus(raw_df)
    kind = vf.likelihoods.StudentT("softplus")  # type: ignore[attr-defined, unused-ignore]
    return vf.nll((mean, raw_scale, df), x, kind, reduction="mean")


def deepar() -> Work:
    if not hasattr(vf.likelihoods, "StudentT"):
        raise NotInstalled("this vae_fused has no likelihood student_t")
    model = Forecaster()
    inputs, x = torch.randn(SERIES, LENGTH, 1 + FEATURES), torch.randn(SERIES, LENGTH)

    def their_nll(mean: Tensor, raw_scale: Tensor, raw_df: Tensor) -> Tensor:
        q = StudentT(2.0 + F.softplus(raw_df), mean, F.softplus(raw_scale))
        return -q.log_prob(x).mean()

    parts = {
        "loss": Part(
            [t.contiguous() for t in model(inputs)],
            their_nll,
            lambda *output: student_t_nll(*output, x),
        )
    }
    return Work(
        list(model.parameters()),
        lambda: their_nll(*model(inputs)),
        lambda: student_t_nll(*model(inputs), x),
        Noise(),
        parts,
    )


CASES = [
    Case(
        "torchrl dreamer",
        "torchrl",
        f"Dreamer's world model: RSSM rollout and loss, {SEQUENCES} sequences of {STEPS} images",
        dreamer,
    ),
    Case(
        "student-t",
        "",
        f"LSTM with a Student-t head after DeepAR, {SERIES} series of {LENGTH} steps",
        deepar,
    ),
]
