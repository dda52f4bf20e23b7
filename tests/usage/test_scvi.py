"""Replacing the negative binomials of scvi-tools keeps values and classes, and is reversible."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from vae_fused.compat import scvi as compat

pytest.importorskip("scvi")
from scvi.distributions import (
    NegativeBinomial,
    NegativeBinomialMixture,
    ZeroInflatedNegativeBinomial,
)
from scvi.distributions import (
    _negative_binomial as theirs,
)

pytestmark = pytest.mark.packages

ORIGINAL_NB, ORIGINAL_ZINB = theirs.log_nb_positive, theirs.log_zinb_positive
DTYPE = torch.float64


@pytest.fixture
def patched() -> Iterator[None]:
    assert compat.patch()
    yield
    compat.unpatch()


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    compat.unpatch()
    assert theirs.log_nb_positive is ORIGINAL_NB


def inputs(theta_shape: tuple[int, ...] = (7,), seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=DTYPE)

    return {
        "mu": draw(5, 7).exp().requires_grad_(),
        "theta": draw(*theta_shape).exp().requires_grad_(),
        "zi_logits": draw(5, 7).requires_grad_(),
    }


def counts(seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.floor(3.0 * torch.randn(5, 7, generator=generator, dtype=DTYPE).abs())


def same(value: Tensor, expected: Tensor, leaves: list[Tensor]) -> None:
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-7)
    weights = torch.arange(1.0, expected.numel() + 1.0, dtype=expected.dtype).view(expected.shape)
    for a, b in zip(
        torch.autograd.grad((value * weights).sum(), leaves),
        torch.autograd.grad((expected * weights).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


# --------------------------------------------------------------------------------------------------
# Functions
# --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("patched")
@pytest.mark.parametrize("theta_shape", [(7,), (1, 7), (5, 7), (5, 1)])
@pytest.mark.parametrize("eps", [None, 1e-3])
def test_the_functions_have_the_same_values(theta_shape: tuple[int, ...], eps: Any) -> None:
    x, (mu, theta, pi) = counts(), inputs(theta_shape).values()
    options = {} if eps is None else {"eps": eps}
    assert theirs.log_nb_positive is not ORIGINAL_NB
    same(
        theirs.log_nb_positive(x, mu, theta, **options),
        ORIGINAL_NB(x, mu, theta, **options),
        [mu, theta],
    )
    same(
        theirs.log_zinb_positive(x, mu, theta, pi, **options),
        ORIGINAL_ZINB(x, mu, theta, pi, **options),
        [mu, theta, pi],
    )


@pytest.mark.usefixtures("patched")
def test_samples_and_data_broadcast() -> None:
    mu, theta, _ = inputs().values()
    factors = torch.tensor([1.0, 2.0, 3.0], dtype=DTYPE).view(3, 1, 1)
    for read in (lambda: factors * mu, lambda: mu[:1]):  # more samples than data, or fewer means
        got = theirs.log_nb_positive(counts(), read(), theta)
        same(got, ORIGINAL_NB(counts(), read(), theta), [mu, theta])


@pytest.mark.usefixtures("patched")
def test_other_arguments_go_to_the_original() -> None:
    mu, theta, pi = inputs().values()
    calls: list[str] = []

    def log(value: Tensor) -> Tensor:
        calls.append("log")
        return torch.log(value)

    def lgamma(value: Tensor) -> Tensor:
        calls.append("lgamma")
        return torch.lgamma(value)

    for options in ({"log_fn": log}, {"lgamma_fn": lgamma}):
        calls.clear()
        got = theirs.log_nb_positive(counts(), mu, theta, **options)
        assert calls and torch.equal(got, ORIGINAL_NB(counts(), mu, theta))
        got = theirs.log_zinb_positive(counts(), mu, theta, pi, **options)
        assert torch.equal(got, ORIGINAL_ZINB(counts(), mu, theta, pi))
    narrow = [t.detach().float() for t in (mu, theta)]
    assert theirs.log_nb_positive(counts(), *narrow).dtype == DTYPE
    x = counts().requires_grad_()
    assert torch.autograd.grad(theirs.log_nb_positive(x, mu, theta).sum(), x)[0].isfinite().all()


# --------------------------------------------------------------------------------------------------
# Classes
# --------------------------------------------------------------------------------------------------


def distributions(theta_shape: tuple[int, ...] = (7,)) -> list[Any]:
    given = inputs(theta_shape)
    zi_logits = given.pop("zi_logits")
    return [
        NegativeBinomial(**given),
        ZeroInflatedNegativeBinomial(**given, zi_logits=zi_logits),
        NegativeBinomial(total_count=given["theta"], logits=given["mu"].log()),
    ]


@pytest.mark.parametrize("theta_shape", [(7,), (1, 7), (5, 7), (5, 1)])
def test_classes_that_were_imported_before_have_the_same_values(
    theta_shape: tuple[int, ...],
) -> None:
    before = distributions(theta_shape)
    moments = [(d.mean, d.variance) for d in before]
    expected = [d.log_prob(counts()) for d in before]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = [d.sample((3,)) for d in before]
    assert compat.patch()
    after = distributions(theta_shape)
    for old, new, value, moment in zip(before, after, expected, moments, strict=True):
        torch.testing.assert_close(new.log_prob(counts()), value, rtol=1e-6, atol=1e-7)
        # Existing objects also have the new methods.
        torch.testing.assert_close(old.log_prob(counts()), value, rtol=1e-6, atol=1e-7)
        assert torch.equal(new.mean, moment[0]) and torch.equal(new.variance, moment[1])
        assert isinstance(new, theirs.NegativeBinomial) and repr(new) == repr(old)
        assert new.theta.shape == (5, 7)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for d, values in zip(after, drawn, strict=True):
            assert torch.equal(d.sample((3,)), values)
    assert type(after[0]) is theirs.NegativeBinomial is NegativeBinomial


@pytest.mark.usefixtures("patched")
def test_theta_is_kept_before_it_is_broadcast(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Size] = []
    real = compat.losses.nll

    def spy(output: Any, *args: Any, **kwargs: Any) -> Tensor:
        seen.append(output[1].shape)
        return real(output, *args, **kwargs)

    monkeypatch.setattr(compat.losses, "nll", spy)
    given = inputs()
    zi_logits = given.pop("zi_logits")
    for d in (
        NegativeBinomial(**given),
        ZeroInflatedNegativeBinomial(**given, zi_logits=zi_logits),
        NegativeBinomial(None, None, None, given["mu"], given["theta"]),
        copy.copy(NegativeBinomial(**given)),
    ):
        value = d.log_prob(counts())
        assert seen.pop() == (7,)
        assert torch.autograd.grad(value.sum(), given["theta"])[0].shape == (7,)
    d.theta = 2.0 * d.theta  # an assignment takes effect
    assert not torch.equal(d.log_prob(counts()), value) and seen.pop() == (5, 7)


@pytest.mark.usefixtures("patched")
def test_a_distribution_pickles() -> None:
    for d in distributions():
        for name in ("mu", "theta", "zi_logits"):
            if hasattr(d, name):
                setattr(d, name, getattr(d, name).detach())
        d._given_theta = None
        value = pickle.loads(pickle.dumps(d)).log_prob(counts())
        assert torch.equal(value, d.log_prob(counts()))


@pytest.mark.usefixtures("patched")
def test_values_are_checked_only_when_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    half = counts() + 0.5
    for lazy in distributions():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            lazy.log_prob(half)
    given = {k: v.detach() for k, v in inputs().items()}
    strict = ZeroInflatedNegativeBinomial(**given, validate_args=True)
    with pytest.warns(UserWarning, match="support"):
        value = strict.log_prob(half)
    torch.testing.assert_close(value, ORIGINAL_ZINB(half, *given.values()), rtol=1e-6, atol=1e-7)


def test_the_mixture_follows() -> None:
    mu, theta, pi = (t.detach() for t in inputs().values())
    second = inputs(seed=3)["mu"].detach()
    mixture = NegativeBinomialMixture(mu, second, theta, pi)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = mixture.log_prob(counts())
        assert compat.patch()
        torch.testing.assert_close(mixture.log_prob(counts()), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.usefixtures("patched")
def test_digits_survive_a_large_theta() -> None:
    x, mu = torch.tensor([0.0, 3.0]), torch.tensor([2.0, 2.0])
    value = NegativeBinomial(mu=mu, theta=torch.tensor(1e7)).log_prob(x)
    expected = torch.distributions.Poisson(mu).log_prob(x)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=0.0)


# --------------------------------------------------------------------------------------------------
# Patching
# --------------------------------------------------------------------------------------------------


def test_unpatch_restores_everything() -> None:
    methods = [
        (c, c.__init__, c.log_prob) for c in (NegativeBinomial, ZeroInflatedNegativeBinomial)
    ]
    assert not compat.is_patched()
    assert compat.patch() and compat.patch() and compat.is_patched()
    for cls, init, log_prob in methods:
        assert cls.__init__ is not init and cls.log_prob is not log_prob
    made = distributions()
    compat.unpatch()
    compat.unpatch()
    assert not compat.is_patched() and theirs.log_zinb_positive is ORIGINAL_ZINB
    for cls, init, log_prob in methods:
        assert cls.__init__ is init and cls.log_prob is log_prob
    for old, new in zip(made, distributions(), strict=True):
        assert torch.equal(old.log_prob(counts()), new.log_prob(counts()))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("log_nb_positive", lambda f: lambda *a, **k: f(*a, **k) + 1e-3),
        ("log_zinb_positive", lambda f: lambda *a, **k: f(*a, **k) * 1.001),
        ("log_nb_positive", lambda f: lambda x, mu, theta: f(x, mu, theta)),
    ],
)
def test_another_scvi_is_left_alone(
    name: str, change: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(theirs, name, other := change(getattr(theirs, name)))
    init = NegativeBinomial.__init__
    with pytest.warns(RuntimeWarning, match="does not replace the likelihoods of scvi-tools"):
        assert not compat.patch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not compat.patch()
    assert not compat.is_patched() and getattr(theirs, name) is other
    assert NegativeBinomial.__init__ is init
    monkeypatch.undo()
    compat.unpatch()
    assert compat.patch()


def test_a_class_that_computes_something_else_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = ZeroInflatedNegativeBinomial.log_prob
    monkeypatch.setattr(
        ZeroInflatedNegativeBinomial, "log_prob", lambda self, value: 2.0 * real(self, value)
    )
    with pytest.warns(RuntimeWarning, match=r"ZeroInflatedNegativeBinomial\.log_prob differs by"):
        assert not compat.patch()


@pytest.mark.slow
@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
def test_a_model_trains_to_the_same_loss(likelihood: str) -> None:
    import anndata
    import numpy as np
    import scvi

    rng = np.random.default_rng(0)
    data = anndata.AnnData(rng.poisson(rng.gamma(0.5, 2.0, (1, 60)), (128, 60)).astype(np.float32))

    def loss() -> float:
        scvi.settings.seed = 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scvi.model.SCVI.setup_anndata(data)
            model = scvi.model.SCVI(data, gene_likelihood=likelihood, n_hidden=16, n_latent=4)
            model.train(max_epochs=3, accelerator="cpu", train_size=1.0, enable_progress_bar=False,
                        logger=False)  # fmt: skip
            return float(model.get_reconstruction_error()["reconstruction_loss"])

    expected = loss()
    assert compat.patch()
    assert loss() == pytest.approx(expected, rel=1e-4)
