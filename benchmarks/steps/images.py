"""Image autoencoders: PyTorch's example, pythae, Pyro, diffusers."""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vae_fused as vf
from benchmarks.cases import Case, Contest, Noise, part
from benchmarks.steps.work import THEIRS, Loss, autoencoder, fused_latent, fused_loss, training

BATCH, PIXELS, LATENT = 128, 784, 20
HALF_SQUARED_ERROR = vf.likelihoods.Gaussian(sigma=1.0, constants=False)
ABSOLUTE_ERROR = vf.likelihoods.Laplace(sigma=1.0, constants=False)

# --- pytorch/examples, which is an example and not a package: reimplemented here -----------------


class Example(nn.Module):
    """The layers of ``vae/main.py``: 784-400-20-400-784, without the last sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(PIXELS, 400)
        self.mu, self.logvar = nn.Linear(400, LATENT), nn.Linear(400, LATENT)
        self.decoder = nn.Sequential(nn.Linear(LATENT, 400), nn.ReLU(), nn.Linear(400, PIXELS))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.relu(self.hidden(x))
        return self.mu(hidden), self.logvar(hidden)


def released_loss(logits: Tensor, x: Tensor) -> Tensor:
    """The original loss takes probabilities, because the decoder ends in a sigmoid."""
    return F.binary_cross_entropy(torch.sigmoid(logits), x, reduction="sum")


def loss_on_logits(logits: Tensor, x: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, x, reduction="sum")


def pytorch_example(loss: Loss) -> Contest:
    model, noise, x = Example(), Noise(), torch.rand(BATCH, PIXELS)

    def latent(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        std = torch.exp(0.5 * logvar)
        z = mu + torch.randn_like(std) * std
        return z, -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())

    def theirs() -> Tensor:
        z, kl = latent(*model.encode(x))
        return loss(model.decoder(z), x) + kl

    losses = (partial(loss, x=x), fused_loss(x, "bernoulli", "sum"))
    encode = partial(model.encode, x)
    latents = (latent, fused_latent(noise))
    return autoencoder(model.parameters(), theirs, encode, model.decoder, latents, losses, noise)


# --- pythae --------------------------------------------------------------------------------------


def pythae_encode(model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    encoded = model.encoder(x)
    return encoded.embedding, encoded.log_covariance


def pythae_vae() -> Contest:
    from pythae.models import VAE, VAEConfig

    model, noise = VAE(VAEConfig(input_dim=(1, 28, 28), latent_dim=LATENT)), Noise()
    x, zero = torch.rand(BATCH, 1, 28, 28), torch.zeros(BATCH, LATENT)

    def latent(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        z, _ = model._sample_gauss(mu, torch.exp(0.5 * logvar))
        empty = mu.new_zeros(len(mu), 1)  # a reconstruction with zero loss
        return z, model.loss_function(empty, empty, mu, logvar, z)[0]

    return autoencoder(
        model.parameters(),
        lambda: model({"data": x}).loss,
        partial(pythae_encode, model, x),
        lambda z: model.decoder(z)["reconstruction"],
        (latent, fused_latent(noise)),
        (
            lambda y: model.loss_function(y, x, zero[:, :1], zero[:, :1], zero)[0],
            fused_loss(x, HALF_SQUARED_ERROR),
        ),
        noise,
    )


def pythae_iwae(samples: int = 10) -> Contest:
    """Our samples have the shape (S, B, D), so that mu and the images need no copies."""
    from pythae.models import IWAE, IWAEConfig

    config = IWAEConfig(input_dim=(1, 28, 28), latent_dim=LATENT, number_samples=samples)
    model, noise, x = IWAE(config), Noise(), torch.rand(BATCH, 1, 28, 28)
    flat, zero, empty = x.reshape(BATCH, PIXELS), torch.zeros(()), torch.zeros(BATCH, samples, 1)

    def latent(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = (t.unsqueeze(1).repeat(1, samples, 1) for t in (mu, logvar))
        z, _ = model._sample_gauss(mu, torch.exp(0.5 * logvar))
        log_q = (-0.5 * (logvar + torch.pow(z - mu, 2) / logvar.exp())).sum(dim=-1)
        return z, log_q + 0.5 * (z**2).sum(dim=-1)

    def fused(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        """Return samples, and ln q(z|x) - ln p(z) of each sample."""
        eps = noise(BATCH, samples, LATENT)
        given = None if eps is None else eps.transpose(0, 1)
        z = vf.reparameterize(mu, logvar, sample_shape=samples, eps=given)
        log_p = vf.gaussian_log_prob(z, zero, zero, dim=-1)
        return z, vf.gaussian_log_prob(z, mu, logvar, dim=-1) - log_p

    def bound(y: Tensor) -> Tensor:
        found: Tensor = model.loss_function(
            y.reshape(BATCH, samples, PIXELS), x, empty, empty, empty
        )[0]
        return found

    def fused_bound(y: Tensor, kl: Tensor = zero) -> Tensor:
        y = y.reshape(samples, BATCH, PIXELS)
        terms = vf.nll(y, flat, HALF_SQUARED_ERROR, dim=-1) + kl
        return ((-terms).softmax(dim=0).detach() * terms).sum(dim=0).mean()

    return autoencoder(
        model.parameters(),
        lambda: model({"data": x}).loss,
        partial(pythae_encode, model, x),
        lambda z: model.decoder(z.reshape(-1, LATENT))["reconstruction"],
        (latent, fused),
        (bound, fused_bound),
        noise,
    )


# --- Pyro ----------------------------------------------------------------------------------------


def pyro_svi() -> Contest:
    """The networks of the VAE in Pyro's tutorial, with the KL in closed form."""
    import pyro
    from pyro import distributions as dist
    from pyro.distributions.torch_distribution import TorchDistributionMixin
    from pyro.infer import TraceMeanField_ELBO

    noise, elbo = Noise(), TraceMeanField_ELBO()

    class Site(vf.DiagonalGaussian, TorchDistributionMixin):  # type: ignore[misc]
        def rsample(self, sample_shape: Any = (), **_: Any) -> Tensor:
            return super().rsample(sample_shape, eps=noise(*self.mu.shape))

    encoder = nn.Sequential(nn.Linear(PIXELS, 400), nn.Softplus(), nn.Linear(400, 2 * LATENT))
    decoder = nn.Sequential(nn.Linear(LATENT, 400), nn.Softplus(), nn.Linear(400, PIXELS))
    x = (torch.rand(BATCH, PIXELS) < 0.3).float()
    zero, one = torch.zeros(BATCH, LATENT), torch.ones(BATCH, LATENT)

    def posterior(fused: bool, mu: Tensor, logstd: Tensor) -> Any:
        q = Site(mu, logstd, scale="logstd") if fused else dist.Normal(mu, logstd.exp())
        return q.to_event(1)

    def model(fused: bool) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", BATCH):
            logits = decoder(pyro.sample("z", dist.Normal(zero, one).to_event(1)))
            if fused:
                pyro.factor("x", -vf.nll(logits, x, "bernoulli", reduction="sample"))
            else:
                pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(fused: bool) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", BATCH):
            pyro.sample("z", posterior(fused, *encoder(x).chunk(2, dim=-1)))

    def latent(fused: bool, mu: Tensor, logstd: Tensor) -> tuple[Tensor, Tensor]:
        """Pyro evaluates a site and its KL in two calls, not one."""
        q = posterior(fused, mu, logstd)
        return q.rsample(), dist.kl.kl_divergence(q, dist.Normal(zero, one).to_event(1)).sum()

    def loss(fused: bool) -> Tensor:
        found: Tensor = elbo.differentiable_loss(partial(model, fused), partial(guide, fused))
        return found

    mu, logstd = encoder(x).chunk(2, dim=-1)
    parts = {
        "latent": part([mu, logstd], theirs=partial(latent, False), ours=partial(latent, True)),
        "loss": part(
            [decoder(mu)],
            theirs=lambda logits: -dist.Bernoulli(logits=logits).log_prob(x).sum(),
            ours=fused_loss(x, "bernoulli", "sum"),
        ),
    }
    parameters = [*encoder.parameters(), *decoder.parameters()]
    return training(parameters, partial(loss, False), partial(loss, True), parts, noise)


