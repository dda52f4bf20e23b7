"""Compares all public names of compat.distributions.Normal with torch.distributions.Normal."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from conftest import make_key, random
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    Laplace,
    TransformedDistribution,
    kl_divergence,
)
from torch.distributions import Normal as Theirs
from torch.distributions.transforms import ExpTransform

import vae_fused as vf
from vae_fused.compat.distributions import Normal

F64 = torch.float64


@pytest.fixture(autouse=True)
def validated() -> Iterator[None]:
    """Enable torch's default validation, which torch.compile disables for the whole process."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(True)
    yield
    Distribution.set_default_validate_args(before)


def parameters(
    *shapes: tuple[int, ...], dtype: torch.dtype = F64, seed: int = 0
) -> tuple[Tensor, Tensor]:
    first, second = shapes if len(shapes) == 2 else ((3, 4), (3, 4))
    loc = random(*first, seed=seed, dtype=dtype)
    scale = random(*second, seed=seed + 50, dtype=dtype).exp()
    return loc.requires_grad_(), scale.requires_grad_()


def same(got: Any, want: Any, leaves: tuple[Tensor, ...] = (), **tolerance: float) -> None:
    """Asserts that values, types and gradients are equal."""
    if not isinstance(want, Tensor):
        assert got == want and type(got) is type(want)
        return
    torch.testing.assert_close(got, want, **tolerance)
    assert got.requires_grad == want.requires_grad
    if want.requires_grad:
        weight = random(*want.shape, seed=9, dtype=want.dtype)
        arguments: Any = {"allow_unused": True, "materialize_grads": True, "retain_graph": True}
        torch.testing.assert_close(
            torch.autograd.grad((got * weight).sum(), leaves, **arguments),
            torch.autograd.grad((want * weight).sum(), leaves, **arguments),
            **tolerance,
        )


def raised(function: Callable[[], Any]) -> tuple[type[BaseException], str] | None:
    try:
        function()
    except Exception as error:
        return type(error), str(error)
    return None


VALUE = random(2, 3, 4, seed=3, dtype=F64)
# The comparison for each public name of torch's class.
SURFACE: dict[str, Callable[[Any], Any]] = {
    "arg_constraints": lambda d: dict(d.arg_constraints),
    "batch_shape": lambda d: d.batch_shape,
    "cdf": lambda d: d.cdf(VALUE),
    "entropy": lambda d: d.entropy(),
    "enumerate_support": lambda d: raised(d.enumerate_support),
    "event_shape": lambda d: d.event_shape,
    "expand": lambda d: d.expand((5, 3, 4)).log_prob(VALUE[:1]),
    "has_enumerate_support": lambda d: d.has_enumerate_support,
    "has_rsample": lambda d: d.has_rsample,
    "icdf": lambda d: d.icdf(VALUE.sigmoid()),
    "log_prob": lambda d: d.log_prob(VALUE),
    "mean": lambda d: d.mean,
    "mode": lambda d: d.mode,
    "perplexity": lambda d: d.perplexity(),
    "rsample": lambda d: 0.0 * d.rsample((2,)),
    "sample": lambda d: 0.0 * d.sample((2,)),
    "sample_n": lambda d: 0.0 * d.sample_n(2),
    "set_default_validate_args": lambda d: inspect.signature(d.set_default_validate_args),
    "stddev": lambda d: d.stddev,
    "support": lambda d: d.support,
    "variance": lambda d: d.variance,
}
PARAMETERS = {
    "equal shapes": parameters(),
    "broadcast": parameters((3, 1), (4,)),
    "loc is a number": (0.5, parameters()[1]),
    "scale is a number": (parameters()[0], 2),
    "float32": parameters(dtype=torch.float32),
}


def test_the_whole_surface_is_compared() -> None:
    assert set(SURFACE) == {name for name in dir(Theirs) if not name.startswith("_")}
    assert (
        inspect.signature(Normal).parameters.keys() == inspect.signature(Theirs).parameters.keys()
    )
    for parameter in inspect.signature(Theirs).parameters.values():
        assert inspect.signature(Normal).parameters[parameter.name].default == parameter.default


