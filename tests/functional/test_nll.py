"""Properties of all likelihoods: reductions, masks, weights, dtypes, layouts and transforms."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from conftest import DTYPES, LAYOUTS, REDUCTIONS, all_dims, random, reduced
from nll_cases import CASES, SHAPE, Case, Inputs, make
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.fx.experimental.proxy_tensor import make_fx

import vae_fused as vf

traced = pytest.mark.parametrize(
    "name",
    [
        "bernoulli",
        "gaussian",
        "laplace",
        "poisson, softmax",
        "nb",
        "zinb, probs",
        "student",
        "continuous bernoulli",
        "nb of logits",
        "logistic",
    ],
)
every = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
NAN = math.nan
MASK = torch.arange(24).view(SHAPE) % 5 != 0


def gradients(value: Tensor, inputs: Inputs) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, inputs.leaves)


# --------------------------------------------------------------------------------------------------
# Values
# --------------------------------------------------------------------------------------------------


@every
def test_the_reductions_reduce_the_elements(case: Case) -> None:
    inputs = make(case)
    elements = inputs.nll(case.kind, reduction="none")
    assert elements.shape == SHAPE and elements.dtype == torch.float64
    log_prob = case.kind.log_prob(inputs.outputs, inputs.target, library=inputs.library)
    assert torch.equal(log_prob, -elements)
    for reduction in REDUCTIONS:
        torch.testing.assert_close(
            inputs.nll(case.kind, reduction=reduction), reduced(elements, reduction)
        )
    for dims in all_dims(2):
        torch.testing.assert_close(inputs.nll(case.kind, dim=dims), elements.sum(dims))
    torch.testing.assert_close(inputs.nll(case.kind), elements.sum() / 4)


@every
def test_the_reference_is_the_same_function(case: Case) -> None:
    inputs = make(case)
    options: dict[str, Any] = {"library": inputs.library, "dim": 1, "mask": MASK}
    torch.testing.assert_close(
        vf.nll(inputs.outputs, inputs.target, case.kind, **options),
        vf.reference.nll(inputs.outputs, inputs.target, case.kind, **options),
    )


@every
def test_the_value_is_that_of_the_distribution(case: Case) -> None:
    inputs = make(case)
    distribution = case.kind.distribution(inputs.outputs, inputs.library)
    assert distribution.batch_shape == SHAPE
    if not case.kind.constants or getattr(case.kind, "eps", 0.0):
        return  # the likelihood is not normalized
    target = inputs.target
    if isinstance(case.kind, vf.likelihoods.Bernoulli):
        target = (target > 0.5).double()
    expected = distribution.log_prob(target)
    torch.testing.assert_close(
        case.kind.log_prob(inputs.outputs, target, library=inputs.library), expected
    )


@every
def test_gradients_to_any_order(case: Case) -> None:
    inputs = make(case)

    def call(*leaves: Tensor) -> Tensor:
        outputs, library = leaves[: len(case.shapes)], leaves[len(case.shapes) :]
        return vf.nll(
            outputs, inputs.target, case.kind, reduction="none", mask=MASK,
            library=library[0] if library else None,
        )  # fmt: skip

    modes = {"fast_mode": True, "check_forward_ad": True}
    assert gradcheck(call, inputs.leaves, **modes)
    assert gradgradcheck(call, inputs.leaves, fast_mode=True, check_fwd_over_rev=True)


@pytest.mark.parametrize(
    "name",
    [
        "bernoulli",
        "gaussian",
        "laplace",
        "gaussian, fixed",
        "student",
        "student, fixed",
        "continuous bernoulli",
    ],
)
def test_a_target_that_is_no_count_has_a_gradient(name: str) -> None:
    case = CASES[name]
    inputs = make(case)
    target = inputs.target.clone().requires_grad_()
    call = lambda x: vf.nll(inputs.outputs, x, case.kind, reduction="none")  # noqa: E731
    assert gradcheck(call, (target,))
    assert gradgradcheck(call, (target,))


# --------------------------------------------------------------------------------------------------
# Masks, weights, shapes
# --------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("mask", [MASK, MASK[:1], MASK[:, :1]], ids=["full", "row", "column"])
def test_masked_elements_are_0_whatever_they_hold(case: Case, mask: Tensor) -> None:
    clean = make(case)
    hidden = ~mask.expand(SHAPE)

    def spoilt(value: Tensor) -> Tensor:
        """Put NaN into the elements that are read only for masked elements of the result."""
        expanded = hidden
        while expanded.dim() > value.dim():
            expanded = expanded.all(0)
        for d in range(value.dim()):
            if value.shape[d] == 1:
                expanded = expanded.all(d, keepdim=True)
        return value.detach().masked_fill(expanded, NAN).requires_grad_()

    dirty = Inputs(
        tuple(spoilt(output) for output in clean.outputs),
        spoilt(clean.target).detach(),
        None if clean.library is None else spoilt(clean.library),
    )
    elements = clean.nll(case.kind, reduction="none", mask=mask)
    assert (elements[hidden] == 0.0).all()
    for reduction in REDUCTIONS:
        value = dirty.nll(case.kind, reduction=reduction, mask=mask)
        expected = reduced(elements, reduction)
        if reduction == "mean":
            expected = elements.sum() / (~hidden).sum()
        torch.testing.assert_close(value, expected)
        got = gradients(value.sum(), dirty)
        same = clean.nll(case.kind, reduction=reduction, mask=mask)
        for a, b in zip(got, gradients(same.sum(), clean), strict=True):
            torch.testing.assert_close(a, b)
    assert (got[0][hidden] == 0.0).all()


@every
def test_a_mask_of_nothing(case: Case) -> None:
    inputs = make(case)
    value = inputs.nll(case.kind, mask=torch.zeros(SHAPE, dtype=torch.bool))
    assert value.item() == 0.0
    assert all((g == 0.0).all() for g in gradients(value, inputs))


def test_a_softmax_leaves_masked_elements_out() -> None:
    case = CASES["poisson, softmax"]
    inputs = make(case)
    kept = inputs.nll(case.kind, mask=torch.arange(6) < 4, dim=1)
    alone = vf.nll(inputs.outputs[0][:, :4], inputs.target[:, :4], case.kind, dim=1,
                   library=inputs.library)  # fmt: skip
    torch.testing.assert_close(kept, alone)


@every
def test_a_weight_multiplies_the_elements(case: Case) -> None:
    inputs = make(case)
    elements = inputs.nll(case.kind, reduction="none")
    for shape in (SHAPE, (6,), (4, 1), ()):
        weight = random(*shape, seed=5)
        for reduction in REDUCTIONS:
            torch.testing.assert_close(
                inputs.nll(case.kind, reduction=reduction, weight=weight),
                reduced(elements * weight, reduction),
            )
    weight = torch.where(MASK, 2.0, NAN)
    got = inputs.nll(case.kind, weight=weight, mask=MASK)
    torch.testing.assert_close(got, 2.0 * inputs.nll(case.kind, mask=MASK))


@every
def test_samples_share_a_target(case: Case) -> None:
    inputs = make(case)
    factors = torch.tensor([0.9, 1.0, 1.1], dtype=torch.float64).view(3, 1, 1)
    outputs = (inputs.outputs[0] * factors, *inputs.outputs[1:])
    value = vf.nll(outputs, inputs.target, case.kind, dim=-1, library=inputs.library)
    assert value.shape == (3, 4)
    for i, factor in enumerate(factors):
        one = (inputs.outputs[0] * factor, *inputs.outputs[1:])
        expected = vf.nll(one, inputs.target, case.kind, dim=-1, library=inputs.library)
        torch.testing.assert_close(value[i], expected)


@every
def test_every_layout_has_the_same_values_and_gradients(case: Case) -> None:
    expected_inputs = make(case)
    expected = expected_inputs.nll(case.kind, reduction="sample")
    slopes = gradients(expected.sum(), expected_inputs)
    for name in ("transposed", "chunked last", "every other", "misaligned", "reversed"):
        inputs = make(case)
        first = LAYOUTS[name](inputs.outputs[0])
        value = vf.nll(
            (first, *inputs.outputs[1:]), LAYOUTS[name](inputs.target), case.kind,
            reduction="sample", library=inputs.library,
        )  # fmt: skip
        torch.testing.assert_close(value, expected)
        for a, b in zip(gradients(value.sum(), inputs), slopes, strict=True):
            torch.testing.assert_close(a, b)


@every
@pytest.mark.parametrize("shape", [(0, 6), (4, 0)])
def test_empty_tensors(case: Case, shape: tuple[int, int]) -> None:
    inputs = make(case)
    outputs = [inputs.outputs[0][: shape[0], : shape[1]]]
    for output in inputs.outputs[1:]:
        sizes = zip(output.shape, shape[2 - output.dim() :], strict=True)
        outputs.append(output[tuple(slice(min(old, new) if old > 1 else 1) for old, new in sizes)])
    library = inputs.library
    if library is not None and shape[0] == 0:
        library = library[:0]
    value = vf.nll(
        outputs, inputs.target[: shape[0], : shape[1]], case.kind, reduction="sum", library=library
    )
    assert value.item() == 0.0
    for gradient in torch.autograd.grad(value, inputs.leaves, allow_unused=True):
        assert gradient is None or (gradient == 0.0).all()


# --------------------------------------------------------------------------------------------------
# Dtypes
# --------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_16_bit_outputs_have_a_float32_loss(case: Case, dtype: torch.dtype) -> None:
    inputs = make(case, dtype)
    value = inputs.nll(case.kind)
    assert value.dtype == torch.promote_types(dtype, torch.float32)
    slopes = gradients(value, inputs)
    assert [g.dtype for g in slopes] == [t.dtype for t in inputs.leaves]
    wide = Inputs(
        tuple(o.detach().double().requires_grad_() for o in inputs.outputs),
        inputs.target.double(),
        None if inputs.library is None else inputs.library.detach().double().requires_grad_(),
    )
    torch.testing.assert_close(value.double(), wide.nll(case.kind), rtol=1e-5, atol=1e-6)
    tolerance = {"rtol": 4.0 * torch.finfo(dtype).eps, "atol": 8.0 * torch.finfo(dtype).eps}
    for a, b in zip(slopes, gradients(wide.nll(case.kind), wide), strict=True):
        torch.testing.assert_close(a.double(), b, **tolerance)


TARGETS = (*DTYPES, torch.uint8, torch.int32, torch.int64)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_targets_of_every_dtype(case: Case, dtype: torch.dtype) -> None:
    inputs = make(case, dtype)
    whole = torch.tensor([0, 1, 0, 1, 1, 0])  # a valid target for every likelihood
    expected = vf.nll(inputs.outputs, whole.to(dtype), case.kind, library=inputs.library)
    for other in TARGETS:
        value = vf.nll(inputs.outputs, whole.to(other), case.kind, library=inputs.library)
        assert value.dtype == torch.float32 and value.item() == expected.item()


def test_mixed_dtypes_promote() -> None:
    mean, theta = torch.rand(4, 6).bfloat16().requires_grad_(), torch.ones(6, requires_grad=True)
    value = vf.nll((mean, theta), torch.ones(4, 6), "negative_binomial")
    value.backward()
    assert value.dtype == torch.float32
    assert (mean.grad.dtype, theta.grad.dtype) == (torch.bfloat16, torch.float32)
    assert vf.nll((mean.double(), theta), torch.ones(6), "negative_binomial").dtype == torch.float64


@every
def test_autocast_changes_nothing(case: Case) -> None:
    inputs = make(case, torch.float32)
    expected = inputs.nll(case.kind)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = inputs.nll(case.kind)
    assert value.item() == expected.item()


# --------------------------------------------------------------------------------------------------
# Transforms
# --------------------------------------------------------------------------------------------------


@every
def test_meta_tensors_have_shapes(case: Case) -> None:
    inputs = make(case, torch.bfloat16)
    outputs = [o.detach().to("meta").requires_grad_() for o in inputs.outputs]
    library = None if inputs.library is None else inputs.library.to("meta")
    for reduction, shape in (("batchmean", ()), ("sample", (4,)), ("none", SHAPE)):
        value = vf.nll(
            outputs, inputs.target.to("meta"), case.kind, reduction=reduction, library=library
        )
        assert value.is_meta and value.shape == shape and value.dtype == torch.float32
    slopes = torch.autograd.grad(value.sum(), outputs)
    assert [g.shape for g in slopes] == [o.shape for o in outputs]


@every
def test_torch_func(case: Case) -> None:
    inputs = make(case)
    outputs = tuple(o.detach() for o in inputs.outputs)
    library = None if inputs.library is None else inputs.library.detach()

    def one(first: Tensor, x: Tensor, size: Tensor | None) -> Tensor:
        rest = tuple(o[0] if o.dim() == 2 else o for o in outputs[1:])
        return vf.nll((first, *rest), x, case.kind, reduction="sum", library=size)

    dims = (0, 0, None if library is None else 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns if it calls an operator slice by slice
        value = torch.vmap(one, dims)(outputs[0], inputs.target, library)
    slope = torch.vmap(torch.func.grad(one), dims)(outputs[0], inputs.target, library)
    curvature = torch.vmap(
        torch.func.grad(lambda *a: torch.func.grad(one)(*a).sum()), dims
    )(outputs[0], inputs.target, library)  # fmt: skip
    for i in range(SHAPE[0]):
        arguments = (outputs[0][i], inputs.target[i], None if library is None else library[i])
        first = arguments[0].clone().requires_grad_()
        expected = one(first, *arguments[1:])
        torch.testing.assert_close(value[i], expected)
        (by_first,) = torch.autograd.grad(expected, first, create_graph=True)
        torch.testing.assert_close(slope[i], by_first)
        if by_first.requires_grad:
            (twice,) = torch.autograd.grad(by_first.sum(), first)
            torch.testing.assert_close(curvature[i], twice)


@traced
def test_make_fx_traces_values_and_gradients(name: str) -> None:
    case = CASES[name]

    def call(first: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        value = vf.nll(
            (first, *inputs.outputs[1:]), x, case.kind, library=inputs.library, mask=MASK
        )
        return value, torch.autograd.grad(value, first)[0]

    inputs = make(case, torch.float32)
    graph = make_fx(call)(inputs.outputs[0], inputs.target)
    other = make(case, torch.float32, seed=7)
    for got, expected in zip(
        graph(other.outputs[0], other.target), call(other.outputs[0], other.target), strict=True
    ):
        torch.testing.assert_close(got, expected)


@traced
def test_compile_captures_one_graph(name: str) -> None:
    case = CASES[name]

    def call(first: Tensor, x: Tensor) -> Tensor:
        return vf.nll(
            (first, *inputs.outputs[1:]), x, case.kind, reduction="sample",
            library=inputs.library, mask=MASK,
        )  # fmt: skip

    torch._dynamo.reset()
    inputs = make(case, torch.float32)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    value, expected = (f(inputs.outputs[0], inputs.target) for f in (compiled, call))
    torch.testing.assert_close(value, expected)
    for a, b in zip(gradients(value.sum(), inputs), gradients(expected.sum(), inputs), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.slow
def test_inductor_compiles_a_likelihood_of_counts() -> None:
    case = CASES["poisson, softmax"]

    def call(first: Tensor, x: Tensor) -> Tensor:
        return vf.nll(
            (first, *inputs.outputs[1:]), x, case.kind, reduction="sample", library=inputs.library
        )

    torch._dynamo.reset()
    inputs = make(case, torch.float32)
    value, expected = (
        f(inputs.outputs[0], inputs.target) for f in (torch.compile(call, fullgraph=True), call)
    )
    torch.testing.assert_close(value, expected)
    for a, b in zip(gradients(value.sum(), inputs), gradients(expected.sum(), inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
