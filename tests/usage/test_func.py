"""Compares torch.func transforms and forward mode with the reference, given the same key."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from conftest import DTYPES, Calls, make_key, native, random
from option_recipes import OPTIONS, SHAPE, arguments, tensors
from torch.autograd import forward_ad
from torch.distributions import Normal, kl_divergence
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads

import vae_fused as vf

F64 = torch.float64


def assert_same(got, want, tolerance=1e-9):
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def directions(inputs):
    return tuple(random(*x.shape, seed=50 + i, dtype=x.dtype) for i, x in enumerate(inputs))


# --------------------------------------------------------------------------------------------------
# Each transform of each function
# --------------------------------------------------------------------------------------------------


def forward_mode(function, inputs):
    with forward_ad.dual_level():
        pairs = zip(inputs, directions(inputs), strict=True)
        duals = [forward_ad.make_dual(*pair) for pair in pairs]
        return tuple(forward_ad.unpack_dual(function(*duals)))


def all_of(inputs):
    return tuple(range(len(inputs)))


TRANSFORMS = {
    "grad": lambda f, x: grad(f, all_of(x))(*x),
    "vjp": lambda f, x: vjp(f, *x)[1](torch.tensor(0.7, dtype=F64)),
    "jvp": lambda f, x: jvp(f, x, directions(x)),
    "forward mode": forward_mode,
    "jacrev": lambda f, x: jacrev(f, all_of(x))(*x),
    "jacfwd": lambda f, x: jacfwd(f, all_of(x))(*x),
    "hessian": lambda f, x: hessian(f, all_of(x))(*x),
    "jacrev of jacrev": lambda f, x: jacrev(jacrev(f, 1), all_of(x))(*x),
    "jacrev of jacfwd": lambda f, x: jacrev(jacfwd(f, 1), all_of(x))(*x),
    "jacfwd of jacfwd": lambda f, x: jacfwd(jacfwd(f, 1), all_of(x))(*x),
    "third derivative": lambda f, x: grad(lambda *y: grad(
        lambda *z: grad(f, 1)(*z).sin().sum(), 1)(*y).sin().sum(), 1)(*x),
}  # fmt: skip

# Scalar functions of a module and (mu, raw, eps), which are nonlinear in every output.
KEY = make_key(17, 3)


def total(*outputs):
    return sum((o.sin() * (1 + torch.arange(o.numel()).view(o.shape))).sum() for o in outputs)


FUNCTIONS = {
    "sample and KL": lambda m, mu, raw, _: total(*m.reparameterize_kl(
        mu, raw, key=KEY, reduction="sample")),
    "explicit noise": lambda m, mu, raw, eps: total(*m.reparameterize_kl(
        mu, raw, eps=eps, dim=-1, sample_shape=2)),
    "moments": lambda m, mu, raw, _: total(*m.reparameterize_kl_moments(
        torch.cat([mu, raw], 1), key=KEY, kl_dim=(0,))),
    "KL at the sample": lambda m, mu, raw, eps: total(*m.reparameterize_kl(
        mu, raw, eps=eps, estimator="sample", reduction="sample", sample_shape=2,
        prior=vf.Prior(raw.sin(), 0.3), balance=(0.3, 0.9))),
    "path derivative": lambda m, mu, raw, _: total(*m.reparameterize_kl_moments(
        torch.cat([mu, raw], 1), key=KEY, estimator="sample", stop_q=True, sample_shape=(2, 1),
        kl_dim=(1,), scale="softplus")),
    "sample": lambda m, mu, raw, _: total(m.reparameterize(mu, raw, key=KEY, sample_shape=(2, 1))),
    "KL": lambda m, mu, raw, eps: total(m.gaussian_kl(
        mu, raw, reduction="none", prior=vf.Prior(raw, eps[0], "softplus"), balance=(0.3, 0.9))),
    "KL of a sample": lambda m, mu, raw, _: total(m.sampled_kl(mu, raw, reduction="mean")),
    "log density": lambda m, mu, raw, eps: total(m.gaussian_log_prob(eps[0], mu, raw)),
}  # fmt: skip


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_transform_of_every_function(function, transform):
    shape = (2, 3)
    inputs = [random(*shape, seed=i, dtype=F64) for i in (0, 1)]
    inputs = (*inputs, random(2, *shape, seed=2, dtype=F64))
    got, want = (
        TRANSFORMS[transform](lambda *x, m=m: FUNCTIONS[function](m, *x), inputs)
        for m in (vf, vf.reference)
    )
    assert_same(got, want)


@pytest.mark.parametrize("transform", ["grad", "jvp", "forward mode"])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option(name, transform):
    """The tests for each function cover second-order transforms."""
    named = {k: t.detach() for k, t in tensors(OPTIONS[name]).items()}

    def function(module, *leaves):
        leaves = dict(zip(named, leaves, strict=True))
        kwargs = arguments(OPTIONS[name], leaves)
        return total(*module.reparameterize_kl(leaves["mu"], leaves["raw"], key=KEY, **kwargs))

    got, want = (
        TRANSFORMS[transform](lambda *x, m=m: function(m, *x), tuple(named.values()))
        for m in (vf, vf.reference)
    )
    assert_same(got, want)


@pytest.mark.parametrize("name", OPTIONS)
def test_tangents_agree_with_gradients(name):
    named = {k: t.detach() for k, t in tensors(OPTIONS[name]).items()}

    def function(*leaves):
        leaves = dict(zip(named, leaves, strict=True))
        kwargs = arguments(OPTIONS[name], leaves)
        return vf.reparameterize_kl(
            leaves["mu"], leaves["raw"], eps=leaves["eps"], reduction="none", **kwargs
        )

    inputs = tuple(named.values())
    outputs, pull = vjp(function, *inputs)
    _, tangents = jvp(function, inputs, directions(inputs))
    cotangents = directions(outputs)
    pairs = zip((*cotangents, *pull(cotangents)), (*tangents, *directions(inputs)), strict=True)
    products = [(a * b).sum() for a, b in pairs]
    assert_same(sum(products[:2]), sum(products[2:]))


@pytest.mark.parametrize("transform", ["grad", "jvp", "hessian", "forward mode"])
def test_transforms_of_the_distribution(transform):
    def of(q, p, z):
        kl = torch.distributions.kl_divergence(q, p)
        return total(z, kl, q.log_prob(z), q.entropy(), q.variance)

    def got(mu, raw, mean):
        q, p = vf.DiagonalGaussian(mu, raw), vf.DiagonalGaussian(mean, raw.cos())
        return of(q, p, q.rsample(key=KEY))

    def want(mu, raw, mean):
        q = torch.distributions.Normal(mu, (0.5 * raw).exp(), validate_args=False)
        p = torch.distributions.Normal(mean, (0.5 * raw.cos()).exp(), validate_args=False)
        noise = vf.reference.normal(KEY, mu.shape, dtype=F64)
        return of(q, p, q.loc + q.scale * noise)

    inputs = tuple(random(2, 3, seed=i, dtype=F64) for i in range(3))
    assert_same(TRANSFORMS[transform](got, inputs), TRANSFORMS[transform](want, inputs))


def test_a_list_of_tensors():
    mus = [random(2, 3, dtype=F64), random(5, seed=1, dtype=F64)]

    def function(*mus):
        zs, kl = vf.reparameterize_kl_multi(mus, [m.cos() for m in mus], key=KEY)
        return total(*zs, kl)

    leaves = [m.clone().requires_grad_() for m in mus]
    want = torch.autograd.grad(function(*leaves), leaves)
    assert_same(grad(function, (0, 1))(*mus), want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype):
    """Below float32, the reference rounds differently, so the oracle is ordinary autograd."""
    mu, raw = (random(4, 6, seed=i).to(dtype) for i in (0, 1))

    def function(mu, raw):
        z, kl = vf.reparameterize_kl(mu, raw, key=KEY)
        return z.to(kl.dtype).sin().sum() + kl

    leaves = [t.clone().requires_grad_() for t in (mu, raw)]
    want = torch.autograd.grad(function(*leaves), leaves)
    got = grad(function, (0, 1))(mu, raw)
    assert_same(got, want, torch.finfo(dtype).eps)
    value, tangent = jvp(function, (mu, raw), directions((mu, raw)))
    pairs = zip(want, directions((mu, raw)), strict=True)
    product = sum((a.double() * b.double()).sum() for a, b in pairs)
    assert value.dtype == tangent.dtype == torch.promote_types(dtype, torch.float32)
    assert_same(tangent.double(), product, 40 * torch.finfo(dtype).eps)
    one = vf.reparameterize(mu, raw, key=KEY)
    batch = vmap(lambda m: vf.reparameterize(m, raw, key=KEY))(mu.expand(3, 4, 6))
    assert batch.dtype == dtype
    assert torch.equal(batch, one.expand(3, 4, 6)) or dtype == torch.float32
    assert_same(batch, one.expand(3, 4, 6))


# --------------------------------------------------------------------------------------------------
# vmap
# --------------------------------------------------------------------------------------------------

BATCH = 3


def slices(function, in_dims, inputs):
    """Applies a function slice by slice, which is the definition of vmap."""
    outputs = []
    for b in range(BATCH):
        pairs = zip(inputs, in_dims, strict=True)
        outputs.append(function(*(x if d is None else x.select(d, b) for x, d in pairs)))
    return tuple(torch.stack(o) for o in zip(*outputs, strict=True))


def batch_inputs(in_dims, key):
    """Returns the inputs (mu, raw, mask, prior mean, prior raw, noise)."""
    shape, inputs = (2, 4), []
    for i, dim in enumerate(in_dims):
        own = (2,) if key and i == 5 else shape
        own = own if dim is None else (*own[:dim], BATCH, *own[dim:])
        value = random(*own, seed=i, dtype=F64)
        if i == 2:
            value = value > -0.5
        elif key and i == 5:
            value = (1000 * value).to(torch.int64)
        inputs.append(value)
    return tuple(inputs)


# With every fifth of the 728 combinations, any four of the six inputs still have all combinations.
IN_DIMS = [d for d in itertools.product((None, 0, 1), repeat=6) if any(x is not None for x in d)]
IN_DIMS = IN_DIMS[::5]


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["batchmean", "none"])
@pytest.mark.parametrize("key", [False, True])
def test_combinations_of_in_dims(key, reduction):
    """Compares values and per-sample gradients."""

    def function(mu, raw, mask, mean, prior_raw, noise):
        return vf.reparameterize_kl(
            mu, raw, mask=mask, prior=vf.Prior(mean, prior_raw), reduction=reduction,
            **{"key" if key else "eps": noise},
        )  # fmt: skip

    def gradients(*inputs):
        return grad(lambda *x: total(*function(*x)), (0, 1, 3, 4, *((5,) * (not key))))(*inputs)

    for in_dims in IN_DIMS:
        inputs = batch_inputs(in_dims, key)
        for f in (function, gradients):
            assert_same(vmap(f, in_dims)(*inputs), slices(f, in_dims, inputs))


@pytest.mark.parametrize("reduction", ["batchmean", "sum", "mean", "sample", "none"])
@pytest.mark.parametrize("shape", [(), (4,), (2, 4)], ids=str)
def test_reductions_of_slices(shape, reduction):
    if shape == () and reduction == "sample":
        return
    inputs = tuple(random(BATCH, *shape, seed=i, dtype=F64) for i in (0, 1))

    def function(mu, raw):
        out = vf.reparameterize_kl(mu, raw, key=KEY, reduction=reduction, sample_shape=2)
        return (*out, vf.gaussian_kl(mu, raw, reduction=reduction))

    assert_same(vmap(function)(*inputs), slices(function, (0, 0), inputs))


def test_nested_vmap():
    mu, raw = random(2, 3, 5, dtype=F64), random(4, 3, seed=1, dtype=F64)
    keys = torch.arange(8).view(4, 2)

    def function(mu, raw, key):
        return vf.reparameterize_kl(mu, raw.mean(), key=key, reduction="sum")

    nested = vmap(vmap(function, (0, None, None)), (None, 0, 0))
    want = [[function(m, r, k) for m in mu] for r, k in zip(raw, keys, strict=True)]
    got = nested(mu, raw, keys)
    for output in (0, 1):
        stacked = torch.stack([torch.stack([pair[output] for pair in row]) for row in want])
        assert_same(got[output], stacked)


def test_jacobians_of_slices():
    """vmap runs outside jacrev and jacfwd, which use vmap themselves."""
    mu, raw = (random(BATCH, 4, seed=i, dtype=F64) for i in (0, 1))

    def function(mu, raw):
        return vf.reparameterize(mu, raw, key=KEY)

    for jacobian in (jacrev, jacfwd):
        want = torch.stack([torch.diag(0.5 * function(torch.zeros_like(r), r)) for r in raw])
        assert_same(vmap(jacobian(function, 1))(mu, raw), want)


# --------------------------------------------------------------------------------------------------
# Randomness
# --------------------------------------------------------------------------------------------------

DRAWS = {
    "sample": lambda mu, raw: vf.reparameterize(mu, raw),
    "sample and KL": lambda mu, raw: vf.reparameterize_kl(mu, raw)[0],
    "moments": lambda mu, raw: vf.reparameterize_kl_moments(torch.cat([mu, raw]), dim=0)[0],
    "distribution": lambda mu, raw: vf.DiagonalGaussian(mu, raw).rsample_kl()[0],
    "samples": lambda mu, raw: vf.reparameterize(mu, raw, sample_shape=2)[1],
}


@pytest.mark.parametrize("in_dims", [(0, 0), (0, None), (None, 0)], ids=str)
@pytest.mark.parametrize("name", DRAWS)
def test_randomness(name, in_dims):
    inputs = [torch.zeros(5) if d is None else torch.zeros(BATCH, 5) for d in in_dims]
    call = DRAWS[name]
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(call, in_dims)(*inputs)
    same = vmap(call, in_dims, randomness="same")(*inputs)
    assert torch.equal(same, same[:1].expand(BATCH, 5)) and same.std() > 0
    different = vmap(call, in_dims, randomness="different")(*inputs)
    assert different.shape == (BATCH, 5) and len(different.unique()) == 15


def test_randomness_where_nothing_else_depends_on_the_batch():
    mu = torch.zeros(5)
    draw = vmap(lambda _: vf.reparameterize(mu, mu), randomness="different")(torch.zeros(BATCH))
    assert len(draw.unique()) == 15
    draw = vmap(lambda _: vf.reparameterize(mu, mu), randomness="same")(torch.zeros(BATCH))
    assert draw.shape == (BATCH, 5) and len(draw.unique()) == 5


@pytest.mark.parametrize("inner", ["same", "different"])
@pytest.mark.parametrize("outer", ["same", "different"])
def test_randomness_of_nested_vmaps(outer, inner):
    call = vmap(vmap(vf.reparameterize, randomness=inner), randomness=outer)
    z = call(torch.zeros(2, 3, 5), torch.zeros(2, 3, 5))
    slices_of = {"same": 1, "different": 2}[outer] * {"same": 1, "different": 3}[inner]
    assert len(z.unique()) == 5 * slices_of
    assert torch.equal(z[0], z[1]) == (outer == "same")
    assert torch.equal(z[:, 0], z[:, 1]) == (inner == "same")


def bayesian_linear(name, parameters):
    """Samples the weight and bias of a Bayesian linear layer, and computes their KL."""
    mu, rho, mu_bias, rho_bias = parameters
    options = {"scale": "softplus", "prior": vf.Prior(0.0, 0.5, "std"), "reduction": "sum"}
    if name == "list":
        return vf.reparameterize_kl_multi([mu, mu_bias], [rho, rho_bias], **options)
    pairs = (mu, rho), (mu_bias, rho_bias)
    if name == "pairs":
        drawn = [vf.reparameterize_kl(*pair, **options) for pair in pairs]
        return [z for z, _ in drawn], drawn[0][1] + drawn[1][1]
    zs = [vf.reparameterize(*pair, scale="softplus") for pair in pairs]
    return zs, sum(vf.gaussian_kl(*pair, **options) for pair in pairs)


@pytest.mark.parametrize("randomness", ["same", "different"])
@pytest.mark.parametrize("name", ["list", "pairs", "samples"])
def test_per_sample_gradients_of_a_bayesian_layer(name, randomness):
    """The gradients of each item equal those that autograd computes from the same noise."""
    shapes = (3, 4), (3, 4), (3,), (3,)
    parameters = [random(*shape, seed=i, dtype=F64) for i, shape in enumerate(shapes)]
    x, y = random(BATCH, 4, seed=8, dtype=F64), random(BATCH, 3, seed=9, dtype=F64)

    def loss(parameters, x, y):
        (weight, bias), kl = bayesian_linear(name, parameters)
        return (F.linear(x, weight, bias) - y).square().sum() + kl, (weight, bias)

    grads, drawn = vmap(grad(loss, has_aux=True), (None, 0, 0), randomness=randomness)(
        parameters, x, y
    )
    for b in range(BATCH):
        leaves = [p.clone().requires_grad_() for p in parameters]
        total, sampled = 0.0, []
        for mu, rho, z in zip(leaves[::2], leaves[1::2], drawn, strict=True):
            sigma = F.softplus(rho)
            sampled.append(mu + sigma * ((z[b] - mu) / sigma).detach())
            total = total + kl_divergence(Normal(mu, sigma), Normal(0.0, 0.5)).sum()
        total = total + (F.linear(x[b], *sampled) - y[b]).square().sum()
        want = torch.autograd.grad(total, leaves)
        assert_same([g[b] for g in grads], list(want))
        assert torch.equal(drawn[0][b], drawn[0][0]) == (randomness == "same" or b == 0)


@native
@pytest.mark.parametrize("name", ["list", "pairs", "samples"])
def test_a_bayesian_layer_draws_nothing_if_the_randomness_is_an_error(name):
    parameters = [torch.zeros(2, 2) for _ in range(4)]
    with pytest.raises(RuntimeError, match=r"randomness of torch\.vmap must be .*, got 'error'"):
        vmap(lambda x: bayesian_linear(name, parameters)[1] + x)(torch.zeros(3))


def test_an_expanded_weight_is_named_with_the_remedy():
    """torch's hooks for per-sample gradients do not support functions of a weight."""

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mu = torch.nn.Parameter(torch.zeros(2, 2))

        def forward(self, x):
            return F.linear(x, vf.reparameterize(self.mu, self.mu))

    with pytest.raises(TypeError, match=r"mu must be a plain tensor.*torch.func.vmap"):
        call_for_per_sample_grads(Layer())(torch.zeros(3, 2))


