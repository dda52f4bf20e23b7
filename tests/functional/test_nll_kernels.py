"""Compares the likelihood kernels with the eager PyTorch formulas, and checks bitwise equality."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import DTYPES, native
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import vae_fused as vf

pytestmark = native

L = vf.likelihoods
INF = math.inf
# Each likelihood, with a function per output that computes it from uniform values in (0, 1).
POSITIVE, REAL, PROBS = (lambda u: 0.1 + 2 * u), (lambda u: 3 * u - 1.5), (lambda u: u)
KINDS: dict[str, tuple[L.Likelihood, list[Callable[[Tensor], Tensor]]]] = {
    "bernoulli": (L.Bernoulli(), [REAL]),
    "gaussian": (L.Gaussian(), [REAL, REAL]),
    "gaussian of softplus": (L.Gaussian(vf.Scale("softplus", std_floor=0.1)), [REAL, REAL]),
    "gaussian of fixed sigma": (L.Gaussian(sigma=0.5), [REAL]),
    "laplace": (L.Laplace(), [REAL, REAL]),
    "laplace without constants": (L.Laplace(sigma=2.0, constants=False), [REAL]),
    "poisson": (L.Poisson(), [REAL]),
    "poisson of rate": (L.Poisson("identity", constants=False), [POSITIVE]),
    "poisson of softmax": (L.Poisson("softmax"), [REAL]),
    "nb": (L.NegativeBinomial(), [POSITIVE, POSITIVE]),
    "nb of scvi": (L.NegativeBinomial(eps=1e-8, dispersion_max=2.0), [POSITIVE, POSITIVE]),
    "nb of softmax": (L.NegativeBinomial("softmax", dispersion="exp"), [REAL, REAL]),
    "nb of softplus": (
        L.NegativeBinomial("softplus", dispersion="softplus", constants=False),
        [REAL, REAL],
    ),
    "zinb": (L.ZeroInflatedNegativeBinomial(), [POSITIVE, POSITIVE, REAL]),
    "zinb of softmax": (
        L.ZeroInflatedNegativeBinomial("softmax", dispersion="exp", zero_inflation="probs"),
        [REAL, REAL, PROBS],
    ),
    "student": (L.StudentT(), [REAL, REAL, POSITIVE]),
    "student of softplus": (
        L.StudentT("softplus", freedom="softplus", constants=False),
        [REAL, REAL, REAL],
    ),
    "student of fixed df": (L.StudentT(df=2.5), [REAL, REAL]),
    "student of fixed sigma": (L.StudentT(sigma=0.5, df=30.0), [REAL]),
    "continuous bernoulli": (L.ContinuousBernoulli(), [lambda u: 12 * u - 6]),
    "nb of logits": (L.NegativeBinomialLogits(), [POSITIVE, REAL]),
    "nb of logits without constants": (
        L.NegativeBinomialLogits(constants=False),
        [POSITIVE, REAL],
    ),
    "logistic": (L.DiscretizedLogistic(), [REAL, lambda u: 4 * u - 4]),
    "logistic of 2 bits": (L.DiscretizedLogistic(2, log_scale_min=-1.0), [REAL, REAL]),
}


def uniform(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def make(
    name: str, shape: tuple[int, ...], second: tuple[int, ...] | None = None
) -> tuple[L.Likelihood, list[Tensor], Tensor, dict[str, Any]]:
    """Returns a likelihood, its outputs and target in float64, and its keyword arguments."""
    kind, makers = KINDS[name]
    outputs = [
        maker(uniform(*(shape if k == 0 or second is None else second), seed=k))
        for k, maker in enumerate(makers)
    ]
    target = uniform(*shape, seed=7)
    if isinstance(kind, L.DiscretizedLogistic):
        steps = 2**kind.bits - 1
        target = torch.round(target * steps) * 2 / steps - 1
    elif not kind.target_has_gradient:
        target = torch.where(target > 0.6, (target * 30).floor(), 0.0)
    more = {"library": uniform(*shape[:-1], 1, seed=8)} if kind.has_library else {}
    return kind, outputs, target, more


def compared(
    kind: L.Likelihood, outputs: list[Tensor], target: Tensor, more: dict[str, Any], tol: float
) -> None:
    """Compares the kernels' value and all gradients with those of the formulas."""
    found = []
    for function in (vf.nll, vf.reference.nll):
        leaves = [t.detach().clone().requires_grad_() for t in outputs]
        x = target.detach().clone()
        if kind.target_has_gradient and x.is_floating_point():
            x.requires_grad_()
        given = dict(more)
        if "library" in more:
            given["library"] = more["library"].detach().clone().requires_grad_()
        value = function(leaves if len(leaves) > 1 else leaves[0], x, kind, **given)
        inputs_with_grad = [
            t for t in (*leaves, x, given.get("library")) if t is not None and t.requires_grad
        ]
        grads = torch.autograd.grad(value, inputs_with_grad, torch.ones_like(value))
        found.append([value, *grads])
    for ours, theirs in zip(*found, strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        scale = theirs.double().abs().mean().item() + 1e-30
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=tol, atol=tol * scale)


