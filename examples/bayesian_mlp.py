"""Train a Bayesian network: every weight and bias has a Gaussian posterior (Blundell et al. 2015).

    w ~ q(w) = N(mu, softplus(rho)^2)          prior: w ~ N(0, 1 / fan-in), biases N(0, 1)
    -ELBO    = E_q[ -ln p(targets|inputs, w) ] + KL(q(w) || p(w))

The data are scikit-learn's iris flowers: the width of a petal is predicted from its length. No
flower has a petal between 1.9 and 3 cm long, so the data have a gap. One call to
`vf.reparameterize_kl_multi` samples all tensors of the network and sums their KLs.

    python examples/bayesian_mlp.py             # writes bayesian_mlp.png
    python examples/bayesian_mlp.py --quick     # fewer steps
"""

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from _common import BLUE, GREEN, GREY, ORANGE, panels, parse, save
from sklearn.datasets import load_iris
from torch import Tensor, nn
from tqdm import tqdm

import vae_fused as vf

SIZES = (1, 16, 16, 1)
PRIOR = vf.Prior(0.0, 1.0, "std")


class BayesianMLP(nn.Module):
    """Learned means and raw scales of all tensors, and the learned log-variance of the noise.

    Under the prior, each weight is standard normal. The forward pass divides a weight by the square
    root of its fan-in, so that all tensors share one prior.
    """

    def __init__(self) -> None:
        super().__init__()
        shapes = [s for i, o in itertools.pairwise(SIZES) for s in ((o, i), (o,))]
        self.mus = nn.ParameterList(torch.randn(shape) for shape in shapes)
        self.rhos = nn.ParameterList(torch.full(shape, -3.0) for shape in shapes)  # sigma 0.05
        self.log_variance = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return outputs [N, 1] of one sampled network, and the KL of all its weights in nats."""
        drawn, kl = vf.reparameterize_kl_multi(
            list(self.mus), list(self.rhos), scale="softplus", prior=PRIOR
        )
        for layer, (weight, bias) in enumerate(zip(drawn[::2], drawn[1::2], strict=True)):
            x = F.linear(F.relu(x) if layer else x, weight / math.sqrt(x.shape[1]), bias)
        return x, kl

    def loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return minus the ELBO, and the KL that it contains, both per flower."""
        mean, kl = self(x)
        nll = vf.nll((mean, self.log_variance), y, "gaussian")
        return nll + kl / len(x), kl / len(x)


@torch.no_grad()
def predict(model: BayesianMLP, x: Tensor, networks: int) -> Tensor:
    """Return outputs [networks, N, 1] of sampled networks."""
    return torch.stack([model(x)[0] for _ in range(networks)])


@torch.no_grad()
def log_predictive(model: BayesianMLP, x: Tensor, y: Tensor, networks: int) -> float:
    """Return ln of the mean of p(y|x, w) over sampled networks, averaged over flowers, in nats."""
    outputs = predict(model, x, networks)
    nll = vf.nll((outputs, model.log_variance), y, "gaussian", dim=-1)
    return (torch.logsumexp(-nll, 0) - math.log(networks)).mean().item()


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Train, draw, and return the loss before and after training and the reported values."""
    args = parse(__doc__, argv, out="bayesian_mlp.png", steps=10000, quick=3000)
    data = torch.from_numpy(load_iris().data).float()
    data = data[torch.randperm(len(data), generator=torch.Generator().manual_seed(0))]
    length, width = data[:, 2:3], data[:, 3:4]
    x, y = (length - length.mean()) / length.std(), (width - width.mean()) / width.std()
    train, heldout = slice(0, 120), slice(120, None)

    torch.manual_seed(args.seed)
    model = BayesianMLP()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)
    losses = []
    bar = tqdm(range(args.steps), "Bayesian network")
    for step in bar:
        loss, kl = model.loss(x[train], y[train])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
        if step % 200 == 0:
            bar.set_postfix_str(f"-ELBO {loss.item():.3f}, KL {kl.item():.3f} nats/flower")

    grid = torch.linspace(0.0, 10.0, 201)  # cm
    outputs = predict(model, ((grid - length.mean()) / length.std()).unsqueeze(1), 500)
    outputs = outputs.squeeze(2) * width.std() + width.mean()
    mean, spread = outputs.mean(0), outputs.std(0)
    noise = (model.log_variance / 2).exp().item() * width.std()
    total = (spread.square() + noise**2).sqrt()
    at = {cm: spread[int(20 * cm)].item() for cm in (1.5, 2.5, 5.0, 10.0)}
    found = {
        "first": torch.stack(losses[:20]).mean().item(),
        "last": torch.stack(losses[-20:]).mean().item(),
        "kl": kl.item(),
        "noise": noise.item(),
        "heldout": log_predictive(model, x[heldout], y[heldout], 500) - width.std().log().item(),
    }
    print(f"\n-ELBO {found['first']:.2f} at first, {found['last']:.3f} trained (nats per flower)")
    print(f"KL of the weights {kl.item():.3f} nats per flower")
    print(f"Held-out ln p(width) {found['heldout']:.3f} nats per flower, 500 networks")
    print(f"Standard deviation of the noise {noise:.3f} cm, and of the mean function")
    print("  " + ", ".join(f"{value:.3f} cm at {cm} cm" for cm, value in at.items()))

    figure, (ax,) = panels(1, (7.5, 3.8))
    for factor, alpha in ((2, 0.2), (1, 0.3)):
        label = "2 standard deviations of the mean function" if factor == 2 else None
        ax.fill_between(grid, mean - factor * spread, mean + factor * spread, color=BLUE,
                        alpha=alpha, lw=0, label=label)  # fmt: skip
    for sign in (-2, 2):
        label = "with the noise of the data" if sign == 2 else None
        ax.plot(grid, mean + sign * total, color=GREY, lw=1, ls="--", label=label)
    ax.plot(grid, outputs[:5].T, color=ORANGE, lw=0.7, alpha=0.7)
    ax.plot([], [], color=ORANGE, lw=0.7, label="five drawn networks")
    ax.plot(grid, mean, color=BLUE, label="mean of 500 networks")
    ax.plot(length[train], width[train], ".", color="black", ms=4, label="training flowers")
    ax.plot(length[heldout], width[heldout], "x", color=GREEN, ms=5, label="held-out flowers")
    ax.set(xlabel="length of the petal (cm)", ylabel="width of the petal (cm)", ylim=(-1, 5))
    ax.legend(frameon=False, fontsize=8, loc="upper left")
    save(figure, args.out)
    return found


if __name__ == "__main__":
    main()
