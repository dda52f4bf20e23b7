"""DiagonalGaussian implements, and improves on, all of torch.distributions.Normal."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from conftest import exact_kl, make_key, posterior, random, reduced, relative, scaled
from torch import Tensor
from torch.distributions import (
    Categorical,
    ExponentialFamily,
    Gumbel,
    Independent,
    Laplace,
    MixtureSameFamily,
    Normal,
    TransformedDistribution,
    Uniform,
    constraints,
    kl_divergence,
)
from torch.distributions.transforms import AffineTransform, ExpTransform

import vae_fused as vf
from vae_fused import DiagonalGaussian

F64 = torch.float64
SHAPES = [(), (5,), (3, 4), (2, 3, 4)]


def pair(
    shape: tuple[int, ...] = (3, 4), dtype: torch.dtype = F64, device: str = "cpu", seed: int = 0
) -> tuple[DiagonalGaussian, Normal, tuple[Tensor, Tensor]]:
    """Returns the same distribution in both classes, and its leaves."""
    mu, logvar = posterior(shape, dtype=dtype, device=device, requires_grad=True, seed=seed)
    return DiagonalGaussian(mu, logvar), Normal(mu, torch.exp(0.5 * logvar)), (mu, logvar)


def assert_equal_with_gradients(
    method: Callable[[Normal], Tensor], shape: tuple[int, ...], device: str, *others: Tensor
) -> None:
    """Compares the method's values, and its gradients for the parameters and `others`."""
    q, normal, leaves = pair(shape, device=device)
    got, want = method(q), method(normal)
    torch.testing.assert_close(got, want)
    weight = random(*want.shape, seed=9, dtype=F64, device=device)
    arguments = {"allow_unused": True, "materialize_grads": True}
    for g, w in zip(
        torch.autograd.grad((got * weight).sum(), [*leaves, *others], **arguments),
        torch.autograd.grad((want * weight).sum(), [*leaves, *others], **arguments),
        strict=True,
    ):
        torch.testing.assert_close(g, w)


# --------------------------------------------------------------------------------------------------
# Against Normal
# --------------------------------------------------------------------------------------------------

PROPERTIES = ("mean", "mode", "stddev", "variance", "loc", "scale")


