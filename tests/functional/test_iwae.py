"""iwae_loss: values, gradients, infinities, and a model with known evidence."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import DTYPES, random
from linear_gaussian import linear_gaussian, standard_error
from torch import Tensor
from torch.func import grad, jvp, vmap

import vae_fused as vf

F64, INF, NAN = torch.float64, math.inf, math.nan


def samples(
    *shape: int, dtype: torch.dtype = F64, requires_grad: bool = False
) -> tuple[Tensor, Tensor]:
    nll, log_ratio = (3.0 * random(*shape, seed=seed, dtype=dtype) for seed in (1, 2))
    return nll.requires_grad_(requires_grad), log_ratio.requires_grad_(requires_grad)


def oracle(nll: list[float], log_ratio: list[float], groups: int, beta: float) -> float:
    """Computes the loss of one item by the formula, with correctly rounded sums."""
    log_w = [-n - r for n, r in zip(nll, log_ratio, strict=True)]
    size = len(log_w) // groups
    bounds = [
        math.log(math.fsum(math.exp(v) for v in log_w[i : i + size]) / size)
        for i in range(0, len(log_w), size)
    ]
    return -(beta * math.fsum(log_w) / len(log_w) + (1 - beta) * math.fsum(bounds) / groups)


def slopes(log_w: Tensor, groups: int, beta: float, power: int) -> Tensor:
    """Returns minus the derivative of the loss with respect to the log weights, of shape (K, B).

    The derivative consists of powers of the normalized weights.
    """
    weights = torch.cat([part.softmax(0) for part in log_w.chunk(groups)])
    return beta / len(log_w) + (1.0 - beta) * weights**power / groups


# --------------------------------------------------------------------------------------------------
# Values
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", ["standard", "doubly"])
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("beta", [0.0, 0.25, 1.0, torch.tensor(0.25)], ids=str)
def test_the_loss_is_the_formula(gradient: str, groups: int, beta: Any) -> None:
    nll, log_ratio = samples(6, 4)
    got = vf.iwae_loss(
        nll, log_ratio, groups=groups, elbo_weight=beta, gradient=gradient, reduction="none"
    ).loss
    pairs = zip(nll.T.tolist(), log_ratio.T.tolist(), strict=True)
    want = [oracle(*pair, groups, float(beta)) for pair in pairs]
    torch.testing.assert_close(got, torch.tensor(want, dtype=F64), rtol=1e-14, atol=1e-14)


def test_as_many_groups_as_samples_are_the_elbo() -> None:
    nll, log_ratio = samples(6, 4)
    for options in ({"groups": 6}, {"elbo_weight": 1.0}):
        loss = vf.iwae_loss(nll, log_ratio, reduction="none", **options).loss
        torch.testing.assert_close(loss, (nll + log_ratio).mean(0), rtol=1e-14, atol=1e-14)


def test_one_sample_is_its_own_loss() -> None:
    nll, log_ratio = samples(1, 4)
    loss, ess, weights = vf.iwae_loss(nll, log_ratio, reduction="none")
    torch.testing.assert_close(loss, (nll + log_ratio)[0], rtol=1e-15, atol=1e-15)
    assert (ess == 1).all() and (weights == 1).all()


def test_reductions_and_dimensions() -> None:
    nll, log_ratio = samples(5, 3, 4)
    for dim in (0, 1, 2, -1, -2):
        items = vf.iwae_loss(nll, log_ratio, dim=dim, reduction="none")
        moved = (t.movedim(dim, 0) for t in (nll, log_ratio))
        first = vf.iwae_loss(*moved, reduction="none")
        torch.testing.assert_close(items.loss, first.loss, rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(items.ess, first.ess)
        torch.testing.assert_close(items.weights, first.weights.movedim(0, dim))
        want = {
            "batchmean": items.loss.sum() / len(items.loss),
            "sum": items.loss.sum(),
            "mean": items.loss.mean(),
        }
        for reduction, value in want.items():
            loss = vf.iwae_loss(nll, log_ratio, dim=dim, reduction=reduction).loss
            torch.testing.assert_close(loss, value)
    alone = vf.iwae_loss(nll[:, 0, 0], log_ratio[:, 0, 0])
    assert alone.loss.shape == alone.ess.shape == ()


def test_the_effective_sample_size() -> None:
    nll = torch.tensor([[0.0, 0.0, 0.0], [0.0, 800.0, math.log(3.0)]], dtype=F64)
    loss, ess, weights = vf.iwae_loss(nll, torch.zeros_like(nll))
    torch.testing.assert_close(ess, torch.tensor([2.0, 1.0, 1.6], dtype=F64))
    torch.testing.assert_close(weights[:, 2], torch.tensor([0.75, 0.25], dtype=F64))
    grouped = vf.iwae_loss(nll, torch.zeros_like(nll), groups=2)
    assert (grouped.ess == 1).all() and (grouped.weights == 1).all()
    assert not ess.requires_grad and not weights.requires_grad and loss.dim() == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_16_bit_types_are_summed_in_float32(dtype: torch.dtype) -> None:
    nll, log_ratio = samples(3000, 4, dtype=dtype, requires_grad=True)
    terms = vf.iwae_loss(nll, log_ratio)
    wide = torch.promote_types(dtype, torch.float32)
    assert {t.dtype for t in terms} == {wide}
    want = vf.iwae_loss(nll.double(), log_ratio.double())
    tolerance = 1e-5 if wide == torch.float32 else 1e-13
    for got, value in zip(terms, want, strict=True):
        torch.testing.assert_close(got.double(), value, rtol=tolerance, atol=tolerance)
    terms.loss.backward()
    assert nll.grad is not None and nll.grad.dtype == dtype


def test_mixed_dtypes_promote() -> None:
    nll, log_ratio = samples(3, 4)
    assert vf.iwae_loss(nll.float(), log_ratio).loss.dtype == F64
    assert vf.iwae_loss(nll.half(), log_ratio.bfloat16()).loss.dtype == torch.float32


def test_losses_far_from_zero_keep_their_digits() -> None:
    """Images have losses of thousands of nats, whose exponentials are 0 or inf."""
    nll, log_ratio = samples(8, 4, dtype=torch.float32)
    near = vf.iwae_loss(nll.double(), log_ratio.double(), reduction="none").loss
    for shift in (-1e5, 1e5):
        far = vf.iwae_loss(nll.double() + shift, log_ratio.double(), reduction="none").loss
        torch.testing.assert_close(far - shift, near, rtol=0, atol=1e-9)
        far = vf.iwae_loss(nll + shift, log_ratio, reduction="none").loss
        assert (far.double() - shift - near).abs().max() < 0.03


# --------------------------------------------------------------------------------------------------
# Gradients
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"groups": 2, "elbo_weight": 0.3}, {"reduction": "none"}])
def test_gradcheck(options: dict[str, Any]) -> None:
    def loss(nll: Tensor, log_ratio: Tensor) -> Tensor:
        return vf.iwae_loss(nll, log_ratio, **options).loss

    inputs = samples(4, 3, requires_grad=True)
    assert torch.autograd.gradcheck(loss, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(loss, inputs)


@pytest.mark.parametrize(("gradient", "power"), [("standard", 1), ("doubly", 2)])
@pytest.mark.parametrize(("groups", "beta"), [(1, 0.0), (2, 0.3), (3, 0.0), (1, 1.0)])
def test_gradients_are_powers_of_the_weights(
    gradient: str, power: int, groups: int, beta: float
) -> None:
    nll, log_ratio = samples(6, 4, requires_grad=True)
    loss = vf.iwae_loss(
        nll, log_ratio, groups=groups, elbo_weight=beta, gradient=gradient, reduction="sum"
    ).loss
    want = slopes(-(nll + log_ratio).detach(), groups, beta, power)
    for got in torch.autograd.grad(loss, (nll, log_ratio)):
        torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_gradients_far_from_zero_keep_their_digits(dtype: torch.dtype) -> None:
    """torch.logsumexp loses digits, because it computes its derivative from a rounded result."""
    nll = (1e5 + torch.arange(4) / 8).to(dtype).requires_grad_()
    loss = vf.iwae_loss(nll, torch.zeros_like(nll)).loss
    (slope,) = torch.autograd.grad(loss, nll)
    want = (-torch.arange(4, dtype=F64) / 8).softmax(0)
    torch.testing.assert_close(slope.double(), want, rtol=4 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("gradient", ["standard", "doubly"])
def test_transforms(gradient: str) -> None:
    def loss(nll: Tensor, log_ratio: Tensor) -> Tensor:
        return vf.iwae_loss(nll, log_ratio, gradient=gradient, groups=2).loss

    inputs = samples(3, 6, 4)
    batched = vmap(grad(loss, (0, 1)))(*inputs)
    for i, pair in enumerate(zip(*inputs, strict=True)):
        leaves = [t.clone().requires_grad_() for t in pair]
        want = torch.autograd.grad(loss(*leaves), leaves)
        torch.testing.assert_close(tuple(b[i] for b in batched), want)
        torch.testing.assert_close(grad(loss, (0, 1))(*pair), want)
        _, tangent = jvp(loss, pair, pair)
        torch.testing.assert_close(tangent, (want[0] * pair[0] + want[1] * pair[1]).sum())


@pytest.mark.parametrize("gradient", ["standard", "doubly"])
def test_compiles_to_one_graph_for_every_value_of_the_weight(gradient: str) -> None:
    compilations: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        compilations.append(graph)
        return graph

    weight = torch.tensor(0.0)

    def loss(nll: Tensor, log_ratio: Tensor) -> vf.IWAETerms:
        return vf.iwae_loss(nll, log_ratio, gradient=gradient, elbo_weight=weight)

    torch._dynamo.reset()
    compiled = torch.compile(loss, backend=backend, fullgraph=True)
    inputs = samples(6, 4, requires_grad=True)
    for value in (0.0, 0.5, 1.0):
        weight.fill_(value)
        got, want = compiled(*inputs), loss(*inputs)
        torch.testing.assert_close(tuple(got), tuple(want))
        torch.testing.assert_close(
            torch.autograd.grad(got.loss, inputs), torch.autograd.grad(want.loss, inputs)
        )
    assert len(compilations) == 1


def test_no_value_is_read_by_the_host() -> None:
    """Reading the value of a meta tensor raises an error."""
    nll = torch.empty(6, 4, device="meta", requires_grad=True)
    weight = torch.empty((), device="meta")
    for gradient in ("standard", "doubly"):
        terms = vf.iwae_loss(nll, nll, groups=2, elbo_weight=weight, gradient=gradient)
        terms.loss.backward()
        assert terms.ess.shape == (4,) and terms.weights.shape == (6, 4)


# --------------------------------------------------------------------------------------------------
# Infinities
# --------------------------------------------------------------------------------------------------

# Each row contains the nll of two samples, followed by the expected loss, effective sample size and
# gradient for gradient="standard".
EDGES = [
    ([INF, 1.0], 1.0 + math.log(2.0), 1.0, [0.0, 1.0]),
    ([INF, INF], INF, 0.0, [0.0, 0.0]),
    ([-INF, 1.0], -INF, 1.0, [0.0, 0.0]),
    ([-INF, -INF], -INF, 2.0, [0.0, 0.0]),
    ([-INF, INF], -INF, 1.0, [0.0, 0.0]),
    ([3e38, 3e38], 3e38, 2.0, [0.5, 0.5]),
    ([NAN, 1.0], NAN, NAN, [NAN, NAN]),
]


@pytest.mark.parametrize("beta", [0.0, torch.tensor(0.0)], ids=["number", "tensor"])
@pytest.mark.parametrize("gradient", ["standard", "doubly"])
@pytest.mark.parametrize(("nll", "loss", "ess", "slope"), EDGES, ids=lambda x: str(x))
def test_infinities(
    nll: list[float], loss: float, ess: float, slope: list[float], gradient: str, beta: Any
) -> None:
    given = torch.tensor(nll, requires_grad=True)
    terms = vf.iwae_loss(given, torch.zeros(2), gradient=gradient, elbo_weight=beta)
    terms.loss.backward()
    power = 2 if gradient == "doubly" else 1
    same = {"rtol": 1e-6, "atol": 0, "equal_nan": True}
    torch.testing.assert_close(terms.loss, torch.tensor(loss), **same)
    torch.testing.assert_close(terms.ess, torch.tensor(ess), **same)
    torch.testing.assert_close(given.grad, torch.tensor(slope) ** power, **same)


@pytest.mark.parametrize("beta", [0.5, 1.0])
@pytest.mark.parametrize("kind", [float, torch.tensor], ids=["number", "tensor"])
def test_a_share_of_the_elbo_keeps_an_infinite_loss(beta: float, kind: Any) -> None:
    for nll, loss in (([INF, INF], INF), ([-INF, -INF], -INF), ([INF, 1.0], INF)):
        given = torch.tensor(nll, requires_grad=True)
        got = vf.iwae_loss(given, torch.zeros(2), elbo_weight=kind(beta)).loss
        assert got.item() == loss
        (slope,) = torch.autograd.grad(got, given)
        want = [0.5 * beta, 0.5 * beta]
        if nll[1] == 1.0:
            want[1] += 1.0 - beta
        assert slope.tolist() == pytest.approx(want)


def test_an_item_without_likelihood_leaves_the_others_alone() -> None:
    nll, log_ratio = samples(5, 3, requires_grad=True)
    spoiled = torch.where(torch.arange(3) == 1, INF, nll)
    got, want = (vf.iwae_loss(v, log_ratio, reduction="none").loss for v in (spoiled, nll))
    assert got[1] == INF and torch.equal(got[[0, 2]], want[[0, 2]])
    (slope,) = torch.autograd.grad(got.sum(), nll)
    (whole,) = torch.autograd.grad(want.sum(), nll)
    assert (slope[:, 1] == 0).all() and torch.equal(slope[:, [0, 2]], whole[:, [0, 2]])


# --------------------------------------------------------------------------------------------------
# A model with known evidence
# --------------------------------------------------------------------------------------------------


def test_at_the_true_posterior_the_bound_is_the_evidence() -> None:
    model = linear_gaussian(7)
    mu, logvar = (t.clone().requires_grad_() for t in model.posterior())
    z = vf.reparameterize(mu, logvar, eps=random(9, 7, 3, seed=5, dtype=F64), sample_shape=9)
    nll, log_ratio = model.nll(z), model.log_ratio(z, mu.detach(), logvar.detach())
    for options in ({}, {"groups": 3}, {"elbo_weight": 0.4}):
        loss, ess, _ = vf.iwae_loss(nll, log_ratio, reduction="none", **options)
        torch.testing.assert_close(-loss, model.log_evidence(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(ess, torch.full_like(ess, 9.0 / options.get("groups", 1)))
    # The weights do not depend on z here, so the doubly reparameterized gradient has no variance.
    loss = vf.iwae_loss(nll, log_ratio, gradient="doubly").loss
    for slope in torch.autograd.grad(loss, (mu, logvar), retain_graph=True):
        assert slope.abs().max() < 1e-12
    loss = vf.iwae_loss(nll, model.log_ratio(z, mu, logvar)).loss
    assert torch.autograd.grad(loss, mu)[0].abs().max() > 1e-2


Gradients = tuple[Tensor, Tensor, Tensor]


def draws_of_gradients(how: Callable[..., Gradients], draws: int = 20_000) -> Gradients:
    """Returns the gradients of mu, logvar and the decoder's bias for many draws of 4 samples."""
    model = linear_gaussian(1)
    offset = torch.tensor([0.5, -0.3, 0.2], dtype=F64)
    mu, logvar = ((t + offset).expand(draws, 3).clone().requires_grad_() for t in model.posterior())
    bias = model.bias.expand(draws, 5).clone().requires_grad_()
    model = model._replace(bias=bias)
    eps = random(4, draws, 3, seed=8, dtype=F64)
    return how(model, eps, mu, logvar, bias)


