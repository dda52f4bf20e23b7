"""Train with the importance-weighted bound of 1, 5 and 50 samples, and compare the models.

The importance-weighted bound of K samples (Burda et al. 2016, arXiv:1509.00519) is

    L_K(x) = E[ ln 1/K sum_k w_k ],    w_k = p(x|z_k) p(z_k) / q(z_k|x),    z_k ~ q(z|x)

L_1 is the ELBO, and L_K increases to ln p(x) as K grows. Three models with the same architecture
maximise L_1, L_5 and L_50, respectively, on scikit-learn's digits, with pixels rounded to 0 or 1.
Each model is then evaluated on held-out digits with the same samples for every bound, up to
K = 1000.

    python examples/iwae_digits.py              # writes iwae_digits.png
    python examples/iwae_digits.py --quick      # fewer steps and samples
"""

from collections.abc import Sequence

import torch
from _common import BLUE, GREEN, ORANGE, mlp, panels, parse, save
from sklearn.datasets import load_digits
from torch import Tensor, nn
from tqdm import tqdm

import vae_fused as vf

PIXELS, LATENT, HIDDEN = 64, 16, 128
TRAIN_IMAGES = 1500  # of 1797; the others are held out
BATCH = 100
TRAINED_WITH = {1: BLUE, 5: GREEN, 50: ORANGE}  # K, and its colour
COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # each divides the largest


class VAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = mlp(PIXELS, HIDDEN, HIDDEN, 2 * LATENT)
        self.decoder = mlp(LATENT, HIDDEN, HIDDEN, PIXELS)

    def weights(self, x: Tensor, samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return both parts of -ln w: -ln p(x|z) and ln q(z|x) - ln p(z), [samples, len(x)]."""
        mu, logvar = self.encoder(x).chunk(2, dim=1)
        z, log_ratio = vf.reparameterize_kl(  # z: [K, B, L]; the prior is N(0, I)
            mu, logvar, estimator="sample", sample_shape=samples, reduction="sample",
            generator=generator,
        )  # fmt: skip
        return vf.nll(self.decoder(z), x, "bernoulli", dim=-1), log_ratio


@torch.no_grad()
def evaluate(model: VAE, x: Tensor, counts: Sequence[int]) -> list[float]:
    """Return the mean bound of images x for each K in ``counts``, from the same samples, in nats.

    For each K, the samples are split into groups of K, and the bound is averaged over the groups.
    The noise is the same for every model.
    """
    generator = torch.Generator().manual_seed(0)
    totals = [0.0] * len(counts)
    for part in x.split(50):
        nll, log_ratio = model.weights(part, max(counts), generator)
        for i, count in enumerate(counts):
            groups = max(counts) // count
            totals[i] -= vf.iwae_loss(nll, log_ratio, groups=groups, reduction="sum").loss.item()
    return [total / len(x) for total in totals]


def train(
    samples: int, steps: int, seed: int, x: Tensor, heldout: Tensor, every: int
) -> tuple[VAE, list[float]]:
    """Maximise L_samples, and return the model and its held-out bound every ``every`` steps."""
    torch.manual_seed(seed)  # the same initial weights for every K
    model = VAE()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    noise = torch.Generator().manual_seed(seed)
    order = torch.Generator().manual_seed(seed)
    curve = evaluate(model, heldout, [100])
    bar = tqdm(range(1, steps + 1), f"K = {samples}")
    for step in bar:
        batch = x[torch.randint(len(x), (BATCH,), generator=order)]
        nll, log_ratio = model.weights(batch, samples, noise)
        loss = vf.iwae_loss(nll, log_ratio).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % every == 0:
            curve += evaluate(model, heldout, [100])
            bar.set_postfix_str(f"held-out L_100 {curve[-1]:.2f} nats/image")
    return model, curve


def main(argv: Sequence[str] | None = None) -> dict[int, dict[str, list[float]]]:
    """Train, evaluate, draw, and return the bounds by the K with which each model was trained."""
    args = parse(__doc__, argv, out="iwae_digits.png", steps=3000, quick=250)
    counts = COUNTS[:7] if args.quick else COUNTS
    images = torch.from_numpy(load_digits().data >= 8).float()
    images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
    x, heldout = images[:TRAIN_IMAGES], images[TRAIN_IMAGES:]
    every = max(10, args.steps // 30)

    results = {}
    for samples in TRAINED_WITH:
        model, curve = train(samples, args.steps, args.seed, x, heldout, every)
        results[samples] = {"curve": curve, "bounds": evaluate(model, heldout, counts)}

    most = max(counts)
    print(f"\nHeld-out bounds in nats per image, {most} samples of each posterior")
    print(f"{'trained with':<14}{'L_1 (ELBO)':>12}{f'L_{most}':>12}{'difference':>12}")
    for samples, result in results.items():
        first, last = result["bounds"][0], result["bounds"][-1]
        print(f"K = {samples:<10}{first:>12.2f}{last:>12.2f}{last - first:>12.2f}")

    figure, (left, right) = panels(2)
    for samples, color in TRAINED_WITH.items():
        curve, label = results[samples]["curve"], f"trained with K = {samples}"
        left.plot([i * every for i in range(len(curve))], curve, color=color, label=label)
        right.semilogx(counts, results[samples]["bounds"], "o-", ms=4, color=color, label=label)
    left.set(title="during training, K = 100", xlabel="step", ylabel="held-out bound (nats)")
    highest = max(max(result["curve"]) for result in results.values())
    left.set_ylim(highest - 10, highest + 0.5)
    right.set(title="trained models", xlabel="K of the evaluation")
    for ax in (left, right):
        ax.grid(alpha=0.3)
        ax.legend(frameon=False, loc="lower right")
    save(figure, args.out)
    return results


if __name__ == "__main__":
    main()
