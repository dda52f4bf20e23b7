"""The log density and the KL from a sample, whose formulas are linear in the log variance."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import DTYPES, make_key, random, scaled
from option_recipes import SCALES, SHAPE, sigma_of, tensors
from torch.distributions import Normal

import vae_fused as vf

F64 = torch.float64
MODULES = pytest.mark.parametrize("module", [vf, vf.reference], ids=["vf", "reference"])
TOLERANCE = {F64: 1e-12, torch.float32: 4e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def leaves_of(name, dtype, device, *shapes):
    """Returns mu, a raw scale that is valid for the scale ``name``, and random tensors."""
    leaves = tensors({"scale": SCALES[name]}, dtype, device)
    more = [random(*s, seed=40 + i, dtype=dtype, device=device) for i, s in enumerate(shapes)]
    return leaves["mu"], leaves["raw"], *(t.requires_grad_() for t in more)


def assert_same(got, want, leaves, doubles, dtype):
    assert got.shape == want.shape and got.dtype == (F64 if dtype == F64 else torch.float32)
    assert scaled(got, want) <= min(TOLERANCE[dtype], 4e-6)
    weight = random(*got.shape, seed=60, device=got.device.type)
    grads = torch.autograd.grad(got, leaves, weight.to(got))
    truth = torch.autograd.grad(want, doubles, weight.double())
    for g, t, leaf in zip(grads, truth, leaves, strict=True):
        assert g.dtype == dtype and g.shape == leaf.shape and scaled(g, t) <= 4 * TOLERANCE[dtype]


def doubled(*leaves):
    return [t.detach().double().requires_grad_() for t in leaves]


# --------------------------------------------------------------------------------------------------
# gaussian_log_prob
# --------------------------------------------------------------------------------------------------


@MODULES
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SCALES)
def test_log_prob_is_that_of_torch_distributions(name, dtype, module, device):
    leaves = leaves_of(name, dtype, device, SHAPE)
    mu, raw, value = doubles = doubled(*leaves)
    want = Normal(mu, sigma_of(raw, SCALES[name]), validate_args=False).log_prob(value)
    got = module.gaussian_log_prob(leaves[2], leaves[0], leaves[1], scale=SCALES[name])
    assert_same(got, want, leaves, doubles, dtype)


@pytest.mark.parametrize(
    ("shapes", "shape"),
    [
        (((7, 4, 3, 5), SHAPE, SHAPE), (7, 4, 3, 5)),
        (((5,), (4, 1, 5), (3, 1)), SHAPE),
        (((4, 1, 1), (), ()), (4, 1, 1)),
        (((), (3,), ()), (3,)),
        (((), (), ()), ()),
    ],
)
def test_value_mean_and_scale_broadcast_together(shapes, shape, device):
    leaves = [
        random(*s, seed=i, dtype=F64, device=device).requires_grad_() for i, s in enumerate(shapes)
    ]
    got = vf.gaussian_log_prob(*leaves)
    value, mu, raw = doubles = doubled(*leaves)
    assert got.shape == shape
    assert_same(got, Normal(mu, torch.exp(raw / 2)).log_prob(value), leaves, doubles, F64)


@MODULES
def test_log_prob_is_reduced_as_a_kl_is(module, device):
    value, mu, raw = random(3, *SHAPE, dtype=F64, device=device)
    elements = Normal(mu, torch.exp(raw / 2)).log_prob(value)
    mask = (random(4, 1, 5, seed=4) > 0).to(device)

    def log_prob(**kwargs):
        return module.gaussian_log_prob(value, mu, raw, **kwargs)

    torch.testing.assert_close(log_prob(), elements)
    torch.testing.assert_close(log_prob(dim=(1, 2)), elements.sum((1, 2)))
    torch.testing.assert_close(log_prob(reduction="batchmean"), elements.sum() / 4)
    torch.testing.assert_close(log_prob(mask=mask, dim=1), (elements * mask).sum(1))
    torch.testing.assert_close(
        log_prob(mask=mask, reduction="mean"), (elements * mask).sum() / mask.expand(SHAPE).sum()
    )


def test_garbage_under_a_mask_reaches_no_density(device):
    mask = (random(*SHAPE, seed=4) > 0).to(device)
    leaves = [
        torch.where(mask, t, math.nan).requires_grad_() for t in random(3, *SHAPE, device=device)
    ]
    for function in (vf.gaussian_log_prob, lambda v, m, s: vf.sampled_kl(v, s, mask=mask)):
        kwargs = {"mask": mask} if function is vf.gaussian_log_prob else {}
        total = function(*leaves, **kwargs).sum()
        assert bool(total.isfinite())
        for grad in torch.autograd.grad(total, leaves, allow_unused=True):
            assert grad is None or (bool(grad.isfinite().all()) and not grad[~mask].any())


@MODULES
def test_a_density_integrates_to_one(module, device):
    value = torch.linspace(-30, 30, 60001, dtype=F64, device=device)
    for scale, raw in (("softplus", 0.5), ("std", 1.7), ("sigmoid2", -1.0)):
        raw = torch.tensor(raw, dtype=F64, device=device)
        p = module.gaussian_log_prob(value, torch.tensor(0.3).to(raw), raw, scale=scale).exp()
        assert p.sum().item() * 1e-3 == pytest.approx(1.0, rel=1e-9)


# --------------------------------------------------------------------------------------------------
# sampled_kl
# --------------------------------------------------------------------------------------------------


@MODULES
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sampled_kl_is_that_of_vits(dtype, module, device):
    """As in VITS's losses.py, the mask has shape (B, 1, T), and the other tensors (B, C, T)."""
    raw = [random(*SHAPE, seed=i, dtype=dtype, device=device) * 0.5 for i in range(4)]
    leaves = [t.requires_grad_() for t in raw]
    z_p, logs_q, m_p, logs_p = doubles = doubled(*leaves)
    mask = (random(4, 1, 5, seed=9) > -0.5).to(device)
    kl = logs_p - logs_q - 0.5 + 0.5 * (z_p - m_p) ** 2 * torch.exp(-2.0 * logs_p)
    want = torch.sum(kl * mask)
    prior = vf.Prior(leaves[2], leaves[3], "logstd")
    got = module.sampled_kl(
        leaves[0], leaves[1], scale="logstd", prior=prior, mask=mask, reduction="sum"
    )
    assert_same(got, want, leaves, doubles, dtype)
    torch.testing.assert_close(
        module.sampled_kl(
            leaves[0], leaves[1], scale="logstd", prior=prior, mask=mask, reduction="mean"
        ).double(),
        want / mask.expand(SHAPE).sum(),
        rtol=1e-5,
        atol=1e-5,
    )


