"""Train a VAE on scikit-learn's digits, with `vae_fused` or with the formulas in eager PyTorch.

The model maximises the evidence lower bound (Kingma and Welling 2014, arXiv:1312.6114), a lower
bound on ln p(x), here in nats per image:

    ELBO(x)   = E_q(z|x)[ ln p(x|z) ] - KL( q(z|x) || p(z) )
    q(z|x)    = N(mu(x), diag exp(logvar(x)))     the encoder's posterior
    p(z)      = N(0, I)                           the prior
    ln p(x|z) = sum over pixels of x ln y + (1 - x) ln(1 - y),    y = sigmoid(decoder(z))

The pixels x are grey levels in [0, 1], not bits, so even a perfect reconstruction costs nats.

    python examples/train_digits.py                       # train, write digits.png, time a step
    python examples/train_digits.py --compare             # both implementations in one figure
    python examples/train_digits.py --same-noise          # both with the same noise: equal curves
    python examples/train_digits.py --seeds 0 1 2 3 4     # both with their own noise: statistics
"""

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import mean, median, stdev
from typing import NamedTuple

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn
from tqdm import tqdm

import vae_fused as vf

SIDE = 8  # the scans are 8 x 8 pixels
TRAIN_IMAGES = 1500  # of 1797; the others are held out
LEARNING_RATE = 2e-3
EVAL_SAMPLES = 4  # posterior samples per image when the ELBO is evaluated


def eager_latent(mu: Tensor, logvar: Tensor, eps: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return z [B, L] and the KL, summed over L and averaged over B, as in most code bases."""
    std = torch.exp(0.5 * logvar)
    if eps is None:
        eps = torch.randn_like(std)
    z = mu + std * eps
    kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp(), dim=1).mean()
    return z, kl


def fused_latent(mu: Tensor, logvar: Tensor, eps: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the same two results from one call."""
    return vf.reparameterize_kl(mu, logvar, eps=eps)


def eager_loss(logits: Tensor, x: Tensor, kl: Tensor) -> Tensor:
    """Return minus the ELBO of a batch, from the decoder's logits [B, 64] and the KL."""
    return F.binary_cross_entropy_with_logits(logits, x, reduction="sum") / len(x) + kl


def fused_loss(logits: Tensor, x: Tensor, kl: Tensor) -> Tensor:
    """Return the same loss from one call, which also computes the gradient of the logits."""
    return vf.elbo_loss(logits, x, kl=kl, likelihood="bernoulli", grad="forward").loss


class Implementation(NamedTuple):
    """The two halves of the loss, before and after the decoder."""

    latent: Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]
    loss: Callable[[Tensor, Tensor, Tensor], Tensor]


Task = Callable[[], object]
IMPLEMENTATIONS = {
    "fused": Implementation(fused_latent, fused_loss),
    "eager": Implementation(eager_latent, eager_loss),
}


def mlp(*sizes: int) -> nn.Sequential:
    """Return linear layers with SiLU between them."""
    layers = [m for i, o in itertools.pairwise(sizes) for m in (nn.Linear(i, o), nn.SiLU())]
    return nn.Sequential(*layers[:-1])


class VAE(nn.Module):
    """An encoder and a decoder with a diagonal Gaussian latent between them."""

    def __init__(self, latent_dim: int, hidden: int = 256) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.encoder = mlp(SIDE * SIDE, hidden, hidden, 2 * latent_dim)
        self.decoder = mlp(latent_dim, hidden, hidden, SIDE * SIDE)

    def loss(self, x: Tensor, impl: Implementation, eps: Tensor | None = None) -> Tensor:
        """Return minus the mean ELBO of images x [B, 64], in nats per image."""
        mu, logvar = self.encoder(x).chunk(2, dim=1)  # strided views: no copy
        z, kl = impl.latent(mu, logvar, eps)
        return impl.loss(self.decoder(z), x, kl)