@pytest.mark.parametrize("reduction", ["batchmean", "none", "sample", "mean"])
@pytest.mark.parametrize("name", KINDS)
def test_the_kernels_compute_the_formulas(name: str, reduction: str) -> None:
    kind, outputs, target, more = make(name, (9, 700))
    compared(kind, outputs, target, {**more, "reduction": reduction}, 1e-9)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", KINDS)
def test_every_dtype_is_computed_in_its_arithmetic(name: str, dtype: torch.dtype) -> None:
    kind, outputs, target, more = make(name, (5, 300))
    outputs = [t.to(dtype) for t in outputs]
    wide = torch.promote_types(dtype, torch.float32)
    target = target.to(wide if kind.target_has_gradient else dtype)
    more = {key: value.to(wide) for key, value in more.items()}
    tolerance = {torch.float64: 1e-9, torch.float32: 3e-5, torch.float16: 4e-3}
    compared(kind, outputs, target, more, tolerance.get(dtype, 3e-2))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["poisson", "nb of softmax", "zinb", "nb of logits"])
def test_counts_of_any_dtype_are_the_same_counts(name: str, dtype: torch.dtype) -> None:
    kind, outputs, target, more = make(name, (6, 1100))
    whole = vf.nll(outputs if len(outputs) > 1 else outputs[0], target, kind, **more)
    other = vf.nll(outputs if len(outputs) > 1 else outputs[0], target.to(dtype), kind, **more)
    assert torch.equal(whole, other)


# `second` is the shape of all parameters but the first. In the last two cases, the gradients are
# sums along neither rows nor columns.
@pytest.mark.parametrize(
    ("shape", "second"),
    [
        ((40, 2500), (2500,)),
        ((40, 2500), (40, 1)),
        ((40, 2500), (1, 1)),
        ((3, 5, 600), (600,)),
        ((3, 5, 600), (5, 600)),
        ((3, 5, 600), (5, 1)),
        ((2, 3, 4, 65), (3, 1, 1)),
        ((3, 5, 600), (3, 1, 600)),
        ((2, 3, 4, 65), (1, 3, 1, 65)),
    ],
)
@pytest.mark.parametrize(
    "name", ["gaussian", "nb", "nb of softmax", "zinb of softmax", "student", "logistic"]
)
def test_a_broadcast_parameter_has_the_sum_as_its_gradient(
    name: str, shape: tuple[int, ...], second: tuple[int, ...]
) -> None:
    kind, outputs, target, more = make(name, shape, second)
    compared(kind, outputs, target, more, 1e-9)


