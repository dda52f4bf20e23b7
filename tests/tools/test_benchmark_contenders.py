"""The benchmarks do not time contenders with wrong results, and their counts are correct."""

from __future__ import annotations

import pytest
import torch
from conftest import AVAILABLE, native

from benchmarks import __main__ as cli
from benchmarks import counting, formulas, latents, running, tables
from benchmarks.cases import Wrong
from benchmarks.contenders import CONTENDERS, Contender
from benchmarks.latents import Latent

SMALL = [
    Latent("plain", (64, 20)),
    Latent("moments", (4, 8, 8, 8)),
    Latent("rssm", (6, 7, 30)),
    Latent("masked", (6, 10, 16)),
    Latent("samples", (64, 20)),
    Latent("layers", (3, 16)),
]


def names(values):
    return pytest.mark.parametrize("latent", values, ids=lambda latent: latent.family)


@pytest.fixture(autouse=True)
def seeded():
    """Fixed noise, because random moments would sometimes fail the check at these sizes."""
    torch.manual_seed(0)


# --- contenders with wrong results are not timed -------------------------------------------------


def half_kl(mu, logvar):
    z, kl = formulas.plain(mu, logvar)
    return z, 0.5 * kl


def biased_noise(mu, logvar):
    z, kl = formulas.plain(mu, logvar)
    return z + 0.5 * torch.exp(0.5 * logvar), kl


def no_noise(mu, logvar):
    return mu + 0 * logvar, formulas.plain(mu, logvar)[1]


def the_same_noise(mu, logvar):
    eps = torch.randn(mu.shape, generator=torch.Generator().manual_seed(0))
    return mu + torch.exp(0.5 * logvar) * eps, formulas.plain(mu, logvar)[1]


class OtherNoise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, mu, logvar):
        ctx.save_for_backward(logvar)
        return mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)

    @staticmethod
    def backward(ctx, grad):
        (logvar,) = ctx.saved_tensors
        return grad, 0.5 * grad * torch.exp(0.5 * logvar) * torch.randn_like(grad)


def other_noise_in_backward(mu, logvar):
    return OtherNoise.apply(mu, logvar), formulas.plain(mu, logvar)[1]


def nan_kl(mu, logvar):
    z, kl = formulas.plain(mu, logvar)
    return z, kl * float("nan")


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (half_kl, "kl is off"),
        (biased_noise, "the noise has mean"),
        (no_noise, "the noise has variance"),
        (the_same_noise, "the same noise"),
        (other_noise_in_backward, "gradient 1 is off"),
        (nan_kl, "kl is off"),
    ],
)
def test_a_contender_that_computes_wrong_is_refused(function, why):
    latent = Latent("plain", (128, 20))
    wrong = Contender("wrong", "", lambda latent, device: function)
    row = running.measure(latent, [CONTENDERS["eager"], wrong], "cpu", 0.0)
    assert list(row["contenders"]) == ["eager"]
    assert why in row["wrong"]["wrong"]
    assert "wrong computes wrong" in tables.latent(row)


def test_samples_that_are_copies_are_refused():
    latent = Latent("samples", (128, 20))

    def function(mu, logvar, count):
        z, kl = formulas.plain(mu, logvar)
        return z.expand(count, *z.shape), kl

    with pytest.raises(Wrong):
        latents.check(function, latent, latents.inputs(latent, "cpu"))


def test_a_mask_that_is_forgotten_is_refused():
    latent = Latent("masked", (6, 10, 16))

    def function(mu, logvar, mask):
        return formulas.plain(mu, logvar)[0], formulas.masked(mu, logvar, mask)[1]

    with pytest.raises(Wrong, match="masked"):
        latents.check(function, latent, latents.inputs(latent, "cpu"))


def test_the_library_computing_wrong_fails_the_run():
    row = {"wrong": {"vae_fused": "kl is off"}, "contenders": {"eager": {}}}
    assert cli.status({"results": [row], "training": []}, selected=True) == 1
    right = {"wrong": {"eager": "kl is off"}, "contenders": {"vae_fused": {}}}
    assert cli.status({"results": [right], "training": []}, selected=True) == 0


@pytest.mark.parametrize("dtype", latents.DTYPES)
@names(SMALL)
def test_every_contender_is_right_or_says_why_not(latent, dtype):
    latent = Latent(latent.family, latent.shape, dtype)
    chosen = [c for c in CONTENDERS.values() if not c.slow_start]
    data = latents.inputs(latent, "cpu")
    functions, reasons = running.admitted(chosen, latent, "cpu", data)
    assert reasons["wrong"] == {}
    for why in reasons["unable"].values():
        assert (
            why in ("not installed", "for packed moments")
            or "does not import" in why
            or (not AVAILABLE and "no compiled code" in why)
        )
    assert {"eager", "distributions", "reference"} <= set(functions)


def test_layers_with_the_same_noise_are_refused():
    latent = Latent("layers", (4, 16))

    def function(mus, rhos):
        state = torch.get_rng_state()
        zs, kls = [], []
        for mu, rho in zip(mus, rhos, strict=True):
            torch.set_rng_state(state)
            z, kl = formulas.layers([mu], [rho])
            zs += z
            kls.append(kl)
        return zs, torch.stack(kls).sum()

    with pytest.raises(Wrong, match="one half"):
        latents.check(function, latent, latents.inputs(latent, "cpu"))


# --- counts --------------------------------------------------------------------------------------


def test_least_bytes_are_inputs_and_outputs_once():
    n = 4 * 64 * 20
    assert SMALL[0].bytes == (3 * n, 5 * n)
    assert Latent("plain", (64, 20), "bfloat16").bytes == (3 * n // 2, 5 * n // 2)
    assert Latent("samples", (64, 20)).bytes == ((2 + 8) * n, (2 + 8 + 2) * n)
    masked = 4 * 960
    assert SMALL[3].bytes == (3 * masked + 60, 5 * masked + 60)


def counted(latent, name):
    data = latents.inputs(latent, "cpu")
    functions = {name: CONTENDERS[name].make(latent, "cpu")}
    step = running.latent_contest(functions, data).step(name)
    step()
    return counting.counts(step, data.arguments, "cpu", traced=False)


@names(SMALL)
def test_eager_keeps_tensors_for_backward(latent):
    found = counted(latent, "eager")
    assert found["kept_bytes"] >= 2 * 4 * latent.elements
    assert found["dispatches"]["forward"] >= 10 and found["launches"] is None
    assert found["peak_bytes"] >= 3 * 4 * latent.elements


@native
@names(SMALL)
def test_the_library_keeps_none(latent):
    found = counted(latent, "vae_fused")
    assert found["kept_bytes"] <= 64
    assert found["dispatches"]["reads"] == 0
    if latent.family == "plain":
        assert found["dispatches"] == {"forward": 1, "backward": 1, "reads": 0}


def test_sizes_go_up_to_the_largest_asked_for():
    chosen = latents.latents(28)
    assert len({c.name for c in chosen}) == len(chosen)
    plain = {c.elements for c in chosen if c.family == "plain"}
    assert {128 * 20, 2**20, 2**24, 2**28} <= plain
    assert max(c.elements for c in latents.latents(20)) == 2**20
    assert [c.family for c in chosen[: latents.QUICK]] == [*latents.FAMILIES, "plain"]
    assert any(c.family == "moments" and c.shape == (8, 8, 64, 64) for c in chosen)
