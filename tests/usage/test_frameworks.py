"""Every block in docs/frameworks.md runs, and its training step equals the unmodified framework's.

The unmodified step uses the same noise: torch's functions that draw normals are replaced by
functions that return the noise that this package draws from the same state of torch's generator.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.metadata
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from conftest import native
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

import vae_fused as vf

pytestmark = pytest.mark.packages

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "frameworks.md"
TEXT = PAGE.read_text()
# The package's name on PyPI, for the section headings that differ from it.
DISTRIBUTIONS = {"Pyro": "pyro-ppl", "PyTorch Geometric": "torch_geometric"}
IMPORTS = {
    "scvi-tools": "scvi", "PyTorch Geometric": "torch_geometric", "bayesian-torch": "bayesian_torch"
}  # fmt: skip
Names = dict[str, Any]


def blocks() -> dict[str, tuple[str, int]]:
    """Returns the code under each heading, and its line."""
    found, title = {}, ""
    for part in re.finditer(r"^```python\n(.*?)^```|^#+ (.*?)$", TEXT, re.MULTILINE | re.DOTALL):
        if part[2] is not None:
            title = part[2]
        else:
            found[title] = part[1], TEXT[: part.start()].count("\n") + 1
    return found


BLOCKS = blocks()


def run(title: str) -> Names:
    """Runs a block after the lines that all blocks share, and returns the names that it defines."""
    pytest.importorskip(IMPORTS.get(title, title.lower()))
    torch.manual_seed(0)
    names: Names = {"__name__": "frameworks"}
    for code, line in (BLOCKS["Frameworks"], BLOCKS[title]):
        exec(compile("\n" * line + code, str(PAGE), "exec"), names)
    return names


# --------------------------------------------------------------------------------------------------
# The same noise
# --------------------------------------------------------------------------------------------------


def drawn(shape: Any) -> Tensor:
    zeros = torch.zeros(tuple(shape))
    return vf.reparameterize(zeros, zeros)


@contextlib.contextmanager
def noise(draw: Callable[[Any], Tensor] = drawn) -> Iterator[None]:
    """Make torch's functions that draw normals return `draw(shape)`, except within `draw`."""
    is_drawing = False

    def replaced(original: Callable[..., Tensor], function: Callable[..., Tensor]) -> Any:
        def call(*args: Any, **kwargs: Any) -> Tensor:
            nonlocal is_drawing
            if is_drawing:
                return original(*args, **kwargs)
            is_drawing = True
            try:
                return function(*args, **kwargs)
            finally:
                is_drawing = False

        return call

    def randn(*size: Any, **_: Any) -> Tensor:
        return draw(size[0] if len(size) == 1 and not isinstance(size[0], int) else size)

    def in_place(tensor: Tensor, *_: Any, **__: Any) -> Tensor:
        return tensor.copy_(draw(tensor.shape))

    with contextlib.ExitStack() as stack:
        for owner, name, function in (
            (torch, "randn", randn),
            (torch, "randn_like", lambda like, **_: draw(like.shape)),
            (torch.Tensor, "normal_", in_place),
            (torch.distributions.normal, "_standard_normal", lambda shape, *_, **__: draw(shape)),
        ):
            function = replaced(getattr(owner, name), function)
            stack.enter_context(mock.patch.object(owner, name, function))
        yield


def step(names: Names, function: Callable[[], Tensor]) -> dict[str, Tensor]:
    """Returns a step's loss, and the gradients of all parameters of `model`."""
    model = names["model"]
    model.zero_grad(set_to_none=True)
    torch.manual_seed(1)
    loss = function()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found and all(bool(grad.abs().max() > 0) for grad in [loss, *found.values()])
    return {"loss": loss.detach(), **{name: grad.clone() for name, grad in found.items()}}


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    """Errors are relative to a tensor's largest element, or to 1e-3 times the largest gradient."""
    assert got.keys() == want.keys()
    largest = max(float(grad.abs().max()) for name, grad in want.items() if name != "loss")
    for name, grad in want.items():
        difference = (got[name] - grad).abs().max()
        assert difference <= tolerance * max(grad.abs().max(), 1e-3 * largest), name


# --------------------------------------------------------------------------------------------------
# The unmodified steps
# --------------------------------------------------------------------------------------------------