@pytest.mark.filterwarnings("ignore:sample_n")
@pytest.mark.parametrize("given", PARAMETERS)
@pytest.mark.parametrize("name", SURFACE)
def test_each_name_gives_what_it_gives_there(name: str, given: str) -> None:
    values = PARAMETERS[given]
    leaves = tuple(v for v in values if isinstance(v, Tensor))
    got, want = Normal(*values), Theirs(*values)
    if name == "expand" and want.batch_shape != (3, 4):
        pytest.fail("all parameters broadcast to (3, 4)")
    tolerance = {"rtol": 2e-6, "atol": 2e-6} if given == "float32" else {}
    same(SURFACE[name](got), SURFACE[name](want), leaves, **tolerance)


@pytest.mark.parametrize("given", PARAMETERS)
def test_parameters_are_attributes(given: str) -> None:
    got, want = Normal(*PARAMETERS[given]), Theirs(*PARAMETERS[given])
    assert torch.equal(got.loc, want.loc) and torch.equal(got.scale, want.scale)
    assert repr(got) == repr(want)
    got.loc, got.scale = want.loc, want.scale = want.loc + 1.0, want.scale * 2.0
    same(got.log_prob(VALUE).detach(), want.log_prob(VALUE).detach())
    same(got.stddev.detach(), want.stddev.detach())


def test_numbers() -> None:
    got, want = Normal(0, 2.0), Theirs(0, 2.0)
    assert repr(got) == repr(want) and got.batch_shape == want.batch_shape
    same(got.log_prob(torch.tensor(0.5)), want.log_prob(torch.tensor(0.5)))
    for value in (0.5, 1):
        for name in ("log_prob", "cdf"):
            calls = [
                lambda cls=cls, name=name, value=value: getattr(
                    cls(0.0, 2.0, validate_args=False), name
                )(value)
                for cls in (Normal, Theirs)
            ]
            same(calls[0](), calls[1]())
            errors = [raised(lambda d=d, n=name, v=value: getattr(d, n)(v)) for d in (got, want)]
            assert errors[0] == errors[1] and errors[0] is not None


def test_values_are_checked_as_there() -> None:
    nan, zero, one = torch.tensor(torch.nan), torch.tensor(0.0), torch.tensor(1.0)
    for arguments in ((nan, one), (zero, -one), (zero, zero), (zero, nan)):
        errors = [raised(lambda c=cls, a=arguments: c(*a)) for cls in (Normal, Theirs)]
        assert errors[0] == errors[1] and errors[0] is not None
        assert raised(lambda a=arguments: Normal(*a, validate_args=False)) is None
    for name in ("log_prob", "cdf"):
        errors = [
            raised(lambda c=cls, n=name: getattr(c(zero, one), n)(nan)) for cls in (Normal, Theirs)
        ]
        assert errors[0] == errors[1] and errors[0] is not None
    Distribution.set_default_validate_args(False)
    assert raised(lambda: Normal(zero, -one)) is None is raised(lambda: Theirs(zero, -one))
    assert raised(lambda: Normal(zero, -one, validate_args=True)) is not None


def test_samples_have_the_law() -> None:
    loc, scale = (t.detach() for t in parameters((4,), (4,)))
    z = Normal(loc, scale).sample((100_000,), key=make_key(1))
    standard = (z - loc) / scale
    error = 5 / 100_000**0.5
    assert (standard.mean(0).abs() < error).all() and ((standard.std(0) - 1).abs() < error).all()
    torch.manual_seed(1)
    first = Normal(loc, scale).rsample()
    torch.manual_seed(1)
    assert torch.equal(first, Normal(loc, scale).rsample())


def test_gradients_of_samples_are_those_of_the_reparameterization() -> None:
    loc, scale = parameters()
    eps = random(2, 3, 4, seed=4, dtype=F64)
    same(Normal(loc, scale).rsample((2,), eps=eps), loc + scale * eps, (loc, scale))
    z, kl = Normal(loc, scale).rsample_kl(prior=Theirs(0.5, 2.0), reduction="sum", eps=eps[0])
    same(z, loc + scale * eps[0], (loc, scale))
    prior = Theirs(torch.tensor(0.5, dtype=F64), torch.tensor(2.0, dtype=F64))
    same(kl, kl_divergence(Theirs(loc, scale), prior).sum(), (loc, scale))


