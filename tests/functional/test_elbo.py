"""Compares elbo_loss with its terms, which the reference computes separately in float64."""

from __future__ import annotations

import inspect
from typing import Any

import nll_cases
import pytest
import torch
import torch._dynamo.testing
from conftest import native, random
from torch import Tensor

import vae_fused as vf
from vae_fused import likelihoods as k
from vae_fused import reference

# Every likelihood, with a softmax in some cases and with broadcast parameters in others.
KINDS = [
    "bernoulli", "gaussian", "gaussian, one scale", "laplace", "poisson", "nb", "nb, softmax",
    "zinb, softmax", "student", "continuous bernoulli", "nb of logits", "logistic",
]  # fmt: skip
SCHEDULES: dict[str, Any] = {"number": 0.375, "tensor": torch.tensor(0.375)}
KLS = ("0-d", "sample", "elements", "posterior")
BATCH = nll_cases.SHAPE[0]


def kl_of(how: str, dtype: torch.dtype) -> dict[str, Tensor]:
    shape = {"0-d": (), "sample": (BATCH,), "elements": (BATCH, 2, 3), "posterior": (BATCH, 3)}[how]
    if how == "posterior":
        mu, raw = (random(*shape, seed=seed).to(dtype).requires_grad_() for seed in (31, 32))
        return {"mu": mu, "raw": raw}
    return {"kl": (random(*shape, seed=33).abs() + 0.1).to(dtype).requires_grad_()}


def terms_apart(
    inputs: nll_cases.Inputs, kind: k.Likelihood, kl: dict[str, Tensor], beta: Any, capacity: Any,
    reduction: str, mask: Tensor | None, weight: Tensor | None,
) -> vf.ELBOTerms:  # fmt: skip
    """Computes the terms as a user would, all in float64."""

    def reduced(value: Tensor) -> Tensor:
        if reduction == "sample":
            return value
        total = value.sum() / (BATCH if reduction == "batchmean" else 1)
        if reduction != "mean":
            return total
        shape = inputs.outputs[0].shape
        return total / (inputs.outputs[0].numel() if mask is None else mask.expand(shape).sum())

    nll = reference.nll(
        inputs.outputs, inputs.target, kind, reduction="none", mask=mask, weight=weight,
        library=inputs.library,
    ).flatten(1).sum(1)  # fmt: skip
    if "mu" in kl:
        of_sample = reference.gaussian_kl(kl["mu"], kl["raw"], reduction="sample")
    else:
        of_sample = kl["kl"] if kl["kl"].dim() < 2 else kl["kl"].flatten(1).sum(1)
    is_mean = of_sample.dim() == 0 or ("mu" in kl and reduction != "sample")
    if is_mean:  # the penalty of the mean, repeated for each item in the batch
        of_sample = of_sample if of_sample.dim() == 0 else of_sample.mean()
        penalty = (of_sample if capacity is None else (of_sample - capacity).abs()).expand(BATCH)
        of_sample = of_sample.expand(BATCH)
    else:
        penalty = of_sample if capacity is None else (of_sample - capacity).abs()
    return vf.ELBOTerms(reduced(nll) + beta * reduced(penalty), reduced(nll), reduced(of_sample))


def gradients(terms: vf.ELBOTerms, leaves: list[Tensor], **options: Any) -> tuple[Tensor, ...]:
    """Returns the gradients of all three results, each multiplied by a different factor."""
    factors = (1.0, 0.3, -0.7)
    total = sum(f * term.sum() for f, term in zip(factors, terms, strict=True))
    return torch.autograd.grad(total, leaves, **options)  # type: ignore[arg-type]


# test_bad_input covers the invalid combinations.
WAYS = [
    (how, reduction, grad)
    for how in KLS
    for reduction in ("batchmean", "sum", "mean", "sample")
    for grad in ("backward", "forward")
    if reduction != "sample" or (how != "0-d" and grad == "backward")
]


