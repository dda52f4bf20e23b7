"""Checks gradients by finite differences, against float64, and with all features of autograd."""

from __future__ import annotations

import math
import random as python_random
from typing import Any

import pytest
import torch
from conftest import (
    DTYPES,
    LAYOUTS,
    REDUCTIONS,
    all_dims,
    eager,
    exact_gradients,
    make_key,
    native,
    posterior,
    random,
    reduced,
    scaled,
)
from torch import Tensor

import vae_fused as vf

F64 = torch.float64


def assert_gradients(function: Any, *inputs: Tensor) -> None:
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def sample_and_kl(device: str, **kwargs: Any) -> Any:
    """Returns the function under test, with fixed noise."""
    key = make_key(17, 3, device)
    return lambda mu, logvar: vf.reparameterize_kl(mu, logvar, key=key, **kwargs)


# --------------------------------------------------------------------------------------------------
# Finite differences, to second order
# --------------------------------------------------------------------------------------------------


def random_shapes(n: int) -> list[tuple[int, ...]]:
    """Returns shapes with at most 12 elements, because the cost of gradgradcheck is quadratic."""
    rng, shapes = python_random.Random(5), set()
    while len(shapes) < n:
        shape = tuple(rng.choice((1, 2, 3, 5)) for _ in range(rng.randint(1, 4)))
        if 1 < torch.Size(shape).numel() <= 12:
            shapes.add(shape)
    return sorted(shapes)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", random_shapes(6), ids=str)
def test_gradcheck_for_every_reduction(shape, reduction, device):
    inputs = posterior(shape, dtype=F64, device=device, requires_grad=True)
    assert_gradients(sample_and_kl(device, reduction=reduction), *inputs)


@pytest.mark.parametrize("reduction", [r for r in REDUCTIONS if r != "sample"])
def test_gradcheck_of_a_0d_input(reduction, device):
    inputs = posterior((), dtype=F64, device=device, requires_grad=True)
    assert_gradients(sample_and_kl(device, reduction=reduction), *inputs)


@pytest.mark.parametrize(
    "dim", [*all_dims(3), 0, 1, -1, -2, (-1,), (2, 0), (-3, 1), [1, 2]], ids=str
)
def test_gradcheck_for_every_dim(dim, device):
    inputs = posterior((2, 3, 2), dtype=F64, device=device, requires_grad=True)
    assert_gradients(sample_and_kl(device, dim=dim), *inputs)