@pytest.mark.parametrize(
    ("total", "logits"),
    [((700,), (9, 700)), ((9, 1), (9, 700)), ((), (9, 700)), ((9, 700), (700,)), ((9, 1), (700,))],
)
def test_total_count_and_logits_broadcast_together(
    total: tuple[int, ...], logits: tuple[int, ...]
) -> None:
    kind = L.NegativeBinomialLogits()
    outputs = [POSITIVE(uniform(*total, seed=1)), REAL(uniform(*logits, seed=2))]
    target = torch.where(uniform(9, 700) > 0.6, (uniform(9, 700) * 30).floor(), 0.0)
    compared(kind, outputs, target, {}, 1e-9)
    compared(kind, outputs, target, {"reduction": "sample", "mask": target < 25}, 1e-9)
    q = kind.distribution(outputs)
    assert q.batch_shape == (9, 700)
    torch.testing.assert_close(kind.log_prob(outputs, target), q.log_prob(target))


@pytest.mark.parametrize("name", ["bernoulli", "nb of softmax", "zinb"])
def test_masked_elements_are_left_out_whatever_they_hold(name: str) -> None:
    kind, outputs, target, more = make(name, (8, 900))
    mask = uniform(8, 900, seed=9) > 0.3
    target = torch.where(mask, target, float("nan"))
    outputs[0] = torch.where(mask, outputs[0], float("nan"))
    more |= {"mask": mask, "weight": uniform(8, 1, seed=10), "reduction": "mean"}
    compared(kind, outputs, target, more, 1e-9)


@pytest.mark.parametrize("name", ["gaussian", "nb of softmax"])
def test_strides_do_not_matter(name: str) -> None:
    kind, outputs, target, more = make(name, (12, 520))
    views = [t.t().contiguous().t() for t in outputs]
    apart = torch.stack([target, target], -1)[..., 0]
    compared(kind, views, apart, more, 1e-9)


@pytest.mark.parametrize("name", ["bernoulli", "zinb of softmax"])
def test_bits_depend_on_no_number_of_threads(name: str, threads: Callable[[int], None]) -> None:
    kind, outputs, target, more = make(name, (70, 3000), (3000,))
    found = []
    for number in (1, 2, 3):
        threads(number)
        leaves = [t.float().requires_grad_() for t in outputs]
        given = {key: value.float() for key, value in more.items()}
        value = vf.nll(leaves if len(leaves) > 1 else leaves[0], target.float(), kind, **given)
        found.append([value, *torch.autograd.grad(value, leaves)])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("name", KINDS)
def test_the_numbers_of_a_kind_are_that_kind(name: str) -> None:
    kind, outputs = KINDS[name]
    assert L.Likelihood.unpacked(kind.packed, len(outputs)) == kind