@pytest.mark.parametrize(("how", "reduction", "grad"), WAYS)
@pytest.mark.parametrize("name", KINDS)
def test_the_loss_is_its_terms(name: str, how: str, reduction: str, grad: str) -> None:
    case = nll_cases.CASES[name]
    shape = case.shapes[0]
    masks = (None, random(*shape, seed=40) > -1.0, random(shape[-1], seed=41) > -1.0)
    weights = (None, random(shape[-1], seed=42).abs())
    capacities = (None, 1.5, torch.tensor(1.5))
    first = WAYS.index((how, reduction, grad))  # pairs each mask with each capacity
    for number, mask in enumerate(masks):
        capacity = capacities[(number + first) % 3]
        weight, beta = weights[number % 2], list(SCHEDULES.values())[number % 2]
        inputs, kl = nll_cases.make(case), kl_of(how, torch.float64)
        if isinstance(beta, Tensor):
            beta = beta.double().requires_grad_()
        leaves = [*inputs.leaves, *kl.values(), *([beta] if isinstance(beta, Tensor) else [])]
        got = vf.elbo_loss(
            inputs.outputs, inputs.target, likelihood=case.kind, library=inputs.library, beta=beta,
            capacity=capacity, reduction=reduction, target_mask=mask, weight=weight, grad=grad,
            **kl,
        )  # fmt: skip
        want = terms_apart(inputs, case.kind, kl, beta, capacity, reduction, mask, weight)
        torch.testing.assert_close(tuple(got), tuple(want), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(
            gradients(got, leaves), gradients(want, leaves), rtol=1e-9, atol=1e-10
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["bernoulli", "gaussian", "nb, softmax", "zinb"])
def test_narrow_dtypes_are_those_of_float64_rounded(name: str, dtype: torch.dtype) -> None:
    case = nll_cases.CASES[name]
    inputs, kl = nll_cases.make(case, dtype), kl_of("sample", torch.float32)
    leaves = [*inputs.leaves, *kl.values()]
    wide = nll_cases.Inputs(
        tuple(t.detach().double().requires_grad_() for t in inputs.outputs),
        inputs.target.double(),
        None if inputs.library is None else inputs.library.detach().double().requires_grad_(),
    )
    wide_kl = {"kl": kl["kl"].detach().double().requires_grad_()}
    want = terms_apart(wide, case.kind, wide_kl, 0.5, 1.5, "batchmean", None, None)
    for grad in ("backward", "forward") if dtype != torch.float16 else ("backward",):
        got = vf.elbo_loss(
            inputs.outputs, inputs.target, likelihood=case.kind, library=inputs.library, beta=0.5,
            capacity=1.5, grad=grad, **kl,
        )  # fmt: skip
        assert all(term.dtype == torch.float32 for term in got)
        torch.testing.assert_close([t.double() for t in got], list(want), rtol=1e-4, atol=1e-4)
        eps = torch.finfo(dtype).eps
        exact_grads = gradients(want, [*wide.leaves, *wide_kl.values()], retain_graph=True)
        for narrow, exact in zip(gradients(got, leaves), exact_grads, strict=True):
            torch.testing.assert_close(narrow.double(), exact, rtol=4 * eps, atol=1e-4)


def bernoulli(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    logits = random(6, 700, seed=1).to(dtype).requires_grad_()
    target = torch.sigmoid(random(6, 700, seed=2))
    return logits, target, random(6, seed=3).abs().requires_grad_()


def test_free_bits() -> None:
    logits, target, _ = bernoulli(torch.float64)
    mu, raw = (random(6, 4, seed=s, dtype=torch.float64).requires_grad_() for s in (4, 5))
    elements = reference.gaussian_kl(mu, raw, reduction="none")
    want = {
        "element": elements.clamp_min(0.3).sum() / 6,
        "sample": elements.sum(1).clamp_min(2.0).mean(),
        "dimension": elements.mean(0).clamp_min(0.6).sum(),
    }
    kls = {"element": elements, "sample": elements.sum(1), "dimension": elements}
    for per, bits in (("element", 0.3), ("sample", 2.0), ("dimension", 0.6)):
        for free_bits in (bits, torch.tensor(bits, dtype=torch.float64)):
            common: dict[str, Any] = {
                "likelihood": "bernoulli", "free_bits": free_bits, "free_bits_per": per
            }  # fmt: skip
            from_posterior = vf.elbo_loss(logits, target, mu, raw, **common)
            from_kl = vf.elbo_loss(logits, target, kl=kls[per], **common)
            for got in (from_posterior, from_kl):
                torch.testing.assert_close(got.kl, want[per])
                torch.testing.assert_close(
                    torch.autograd.grad(got.loss, (mu, raw), retain_graph=True),
                    torch.autograd.grad(want[per], (mu, raw), retain_graph=True),
                )


def test_options_of_the_posterior_are_those_of_gaussian_kl() -> None:
    logits, target, _ = bernoulli(torch.float64)
    mu, raw = (random(6, 4, seed=s, dtype=torch.float64).requires_grad_() for s in (4, 5))
    options: dict[str, Any] = {
        "scale": "softplus",
        "prior": vf.Prior(torch.tensor(0.5), torch.tensor(0.1)),
        "mask": random(6, 4, seed=6) > 0,
        "mu_soft_clamp": 3.0,
        "balance": (0.8, 0.2),
    }
    got = vf.elbo_loss(logits, target, mu, raw, likelihood="bernoulli", **options)
    want = reference.gaussian_kl(mu, raw, **options)
    torch.testing.assert_close(got.kl, want)
    torch.testing.assert_close(
        torch.autograd.grad(got.loss, (mu, raw)), torch.autograd.grad(want, (mu, raw))
    )


def test_beta_of_zero_leaves_no_gradient_and_equality_has_none() -> None:
    logits, target, kl = bernoulli()
    for options in ({"beta": 0.0}, {"capacity": kl.detach()[0]}):
        first = kl[:1] if "capacity" in options else kl
        output = logits[:1] if "capacity" in options else logits
        loss = vf.elbo_loss(
            output, target[: len(output)], kl=first, likelihood="bernoulli", **options
        ).loss
        assert torch.autograd.grad(loss, kl)[0].abs().max() == 0


# -- gradients in forward --------------------------------------------------------------------------


def losses(logits: Tensor, target: Tensor, kl: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    common: dict[str, Any] = {"kl": kl, "likelihood": "bernoulli", **options}
    return (
        vf.elbo_loss(logits, target, **common, grad="backward").loss,
        vf.elbo_loss(logits, target, **common, grad="forward").loss,
    )


@pytest.mark.parametrize("factor", [1.0, 0.25, -3.0])
def test_both_ways_agree_under_any_gradient_of_the_loss(factor: float) -> None:
    logits, target, kl = bernoulli()
    want, got = (
        torch.autograd.grad(factor * loss, (logits, kl)) for loss in losses(logits, target, kl)
    )
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)


def test_a_retained_graph_gives_the_same_gradients_again() -> None:
    logits, target, kl = bernoulli()
    _, loss = losses(logits, target, kl)
    first = torch.autograd.grad(2.0 * loss, (logits, kl), retain_graph=True)
    kept = [t.clone() for t in first]
    second = torch.autograd.grad(5.0 * loss, (logits, kl), retain_graph=True)
    third = torch.autograd.grad(loss, (logits, kl))
    for a, b, c, old in zip(first, second, third, kept, strict=True):
        torch.testing.assert_close(a, old, rtol=0, atol=0)
        torch.testing.assert_close(b, 2.5 * old)
        torch.testing.assert_close(c, 0.5 * old)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, (logits, kl))


def test_gradients_accumulate() -> None:
    totals = []
    for grad in ("backward", "forward"):
        logits, target, kl = bernoulli()
        for step in range(3):
            terms = vf.elbo_loss(logits, target, kl=kl, likelihood="bernoulli", grad=grad)
            (terms.loss / (step + 1)).backward()
        assert logits.grad is not None and kl.grad is not None
        totals.append((logits.grad, kl.grad))
    torch.testing.assert_close(*totals, rtol=1e-6, atol=1e-8)


def test_hooks_see_the_gradients_and_keep_their_tensors() -> None:
    logits, target, kl = bernoulli()
    seen: list[Tensor] = []
    hidden = logits * 1.0
    hidden.register_hook(lambda g: seen.append(g.clone()))  # type: ignore[no-untyped-call]
    for loss in losses(hidden, target, kl):
        torch.autograd.grad(3.0 * loss, logits, retain_graph=True)
    torch.testing.assert_close(seen[0], seen[1], rtol=1e-6, atol=1e-8)

    packed: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        packed.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        _, loss = losses(logits, target, kl)
    before = [t.clone() for t in packed]
    torch.autograd.grad(3.0 * loss, (logits, kl))
    for t, old in zip(packed, before, strict=True):
        torch.testing.assert_close(t, old, rtol=0, atol=0)


@native
def test_the_buffer_is_handed_over_where_nothing_else_can_see_it() -> None:
    """Backward needs neither a multiplication nor a copy, whatever the gradient of the loss is."""
    logits, target, kl = bernoulli()
    for factor in (torch.ones(()), torch.tensor(3.0)):
        want, loss = losses(logits, target, kl)
        with torch.profiler.profile() as profile:
            got = torch.autograd.grad(loss, (logits, kl), factor)
        names = [event.key for event in profile.key_averages()]
        assert not {"aten::mul", "aten::mul_", "aten::clone", "aten::copy_"} & set(names)
        torch.testing.assert_close(
            got, torch.autograd.grad(want, (logits, kl), factor), rtol=1e-6, atol=1e-8
        )


def test_a_scaler_scales_both_ways_alike() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for dtype in (torch.float32, torch.bfloat16):
        logits, target, kl = bernoulli(dtype)
        want, got = (
            torch.autograd.grad(scaler.scale(loss), (logits, kl))
            for loss in losses(logits, target, kl)
        )
        # In bfloat16, the gradient is rounded before it is multiplied by the power of two.
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-5)


