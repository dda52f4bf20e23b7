"""The stand-in for diffusers' DiagonalGaussianDistribution: formulas, noise and special cases.

``tests/usage/test_diffusers.py`` compares all stand-ins with the installed package.
"""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from conftest import DTYPES, Calls, native, random
from torch import Tensor

from vae_fused.compat.diffusers import DiagonalGaussianDistribution

F64 = torch.float64
EXACT = (torch.float32, F64)
SHAPE = (2, 6, 4, 5)


def moments(*shape: int, dtype: torch.dtype = F64, device: str = "cpu", seed: int = 0) -> Tensor:
    """Returns moments with log variances beyond both ends of the clamp."""
    h = random(*(shape or SHAPE), seed=seed, dtype=dtype, device=device)
    h[:, h.shape[1] // 2 :] *= 3
    h[0, -1], h[1, -1] = -40.0, 25.0
    return h.requires_grad_()


def unpack(h: Tensor) -> tuple[Tensor, Tensor]:
    mean, logvar = h.chunk(2, dim=1)
    return mean, logvar.clamp(-30.0, 20.0)


def kl_from_standard(h: Tensor, dim: tuple[int, ...] = (1, 2, 3)) -> Tensor:
    mean, logvar = unpack(h)
    return 0.5 * (mean**2 + logvar.exp() - 1.0 - logvar).sum(dim=dim)


def kl_from_other(h: Tensor, other: Tensor) -> Tensor:
    (mean, logvar), (m, prior_logvar) = unpack(h), unpack(other)
    squares = (mean - m) ** 2 / prior_logvar.exp() + logvar.exp() / prior_logvar.exp()
    return 0.5 * (squares - 1.0 - logvar + prior_logvar).sum(dim=(1, 2, 3))


def nll(h: Tensor, sample: Tensor, dim: tuple[int, ...] = (1, 2, 3)) -> Tensor:
    mean, logvar = unpack(h)
    return 0.5 * (math.log(2 * math.pi) + logvar + (sample - mean) ** 2 / logvar.exp()).sum(dim=dim)


def generator(seed: int, device: str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def assert_same_value_and_gradient(got: Tensor, want: Tensor, *leaves: Tensor) -> None:
    torch.testing.assert_close(got, want)
    gradients = (torch.autograd.grad(y.sum(), leaves, retain_graph=True) for y in (got, want))
    torch.testing.assert_close(*gradients)


# --------------------------------------------------------------------------------------------------
# Numbers
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", EXACT, ids=str)
def test_attributes(dtype, device):
    h = moments(dtype=dtype, device=device)
    q = DiagonalGaussianDistribution(h)
    mean, logvar = unpack(h)
    assert q.parameters is h and q.deterministic is False
    assert torch.equal(q.mean, mean) and torch.equal(q.mode(), mean)
    assert torch.equal(q.logvar, logvar) and q.logvar.min() == -30 and q.logvar.max() == 20
    assert_same_value_and_gradient(q.std, torch.exp(0.5 * logvar), h)
    assert_same_value_and_gradient(q.var, torch.exp(logvar), h)


@pytest.mark.parametrize("dtype", EXACT, ids=str)
def test_kl_and_nll_are_the_formulas(dtype, device):
    h, other = (moments(dtype=dtype, device=device, seed=s) for s in (1, 2))
    sample = random(2, 3, 4, 5, seed=3, dtype=dtype, device=device).requires_grad_()
    q, p = DiagonalGaussianDistribution(h), DiagonalGaussianDistribution(other)
    assert q.kl().shape == (2,)
    assert_same_value_and_gradient(q.kl(), kl_from_standard(h), h)
    assert_same_value_and_gradient(q.kl(p), kl_from_other(h, other), h, other)
    assert_same_value_and_gradient(q.nll(sample), nll(h, sample), h, sample)
    for dims in ([1, 2, 3], (2, 3), [0, 1, 2, 3]):
        torch.testing.assert_close(q.nll(sample, dims), nll(h, sample, tuple(dims)))
        torch.testing.assert_close(q.nll(sample, dims=dims), nll(h, sample, tuple(dims)))


def test_other_may_be_any_class_with_these_attributes():
    class Theirs:
        mean, logvar = unpack(moments(seed=2))

    got = DiagonalGaussianDistribution(moments(seed=1)).kl(Theirs())
    torch.testing.assert_close(got, kl_from_other(moments(seed=1), moments(seed=2)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(dtype, device):
    h = moments(dtype=dtype, device=device)
    q = DiagonalGaussianDistribution(h)
    for value in (q.sample(), q.sample(generator(1, device)), q.mean, q.std, q.var, q.mode()):
        assert value.dtype == dtype and value.shape == (2, 3, 4, 5)
    wide = F64 if dtype == F64 else torch.float32
    for value in (q.kl(), q.kl(q), q.nll(q.mean)):
        assert value.dtype == wide and value.isfinite().all()


@native
def test_the_clamp_is_part_of_the_fused_call(device):
    q = DiagonalGaussianDistribution(moments(device=device))
    p = DiagonalGaussianDistribution(moments(device=device, seed=2))
    with Calls() as calls:
        q.sample(), q.kl(), q.kl(p)
    others = {name for name in calls.names if "vae_fused" not in name}
    assert others <= {"aten::detach", "aten::expand", "aten::split.Tensor"}


# --------------------------------------------------------------------------------------------------
# Noise
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", EXACT, ids=str)
def test_a_generator_draws_the_noise_of_randn(dtype, device):
    h = moments(dtype=dtype, device=device)
    q = DiagonalGaussianDistribution(h)
    mean, logvar = unpack(h)
    noise = torch.randn(mean.shape, generator=generator(1, device), dtype=dtype, device=device)
    want = mean + torch.exp(0.5 * logvar) * noise
    assert_same_value_and_gradient(q.sample(generator(1, device)), want, h)
    assert_same_value_and_gradient(q.sample(generator=[generator(1, device)]), want, h)
    # A CPU generator works for every device.
    noise = torch.randn(mean.shape, generator=generator(1), dtype=dtype).to(device)
    torch.testing.assert_close(q.sample(generator(1)), mean + torch.exp(0.5 * logvar) * noise)


def test_a_list_has_a_generator_for_each_item(device):
    h = moments(device=device)
    z = DiagonalGaussianDistribution(h).sample([generator(1), generator(2)])
    for i, seed in enumerate((1, 2)):
        alone = DiagonalGaussianDistribution(h[i : i + 1]).sample(generator(seed))
        torch.testing.assert_close(z[i : i + 1], alone)


def test_without_a_generator_the_seed_rules(device):
    q = DiagonalGaussianDistribution(moments(device=device))
    samples = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        samples.append(q.sample())
    assert torch.equal(samples[0], samples[1]) and not torch.equal(samples[0], samples[2])


# --------------------------------------------------------------------------------------------------
# Special cases
# --------------------------------------------------------------------------------------------------


def test_deterministic(device):
    h = moments(device=device)
    q = DiagonalGaussianDistribution(h, deterministic=True)
    assert q.deterministic and not q.std.any() and not q.var.any()
    assert torch.equal(q.sample(), q.mean) and q.sample().data_ptr() != q.mean.data_ptr()
    mine, theirs = generator(1), generator(1)
    assert torch.equal(q.sample(mine), q.mean)
    torch.randn(q.mean.shape, generator=theirs, dtype=h.dtype)
    assert torch.equal(mine.get_state(), theirs.get_state())
    for value in (q.kl(), q.kl(q), q.nll(q.mean)):
        assert torch.equal(value, torch.zeros(1, dtype=F64, device=device))
    assert (DiagonalGaussianDistribution(h).kl(q) == torch.inf).all()


@pytest.mark.parametrize("shape", [(2, 6), (2, 6, 5)], ids=str)
def test_fewer_dimensions_are_summed_over_all_but_the_first(shape):
    h, dims = moments(*shape), tuple(range(1, len(shape)))
    q = DiagonalGaussianDistribution(h)
    torch.testing.assert_close(q.kl(), kl_from_standard(h, dims))
    for value in (q.nll(q.mode()), q.nll(q.mode(), dims=[1, 2, 3])):
        torch.testing.assert_close(value, nll(h, q.mean, dims))


def test_video_keeps_its_last_dimension_and_says_so():
    h = moments(2, 6, 3, 4, 5)
    q = DiagonalGaussianDistribution(h)
    with pytest.warns(
        UserWarning, match=r"not over all dimensions of a sample; pass dim=\(1, 2, 3, 4\)"
    ):
        torch.testing.assert_close(q.kl(), kl_from_standard(h))
    with pytest.warns(UserWarning, match=r"pass dims=\(1, 2, 3, 4\)"):
        torch.testing.assert_close(q.nll(q.mean), nll(h, q.mean))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(q.kl(dim=(1, 2, 3, 4)), kl_from_standard(h, (1, 2, 3, 4)))
        every = (1, 2, 3, 4)
        torch.testing.assert_close(q.nll(q.mean, dims=every), nll(h, q.mean, every))


def test_the_grad_mode_of_the_constructor_counts():
    """This is the behaviour of diffusers, which computes all attributes in the constructor."""
    q = DiagonalGaussianDistribution(moments())
    with torch.no_grad():
        assert q.std.requires_grad and not q.sample().requires_grad
        frozen = DiagonalGaussianDistribution(moments())
    assert q.sample().requires_grad and q.kl().requires_grad
    assert not frozen.std.requires_grad and not frozen.var.requires_grad


def test_compiles_whole():
    def function(h, other):
        q = DiagonalGaussianDistribution(h)
        z = q.sample()
        terms = q.kl(), q.kl(DiagonalGaussianDistribution(other)), q.nll(q.mode())
        return z.shape, q.std, terms

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    arguments = moments(seed=1), moments(seed=2)
    torch.testing.assert_close(compiled(*arguments), function(*arguments))


BAD = [
    (lambda: DiagonalGaussianDistribution([1.0]), TypeError, "h must be a Tensor, got list"),
    (
        lambda: DiagonalGaussianDistribution(torch.zeros(4)),
        ValueError,
        "dim must be a dimension of .*, got 1",
    ),
    (
        lambda: DiagonalGaussianDistribution(torch.zeros(2, 5)),
        ValueError,
        r"h must have an even size in dimension 1, .* got shape \(2, 5\)",
    ),
    (
        lambda: DiagonalGaussianDistribution(torch.zeros(3, 2)).sample([generator(1)] * 2),
        ValueError,
        "generator must contain 3 generators, one for each item of the batch, or .* got 2",
    ),
    (
        lambda: DiagonalGaussianDistribution(torch.zeros(1, 2)).sample([1]),
        TypeError,
        "generator must be a torch.Generator or a list of them, got int",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[b[2][:30] for b in BAD])
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_shared_launch_is_not_used_for_a_mean_that_has_changed():
    h = torch.randn(2, 8, 4, 4)
    q = DiagonalGaussianDistribution(h, share_launch=True)
    q.sample()
    q.mean.mul_(0)
    want = DiagonalGaussianDistribution(torch.cat([q.mean, h[:, 4:]], 1)).kl()
    torch.testing.assert_close(q.kl(), want)