def test_copies_are_the_same_law() -> None:
    q = Normal(*parameters((3, 1), (4,)))
    for twin in (
        type(q)(q.loc, q.scale),
        type(q)(q.mean, q.stddev),
        q.detach(),
        q.expand((2, 3, 4)),
        copy.copy(q),
        pickle.loads(pickle.dumps(q.detach())),
        copy.deepcopy(q.detach()),
    ):
        assert type(twin) is Normal
        torch.testing.assert_close(twin.log_prob(VALUE), q.log_prob(VALUE))
    assert not q.detach().log_prob(VALUE).requires_grad and q.log_prob(VALUE).requires_grad
    assert q.detach().loc.data_ptr() == q.loc.data_ptr()


def test_kl_divergences() -> None:
    loc, scale = parameters()
    m, tau = parameters((4,), (4,), seed=1)
    leaves = loc, scale, m, tau
    want = kl_divergence(Theirs(loc, scale), Theirs(m, tau))
    ours, theirs = (Normal(loc, scale), Normal(m, tau)), (Theirs(loc, scale), Theirs(m, tau))
    diagonal = vf.DiagonalGaussian.from_std(loc, scale), vf.DiagonalGaussian.from_std(m, tau)
    for q in (ours[0], theirs[0], diagonal[0]):
        for p in (ours[1], theirs[1], diagonal[1]):
            same(kl_divergence(q, p), want, leaves)
    same(
        kl_divergence(Normal(0, 1), Laplace(0.5, 2.0)),
        kl_divergence(Theirs(0, 1), Laplace(0.5, 2.0)),
    )
    events = [Independent(cls(loc, scale), 1) for cls in (Normal, Theirs)]
    priors = [Independent(cls(m, tau).expand((3, 4)), 1) for cls in (Normal, Theirs)]
    for q in events:
        for p in priors:
            same(kl_divergence(q, p), kl_divergence(events[1], priors[1]), leaves)
    same(events[0].log_prob(VALUE), events[1].log_prob(VALUE), leaves[:2])


def test_transformed() -> None:
    leaves = parameters()
    got, want = (
        TransformedDistribution(cls(*leaves), [ExpTransform()]) for cls in (Normal, Theirs)
    )
    same(got.log_prob(VALUE.exp()), want.log_prob(VALUE.exp()), leaves)


def test_derived_classes_expand_as_there() -> None:
    class Named(Normal):
        pass

    class WithInit(Normal):
        def __init__(self, loc: Tensor) -> None:
            super().__init__(loc, loc.exp())

    assert type(Named(0.0, 1.0).expand((3,))) is Named
    q = WithInit(torch.zeros(3))
    with pytest.raises(NotImplementedError, match="must also define a custom"):
        q.expand((2, 3))
    assert type(q.detach()) is WithInit


def test_compiles_whole() -> None:
    def function(loc: Tensor, scale: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        q = Normal(loc, scale, validate_args=False)
        p = type(q)(q.loc, q.scale, validate_args=False).detach()
        return q.log_prob(value), kl_divergence(q, p), q.cdf(value), q.rsample().detach() * 0.0

    torch._dynamo.reset()
    arguments = (*parameters(), VALUE)
    eager = function(*arguments)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*arguments), eager)