@pytest.mark.parametrize("logvar_layout", ["same", "contiguous"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradcheck_of_strided_views(layout, logvar_layout, device):
    function = sample_and_kl(device, dim=(0, 2))
    view = LAYOUTS[layout]
    second = view if logvar_layout == "same" else (lambda x: x)
    inputs = posterior((2, 2, 3), dtype=F64, device=device, requires_grad=True)
    assert_gradients(lambda m, x: function(view(m), second(x)), *inputs)


@pytest.mark.parametrize(
    ("mu_shape", "logvar_shape"),
    [((3, 2), (2,)), ((3, 2), (3, 1)), ((3, 2), ()), ((2,), (3, 2)), ((3, 1), (1, 2)), ((), (4,))],
)
@pytest.mark.parametrize("reduction", ["batchmean", "sample", "none"])
def test_gradcheck_of_broadcast_inputs(mu_shape, logvar_shape, reduction, device):
    mu = random(*mu_shape, dtype=F64, device=device).requires_grad_()
    logvar = random(*logvar_shape, seed=1, dtype=F64, device=device).requires_grad_()
    assert_gradients(sample_and_kl(device, reduction=reduction), mu, logvar)


@pytest.mark.parametrize("reduction", ["batchmean", "sample"])
def test_gradcheck_with_explicit_noise(reduction, device):
    mu, logvar = posterior((3, 2), dtype=F64, device=device, requires_grad=True)
    eps = random(3, 2, seed=9, dtype=F64, device=device).requires_grad_()

    def function(m, x, e):
        return vf.reparameterize_kl(m, x, eps=e, reduction=reduction)

    assert_gradients(function, mu, logvar, eps)
    assert_gradients(lambda m, x, e: vf.reparameterize(m, x, eps=e), mu, logvar, eps)


def test_gradcheck_of_the_single_functions(device):
    inputs = posterior((2, 3), dtype=F64, device=device, requires_grad=True)
    assert_gradients(lambda m, x: vf.gaussian_kl(m, x, dim=0), *inputs)
    key = make_key(1, device=device)
    assert_gradients(lambda m, x: vf.reparameterize(m, x, key=key), *inputs)


def test_gradcheck_where_the_kl_changes_formula(device):
    """At |x| = 1, g changes from a polynomial to the direct formula without a jump or a kink."""
    x = torch.tensor([-1.0, 1.0, -1 + 1e-7, 1 - 1e-7, -1 - 1e-7, 1 + 1e-7, 0.0, 64.0], dtype=F64)
    x = x.to(device).requires_grad_()
    zeros = torch.zeros_like(x).requires_grad_()
    assert torch.autograd.gradcheck(lambda m, v: vf.gaussian_kl(m, v[:7], dim=0), (zeros[:7], x))
    (slope,) = torch.autograd.grad(vf.gaussian_kl(zeros, x, reduction="sum"), x)
    torch.testing.assert_close(slope, 0.5 * torch.expm1(x.detach()), rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_create_graph_gives_the_same_gradients(dtype, device):
    inputs = posterior((5, 7), dtype=dtype, device=device, requires_grad=True)
    function = sample_and_kl(device, reduction="sample")

    def gradients(create_graph):
        z, kl = function(*inputs)
        loss = z.pow(2).sum() + kl.pow(2).sum()
        return torch.autograd.grad(loss, inputs, create_graph=create_graph)

    torch.testing.assert_close(gradients(True), gradients(False))


# --------------------------------------------------------------------------------------------------
# Against float64
# --------------------------------------------------------------------------------------------------


def gradients_against_truth(mu, logvar, *, device, row_kl=True, seed=20):
    """Returns (got, want), the gradients for random grad_z and grad_kl (per row or for all)."""
    eps, grad_z = (random(*mu.shape, seed=seed + i).to(mu) for i in (0, 1))
    m, x = mu.detach().requires_grad_(), logvar.detach().requires_grad_()
    z, kl = vf.reparameterize_kl(m, x, eps=eps, reduction="sample" if row_kl else "sum")
    grad_kl = random(*kl.shape, seed=seed + 2).to(kl)
    got = torch.autograd.grad((z, kl), (m, x), (grad_z, grad_kl))
    spread = grad_kl.reshape(-1, *[1] * (mu.dim() - 1)) if row_kl else grad_kl
    return got, exact_gradients(mu, logvar, eps, grad_z, spread.expand(mu.shape))


@pytest.mark.parametrize("row_kl", [True, False])
@pytest.mark.parametrize("shape", [(1,), (3, 5), (64, 300), (3, 5000), (2, 7, 3, 41)], ids=str)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (F64, 2e-15)])
def test_gradients_agree_with_float64(shape, row_kl, dtype, bound, device):
    mu, logvar = posterior(shape, dtype=dtype, device=device)
    got, want = gradients_against_truth(mu, logvar * 2, device=device, row_kl=row_kl)
    for g, w in zip(got, want, strict=True):
        assert scaled(g, w) <= bound


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_gradients_of_strided_views_agree_with_float64(layout, dtype, device):
    pair = posterior((6, 5, 37, 3), dtype=dtype, device=device)
    mu, logvar = (LAYOUTS[layout](t) for t in pair)
    got, want = gradients_against_truth(mu, logvar, device=device)
    for g, w in zip(got, want, strict=True):
        assert g.shape == mu.shape and scaled(g, w) <= 1e-6


@pytest.mark.parametrize("reduction", ["batchmean", "sample", "none"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_gradients_err_at_most_twice_as_much_as_eager(dtype, reduction, device):
    kwargs = {"dtype": dtype, "device": device}
    inputs = posterior((40, 50), **kwargs, requires_grad=True)
    eps, grad_z = random(40, 50, seed=3, **kwargs), random(40, 50, seed=4, **kwargs)

    def gradients(function, tensors):
        z, kl = function(*tensors)
        loss = (z * grad_z.to(z.dtype)).sum() + kl.sum()
        return torch.autograd.grad(loss, tensors)

    def formula(m, x):
        z, kl = eager(m, x, eps.to(m.dtype))
        return z, reduced(kl, reduction)

    doubles = [t.detach().double().requires_grad_() for t in inputs]
    want = gradients(formula, doubles)
    budget = gradients(formula, inputs)
    got = gradients(lambda m, x: vf.reparameterize_kl(m, x, eps=eps, reduction=reduction), inputs)
    for g, b, w in zip(got, budget, want, strict=True):
        assert g.dtype == dtype
        error, allowed = (g.double() - w).abs(), 2 * (b.double() - w).abs()
        assert error.max() <= allowed.max() and error.mean() <= allowed.mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_those_of_the_noise_that_was_drawn(dtype, device):
    """Backward uses the key that the forward pass reserved, so dz/dlogvar is 1/2 (z - mu)."""
    mu = torch.zeros(70, 65, dtype=dtype, device=device).requires_grad_()
    logvar = random(70, 65, device=device).to(dtype).requires_grad_()
    z = vf.reparameterize(mu, logvar)
    z.backward(torch.ones_like(z))
    torch.testing.assert_close(logvar.grad, 0.5 * z.detach())
    assert bool((mu.grad == 1).all())
    logvar.grad = None
    z, _ = vf.reparameterize_kl(mu, logvar)
    z.backward(torch.ones_like(z))
    torch.testing.assert_close(logvar.grad, 0.5 * z.detach())


# --------------------------------------------------------------------------------------------------
# Features of autograd
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("used", ["z", "kl"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_output_used_alone_equals_the_single_function(used, dtype, device):
    inputs = posterior((4, 33), dtype=dtype, device=device, requires_grad=True)
    key, weight = make_key(2, device=device), random(4, 33, seed=8, device=device)
    z, kl = vf.reparameterize_kl(*inputs, key=key, reduction="none")
    output = z if used == "z" else kl
    single = (
        vf.reparameterize(*inputs, key=key)
        if used == "z"
        else vf.gaussian_kl(*inputs, reduction="none")
    )
    assert torch.equal(output, single)
    got = torch.autograd.grad((output * weight).sum(), inputs)
    want = torch.autograd.grad((single * weight).sum(), inputs)
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])
    if used == "kl" and dtype == F64:
        assert scaled(got[1], 0.5 * torch.expm1(inputs[1].detach()) * weight) < 1e-14


@pytest.mark.parametrize("needs", ["mu", "logvar", "eps", "none"])
def test_only_what_requires_grad_gets_one(needs, device):
    mu, logvar = posterior((4, 9), device=device)
    tensors = {"mu": mu, "logvar": logvar, "eps": random(4, 9, seed=2, device=device)}
    everything = {name: t.clone().requires_grad_() for name, t in tensors.items()}

    def loss(t):
        z, kl = vf.reparameterize_kl(t["mu"], t["logvar"], eps=t["eps"])
        return z.square().sum() + kl

    total = loss(everything)
    total.backward()
    some = {name: t.clone().requires_grad_(name == needs) for name, t in tensors.items()}
    got = loss(some)
    assert got.requires_grad == (needs != "none") and torch.equal(got, total)
    if needs != "none":
        got.backward()
    for name, t in some.items():
        assert (t.grad is None) if name != needs else torch.equal(t.grad, everything[name].grad)


@pytest.mark.parametrize("module", [vf, vf.reference])
def test_what_depends_on_no_gradient_needs_none(module, device):
    """Each result requires a gradient only if it depends on an input that requires one."""
    for used, needs in {"q": (True, True), "eps": (True, False), "p": (False, True)}.items():
        q, eps, p = (random(3, 4, device=device).requires_grad_(name == used) for name in
                     ("q", "eps", "p"))  # fmt: skip
        for noise in [{"eps": eps}] if used == "eps" else [{}, {"key": make_key(1, device=device)}]:
            options = {"prior": vf.Prior(0.0, p), **noise}
            out = module.reparameterize_kl(q.detach(), q, **options)
            packed = module.reparameterize_kl_moments(torch.cat([q, q]), dim=0, **options)
            assert tuple(t.requires_grad for t in out) == needs
            assert tuple(t.requires_grad for t in packed) == needs


def test_mu_and_logvar_may_be_one_tensor(device):
    x = random(3, 4, dtype=F64, device=device).requires_grad_()
    assert_gradients(lambda t: sample_and_kl(device)(t, t), x)


def test_retained_graph_gives_the_same_bits_twice(device):
    inputs = posterior((30, 100), device=device, requires_grad=True)
    z, kl = vf.reparameterize_kl(*inputs)
    loss = z.square().sum() + kl
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    torch.rand(10, device=device)  # the generator advances, but the key does not change
    second = torch.autograd.grad(loss, inputs)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, inputs)


def test_a_modified_input_is_noticed(device):
    mu, logvar = posterior((3, 4), device=device, requires_grad=True)
    inner = mu * 1
    _, kl = vf.reparameterize_kl(inner, logvar)
    inner.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kl.backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("logvar", [11.5, 23.0])
def test_create_graph_computes_in_float_too(logvar, dtype, device):
    """e^11.5 is inf in float16, and so is sigma^2 at logvar = 23, but the gradients are finite."""
    mu = torch.full((64,), 0.5, dtype=dtype, device=device, requires_grad=True)
    x = torch.full((64,), logvar, dtype=dtype, device=device, requires_grad=True)

    def gradients(create_graph):
        z, kl = vf.reparameterize_kl(mu, x, key=make_key(3, device=device), reduction="sum")
        loss = 1e-3 * z.float().sum() + 1e-6 * kl
        return torch.autograd.grad(loss, [mu, x], create_graph=create_graph)

    for got, want in zip(gradients(True), gradients(False), strict=True):
        assert got.isfinite().all()
        torch.testing.assert_close(got.detach(), want, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("module", [vf, vf.reference], ids=["vf", "reference"])
def test_a_sparse_gradient_of_the_sample_is_used(module, device):
    mu, logvar = posterior((10, 4), device=device, requires_grad=True)
    nodes = torch.tensor([1, 3, 3], device=device)
    z = module.reparameterize(mu, logvar, key=make_key(1, device=device))
    torch.nn.functional.embedding(nodes, z, sparse=True).sum().backward()
    counts = torch.bincount(nodes, minlength=10).float()[:, None].expand(10, 4)
    assert torch.equal(mu.grad.to_dense(), counts)


GRADS = {
    "dense": lambda g: g,
    "one value": lambda g: g.flatten()[0].expand(g.shape),
    "one row": lambda g: g[:1].expand(g.shape),
    "one column": lambda g: g[:, :1].expand(g.shape),
    "transposed": lambda g: g.t().contiguous().t(),
    "every other": lambda g: torch.stack([g, g], -1)[..., 0],
    "offset": lambda g: torch.cat([g.new_zeros(1), g.flatten()])[1:].view(g.shape),
}


@pytest.mark.parametrize("shape", [(6, 5), (3, 2100)], ids=str)
@pytest.mark.parametrize("which", ["z", "kl"])
@pytest.mark.parametrize("strides", GRADS)
def test_gradients_arrive_in_any_strides(strides, which, shape, device):
    inputs = posterior(shape, device=device, requires_grad=True)
    outputs = vf.reparameterize_kl(*inputs, key=make_key(4, device=device), reduction="none")
    output = outputs[0] if which == "z" else outputs[1]
    grad = GRADS[strides](random(*shape, seed=6, device=device))
    got = torch.autograd.grad(output, inputs, grad, retain_graph=True)
    want = torch.autograd.grad(output, inputs, grad.clone(memory_format=torch.contiguous_format))
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


@pytest.mark.parametrize("dim", [0, 1, (0, 2), (1, 2)])
def test_the_gradient_of_a_mean_over_kept_dims_arrives_expanded(dim, device):
    inputs = posterior((4, 5, 6), device=device, requires_grad=True)
    got = torch.autograd.grad(vf.gaussian_kl(*inputs, dim=dim).mean(), inputs)
    rows = 120 / reduced(torch.ones(4, 5, 6), dim=dim).flatten()[0].item()
    mu, logvar = (t.detach().double() for t in inputs)
    assert scaled(got[0], mu / rows) < 1e-6
    assert scaled(got[1], 0.5 * torch.expm1(logvar) / rows) < 1e-6


@native
def test_gradients_keep_the_layout_of_their_input(device):
    x = random(2, 3, 4, 5, device=device).to(memory_format=torch.channels_last)
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    z, kl = vf.reparameterize_kl(*inputs)
    for grad in torch.autograd.grad(z.sum() + kl, inputs):
        assert grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("module", [vf, vf.reference], ids=["compiled", "eager"])
@pytest.mark.parametrize("noise", ["key", "eps", "generator"])
@pytest.mark.parametrize("options", [{}, {"scale": "softplus", "temperature": 0.5}], ids=str)
def test_the_mean_may_change_in_place_after_a_sample(options, noise, module, device):
    """The backward pass does not need the mean.

    dz/dmu is 1, and the derivative of z with respect to raw does not depend on mu.
    """
    leaf = torch.ones(3, 4, device=device, requires_grad=True)
    raw = torch.zeros(3, 4, device=device, requires_grad=True)
    given = {
        "key": {"key": make_key(1, device=device)},
        "eps": {"eps": torch.full((3, 4), 2.0, device=device)},
        "generator": {},
    }[noise]
    mu = leaf * 1.0
    z = module.reparameterize(mu, raw, **given, **options)
    moved = z.detach() - 1.0  # T sigma eps
    mu.mul_(2)
    got = torch.autograd.grad(z.sum(), [leaf, raw], create_graph=True)
    assert torch.equal(got[0], torch.ones_like(leaf))
    slope = 0.5 if not options else torch.sigmoid(raw.detach()) / math.log(2)
    torch.testing.assert_close(got[1].detach(), moved * slope)
    again = torch.autograd.grad(got[1].sum(), raw)[0]  # nor does the second derivative need mu
    if not options:
        torch.testing.assert_close(again, moved * 0.25)


def test_a_mean_that_backward_needs_may_not_change(device):
    for options in ({"mu_soft_clamp": 2.0}, None):
        mu = torch.ones(3, device=device, requires_grad=True) * 1.0
        if options is None:
            result = vf.gaussian_kl(mu, torch.zeros(3, device=device))
        else:
            result = vf.reparameterize(mu, torch.zeros(3, device=device), **options)
        mu.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            result.sum().backward()