def standard(model: Any, eps: Tensor, mu: Tensor, logvar: Tensor, bias: Tensor) -> Gradients:
    z = vf.reparameterize(mu, logvar, eps=eps, sample_shape=4)
    terms = vf.iwae_loss(model.nll(z), model.log_ratio(z, mu, logvar), reduction="sum")
    return torch.autograd.grad(terms.loss, (mu, logvar, bias))


def by_densities(model: Any, eps: Tensor, mu: Tensor, logvar: Tensor, bias: Tensor) -> Gradients:
    """Returns the gradients of both backward passes, using log densities with a detached q."""
    z = vf.reparameterize(mu, logvar, eps=eps, sample_shape=4)
    pair = model.nll(z), model.log_ratio(z, mu.detach(), logvar.detach())
    loss = vf.iwae_loss(*pair, gradient="doubly", reduction="sum").loss
    of_encoder = torch.autograd.grad(loss, (mu, logvar), retain_graph=True)
    loss = vf.iwae_loss(*pair, reduction="sum").loss
    return (*of_encoder, *torch.autograd.grad(loss, (bias,)))


def at_sample(eps: Tensor, mu: Tensor, logvar: Tensor, *, stop_q: bool) -> tuple[Tensor, Tensor]:
    options: dict[str, Any] = {"estimator": "sample", "stop_q": stop_q, "reduction": "sample"}
    return vf.reparameterize_kl(mu, logvar, eps=eps, sample_shape=4, **options)