@pytest.mark.parametrize("name", PROPERTIES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_moments_are_those_of_normal(name, shape, device):
    assert_equal_with_gradients(lambda d: getattr(d, name), shape, device)


@pytest.mark.parametrize("name", ["log_prob", "cdf"])
@pytest.mark.parametrize("value_shape", [(), (4,), (3, 4), (3, 1), (6, 3, 4)], ids=str)
def test_densities_are_those_of_normal(name, value_shape, device):
    value = random(*value_shape, seed=3, dtype=F64, device=device).requires_grad_()
    assert_equal_with_gradients(lambda d: getattr(d, name)(value), (3, 4), device, value)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_quantiles_and_entropy_are_those_of_normal(shape, device):
    p = torch.linspace(0.01, 0.99, 7, dtype=F64, device=device).view(7, *(1,) * len(shape))
    assert_equal_with_gradients(lambda d: d.icdf(p), shape, device)
    assert_equal_with_gradients(lambda d: d.entropy(), shape, device)
    assert_equal_with_gradients(lambda d: d.perplexity(), shape, device)


def test_exponential_family_agrees(device):
    """The entropy also follows from the log normalizer by differentiation (Nielsen and Nock)."""
    q, normal, _ = pair(device=device)
    torch.testing.assert_close(q._natural_params, normal._natural_params)
    torch.testing.assert_close(ExponentialFamily.entropy(q), q.entropy())


@pytest.mark.parametrize("sample_shape", [(), (2,), (2, 3), (0,)], ids=str)
@pytest.mark.parametrize("batch", SHAPES, ids=str)
def test_shapes(batch, sample_shape, device):
    q, normal, _ = pair(batch, device=device)
    assert q.batch_shape == normal.batch_shape and q.event_shape == ()
    for name in ("sample", "rsample"):
        z = getattr(q, name)(sample_shape)
        assert z.shape == (*sample_shape, *batch) and z.is_contiguous()
        assert z.requires_grad == (name == "rsample")
        assert q.log_prob(z).shape == z.shape


def test_parameters_broadcast_and_promote(device):
    mu, logvar = random(3, 1, device=device), random(4, dtype=F64, device=device)
    q = DiagonalGaussian(mu, logvar)
    assert q.batch_shape == (3, 4) and q.mu.dtype == q.logvar.dtype == F64
    torch.testing.assert_close(q.variance, logvar.exp().expand(3, 4))


def test_numbers_are_parameters_too(device):
    standard = DiagonalGaussian(0.0, 0)
    assert standard.batch_shape == () and standard.mu.dtype == torch.get_default_dtype()
    of_numbers = DiagonalGaussian(1.5, -0.25)
    assert of_numbers.mean.item() == 1.5 and of_numbers.logvar.item() == -0.25
    of_a_tensor = DiagonalGaussian(1.5, random(3, dtype=F64, device=device))
    assert (of_a_tensor.mean == 1.5).all() and of_a_tensor.mean.dtype == F64
    q = DiagonalGaussian(random(3, dtype=F64, device=device), 1.5)
    assert q.batch_shape == (3,) and q.logvar.dtype == F64 and q.logvar.device == q.mu.device
    assert (q.logvar == 1.5).all()


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_moments_are_views_of_the_packed_tensor(dim, device):
    h = random(4, 6, 2, device=device)
    q = DiagonalGaussian.from_moments(h, dim=dim)
    for got, want in zip((q.mu, q.logvar), h.chunk(2, dim), strict=True):
        assert torch.equal(got, want) and got.data_ptr() == want.data_ptr()


# --------------------------------------------------------------------------------------------------
# Requirements that torch's own distribution tests check
# --------------------------------------------------------------------------------------------------


def test_samples_have_the_moments(device):
    q = DiagonalGaussian(*posterior((3,), device=device))
    z = q.sample((200_000,), key=make_key(1, device=device)).double()
    error = 5 / 200_000**0.5  # five standard errors
    assert scaled((z.mean(0) - q.mean) / q.stddev, torch.zeros(3, device=device)) < error
    assert scaled(z.var(0) / q.variance, torch.ones(3, device=device)) < 2 * error
    uniform = q.cdf(z).sort(0).values  # Kolmogorov-Smirnov: 1.95 is a p value of 0.001
    steps = torch.linspace(0, 1, len(z), dtype=F64, device=device)[:, None]
    assert (uniform - steps).abs().max() < 1.95 / 200_000**0.5


def test_entropy_and_kl_are_the_expectations_they_are_called(device):
    q, p = (DiagonalGaussian(*posterior((4,), dtype=F64, seed=s, device=device)) for s in (1, 2))
    z = q.sample((400_000,), key=make_key(2, device=device))
    for got, samples in (
        (q.entropy(), -q.log_prob(z)),
        (kl_divergence(q, p), q.log_prob(z) - p.log_prob(z)),
    ):
        standard_error = samples.std(0) / 400_000**0.5
        assert ((samples.mean(0) - got).abs() < 5 * standard_error).all()


def test_density_integrates_to_one_and_is_the_derivative_of_cdf(device):
    q = DiagonalGaussian(*posterior((4,), dtype=F64, device=device))
    x = q.mean + q.stddev * torch.linspace(-9, 9, 2001, dtype=F64, device=device)[:, None]
    density = q.log_prob(x).exp()
    torch.testing.assert_close(torch.trapezoid(density, x, dim=0), torch.ones_like(q.mean))
    x = x.detach().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(q.cdf(x).sum(), x)[0], density)


def test_cdf_and_icdf_are_inverse(device):
    q, _, _ = pair(device=device)
    p = torch.logspace(-300, -1e-9, 50, dtype=F64, device=device)[:, None, None]
    torch.testing.assert_close(q.cdf(q.icdf(p)), p.expand(50, 3, 4), rtol=1e-9, atol=0)
    ends = torch.tensor([0.0, 1.0, 1.5, -0.5], dtype=F64, device=device)
    q = DiagonalGaussian(ends[0], 0.0)
    assert q.icdf(ends).tolist()[:2] == [-torch.inf, torch.inf] and q.icdf(ends)[2:].isnan().all()


def test_constraints_and_support():
    q = DiagonalGaussian(torch.zeros(2), torch.zeros(2))
    for name, constraint in q.arg_constraints.items():
        assert constraint.check(getattr(q, name)).all()
    assert q.support is constraints.real and q.has_rsample and not q.has_enumerate_support
    assert isinstance(q, Normal) and q.support.event_dim == 0 and not q.support.is_discrete


def test_gradcheck_of_samples_and_densities(device):
    inputs = posterior((2, 3), dtype=F64, device=device, requires_grad=True)
    value, fixed = random(2, 2, 3, seed=4, dtype=F64, device=device)
    value.requires_grad_()
    key = make_key(3, device=device)
    for function in (
        lambda mu, logvar, v: DiagonalGaussian(mu, logvar).rsample((2,), key=key) + v,
        lambda mu, logvar, v: DiagonalGaussian(mu, logvar).log_prob(v),
        lambda mu, logvar, v: kl_divergence(
            DiagonalGaussian(mu, logvar), DiagonalGaussian(v, fixed)
        ),
    ):
        assert torch.autograd.gradcheck(function, (*inputs, value))
        assert torch.autograd.gradgradcheck(function, (*inputs, value))


