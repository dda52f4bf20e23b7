"""Compares recipes in docs/cookbook.md with the installed packages, called with their defaults.

`ours` comes from the recipe. The package itself replaces `theirs`, so that a test fails if the
recipe restates the package incorrectly, or if a release changes a default. All noise comes from the
recipe's `eps`, which torch's functions that draw normals return while the package runs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from test_cookbook import RECIPES, error, results
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

import vae_fused as vf

pytestmark = pytest.mark.packages

F64 = torch.float64


@contextlib.contextmanager
def noise(*tensors: Tensor) -> Iterator[None]:
    """Make functions that draw normals return these tensors in turn, and require all to be used."""
    left = list(tensors)

    def draw(*_: Any, **__: Any) -> Tensor:
        return left.pop(0)

    with contextlib.ExitStack() as stack:
        for owner, name in (
            (torch, "randn"),
            (torch, "randn_like"),
            (torch.Tensor, "normal_"),
            (torch.distributions.normal, "_standard_normal"),
        ):
            stack.enter_context(mock.patch.object(owner, name, draw))
        yield
    assert not left


class Returns(nn.Module):
    """Replaces a network in a package's model, and returns the given values."""

    def __init__(self, values: Any) -> None:
        super().__init__()
        self.values = (values,)  # not registered as parameters

    def forward(self, *_: Any, **__: Any) -> Any:
        return self.values[0]


def with_parameters(module: nn.Module, **tensors: Tensor) -> nn.Module:
    """Replaces a module's parameters with tensors that belong to a graph."""
    assert tensors.keys() <= module._parameters.keys()
    module._parameters.update(tensors)  # type: ignore[arg-type]
    return module


def weight_and_bias(layer: Callable[[Tensor], Tensor], width: int) -> tuple[Tensor, Tensor]:
    """Computes the weight and bias of a linear layer from one call."""
    bias, *rows = layer(torch.cat([torch.zeros(1, width), torch.eye(width)]).double())
    return (torch.stack(rows) - bias).T, bias


# --------------------------------------------------------------------------------------------------
# diffusers, MONAI, scvi-tools
# --------------------------------------------------------------------------------------------------


def diffusers_posterior(h, p, sample):
    vae = pytest.importorskip("diffusers.models.autoencoders.vae")
    q, p = vae.DiagonalGaussianDistribution(h), vae.DiagonalGaussianDistribution(p)
    return q.kl(), q.kl(p), q.nll(sample[:, ::2])


def diffusers_sample(h, eps):
    vae = pytest.importorskip("diffusers.models.autoencoders.vae")
    q = vae.DiagonalGaussianDistribution(h)
    with noise(eps):
        return q.sample(), q.kl()


def diffusers_video(h, eps):
    z, kl = diffusers_sample(h, eps)
    return z, kl.mean() * kl.shape[1]


def diffusers_oobleck(h, eps):
    module = pytest.importorskip("diffusers.models.autoencoders.autoencoder_oobleck")
    q = module.OobleckDiagonalGaussianDistribution(h)
    with noise(eps):
        return q.sample(), q.kl()


def monai_autoencoder(mu, logvar, eps):
    """MONAI leaves the KL to the user."""
    nets = pytest.importorskip("monai.networks.nets")
    model = nets.AutoencoderKL(
        3, channels=(4,), attention_levels=(False,), num_res_blocks=1, norm_num_groups=1
    )
    model.quant_conv_mu, model.quant_conv_log_sigma = Returns(mu), Returns(logvar)
    mean, sigma = model.encode(torch.zeros(1, 1, 4, 4, 4))
    with noise(eps):
        z = model.sampling(mean, sigma)
    kl = kl_divergence(Normal(mean, sigma), Normal(0.0, 1.0)).sum(dim=(1, 2, 3, 4))
    return z, kl.mean()


def scvi_vae(mu, raw, eps, weight):
    pytest.importorskip("scvi")
    from scvi import REGISTRY_KEYS as KEYS
    from scvi.module import VAE

    module = VAE(4, n_latent=10, n_batch=1)
    encoder = module.z_encoder
    encoder.mean_encoder, encoder.var_encoder = Returns(mu), Returns(raw)
    with noise(eps[0]):
        q, _ = encoder(torch.zeros(6, 4))
    with noise(eps):
        z = q.rsample((3,))
    zero = SimpleNamespace(log_prob=lambda x: torch.zeros_like(x))
    loss = module.loss(
        {KEYS.X_KEY: torch.zeros(6, 4, dtype=F64)},
        {"qz": q},
        {"pz": Normal(torch.zeros_like(mu), torch.ones_like(mu)), "px": zero},
        kl_weight=weight,
    )
    return z, loss.loss