class PlainVAE(nn.Module):
    """The page's VAE in eager PyTorch, with the networks of another model."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.encoder, self.decoder = vae.encoder, vae.decoder

    def forward(self, x: Tensor) -> Tensor:
        mu, logvar = self.encoder(x).chunk(2, dim=1)
        q = Normal(mu, (0.5 * logvar).exp())
        logits = self.decoder(q.rsample())
        nll = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        return (nll + kl_divergence(q, Normal(0.0, 1.0)).sum()) / len(x)


def accelerate(names: Names) -> Tensor:
    loss = PlainVAE(names["model"])(names["x"])
    loss.backward()
    return loss


def pyro(names: Names) -> Tensor:
    from pyro import distributions, plate, sample
    from pyro.infer import TraceMeanField_ELBO

    def guide() -> None:
        mu, raw = names["model"].encoder(names["x"]).chunk(2, dim=-1)
        with plate("data", 8):
            sample("z", distributions.Normal(mu, raw.exp()).to_event(1))

    loss = TraceMeanField_ELBO().differentiable_loss(names["pyro_model"], guide)
    loss.backward()
    return loss


def untouched(names: Names) -> Tensor:
    loss: Tensor = names["theirs"]()
    return loss


def pythae(names: Names) -> Tensor:
    from pythae.models import VAE

    loss: Tensor = VAE.forward(names["model"], {"data": names["x"]}).loss
    loss.backward()
    return loss


def pytorch_geometric(names: Names) -> Tensor:
    from torch_geometric.nn import VGAE

    model, x = names["model"], names["x"]
    z = VGAE.encode(model, x, names["edges"])
    loss = model.recon_loss(z, names["edges"], names["others"]) + VGAE.kl_loss(model) / len(x)
    loss.backward()
    return loss


def monai(names: Names) -> Tensor:
    """Computes the KL as MONAI's tutorials do."""
    from monai.networks.nets import AutoencoderKL

    images = names["images"]
    y, mu, sigma = AutoencoderKL.forward(names["model"], images)
    kl = 0.5 * (mu.pow(2) + sigma.pow(2) - torch.log(sigma.pow(2)) - 1).sum(dim=(1, 2, 3))
    loss = F.l1_loss(y, images) + 1e-2 * kl.sum() / len(kl)
    loss.backward()
    return loss


UNTOUCHED: dict[str, Callable[[Names], Tensor]] = {
    "Accelerate": accelerate,
    "Pyro": pyro,
    "diffusers": untouched,
    "scvi-tools": untouched,
    "pythae": pythae,
    "PyTorch Geometric": pytorch_geometric,
    "MONAI": monai,
}


@pytest.mark.parametrize("title", UNTOUCHED)
def test_a_step_is_that_of_the_untouched_framework(title):
    names = run(title)
    names["model"].train()
    state = copy.deepcopy(names["model"].state_dict())
    ours = step(names, names["ours"])
    names["model"].load_state_dict(state)
    # In both steps, scvi-tools itself draws the latent.
    same = contextlib.nullcontext() if title == "scvi-tools" else noise()
    with same:
        theirs = step(names, lambda: UNTOUCHED[title](names))
    assert_same(ours, theirs, 5e-3 if title == "scvi-tools" else 1e-5)


def test_lightning():
    """Compares both models' loss in `Trainer.fit`, and their parameters after one SGD step."""
    names = run("Lightning")
    ours = names["LightningVAE"]()
    theirs = copy.deepcopy(ours)
    theirs.vae = PlainVAE(theirs.vae)
    before = copy.deepcopy(ours.state_dict())
    torch.manual_seed(1)
    losses = [names["fit"](ours)]
    torch.manual_seed(1)
    with noise():
        losses.append(names["fit"](theirs))
    torch.testing.assert_close(losses[0], losses[1])
    moved = {name: p - before[name] for name, p in ours.state_dict().items()}
    want = {name: p - before[name] for name, p in theirs.state_dict().items()}
    assert_same({"loss": losses[0], **moved}, {"loss": losses[1], **want}, 1e-4)
    assert all(bool(change.abs().max() > 0) for change in want.values())


def test_torchrl():
    """Compares the loss of Dreamer's world model, and the gradients of all its networks."""
    names = run("torchrl")
    from tensordict import TensorDict
    from tensordict.nn import TensorDictModule, TensorDictSequential
    from torchrl.modules import RSSMPosterior, RSSMPrior, RSSMRollout, WorldModelWrapper

    def wired(module: nn.Module, inputs: list[Any], outputs: list[str]) -> Any:
        keys = [name if name == "_" else ("next", name) for name in outputs]
        return TensorDictModule(module, in_keys=inputs, out_keys=keys)

    prior = RSSMPrior(action_spec=torch.zeros(2), hidden_dim=8, rnn_hidden_dim=8, state_dim=6)
    moments = ["prior_mean", "prior_std", "_", "belief"]
    posterior_inputs = [("next", "belief"), ("next", "encoded_latents")]
    rollout = RSSMRollout(
        wired(prior, ["state", "belief", "action"], moments),
        wired(
            RSSMPosterior(hidden_dim=8, state_dim=6), posterior_inputs,
            ["posterior_mean", "posterior_std", "state"],
        ),
    )  # fmt: skip
    encoder = nn.Sequential(nn.Flatten(-3), nn.Linear(12, 5))
    decoder = nn.Sequential(nn.Linear(6, 12), nn.Unflatten(-1, (3, 2, 2)))
    networks = WorldModelWrapper(
        TensorDictSequential(
            wired(encoder, [("next", "pixels")], ["encoded_latents"]),
            rollout,
            wired(decoder, [("next", "state")], ["reco_pixels"]),
        ),
        wired(nn.Linear(6, 1), [("next", "state")], ["reward"]),
    )
    following = {"pixels": torch.rand(2, 3, 3, 2, 2), "reward": torch.randn(2, 3, 1)}
    batch = TensorDict(
        {
            "state": torch.zeros(2, 3, 6),
            "belief": torch.zeros(2, 3, 8),
            "action": torch.randn(2, 3, 2),
            "next": following,
        },
        (2, 3),
    )
    networks(batch.clone())  # initializes the lazy layers
    found = []
    for kind in (names["FusedModelLoss"], names["FusedModelLoss"].__bases__[0]):
        # free_nats is 0, because the KL of an untrained network is small, and a KL below the free
        # nats has no gradient.
        loss = kind(networks, free_nats=0, lambda_kl=1e3)
        networks.zero_grad()
        torch.manual_seed(1)
        total = sum(loss(batch)[0].values(), torch.zeros(())).sum()
        total.backward()
        grads = {n: p.grad.clone() for n, p in networks.named_parameters() if p.grad is not None}
        found.append({"loss": total.detach(), **grads})
    assert_same(*found, 1e-4)