# --------------------------------------------------------------------------------------------------
# Samples
# --------------------------------------------------------------------------------------------------


def test_noise_comes_from_where_the_functions_take_it(device):
    q, _, (mu, logvar) = pair(device=device)
    key, eps = make_key(4, device=device), random(3, 4, dtype=F64, device=device)
    assert torch.equal(q.rsample(key=key), vf.reparameterize(mu, logvar, key=key))
    assert torch.equal(q.sample(eps=eps), vf.reparameterize(mu, logvar, eps=eps))
    for name in ("rsample", "sample"):
        first, second = (
            getattr(q, name)((2,), generator=torch.Generator(device).manual_seed(5))
            for _ in range(2)
        )
        assert torch.equal(first, second) and not torch.equal(first[0], first[1])
    torch.manual_seed(6)
    first = q.rsample()
    torch.manual_seed(6)
    assert torch.equal(first, q.rsample())


def test_a_batch_of_samples_is_the_stream_of_its_key(device):
    q, _, (mu, logvar) = pair(device=device)
    z = q.rsample((5,), key=make_key(7, device=device))
    eps = vf.reference.normal(make_key(7, device=device), (5, 3, 4), dtype=F64)
    torch.testing.assert_close(z, mu + torch.exp(0.5 * logvar) * eps)
    grad_mu, grad_logvar = torch.autograd.grad(z.sum(), (mu, logvar))
    torch.testing.assert_close(grad_mu, torch.full_like(mu, 5))
    torch.testing.assert_close(grad_logvar, (0.5 * torch.exp(0.5 * logvar) * eps).sum(0))


@pytest.mark.parametrize("kwargs", [{}, {"reduction": "sample"}, {"dim": -1}], ids=str)
def test_sample_and_kl_are_those_of_the_function(kwargs, device):
    q, _, (mu, logvar) = pair(device=device)
    key = make_key(8, device=device)
    z, kl = q.rsample_kl(key=key, **kwargs)
    for got, want in zip((z, kl), vf.reparameterize_kl(mu, logvar, key=key, **kwargs), strict=True):
        assert torch.equal(got, want)
    torch.testing.assert_close(q.kl(**kwargs), kl)
    torch.testing.assert_close(q.nll(z, **kwargs), reduced(-q.log_prob(z), **kwargs))


# --------------------------------------------------------------------------------------------------
# KL divergence
# --------------------------------------------------------------------------------------------------


def test_kl_is_that_of_normals_on_either_side(device):
    q, normal_q, leaves_q = pair(seed=1, device=device)
    p, normal_p, leaves_p = pair((4,), seed=2, device=device)
    want = kl_divergence(normal_q, normal_p)
    leaves = (*leaves_q, *leaves_p)
    gradients = torch.autograd.grad(want.sum(), leaves, retain_graph=True)
    for a, b in ((q, p), (q, normal_p), (normal_q, p)):
        got = kl_divergence(a, b)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(
            torch.autograd.grad(got.sum(), leaves, retain_graph=True), gradients
        )


@pytest.mark.parametrize("other", [Laplace(0.5, 2.0), Gumbel(0.5, 2.0), Uniform(-1.0, 1.0)])
def test_kl_is_registered_for_every_family_that_normal_is(other):
    q, normal, _ = pair(dtype=torch.float32)
    torch.testing.assert_close(kl_divergence(q, other), kl_divergence(normal, other))
    if isinstance(other, Uniform):
        torch.testing.assert_close(kl_divergence(other, q), kl_divergence(other, normal))


@pytest.mark.parametrize("size", [1e-6, 1e-3, 1.0])
def test_kl_keeps_its_relative_accuracy_near_the_prior(size, device):
    mu, logvar = (size * t for t in posterior((1000,), device=device))
    q, zero = DiagonalGaussian(mu, logvar), torch.zeros((), device=device)
    for p in (DiagonalGaussian(zero, zero), Normal(zero, zero + 1)):
        kl = kl_divergence(q, p)
        assert (kl >= 0).all() and relative(kl, exact_kl(mu, logvar)) < 1e-6