@native
def test_second_derivatives_name_the_remedy() -> None:
    logits, target, kl = bernoulli()
    backward, forward = losses(logits, target, kl)
    with pytest.raises(
        NotImplementedError, match='grad must be "backward", the default, for create_graph=True'
    ):
        torch.autograd.grad(forward, logits, create_graph=True)
    (first,) = torch.autograd.grad(backward, logits, create_graph=True)
    assert torch.autograd.grad(first.sum(), logits)[0].shape == logits.shape


@native
def test_nothing_is_computed_where_no_gradient_is_required() -> None:
    logits, target, kl = bernoulli()
    with torch.no_grad():
        terms = vf.elbo_loss(logits, target, kl=kl, likelihood="bernoulli", grad="forward")
    assert not terms.loss.requires_grad
    with torch.inference_mode():
        vf.elbo_loss(logits, target, kl=kl, likelihood="bernoulli", grad="forward")
    loss = vf.elbo_loss(logits.detach(), target, kl=kl, likelihood="bernoulli", grad="forward").loss
    torch.testing.assert_close(torch.autograd.grad(loss, kl)[0], torch.full((6,), 1 / 6))


@pytest.mark.parametrize("name", nll_cases.CASES)
def test_nll_has_both_ways(name: str) -> None:
    case = nll_cases.CASES[name]
    for reduction in ("batchmean", "sum", "mean"):
        inputs = nll_cases.make(case)
        both = [
            inputs.nll(case.kind, reduction=reduction, grad=grad, mask=random(6, seed=1) > -1)
            for grad in ("backward", "forward")
        ]
        torch.testing.assert_close(both[1], both[0], rtol=1e-12, atol=1e-12)
        want, got = (torch.autograd.grad(3.0 * loss, inputs.leaves) for loss in both)
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


