"""Scales at the ends of their range are stable, clamped, or NaN."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import relative

import vae_fused as vf
from vae_fused.options import KINDS

F64 = torch.float64
INF, NAN = math.inf, math.nan


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_softplus_is_stable_for_any_input(beta, dtype, device):
    """The logarithm of sigma and its gradient are correct even where sigma underflows."""
    raw = torch.tensor([-1000.0, -200.0, -60.0, 60.0, 1000.0], dtype=dtype, device=device)
    raw.requires_grad_()
    scale = vf.Scale("softplus", beta=beta)
    z, kl = vf.reparameterize_kl(
        torch.zeros_like(raw), raw, scale=scale, eps=torch.ones_like(raw), reduction="none"
    )
    u = raw.detach().double() * beta
    sigma = torch.where(u > 0, u, u.exp()) / beta
    log_variance = 2 * (torch.where(u > 0, u.abs().log(), u) - math.log(beta))
    close = {"rtol": 1e-6, "atol": 1e-30}
    torch.testing.assert_close(z.double(), sigma, **close)
    want = 0.5 * (sigma**2 - 1 - log_variance)
    torch.testing.assert_close(kl.double(), want, **close)
    (grad,) = torch.autograd.grad(kl.sum(), raw, retain_graph=True)
    slope = torch.where(u > 0, 1 / sigma, beta)  # of ln sigma
    torch.testing.assert_close(grad.double(), (sigma**2 - 1) * slope, **close)
    (grad,) = torch.autograd.grad(z.sum(), raw)
    torch.testing.assert_close(grad.double(), sigma * slope, **close)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("beta", [1e-6, 1.0, 1e6])
def test_softplus_keeps_its_logarithm_whatever_beta_is(beta, dtype, device):
    u = torch.linspace(-60, 60, 4001, dtype=F64, device=device)
    raw = (u / beta).to(dtype)
    sigma = torch.nn.functional.softplus(raw.double() * beta, threshold=1e4) / beta
    kl = vf.gaussian_kl(
        torch.zeros_like(raw), raw, scale=vf.Scale("softplus", beta=beta), reduction="none"
    )
    want = 0.5 * (sigma**2 - 1 - 2 * sigma.log())
    torch.testing.assert_close(kl.double(), want, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_sigmoid2_is_stable_for_any_input(dtype, device):
    raw = torch.tensor([-1000.0, -300.0, 300.0, 1000.0], dtype=dtype, device=device)
    raw.requires_grad_()
    kl = vf.gaussian_kl(torch.zeros_like(raw), raw, scale="sigmoid2", reduction="none")
    low = raw.detach().double() < 0
    log_variance = torch.where(low, raw.detach().double(), 0.0) + 2 * math.log(2.0)
    want = 0.5 * (torch.where(low, 0.0, 4.0) - 1 - log_variance)
    torch.testing.assert_close(kl.double(), want, rtol=1e-6, atol=0)
    (grad,) = torch.autograd.grad(kl.sum(), raw)
    torch.testing.assert_close(grad.double(), torch.where(low, -0.5, 0.0).double())


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("module", [vf, vf.reference])
@pytest.mark.parametrize("floors", [{}, {"std_floor": 3.0}, {"var_floor": 0.5}], ids=str)
@pytest.mark.parametrize("kind", ["std", "var"])
def test_negative_std_and_variance_are_nan(kind, floors, module, create_graph, device):
    """The gradients are NaN as well. A variance floor absorbs values above minus the floor."""
    raw = torch.tensor([-1.0, -0.25, NAN, 2.0], device=device, requires_grad=True)
    mu, scale = torch.zeros_like(raw), vf.Scale(kind, **floors)
    absorbs = kind == "var" and "var_floor" in floors
    for value in module.reparameterize_kl(mu, raw, scale=scale, reduction="none"):
        (grad,) = torch.autograd.grad(
            value.sum(), raw, create_graph=create_graph, retain_graph=True
        )
        nan = [True, not absorbs, True, False]
        assert value.isnan().tolist() == grad.isnan().tolist() == nan


@pytest.mark.parametrize("gain", [1 / 3, 0.1, 0.7])
def test_a_floor_absorbs_what_a_clamp_rounds_below_zero(gain, device):
    """The clamped variance is gain * -3 + 3 gain, which a fused multiply-add makes negative."""
    scale = vf.Scale("var", clamp=(-3.0, 3.0), gain=gain, shift=3 * gain, var_floor=1e-4)
    raw = torch.full((3,), -5.0, device=device)
    for function in (vf, vf.reference):
        kl = function.gaussian_kl(torch.zeros_like(raw), raw, scale=scale, reduction="none")
        torch.testing.assert_close(kl, torch.full_like(kl, 4.10522), rtol=1e-3, atol=0)


@pytest.mark.parametrize("module", [vf, vf.reference])
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("shift", [0.0, -1.0])
@pytest.mark.parametrize("floor", [1e-8, 1e-4])
def test_the_gradients_of_a_variance_of_zero_are_those_of_its_floor(
    floor, shift, dtype, module, device
):
    """A variance may be 0 after a ReLU. sigma is sqrt(variance + v), where v is the floor."""
    raw = torch.tensor([0.0, 2**-20, 0.25, 1.0], dtype=dtype, device=device) - shift
    raw.requires_grad_()
    scale = vf.Scale("var", shift=shift, var_floor=floor)
    z, kl = module.reparameterize_kl(
        torch.zeros_like(raw), raw, scale=scale, eps=torch.full_like(raw, 2.0), reduction="sum"
    )
    variance = raw.detach().double() + shift + floor
    close = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(z.detach().double(), 2 * variance.sqrt(), **close)
    for value, first, second in (
        (z.sum(), variance.rsqrt(), -0.5 * variance**-1.5),
        (kl, 0.5 - 0.5 / variance, 0.5 / variance**2),
    ):
        (grad,) = torch.autograd.grad(value, raw, retain_graph=True)
        torch.testing.assert_close(grad.double(), first, **close)
        (grad,) = torch.autograd.grad(value, raw, create_graph=True)
        torch.testing.assert_close(grad.double(), first, **close)
        (grad,) = torch.autograd.grad(grad.sum(), raw)
        torch.testing.assert_close(grad.double(), second, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("floors", [{"std_floor": 0.1}, {"var_floor": 1e-2}], ids=str)
def test_a_std_of_zero_has_second_derivatives(floors, device):
    results = []
    for module in (vf, vf.reference):
        raw = torch.tensor([0.0, 0.5], dtype=F64, device=device, requires_grad=True)
        z, kl = module.reparameterize_kl(
            torch.zeros_like(raw), raw, scale=vf.Scale("std", **floors), eps=torch.ones_like(raw)
        )
        (grad,) = torch.autograd.grad(z.sum() + kl, raw, create_graph=True)
        results.append(torch.autograd.grad(grad.sum(), raw)[0])
    assert bool(results[0].isfinite().all())
    torch.testing.assert_close(*results)


def test_a_clamp_passes_the_gradient_at_its_bounds_and_none_outside(device):
    raw = torch.tensor([-2.0, -1.0, 0.5, 1.5, 3.0], device=device, requires_grad=True)
    mu = torch.zeros_like(raw)
    kl = vf.gaussian_kl(mu, raw, scale=vf.Scale(clamp=(-1.0, 1.5)), reduction="sum")
    (grad,) = torch.autograd.grad(kl, raw)
    want = 0.5 * torch.expm1(raw.detach()) * torch.tensor([0.0, 1, 1, 1, 0], device=device)
    torch.testing.assert_close(grad, want)


@pytest.mark.parametrize("create_graph", [False, True])
def test_the_gradient_of_a_soft_clamp_does_not_cancel(create_graph, device):
    """In float32, 1 - tanh^2 has no correct digit at 9 times the bound, where sech^2 is 6e-8."""
    x = torch.linspace(-14.0, 14.0, 29, device=device, requires_grad=True)
    z = vf.reparameterize(2 * x, torch.zeros_like(x), mu_soft_clamp=2.0, eps=torch.zeros_like(x))
    (grad,) = torch.autograd.grad(z.sum(), x, create_graph=create_graph)
    assert relative(grad.detach(), 2 / torch.cosh(x.detach().double()) ** 2) < 2e-5


FAR = {  # raw scales of q for which sigma leaves the range of float32, but ln sigma^2 does not
    "logvar": (-200.0, -176.0, 178.0, 200.0),
    "logstd": (-100.0, -88.0, 89.0, 100.0),
    "softplus": (-200.0, -104.0, -88.0),
    "sigmoid2": (-300.0, -177.0, -175.38),
    vf.Scale("softplus", beta=0.1): (-1000.0, -892.0, -878.0, -870.0),
}


@pytest.mark.parametrize("module", [vf, vf.reference])
@pytest.mark.parametrize("kind", FAR, ids=str)
def test_sigma_and_tau_may_leave_the_range_of_float32(kind, module, device):
    """The quotient of sigma and tau stays in range. mu is the prior's mean."""
    near = torch.tensor([-3.0, -0.5, 0.0, 1e-3, 2.0])
    raw = torch.tensor(FAR[kind]).repeat_interleave(len(near))
    raws = {"raw": raw, "prior": (raw + near.repeat(len(FAR[kind])))}
    results = []
    for dtype, function in ((torch.float32, module), (F64, vf.reference)):
        leaves = {k: v.to(device, dtype).requires_grad_() for k, v in raws.items()}
        mu = torch.zeros_like(leaves["raw"]).requires_grad_()
        prior = vf.Prior(mu.detach().clone().requires_grad_(), leaves["prior"], kind)
        kl = function.gaussian_kl(mu, leaves["raw"], scale=kind, prior=prior, reduction="none")
        grads = torch.autograd.grad(kl.sum(), [mu, prior.mean, *leaves.values()])
        results.append([kl.detach().double(), *(g.double() for g in grads)])
    for got, truth in zip(*results, strict=True):
        # The rounding error of the difference of the logarithms is proportional to their size.
        torch.testing.assert_close(got, truth, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("module", [vf, vf.reference])
@pytest.mark.parametrize(
    ("scale", "raw"),
    [
        (vf.Scale(clamp=(None, 150.0)), 160.0),
        (vf.Scale(clamp=(None, 190.0)), 200.0),
        (vf.Scale("logstd", clamp=(None, 100.0)), 101.0),
        (vf.Scale("logstd", clamp=(None, 100.0), var_floor=1e-3), 101.0),
        (vf.Scale("std", clamp=(0.0, 1.0)), -0.5),
        (vf.Scale("var", clamp=(0.0, 1.0)), -0.5),
        (vf.Scale(clamp=(-30.0, 20.0)), 50.0),
        (vf.Scale("softplus", clamp=(-30.0, 20.0), std_floor=0.1), 50.0),
    ],
    ids=str,
)
def test_beyond_a_clamp_not_even_an_infinite_gradient_passes(
    scale, raw, module, create_graph, device
):
    mu = torch.ones(1, device=device, requires_grad=True)
    raw = torch.tensor([raw], device=device, requires_grad=True)
    z, kl = module.reparameterize_kl(mu, raw, scale=scale, eps=torch.ones(1, device=device))
    for value, incoming in ((z, 1.0), (z, INF), (kl, 1.0)):
        outer = torch.full_like(value, incoming)
        (grad,) = torch.autograd.grad(
            value, raw, outer, retain_graph=True, create_graph=create_graph
        )
        assert grad.item() == 0.0
    prior = vf.Prior(mu, raw, scale)
    (grad,) = torch.autograd.grad(module.gaussian_kl(mu, mu, prior=prior), raw)
    assert grad.item() == 0.0


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("module", [vf, vf.reference])
def test_nan_passes_a_clamp_and_so_does_its_gradient(module, create_graph, device):
    """The gradient of torch.clamp at NaN is 0, which would hide the NaN."""
    raw = torch.full((1,), NAN, device=device, requires_grad=True)
    mu, scale = torch.zeros(1, device=device), vf.Scale(clamp=(-30, 20))
    for value in module.reparameterize_kl(mu, raw, scale=scale):
        (grad,) = torch.autograd.grad(
            value.sum(), raw, create_graph=create_graph, retain_graph=True
        )
        assert value.isnan() and grad.isnan()


@pytest.mark.parametrize("module", [vf, vf.reference])
def test_a_floor_of_the_variance_does_not_square_a_large_sigma(module, device):
    scale = vf.Scale(var_floor=1e-3)
    raw = torch.tensor([80.0, 86.0, 88.0, 100.0, 150.0, 176.0], device=device, requires_grad=True)
    mu = torch.zeros_like(raw)
    z = module.reparameterize(mu, raw, scale=scale, eps=torch.ones_like(raw))
    (grad,) = torch.autograd.grad(z.sum(), raw)
    torch.testing.assert_close(z, torch.exp(0.5 * raw), rtol=2e-6, atol=0.0)
    torch.testing.assert_close(grad, 0.5 * torch.exp(0.5 * raw), rtol=4e-6, atol=0.0)
    kl = module.gaussian_kl(mu, raw, scale=scale, reduction="none", prior=vf.Prior(0.0, raw))
    torch.testing.assert_close(kl, torch.zeros_like(kl), rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("module", [vf, vf.reference])
@pytest.mark.parametrize("kind", ["std", "var"])
def test_a_least_sigma_passes_the_gradient_at_equality_and_none_below(kind, module, device):
    """Below the minimum, sigma and its logarithm have their values at the minimum.

    At a variance of 0, the gradient is therefore not infinite.
    """
    sigma = torch.tensor([0.0, 0.5, 1.0, 2.0], device=device)
    raw = (sigma if kind == "std" else sigma**2).requires_grad_()
    z, kl = module.reparameterize_kl(
        torch.zeros_like(raw), raw, scale=vf.Scale(kind, std_min=1.0), eps=torch.ones_like(raw),
        reduction="none",
    )  # fmt: skip
    least, passes = sigma.clamp_min(1.0), sigma >= 1.0
    torch.testing.assert_close(z.detach(), least)
    torch.testing.assert_close(kl.detach(), 0.5 * (least**2 - 1) - least.log())
    slope = torch.ones_like(sigma) if kind == "std" else 0.5 / sigma
    for value, factor in ((z, torch.ones_like(sigma)), (kl, least - 1 / least)):
        (grad,) = torch.autograd.grad(value.sum(), raw, retain_graph=True)
        torch.testing.assert_close(grad, torch.where(passes, slope * factor, 0.0))


@pytest.mark.parametrize("kind", KINDS)
def test_a_least_sigma_is_a_clamp_of_torch(kind, device):
    low = 0.0 if kind in ("std", "var") else -2.0
    raw = torch.empty(64, dtype=F64, device=device).uniform_(low, 2.0).requires_grad_()
    eps, least = torch.randn_like(raw), 0.9
    z = vf.reparameterize(raw * 0, raw, scale=vf.Scale(kind, std_min=least), eps=eps)
    sigma = vf.DiagonalGaussian(raw * 0, raw, scale=kind).scale
    want = sigma.clamp_min(least) * eps
    torch.testing.assert_close(z, want)
    got, want = (torch.autograd.grad(v.sum(), raw)[0] for v in (z, want))
    torch.testing.assert_close(got, want)
    assert 0 < int((got == 0).sum()) < 64


@pytest.mark.parametrize("kind", KINDS)
def test_a_least_sigma_has_derivatives_of_two_orders(kind):
    mu, raw = torch.randn(5, dtype=F64, requires_grad=True), torch.rand(5, dtype=F64) + 0.1
    scale, eps = vf.Scale(kind, std_min=0.7), torch.randn(5, dtype=F64)

    def call(mu, raw):
        return vf.reparameterize_kl(mu, raw, scale=scale, eps=eps, reduction="none")

    assert torch.autograd.gradcheck(call, (mu, raw.requires_grad_()))
    assert torch.autograd.gradgradcheck(call, (mu, raw))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("bounds", [(-2.0, 1.0), (-30.0, 20.0), (None, 3.0), (-4.0, None)])
def test_the_gradient_ends_where_the_clamp_does(bounds, dtype, device):
    """Some points are just beyond a bound.

    At these points, a clamp whose bound is wrong by 1 % would pass the gradient.
    """
    ends = [bound for bound in bounds if bound is not None]
    values = [end + step for end in ends for step in (-0.005, 0.0, 0.005)]
    raw = torch.tensor(values, dtype=dtype, device=device, requires_grad=True)
    mu, eps = torch.zeros_like(raw), torch.ones_like(raw)
    scale = vf.Scale("logvar", clamp=bounds)
    z, kl = vf.reparameterize_kl(mu, raw, scale=scale, eps=eps, reduction="none")
    low, high = (-math.inf if bounds[0] is None else bounds[0]), bounds[1] or math.inf
    x = raw.detach().double()
    passes = (x >= low) & (x <= high)
    sigma = torch.exp(0.5 * x.clamp(low, high))
    for value, want, slope in (
        (z, sigma, 0.5 * sigma),
        (kl, 0.5 * (sigma**2 - 1.0 - x.clamp(low, high)), 0.5 * (sigma**2 - 1.0)),
    ):
        (grad,) = torch.autograd.grad(value.sum(), raw, retain_graph=True)
        torch.testing.assert_close(value.double(), want, rtol=1e-6, atol=0.0)
        torch.testing.assert_close(
            grad.double(), torch.where(passes, slope, 0.0), rtol=1e-6, atol=0.0
        )


@pytest.mark.parametrize("module", [vf, vf.reference], ids=["compiled", "eager"])
@pytest.mark.parametrize("estimator", ["analytic", "sample"])
@pytest.mark.parametrize("with_prior", [False, True])
@pytest.mark.parametrize(
    "floors",
    [{"std_floor": 0.1}, {"var_floor": 0.01}, {"std_min": 0.1}, {"std_floor": 0.1, "std_min": 0.2}],
    ids=str,
)
@pytest.mark.parametrize("kind", ["logvar", "logstd"])
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_an_infinite_sigma_has_an_infinite_gradient_with_a_floor_as_without(
    dtype, kind, floors, with_prior, estimator, module, device
):
    """A floor has no effect on an infinite sigma, and sigma' / sigma must not become inf / inf."""
    largest = math.log(torch.finfo(dtype).max) * (2 if kind == "logvar" else 1)
    raw = torch.tensor([1.005 * largest, 2 * largest, 1.0], dtype=dtype, device=device)
    raw.requires_grad_()
    zero = torch.zeros_like(raw)
    given = {"eps": torch.ones_like(raw), "reduction": "none", "estimator": estimator}
    if with_prior:
        given["prior"] = vf.Prior(zero.detach(), zero.detach())
    for scale in (vf.Scale(kind), vf.Scale(kind, **floors)):
        z, kl = module.reparameterize_kl(zero, raw, scale=scale, **given)
        assert z[:2].isinf().all() and (kl[:2] == INF).all()
        for result in (z, kl):
            (grad,) = torch.autograd.grad(result.sum(), raw, retain_graph=True)
            assert (grad[:2] == INF).all() and grad[2].isfinite()


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("module", [vf, vf.reference])
@pytest.mark.parametrize("floors", [{}, {"std_floor": 0.1}, {"var_floor": 0.01}], ids=str)
@pytest.mark.parametrize("kind", ["std", "var", "softplus"])
def test_an_infinite_raw_scale_has_no_gradient_unless_sigma_is_an_exponential(
    kind, floors, module, create_graph, device
):
    """See docs/numerics.md: the derivative of ln sigma^2 is 0, and h is infinite."""
    raw = torch.tensor([INF, 2.0], device=device, requires_grad=True)
    zero, scale = torch.zeros_like(raw), vf.Scale(kind, **floors)
    given = {"scale": scale, "eps": torch.ones_like(raw), "reduction": "none"}
    z, kl = module.reparameterize_kl(zero, raw, **given)
    assert z[0] == INF and kl[0] == INF
    _, estimate = module.reparameterize_kl(zero, raw, estimator="sample", **given)
    linear = module.sampled_kl(zero, raw, scale=scale, reduction="none")
    of_prior = module.gaussian_kl(zero, zero, prior=vf.Prior(zero, raw, scale), reduction="none")
    of_sample = 0.0 if kind == "var" else 1.0
    of_estimate = 0.0 if kind == "var" else INF
    for value, slope in (
        (kl, 0.0), (linear, 0.0), (of_prior, 0.0), (z, of_sample), (estimate, of_estimate),
    ):  # fmt: skip
        (grad,) = torch.autograd.grad(
            value.sum(), raw, retain_graph=True, create_graph=create_graph
        )
        assert grad[0].item() == slope and grad[1].isfinite()


@pytest.mark.parametrize("module", [vf, vf.reference])
@pytest.mark.parametrize("kind", ["std", "var"])
def test_the_gradient_of_a_logarithm_is_nan_below_zero(kind, module, device):
    """The gradient 1 / raw by itself would be finite."""
    raw = torch.tensor([-1.0, -INF, 2.0], device=device, requires_grad=True)
    value = module.sampled_kl(torch.zeros_like(raw), raw, scale=kind, reduction="none")
    (grad,) = torch.autograd.grad(value.sum(), raw)
    assert value.isnan().tolist() == grad.isnan().tolist() == [True, True, False]
