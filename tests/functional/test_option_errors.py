"""Invalid options raise an error before noise is drawn. Valid options reach the operators."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
from typing import Any

import pytest
import torch
from conftest import make_key, native, random
from test_bad_input import refuses

import vae_fused as vf
from vae_fused.options import DEFAULT_OPTIONS, KINDS, Options, unpaired

INF, NAN = math.inf, math.nan
MU, RAW = random(4, 6, seed=1), random(4, 6, seed=2)  # seeded: test names contain them
MASK = MU > 0
MODULES = pytest.mark.parametrize("module", [vf, vf.reference], ids=["vf", "reference"])

# --------------------------------------------------------------------------------------------------
# Scale and Prior
# --------------------------------------------------------------------------------------------------

SCALE: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"kind": "log_var"},
        ValueError,
        "kind must be one of logvar, logstd, std, var.*, got 'log_var'",
    ),
    ({"kind": 1}, TypeError, "kind must be a str, got int"),
    ({"clamp": 3.0}, TypeError, r"clamp must be a pair \(lo, hi\), got float"),
    ({"clamp": (1, 2, 3)}, TypeError, r"clamp must be a pair \(lo, hi\), got 3 values"),
    ({"clamp": "ab"}, TypeError, r"clamp must be a pair \(lo, hi\), got str"),
    ({"clamp": (1.0, -1.0)}, ValueError, r"clamp must have lo <= hi, got \(1.0, -1.0\)"),
    ({"clamp": (NAN, 1.0)}, ValueError, "clamp's lo must be a finite number or None, got nan"),
    ({"clamp": (0.0, INF)}, ValueError, "clamp's hi must be a finite number or None, got inf"),
    ({"clamp": ("a", 1.0)}, TypeError, "clamp's lo must be a number, got str"),
    ({"soft_clamp": 0.0}, ValueError, "soft_clamp must be above 0, got 0.0"),
    ({"soft_clamp": -1}, ValueError, "soft_clamp must be above 0, got -1"),
    ({"soft_clamp": NAN}, ValueError, "soft_clamp must be a finite number, got nan"),
    ({"soft_clamp": "5"}, TypeError, "soft_clamp must be a number, got str"),
    (
        {"soft_clamp": 5.0, "clamp": (0, 1)},
        ValueError,
        "clamp and soft_clamp must not be given together",
    ),
    ({"gain": INF}, ValueError, "gain must be a finite number, got inf"),
    ({"gain": True}, TypeError, "gain must be a number, got bool"),
    ({"shift": NAN}, ValueError, "shift must be a finite number, got nan"),
    ({"shift": torch.tensor(1.0)}, TypeError, "shift must be a number, got Tensor"),
    ({"kind": "softplus", "beta": 0}, ValueError, "beta must be above 0, got 0"),
    (
        {"kind": "logstd", "beta": 2.0},
        ValueError,
        "beta must be 1 unless kind is 'softplus', got 2.0",
    ),
    ({"std_floor": -0.1}, ValueError, "std_floor must be at least 0, got -0.1"),
    ({"var_floor": INF}, ValueError, "var_floor must be a finite number, got inf"),
    ({"std_min": -1.0}, ValueError, "std_min must be at least 0, got -1.0"),
]

PRIOR: list[tuple[tuple[Any, ...], type[Exception], str]] = [
    (("0",), TypeError, "prior.mean must be a Tensor or a number, got str"),
    ((0.0, None), TypeError, "prior.raw must be a Tensor or a number, got NoneType"),
    ((NAN,), ValueError, "prior.mean must be a finite number, got nan"),
    ((0.0, -INF), ValueError, "prior.raw must be a finite number, got -inf"),
    ((0.0, 0.0, "std"), ValueError, "prior.raw must be above 0 for a std, got 0.0"),
    ((0.0, -1.0, "var"), ValueError, "prior.raw must be above 0 for a var, got -1.0"),
    (
        (0.0, -1.0, vf.Scale("std", std_floor=2.0)),
        ValueError,
        "prior.raw must be above 0 for a std, got -1.0",
    ),
    (
        (0.0, -2.0, vf.Scale("var", var_floor=2.0)),
        ValueError,
        "prior.raw must be above 0 for a var, got -2.0, which is read as 0",
    ),
    (
        (0.0, 2.0, vf.Scale("var", clamp=(0, 2), gain=-1, shift=1)),
        ValueError,
        "prior.raw must be above 0 for a var, got 2.0, which is read as -1",
    ),
    (
        (0.0, 0.0, "sigma"),
        ValueError,
        "scale must be one of logvar, .* or a vf.Scale.*, got 'sigma'",
    ),
    ((0.0, 0.0, 3), TypeError, "scale must be a str or a vf.Scale, got int"),
]


@pytest.mark.parametrize(("kwargs", "error", "message"), SCALE, ids=lambda v: str(v)[:40])
def test_a_bad_scale_is_refused_when_it_is_made(kwargs, error, message):
    with pytest.raises(error, match=message):
        vf.Scale(**kwargs)


@pytest.mark.parametrize(("args", "error", "message"), PRIOR, ids=lambda v: str(v)[:40])
def test_a_bad_prior_is_refused_when_it_is_made(args, error, message):
    with pytest.raises(error, match=message):
        vf.Prior(*args)


def test_a_prior_of_numbers_is_judged_by_what_its_scale_reads():
    """Each of these priors has tau = 1."""
    for raw, scale in ((-1.0, vf.Scale("var", var_floor=2.0)), (0.0, vf.Scale("std", std_floor=1))):
        kl = vf.gaussian_kl(MU, RAW, prior=vf.Prior(0.0, raw, scale))
        torch.testing.assert_close(kl, vf.gaussian_kl(MU, RAW))


def test_scales_are_values_and_priors_hold_tensors():
    assert vf.Scale("std") == vf.Scale("std") != vf.Scale("std", std_floor=0.1)
    assert vf.Scale(clamp=[-30, 20]) in {vf.Scale(clamp=(-30, 20))}
    with pytest.raises(dataclasses.FrozenInstanceError):
        vf.Scale().kind = "std"
    with pytest.raises(TypeError, match="positional"):
        vf.Scale("std", (0, 1))
    assert vf.Prior(MU, RAW) != vf.Prior(MU, RAW)
    assert copy.deepcopy(vf.Prior(MU, RAW)).mean.equal(MU)
    assert repr(vf.Scale("std")).startswith("Scale(kind='std', clamp=None")


# --------------------------------------------------------------------------------------------------
# Calls
# --------------------------------------------------------------------------------------------------

CALL: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"scale": "Std"}, ValueError, "scale must be one of logvar, logstd, std, var.*, got 'Std'"),
    ({"scale": None}, TypeError, "scale must be a str or a vf.Scale, got NoneType"),
    ({"scale": vf.Scale}, TypeError, "scale must be a str or a vf.Scale, got type"),
    ({"mu_soft_clamp": 0}, ValueError, "mu_soft_clamp must be above 0, got 0"),
    ({"mu_soft_clamp": "1"}, TypeError, "mu_soft_clamp must be a number, got str"),
    ({"mask": MASK.float()}, TypeError, "mask must be bool, got torch.float32"),
    ({"mask": [True]}, TypeError, "mask must be a Tensor, got list"),
    (
        {"mask": MASK[:3]},
        ValueError,
        r"mask must broadcast to the shape of the posterior, \(4, 6\), got \(3, 6\)",
    ),
    ({"mask": MASK[None]}, ValueError, r"mask must broadcast to .* got \(1, 4, 6\)"),
    ({"mask": MASK.to("meta")}, RuntimeError, "mask must be on the device of mu, cpu, got meta"),
    (
        {"mask": MASK.to_sparse()},
        TypeError,
        r"mask must be a strided tensor, got torch\.sparse_coo; pass its \.to_dense",
    ),
]

SAMPLE: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"temperature": -1.0}, ValueError, "temperature must be at least 0, got -1.0"),
    ({"temperature": NAN}, ValueError, "temperature must be a finite number, got nan"),
    ({"temperature": torch.ones(2)}, ValueError, "temperature must be a number or a 0-d tensor"),
    ({"sample_shape": -1}, ValueError, r"sample_shape must have sizes of at least 0, got \(-1,\)"),
    (
        {"sample_shape": (2, -3)},
        ValueError,
        r"sample_shape must have sizes of at least 0, got \(2, -3\)",
    ),
    ({"sample_shape": 2.0}, TypeError, "sample_shape must be an int or a sequence of ints, got fl"),
    ({"sample_shape": "2"}, TypeError, "sample_shape must be an int or a sequence of ints, got st"),
    ({"sample_shape": (2, True)}, TypeError, "sample_shape must contain ints, got bool"),
    ({"sample_shape": torch.tensor(2)}, TypeError, "sample_shape must be an int or a sequence"),
    (
        {"sample_shape": 2, "eps": MU},
        ValueError,
        r"eps must have the shape of z, \(2, 4, 6\), got \(4, 6\)",
    ),
]

KL: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"prior": (MU, RAW)}, TypeError, "prior must be a vf.Prior, a module .*, got tuple"),
    ({"prior": torch.distributions.Normal(0.0, 1.0)}, TypeError, "got Normal"),
    (
        {"prior": vf.Prior(MU[None])},
        ValueError,
        r"prior.mean must broadcast to the shape of the posterior, .* got \(1, 4, 6\)",
    ),
    ({"prior": vf.Prior(0.0, RAW[:, :3])}, ValueError, r"prior.raw must broadcast .* got \(4, 3\)"),
    (
        {"prior": vf.Prior(MU.long())},
        TypeError,
        "prior.mean must be a floating-point tensor .* got torch.int64",
    ),
    (
        {"prior": vf.Prior(0.0, RAW.to("meta"))},
        RuntimeError,
        "prior.raw must be on the device of mu, cpu, got meta",
    ),
    (
        {"prior": vf.Prior(MU.to_sparse())},
        TypeError,
        r"prior.mean must be a strided tensor, got torch\.sparse_coo; pass its \.to_dense",
    ),
    ({"free_bits": -0.5}, ValueError, "free_bits must be at least 0 nats, got -0.5"),
    ({"free_bits": INF}, ValueError, "free_bits must be a finite number, got inf"),
    ({"free_bits": True}, TypeError, "free_bits must be a number, got bool"),
    ({"free_bits": torch.zeros(1)}, ValueError, "free_bits must be a number or a 0-d tensor"),
    ({"balance": 0.8}, TypeError, r"balance must be a pair \(wq, wp\), got float"),
    ({"balance": (1, 2, 3)}, TypeError, r"balance must be a pair \(wq, wp\), got 3 values"),
    ({"balance": (0.2, NAN)}, ValueError, "balance's wp must be a finite number, got nan"),
    ({"balance": ("0.2", 1)}, TypeError, "balance's wq must be a number, got str"),
]

TAKEN = {
    "reparameterize_kl": CALL + SAMPLE + KL,
    "reparameterize": CALL + SAMPLE,
    "gaussian_kl": CALL + KL,
    "gaussian_log_prob": [c for c in CALL if "mu_soft_clamp" not in c[0]],
    "sampled_kl": [c for c in CALL + KL if {*c[0]} <= {"scale", "mask", "prior"}],
}
REFUSED = [(name, *case) for name, cases in TAKEN.items() for case in cases]


@MODULES
@pytest.mark.parametrize(("name", "kwargs", "error", "message"), REFUSED, ids=lambda v: str(v)[:30])
def test_a_bad_option_is_named(module, name, kwargs, error, message):
    inputs = (MU, MU, RAW) if name == "gaussian_log_prob" else (MU, RAW)
    message = message.replace("mu on cpu", "(mu|z|value) on cpu")
    refuses(lambda: getattr(module, name)(*inputs, **kwargs), error, message)


@MODULES
@pytest.mark.parametrize(
    ("kwargs", "error", "message"), CALL + SAMPLE + KL, ids=lambda v: str(v)[:30]
)
def test_a_bad_option_of_packed_moments_is_named(module, kwargs, error, message):
    h = torch.cat([MU, RAW], 1)
    refuses(lambda: module.reparameterize_kl_moments(h, **kwargs), error, message)


@MODULES
@pytest.mark.parametrize(
    ("scale", "called"),
    [*((k, k) for k in KINDS[:4]), ("softplus", "raw"), (vf.Scale("sigmoid2"), "raw"),
     (vf.Scale("std", std_floor=0.1), "std")],
)  # fmt: skip
def test_messages_call_a_raw_scale_what_it_is(module, scale, called):
    for function in (module.reparameterize_kl, module.reparameterize, module.sampled_kl):
        refuses(lambda f=function: f(MU, 0.5, scale=scale), TypeError, f"{called} must be a Tensor")
    refuses(
        lambda: module.gaussian_kl(MU, RAW[:, :5], scale=scale),
        ValueError,
        rf"{called} must broadcast with the shape of mu, \(4, 6\), got \(4, 5\)",
    )


@MODULES
def test_bad_tensors_of_densities_are_named(module):
    log_prob, sampled = module.gaussian_log_prob, module.sampled_kl
    refuses(lambda: log_prob(1.0, MU, RAW), TypeError, "value must be a Tensor, got float")
    refuses(
        lambda: log_prob(MU.long(), MU, RAW),
        TypeError,
        "value must be a floating-point tensor .* got torch.int64",
    )
    refuses(
        lambda: log_prob(MU[:3], MU, RAW),
        ValueError,
        r"must broadcast with the shape of value, \(3,",
    )
    refuses(
        lambda: log_prob(MU, MU, RAW.to("meta")),
        RuntimeError,
        "logvar must be on the device of mu, cpu, got meta",
    )
    refuses(
        lambda: log_prob(MU, MU, RAW, dim=2), ValueError, "dim must be a dimension of .*, got 2"
    )
    refuses(
        lambda: log_prob(MU, MU, RAW, reduction="sum", dim=1),
        ValueError,
        "reduction must have its def",
    )
    refuses(lambda: sampled([1.0], RAW), TypeError, "z must be a Tensor, got list")
    refuses(
        lambda: sampled(MU, RAW[:3]), ValueError, r"must broadcast with the shape of z, \(4, 6\)"
    )


def test_the_reference_has_the_same_signatures():
    for name in (*vf.functional.__all__, *vf.losses.__all__):
        ours, theirs = (inspect.signature(getattr(m, name)) for m in (vf, vf.reference))
        assert ours == theirs


# --------------------------------------------------------------------------------------------------
# Arguments of the operators
# --------------------------------------------------------------------------------------------------


class Recorder:
    """Replaces the operators, and records the keyword arguments of each call."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        owner = self

        class Operator:
            @staticmethod
            def default(mu, *raw, **kwargs):
                owner.calls.append((name, kwargs))
                return torch.ones(()) if name == "gaussian_kl" else (mu, torch.ones(()))

            @staticmethod
            def generator(mu, *raw, **kwargs):
                owner.calls.append((name, kwargs))
                return (mu, KEY) if name == "reparameterize" else (mu, torch.ones(()), KEY)

        return Operator


