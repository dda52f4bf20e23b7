"""Every invalid call raises an error that names the bad argument, before noise is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import random

import vae_fused as vf
from vae_fused.options import _NAMES, _SCOPES, KINDS

MU, LOGVAR = random(4, 6, seed=1), random(4, 6, seed=2)  # seeded: test names contain them
KEY = torch.tensor([1, 2], dtype=torch.uint64)
SUM = {"reduction": "sum", "dim": None}
BOTH = (vf, vf.reference)
COUNT = len(_NAMES)


def numbers(changes: dict[str, float]) -> list[float]:
    """Returns the operators' `options`: the index of each name, followed by its value."""
    names = [f"{scope}.{name}" for scope, name in zip(_SCOPES, _NAMES, strict=True)]
    if not names:
        return []
    return [float(x) for name, value in changes.items() for x in (names.index(name), value)]


# (what is wrong, positional arguments, keyword arguments, exception, message)
POSTERIOR: list[tuple[str, tuple[Any, ...], type[Exception], str]] = [
    ("mu no tensor", ([1.0], LOGVAR), TypeError, "mu must be a Tensor, got list"),
    ("logvar no tensor", (MU, 0.5), TypeError, "logvar must be a Tensor, got float"),
    (
        "integer mu",
        (MU.long(), LOGVAR),
        TypeError,
        "mu must be a floating-point tensor of 16, 32 or 64 bits, got torch.int64",
    ),
    (
        "bool logvar",
        (MU, LOGVAR > 0),
        TypeError,
        "logvar must be a floating-point tensor .* got torch.bool",
    ),
    (
        "complex mu",
        (MU.to(torch.complex64), LOGVAR),
        TypeError,
        "mu must be a floating-point tensor .* got torch.complex64",
    ),
    (
        "shapes",
        (MU, LOGVAR[:, :5]),
        ValueError,
        r"logvar must broadcast with the shape of mu, \(4, 6\), got \(4, 5\)",
    ),
    (
        "devices",
        (MU, LOGVAR.to("meta")),
        RuntimeError,
        "logvar must be on the device of mu, cpu, got meta",
    ),
    (
        "sparse mu",
        (MU.to_sparse(), LOGVAR),
        TypeError,
        r"mu must be a strided tensor, got torch\.sparse_coo; pass its \.to_dense",
    ),
    (
        "nested mu",
        (torch.nested.nested_tensor([MU]), LOGVAR),
        TypeError,
        r"mu must be a strided tensor, got a nested one; pass its \.to_padded",
    ),
]

REDUCTION: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"reduction": "batch_mean"},
        ValueError,
        "reduction must be one of batchmean.*, got 'batch_mean'",
    ),
    ({"reduction": 1}, TypeError, "reduction must be a str, got int"),
    ({"reduction": None}, TypeError, "reduction must be a str, got NoneType"),
    ({"dim": 2}, ValueError, r"dim must be a dimension of mu, of shape \(4, 6\), got 2"),
    ({"dim": (0, -3)}, ValueError, "dim must be a dimension of .*, got -3"),
    ({"dim": (1, -1)}, ValueError, r"dim must contain each dimension once, got \(1, -1\)"),
    ({"dim": ()}, ValueError, "dim must contain a dimension, got none; pass reduction="),
    ({"dim": "1"}, TypeError, "dim must be an int or a sequence of ints, got str"),
    ({"dim": 1.0}, TypeError, "dim must be an int or a sequence of ints, got float"),
    ({"dim": (1.0,)}, TypeError, "dim must contain ints, got float"),
    ({"dim": (True,)}, TypeError, "dim must contain ints, got bool"),
    ({"dim": torch.tensor(1)}, TypeError, "dim must be an int or a sequence of ints, got Tensor"),
    (
        {"dim": 1, "reduction": "sum"},
        ValueError,
        "reduction must have its default, 'batchmean', where dim is given, got 'sum'",
    ),
]

