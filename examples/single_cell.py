"""Train a single-cell model with `vae_fused` and with the likelihood of scvi-tools.

    z ~ N(0, I)                                       the state of a cell
    mean = factor * library * softmax(scores(z))      library is the total count of the cell
    x ~ ZINB(mean, theta, pi(z))                      theta is one number for each gene

The counts are the synthetic data of scvi-tools. They have no structure between cells, but their
true parameters are known: theta = 5 and pi = 0.8. Two training runs start from the same weights and
use the same cells and the same noise. One computes the loss with `vf.elbo_loss`, which includes
softmax, likelihood and KL. The other uses scvi's ZeroInflatedNegativeBinomial. The two losses agree
up to rounding, but the times differ. The steps of both runs alternate, so that other processes slow
both equally.

    pip install scvi-tools
    python examples/single_cell.py             # writes single_cell.png
    python examples/single_cell.py --quick     # fewer steps
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from _common import BLUE, ORANGE, mlp, panels, parse, save
from torch import Tensor, nn
from tqdm import tqdm

import vae_fused as vf

try:
    import scvi
    from scvi.distributions import ZeroInflatedNegativeBinomial
except ImportError as error:
    raise SystemExit("This example compares with scvi-tools: pip install scvi-tools") from error

CELLS, TRAIN_CELLS, GENES, BATCH = 4000, 3500, 2000, 128
LATENT, HIDDEN = 10, 128
MEAN, THETA, ZERO_INFLATION = 35.0 / 3.0, 5.0, 0.8  # of the synthetic data
Outputs = tuple[Tensor, Tensor, Tensor]  # scores, ln theta and the logits of pi
ZINB = vf.likelihoods.ZeroInflatedNegativeBinomial("softmax", dispersion="exp")


class CellVAE(nn.Module):
    """The networks, and the parameters that all cells share."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = mlp(GENES, HIDDEN, 2 * LATENT)
        self.decoder = nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.SiLU())
        self.scores = nn.Linear(HIDDEN, GENES)
        self.inflation = nn.Linear(HIDDEN, GENES)  # logits of pi
        self.log_theta = nn.Parameter(torch.zeros(GENES))
        self.log_factor = nn.Parameter(torch.zeros(()))  # zero inflation reduces the library

    def forward(self, x: Tensor, noise: torch.Generator) -> tuple[Outputs, Tensor, Tensor]:
        """Return the likelihood's inputs, ln(factor * library) [B, 1], and the mean KL."""
        mu, logvar = self.encoder(x.log1p()).chunk(2, dim=1)
        z, kl = vf.reparameterize_kl(mu, logvar, generator=noise)
        h = self.decoder(z)
        library = x.sum(dim=1, keepdim=True).log() + self.log_factor
        return (self.scores(h), self.log_theta, self.inflation(h)), library, kl


def loss_of_vf(outputs: Outputs, library: Tensor, kl: Tensor, x: Tensor) -> Tensor:
    """Return minus the ELBO in nats per cell, and compute its gradients at the same time."""
    terms = vf.elbo_loss(outputs, x, kl=kl, likelihood=ZINB, library=library, grad="forward")
    return terms.loss


def loss_of_scvi(outputs: Outputs, library: Tensor, kl: Tensor, x: Tensor) -> Tensor:
    """Return the same loss, computed with the distribution of scvi-tools."""
    scores, log_theta, inflation = outputs
    zinb = ZeroInflatedNegativeBinomial(
        mu=library.exp() * scores.softmax(dim=1), theta=log_theta.exp(), zi_logits=inflation
    )
    return -zinb.log_prob(x).sum(dim=1).mean() + kl


@dataclass
class Training:
    """One of the two training runs. Its seed determines everything that is random."""

    loss: Callable[[Outputs, Tensor, Tensor, Tensor], Tensor]
    seed: int
    losses: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)  # seconds of each step

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        self.model = CellVAE()
        shared = [self.model.log_theta, self.model.log_factor]
        others = [p for p in self.model.parameters() if all(p is not q for q in shared)]
        groups = [{"params": others}, {"params": shared, "lr": 3e-2}]
        self.optimizer = torch.optim.Adam(groups, lr=1e-3)
        self.noise = torch.Generator().manual_seed(self.seed)

    def step(self, x: Tensor) -> None:
        start = time.perf_counter()
        loss = self.loss(*self.model(x, self.noise), x)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.item())
        self.times.append(time.perf_counter() - start)