@native
def test_an_error_names_the_remedy():
    with pytest.raises(RuntimeError, match=r"vae_fused.*pass it to vmap, or a key or eps"):
        vmap(vf.reparameterize)(torch.zeros(2, 3), torch.zeros(2, 3))


@native
def test_operators_are_not_transformed():
    mu = torch.zeros(2, 3)
    operator = torch.ops.vae_fused.gaussian_kl.default
    for transform in (grad, jacfwd):
        with pytest.raises(NotImplementedError, match="call the function of the same name"):
            transform(lambda m: operator(m, m, reduction="sum", dim=None))(mu)


@pytest.mark.parametrize("sample_shape", [(), (2,)])
@pytest.mark.parametrize("randomness", ["same", "different"])
@pytest.mark.parametrize("in_dims", [(0, 0), (None, 0), (0, None)], ids=str)
def test_derivatives_are_those_of_the_noise_that_was_drawn(in_dims, randomness, sample_shape):
    """The derivative of z with respect to raw is 1/2 (z - mu), in reverse and forward mode."""
    mu, raw = (random(*(5,) if d is None else (BATCH, 5), seed=i) for i, d in enumerate(in_dims))

    def reverse(mu, raw):
        def sample(raw):
            z = vf.reparameterize(mu, raw, sample_shape=sample_shape)
            return z.sum(), z

        return grad(sample, has_aux=True)(raw)

    def forward(mu, raw):
        sample = lambda raw: vf.reparameterize(mu, raw, sample_shape=sample_shape)  # noqa: E731
        z, tangent = jvp(sample, (raw,), (torch.ones_like(raw),))
        return tangent if not sample_shape else tangent.sum(0), z

    for derivative in (reverse, forward):
        got, z = vmap(derivative, in_dims, randomness=randomness)(mu, raw)
        want = 0.5 * (z - (mu if not sample_shape or in_dims[0] is None else mu.unsqueeze(1)))
        torch.testing.assert_close(got, want.sum(1) if sample_shape else want)