NOISE: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"eps": 1.0}, TypeError, "eps must be a Tensor, got float"),
    ({"eps": MU[:2]}, ValueError, r"eps must have the shape of z, \(4, 6\), got \(2, 6\)"),
    ({"eps": MU.long()}, TypeError, "eps must be a floating-point tensor .* got torch.int64"),
    ({"eps": MU.to("meta")}, RuntimeError, "eps must be on the device of mu, cpu, got meta"),
    (
        {"eps": MU.to_sparse()},
        TypeError,
        r"eps must be a strided tensor, got torch\.sparse_coo; pass its \.to_dense",
    ),
    (
        {"key": KEY.long().to_sparse()},
        TypeError,
        r"key must be a strided tensor, got torch\.sparse_coo; pass its \.to_dense",
    ),
    ({"key": (1, 2)}, TypeError, "key must be a Tensor"),
    (
        {"key": KEY.to(torch.int32)},
        TypeError,
        "key must be uint64 or int64, got torch.int32; pass vf.key",
    ),
    (
        {"key": KEY[:1]},
        ValueError,
        r"key must have shape \(2,\), for a seed and an offset, got \(1,\)",
    ),
    ({"key": KEY.to("meta")}, RuntimeError, "key must be on the device of mu, cpu, got meta"),
    ({"generator": 3}, TypeError, "generator must be a torch.Generator, got int"),
    (
        {"eps": MU, "key": KEY},
        ValueError,
        "eps, generator and key must not be given together, got eps and key",
    ),
    ({"generator": torch.Generator(), "key": KEY}, ValueError, "got generator and key"),
]