def test_kl_keeps_its_relative_accuracy_near_another_prior(device):
    """The differences of the inputs are exact (Sterbenz), so no accuracy is lost."""
    m, prior_logvar = posterior((1000,), device=device, seed=1)
    mu, logvar = (t * (1 + 1e-4) for t in (m, prior_logvar))
    d = (mu.double() - m.double()) * torch.exp(-0.5 * prior_logvar.double())
    kl = kl_divergence(DiagonalGaussian(mu, logvar), DiagonalGaussian(m, prior_logvar))
    assert (kl >= 0).all()
    assert relative(kl, exact_kl(d, logvar.double() - prior_logvar.double())) < 2e-6


def test_kl_of_a_distribution_from_itself_is_zero_with_zero_gradients(device):
    q, _, leaves = pair(dtype=torch.float32, device=device)
    kl = kl_divergence(q, DiagonalGaussian(q.mu.detach(), q.logvar.detach()))
    assert not kl.any()
    assert not any(g.any() for g in torch.autograd.grad(kl.sum(), leaves))


# --------------------------------------------------------------------------------------------------
# Interaction with other distributions
# --------------------------------------------------------------------------------------------------


def test_expand_keeps_class_values_and_validation(device):
    class Named(DiagonalGaussian):
        pass

    q = Named(*posterior((3, 1), device=device), validate_args=True)
    wide = q.expand((2, 3, 4))
    assert type(wide) is Named and wide.batch_shape == (2, 3, 4) and wide._validate_args
    assert wide.mu.data_ptr() == q.mu.data_ptr()
    z = wide.rsample()
    assert z.shape == (2, 3, 4) and not torch.equal(z[..., 0], z[..., 1])

    class WithInit(DiagonalGaussian):
        def __init__(self, mu):
            super().__init__(mu, mu)

    with pytest.raises(NotImplementedError, match="must also define a custom"):
        WithInit(q.mu).expand((3, 4))


def test_independent(device):
    q, normal, _ = pair((2, 3, 4), device=device)
    event, normal_event = Independent(q, 2), Independent(normal, 2)
    assert event.batch_shape == (2,) and event.event_shape == (3, 4) and event.has_rsample
    z = event.rsample((5,))
    torch.testing.assert_close(event.log_prob(z), normal_event.log_prob(z))
    torch.testing.assert_close(event.entropy(), normal_event.entropy())
    assert event.expand((7, 2)).rsample().shape == (7, 2, 3, 4)
    zero = torch.zeros((2, 3, 4), dtype=F64, device=device)
    prior = Independent(Normal(zero, zero + 1), 2)
    torch.testing.assert_close(kl_divergence(event, prior), q.kl(dim=(1, 2)))
    torch.testing.assert_close(kl_divergence(prior, event), kl_divergence(prior, normal_event))


def test_transformed(device):
    transforms = [AffineTransform(0.5, 2.0), ExpTransform()]
    q, normal, _ = pair(device=device)
    got, want = (TransformedDistribution(d, transforms) for d in (q, normal))
    z = got.rsample((2,))
    assert z.requires_grad and (z > 0).all()
    for name in ("log_prob", "cdf"):
        torch.testing.assert_close(getattr(got, name)(z), getattr(want, name)(z))


def test_mixture(device):
    weights = Categorical(torch.ones(3, 4, dtype=F64, device=device))
    q, normal, _ = pair(device=device)
    got, want = (MixtureSameFamily(weights, d) for d in (q, normal))
    z = got.sample((6,))
    assert z.shape == (6, 3)
    for name in ("log_prob", "cdf"):
        torch.testing.assert_close(getattr(got, name)(z), getattr(want, name)(z))
    torch.testing.assert_close((got.mean, got.variance), (want.mean, want.variance))


def test_pickle_deepcopy_and_save(device):
    q = DiagonalGaussian(*posterior((3, 4), device=device), validate_args=True)
    file = io.BytesIO()
    torch.save(q, file)
    file.seek(0)
    copies = (pickle.loads(pickle.dumps(q)), copy.deepcopy(q), torch.load(file, weights_only=False))
    for twin in copies:
        assert torch.equal(twin.mu, q.mu) and torch.equal(twin.logvar, q.logvar)
        assert twin.batch_shape == q.batch_shape and twin._validate_args
    assert repr(q) == "DiagonalGaussian(mu: torch.Size([3, 4]), logvar: torch.Size([3, 4]))"


@pytest.mark.parametrize("name", ["mu", "raw"])
def test_a_parameter_that_is_assigned_replaces_the_packed_one(name):
    q = vf.DiagonalGaussian.from_moments(torch.randn(4, 6))
    setattr(q, name, 0.5 * getattr(q, name))
    _, kl = q.rsample_kl(reduction="sum")
    torch.testing.assert_close(kl, vf.gaussian_kl(q.mu, q.raw, reduction="sum"))
    torch.testing.assert_close(kl, q.kl(reduction="sum"))