def two_passes(
    model: Any, eps: Tensor, mu: Tensor, logvar: Tensor, bias: Tensor, *, stop_q: bool = True
) -> Gradients:
    z, log_ratio = at_sample(eps, mu, logvar, stop_q=stop_q)
    nll = model.nll(z)
    doubly = vf.iwae_loss(nll, log_ratio, gradient="doubly", reduction="sum").loss
    doubly.backward(inputs=(mu, logvar), retain_graph=True)
    vf.iwae_loss(nll, log_ratio, reduction="sum").loss.backward(inputs=(bias,))
    return mu.grad, logvar.grad, bias.grad  # type: ignore[return-value]


def one_pass(model: Any, eps: Tensor, mu: Tensor, logvar: Tensor, bias: Tensor) -> Gradients:
    z, log_ratio = at_sample(eps, mu, logvar, stop_q=True)
    terms = vf.iwae_loss(model.nll(z), log_ratio, reduction="sum")
    z.register_hook(lambda slope: slope * terms.weights.unsqueeze(-1))
    log_ratio.register_hook(lambda slope: slope * terms.weights)
    terms.loss.backward()
    return mu.grad, logvar.grad, bias.grad  # type: ignore[return-value]


def test_the_doubly_reparameterized_gradient_is_unbiased_and_less_noisy() -> None:
    both = draws_of_gradients(standard), draws_of_gradients(two_passes)
    for index, (single, doubly) in enumerate(zip(*both, strict=True)):
        difference = single - doubly
        if index == 2:  # the decoder's gradient is the same in each draw
            torch.testing.assert_close(single, doubly, rtol=1e-12, atol=1e-12)
            continue
        assert (difference.mean(0).abs() < 5.0 * standard_error(difference)).all()
        assert doubly.var(0).sum() < 0.6 * single.var(0).sum()