# -- derivatives and transforms --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bernoulli", "gaussian", "nb, softmax", "zinb"])
def test_derivatives_of_first_and_second_order(name: str) -> None:
    case = nll_cases.CASES[name]
    inputs, kl = nll_cases.make(case), kl_of("sample", torch.float64)["kl"]
    beta = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def terms(kl: Tensor, beta: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
        outputs = leaves[: len(inputs.outputs)]
        library = leaves[-1] if inputs.library is not None else None
        return tuple(
            vf.elbo_loss(
                outputs, inputs.target, likelihood=case.kind, kl=kl, beta=beta, capacity=1.5,
                library=library, weight=torch.tensor(0.5),
            )
        )  # fmt: skip

    assert torch.autograd.gradcheck(terms, (kl, beta, *inputs.leaves), fast_mode=True)
    assert torch.autograd.gradgradcheck(terms, (kl, beta, *inputs.leaves), fast_mode=True)


@native
@pytest.mark.parametrize("grads", [False, True])
@pytest.mark.parametrize("with_kl", [False, True])
def test_opcheck(grads: bool, with_kl: bool) -> None:
    logits, target, kl = bernoulli()
    beta = torch.tensor(0.5, requires_grad=True)
    term = (kl, beta, torch.tensor(1.0)) if with_kl else (None, None, None)
    tests = ["test_schema", "test_faketensor"]
    if not grads:  # the node owns the gradients, and may multiply them in place
        tests.append("test_aot_dispatch_dynamic")
    torch.library.opcheck(
        torch.ops.vae_fused.elbo_loss.default,
        (logits, None, None, target, None, None, None, *term),
        {
            "reduction": "batchmean", "dim": None, "options": None, "beta_value": 1.0,
            "capacity_value": None, "grad_mask": [grads] * 5,
        },
        test_utils=tests,
    )  # fmt: skip


@pytest.mark.parametrize("grad", ["backward", "forward"])
def test_compiles_whole_and_a_schedule_recompiles_nothing(grad: str) -> None:
    logits, target, kl = bernoulli()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    @torch.compile(backend=counter, fullgraph=True)
    def step(logits: Tensor, kl: Tensor, beta: Tensor, capacity: Tensor) -> vf.ELBOTerms:
        return vf.elbo_loss(
            logits, target, kl=kl, likelihood="bernoulli", beta=beta, capacity=capacity, grad=grad
        )

    for value in (0.1, 0.5, 1.0):
        scalars = torch.tensor(value), torch.tensor(2 * value)
        got = step(logits, kl, *scalars)
        want = vf.elbo_loss(
            logits, target, kl=kl, likelihood="bernoulli", beta=scalars[0], capacity=scalars[1]
        )
        torch.testing.assert_close(tuple(got), tuple(want), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(
            torch.autograd.grad(2 * got.loss, (logits, kl)),
            torch.autograd.grad(2 * want.loss, (logits, kl)),
            rtol=1e-6,
            atol=1e-7,
        )
    assert counter.frame_count == 1


def test_transforms() -> None:
    logits, target, kl = bernoulli(torch.float64)
    kl = kl.double()

    def loss(logits: Tensor, target: Tensor, kl: Tensor) -> Tensor:
        return vf.elbo_loss(logits[None], target[None], kl=kl[None], likelihood="bernoulli").loss

    per_sample = torch.func.vmap(torch.func.grad(loss, argnums=(0, 2)))(logits, target.double(), kl)
    whole = vf.elbo_loss(logits, target, kl=kl, likelihood="bernoulli", reduction="sum").loss
    torch.testing.assert_close(per_sample, torch.autograd.grad(whole, (logits, kl)))
    _, tangent = torch.func.jvp(
        lambda kl: vf.elbo_loss(logits, target, kl=kl, likelihood="bernoulli", beta=2.0).loss,
        (kl.detach(),), (torch.ones_like(kl),),
    )  # fmt: skip
    torch.testing.assert_close(tangent, torch.tensor(2.0, dtype=torch.float64))


@native
def test_meta_tensors_have_the_shapes() -> None:
    logits, target, kl = (t.detach().to("meta") for t in bernoulli())
    for reduction, shape in (("batchmean", ()), ("sample", (6,))):
        terms = vf.elbo_loss(logits, target, kl=kl, likelihood="bernoulli", reduction=reduction)
        assert [t.shape for t in terms] == [shape] * 3 and terms.loss.is_meta


@native
def test_results_depend_on_no_number_of_threads(threads: Any) -> None:
    logits, kl = random(5, 90_000, seed=1).requires_grad_(), random(5, seed=2).abs()
    theta, target = random(90_000, seed=3).exp().requires_grad_(), random(5, 90_000).abs().floor()
    kind = k.NegativeBinomial("exp")
    results = []
    for number in (1, 2):
        threads(number)
        terms = vf.elbo_loss((logits, theta), target, kl=kl, likelihood=kind, grad="forward")
        results.append((*terms, *torch.autograd.grad(terms.loss, (logits, theta))))
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("grad", ["backward", "forward"])
@pytest.mark.parametrize("name", nll_cases.CASES)
def test_masked_garbage_reaches_neither_loss_nor_gradients(name: str, grad: str) -> None:
    case = nll_cases.CASES[name]
    inputs = nll_cases.make(case)
    mask = random(*case.shapes[0], seed=50) > 0
    mask[1] = False  # a softmax row whose elements are all masked
    outputs = tuple(
        torch.where(mask, t.detach(), torch.nan).requires_grad_() if t.shape == mask.shape else t
        for t in inputs.outputs
    )
    target = torch.where(mask, inputs.target, torch.nan)
    garbage = inputs._replace(outputs=outputs, target=target)
    want, got = (
        of.nll(case.kind, mask=mask, reduction="sum", grad=grad) for of in (inputs, garbage)
    )
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(
        torch.autograd.grad(got, garbage.leaves), torch.autograd.grad(want, inputs.leaves)
    )


@pytest.mark.parametrize("grad", ["backward", "forward"])
def test_a_gradient_that_torch_negates_lazily(grad: str) -> None:
    logits, target, kl = bernoulli()
    beta = torch.tensor(0.5, requires_grad=True)
    loss = vf.elbo_loss(logits, target, kl=kl, likelihood="bernoulli", beta=beta, grad=grad).loss
    expected = torch.autograd.grad(loss, (logits, kl, beta), torch.tensor(-2.0), retain_graph=True)
    negated = torch._neg_view(torch.tensor(2.0))
    torch.testing.assert_close(torch.autograd.grad(loss, (logits, kl, beta), negated), expected)
    loss = vf.nll(logits, target, "bernoulli", grad=grad)
    zero = torch._efficientzerotensor(())
    assert torch.autograd.grad(loss, logits, zero)[0].abs().max() == 0


def test_a_capacity_is_that_of_the_mean_whatever_the_free_bits() -> None:
    logits, target, _ = bernoulli(torch.float64)
    mu = torch.tensor([[0.0], [4.0]], dtype=torch.float64)  # KLs of 0 and 8
    losses = [
        vf.elbo_loss(
            logits[:2], target[:2], mu, torch.zeros_like(mu), likelihood="bernoulli", capacity=4.0,
            free_bits=free_bits, free_bits_per=per,
        )
        for per in ("element", "sample")
        for free_bits in (0.0, 1e-12, torch.tensor(0.0, dtype=torch.float64))
    ]  # fmt: skip
    for terms in losses:
        torch.testing.assert_close(terms.loss, terms.reconstruction)


def test_results_require_gradients_where_their_inputs_do() -> None:
    logits, target, kl = bernoulli()
    for function in (vf.elbo_loss, reference.elbo_loss):
        terms = function(logits, target, kl=kl.detach(), likelihood="bernoulli")
        assert [t.requires_grad for t in terms] == [True, True, False]
        terms = function(logits.detach(), target, kl=kl, likelihood="bernoulli")
        assert [t.requires_grad for t in terms] == [True, False, True]
        mean = kl.mean()
        assert function(logits, target, kl=mean, likelihood="bernoulli").kl is not mean


def test_a_sum_over_all_dimensions_has_both_ways() -> None:
    logits, target, _ = bernoulli()
    want, got = (
        vf.nll(logits, target, "bernoulli", dim=(0, 1), grad=g) for g in ("backward", "forward")
    )
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got, logits), torch.autograd.grad(want, logits))


