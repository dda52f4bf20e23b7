"""Autoencoders of images: PyTorch's example, pythae, Pyro, diffusers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vae_fused as vf
from benchmarks.steps.work import Case, Noise, Part, Work, negative_elbo

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


def example_sample(mu: Tensor, logvar: Tensor) -> Tensor:
    std = torch.exp(0.5 * logvar)
    return mu + torch.randn_like(std) * std


def example_kl(mu: Tensor, logvar: Tensor) -> Tensor:
    return -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())


def released_loss(logits: Tensor, x: Tensor) -> Tensor:
    """The original loss takes probabilities, because the decoder ends in a sigmoid."""
    return F.binary_cross_entropy(torch.sigmoid(logits), x, reduction="sum")


def loss_on_logits(logits: Tensor, x: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, x, reduction="sum")


def pytorch_example(example_loss: Callable[[Tensor, Tensor], Tensor]) -> Work:
    model, noise = Example(), Noise()
    x = torch.rand(BATCH, PIXELS)

    def theirs() -> Tensor:
        mu, logvar = model.encode(x)
        logits = model.decoder(example_sample(mu, logvar))
        return example_loss(logits, x) + example_kl(mu, logvar)

    def ours() -> Tensor:
        mu, logvar = model.encode(x)
        z, kl = vf.reparameterize_kl(mu, logvar, eps=noise(*mu.shape))
        return negative_elbo(model.decoder(z), x, "bernoulli", kl, reduction="sum")

    mu, logvar = model.encode(x)
    parts = {
        "latent": Part(
            [mu, logvar],
            lambda mu, logvar: (example_sample(mu, logvar), example_kl(mu, logvar)),
            lambda mu, logvar: vf.reparameterize_kl(mu, logvar, reduction="sum"),
        ),
        "loss": Part(
            [model.decoder(mu)],
            lambda logits: example_loss(logits, x),
            lambda logits: vf.nll(logits, x, "bernoulli", reduction="sum"),
        ),
    }
    return Work(list(model.parameters()), theirs, ours, noise, parts)


# --- pythae --------------------------------------------------------------------------------------


def pythae_vae() -> Work:
    from pythae.models import VAE, VAEConfig

    model, noise = VAE(VAEConfig(input_dim=(1, 28, 28), latent_dim=LATENT)), Noise()
    x = torch.rand(BATCH, 1, 28, 28)

    def theirs() -> Tensor:
        loss: Tensor = model({"data": x}).loss
        return loss

    def ours() -> Tensor:
        encoded = model.encoder(x)
        mu, logvar = encoded.embedding, encoded.log_covariance
        z, kl = vf.reparameterize_kl(mu, logvar, eps=noise(*mu.shape))
        return negative_elbo(model.decoder(z)["reconstruction"], x, HALF_SQUARED_ERROR, kl)

    encoded = model.encoder(x)
    mu, logvar = encoded.embedding, encoded.log_covariance
    reconstruction = model.decoder(mu)["reconstruction"]
    zero = torch.zeros_like(mu)

    def latent(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        z, _ = model._sample_gauss(mu, torch.exp(0.5 * logvar))
        empty = mu.new_zeros(len(mu), 1)  # a reconstruction with zero loss
        return z, model.loss_function(empty, empty, mu, logvar, z)[0]

    parts = {
        "latent": Part([mu, logvar], latent, lambda mu, logvar: vf.reparameterize_kl(mu, logvar)),
        "loss": Part(
            [reconstruction],
            lambda y: model.loss_function(y, x, zero[:, :1], zero[:, :1], zero)[0],
            lambda y: vf.nll(y, x, HALF_SQUARED_ERROR),
        ),
    }
    return Work(list(model.parameters()), theirs, ours, noise, parts)


def pythae_iwae(samples: int = 10) -> Work:
    """The samples are the first dimension, (S, B, D), so mu and the images need no copies."""
    from pythae.models import IWAE, IWAEConfig

    config = IWAEConfig(input_dim=(1, 28, 28), latent_dim=LATENT, number_samples=samples)
    model, noise = IWAE(config), Noise()
    x = torch.rand(BATCH, 1, 28, 28)
    flat, zero = x.reshape(BATCH, PIXELS), torch.zeros(())

    def our_latent(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        """Samples, and ln q(z|x) - ln p(z) of each."""
        eps = noise(BATCH, samples, LATENT)
        given = None if eps is None else eps.transpose(0, 1)
        z = vf.reparameterize(mu, logvar, sample_shape=samples, eps=given)
        log_p = vf.gaussian_log_prob(z, zero, zero, dim=-1)
        return z, vf.gaussian_log_prob(z, mu, logvar, dim=-1) - log_p

    def our_bound(y: Tensor, kl: Tensor) -> Tensor:
        y = y.reshape(samples, BATCH, PIXELS)
        terms = vf.nll(y, flat, HALF_SQUARED_ERROR, dim=-1) + kl
        return ((-terms).softmax(dim=0).detach() * terms).sum(dim=0).mean()

    def theirs() -> Tensor:
        loss: Tensor = model({"data": x}).loss
        return loss

    def ours() -> Tensor:
        encoded = model.encoder(x)
        z, kl = our_latent(encoded.embedding, encoded.log_covariance)
        return our_bound(model.decoder(z.reshape(-1, LATENT))["reconstruction"], kl)

    encoded = model.encoder(x)
    mu, logvar = encoded.embedding, encoded.log_covariance
    z, _ = our_latent(mu, logvar)
    reconstruction = model.decoder(z.reshape(-1, LATENT))["reconstruction"]
    empty = torch.zeros(BATCH, samples, 1)

    def their_latent(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = (t.unsqueeze(1).repeat(1, samples, 1) for t in (mu, logvar))
        z, _ = model._sample_gauss(mu, torch.exp(0.5 * logvar))
        log_q = (-0.5 * (logvar + torch.pow(z - mu, 2) / logvar.exp())).sum(dim=-1)
        return z, log_q + 0.5 * (z**2).sum(dim=-1)

    def their_bound(y: Tensor) -> Tensor:
        y = y.reshape(BATCH, samples, PIXELS)
        loss: Tensor = model.loss_function(y, x, empty, empty, empty)[0]
        return loss

    parts = {
        "latent": Part([mu, logvar], their_latent, our_latent),
        "loss": Part([reconstruction], their_bound, lambda y: our_bound(y, zero)),
    }
    return Work(list(model.parameters()), theirs, ours, noise, parts)


# --- Pyro ----------------------------------------------------------------------------------------


def pyro_svi() -> Work:
    """The networks of the VAE in Pyro's tutorial, with the KL in closed form."""
    import pyro
    from pyro import distributions as dist
    from pyro.distributions.torch_distribution import TorchDistributionMixin
    from pyro.infer import TraceMeanField_ELBO

    noise = Noise()

    class Site(vf.DiagonalGaussian, TorchDistributionMixin):
        def rsample(self, sample_shape: Any = (), **_: Any) -> Tensor:
            return super().rsample(sample_shape, eps=noise(*self.mu.shape))

    encoder = nn.Sequential(nn.Linear(PIXELS, 400), nn.Softplus(), nn.Linear(400, 2 * LATENT))
    decoder = nn.Sequential(nn.Linear(LATENT, 400), nn.Softplus(), nn.Linear(400, PIXELS))
    x = (torch.rand(BATCH, PIXELS) < 0.3).float()

    zero, one = torch.zeros(BATCH, LATENT), torch.ones(BATCH, LATENT)

    def prior() -> Tensor:
        z: Tensor = pyro.sample("z", dist.Normal(zero, one).to_event(1))
        return z

    def model() -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", BATCH):
            logits = decoder(prior())
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def fused_model() -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", BATCH):
            logits = decoder(prior())
            pyro.factor("x", -vf.nll(logits, x, "bernoulli", reduction="sample"))

    def guide() -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", BATCH):
            mu, logstd = encoder(x).chunk(2, dim=-1)
            pyro.sample("z", dist.Normal(mu, logstd.exp()).to_event(1))

    def fused_guide() -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", BATCH):
            mu, logstd = encoder(x).chunk(2, dim=-1)
            pyro.sample("z", Site(mu, logstd, scale="logstd").to_event(1))

    elbo = TraceMeanField_ELBO()
    mu, logstd = encoder(x).chunk(2, dim=-1)

    def latent(q: Any) -> tuple[Tensor, Tensor]:
        """Pyro evaluates a site and its KL in two calls, not one."""
        return q.rsample(), dist.kl.kl_divergence(q, dist.Normal(zero, one).to_event(1)).sum()

    def their_latent(mu: Tensor, logstd: Tensor) -> tuple[Tensor, Tensor]:
        return latent(dist.Normal(mu, logstd.exp()).to_event(1))

    def our_latent(mu: Tensor, logstd: Tensor) -> tuple[Tensor, Tensor]:
        return latent(Site(mu, logstd, scale="logstd").to_event(1))

    parts = {
        "latent": Part(
            [mu, logstd],
            their_latent,
            our_latent,
        ),
        "loss": Part(
            [decoder(mu)],
            lambda logits: -dist.Bernoulli(logits=logits).log_prob(x).sum(),
            lambda logits: vf.nll(logits, x, "bernoulli", reduction="sum"),
        ),
    }
    return Work(
        [*encoder.parameters(), *decoder.parameters()],
        lambda: elbo.differentiable_loss(model, guide),
        lambda: elbo.differentiable_loss(fused_model, fused_guide),
        noise,
        parts,
    )


