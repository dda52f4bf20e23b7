"""Train a convolutional autoencoder of photographs in bfloat16, with packed moments.

The encoder returns the mean and the log-variance of the latent as one tensor of 2 C channels, as
latent diffusion models do. `vf.reparameterize_kl_moments` reads both halves in place and returns
one packed gradient. Under autocast, the networks compute in bfloat16: the moments, the latent and
the decoder's output have 16 bits. The kernels compute in float32 and return losses in float32.

The data are patches of scikit-learn's two sample photographs. The likelihood is the discretized
logistic of 8-bit pixels, so the loss can be stated in bits per pixel and colour. For comparison,
the same model is also trained in float32.

    python examples/photographs_bf16.py             # writes photographs_bf16.png
    python examples/photographs_bf16.py --quick     # fewer steps
"""

import math
from collections.abc import Sequence

import torch
from _common import BLUE, ORANGE, panels, parse, save
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from tqdm import tqdm

import vae_fused as vf

PATCH, BATCH = 32, 32
CHANNELS, LATENT = 48, 16  # a latent, [16, 8, 8], has a third as many elements as a patch
HELDOUT_COLUMNS = 128  # at the right edge of each photograph
LIKELIHOOD = vf.likelihoods.DiscretizedLogistic(bits=8)
PRECISIONS = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class Autoencoder(nn.Module):
    """Two strided convolutions in each direction, and a learned log scale for each colour."""

    def __init__(self) -> None:
        super().__init__()
        width = CHANNELS
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(2 * width, 2 * LATENT, 3, padding=1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(LATENT, 2 * width, 3, padding=1),
            nn.SiLU(),
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.ConvTranspose2d(width, 3, 4, stride=2, padding=1),
        )
        self.log_scale = nn.Parameter(torch.full((3, 1, 1), -2.0))

    def forward(self, x: Tensor, noise: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the means of the pixels, in the autocast dtype, and two losses in bits per value.

        Returns:
            The means [B, 3, H, W], minus the ELBO, and the KL that it contains.
        """
        moments = self.encoder(x)  # [B, 2 LATENT, H / 4, W / 4]
        z, kl = vf.reparameterize_kl_moments(moments, generator=noise)
        mean = self.decoder(z)
        terms = vf.elbo_loss(
            (mean, self.log_scale), x, kl=kl, likelihood=LIKELIHOOD, grad="forward"
        )
        bits = 1.0 / (math.log(2.0) * x[0].numel())
        return mean, terms.loss * bits, terms.kl * bits


def photographs() -> Tensor:
    """Return both photographs, [2, 3, 427, 640], on the 8-bit grid in [-1, 1]."""
    pixels = torch.stack([torch.from_numpy(image.copy()) for image in load_sample_images().images])
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def random_patches(images: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return ``count`` patches at random positions in the training part of the photographs."""
    height, width = images.shape[2] - PATCH, images.shape[3] - HELDOUT_COLUMNS - PATCH
    which, top, left = (
        torch.randint(size, (count,), generator=generator).tolist()
        for size in (len(images), height + 1, width + 1)
    )
    corners = zip(which, top, left, strict=True)
    return torch.stack([images[i, :, t : t + PATCH, u : u + PATCH] for i, t, u in corners])


def heldout_patches(images: Tensor) -> Tensor:
    """Return adjacent patches from the right edge, [N, 3, PATCH, PATCH]."""
    edge = images[:, :, : images.shape[2] // PATCH * PATCH, -HELDOUT_COLUMNS:]
    tiles = edge.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)
    return tiles.permute(0, 2, 3, 1, 4, 5).flatten(0, 2).contiguous()


@torch.no_grad()
def evaluate(model: Autoencoder, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, float, float]:
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        mean, loss, kl = model(x, torch.Generator().manual_seed(0))
    return mean.float(), loss.item(), kl.item()


def train(
    dtype: torch.dtype, steps: int, seed: int, images: Tensor
) -> tuple[Autoencoder, list[float]]:
    """Train from the same weights, patches and noise in every dtype; return model and losses."""
    torch.manual_seed(seed)
    model = Autoencoder()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order, noise = (torch.Generator().manual_seed(seed) for _ in range(2))
    losses = []
    bar = tqdm(range(steps), str(dtype).removeprefix("torch."))
    for step in bar:
        x = random_patches(images, BATCH, order)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            _, loss, _ = model(x, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 20 == 0:
            bar.set_postfix_str(f"{losses[-1]:.3f} bits per value")
    return model, losses


def main(argv: Sequence[str] | None = None) -> dict[str, list[float]]:
    """Train in both precisions, draw, and return the loss of each step by precision."""
    args = parse(__doc__, argv, out="photographs_bf16.png", steps=1500, quick=200)
    images = photographs()
    heldout = heldout_patches(images)
    models, curves = {}, {}
    for name, dtype in PRECISIONS.items():
        models[name], curves[name] = train(dtype, args.steps, args.seed, images)

    print(f"\n{len(heldout)} held-out patches, bits per pixel and colour")
    for name, dtype in PRECISIONS.items():
        _, loss, kl = evaluate(models[name], heldout, dtype)
        print(f"trained and evaluated in {name}: -ELBO {loss:.3f}, of which KL {kl:.3f}")
    mean, loss, _ = evaluate(models["bfloat16"], heldout, torch.float32)
    print(f"trained in bfloat16, evaluated in float32: -ELBO {loss:.3f}")

    chosen = heldout.flatten(1).std(dim=1).argsort(descending=True)[:8]  # no plain sky
    rows = torch.stack([heldout[chosen], mean[chosen]], dim=1).unflatten(0, (2, 4))
    picture = rows.transpose(1, 2).permute(0, 1, 4, 2, 5, 3).flatten(0, 2).flatten(1, 2)
    figure, (left, right) = panels(2, (7.2, 2.8), widths=(1, 1.3))
    left.imshow(((picture + 1.0) / 2.0).clamp(0, 1).numpy(), interpolation="nearest")
    left.set(title="patches above reconstructions")
    left.set_axis_off()
    for name, color, width in (("float32", ORANGE, 3.0), ("bfloat16", BLUE, 1.0)):
        smooth = torch.tensor(curves[name]).unfold(0, min(20, args.steps), 1).mean(1)
        right.plot(smooth, color=color, lw=width, alpha=0.8, label=name)
    right.set(title="means of 20 steps", xlabel="step", ylabel="-ELBO (bits per value)")
    right.set_ylim(top=min(8.0, max(curves["float32"])))
    right.grid(alpha=0.3)
    right.legend(frameon=False)
    save(figure, args.out)
    return curves


if __name__ == "__main__":
    main()
