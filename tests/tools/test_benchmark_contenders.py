"""The benchmarks do not time contenders with wrong results, and their counts are correct."""

from __future__ import annotations

import pytest
import torch
from conftest import AVAILABLE, native

from benchmarks import __main__ as cli
from benchmarks import counting, formulas, latents, running, tables
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
    """Fixes the noise, because at these sizes random moments would sometimes fail the check."""
    torch.manual_seed(0)


# --- contenders with wrong results are not timed -------------------------------------------------


class OtherNoise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, mu, logvar):
        ctx.save_for_backward(logvar)
        return mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)

    @staticmethod
    def backward(ctx, grad):
        (logvar,) = ctx.saved_tensors
        return grad, 0.5 * grad * torch.exp(0.5 * logvar) * torch.randn_like(grad)


def the_same_noise(mu, logvar):
    eps = torch.randn(mu.shape, generator=torch.Generator().manual_seed(0))
    return mu + torch.exp(0.5 * logvar) * eps


def the_same_noise_in_each_layer(mus, rhos):
    state, pairs = torch.get_rng_state(), []
    for mu, rho in zip(mus, rhos, strict=True):
        torch.set_rng_state(state)
        pairs.append(formulas.layers([mu], [rho]))
    return [z for (z,), _ in pairs], torch.stack([kl for _, kl in pairs]).sum()


def plain(z=lambda z, mu, logvar: z, kl=lambda kl: kl):
    """Returns the eager formula with a different sample or a different KL."""

    def function(mu, logvar, *_):
        eager_z, eager_kl = formulas.plain(mu, logvar)
        return z(eager_z, mu, logvar), kl(eager_kl)

    return function


def without_mask(mu, logvar, mask):
    return formulas.plain(mu, logvar)[0], formulas.masked(mu, logvar, mask)[1]


PLAIN = Latent("plain", (128, 20))


@pytest.mark.parametrize(
    ("latent", "function", "why"),
    [
        (PLAIN, plain(kl=lambda kl: 0.5 * kl), "kl is off"),
        (PLAIN, plain(kl=lambda kl: kl * float("nan")), "kl is off"),
        (PLAIN, plain(lambda z, _, logvar: z + 0.5 * torch.exp(0.5 * logvar)), "noise has mean"),
        (PLAIN, plain(lambda _, mu, logvar: mu + 0 * logvar), "the noise has variance"),
        (PLAIN, plain(lambda _, *moments: the_same_noise(*moments)), "the same noise"),
        (PLAIN, plain(lambda _, *moments: OtherNoise.apply(*moments)), "gradient 1 is off"),
        (SMALL[4], plain(lambda z, *_: z.expand(8, *z.shape)), "one half"),
        (SMALL[3], without_mask, "masked"),
        (Latent("layers", (4, 16)), the_same_noise_in_each_layer, "one half"),
    ],
)
def test_a_contender_that_computes_wrong_is_refused(latent, function, why):
    wrong = Contender("wrong", "", lambda latent, device: function)
    row = running.measure(latent, [CONTENDERS["eager"], wrong], "cpu", 0.0)
    assert list(row["contenders"]) == ["eager"]
    assert why in row["wrong"]["wrong"]
    assert "wrong computes wrong" in tables.latent(row)


def test_the_library_computing_wrong_fails_the_run():
    row = {"wrong": {"vae_fused": "kl is off"}, "contenders": {"eager": {}}}
    assert cli.status({"results": [row]}, selected=True) == 1
    right = {"wrong": {"eager": "kl is off"}, "contenders": {"vae_fused": {}}}
    assert cli.status({"results": [right]}, selected=True) == 0


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
    return counting.counts(step, data.arguments, traced=False)


@names(SMALL)
def test_eager_keeps_tensors_for_backward(latent):
    found = counted(latent, "eager")
    assert found["kept_bytes"] >= 2 * 4 * latent.elements
    assert found["dispatches"]["forward"] >= 10


@native
@names(SMALL)
def test_the_library_keeps_none(latent):
    found = counted(latent, "vae_fused")
    assert found["kept_bytes"] <= 64
    assert found["dispatches"]["reads"] == 0
    if latent.family == "plain":
        assert found["dispatches"] == {"forward": 1, "backward": 1, "reads": 0}


def test_sizes_go_up_to_the_largest_of_the_device():
    chosen = latents.latents("cuda")
    assert len({c.name for c in chosen}) == len(chosen)
    plain = {c.elements for c in chosen if c.family == "plain"}
    assert {128 * 20, 2**20, 2**24, 2**28} <= plain
    assert max(c.elements for c in latents.latents("cpu")) == 2**24
    assert [c.family for c in chosen[: latents.QUICK]] == [*latents.FAMILIES, "plain"]
    assert any(c.family == "moments" and c.shape == (8, 8, 64, 64) for c in chosen)
