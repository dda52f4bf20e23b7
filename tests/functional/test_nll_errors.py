"""An invalid likelihood call raises an error that names the argument, value and requirement."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import vae_fused as vf
from vae_fused import likelihoods as k

X = torch.ones(4, 6)
MEAN, THETA = torch.ones(4, 6), torch.ones(6)
NB = (MEAN, THETA)
both = pytest.mark.parametrize("nll", [vf.nll, vf.reference.nll], ids=["nll", "reference"])

# (what is wrong, output, target, likelihood, options, exception, message)
BAD: dict[str, tuple[Any, Any, Any, dict[str, Any], type[Exception], str]] = {
    "unknown kind": (
        X, X, "nb", {}, ValueError,
        "likelihood must be one of bernoulli, .*gaussian, laplace, student_t.*, got 'nb'",
    ),
    "no kind": (X, X, None, {}, TypeError, "likelihood must be a str or an instance .*, got NoneT"),
    "a class": (
        X, X, k.Poisson, {}, TypeError,
        "instance of a class of vf.likelihoods, got the class Poisson; pass an instance of it",
    ),
    "no output": (None, X, "poisson", {}, TypeError, "output must be a Tensor, got NoneType"),
    "a string": (
        "ab", X, "gaussian", {}, TypeError, r"output must be 2 tensors \(mean, raw\), got str"
    ),
    "one of two": (
        X, X, "gaussian", {}, ValueError,
        r"output must be 2 tensors \(mean, raw\) for Gaussian\(\), got 1 tensor",
    ),
    "two of one": (
        NB, X, "poisson", {}, ValueError, r"output must be a Tensor for Poisson\(\), got 2 tensors"
    ),
    "two of three": (
        NB, X, "zero_inflated_negative_binomial", {}, ValueError,
        r"must be 3 tensors \(mean, theta, zero_inflation\) for .*, got 2 tensors",
    ),
    "a number": ((MEAN, 1.0), X, "gaussian", {}, TypeError, "output's raw must be a Tensor, got"),
    "two shapes of logits": (
        (torch.ones(5), X), X, "negative_binomial_logits", {}, ValueError,
        r"total_count must broadcast to the shape of output's logits, \(4, 6\), got \(5,\)",
    ),
    "two of three of a student": (
        NB, X, "student_t", {}, ValueError,
        r"must be 3 tensors \(mean, raw, df\) for StudentT\(\), got 2 tensors",
    ),
    "a gradient of a grid": (
        NB, X.clone().requires_grad_(), "discretized_logistic", {}, ValueError,
        r"target must not require a gradient for DiscretizedLogistic\(\), because",
    ),
    "integers": (
        X.int(), X, "poisson", {}, TypeError,
        "output must be a floating-point tensor of 16, 32 or 64 bits, got torch.int32",
    ),
    "integer theta": (
        (MEAN, THETA.long()), X, "negative_binomial", {}, TypeError,
        "output's theta must be a floating-point tensor .* got torch.int64",
    ),
    "sparse": (
        X.to_sparse(), X, "poisson", {}, TypeError,
        r"output must be a strided tensor, got torch.sparse_coo; pass its \.to_dense\(\)",
    ),
    "theta's shape": (
        (MEAN, torch.ones(5)), X, "negative_binomial", {}, ValueError,
        r"output's theta must broadcast to the shape of output's mean, \(4, 6\), got \(5,\)",
    ),
    "a larger theta": (
        (THETA, MEAN), X, "negative_binomial", {}, ValueError,
        r"output's theta must broadcast to the shape of output's mean, \(6,\), got \(4, 6\)",
    ),
    "theta's device": (
        (MEAN, THETA.to("meta")), X, "negative_binomial", {}, RuntimeError,
        "output's theta must be on the device of output's mean, cpu, got meta",
    ),
    "no target": (X, 1.0, "poisson", {}, TypeError, "target must be a Tensor, got float"),
    "bool target": (
        X, X > 0, "bernoulli", {}, TypeError, "target must be float32, .* or int64, got torch.bool"
    ),
    "target's shape": (
        X, X[:3], "poisson", {}, ValueError, r"target must broadcast to .*, got \(3, 6\)"
    ),
    "a larger target": (
        X, X[None], "poisson", {}, ValueError,
        r"target must broadcast to the shape of output, \(4, 6\), got \(1, 4, 6\)",
    ),
    "target's device": (
        X, X.to("meta"), "poisson", {}, RuntimeError, "target must be on the device of output, cpu"
    ),
    "target's gradient": (
        X, X.clone().requires_grad_(), "poisson", {}, ValueError, "target must not require a grad"
    ),
    "mask's dtype": (X, X, "poisson", {"mask": X}, TypeError, "mask must be bool, got torch.flo"),
    "mask's shape": (
        X, X, "poisson", {"mask": X[:, :2] > 0}, ValueError,
        r"mask must broadcast to the shape of output, \(4, 6\), got \(4, 2\)",
    ),
    "mask's device": (
        X, X, "poisson", {"mask": (X > 0).to("meta")}, RuntimeError,
        "mask must be on the device of output, cpu, got meta",
    ),
    "no weight": (X, X, "poisson", {"weight": 2.0}, TypeError, "weight must be a Tensor, got"),
    "weight's dtype": (
        X, X, "poisson", {"weight": X.int()}, TypeError,
        "weight must be a floating-point tensor .* got torch.int32",
    ),
    "weight's shape": (
        X, X, "poisson", {"weight": torch.ones(4)}, ValueError,
        r"weight must broadcast to the shape of output, \(4, 6\), got \(4,\)",
    ),
    "weight's gradient": (
        X, X, "poisson", {"weight": X.clone().requires_grad_()}, ValueError,
        "weight must not require a gradient, because none is computed",
    ),
    "library": (
        NB, X, "negative_binomial", {"library": X[:, :1]}, ValueError,
        r"library must be None for NegativeBinomial\(\), which has no softmax, got Tensor",
    ),
    "library's shape": (
        X, X, k.Poisson("softmax"), {"library": X[:, 0]}, ValueError,
        r"library must broadcast to one factor for each softmax, \(4, 1\), got \(4,\)",
    ),
    "library's dtype": (
        X, X, k.Poisson("softmax"), {"library": X[:, :1].int()}, TypeError,
        "library must be a floating-point tensor .* got torch.int32",
    ),
    "a softmax of one number": (
        torch.ones(()), torch.ones(()), k.Poisson("softmax"), {}, ValueError,
        r"output must have a last dimension for the softmax, got shape \(\)",
    ),
    "reduction": (
        X, X, "poisson", {"reduction": "avg"}, ValueError, "reduction must be one of .*, got 'avg'"
    ),
    "dim": (
        X, X, "poisson", {"dim": 2}, ValueError,
        r"dim must be a dimension of output, of shape \(4, 6\), got 2",
    ),
    "both": (
        X, X, "poisson", {"dim": 1, "reduction": "sum"}, ValueError,
        "reduction must have its default, 'batchmean', where dim is given, got 'sum'",
    ),
    "sample": (
        torch.ones(()), torch.ones(()), "poisson", {"reduction": "sample"}, ValueError,
        r'output must have at least 1 dimension for reduction="sample", got shape \(\)',
    ),
}  # fmt: skip


@both
@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_a_bad_call(nll: Callable[..., Tensor], bad: tuple[Any, ...]) -> None:
    output, target, likelihood, options, error, message = bad
    with pytest.raises(error, match=message):
        nll(output, target, likelihood, **options)


@both
def test_the_signature_shows_every_argument(nll: Callable[..., Tensor]) -> None:
    shown = inspect.signature(nll).parameters
    assert list(shown) == [
        "output", "target", "likelihood", "reduction", "dim", "mask", "weight", "library", "grad"
    ]  # fmt: skip
    assert shown["reduction"].default == "batchmean"


def test_output_and_target_are_positional() -> None:
    with pytest.raises(TypeError, match="positional"):
        vf.nll(output=X, target=X, likelihood="poisson")


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        (k.Poisson(validate=True), -1.0),
        (k.Poisson(validate=True), 0.5),
        (k.Poisson(validate=True), math.inf),
        (k.Poisson(validate=True), math.nan),
        (k.Bernoulli(validate=True), 1.5),
        (k.Bernoulli(validate=True), math.nan),
        (k.Gaussian(sigma=1.0, validate=True), math.nan),
        (k.Laplace(sigma=1.0, validate=True), math.nan),
    ],
)
def test_validate_finds_a_bad_target(kind: k.Likelihood, bad: float) -> None:
    target = X.clone()
    vf.nll(X, target, kind)
    target[2, 3] = bad
    with pytest.raises(
        ValueError, match=f"target must contain only {kind.target_is[:5]}.*, got other values"
    ):
        vf.nll(X, target, kind)
    vf.nll(X, target, kind, mask=torch.arange(4).view(4, 1) != 2)
    vf.nll(X, target, type(kind)(**({"sigma": 1.0} if hasattr(kind, "sigma") else {})))


def test_validate_finds_a_negative_integer() -> None:
    with pytest.raises(ValueError, match="whole numbers of at least 0"):
        vf.nll(X, torch.full((4, 6), -1), k.Poisson(validate=True))
    vf.nll(X, torch.ones(4, 6, dtype=torch.uint8), k.Poisson(validate=True))