def synthetic_counts() -> Tensor:
    """Return negative binomial counts [CELLS, GENES]; only a share ``dropout_ratio`` is kept."""
    scvi.settings.seed = 0
    keep = 1.0 - ZERO_INFLATION
    data = scvi.data.synthetic_iid(batch_size=CELLS // 2, n_genes=GENES, dropout_ratio=keep)
    return torch.as_tensor(data.X, dtype=torch.float32)


def loss_of_truth(x: Tensor) -> float:
    """Return -ln p(x) in nats per cell under the distribution from which the data were drawn."""
    truth = vf.likelihoods.ZeroInflatedNegativeBinomial(zero_inflation="probs")
    mean = torch.full_like(x, MEAN)
    return vf.nll((mean, torch.tensor(THETA), torch.tensor(ZERO_INFLATION)), x, truth).item()


@torch.no_grad()
def report(model: CellVAE, x: Tensor) -> None:
    """Compare a trained model with the distribution from which the held-out cells were drawn."""
    outputs, library, kl = model(x, torch.Generator().manual_seed(0))
    loss = loss_of_vf(outputs, library, kl, x).item()
    print(f"Held-out -ELBO {loss:.1f}, true distribution {loss_of_truth(x):.1f} (nats per cell)")
    theta, pi = outputs[1].exp().median(), outputs[2].sigmoid().mean()
    print(f"theta {theta:.2f} (median of the genes; true {THETA}), pi {pi:.3f} ({ZERO_INFLATION})")


def main(argv: Sequence[str] | None = None) -> dict[str, Training]:
    """Train with both likelihoods, draw the figure, and return the two training runs."""
    args = parse(__doc__, argv, out="single_cell.png", steps=500, quick=120)
    x, heldout = synthetic_counts().split(TRAIN_CELLS)
    print(f"{len(x)} cells of {GENES} genes, {(x > 0).float().mean():.0%} of the counts above 0")
    trainings = {
        "vae_fused": Training(loss_of_vf, args.seed),
        "scvi-tools": Training(loss_of_scvi, args.seed),
    }
    order = torch.Generator().manual_seed(args.seed)
    for i in tqdm(range(args.steps), "both likelihoods"):
        batch = x[torch.randint(len(x), (BATCH,), generator=order)]
        # The run that steps first alternates as well.
        for training in list(trainings.values())[:: 1 if i % 2 else -1]:
            training.step(batch)

    ours, theirs = trainings.values()
    pairs = list(zip(ours.losses, theirs.losses, strict=True))
    worst = max(abs(a - b) / b for a, b in pairs)
    epoch = len(x) // BATCH
    milliseconds = {name: 1e3 * min(t.times) for name, t in trainings.items()}
    print(f"\n-ELBO {ours.losses[0]:.1f} at first, {ours.losses[-1]:.1f} trained (nats per cell)")
    print(f"The losses of {len(pairs)} steps differ by at most {worst:.1e} of their size")
    report(ours.model, heldout)
    for name, value in milliseconds.items():
        per_epoch = value * epoch / 1e3
        print(f"{name}: at least {value:.1f} ms per step, {per_epoch:.2f} s per epoch")
    ratio = milliseconds["scvi-tools"] / milliseconds["vae_fused"]
    print(f"A step by scvi-tools takes {ratio:.2f} times as long")

    figure, (left, right) = panels(2, widths=(1.6, 1))
    left.plot(theirs.losses, color=ORANGE, lw=4, alpha=0.5, label="scvi-tools")
    left.plot(ours.losses, color=BLUE, lw=1, label="vae_fused")
    left.axhline(loss_of_truth(heldout), color="black", ls=":", label="true distribution")
    left.set(title="the curves coincide", xlabel="step", ylabel="-ELBO (nats per cell)")
    left.grid(alpha=0.3)
    left.legend(frameon=False)
    bars = right.bar(list(milliseconds), list(milliseconds.values()), color=[BLUE, ORANGE])
    right.bar_label(bars, fmt="%.1f ms", padding=2)
    right.set(title="a whole training step", ylabel="least time (ms)")
    right.margins(y=0.15)
    save(figure, args.out)
    return trainings


if __name__ == "__main__":
    main()
