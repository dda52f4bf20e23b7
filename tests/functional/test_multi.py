"""A call with a list of tensors equals one call for each tensor."""

from __future__ import annotations

import math

import pytest
import torch
import torch.utils.checkpoint
from conftest import BACKEND, make_key, native, random

import vae_fused as vf
from vae_fused.reference import noise_of_multi

SHAPES = [(64, 33), (64,), (3, 4, 5, 5), (2500,), (1,), (7, 600)]
PRIOR = vf.Prior(0.1, 0.5, "std")
OPTIONS = {"scale": "softplus", "prior": PRIOR}
NO_PRIORS = {"prior_mean": [], "prior_raw": [], "prior_numbers": []}


def tensors(device: str, dtype: torch.dtype = torch.float32) -> tuple[list, list]:
    mus = [random(*s, seed=k, dtype=dtype, device=device) for k, s in enumerate(SHAPES)]
    raws = [random(*s, seed=k + 50, dtype=dtype, device=device) for k, s in enumerate(SHAPES)]
    return [m.requires_grad_() for m in mus], [r.requires_grad_() for r in raws]


def one_by_one(mus, raws, key, reduction, **options):
    """Returns the samples and the sum of the KLs, in the tensors' precision."""
    zs, kls = [], []
    for k, noise in enumerate(noise_of_multi(mus, None, None, key)):
        z, kl = vf.reference.reparameterize_kl(
            mus[k], raws[k], reduction=reduction, **noise, **options
        )
        zs.append(z)
        kls.append(kl)
    return zs, torch.stack(kls).sum()


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize(
    "options", [{}, OPTIONS, {"temperature": 0.5, "free_bits": 0.3, "mu_soft_clamp": 2.0}]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_values_and_gradients(reduction, options, dtype, device):
    mus, raws = tensors(device, dtype)
    key = make_key(3, 5, device)
    zs, kl = vf.reparameterize_kl_multi(mus, raws, reduction=reduction, key=key, **options)
    wide = [[t.detach().double().requires_grad_() for t in ts] for ts in (mus, raws)]
    # The noise that a call draws in this dtype, converted to float64.
    noise = [
        {"eps": vf.reference.normal(n["key"], m.shape, dtype=torch.promote_types(
            dtype, torch.float32)).double()}
        for n, m in zip(noise_of_multi(mus, None, None, key), mus, strict=True)
    ]  # fmt: skip
    pairs = [
        vf.reference.reparameterize_kl(m, r, reduction=reduction, **n, **options)
        for m, r, n in zip(*wide, noise, strict=True)
    ]
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2}[dtype]
    close = {"rtol": tolerance, "atol": tolerance, "check_dtype": False}
    for z, (expected, _) in zip(zs, pairs, strict=True):
        assert z.dtype == dtype
        torch.testing.assert_close(z, expected, **close)
    expected_kl = torch.stack([kl for _, kl in pairs]).sum()
    torch.testing.assert_close(kl, expected_kl, rtol=1e-5, atol=0.0, check_dtype=False)
    (sum((k + 1) * z.double().square().sum() for k, z in enumerate(zs)) + 0.3 * kl).backward()
    loss = sum((k + 1) * z.square().sum() for k, (z, _) in enumerate(pairs)) + 0.3 * expected_kl
    loss.backward()
    for got, want in zip([*mus, *raws], [*wide[0], *wide[1]], strict=True):
        scale = want.grad.abs().max().item() + 1.0
        torch.testing.assert_close(
            got.grad, want.grad, rtol=4 * tolerance, atol=4 * tolerance * scale, check_dtype=False
        )


def test_unused_results_have_no_part_in_the_gradient(device):
    mus, raws = tensors(device)
    zs, _ = vf.reparameterize_kl_multi(mus, raws, key=make_key(1, device=device))
    zs[1].sum().backward()
    assert torch.equal(mus[1].grad, torch.ones_like(mus[1]))
    assert all(m.grad is None or not m.grad.any() for k, m in enumerate(mus) if k != 1)


