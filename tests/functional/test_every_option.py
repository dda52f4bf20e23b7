"""No fast path ignores an option, including an option that is added later."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import pytest
import torch
from conftest import make_key, native
from test_option_errors import Recorder

import vae_fused as vf
from vae_fused import _checks, _keywords, options

MU, RAW = torch.randn(4, 6), torch.randn(4, 6)
KEY = make_key(1)

# A non-default value for each option.
CALL: dict[str, Any] = {
    "scale": "logstd", "mu_soft_clamp": 1.0, "prior": vf.Prior(0.5), "mask": MU > 0,
    "free_bits": 0.5, "balance": (0.5, 0.5), "temperature": 0.5, "sample_shape": (2,),
    "estimator": "sample", "stop_q": True,
}  # fmt: skip
# Options that have an effect only together with another option.
BESIDE: dict[str, dict[str, Any]] = {"stop_q": {"estimator": "sample"}}
SCALE: dict[str, Any] = {
    "kind": "logstd", "clamp": (-0.5, 0.5), "soft_clamp": 1.0, "gain": 2.0, "shift": 0.5,
    "beta": 2.0, "std_floor": 0.5, "var_floor": 0.5, "std_min": 1.0,
}  # fmt: skip
NUMBER = {
    "std_min": 2.0,
    "low": 0.25,
    "high": -0.25,
    "kind": 1.0,
    "is_linear_form": 1.0,
    "at_sample": 1.0,
}  # the other options get 0.5
# Options without an effect on this test's calls. `to_prior` affects only the gradients of a prior's
# tensors, `constant` only the linear form, and `stop_q` only a KL estimated at the sample. The
# prior's raw scale is 0, so its sigma is 1 for every `kind`, `gain` and `soft_clamp` used here.
SILENT, SILENT_IN_PRIORS = {"to_prior", "constant", "stop_q"}, {"kind", "gain", "soft_clamp"}


# A value for each 0-d tensor that replaces a number in the operators' `options`.
SCALAR = {
    name: torch.tensor({"to_posterior": 0.25, "to_prior": 0.25}.get(name, 0.5))
    for name in options.SCALARS
}


def results(call) -> list[torch.Tensor]:
    """Returns outputs and gradients."""
    leaves = [t.clone().requires_grad_() for t in (MU, RAW)]
    z, kl = call(*leaves)
    return [z.detach(), kl.detach(), *torch.autograd.grad((z * z).sum() + kl.sum(), leaves)]


def same(got: list[torch.Tensor], want: list[torch.Tensor]) -> bool:
    return all(g.shape == w.shape and torch.equal(g, w) for g, w in zip(got, want, strict=True))


def test_the_lists_of_this_file_are_complete():
    assert {*CALL} == {*_keywords.DEFAULTS} == {*_keywords.LatentOptions.__annotations__}
    assert {*SCALE} == {f.name for f in dataclasses.fields(vf.Scale)}


@pytest.mark.parametrize("module", [vf, vf.reference], ids=["vf", "reference"])
@pytest.mark.parametrize("name", CALL)
def test_every_option_of_a_call_has_an_effect(module, name):
    def call(**option):
        return results(lambda *pair: module.reparameterize_kl(*pair, key=KEY, **option))

    beside = BESIDE.get(name, {})
    assert not same(call(**{name: CALL[name]}, **beside), call(**beside))
    assert same(call(**{name: _keywords.DEFAULTS[name]}, **beside), call(**beside))


@pytest.mark.parametrize("module", [vf, vf.reference], ids=["vf", "reference"])
@pytest.mark.parametrize("name", SCALE)
def test_every_option_of_a_scale_has_an_effect(module, name):
    def call(**option):
        kind = {"kind": "softplus"} if name == "beta" else {}
        scale = vf.Scale(**{**kind, **option})
        return results(lambda *pair: module.reparameterize_kl(*pair, key=KEY, scale=scale))

    assert not same(call(**{name: SCALE[name]}), call())


@native
@pytest.mark.parametrize("place", range(len(options._NAMES)))
def test_every_number_of_the_operators_has_an_effect(place):
    scope, name = options._SCOPES[place], options._NAMES[place]

    def call(number):
        return results(
            lambda *pair: torch.ops.vae_fused.reparameterize_kl.default(
                *pair, eps=None, key=KEY, reduction="sum", dim=None, options=[place, number]
            )
        )

    changed = call(NUMBER.get(name, 0.5))
    silent = name in SILENT or (scope == "prior" and name in SILENT_IN_PRIORS)
    assert same(changed, call(options._DEFAULT_NUMBERS[place])) == silent


@native
@pytest.mark.parametrize("name", SCALAR)
def test_every_scalar_of_the_operators_replaces_its_number(name):
    def call(numbers, **scalars):
        return results(
            lambda *pair: torch.ops.vae_fused.reparameterize_kl.default(
                *pair, eps=None, key=KEY, reduction="sum", dim=None, prior_mean=RAW, prior_raw=MU,
                options=numbers, **scalars,
            )
        )  # fmt: skip

    place = options._NAMES.index(name)
    replaced = call(None, **{name: SCALAR[name]})
    assert same(replaced, call([place, SCALAR[name].item()]))
    assert same(replaced, call([place, 7.0], **{name: SCALAR[name]}))


@native
def test_the_operators_have_these_scalars():
    for operator in ("reparameterize_kl", "gaussian_kl", "reparameterize_kl_backward"):
        schema = getattr(torch.ops.vae_fused, operator).default._schema
        names = [argument.name for argument in schema.arguments]
        first = names.index("options") + 1
        assert tuple(names[first : first + len(options.SCALARS)]) == options.SCALARS


@native
def test_numbers_unpack_to_what_was_packed():
    scale = vf.Scale("softplus", clamp=(None, 2.0), gain=2, shift=3, beta=4, std_floor=5)
    prior = options.CheckedPrior(0.25, -0.5, vf.Scale("logstd", soft_clamp=7.0))
    call = options.Options(
        scale, prior, mu_soft_clamp=8.0, free_bits=10.0, balance=(11.0, 12.0), temperature=9.0
    )
    assert options.Options.unpacked(call.packed()) == call
    assert options.Options.unpacked(None) == options.DEFAULT_OPTIONS
    tensors = options.Options.unpacked(None, MU, None, MU > 0)
    assert (
        tensors.prior.mean is MU and tensors.prior.raw == 0.0 and tensors.mask.dtype == torch.bool
    )


# --------------------------------------------------------------------------------------------------
# A new option, `fake`
# --------------------------------------------------------------------------------------------------


@pytest.fixture
def operators(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(vf._native.latent, "_ops", recorder)
    return recorder.calls


@native
def test_an_option_that_is_added_to_the_calls_reaches_the_operators(monkeypatch, operators):
    fields = [*options.Options._fields, "fake"]
    base = collections.namedtuple(
        "Base", fields, defaults=[*options.Options._field_defaults.values(), 0.0]
    )
    names = ("packed", "_pack_others", "arguments", "is_at_sample")
    methods = {name: vars(options.Options)[name] for name in names}
    longer = type("Options", (base,), {"__slots__": (), **methods})
    for module in (options, _checks):
        monkeypatch.setattr(module, "Options", longer)
        monkeypatch.setattr(module, "DEFAULT_OPTIONS", longer())
    for name, more in (("OTHER", "fake"), ("DEFAULT", 0.0)):
        numbers = f"_{name}_NUMBERS"
        monkeypatch.setattr(options, numbers, [*getattr(options, numbers), more])
    monkeypatch.setattr(options, "_DEFAULT_OTHERS", [*options._DEFAULT_OTHERS, 0.0])
    monkeypatch.setitem(_keywords.DEFAULTS, "fake", 0.0)
    monkeypatch.setitem(_keywords.LatentOptions.__annotations__, "fake", float)
    vf.reparameterize_kl(MU, RAW, fake=2.0)
    vf.reparameterize_kl(MU, RAW, fake=2.0, prior=vf.Prior(MU, RAW))
    vf.reparameterize_kl(MU, RAW, fake=0.0)
    (_, alone), (_, beside), (_, default) = operators
    assert alone["options"][-1] == beside["options"][-1] == 2.0 and "options" not in default


@native
def test_an_option_that_is_added_to_scales_reaches_the_operators(monkeypatch, operators):
    @dataclasses.dataclass(frozen=True)
    class Longer(vf.Scale):
        fake: float = dataclasses.field(default=0.0, kw_only=True)

    count = len(options._SCALE_NUMBERS)
    default = [*options._DEFAULT_NUMBERS]
    default[2 * count : 2 * count] = [0.0]
    default[count:count] = [0.0]
    monkeypatch.setattr(options, "_SCALE_NUMBERS", [*options._SCALE_NUMBERS, "fake"])
    monkeypatch.setattr(options, "_DEFAULT_NUMBERS", default)
    monkeypatch.setattr(options, "STANDARD", options.CheckedPrior(scale=Longer()))
    vf.reparameterize_kl(MU, RAW, scale=Longer(fake=2.0))
    vf.reparameterize_kl(MU, RAW, scale=Longer())
    vf.reparameterize_kl(MU, RAW, scale=Longer(), prior=vf.Prior(MU, RAW, Longer(fake=3.0)))
    (_, posterior), (_, default_call), (_, prior) = operators
    assert posterior["options"] == [count, 2.0] and not default_call.get("options")
    assert prior["options"] == [2 * count + 1, 3.0]