# --------------------------------------------------------------------------------------------------
# torchrl, tensordict
# --------------------------------------------------------------------------------------------------


def rssm_moments(mu: Tensor, raw: Tensor) -> tuple[Any, tuple[Tensor, Tensor]]:
    """Returns torchrl's posterior network, whose last layer gets mu and raw, and its moments."""
    modules = pytest.importorskip("torchrl.modules")
    posterior = modules.RSSMPosterior()
    extractor = posterior.obs_rnn_to_post_projector[-1]
    posterior.obs_rnn_to_post_projector = nn.Sequential(
        Returns(torch.cat([mu, raw], dim=-1)), extractor
    )
    return posterior, extractor(torch.cat([mu, raw], dim=-1))


def rssm_kl(mu, raw, m, prior_raw, **options):
    """Returns the KLs of `DreamerModelLoss` by default and with `delayed_clamp`."""
    objectives = pytest.importorskip("torchrl.objectives")
    prior = pytest.importorskip("torchrl.modules").RSSMPrior(action_spec=torch.zeros(2))
    prior_moments = prior.rnn_to_prior_projector[-1](torch.cat([m, prior_raw], dim=-1))
    _, moments = rssm_moments(mu, raw)
    networks = nn.Sequential(nn.Sequential(nn.Identity()), nn.Identity())
    losses = (
        objectives.DreamerModelLoss(networks, **options),
        objectives.DreamerModelLoss(networks, **options, delayed_clamp=True),
    )
    return [loss.kl_loss(*prior_moments, *moments) for loss in losses]


def torchrl_rssm(mu, raw, m, prior_raw, eps):
    posterior, _ = rssm_moments(mu, raw)
    with noise(eps):
        _, _, z = posterior(torch.zeros(7, 4, 3), torch.zeros(7, 4, 3))
    return z, *rssm_kl(mu, raw, m, prior_raw)


def torchrl_global_average(mu, raw, m, prior_raw):
    return rssm_kl(mu, raw, m, prior_raw, global_average=True)


def tensordict_extractor(h, eps):
    distributions = pytest.importorskip("tensordict.nn.distributions")
    mean, std = distributions.NormalParamExtractor()(h)
    return mean + std * eps


# --------------------------------------------------------------------------------------------------
# transformers
# --------------------------------------------------------------------------------------------------


def tiny_vits() -> Any:
    vits = pytest.importorskip("transformers.models.vits.modeling_vits")
    config = vits.VitsConfig(
        vocab_size=8, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, ffn_dim=4,
        flow_size=8, spectrogram_bins=4, upsample_initial_channel=8, upsample_rates=[2],
        upsample_kernel_sizes=[4], resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1]],
        prior_encoder_num_flows=1, prior_encoder_num_wavenet_layers=1,
        posterior_encoder_num_wavenet_layers=1, duration_predictor_num_flows=1,
        use_stochastic_duration_prediction=False,
    )  # fmt: skip
    return vits.VitsModel(config)


def vits_posterior(m, logs, eps, mask):
    encoder = tiny_vits().posterior_encoder
    encoder.out_channels = m.shape[1]
    encoder.conv_pre = encoder.wavenet = Returns(torch.zeros(()))
    encoder.conv_proj = Returns(torch.cat([m, logs], dim=1))
    with noise(eps):
        return encoder(torch.zeros(()), mask.double())[0]


def vits_prior(m, logs, eps):
    """Returns the sample that inference passes to the flow, with a duration of 1 for each token."""
    model = tiny_vits()
    batch, _, steps = m.shape
    model.text_encoder.forward = lambda **_: SimpleNamespace(
        last_hidden_state=torch.zeros(batch, steps, 4), hidden_states=None, attentions=None,
        prior_means=m.transpose(1, 2), prior_log_variances=logs.transpose(1, 2),
    )  # fmt: skip
    model.duration_predictor = Returns(torch.zeros(batch, 1, steps))
    model.flow = SimpleModule(lambda z, *_, **__: z)
    model.decoder = Returns(torch.zeros(batch, 1, 1))
    model.text_encoder.embed_tokens.double()  # the masks have its dtype
    with noise(eps):
        return model(torch.zeros(batch, steps, dtype=torch.long)).spectrogram