BAD = [
    (
        lambda: Normal(torch.arange(3), 1.0),
        TypeError,
        "loc must be a floating-point tensor .* got torch.int64",
    ),
    (lambda: Normal([0.0], 1.0), TypeError, "loc must be a Tensor, got list"),
    (
        lambda: Normal(torch.zeros(3), torch.ones(4)),
        ValueError,
        r"scale must broadcast .* got \(4,\)",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[b[2] for b in BAD])
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


# --------------------------------------------------------------------------------------------------
# DiagonalGaussian, where code expects (loc, scale)
# --------------------------------------------------------------------------------------------------


def test_from_std_is_the_normal() -> None:
    loc, scale = parameters((3, 1), (4,))
    q, want = vf.DiagonalGaussian.from_std(loc, scale), Theirs(loc, scale)
    assert type(q) is vf.DiagonalGaussian and torch.equal(q.raw, want.scale)
    for name in ("mean", "stddev", "variance", "log_prob", "cdf", "entropy"):
        same(SURFACE[name](q), SURFACE[name](want), (loc, scale))
    same(q.logvar, 2.0 * want.scale.log(), (loc, scale))
    same(q.rsample(eps=VALUE[0]), loc + scale * VALUE[0], (loc, scale))
    assert vf.DiagonalGaussian.from_std(0.0, 2).scale.item() == 2.0
    with pytest.raises(ValueError, match="to satisfy the constraint"):
        vf.DiagonalGaussian.from_std(torch.tensor(torch.nan), 1.0, validate_args=True)


@pytest.mark.parametrize(
    "names",
    [
        {"loc": torch.zeros(3), "scale": torch.ones(3)},
        {"mu": torch.zeros(3), "scale": torch.ones(3)},
        {"mu": torch.zeros(3), "logvar": torch.zeros(3), "scale": torch.ones(3)},
        {"loc": 0.0, "scale": 1.0},
        {"loc": 0.0, "logvar": 1.0},
    ],
)
def test_the_keywords_of_torch_raise_with_the_remedy(names: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"call DiagonalGaussian.from_std\(loc, scale\)"):
        vf.DiagonalGaussian(**names)


@pytest.mark.parametrize("scale", ["logvar", "std", "softplus", vf.Scale("std", std_floor=0.1)])
def test_a_sigma_is_no_log_variance(scale: Any) -> None:
    """`type(q)(q.loc, q.scale)` copies a Normal, but raises an error for a DiagonalGaussian."""
    raw = random(3, 4, seed=1).abs()
    q = vf.DiagonalGaussian(random(3, 4), raw, scale=scale)
    want = Theirs(q.loc, q.scale)
    for sigma in (q.scale, q.stddev, q.scale.detach(), q.scale[:1], q.scale.reshape(12)[3]):
        with pytest.raises(ValueError, match=r"logvar must not be the sigma .* from_std"):
            type(q)(q.loc, sigma)
    copied = type(q).from_std(q.loc, q.scale)
    torch.testing.assert_close(copied.log_prob(q.loc), want.log_prob(q.loc))
    # Neither the raw scale nor memory that contained sigma but has been overwritten raises an
    # error.
    type(q)(q.loc, q.raw)
    type(q)(q.loc, q.scale.log_().mul_(2.0))
    type(q)(q.loc, 2.0 * q.scale.log())


@pytest.mark.parametrize("scale", ["logvar", "std"])
def test_detach_is_the_same_law_without_gradients(scale: str) -> None:
    h = random(3, 8, dtype=F64).abs().requires_grad_()
    q = vf.DiagonalGaussian.from_moments(h, scale=scale, validate_args=True)
    frozen = q.detach()
    assert type(frozen) is type(q) and frozen._validate_args
    assert frozen.mu.data_ptr() == q.mu.data_ptr()
    torch.testing.assert_close(frozen.log_prob(q.mu), q.log_prob(q.mu))
    z, kl = frozen.rsample_kl()
    assert not z.requires_grad and not kl.requires_grad
    assert not kl_divergence(q, frozen).detach().any()
    p = vf.DiagonalGaussian(torch.zeros(4, dtype=F64).requires_grad_(), 0.0)
    kl = kl_divergence(frozen, p).sum()
    assert torch.autograd.grad(kl, h, allow_unused=True) == (None,)


def test_detach_compiles_whole() -> None:
    def function(h: Tensor) -> Tensor:
        q = vf.DiagonalGaussian.from_moments(h)
        return kl_divergence(q, q.detach()).sum() + q.kl()

    torch._dynamo.reset()
    h = random(3, 8).requires_grad_()
    eager = function(h)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(h), eager)