X, KL = torch.zeros(4, 3), torch.ones(4)
BAD_INPUT: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"kl": None}, TypeError, "either mu and raw or kl must be given, got none"),
    (
        {"kl": None, "mu": X},
        TypeError,
        "either mu and raw or kl must be given, got mu; pass kl by name",
    ),
    ({"beta": vf.nn.LinearSchedule(3)}, TypeError, "got LinearSchedule; pass what it returns"),
    ({"mu": X}, TypeError, "either mu and raw or kl must be given, got mu, kl"),
    ({"mu": X, "raw": X}, TypeError, "must be given, got mu, raw, kl"),
    ({"scale": "std"}, TypeError, "scale must come with mu and raw, got kl"),
    ({"prior": vf.Prior(X, X)}, TypeError, "prior must come with mu and raw"),
    ({"kl": 1.0}, TypeError, "kl must be a Tensor, got float"),
    (
        {"kl": torch.ones(3)},
        ValueError,
        r"kl must have the batch of output, 4, .* got shape \(3,\)",
    ),
    ({"kl": KL.long()}, TypeError, "kl must be a floating-point tensor .* got torch.int64"),
    (
        {"kl": KL.sum(), "reduction": "sample"},
        ValueError,
        r"kl must have one value for each sample, \(B,\), .* got shape \(\)",
    ),
    (
        {"reduction": "none"},
        ValueError,
        "reduction must be one of batchmean, sum, mean, sample, got 'none'",
    ),
    ({"beta": "1"}, TypeError, "beta must be a number"),
    ({"beta": -1.0}, ValueError, "beta must be at least 0, got -1.0"),
    ({"beta": KL}, ValueError, r"beta must be a number or a 0-d tensor, got shape \(4,\)"),
    ({"beta": torch.tensor(1)}, TypeError, "beta must be a floating-point tensor or a number"),
    ({"capacity": -1.0}, ValueError, "capacity must be at least 0, got -1.0"),
    ({"capacity": torch.tensor(1.0, requires_grad=True)}, ValueError, "must not require a grad"),
    (
        {"free_bits": 1.0},
        ValueError,
        r"one value for each element, \(B, ...\), .* got shape \(4,\); or pass",
    ),
    (
        {"free_bits": 1.0, "free_bits_per": "dimension"},
        ValueError,
        r"each element, \(B, ...\), for free_bits_per=\"dimension\", .*; or pass mu and raw",
    ),
    ({"free_bits_per": "batch"}, ValueError, "free_bits_per must be one of element.*, got 'batch'"),
    (
        {"free_bits": 1.0, "free_bits_per": "sample", "kl": X},
        ValueError,
        r"sample, \(B,\), .* got shape \(4, 3\)",
    ),
    ({"grad": "both"}, ValueError, "grad must be one of backward, forward.*, got 'both'"),
    (
        {"grad": "forward", "reduction": "sample"},
        ValueError,
        "unless the loss is 0-d, got .* with reduction=",
    ),
    ({"target_mask": X}, TypeError, "target_mask must be bool, got torch.float32"),
    ({"likelihood": "normal"}, ValueError, "likelihood must be one of .*, got 'normal'"),
    ({"nonsense": 1}, TypeError, "unexpected keyword argument 'nonsense'"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD_INPUT, ids=lambda x: str(x)[:40])