# --- diffusers -----------------------------------------------------------------------------------


def diffusers_autoencoder(images: int = 4, beta: float = 1e-6) -> Contest:
    """``AutoencoderKL`` with the absolute error plus a KL per image, weighted as CompVis does."""
    from diffusers import AutoencoderKL
    from diffusers.models.autoencoders import autoencoder_kl as module

    from vae_fused.compat.diffusers import DiagonalGaussianDistribution as Fused

    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(32, 64),
        latent_channels=4,
        sample_size=64,
    )
    x, noise = torch.rand(images, 3, 64, 64), Noise()
    patched = mock.patch.object(module, "DiagonalGaussianDistribution", Fused)
    fused_error = fused_loss(x, ABSOLUTE_ERROR)

    def error(y: Tensor) -> Tensor:
        return (y - x).abs().sum() / images

    def outputs() -> tuple[Tensor, Tensor]:
        posterior = model.encode(x).latent_dist
        # With a generator, both classes draw the noise of torch.randn.
        given = torch.Generator(x.device).manual_seed(1) if noise.is_given else None
        kl = noise.weight(beta) * posterior.kl().mean()
        return model.decode(posterior.sample(given)).sample, kl

    def theirs() -> Tensor:
        y, kl = outputs()
        return error(y) + kl

    def ours() -> Tensor:
        with patched:
            y, kl = outputs()
        return fused_error(y, kl)

    def latent(kind: Any, moments: Tensor) -> tuple[Tensor, Tensor]:
        posterior = kind(moments)
        return posterior.sample(), posterior.kl().mean()

    posterior = model.encode(x).latent_dist
    parts = {
        "latent": part(
            [posterior.parameters],
            theirs=partial(latent, module.DiagonalGaussianDistribution),
            ours=partial(latent, Fused),
        ),
        "loss": part([model.decode(posterior.mode()).sample], theirs=error, ours=fused_error),
    }
    return training(model.parameters(), theirs, ours, parts, noise)


CASES = [
    Case("pytorch-example", partial(pytorch_example, released_loss),
         "the VAE of pytorch/examples as released: 784-400-20-400-784, sigmoid, 128 images",
         targets={THEIRS: 1.2}),
    Case("pytorch-example logits", partial(pytorch_example, loss_on_logits),
         "the same with binary_cross_entropy_with_logits in place of the sigmoid and its loss"),
    Case("pythae vae", pythae_vae, "VAE, its default networks, 128 images of 28x28", "pythae"),
    Case("pythae iwae", pythae_iwae, "IWAE, 10 samples, otherwise the same", "pythae"),
    Case("pyro", pyro_svi, "SVI by TraceMeanField_ELBO, 784-400-20-400-784, 128 binary images",
         "pyro-ppl"),
    Case("diffusers", diffusers_autoencoder,
         "AutoencoderKL of two blocks, 32 and 64 channels, 4 images of 3x64x64, absolute error",
         "diffusers"),
]  # fmt: skip