class SimpleModule(nn.Module):
    """A module that calls a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


# --------------------------------------------------------------------------------------------------
# pythae
# --------------------------------------------------------------------------------------------------


def pythae_loss(name: str, mu, logvar, eps, x, reconstruction, epoch=None, **config) -> Any:
    """Returns the output of a model whose networks return these tensors."""
    models = pytest.importorskip("pythae.models")
    shape = tuple(x.shape[1:])
    options = {"input_dim": shape, "latent_dim": mu.shape[-1], **config}
    model = getattr(models, name)(getattr(models, f"{name}Config")(**options))
    model.encoder = Returns(SimpleNamespace(embedding=mu, log_covariance=logvar))
    model.decoder = Returns({"reconstruction": reconstruction})
    with noise(eps):
        return model({"data": x}, **({} if epoch is None else {"epoch": epoch}))


def pythae_beta(mu, logvar, eps):
    zero = torch.zeros(8, 1, dtype=F64)
    output = pythae_loss("BetaVAE", mu, logvar, eps, zero, zero, beta=4.0)
    return output.z, output.loss


def pythae_disentangled(mu, logvar):
    zero, eps = torch.zeros(8, 1, dtype=F64), torch.zeros_like(mu)
    return pythae_loss("DisentangledBetaVAE", mu, logvar, eps, zero, zero, epoch=26).loss


def pythae_iwae(mu, logvar, eps, y, x):
    return pythae_loss("IWAE", mu, logvar, eps, x, y.reshape(-1, 7), number_samples=5).loss


# --------------------------------------------------------------------------------------------------
# Pyro, bayesian-torch, torchbnn, PyTorch Geometric, Keras
# --------------------------------------------------------------------------------------------------


def pyro_elbo(mu, std, m, tau, mask):
    pyro = pytest.importorskip("pyro")
    from pyro.distributions import Normal
    from pyro.infer import TraceMeanField_ELBO

    def site(mean, scale):
        with pyro.plate("data", 8), pyro.poutine.scale(scale=3.0), pyro.poutine.mask(mask=mask):
            pyro.sample("z", Normal(mean, scale).to_event(1))

    loss = TraceMeanField_ELBO().differentiable_loss(lambda: site(m, tau), lambda: site(mu, std))
    return loss, loss


def bayesian_torch_weight(mu, rho, eps):
    layers = pytest.importorskip("bayesian_torch.layers")
    layer = layers.LinearReparameterization(12, 10, prior_variance=0.1, bias=False).double()
    layer.init_parameters()  # fills the prior's buffers, here in float64
    with_parameters(layer, mu_weight=mu, rho_weight=rho)
    with noise(eps):
        out, kl = layer(torch.eye(12, dtype=F64))
    return out.T, kl


def bayesian_torch_layer(mu, rho, eps, mu_bias, rho_bias, eps_bias):
    layers = pytest.importorskip("bayesian_torch.layers")
    layer = layers.LinearReparameterization(12, 10).double()
    with_parameters(layer, mu_weight=mu, rho_weight=rho, mu_bias=mu_bias, rho_bias=rho_bias)
    with noise(eps, eps_bias):
        weight, bias = weight_and_bias(lambda x: layer(x)[0], 12)
    return weight, bias, layer.kl_loss()


def torchbnn_layer(mu, log_sigma, eps, mu_bias, log_sigma_bias, eps_bias):
    package = pytest.importorskip("torchbnn")
    layer = with_parameters(
        package.BayesLinear(0.0, 0.1, 12, 10), weight_mu=mu, weight_log_sigma=log_sigma,
        bias_mu=mu_bias, bias_log_sigma=log_sigma_bias,
    )  # fmt: skip
    with noise(eps, eps_bias):
        weight, bias = weight_and_bias(layer, 12)
    (kl,) = package.BKLLoss()(layer)
    return weight, bias, kl.double()


def geometric_vgae(mu, logstd, eps):
    package = pytest.importorskip("torch_geometric.nn")
    model = package.VGAE(Returns((mu, logstd)))
    with noise(eps):
        z = model.encode()
    given = model.kl_loss(mu, logstd)
    assert torch.equal(model.kl_loss(), given)
    return z, given


def keras_example(z_mean, z_log_var, eps):
    """Repeats the computation of the example's layer and step with Keras operations."""
    with mock.patch.dict(os.environ, KERAS_BACKEND="torch"):
        keras = pytest.importorskip("keras")
    ops = keras.ops
    z = z_mean + ops.exp(0.5 * z_log_var) * eps
    kl = -0.5 * (1 + z_log_var - ops.square(z_mean) - ops.exp(z_log_var))
    return z, ops.mean(ops.sum(kl, axis=1))