@dataclass(frozen=True)
class Config:
    """The settings of a run. On one machine, two runs with equal settings are bit-identical."""

    seed: int = 0
    epochs: int = 150
    batch_size: int = 100
    latent_dim: int = 10
    device: str = "cpu"
    same_noise: bool = False  # train() draws eps from a seeded generator and passes it in


@dataclass
class History:
    """A trained model and its losses and bounds during training, in nats per image."""

    model: VAE
    step_loss: list[float] = field(default_factory=list)  # minus the ELBO of each batch
    train_elbo: list[float] = field(default_factory=list)  # per epoch; [0] is the untrained model
    heldout_elbo: list[float] = field(default_factory=list)


def load_images(device: str | torch.device) -> tuple[Tensor, Tensor]:
    """Return training and held-out images, [N, 64] in [0, 1]. All seeds use the same split."""
    images = torch.from_numpy(load_digits().data).float() / 16
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images = images[order].to(device)
    return images[:TRAIN_IMAGES], images[TRAIN_IMAGES:]


@torch.no_grad()
def evaluate(model: VAE, x: Tensor, impl: Implementation) -> float:
    """Return the mean ELBO of images x under fixed noise: it depends only on the weights."""
    noise = torch.Generator().manual_seed(0)
    eps = torch.randn(EVAL_SAMPLES * len(x), model.latent_dim, generator=noise).to(x.device)
    return -model.loss(x.repeat(EVAL_SAMPLES, 1), impl, eps).item()