def test_per_sample_gradients_of_a_model():
    """Per-sample gradients of a VAE's weights equal those of a loop over the samples.

    Each sample has its own noise.
    """
    weight, x = random(6, 4), random(BATCH, 6, seed=1)

    def loss(weight, x):
        z, kl = vf.reparameterize_kl(*(x @ weight).chunk(2), reduction="sum")
        return z.square().sum() + kl, z

    grads, z = vmap(grad(loss, has_aux=True), (None, 0), randomness="different")(weight, x)
    for b in range(BATCH):
        mu, raw = (x[b] @ weight).chunk(2)
        eps = ((z[b] - mu) / (0.5 * raw).exp()).detach()

        def with_noise(weight, x=x[b], eps=eps):
            z, kl = vf.reparameterize_kl(*(x @ weight).chunk(2), eps=eps, reduction="sum")
            return z.square().sum() + kl

        torch.testing.assert_close(grads[b], grad(with_noise)(weight), rtol=1e-4, atol=1e-5)


def test_a_seed_gives_the_same_noise_again():
    mu = torch.zeros(BATCH, 5)
    draws = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        draws.append(vmap(vf.reparameterize, randomness="different")(mu, mu))
    assert torch.equal(draws[0], draws[2]) and not torch.equal(draws[0], draws[1])
    generator = torch.Generator()
    call = lambda mu: vf.reparameterize(mu, mu, generator=generator)  # noqa: E731
    draws = []
    for seed in (1, 1):
        generator.manual_seed(seed)
        draws.append(vmap(call, randomness="different")(mu))
    assert torch.equal(*draws) and len(draws[0].unique()) == 15