KEY = make_key(1)
DEFAULTS = [*[0, 1, 0, -INF, INF, 0, 1, 0, 0, 0] * 2, 0, 0, 0, 1, 0, 1, 1, 0, 0]


@pytest.fixture
def operators(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(vf._native.latent, "_ops", recorder)
    monkeypatch.setattr(vf.functional._ext, "use_native", lambda device: True)
    return recorder.calls


@native
def test_a_default_call_gives_the_operators_nothing_more(operators):
    vf.reparameterize_kl(MU, RAW)
    vf.reparameterize_kl(MU, RAW, key=KEY)
    vf.reparameterize(MU, RAW)
    vf.gaussian_kl(MU, RAW)
    vf.reparameterize_kl_moments(torch.cat([MU, RAW], 1))
    known = {"eps", "key", "generator", "reduction", "dim", "packed_dim"}
    assert all({*kwargs} <= known for _, kwargs in operators)
    assert (
        DEFAULT_OPTIONS.packed() is None
        and Options()._replace(mu_soft_clamp=1.0).packed() != DEFAULTS
    )


@native
def test_numbers_travel_as_pairs_of_place_and_value(operators):
    scale = vf.Scale(
        "softplus", clamp=(-5, None), gain=2, shift=3, beta=4, std_floor=5, var_floor=6, std_min=7
    )
    prior = vf.Prior(0.25, -0.5, vf.Scale("logstd", soft_clamp=7))
    vf.reparameterize_kl(
        MU, RAW, scale=scale, mu_soft_clamp=8, prior=prior, temperature=9, free_bits=10,
        balance=(11, 12),
    )  # fmt: skip
    ((_, kwargs),) = operators
    want = [4, 2, 3, -5, INF, 0, 4, 6, 5, 7, 1, 1, 0, -INF, INF, 7, 1, 0, 0, 0]
    assert unpaired(kwargs["options"], DEFAULTS) == [*want, 8, 0.25, -0.5, 9, 10, 11, 12, 0, 0]
    both = zip([*want, 8, 0.25, -0.5, 9, 10, 11, 12, 0, 0], DEFAULTS, strict=True)
    assert len(kwargs["options"]) == 2 * sum(number != default for number, default in both)
    assert all(type(v) is float for v in kwargs["options"])
    assert not {"prior_mean", "prior_raw", "mask", "sample_shape"} & {*kwargs}


def test_tensors_arrive_in_the_shape_and_dtype_of_the_posterior(operators):
    mask, prior = MASK[:1], vf.Prior(MU[0].double(), torch.tensor(0.5))
    vf.reparameterize_kl(MU, RAW[:, :1], mask=mask, prior=prior, sample_shape=3)
    vf.reparameterize_kl_moments(torch.cat([MU, RAW], 1), mask=mask, prior=prior, key=KEY)
    for _, kwargs in operators:
        assert kwargs["prior_mean"].shape == kwargs["prior_raw"].shape == MU.shape
        assert kwargs["prior_mean"].dtype == kwargs["prior_raw"].dtype == torch.float64
        assert kwargs["prior_mean"].stride(0) == 0 and kwargs["mask"].stride(0) == 0
        assert kwargs["mask"].shape == MU.shape and kwargs["mask"].dtype == torch.bool
        assert "options" not in kwargs
    assert operators[0][1]["sample_shape"] == (3,) and "sample_shape" not in operators[1][1]


def test_a_masked_mean_is_a_sum_over_the_count(operators):
    kl = vf.gaussian_kl(MU, RAW, mask=MASK, reduction="mean")
    assert operators[0][1]["reduction"] == "sum" and kl.item() == pytest.approx(1 / MASK.sum())
    vf.gaussian_kl(MU, RAW, mask=MASK, reduction="sample")
    assert operators[1][1]["reduction"] == "sample"


@native
def test_a_kl_from_a_sample_is_a_linear_form(operators):
    assert vf.sampled_kl(MU, RAW, scale="logstd") == 1
    ((_, sampled),) = operators
    assert sampled["options"] == [0, 1, 27, 1, 28, -1]
