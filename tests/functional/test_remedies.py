"""Error messages name a remedy, and each remedy works."""

from __future__ import annotations

import os
import re
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import random
from torch import Tensor

import vae_fused as vf
from vae_fused.compat.diffusers import DiagonalGaussianDistribution
from vae_fused.compat.distributions import Normal

MU, RAW = random(4, 6, seed=1), random(4, 6, seed=2)
EPS = random(4, 6, seed=3)

# Calls that can be given another object instead of a tensor.
TENSORS: dict[str, Callable[[Any], Any]] = {
    "mu": lambda v: vf.reparameterize_kl(v, RAW),
    "logvar": lambda v: vf.gaussian_kl(MU, v),
    "h": lambda v: vf.reparameterize_kl_moments(v),
    "eps": lambda v: vf.reparameterize(MU, RAW, eps=v),
    "mask": lambda v: vf.gaussian_kl(MU, RAW, mask=v),
    "output": lambda v: vf.nll(v, MU, "bernoulli"),
    "target": lambda v: vf.nll(MU, v, "bernoulli"),
    "prior.mean": lambda v: vf.Prior(v, 0.0),
    "loc": lambda v: Normal(v, 1.0),
    "parameters": lambda v: DiagonalGaussianDistribution(v),
    "value": lambda v: vf.DiagonalGaussian(0.0, 0.0).log_prob(v),
    "temperature": lambda v: vf.reparameterize(MU, RAW, temperature=v),
    "free_bits": lambda v: vf.gaussian_kl(MU, RAW, free_bits=v),
    "beta": lambda v: vf.elbo_loss(MU, MU, kl=RAW.sum(), likelihood="bernoulli", beta=v),
    "reconstruction": lambda v: vf.nn.ELBOLoss("mse")(v, MU, MU, RAW),
}


@pytest.mark.parametrize("name", TENSORS)
def test_what_holds_a_tensor_is_named_with_it(name: str) -> None:
    holder = types.SimpleNamespace(value=MU)
    with pytest.raises(
        TypeError, match=r"got SimpleNamespace; pass its \.value, which is a Tensor"
    ):
        TENSORS[name](holder)
    with pytest.raises(TypeError, match=r"got SimpleNamespace$"):
        TENSORS[name](types.SimpleNamespace(value=1.0))


def test_a_schedule_in_place_of_a_number_names_its_call() -> None:
    schedule = vf.nn.LinearSchedule(10)
    with pytest.raises(TypeError, match="got LinearSchedule; pass what it returns when it is call"):
        vf.gaussian_kl(MU, MU, free_bits=schedule)
    vf.gaussian_kl(MU, MU, free_bits=schedule())


@pytest.mark.parametrize("number", [np.True_, np.complex64(1)])
def test_no_remedy_is_named_that_would_raise_again(number: Any) -> None:
    with pytest.raises(TypeError, match=r"temperature must be a number, got \w+$"):
        vf.reparameterize(MU, MU, temperature=number)


@pytest.mark.parametrize("name", ["mu", "logvar", "h", "target", "value", "loc"])
def test_an_array_is_named_with_its_conversion(name: str) -> None:
    array = np.zeros((4, 6), np.float32)
    with pytest.raises(TypeError, match=r"got ndarray; pass torch\.as_tensor of it"):
        TENSORS[name](array)
    TENSORS[name](torch.as_tensor(array))


@pytest.mark.packages
def test_a_variable_of_keras(monkeypatch: pytest.MonkeyPatch) -> None:
    if "KERAS_BACKEND" not in os.environ:
        monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    assert keras.backend.backend() == "torch"
    mu, raw = (keras.Variable(t.detach()) for t in (MU, RAW))
    kl = vf.gaussian_kl(mu, raw, reduction="sum")  # a Variable overrides the call to pass its value
    assert torch.equal(kl, vf.gaussian_kl(mu.value, raw.value, reduction="sum"))
    want = 0.5 * (MU**2 + RAW.exp() - 1.0 - RAW).sum()
    torch.testing.assert_close(kl.cpu(), want)
    gradients = torch.autograd.grad(kl, [mu.value, raw.value])
    torch.testing.assert_close([g.cpu() for g in gradients], [MU, 0.5 * (RAW.exp() - 1.0)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64], ids=str)
@pytest.mark.parametrize(
    "call",
    [
        lambda m: vf.reparameterize_kl(MU, RAW, mask=m),
        lambda m: vf.gaussian_kl(MU, RAW, mask=m),
        lambda m: vf.DiagonalGaussian(MU, RAW).rsample(mask=m),
        lambda m: vf.nll(MU, MU, "bernoulli", mask=m),
        lambda m: vf.latent_stats(MU, RAW, mask=m),
    ],
)
def test_a_mask_of_numbers(call: Callable[[Tensor], Any], dtype: torch.dtype) -> None:
    weights = torch.tensor([1, 0, 1, 1, 0, 1]).to(dtype)
    message = f"mask must be bool, got {dtype}; pass mask.bool(), or multiply the result of "
    with pytest.raises(TypeError, match=re.escape(message + "reduction='none' by weights")):
        call(weights)
    call(weights.bool())
    by_mask = vf.gaussian_kl(MU, RAW, mask=weights.bool(), reduction="sum")
    by_weights = (vf.gaussian_kl(MU, RAW, reduction="none") * weights).sum()
    torch.testing.assert_close(by_mask, by_weights)


def test_a_temperature_that_is_no_scalar() -> None:
    one = torch.tensor([0.5])
    message = r"temperature must be .* got shape \(1,\); pass it with \.reshape\(\(\)\)"
    with pytest.raises(ValueError, match=message):
        vf.reparameterize(MU, RAW, temperature=one)
    got = vf.reparameterize(MU, RAW, temperature=one.reshape(()), eps=EPS)
    torch.testing.assert_close(got, MU + 0.5 * torch.exp(RAW / 2) * EPS)
    many = torch.linspace(0.1, 1.0, 4)[:, None]
    with pytest.raises(
        ValueError, match=r"got shape \(4, 1\); pass eps=temperature \* torch\.rand"
    ):
        vf.reparameterize(MU, RAW, temperature=many)
    got = vf.reparameterize(MU, RAW, eps=many * EPS)
    torch.testing.assert_close(got, MU + many * torch.exp(RAW / 2) * EPS)
    with pytest.raises(ValueError, match=r"free_bits must be .* got shape \(2,\)$"):
        vf.gaussian_kl(MU, RAW, free_bits=torch.ones(2))


def test_a_temperature_that_is_learned() -> None:
    temperature = torch.tensor(0.5, requires_grad=True)
    with pytest.raises(ValueError, match=r"\.detach\(\), or eps=temperature .* to learn it"):
        vf.reparameterize(MU, RAW, temperature=temperature)
    z = vf.reparameterize(MU, RAW, eps=temperature * EPS)
    (gradient,) = torch.autograd.grad(z.sum(), temperature)
    torch.testing.assert_close(gradient, (torch.exp(RAW / 2) * EPS).sum())