def test_a_gradient_without_squared_weights_would_be_biased() -> None:
    """The test above would fail if the stopped parameters received the standard weights."""

    def wrong(model: Any, eps: Tensor, mu: Tensor, logvar: Tensor, bias: Tensor) -> Gradients:
        z, log_ratio = at_sample(eps, mu, logvar, stop_q=True)
        loss = vf.iwae_loss(model.nll(z), log_ratio, reduction="sum").loss
        return torch.autograd.grad(loss, (mu, logvar, bias))

    difference = draws_of_gradients(standard)[0] - draws_of_gradients(wrong)[0]
    assert (difference.mean(0).abs() > 5.0 * standard_error(difference)).any()


def test_a_doubly_reparameterized_gradient_without_stop_q_would_be_biased() -> None:
    both = (draws_of_gradients(h) for h in (standard, partial(two_passes, stop_q=False)))
    differences = [right - wrong for right, wrong in zip(*both, strict=True)][:2]
    for difference in differences:
        assert (difference.mean(0).abs() > 5.0 * standard_error(difference)).any()


@pytest.mark.parametrize("recipe", [two_passes, one_pass])
def test_the_recipes_have_the_gradients_of_detached_densities(recipe: Any) -> None:
    both = (draws_of_gradients(h, 50) for h in (recipe, by_densities))
    for got, want in zip(*both, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)