@MODULES
@pytest.mark.parametrize("name", SCALES)
def test_sampled_kl_is_minus_entropy_minus_log_prior(name, module, device):
    mu, raw, z = doubles = doubled(*leaves_of(name, F64, device, SHAPE))

    def minus_entropy():
        return -Normal(mu, sigma_of(raw, SCALES[name]), validate_args=False).entropy()

    want = minus_entropy() - Normal(0.0, 1.0).log_prob(z)
    got = module.sampled_kl(z, raw, scale=SCALES[name], reduction="none")
    assert_same(got, want, doubles[1:], doubles[1:], F64)
    prior = vf.Prior(0.3, 0.7, "std")
    m, tau = torch.tensor([0.3, 0.7], dtype=F64, device=device)
    want = minus_entropy() - Normal(m, tau).log_prob(z)
    got = module.sampled_kl(z, raw, scale=SCALES[name], prior=prior, dim=(0, 2))
    assert_same(got, want.sum((0, 2)), doubles[1:], doubles[1:], F64)


def test_sampled_kl_is_the_kl_on_average(device):
    mu, raw = random(2, 8, dtype=F64, device=device)
    prior = vf.Prior(0.2, 0.5)
    z, kl = vf.reparameterize_kl(
        mu, raw, prior=prior, reduction="none", sample_shape=40000, key=make_key(3, device=device)
    )
    estimate = vf.sampled_kl(z, raw, prior=prior, reduction="none").mean(0)
    torch.testing.assert_close(estimate, kl, rtol=0, atol=0.05)


def test_gradcheck(device):
    value, mu, raw, m, s = (
        t.clone().requires_grad_() for t in random(5, 2, 3, dtype=F64, device=device)
    )

    def log_prob(*inputs):
        return vf.gaussian_log_prob(*inputs, scale="softplus", dim=1)

    def from_sample(z, raw, m, s):
        return vf.sampled_kl(z, raw, scale="softplus", prior=vf.Prior(m, s, "logstd"), dim=0)

    for function, inputs in ((log_prob, (value, mu, raw)), (from_sample, (value, raw, m, s))):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)