def test_bad_input(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        vf.elbo_loss(X, X, **({"kl": KL, "likelihood": "bernoulli"} | options))


def test_float16_is_refused_in_forward() -> None:
    with pytest.raises(
        TypeError, match=r'grad must be "backward" for float16 .* underflow, got "forward"'
    ):
        vf.elbo_loss(X.half(), X, kl=KL, likelihood="bernoulli", grad="forward")
    with pytest.raises(
        TypeError, match=r'grad must be "backward" for float16 .* underflow, got "forward"'
    ):
        vf.nll(X.half(), X, "bernoulli", grad="forward")


def test_samples_in_front_of_the_batch_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"target must have 3 dimensions, like output, .* got shape .*flatten"
    ):
        vf.elbo_loss(torch.zeros(5, 4, 3), X, kl=torch.ones(()), likelihood="bernoulli")


def test_a_batch_is_needed() -> None:
    for output in (torch.zeros(()), torch.zeros(0, 3)):
        with pytest.raises(ValueError, match="output must have a batch in dimension 0, got shape"):
            vf.elbo_loss(output, output, kl=torch.ones(()), likelihood="bernoulli")


@pytest.mark.parametrize("function", [vf.elbo_loss, reference.elbo_loss])
def test_the_signature_shows_every_argument(function: Any) -> None:
    shown = inspect.signature(function).parameters
    options = ["scale", "prior", "mask", "mu_soft_clamp", "free_bits", "balance"]
    assert list(shown)[:4] == ["output", "target", "mu", "raw"]
    assert set(options) < set(shown) and not [name for name in shown if name.startswith("_")]
    assert shown["grad"].default == "backward" and shown["reduction"].default == "batchmean"