def test_the_example_of_the_documentation() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "likelihoods.md").read_text()
    block = re.search(r"### Several samples\n.*?```python\n(.*?)```", page, re.DOTALL)
    assert block is not None
    names: dict[str, Any] = {
        "torch": torch, "vf": vf, "decoder": torch.nn.Linear(3, 8), "x": torch.rand(5, 8),
        "mu": random(5, 3, seed=1), "logvar": random(5, 3, seed=2),
    }  # fmt: skip
    exec(block[1], names)
    assert names["loss"].shape == () and names["loss"].isfinite()
    assert names["effective_samples"].shape == (5,) and names["weights"].shape == (10, 5)
    spread = names["nll"] + names["log_ratio"]
    assert spread.min() < names["loss"] < spread.mean()


# --------------------------------------------------------------------------------------------------
# Errors
# --------------------------------------------------------------------------------------------------

X = torch.zeros(6, 4)
BAD_INPUT: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"nll": X.long()}, TypeError, "nll must be a floating-point tensor .* got torch.int64"),
    (
        {"log_ratio": X.bool()},
        TypeError,
        "log_ratio must be a floating-point tensor .* got torch.bool",
    ),
    ({"nll": 1.0}, TypeError, "nll must be a Tensor, got float"),
    ({"log_ratio": None}, TypeError, "log_ratio must be a Tensor, got NoneType"),
    (
        {"nll": X.to_sparse()},
        TypeError,
        "nll must be a strided tensor, got torch.sparse_coo; pass its .to_dense",
    ),
    (
        {"log_ratio": X[:, :1]},
        ValueError,
        r"log_ratio must have the shape of nll, \(6, 4\), got \(6, 1\)",
    ),
    (
        {"log_ratio": X.to("meta")},
        RuntimeError,
        "log_ratio must be on the device of nll, cpu, got meta",
    ),
    (
        {"nll": X.sum(), "log_ratio": X.sum()},
        ValueError,
        r"nll must have a dimension of samples, got shape \(\)",
    ),
    (
        {"nll": X[:0], "log_ratio": X[:0]},
        ValueError,
        r"nll must have at least 1 sample .* got shape \(0, 4\)",
    ),
    ({"dim": 2}, ValueError, "dim must be a dimension of nll, of shape .*, got 2"),
    ({"dim": "0"}, TypeError, "dim must be an int, got str"),
    ({"dim": (0,)}, TypeError, "dim must be an int, got tuple"),
    ({"groups": 4}, ValueError, "groups must divide the 6 samples, got 4"),
    ({"groups": 0}, ValueError, "groups must be at least 1, got 0"),
    ({"groups": 2.0}, TypeError, "groups must be an int, got float"),
    ({"elbo_weight": 1.5}, ValueError, "elbo_weight must be between 0 and 1, got 1.5"),
    ({"elbo_weight": -0.5}, ValueError, "elbo_weight must be between 0 and 1, got -0.5"),
    ({"elbo_weight": "1"}, TypeError, "elbo_weight must be a number, got str"),
    ({"elbo_weight": X}, ValueError, "elbo_weight must be a number or a 0-d tensor, got shape"),
    ({"elbo_weight": torch.tensor(1)}, TypeError, "elbo_weight must be a floating-point tensor or"),
    ({"elbo_weight": torch.tensor(1.0, requires_grad=True)}, ValueError, "must not require a"),
    ({"gradient": "dreg"}, ValueError, "gradient must be one of standard, doubly.*, got 'dreg'"),
    (
        {"reduction": "sample"},
        ValueError,
        "reduction must be one of batchmean, sum,.*, got 'sample'",
    ),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD_INPUT, ids=lambda x: str(x)[:40])
