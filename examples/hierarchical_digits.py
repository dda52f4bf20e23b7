"""Train a VAE with two levels of latents and a learned prior for the lower level.

    p(x, z1, z2) = p(x|z1) p(z1|z2) p(z2)          p(z2) = N(0, I), p(z1|z2) = N(m(z2), s(z2)^2)
    q(z1, z2|x)  = q(z2|x) q(z1|x, z2)             two encoders
    -ELBO        = E[-ln p(x|z1)] + KL(q(z2|x) || p(z2)) + E[KL(q(z1|x, z2) || p(z1|z2))]

The upper level of such a model may stay unused. Two KL options counter this during the first half
of training. After that, they have no effect, and the loss is minus the plain ELBO:

- Free bits: the KL of an element of z2 has no gradient while it is below a floor, and this floor
  decreases to 0.
- KL balance: the KL of the lower level trains its prior with full weight from the first step. The
  weight of its gradient with respect to the posterior grows from 0.1 to 1.

Both values follow schedules of `vf.nn`: each is a 0-d tensor that `step()` changes in place.

    python examples/hierarchical_digits.py             # writes hierarchical_digits.png
    python examples/hierarchical_digits.py --quick     # fewer steps
    python examples/hierarchical_digits.py --plain     # without these options, for comparison
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from _common import BLUE, GREEN, ORANGE, mlp, panels, parse, save
from sklearn.datasets import load_digits
from torch import Tensor, nn
from tqdm import tqdm

import vae_fused as vf

SIDE = 8
PIXELS, LOWER, UPPER, HIDDEN = SIDE * SIDE, 12, 3, 128
TRAIN_IMAGES = 1500  # of 1797; the others are held out
BATCH = 100


class Posterior(NamedTuple):
    """A posterior N(mu, exp(logvar)), and the prior for its KL, where None means N(0, I)."""

    mu: Tensor
    logvar: Tensor
    prior: vf.Prior | None


class HierarchicalVAE(nn.Module):
    """The networks, and the schedules of the KL options, which end after ``warmup`` steps."""

    def __init__(self, warmup: int) -> None:
        super().__init__()
        self.upper = mlp(PIXELS, HIDDEN, HIDDEN, 2 * UPPER)
        self.lower = mlp(PIXELS + UPPER, HIDDEN, HIDDEN, 2 * LOWER)
        self.prior_network = mlp(UPPER, HIDDEN, HIDDEN, 2 * LOWER)
        self.decoder = mlp(LOWER, HIDDEN, HIDDEN, PIXELS)
        self.free_bits = vf.nn.LinearSchedule(warmup, start=0.5, end=0.0)
        self.to_posterior = vf.nn.LinearSchedule(warmup, start=0.1, end=1.0)

    def end_schedules(self) -> None:
        """Advance both schedules to their end, so that the loss is minus the plain ELBO."""
        for schedule in (self.free_bits, self.to_posterior):
            for _ in range(schedule.steps):
                schedule.step()

    def prior(self, z2: Tensor) -> vf.Prior:
        """Return p(z1|z2), whose mean and log-variance are tensors that get gradients."""
        return vf.Prior(*self.prior_network(z2).chunk(2, dim=1))

    def upper_posterior(self, x: Tensor) -> Posterior:
        return Posterior(*self.upper(x).chunk(2, dim=1), None)

    def lower_posterior(self, x: Tensor, z2: Tensor) -> Posterior:
        moments = self.lower(torch.cat([x, z2], dim=1))
        return Posterior(*moments.chunk(2, dim=1), self.prior(z2))

    def loss(self, x: Tensor) -> Tensor:
        """Return minus the ELBO of images x [B, 64], with both options, in nats per image."""
        upper = self.upper_posterior(x)
        z2, kl2 = vf.reparameterize_kl(upper.mu, upper.logvar, free_bits=self.free_bits())
        lower = self.lower_posterior(x, z2)
        balance = (self.to_posterior(), 1.0)
        z1, kl1 = vf.reparameterize_kl(
            lower.mu, lower.logvar, prior=lower.prior, balance=balance
        )  # one launch for the sample and the KL of each level
        return vf.elbo_loss(self.decoder(z1), x, kl=kl1 + kl2, likelihood="bernoulli").loss

    @torch.no_grad()
    def evaluate(self, x: Tensor) -> tuple[float, float, float]:
        """Return the plain ELBO of images x, the upper KL and the lower KL, in nats.

        The noise is always the same, so the values depend only on the weights.
        """
        noise = torch.Generator().manual_seed(0)
        upper = self.upper_posterior(x)
        z2 = vf.reparameterize(upper.mu, upper.logvar, generator=noise)
        lower = self.lower_posterior(x, z2)
        z1 = vf.reparameterize(lower.mu, lower.logvar, generator=noise)
        # One KL for each latent dimension; their sum is the KL of the level.
        kl2 = vf.latent_stats(upper.mu, upper.logvar).kl.sum().item()
        kl1 = vf.latent_stats(lower.mu, lower.logvar, prior=lower.prior).kl.sum().item()
        reconstruction = vf.nll(self.decoder(z1), x, "bernoulli").item()
        return -(reconstruction + kl1 + kl2), kl2, kl1

    @torch.no_grad()
    def sample(self, rows: int, columns: int) -> Tensor:
        """Return images [rows, columns, 64]. The images in a row share z2, but not z1."""
        noise = torch.Generator().manual_seed(1)
        z2 = torch.randn(rows, UPPER, generator=noise)
        prior = self.prior(z2)
        z1 = vf.reparameterize(prior.mean, prior.raw, sample_shape=columns, generator=noise)
        return self.decoder(z1).sigmoid().transpose(0, 1)


def mosaic(images: Tensor) -> Tensor:
    """Return images [rows, columns, 64] as one picture, with a margin around each image."""
    tiles = F.pad(images.unflatten(-1, (SIDE, SIDE)), (1, 1, 1, 1))
    return tiles.transpose(1, 2).flatten(0, 1).flatten(1, 2)


def main(argv: Sequence[str] | None = None) -> list[tuple[float, float, float]]:
    """Train, draw, and return the held-out ELBO, upper KL and lower KL at regular intervals."""
    flags = {"plain": "the plain ELBO from the first step"}
    args = parse(__doc__, argv, out="hierarchical_digits.png", steps=4000, quick=1200, flags=flags)
    images = torch.from_numpy(load_digits().data >= 8).float()  # pixels of 0 or 1
    images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
    x, heldout = images[:TRAIN_IMAGES], images[TRAIN_IMAGES:]

    torch.manual_seed(args.seed)
    warmup, every = max(1, args.steps // 2), max(10, args.steps // 60)
    model = HierarchicalVAE(warmup)
    if args.plain:
        model.end_schedules()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    history = [model.evaluate(heldout)]
    bar = tqdm(range(1, args.steps + 1), "two levels")
    for step in bar:
        loss = model.loss(x[torch.randint(len(x), (BATCH,))])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.free_bits.step(), model.to_posterior.step()  # after backward
        if step % every == 0:
            history.append(model.evaluate(heldout))
            bar.set_postfix_str(f"held-out ELBO {history[-1][0]:.2f} nats/image")

    elbo, upper, lower = history[-1]
    print(f"\nHeld-out ELBO {history[0][0]:.2f} untrained, {elbo:.2f} trained (nats per image)")
    print(f"KL of the upper level {upper:.2f}, of the lower level {lower:.2f} nats per image")

    steps = [i * every for i in range(len(history))]
    elbos, upper_kls, lower_kls = zip(*history, strict=True)
    figure, (left, middle, right) = panels(3, (11.0, 3.2), widths=(1.2, 1, 1))
    samples = mosaic(model.sample(8, 10)).numpy()
    left.imshow(samples, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    left.set(title="samples; each row shares its z2")
    left.set_axis_off()
    middle.plot(steps, upper_kls, color=BLUE, label="upper: q(z2|x) from N(0, I)")
    middle.plot(steps, lower_kls, color=ORANGE, label="lower: q(z1|x, z2) from p(z1|z2)")
    middle.set(title="KL of held-out digits", xlabel="step", ylabel="nats per image")
    middle.set_ylim(0, 1.5 * max(lower_kls))
    right.plot(steps, elbos, color=GREEN, label="ELBO")
    right.set(title="ELBO of held-out digits", xlabel="step")
    right.set_ylim(elbo - 12, elbo + 2)
    for ax in (middle, right):
        ax.axvline(warmup, color="black", lw=1, ls=":", label="end of the schedules")
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8, framealpha=0.9, edgecolor="none")
    save(figure, args.out)
    return history


if __name__ == "__main__":
    main()
