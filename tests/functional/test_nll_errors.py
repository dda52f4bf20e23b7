"""A bad call of a likelihood raises an error with the argument, the value and the requirement."""

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
        "likelihood is 'nb', wants one of bernoulli, .*gaussian, laplace, student_t",
    ),
    "no kind": (X, X, None, {}, TypeError, "likelihood must be a str or an instance .*, got NoneT"),
    "a class": (X, X, k.Poisson, {}, TypeError, "instance of a class of vf.likelihoods, got Pois"),
    "no output": (None, X, "poisson", {}, TypeError, "output must be a Tensor, got NoneType"),
    "a string": ("ab", X, "gaussian", {}, TypeError, r"output must be 2 tensors: \(mean, raw\)"),
    "one of two": (X, X, "gaussian", {}, ValueError, r"has 1 tensor, wants 2 tensors: \(mean, raw"),
    "two of one": (NB, X, "poisson", {}, ValueError, "output has 2 tensors, wants a Tensor"),
    "two of three": (
        NB, X, "zero_inflated_negative_binomial", {}, ValueError,
        r"has 2 tensors, wants 3 tensors: \(mean, theta, zero_inflation\)",
    ),
    "a number": ((MEAN, 1.0), X, "gaussian", {}, TypeError, "output's raw must be a Tensor, got"),
    "two shapes of logits": (
        (torch.ones(5), X), X, "negative_binomial_logits", {}, ValueError,
        r"output's total_count has shape \(5,\), which does not .* output's logits: \(4, 6\)",
    ),
    "two of three of a student": (
        NB, X, "student_t", {}, ValueError, r"has 2 tensors, wants 3 tensors: \(mean, raw, df\)"
    ),
    "a gradient of a grid": (
        NB, X.clone().requires_grad_(), "discretized_logistic", {}, ValueError,
        r"target requires grad, but that of DiscretizedLogistic\(\) has no gradient",
    ),
    "integers": (X.int(), X, "poisson", {}, TypeError, "output has dtype torch.int32, wants float"),
    "integer theta": (
        (MEAN, THETA.long()), X, "negative_binomial", {}, TypeError,
        "output's theta has dtype torch.int64, wants float32",
    ),
    "sparse": (X.to_sparse(), X, "poisson", {}, TypeError, "output has layout torch.sparse_coo"),
    "theta's shape": (
        (MEAN, torch.ones(5)), X, "negative_binomial", {}, ValueError,
        r"output's theta has shape \(5,\), which does not broadcast to output's mean: \(4, 6\)",
    ),
    "a larger theta": (
        (THETA, MEAN), X, "negative_binomial", {}, ValueError,
        r"output's theta has shape \(4, 6\), which does not broadcast to output's mean: \(6,\)",
    ),
    "theta's device": (
        (MEAN, THETA.to("meta")), X, "negative_binomial", {}, RuntimeError,
        "output's theta is on meta, output's mean on cpu",
    ),
    "no target": (X, 1.0, "poisson", {}, TypeError, "target must be a Tensor, got float"),
    "bool target": (X, X > 0, "bernoulli", {}, TypeError, "target has dtype torch.bool, wants"),
    "target's shape": (X, X[:3], "poisson", {}, ValueError, r"target has shape \(3, 6\), which"),
    "a larger target": (
        X, X[None], "poisson", {}, ValueError,
        r"target has shape \(1, 4, 6\), which does not broadcast to output's \(4, 6\)",
    ),
    "target's device": (X, X.to("meta"), "poisson", {}, RuntimeError, "target is on meta, output"),
    "target's gradient": (
        X, X.clone().requires_grad_(), "poisson", {}, ValueError, "target requires grad, but that"
    ),
    "mask's dtype": (X, X, "poisson", {"mask": X}, TypeError, "mask has dtype torch.float32"),
    "mask's shape": (
        X, X, "poisson", {"mask": X[:, :2] > 0}, ValueError,
        r"mask has shape \(4, 2\), which does not broadcast to output's \(4, 6\)",
    ),
    "mask's device": (
        X, X, "poisson", {"mask": (X > 0).to("meta")}, RuntimeError, "mask is on meta, output on"
    ),
    "no weight": (X, X, "poisson", {"weight": 2.0}, TypeError, "weight must be a Tensor, got"),
    "weight's dtype": (X, X, "poisson", {"weight": X.int()}, TypeError, "weight has dtype torch.i"),
    "weight's shape": (
        X, X, "poisson", {"weight": torch.ones(4)}, ValueError,
        r"weight has shape \(4,\), which does not broadcast to output's \(4, 6\)",
    ),
    "weight's gradient": (
        X, X, "poisson", {"weight": X.clone().requires_grad_()}, ValueError, "weight requires grad"
    ),
    "library": (
        NB, X, "negative_binomial", {"library": X[:, :1]}, ValueError,
        r"library is the size factor of a softmax, which NegativeBinomial\(\) does not have",
    ),
    "library's shape": (
        X, X, k.Poisson("softmax"), {"library": X[:, 0]}, ValueError,
        r"library has shape \(4,\), which does not broadcast to one factor .*: \(4, 1\)",
    ),
    "library's dtype": (
        X, X, k.Poisson("softmax"), {"library": X[:, :1].int()}, TypeError, "library has dtype"
    ),
    "a softmax of one number": (
        torch.ones(()), torch.ones(()), k.Poisson("softmax"), {}, ValueError,
        "output is 0-d, wants a last dimension for the softmax",
    ),
    "reduction": (X, X, "poisson", {"reduction": "avg"}, ValueError, "reduction is 'avg', wants"),
    "dim": (X, X, "poisson", {"dim": 2}, ValueError, "dim 2 is out of range for output of 2 dim"),
    "both": (X, X, "poisson", {"dim": 1, "reduction": "sum"}, ValueError, "dim replaces reduction"),
    "sample": (
        torch.ones(()), torch.ones(()), "poisson", {"reduction": "sample"}, ValueError,
        "keeps dimension 0, but output is 0-d",
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
    with pytest.raises(ValueError, match=f"target holds a value .*, wants {kind.target_is[:5]}"):
        vf.nll(X, target, kind)
    vf.nll(X, target, kind, mask=torch.arange(4).view(4, 1) != 2)
    vf.nll(X, target, type(kind)(**({"sigma": 1.0} if hasattr(kind, "sigma") else {})))


def test_validate_finds_a_negative_integer() -> None:
    with pytest.raises(ValueError, match="whole numbers of at least 0"):
        vf.nll(X, torch.full((4, 6), -1), k.Poisson(validate=True))
    vf.nll(X, torch.ones(4, 6, dtype=torch.uint8), k.Poisson(validate=True))