def test_bad_input(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        vf.iwae_loss(**({"nll": X, "log_ratio": X} | options))


def test_an_empty_batch_has_an_empty_loss() -> None:
    terms = vf.iwae_loss(X[:, :0], X[:, :0], reduction="none")
    assert terms.loss.shape == terms.ess.shape == (0,)
    assert vf.iwae_loss(X[:, :0], X[:, :0], reduction="sum").loss == 0


# --------------------------------------------------------------------------------------------------
# The module
# --------------------------------------------------------------------------------------------------


def test_the_module_is_the_function() -> None:
    nll, log_ratio = samples(4, 6)
    options: dict[str, Any] = {
        "groups": 3, "elbo_weight": 0.2, "gradient": "doubly", "reduction": "sum"
    }  # fmt: skip
    module = vf.nn.IWAELoss(1, **options)
    got, want = module(nll, log_ratio), vf.iwae_loss(nll, log_ratio, dim=1, **options)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    text = "dim=1, groups=3, elbo_weight=0.2, gradient='doubly', reduction='sum'"
    assert repr(module) == f"IWAELoss({text})" and repr(vf.nn.IWAELoss()) == "IWAELoss()"
    assert not module.state_dict()
    assert vf.reference.iwae_loss is vf.iwae_loss


def test_the_module_takes_a_schedule() -> None:
    nll, log_ratio = samples(4, 6)
    module = vf.nn.IWAELoss(elbo_weight=vf.nn.LinearSchedule(2, start=1.0, end=0.0))
    for value in (1.0, 0.5, 0.0):
        want = vf.iwae_loss(nll, log_ratio, elbo_weight=value).loss
        torch.testing.assert_close(module(nll, log_ratio).loss, want)
        module.elbo_weight.step()


def test_the_module_refuses_bad_options_when_it_is_made() -> None:
    for options in ({"groups": 0}, {"gradient": "x"}, {"elbo_weight": 2.0}, {"reduction": "x"}):
        with pytest.raises(ValueError, match=next(iter(options))):
            vf.nn.IWAELoss(**options)  # type: ignore[arg-type]