RSSM = "RSSM: PlaNet, Dreamer, torchrl"
PACKAGES: dict[str, Callable[..., Any]] = {
    "diffusers, CompVis": diffusers_posterior,
    "diffusers, CompVis, 2": diffusers_sample,
    "Oobleck": diffusers_oobleck,
    "Video": diffusers_video,
    "MONAI": monai_autoencoder,
    "scvi-tools": scvi_vae,
    RSSM: torchrl_rssm,
    f"{RSSM}, 2": torchrl_global_average,
    f"{RSSM}, 3": tensordict_extractor,
    "VITS, 2": vits_posterior,
    "VITS, 3": vits_prior,
    "pythae": pythae_beta,
    "pythae, 2": pythae_disentangled,
    "pythae, 3": pythae_iwae,
    "Pyro": pyro_elbo,
    "bayesian-torch": bayesian_torch_weight,
    "bayesian-torch, 2": bayesian_torch_layer,
    "torchbnn": torchbnn_layer,
    "PyTorch Geometric": geometric_vgae,
    "Keras": keras_example,
}
# These packages compute a part of the result in float32: tensordict computes its shift, torchbnn
# the sum of its KLs, and Keras a mean.
TOLERANCE = {f"{RSSM}, 3": 1e-6, "torchbnn": 1e-6, "Keras": 1e-6}
# Factors that multiply the inputs of recipes with a clamp, so that the inputs reach the bounds.
LARGE = {
    "diffusers, CompVis": 12.0, "diffusers, CompVis, 2": 12.0, "Video": 12.0, "MONAI": 12.0,
    RSSM: 3.0, f"{RSSM}, 2": 3.0, "PyTorch Geometric": 8.0,
}  # fmt: skip
CASES = [(name, 1.0) for name in PACKAGES] + list(LARGE.items())


@pytest.mark.parametrize(("name", "factor"), CASES)
def test_the_package_computes_ours(name, factor):
    """Compares values and all gradients in float64."""
    recipe = RECIPES[name]
    arguments = {
        key: value if value.dtype == torch.bool else (factor * value.detach()).requires_grad_()
        for key, value in recipe.arguments(F64, "cpu").items()
    }
    theirs = results(PACKAGES[name], arguments)
    ours = results(recipe.functions()["ours"], arguments)
    for got, want in zip(ours, theirs, strict=True):
        assert got.shape == want.shape
        assert error(got, want) <= TOLERANCE.get(name, 1e-12)


def test_oobleck_between_two_posteriors_is_no_divergence():
    """Oobleck's logarithm has the opposite sign, as documented in docs/cookbook.md."""
    module = pytest.importorskip("diffusers.models.autoencoders.autoencoder_oobleck")
    h, other = RECIPES["Oobleck"].arguments(F64, "cpu")["h"].detach().split(1)
    q, p = (module.OobleckDiagonalGaussianDistribution(t) for t in (h, other))
    scale = vf.Scale("softplus", std_floor=1e-4)
    (mu, raw), (m, prior_raw) = h.chunk(2, 1), other.chunk(2, 1)
    kl = vf.gaussian_kl(mu, raw, scale=scale, prior=vf.Prior(m, prior_raw, scale), dim=1)
    logarithm = (q.logvar - p.logvar).sum(1)
    torch.testing.assert_close(q.kl(p), (2 * kl + 2 * logarithm).mean(), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("use_mean", [False, True])
def test_monai_in_evaluation(use_mean):
    """VarAutoEncoder returns mu + sigma by default, and mu with `use_mean`."""
    nets = pytest.importorskip("monai.networks.nets")
    model = nets.VarAutoEncoder(
        2, (1, 8, 8), 1, latent_size=3, channels=(2,), strides=(2,), use_mean_at_inference=use_mean
    )
    mu, logvar = torch.randn(2, 4, 3).unbind()
    z = model.eval().reparameterize(mu, logvar)
    added = 0.0 if use_mean else (0.5 * logvar).exp()
    torch.testing.assert_close(z, vf.nn.Reparameterize().eval()(mu, logvar) + added)


def test_each_recipe_is_tested_against_its_package_or_has_none():
    without = {
        "pytorch/examples", "Two backward passes", "vdvae", "Learned priors", f"{RSSM}, 4",
        f"{RSSM}, 5", "VITS", "Schedules", "torch.distributions", "Lightning",
    }  # fmt: skip
    assert PACKAGES.keys() | without == RECIPES.keys() and not PACKAGES.keys() & without