def test_generators_seeds_and_views(device):
    mus, raws = tensors(device)
    torch.manual_seed(0)
    first = vf.reparameterize_kl_multi(mus, raws, **OPTIONS)[0]
    torch.manual_seed(0)
    again = vf.reparameterize_kl_multi(mus, raws, **OPTIONS)[0]
    other = vf.reparameterize_kl_multi(mus, raws, **OPTIONS)[0]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    key = make_key(7, device=device)
    views = [mus[0].t(), mus[3][1:]], [raws[0].t(), raws[3][1:]]
    copies = [[t.detach().contiguous() for t in ts] for ts in views]
    for a, b in zip(
        vf.reparameterize_kl_multi(*views, key=key)[0],
        vf.reparameterize_kl_multi(*copies, key=key)[0],
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_explicit_noise_and_broadcast_scales(device):
    mus, _ = tensors(device)
    raws = [torch.zeros((), device=device, requires_grad=True) for _ in mus]
    eps = [torch.ones_like(m) for m in mus]
    zs, kl = vf.reparameterize_kl_multi(mus, raws, eps=eps)
    for z, m in zip(zs, mus, strict=True):
        torch.testing.assert_close(z, m + 1)
    (sum(z.sum() for z in zs) + kl).backward()
    assert raws[0].grad.shape == ()
    torch.testing.assert_close(raws[0].grad, torch.tensor(0.5 * 64 * 33, device=device))


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("path", ["key", "generator", "eps", "fallback"])
@pytest.mark.parametrize("sizes", [(0,), (0, 3), (3, 0, 2)], ids=str)
def test_an_empty_tensor_has_a_sum_of_0_and_a_mean_of_nan_on_every_path(
    sizes, path, create_graph, device, monkeypatch
):
    if path == "fallback":
        monkeypatch.setattr(vf.functional._ext, "use_native", lambda device: False)
    mus = [torch.ones(n, device=device, requires_grad=True) for n in sizes]
    raws = [torch.zeros(n, device=device) for n in sizes]
    noises = {"key": {"key": make_key(1, device=device)}, "eps": {"eps": raws}}
    for reduction in ("sum", "mean"):
        zs, kl = vf.reparameterize_kl_multi(mus, raws, reduction=reduction, **noises.get(path, {}))
        assert [z.shape for z in zs] == [m.shape for m in mus]
        want = 0.5 * sum(sizes) if reduction == "sum" else math.nan
        assert kl.item() == pytest.approx(want, nan_ok=True)
        grads = torch.autograd.grad(kl, mus, create_graph=create_graph)
        for mu, grad in zip(mus, grads, strict=True):
            slope = 1.0 if reduction == "sum" else 1.0 / max(len(mu), 1)
            torch.testing.assert_close(grad.detach(), torch.full_like(mu, slope).detach())


@native
def test_more_tensors_than_a_launch_takes(device):
    mus = [torch.full((k % 5,), 0.1 * k, device=device) for k in range(600)]
    raws = [torch.zeros_like(m) for m in mus]
    key = make_key(1, device=device)
    zs, kl = vf.reparameterize_kl_multi(mus, raws, key=key)
    expected, expected_kl = one_by_one(mus, raws, key, "sum")
    for z, e in zip(zs, expected, strict=True):
        torch.testing.assert_close(z, e)
    torch.testing.assert_close(kl, expected_kl)


@native
@pytest.mark.parametrize("noise", [{"key": make_key(1)}, {"generator": None}])
def test_opcheck(noise):
    mus, raws = ([t.detach()[:2].clone().requires_grad_() for t in ts] for ts in tensors("cpu"))
    op = torch.ops.vae_fused.reparameterize_kl_multi
    op = op.default if "key" in noise else op.generator
    torch.library.opcheck(op, (mus, raws), {**noise, "reduction": "mean", **NO_PRIORS})


@native
def test_opcheck_backward():
    mus, raws = ([t.detach() for t in ts] for ts in tensors("cpu"))
    grad_z = [None if k == 1 else torch.ones_like(m) for k, m in enumerate(mus)]
    torch.library.opcheck(
        torch.ops.vae_fused.reparameterize_kl_multi_backward.default,
        (grad_z, torch.ones(()), mus, raws),
        {"key": make_key(1), "reduction": "sum", **NO_PRIORS},
    )


def test_compiles(device):
    mus, raws = tensors(device)
    key = make_key(2, device=device)

    def loss(mus, raws):
        zs, kl = vf.reparameterize_kl_multi(mus, raws, key=key, **OPTIONS)
        return sum(z.square().sum() for z in zs) + kl

    expected = torch.autograd.grad(loss(mus, raws), [*mus, *raws])
    compiled = torch.compile(loss, fullgraph=True, backend=BACKEND)
    got = torch.autograd.grad(compiled(mus, raws), [*mus, *raws])
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_gradgradcheck():
    mus = [random(3, 2, seed=1, dtype=torch.float64), random(5, seed=2, dtype=torch.float64)]
    raws = [0.5 * m.flip(0) for m in mus]
    leaves = [t.requires_grad_() for t in (*mus, *raws)]

    def call(*t):
        zs, kl = vf.reparameterize_kl_multi(t[:2], t[2:], key=make_key(4), **OPTIONS)
        return (*zs, kl)

    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradgradcheck(call, leaves)


@pytest.mark.parametrize(
    ("mus", "raws", "options", "error", "message"),
    [
        ([], [], {}, ValueError, "mus must contain at least 1 tensor, got none"),
        (torch.zeros(2), [torch.zeros(2)], {}, TypeError, "mus must be a sequence of Tensors"),
        ([torch.zeros(2)], [], {}, ValueError, "raws must have the length of mus, 1, got 0"),
        ([torch.zeros(2)] * 2, [torch.zeros(2)] * 2, {"reduction": "none"}, ValueError,
         "reduction must be one of sum, mean, got 'none'"),
        ([torch.zeros(2), torch.zeros(2).double()], [torch.zeros(2), torch.zeros(2).double()], {},
         TypeError, r"mus\[1\] must have the dtype of mus\[0\], torch.float32, .* got"),
        ([torch.zeros(2)], [torch.zeros(3)], {}, ValueError,
         r"logvar must broadcast with the shape of mu, \(2,\), got \(3,\)"),
        ([torch.zeros(2)] * 2, [torch.zeros(2)] * 2, {"prior": [vf.Prior()]}, ValueError,
         "prior must have the length of mus, 2, got 1; pass one vf.Prior for all tensors"),
        ([torch.zeros(2)] * 2, [torch.zeros(2)] * 2,
         {"prior": [vf.Prior(), vf.Prior(0.0, 1.0, "std")]}, ValueError,
         r"prior\[1\] must have the scale of prior\[0\], .* got"),
        ([torch.zeros(2)], [torch.zeros(2)], {"prior": vf.Prior(torch.zeros(3))}, ValueError,
         "prior.mean must broadcast to the shape"),
        ([torch.zeros(2)], [torch.zeros(2)], {"eps": [torch.zeros(3)]}, ValueError,
         "eps must have the shape of z"),
    ],
)  # fmt: skip
def test_bad_input(mus, raws, options, error, message):
    state = torch.get_rng_state()
    with pytest.raises(error, match=message):
        vf.reparameterize_kl_multi(mus, raws, **options)
    assert torch.equal(torch.get_rng_state(), state)


# --------------------------------------------------------------------------------------------------
# A prior for each tensor, and calls that return only the KL
# --------------------------------------------------------------------------------------------------


def priors(mus, kind):
    """Returns a prior for each tensor: scalars, tensors, or a mixture of both."""
    of_numbers = [vf.Prior(0.1 * k, 0.5 + 0.2 * k, "std") for k in range(len(mus))]
    of_tensors = [
        vf.Prior(0.3 * m.detach().cos(), m.detach().sin().square() + 0.2, "std") for m in mus
    ]
    of_means = [vf.Prior(t.mean, n.raw, "std") for t, n in zip(of_tensors, of_numbers, strict=True)]
    mixed = [[of_numbers, of_means, of_tensors][k % 3][k] for k in range(len(mus))]
    of_row = [vf.Prior(0.0, torch.full((), 0.7, device=mus[0].device), "std")] * len(mus)
    return {
        "numbers": of_numbers, "tensors": of_tensors, "means": of_means, "mixed": mixed,
        "broadcast": of_row,
    }[kind]  # fmt: skip


@pytest.mark.parametrize("kind", ["numbers", "tensors", "means", "mixed", "broadcast"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_prior_for_each_tensor(kind, reduction, dtype, device):
    mus, raws = tensors(device, dtype)
    key, own = make_key(3, 5, device), priors(mus, kind)
    more = {"scale": "softplus", "reduction": reduction, "temperature": 0.5}
    zs, kl = vf.reparameterize_kl_multi(mus, raws, prior=own, key=key, **more)
    noise = noise_of_multi(mus, None, None, key)
    pairs = [
        vf.reparameterize_kl(m, r, prior=p, **n, **more)
        for m, r, p, n in zip(mus, raws, own, noise, strict=True)
    ]
    for z, (want, _) in zip(zs, pairs, strict=True):
        assert torch.equal(z, want)
    want_kl = torch.stack([k for _, k in pairs]).sum()
    torch.testing.assert_close(kl, want_kl)
    got = torch.autograd.grad(sum(z.float().sum() for z in zs) + 2 * kl, [*mus, *raws])
    loss = sum(z.float().sum() for z, _ in pairs) + 2 * want_kl
    for a, b in zip(got, torch.autograd.grad(loss, [*mus, *raws]), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", [None, "numbers", "mixed"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_the_kl_alone(kind, reduction, dtype, device):
    mus, raws = tensors(device, dtype)
    own = None if kind is None else priors(mus, kind)
    more = {"scale": "softplus", "reduction": reduction, "prior": own, "free_bits": 0.05}
    state = torch.get_rng_state()
    kl = vf.gaussian_kl_multi(mus, raws, **more)
    assert torch.equal(torch.get_rng_state(), state)
    _, want = vf.reparameterize_kl_multi(mus, raws, **more)
    assert kl.dtype == want.dtype and kl.shape == ()
    torch.testing.assert_close(kl, want, rtol=1e-6, atol=0.0)
    exact = vf.reference.gaussian_kl_multi(
        [m.detach().double() for m in mus], [r.detach().double() for r in raws], **more
    ) if dtype != torch.float16 or kind is None else want.double()  # fmt: skip
    torch.testing.assert_close(kl.double(), exact.double(), rtol=1e-5, atol=0.0)
    got = torch.autograd.grad(kl, [*mus, *raws])
    for a, b in zip(got, torch.autograd.grad(want, [*mus, *raws]), strict=True):
        assert torch.equal(a, b)


def test_a_learned_prior_of_one_tensor_gets_its_gradient(device):
    mus, raws = tensors(device)
    own = [vf.Prior(torch.zeros_like(m).requires_grad_(), 0.5, "std") for m in mus]
    leaves = [p.mean for p in own]
    key = make_key(3, device=device)
    _, kl = vf.reparameterize_kl_multi(mus, raws, prior=own, key=key)
    for got, m in zip(torch.autograd.grad(kl, leaves), mus, strict=True):
        torch.testing.assert_close(got, -4.0 * m.detach())  # -(mu - 0) / tau^2
    kl = vf.gaussian_kl_multi(mus, raws, prior=own)
    for got, m in zip(torch.autograd.grad(kl, leaves), mus, strict=True):
        torch.testing.assert_close(got, -4.0 * m.detach())


def test_second_derivatives_with_priors():
    mus = [random(3, 2, seed=1, dtype=torch.float64), random(5, seed=2, dtype=torch.float64)]
    leaves = [t.requires_grad_() for t in (*mus, *(0.5 * m.flip(0) for m in mus))]
    own = priors(mus, "mixed")

    def call(*t):
        zs, kl = vf.reparameterize_kl_multi(t[:2], t[2:], key=make_key(4), prior=own)
        return (*zs, kl, vf.gaussian_kl_multi(t[:2], t[2:], prior=own))

    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradgradcheck(call, leaves)


def test_priors_compile(device):
    mus, raws = tensors(device)
    own, key = priors(mus, "mixed"), make_key(2, device=device)

    def loss(mus, raws):
        zs, kl = vf.reparameterize_kl_multi(mus, raws, key=key, prior=own)
        return sum(z.square().sum() for z in zs) + kl + vf.gaussian_kl_multi(mus, raws, prior=own)

    expected = torch.autograd.grad(loss(mus, raws), [*mus, *raws])
    compiled = torch.compile(loss, fullgraph=True, backend=BACKEND)
    got = torch.autograd.grad(compiled(mus, raws), [*mus, *raws])
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


@native
def test_opcheck_kl_alone_and_priors():
    mus, raws = ([t.detach()[:2].clone().requires_grad_() for t in ts] for ts in tensors("cpu"))
    given = {
        "prior_mean": [None if k % 2 else m.detach() for k, m in enumerate(mus)],
        "prior_raw": [], "prior_numbers": [0.1, 0.2] * len(mus),
    }  # fmt: skip
    torch.library.opcheck(
        torch.ops.vae_fused.gaussian_kl_multi.default, (mus, raws), {"reduction": "sum", **given}
    )
    learned = {**given, "prior_mean": [m.detach().requires_grad_() for m in mus]}
    with pytest.raises(ValueError, match="prior must not require a gradient"):
        torch.ops.vae_fused.gaussian_kl_multi(mus, raws, reduction="sum", **learned)


def test_lists_without_gradients_take_a_prior_that_learns(device):
    mus, raws = tensors(device)
    learned = vf.nn.LearnedPrior(std=0.5, device=device)
    want = vf.gaussian_kl_multi(mus, raws, prior=vf.Prior(0.0, learned.raw.item()))
    with torch.no_grad():
        kl = vf.gaussian_kl_multi(mus, raws, prior=learned)
        _, same = vf.reparameterize_kl_multi(mus, raws, prior=learned)
    torch.testing.assert_close(kl, want.detach())
    torch.testing.assert_close(same, kl)
    run = torch.utils.checkpoint.checkpoint(
        lambda *ts: vf.gaussian_kl_multi(ts[:1], ts[1:], prior=learned), mus[0], raws[0],
        use_reentrant=True,
    )  # fmt: skip
    (got,) = torch.autograd.grad(vf.gaussian_kl(mus[0], raws[0], prior=learned, reduction="sum"),
                                 learned.raw)  # fmt: skip
    run.backward()
    torch.testing.assert_close(learned.raw.grad, got)


def test_modules_of_priors_and_of_parameters_are_lists(device):
    mus, raws = tensors(device)
    priors = torch.nn.ModuleList([vf.nn.LearnedPrior(std=0.5, device=device) for _ in mus])
    kl = vf.gaussian_kl_multi(torch.nn.ParameterList(mus), raws, prior=priors)
    want = vf.gaussian_kl_multi(mus, raws, prior=vf.Prior(0.0, 0.5, "std"))
    torch.testing.assert_close(kl, want)
    kl = vf.gaussian_kl_multi(mus, raws, prior=[None] * len(mus))
    torch.testing.assert_close(kl, vf.gaussian_kl_multi(mus, raws))