def training_step(
    model: VAE,
    optimizer: torch.optim.Adam,
    impl: Implementation,
    x: Tensor,
    eps: Tensor | None = None,
) -> Tensor:
    """Take one optimizer step, and return the loss without waiting for the device."""
    loss = model.loss(x, impl, eps)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def train(name: str, config: Config, progress: bool = True) -> History:
    """Train with IMPLEMENTATIONS[name]. Runs are reproducible: torch.manual_seed determines the
    initial weights and the noise, and a separate generator determines the order of the images."""
    impl = IMPLEMENTATIONS[name]
    x, heldout_x = load_images(config.device)
    torch.manual_seed(config.seed)
    model = VAE(config.latent_dim).to(config.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    order = torch.Generator().manual_seed(config.seed)
    noise = torch.Generator().manual_seed(config.seed + 1)
    history = History(model)
    bar = tqdm(range(config.epochs + 1), f"{name}, seed {config.seed}", disable=not progress)
    for epoch in bar:
        if epoch > 0:
            losses, eps = [], None
            shuffled = torch.randperm(len(x), generator=order).to(x.device)
            # A last, smaller batch is skipped, so that all steps have the same shapes and cost.
            for batch in shuffled.split(config.batch_size)[: len(x) // config.batch_size]:
                if config.same_noise:
                    eps = torch.randn(len(batch), model.latent_dim, generator=noise).to(x.device)
                losses.append(training_step(model, optimizer, impl, x[batch], eps))
            history.step_loss += torch.stack(losses).tolist()
        history.train_elbo.append(evaluate(model, x, impl))
        history.heldout_elbo.append(evaluate(model, heldout_x, impl))
        bar.set_postfix_str(f"held-out ELBO {history.heldout_elbo[-1]:.2f} nats/image")
    return history


def report_seeds(runs: dict[str, list[History]]) -> None:
    """Print the final held-out ELBOs, paired by seed, which determines weights and image order."""
    final = {impl: [h.heldout_elbo[-1] for h in histories] for impl, histories in runs.items()}
    print(f"\nFinal held-out ELBO over {len(final['fused'])} seeds, nats per image")
    for impl, elbo in final.items():
        print(f"  {impl}: mean {mean(elbo):.3f}, standard deviation {stdev(elbo):.3f}")
    paired = [f - e for f, e in zip(final["fused"], final["eager"], strict=True)]
    difference, error = mean(paired), stdev(paired) / len(paired) ** 0.5
    ratio = f" = {difference / error:+.2f} standard errors" if error > 0 else ""
    print(f"  fused - eager: {difference:+.4f} +- {error:.4f} (standard error){ratio}")


def interleaved_ms(tasks: dict[str, Task], rounds: int, device: str) -> dict[str, float]:
    """Return the median milliseconds of each task. The tasks alternate, and so does the task that
    runs first, so that other processes disturb all tasks alike."""
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for i in range(-10, rounds):  # the first ten warm up
        for name in tasks if i % 2 else reversed(tasks):
            synchronize()
            start = time.perf_counter()
            tasks[name]()
            synchronize()
            if i >= 0:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: median(values) for name, values in times.items()}


def report_times(config: Config, rounds: int) -> None:
    """Time a whole training step, and each half of the loss alone, with each implementation."""
    x = load_images(config.device)[0][: config.batch_size]
    grad_z = torch.randn(len(x), config.latent_dim, device=config.device)

    def latent_alone(impl: Implementation, mu: Tensor, logvar: Tensor) -> object:
        return torch.autograd.grad(impl.latent(mu, logvar, None), (mu, logvar), (grad_z, None))

    def loss_alone(impl: Implementation, logits: Tensor, kl: Tensor) -> object:
        return torch.autograd.grad(impl.loss(logits, x, kl), (logits, kl))

    steps, latents, losses = dict[str, Task](), dict[str, Task](), dict[str, Task]()
    for name, impl in IMPLEMENTATIONS.items():
        model = VAE(config.latent_dim).to(config.device)
        optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
        steps[name] = partial(training_step, model, optimizer, impl, x)
        mu, logvar = (t.detach().requires_grad_() for t in model.encoder(x).chunk(2, dim=1))
        latents[name] = partial(latent_alone, impl, mu, logvar)
        logits, kl = (t.detach().requires_grad_() for t in (model.decoder(mu), mu.square().mean()))
        losses[name] = partial(loss_alone, impl, logits, kl)
    where = torch.cuda.get_device_name() if config.device == "cuda" else "CPU"
    print(f"\nMedians of {rounds} interleaved runs, batch {len(x)}, latent {config.latent_dim}")
    print(f"on {where} (torch {torch.__version__}, {torch.get_num_threads()} CPU threads)")
    eager_ms = []
    halves = ("latent alone, fwd + bwd", latents), ("loss alone, fwd + bwd", losses)
    for label, tasks in (("training step", steps), *halves):
        ms = interleaved_ms(tasks, rounds, config.device)
        times = f"fused {ms['fused']:.3f} ms, eager {ms['eager']:.3f} ms"
        print(f"  {label}: {times}, eager / fused = {ms['eager'] / ms['fused']:.2f}")
        eager_ms.append(ms["eager"])
    share = sum(eager_ms[1:]) / eager_ms[0]
    print(
        f"Both halves, timed alone, take {share:.0%} of the eager step. The rest is the same code"
    )
    print("for both implementations, so that share bounds the gain.")


@torch.no_grad()
def draw(impl: str, runs: dict[str, History], path: Path) -> None:
    """Draw reconstructions and prior samples of one run, and the ELBO curves of every run."""
    model = runs[impl].model.cpu()
    train_x, heldout_x = load_images("cpu")
    mu, _ = model.encoder(heldout_x[:10]).chunk(2, dim=1)
    z = torch.randn(50, model.latent_dim, generator=torch.Generator().manual_seed(0))
    decoded = torch.sigmoid(model.decoder(torch.cat([mu, z])))
    pictures = {
        f"Held-out digits (top) and reconstructions ({impl})": [heldout_x[:10], decoded[:10]],
        f"Decoded samples of the prior N(0, I) ({impl})": [decoded[10:]],
    }
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(1, 1.1), height_ratios=(2, 5))
    for row, (title, images) in enumerate(pictures.items()):
        axes = figure.add_subplot(grid[row, 0], title=title)
        tiles = F.pad(torch.cat(images).view(-1, 10, SIDE, SIDE), (1, 1, 1, 1))
        mosaic = tiles.transpose(1, 2).reshape(-1, tiles.shape[1] * tiles.shape[3])
        axes.imshow(mosaic.numpy(), cmap="gray_r", vmin=0, vmax=1)
        axes.set_axis_off()
    # The ELBO of a decoder that ignores z (so KL = 0) and returns the mean of each pixel.
    means = train_x.mean(0).clamp(1e-4, 1 - 1e-4).expand_as(heldout_x)
    floor = -F.binary_cross_entropy(means, heldout_x, reduction="sum").item() / len(heldout_x)
    untrained = runs[impl].heldout_elbo[0]
    axes = figure.add_subplot(grid[:, 1], title=f"ELBO by epoch (untrained: {untrained:.1f})")
    # Okabe and Ito's blue and vermilion for colour-blind readers; eager is thin and on top.
    styles = {"fused": {"color": "#0072B2", "lw": 3.0}, "eager": {"color": "#D55E00", "lw": 1.2}}
    for name, run in runs.items():
        axes.plot(run.train_elbo, "--", **styles[name], label=f"{name}, training images")
        axes.plot(run.heldout_elbo, **styles[name], label=f"{name}, held-out images")
    axes.set_ylim(bottom=min(floor, runs[impl].heldout_elbo[-1]) - 1)
    axes.axhline(floor, color="black", ls=":", label="mean of each pixel, z ignored")
    axes.set(xlabel="Epoch", ylabel="ELBO (nats per image; higher is better)")
    axes.grid(alpha=0.3)
    axes.legend(loc="center right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    print(f"Figure: {path}")


def main(argv: Sequence[str] | None = None) -> dict[str, list[History]]:
    """Train, report and draw as the options specify, and return the histories by implementation."""
    parser = argparse.ArgumentParser(description="Train a VAE on 8 x 8 handwritten digits.")
    parser.add_argument("--impl", choices=tuple(IMPLEMENTATIONS), default="fused")
    parser.add_argument("--compare", action="store_true", help="train both implementations")
    parser.add_argument("--same-noise", action="store_true", help="--compare, both fed one noise")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, nargs="+", help="--compare over several seeds")
    parser.add_argument("--epochs", type=int, help=f"default {Config.epochs}; 2 with --quick")
    parser.add_argument("--batch-size", type=int, default=Config.batch_size)
    parser.add_argument("--latent-dim", type=int, default=Config.latent_dim)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=Path("digits.png"), help="the figure (PNG)")
    parser.add_argument("--quick", action="store_true", help="2 epochs and a short timing")
    args = parser.parse_args(argv)
    epochs = args.epochs if args.epochs is not None else 2 if args.quick else Config.epochs
    if epochs < 1 or args.latent_dim < 1 or not 1 <= args.batch_size <= TRAIN_IMAGES:
        parser.error(f"epochs, latent dim and batch size start at 1; batches end at {TRAIN_IMAGES}")
    both = args.compare or args.same_noise or args.seeds
    runs: dict[str, list[History]] = {k: [] for k in IMPLEMENTATIONS if both or k == args.impl}
    for seed in args.seeds or [args.seed]:
        sizes = (epochs, args.batch_size, args.latent_dim)
        config = Config(seed, *sizes, args.device, args.same_noise)
        for impl, histories in runs.items():
            histories.append(train(impl, config))
    for impl, (history, *_) in runs.items():
        first, *_, last = history.heldout_elbo
        print(f"{impl}: held-out ELBO {first:.2f} untrained, {last:.2f} trained (nats per image)")
    if args.same_noise:
        fused, eager = (torch.tensor([h.step_loss[:100] for h in runs[k]]) for k in runs)
        worst = ((fused - eager) / eager).abs().max().item()
        print(f"Same noise: {fused.shape[1]} losses differ by at most {worst:.1e} relative")
    if len(args.seeds or ()) > 1:
        report_seeds(runs)
    draw(args.impl, {impl: histories[0] for impl, histories in runs.items()}, args.out)
    report_times(config, rounds=20 if args.quick else 300)
    return runs


if __name__ == "__main__":
    main()