def refuses(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    """Asserts that the call raises an error and leaves the default generator's state unchanged."""
    state = torch.get_rng_state()
    with pytest.raises(error, match=message):
        call()
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("module", BOTH, ids=lambda m: m.__name__)
@pytest.mark.parametrize("name", ["reparameterize_kl", "reparameterize", "gaussian_kl"])
@pytest.mark.parametrize(
    ("what", "args", "error", "message"), POSTERIOR, ids=[c[0] for c in POSTERIOR]
)
def test_bad_posterior_is_named(module, name, what, args, error, message):
    refuses(lambda: getattr(module, name)(*args), error, message)


@pytest.mark.parametrize("module", BOTH, ids=lambda m: m.__name__)
@pytest.mark.parametrize("name", ["reparameterize_kl", "gaussian_kl"])
@pytest.mark.parametrize(("kwargs", "error", "message"), REDUCTION, ids=lambda v: str(v)[:40])
def test_bad_reduction_is_named(module, name, kwargs, error, message):
    refuses(lambda: getattr(module, name)(MU, LOGVAR, **kwargs), error, message)


@pytest.mark.parametrize("module", BOTH, ids=lambda m: m.__name__)
@pytest.mark.parametrize("name", ["reparameterize_kl", "reparameterize"])
@pytest.mark.parametrize(("kwargs", "error", "message"), NOISE, ids=lambda v: str(v)[:40])
def test_bad_noise_is_named(module, name, kwargs, error, message):
    refuses(lambda: getattr(module, name)(MU, LOGVAR, **kwargs), error, message)


@pytest.mark.parametrize("module", BOTH, ids=lambda m: m.__name__)
def test_sample_reduction_of_a_scalar_is_refused(module):
    scalar = torch.zeros(())
    refuses(
        lambda: module.reparameterize_kl(scalar, scalar, reduction="sample"),
        ValueError,
        r'mu must have at least 1 dimension for reduction="sample", got shape \(\)',
    )


@pytest.mark.parametrize("module", BOTH, ids=lambda m: m.__name__)
def test_a_given_generator_is_untouched_by_a_refused_call(module):
    generator = torch.Generator().manual_seed(5)
    state = generator.get_state()
    with pytest.raises(ValueError, match=r"reduction must be one of .*, got 'x'"):
        module.reparameterize_kl(MU, LOGVAR, generator=generator, reduction="x")
    assert torch.equal(state, generator.get_state())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("module", BOTH, ids=lambda m: m.__name__)
def test_generator_of_another_device_is_refused(module):
    generator = torch.Generator("cuda")
    refuses(
        lambda: module.reparameterize(MU, LOGVAR, generator=generator),
        RuntimeError,
        "generator must be on the device of mu, cpu, got cuda",
    )


@pytest.mark.parametrize("name", ["reparameterize_kl", "reparameterize", "gaussian_kl"])
def test_the_two_tensors_are_positional_only(name):
    with pytest.raises(TypeError, match="positional"):
        getattr(vf, name)(mu=MU, logvar=LOGVAR)


@pytest.mark.skipif(not vf.functional._ext.available, reason="no compiled part")
class TestOperatorsKeepKernelsWithinMemory:
    """Invalid calls to ``torch.ops.vae_fused`` raise an error, and stay within tensor memory."""

    OPS = torch.ops.vae_fused

    @pytest.mark.parametrize(
        ("raw", "eps", "key", "message"),
        [
            (LOGVAR[:3], None, KEY, "raw must have shape"),
            (LOGVAR.double(), None, KEY, "raw must have dtype"),
            (LOGVAR, MU[:3], None, "eps must have shape"),
            (LOGVAR, MU.half(), None, "eps must have dtype Float, got Half"),
            (LOGVAR, None, KEY[:1], "key must have shape"),
            (LOGVAR, None, KEY.to(torch.int32), "key must have dtype UInt64, got Int"),
            (LOGVAR, None, None, "either eps or key must be given, got none"),
            (LOGVAR, MU, KEY, "either eps or key must be given, got both"),
        ],
    )
    def test_forward(self, raw, eps, key, message):
        with pytest.raises((ValueError, TypeError), match=message):
            self.OPS.reparameterize_kl.default(MU, raw, eps=eps, key=key, **SUM)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"prior_mean": MU[:3]}, r"prior_mean must have shape \[4, 6\], got \[3, 6\]"),
            ({"prior_raw": MU.double()}, "prior_raw must have dtype"),
            ({"mask": MU}, "mask must have dtype Bool, got Float"),
            ({"mask": MU[:, :3] > 0}, "mask must have shape"),
            ({"options": [0.0]}, "options must contain pairs, got 1 numbers"),
            (
                {"options": [COUNT, 0.0]},
                f"positions between 0 and {COUNT - 1}, got {COUNT}",
            ),
            ({"options": [-1.0, 0.0]}, "options must contain positions between 0 and .* got -1"),
            (
                {"options": [math.nan, 0.0]},
                "options must contain positions between 0 and .* got nan",
            ),
            (
                {"options": numbers({"posterior.kind": float(len(KINDS))})},
                "kind of a scale must be an integer between 0 and 5, got 6",
            ),
            (
                {"options": numbers({"posterior.kind": math.nan})},
                "kind of a scale must be .* got nan",
            ),
            ({"options": numbers({"posterior.beta": 0.0})}, "beta must be above 0, got 0"),
            ({"options": numbers({"posterior.kind": 2.5})}, "kind of a scale must be .* got 2.5"),
            (
                {"options": numbers({"prior.kind": 1e300})},
                r"kind of a scale must be .* got 1e\+300",
            ),
            (
                {"options": numbers({"posterior.low": math.nan})},
                r"clamp must have lo <= hi, got \(nan, inf\)",
            ),
            (
                {"options": numbers({"prior.high": math.nan})},
                r"clamp must have lo <= hi, got \(-inf, nan\)",
            ),
            (
                {"options": numbers({"posterior.low": 1.0, "posterior.high": -1.0})},
                r"clamp must have lo <= hi, got \(1, -1\)",
            ),
            ({"eps": MU, "sample_shape": [2]}, "eps must have shape"),
        ],
    )
    def test_the_family(self, arguments, message):
        noise = {"eps": None, "key": None if "eps" in arguments else KEY}
        with pytest.raises((ValueError, TypeError), match=message):
            self.OPS.reparameterize_kl.default(MU, LOGVAR, **{**noise, **arguments}, **SUM)

    @pytest.mark.parametrize(
        ("grad_z", "grad_kl", "message"),
        [
            (MU[:3], None, "grad_z must have shape"),
            (MU[0], None, "grad_z must have shape"),
            (MU.double(), None, "grad_z must have dtype"),
            (MU, torch.zeros(4), "grad_kl must have shape"),
            (MU, torch.zeros((), dtype=torch.float64), "grad_kl must have dtype"),
        ],
    )
    def test_backward(self, grad_z, grad_kl, message):
        with pytest.raises((ValueError, TypeError), match=message):
            self.OPS.reparameterize_kl_backward.default(
                grad_z, grad_kl, MU, LOGVAR, eps=None, key=KEY, output_mask=[True] * 5, **SUM
            )

    def test_unsupported_dtype_and_reduction(self):
        with pytest.raises(
            TypeError, match="must be floating-point tensors of 16, 32 or 64 bits, got Long"
        ):
            self.OPS.gaussian_kl.default(MU.long(), LOGVAR.long(), **SUM)
        with pytest.raises(
            ValueError, match=r"reduction must be one of batchmean, sum, .*, got 'x'"
        ):
            self.OPS.gaussian_kl.default(MU, LOGVAR, reduction="x", dim=None)
        with pytest.raises(IndexError, match="dim must be a dimension of a 2-d tensor, got 7"):
            self.OPS.gaussian_kl.default(MU, LOGVAR, reduction="sum", dim=[7])