# --- diffusers -----------------------------------------------------------------------------------


def diffusers_autoencoder(images: int = 4, beta: float = 1e-6) -> Work:
    """``AutoencoderKL`` with absolute error and KL summed over an image, with CompVis's weights."""
    from diffusers import AutoencoderKL
    from diffusers.models.autoencoders import autoencoder_kl as module

    from vae_fused.compat.diffusers import DiagonalGaussianDistribution

    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(32, 64),
        latent_channels=4,
        sample_size=64,
    )
    x, noise = torch.rand(images, 3, 64, 64), Noise()

    @contextmanager
    def patched() -> Iterator[None]:
        original = module.DiagonalGaussianDistribution
        module.DiagonalGaussianDistribution = DiagonalGaussianDistribution
        try:
            yield
        finally:
            module.DiagonalGaussianDistribution = original

    def outputs() -> tuple[Tensor, Tensor]:
        posterior = model.encode(x).latent_dist
        # With a generator both classes draw the noise of torch.randn.
        given = torch.Generator().manual_seed(1) if noise.is_given else None
        return model.decode(posterior.sample(given)).sample, posterior.kl().mean()

    def theirs() -> Tensor:
        y, kl = outputs()
        return (y - x).abs().sum() / images + noise.weight(beta) * kl

    def ours() -> Tensor:
        with patched():
            y, kl = outputs()
        return negative_elbo(y, x, ABSOLUTE_ERROR, noise.weight(beta) * kl)

    posterior = model.encode(x).latent_dist

    def latent(kind: Any, moments: Tensor) -> tuple[Tensor, Tensor]:
        posterior = kind(moments)
        return posterior.sample(), posterior.kl().mean()

    their_class = module.DiagonalGaussianDistribution
    parts = {
        "latent": Part(
            [posterior.parameters],
            lambda moments: latent(their_class, moments),
            lambda moments: latent(DiagonalGaussianDistribution, moments),
        ),
        "loss": Part(
            [model.decode(posterior.mode()).sample],
            lambda y: (y - x).abs().sum() / images,
            lambda y: vf.nll(y, x, ABSOLUTE_ERROR),
        ),
    }
    return Work(list(model.parameters()), theirs, ours, noise, parts)


CASES = [
    Case(
        "pytorch-example",
        "",
        "the VAE of pytorch/examples as released: 784-400-20-400-784, sigmoid, 128 images",
        partial(pytorch_example, released_loss),
        target=1.2,
    ),
    Case(
        "pytorch-example logits",
        "",
        "the same with binary_cross_entropy_with_logits in place of the sigmoid and its loss",
        partial(pytorch_example, loss_on_logits),
    ),
    Case("pythae vae", "pythae", "VAE, its default networks, 128 images of 28x28", pythae_vae),
    Case("pythae iwae", "pythae", "IWAE, 10 samples, otherwise the same", pythae_iwae),
    Case(
        "pyro",
        "pyro-ppl",
        "SVI by TraceMeanField_ELBO, 784-400-20-400-784, 128 binary images",
        pyro_svi,
    ),
    Case(
        "diffusers",
        "diffusers",
        "AutoencoderKL of two blocks, 32 and 64 channels, 4 images of 3x64x64, absolute error",
        diffusers_autoencoder,
    ),
]