# --------------------------------------------------------------------------------------------------
# One launch
# --------------------------------------------------------------------------------------------------


def operators(function, *inputs):
    with Calls() as calls:
        function(*inputs)
    return [name for name in calls.names if name.startswith("vae_fused")]


@native
@pytest.mark.parametrize("size", [3, 50])
def test_a_batch_is_one_launch(size):
    mu, raw = torch.zeros(size, 5), torch.zeros(size, 5)
    eps = torch.ones(size, 5)
    for randomness in ("different", "same"):
        draw = vmap(vf.reparameterize_kl, randomness=randomness)
        shared = ["vae_fused::reparameterize.generator"] * (randomness == "same")
        own = ["generator"] if randomness == "different" else ["default"]
        name = "vae_fused::reparameterize_kl" + (".generator" if own == ["generator"] else "")
        assert operators(draw, mu, raw) == [*shared, name]
    given = vmap(lambda m, r, e: vf.reparameterize_kl(m, r, eps=e))
    assert operators(given, mu, raw, eps) == ["vae_fused::reparameterize_kl"]
    assert operators(vmap(vf.gaussian_kl), mu, raw) == ["vae_fused::gaussian_kl"]
    loss = lambda m, r: sum(o.sum() for o in vf.reparameterize_kl(m, r))  # noqa: E731
    per_sample = vmap(grad(loss, (0, 1)), randomness="different")
    assert operators(per_sample, mu, raw) == [
        "vae_fused::reparameterize_kl.generator", "vae_fused::reparameterize_kl_backward",
    ]  # fmt: skip


@native
def test_a_call_without_transforms_does_not_come_here(monkeypatch):
    """After forward mode and transforms have ended, an ordinary call takes its usual path."""

    def fail(*_):
        raise AssertionError

    mu = torch.zeros(SHAPE)
    jvp(vf.reparameterize, (mu, mu), (mu, mu))
    monkeypatch.setattr(vf._native.latent, "_transformed", fail)
    vf.reparameterize_kl(mu, mu)
    with pytest.raises(AssertionError):
        jvp(vf.reparameterize, (mu, mu), (mu, mu))