def test_bayesian_torch():
    names = run("bayesian-torch")
    from bayesian_torch.models.dnn_to_bnn import get_kl_loss

    model = names["model"]
    ours = step(names, names["ours"])
    torch.manual_seed(1)
    zeros = [torch.zeros_like(t) for layer in model for t in (layer.mu_weight, layer.mu_bias)]
    left = vf.reparameterize_kl_multi(zeros, zeros)[0]  # the noise of one call for all weights

    def theirs() -> Tensor:
        loss = F.cross_entropy(model(names["x"]), names["labels"]) + get_kl_loss(model) / 100
        loss.backward()
        return loss

    with noise(lambda _: left.pop(0)):
        assert_same(ours, step(names, theirs))


def test_keras():
    """Compares both models' loss in `train_on_batch`, and their weights after one SGD step."""
    with mock.patch.dict(os.environ, KERAS_BACKEND="torch"):
        names = run("Keras")
    keras, x = names["keras"], names["x"].numpy()

    class Plain(keras.layers.Layer):
        def call(self, moments):
            mean, log_var = keras.ops.split(moments, 2, axis=-1)
            kl = -0.5 * (1 + log_var - keras.ops.square(mean) - keras.ops.exp(log_var))
            self.add_loss(keras.ops.mean(keras.ops.sum(kl, axis=1)))
            return mean + keras.ops.exp(0.5 * log_var) * drawn(mean.shape)

    models = [names["network"](sampling) for sampling in (names["Sampling"](), Plain())]
    before = [weight.copy() for weight in models[0].get_weights()]
    found = []
    for model in models:
        model.train_on_batch(x, x)  # the first call traces the model
        model.set_weights(before)
        torch.manual_seed(1)
        loss = torch.tensor(float(model.train_on_batch(x, x)))
        moved = zip(model.get_weights(), before, strict=True)
        changes = {str(i): torch.from_numpy(new - old) for i, (new, old) in enumerate(moved)}
        assert all(bool(change.abs().max() > 0) for change in changes.values())
        found.append({"loss": loss, **changes})
    assert_same(*found, 1e-4)


def test_opacus():
    """Each per-sample gradient equals autograd's for only that sample, with the same weights."""
    names = run("Opacus")
    model = names["model"]
    names["ours"]()
    inner, x = model._module, names["x"]
    parameters = dict(inner.named_parameters())
    assert len(parameters) == 6
    for b in range(len(x)):
        leaves = {name: p.detach().clone().requires_grad_() for name, p in parameters.items()}
        hidden = F.linear(x[b], leaves["0.weight"], leaves["0.bias"])
        own = {name[2:]: p for name, p in leaves.items() if name.startswith("1.")}
        loss = names["BayesianLinear"].apply_with(inner[1].key, own, hidden).square().sum()
        grads = torch.autograd.grad(loss, [*leaves.values()])
        for p, want in zip(parameters.values(), grads, strict=True):
            torch.testing.assert_close(p.grad_sample[b], want, rtol=1e-4, atol=1e-5)


@native
def test_opacus_without_a_grad_sampler_raises_with_the_remedy():
    """Opacus runs the layer under a vmap without randomness, which also rejects torch.randn."""
    names = run("Opacus")

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mu = nn.Parameter(torch.zeros(3, 16))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, vf.reparameterize(self.mu, self.mu))

    model = names["GradSampleModule"](nn.Sequential(Layer()))
    with pytest.raises(RuntimeError, match=r"vae_fused: .*under Opacus a key: see docs/frameworks"):
        model(names["x"]).sum().backward()


def test_the_page_names_the_versions_that_are_required():
    """The page names the required and installed versions, and has a section for each package."""
    rows = re.findall(r"^\| \[(.*?)\]\(#.*?\) \| (\S+) \|", TEXT, re.MULTILINE)
    files = ("packages", "steps", "steps-without-dependencies")
    pins = "\n".join((ROOT / "requirements" / f"{name}.txt").read_text() for name in files)
    assert BLOCKS.keys() - {"Frameworks"} == {title for title, _ in rows}
    for title, version in rows:
        distribution = DISTRIBUTIONS.get(title, title.lower())
        assert re.search(rf"^{distribution}=={re.escape(version)}\b", pins, re.MULTILINE), title
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            assert importlib.metadata.version(distribution) == version