@pytest.mark.parametrize("name", KINDS)
def test_all_optional_tensors_together(name: str) -> None:
    """The backward pass of a ZINB with a softmax has 13 operands, the most of any call."""
    kind, makers = KINDS[name]
    torch.manual_seed(0)
    leaves = [make(torch.rand(5, 37, dtype=torch.float64)).requires_grad_() for make in makers]
    more: dict[str, Any] = {"mask": torch.rand(5, 37) < 0.9, "weight": torch.rand(5, 37)}
    more["weight"] = more["weight"].double()
    if kind.has_library:
        more["library"] = torch.zeros(5, 1, dtype=torch.float64, requires_grad=True)
        leaves.append(more["library"])
    outputs = leaves[: kind.output_count]
    target = torch.poisson(torch.rand(5, 37, dtype=torch.float64))
    grads = []
    for reference in (False, True):
        loss = vf.nll(outputs if len(outputs) > 1 else outputs[0], target, kind, **more,
                      _reference=reference)  # fmt: skip
        grads.append(torch.autograd.grad(loss, leaves))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_checkpoint_may_end_with_a_loss() -> None:
    """A checkpoint stops recomputation with an exception, which must not be caught."""
    logits = torch.randn(4, 5, requires_grad=True)
    x = torch.rand(4, 5)
    loss = checkpoint(lambda o: vf.nll(o, x, "bernoulli"), logits, use_reentrant=False)
    (grad,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(grad, (torch.sigmoid(logits) - x).detach() / 4)


def test_the_gradient_of_a_target_has_the_digits_of_the_target() -> None:
    mean = torch.zeros(3, dtype=torch.float16, requires_grad=True)
    target = torch.tensor([1.3, -0.7, -1.1], requires_grad=True)
    loss = vf.nll(mean, target, L.Gaussian(sigma=1e-3), reduction="sum")
    (grad,) = torch.autograd.grad(loss, target)
    torch.testing.assert_close(grad, 1e6 * target.detach())


@pytest.mark.parametrize("log_theta", [-50.0, -60.0, -80.0, -100.0, -500.0, -INF])
def test_a_tiny_theta_contributes_its_logarithm(log_theta: float) -> None:
    """For a tiny theta, ln Gamma(theta) is -ln theta up to rounding."""
    raw = torch.tensor([log_theta], requires_grad=True)
    outputs, three = (torch.ones(1), raw), torch.tensor([3.0])
    loss = vf.nll(outputs, three, L.NegativeBinomial(dispersion="exp"), reduction="sum")
    assert loss.item() == pytest.approx(math.log(3.0) - log_theta, rel=1e-6)


def test_a_scale_is_not_left_out_silently() -> None:
    mean: Any = (torch.zeros(3), None)
    with pytest.raises(TypeError, match="output's raw must be a Tensor, got NoneType"):
        vf.nll(mean, torch.zeros(3), "gaussian")


@pytest.mark.parametrize("library", [-90.0, -1000.0, -INF])
@pytest.mark.parametrize("name", ["poisson of softmax", "nb of softmax", "zinb of softmax"])
def test_a_cell_without_counts_has_no_gradient(name: str, library: float) -> None:
    """The log library size of such a cell is minus infinity."""
    kind, makers = KINDS[name]
    leaves = [make(torch.rand(2, 5)).requires_grad_() for make in makers]
    counts = torch.tensor([[0.0] * 5, [1.0, 2.0, 0.0, 0.0, 3.0]])
    sizes = torch.tensor([[library], [0.5]], requires_grad=True)
    loss = vf.nll(leaves if len(leaves) > 1 else leaves[0], counts, kind, library=sizes)
    grads = torch.autograd.grad(loss, [*leaves, sizes])
    assert loss.isfinite() and all(g.isfinite().all() for g in grads)
    assert grads[0][0].abs().max() < 1e-30 and grads[0][1].abs().min() > 0


@pytest.mark.parametrize("name", KINDS)
def test_the_operators_are_what_they_declare(name: str) -> None:
    """``opcheck`` tests the schema, registrations, fake-tensor shapes and traced gradients."""
    kind, outputs, target, more = make(name, (3, 5))
    leaves = [t.requires_grad_() for t in kind.ordered(outputs)]
    output, second, third = (*leaves, None, None)[:3]
    call = (output, second, third, target, more.get("library"), None, None)
    numbers = {"reduction": "sample", "dim": None, "options": kind.packed}
    torch.library.opcheck(torch.ops.vae_fused.nll.default, call, numbers)
    rows = torch.ops.vae_fused.nll(*call, **numbers)[1].detach()
    grad = torch.ones(3, dtype=torch.float64)
    mask = [t is not None for t in (output, second, third)] + [kind.target_has_gradient, False]
    detached = tuple(None if t is None else t.detach() for t in call)
    torch.library.opcheck(
        torch.ops.vae_fused.nll_backward.default, (grad, *detached, rows),
        {**numbers, "output_mask": mask},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("number", "value", "outputs", "message"),
    [
        ("df", 0.0, 2, "as many tensors as the likelihood of kind 6 has, got 2"),
        ("df", 3.0, 3, "as many tensors as the likelihood of kind 6 has, got 3"),
        ("df", -1.0, 3, "df must be at least 0, got -1"),
        ("bits", 17.0, 2, "bits must be between 1 and 16, got 17"),
        ("bits", 0.0, 2, "bits must be between 1 and 16, got 0"),
        ("log_scale_min", 60.0, 2, "log_scale_min must be between -50 and 50, got 60"),
        ("kind", 10.0, 2, "kind of a likelihood must be an integer between 0 and 9, got 10"),
    ],
)
def test_the_operator_refuses_numbers_that_no_kind_has(
    number: str, value: float, outputs: int, message: str
) -> None:
    scopes, names, _ = torch.ops.vae_fused.likelihood_options()
    places = {n: k for k, (s, n) in enumerate(zip(scopes, names, strict=True)) if not s}
    kind = 6.0 if number == "df" else 9.0  # Student-t, discretized logistic
    options = {"kind": kind, number: value}
    packed = [x for name, v in options.items() for x in (float(places[name]), v)]
    tensors = [torch.zeros(3)] * outputs + [None] * (3 - outputs)
    with pytest.raises(ValueError, match=message):
        torch.ops.vae_fused.nll(
            *tensors, torch.zeros(3), None, None, None, reduction="sum", dim=None, options=packed
        )


@pytest.mark.parametrize("columns", [63, 64, 80, 784, 1000, 2048, 2050, 5000])
@pytest.mark.parametrize("spread", [3.0, 30.0])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_sums_of_a_bernoulli_keep_the_digits_of_small_values(
    dtype: torch.dtype, masked: bool, spread: float, columns: int, device: str
) -> None:
    """In long rows, eight elements share a logarithm. A confident model has values of 1e-13."""
    generator = torch.Generator().manual_seed(columns)
    logits = spread * torch.randn(5, columns, generator=generator, dtype=torch.float64).sign()
    logits = logits + torch.randn(5, columns, generator=generator, dtype=torch.float64)
    logits, x = logits.to(dtype), (logits > 0).to(dtype)  # every value is ln(1 + e^-|l|)
    mask = torch.rand(5, columns, generator=generator) < 0.7 if masked else None
    if mask is not None:
        logits = logits.masked_fill(~mask, math.nan)
    kept = torch.log1p(torch.exp(-logits.double().abs()))
    want = (kept if mask is None else kept.masked_fill(~mask, 0.0)).sum(1)
    given = {} if mask is None else {"mask": mask.to(device)}
    got = vf.nll(logits.to(device), x.to(device), "bernoulli", dim=1, **given)
    bound = 1e-6 if dtype == torch.float32 else 1e-15 * 4
    torch.testing.assert_close(got.cpu().double(), want, rtol=bound, atol=0.0)
    total = vf.nll(logits.to(device), x.to(device), "bernoulli", reduction="sum", **given)
    torch.testing.assert_close(total.cpu().double(), want.sum(), rtol=bound, atol=0.0)


@pytest.mark.parametrize("columns", [64, 128, 784, 5000])
def test_an_infinite_or_nan_logit_of_a_long_row_is_that_of_its_element(columns, device):
    logits, x = torch.zeros(4, columns, device=device), torch.ones(4, columns, device=device)
    logits[0, 7], logits[1, 7], logits[2, 7], x[1, 7] = INF, INF, math.nan, 0.0
    rows = vf.nll(logits, x, "bernoulli", dim=1)
    one = (columns - 1) * math.log(2)
    assert rows[0].item() == pytest.approx(one, rel=1e-6)
    assert rows[1].item() == INF and rows[2].isnan()
    assert rows[3].item() == pytest.approx(columns * math.log(2), rel=1e-6)


def test_the_logarithm_of_a_softplus_keeps_double_precision(device):
    """ln ln(1 + e^u) = u + ln(1 - e^u / 2 + ...), which rounds to u only below -37."""
    raw = torch.tensor([-16.0, -18.0, -25.0, -36.0, -38.0], dtype=torch.float64, device=device)
    counts = torch.full((5,), 1e6, dtype=torch.float64, device=device)
    kind = L.Poisson("softplus", constants=False)
    got = vf.nll(raw, counts, kind, reduction="none")
    exact = torch.exp(raw) - counts * (raw + torch.log1p(-torch.exp(raw) / 2))
    torch.testing.assert_close(got, exact, rtol=2e-15, atol=0.0)
