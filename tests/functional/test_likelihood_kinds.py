"""Likelihood objects are values: they validate arguments, print, compare, hash, pickle and load.

The tests also cover the likelihoods' distributions.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import math
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
from nll_cases import CASES, Case, make
from torch import Tensor

import vae_fused as vf
from vae_fused import likelihoods as k

KINDS = (
    k.Bernoulli,
    k.Gaussian,
    k.Laplace,
    k.Poisson,
    k.NegativeBinomial,
    k.ZeroInflatedNegativeBinomial,
    k.StudentT,
    k.ContinuousBernoulli,
    k.NegativeBinomialLogits,
    k.DiscretizedLogistic,
)
NAMES = (
    "bernoulli",
    "gaussian",
    "laplace",
    "poisson",
    "negative_binomial",
    "zero_inflated_negative_binomial",
    "student_t",
    "continuous_bernoulli",
    "negative_binomial_logits",
    "discretized_logistic",
)
every = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@pytest.mark.parametrize(("name", "kind"), zip(NAMES, KINDS, strict=True))
def test_a_string_means_the_defaults(name: str, kind: type[k.Likelihood]) -> None:
    one = torch.full((2, 3), 0.5)
    output = [one] * len(kind().outputs)
    assert kind.name == name
    assert torch.equal(vf.nll(output, one, name), vf.nll(output, one, kind()))


@every
def test_a_kind_is_a_value(case: Case) -> None:
    kind = case.kind
    assert eval(repr(kind), {**vars(k), "Scale": vf.Scale}) == kind
    others = [
        kind,
        copy.deepcopy(kind),
        dataclasses.replace(kind),
        pickle.loads(pickle.dumps(kind)),
    ]
    assert len(set(others)) == 1
    assert kind != dataclasses.replace(kind, validate=True)
    with pytest.raises(dataclasses.FrozenInstanceError):
        kind.constants = False


@every
def test_a_checkpoint_with_a_kind_loads(case: Case) -> None:
    file = io.BytesIO()
    torch.save({"likelihood": case.kind, "scale": vf.Scale("std", clamp=(0.1, None))}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert loaded == {"likelihood": case.kind, "scale": vf.Scale("std", clamp=(0.1, None))}


def test_a_repr_has_what_is_no_default() -> None:
    assert repr(k.Bernoulli()) == "Bernoulli()"
    assert repr(k.Poisson("softmax", validate=True)) == "Poisson(validate=True, rate='softmax')"
    assert repr(k.Gaussian(vf.Scale("std"))) == "Gaussian(scale='std')"


def test_one_scale_has_one_notation() -> None:
    assert k.Gaussian(vf.Scale("std")) == k.Gaussian("std")
    assert k.Gaussian(vf.Scale("std", gain=2.0)) != k.Gaussian("std")
    assert k.Laplace() == k.Laplace("logstd") != k.Laplace("logvar")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: k.Bernoulli(constants=1), TypeError, "constants must be a bool, got int"),
        (lambda: k.Poisson(validate="yes"), TypeError, "validate must be a bool, got str"),
        (
            lambda: k.Poisson("log"),
            ValueError,
            "rate must be one of identity, exp, softplus, softmax, got 'log'",
        ),
        (lambda: k.Poisson(None), TypeError, "rate must be a str, got NoneType"),
        (lambda: k.Gaussian("sigma"), ValueError, "scale must be one of logvar.*, got 'sigma'"),
        (lambda: k.Gaussian(sigma=0.0), ValueError, "sigma must be above 0, got 0.0"),
        (lambda: k.Laplace(sigma="1"), TypeError, "sigma must be a number, got str"),
        (
            lambda: k.Gaussian("std", sigma=1.0),
            ValueError,
            "scale and sigma must not be given together, got",
        ),
        (
            lambda: k.NegativeBinomial("log"),
            ValueError,
            "mean must be one of identity.*, got 'log'",
        ),
        (
            lambda: k.NegativeBinomial(dispersion="softmax"),
            ValueError,
            "dispersion must be one of identity, exp, softplus.*, got 'softmax'",
        ),
        (
            lambda: k.NegativeBinomial(dispersion_max=-1.0),
            ValueError,
            "dispersion_max must be above 0, got -1.0",
        ),
        (lambda: k.NegativeBinomial(eps=-1.0), ValueError, "eps must be at least 0, got -1.0"),
        (
            lambda: k.NegativeBinomial(eps=math.nan),
            ValueError,
            "eps must be a finite number, got nan",
        ),
        (
            lambda: k.ZeroInflatedNegativeBinomial(zero_inflation="logit"),
            ValueError,
            "zero_inflation must be one of logits, probs.*, got 'logit'",
        ),
        (lambda: k.Poisson(rate="exp", mean="exp"), TypeError, "unexpected keyword"),
        (lambda: k.StudentT(df=0.0), ValueError, "df must be above 0, got 0.0"),
        (lambda: k.StudentT(df=math.inf), ValueError, "df must be a finite number, got inf"),
        (
            lambda: k.StudentT(sigma=1.0),
            ValueError,
            "df must be a number where sigma is one, .*, got None",
        ),
        (
            lambda: k.StudentT(df=3.0, freedom="exp"),
            ValueError,
            "df and freedom must not be given together, got",
        ),
        (
            lambda: k.StudentT(freedom="softmax"),
            ValueError,
            "freedom must be one of identity.*, got 'softmax'",
        ),
        (lambda: k.DiscretizedLogistic(0), ValueError, "bits must be between 1 and 16, got 0"),
        (lambda: k.DiscretizedLogistic(17), ValueError, "bits must be between 1 and 16, got 17"),
        (lambda: k.DiscretizedLogistic(8.0), TypeError, "bits must be an int, got float"),
        (
            lambda: k.DiscretizedLogistic(log_scale_min=-51),
            ValueError,
            "log_scale_min must be between -50 and 50, got -51",
        ),
    ],
)
def test_a_bad_option(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


# --------------------------------------------------------------------------------------------------
# Distributions
# --------------------------------------------------------------------------------------------------


@every
def test_samples_have_the_moments_of_the_distribution(case: Case) -> None:
    kind, inputs = case.kind, make(case)
    outputs = inputs.outputs
    if isinstance(kind, k.StudentT):  # with degrees of freedom for which the moments exist
        if kind.df is None:
            outputs = (*outputs[:2], outputs[2] + (3.0 if kind.freedom == "exp" else 20.0))
        else:
            kind = dataclasses.replace(kind, df=20.0)
    distribution = kind.distribution(outputs, inputs.library)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = distribution.sample((20_000,))
    assert drawn.shape == (20_000, 4, 6) and not drawn.requires_grad
    mean, variance = distribution.mean.detach(), distribution.variance.detach()
    error = (drawn.mean(0) - mean) / (variance / 20_000).sqrt()
    assert error.abs().max() < 5.0
    assert (drawn.var(0) / variance - 1.0).abs().max() < 0.4
    assert distribution.mean.requires_grad


def constants_of(kind: Any, x: Tensor) -> Tensor:
    """Returns the terms of the negative log likelihood that do not depend on an output."""
    if isinstance(kind, k.Laplace):
        return x.new_tensor(math.log(2.0 * (kind.sigma or 1.0)))
    if isinstance(kind, (k.Gaussian, k.StudentT)):
        result = 0.5 * math.log(2.0 * math.pi) + math.log(kind.sigma or 1.0)
        if n := getattr(kind, "df", None):
            result += math.lgamma(n / 2) - math.lgamma((n + 1) / 2) + 0.5 * math.log(n / 2)
        return x.new_tensor(result)
    return torch.lgamma(x + 1.0) if not kind.target_has_gradient else torch.zeros_like(x)


@every
def test_constants_are_all_that_is_left_out(case: Case) -> None:
    inputs = make(case)
    with_them, without = (
        inputs.nll(dataclasses.replace(case.kind, constants=constants), reduction="none")
        for constants in (True, False)
    )
    is_grid = isinstance(case.kind, k.DiscretizedLogistic)
    constants = torch.tensor(0.0) if is_grid else constants_of(case.kind, inputs.target)
    torch.testing.assert_close(with_them - without, constants.expand_as(with_them).to(with_them))


@every
def test_a_gradient_does_not_depend_on_which_others_are_required(case: Case) -> None:
    inputs = make(case)
    together = torch.autograd.grad(inputs.nll(case.kind, reduction="sum"), inputs.leaves)
    for at, (leaf, want) in enumerate(zip(inputs.leaves, together, strict=True)):
        some = [value if i == at else value.detach() for i, value in enumerate(inputs.leaves)]
        outputs, library = some[: len(inputs.outputs)], None if inputs.library is None else some[-1]
        alone = inputs._replace(outputs=tuple(outputs), library=library)
        (got,) = torch.autograd.grad(alone.nll(case.kind, reduction="sum"), leaf)
        torch.testing.assert_close(got, want)


def test_samples_of_counts_have_their_mean_to_a_permille() -> None:
    """With these parameters, the mean of 20,000 counts has a relative standard error of 1e-4."""
    mean, theta = torch.full((20_000,), 1e4), torch.tensor([1e6])
    for kind, outputs in (
        (k.NegativeBinomial(), (mean, theta)),
        (k.ZeroInflatedNegativeBinomial(), (mean, theta, torch.tensor([-20.0]))),
    ):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            drawn = kind.distribution(outputs).sample()
        assert drawn.mean().item() == pytest.approx(1e4, rel=1e-3)


def test_samples_of_counts_have_their_variance_to_half_a_percent() -> None:
    """The standard error of the variance is 0.13 %."""
    q = k.NegativeBinomial().distribution((torch.full((2_000_000,), 1e3), torch.tensor([4.0])))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = q.sample().double()
    assert drawn.var().item() == pytest.approx(1e3 + 1e6 / 4, rel=5e-3)


@pytest.mark.parametrize("name", ["nb", "nb, softmax", "zinb", "zinb, probs"])
def test_probabilities_of_counts_sum_to_1(name: str) -> None:
    case = CASES[name]
    inputs = make(case)
    distribution = case.kind.distribution(inputs.outputs, inputs.library)
    counts = torch.arange(3000.0, dtype=torch.float64).view(-1, 1, 1)
    p = distribution.log_prob(counts).exp()
    assert p.shape == (3000, 4, 6)
    one = torch.ones(4, 6, dtype=torch.float64)
    torch.testing.assert_close(p.sum(0), one)
    mean = (p * counts).sum(0)
    torch.testing.assert_close(mean, distribution.mean)
    torch.testing.assert_close((p * (counts - mean) ** 2).sum(0), distribution.variance)


@pytest.mark.parametrize("bits", [1, 3, 8, 12])
def test_probabilities_of_a_grid_sum_to_1(bits: int) -> None:
    mean = torch.tensor([0.0, 0.3, -1.5, 1.0], dtype=torch.float64)
    log_scale = torch.tensor([-1.0, -4.0, 0.5, -9.0], dtype=torch.float64)
    q = k.DiscretizedLogistic(bits, log_scale_min=-6.0).distribution((mean, log_scale))
    grid = (torch.arange(2**bits, dtype=torch.float64) * 2 / (2**bits - 1) - 1).view(-1, 1)
    p = q.log_prob(grid).exp()
    torch.testing.assert_close(p.sum(0), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(q.mean, (p * grid).sum(0))
    torch.testing.assert_close(q.variance, (p * (grid - q.mean) ** 2).sum(0))
    drawn = q.sample((1000,))
    steps = (drawn + 1) * (2**bits - 1) / 2
    torch.testing.assert_close(steps, steps.round())
    assert drawn.min() >= -1 and drawn.max() <= 1


def test_a_distribution_of_a_grid_expands_and_validates() -> None:
    q = k.DiscretizedLogistic(validate=True).distribution((torch.zeros(3), torch.zeros(1)))
    wide = q.expand((2, 3))
    assert wide.batch_shape == wide.sample().shape == wide.mean.shape == (2, 3)
    assert torch.distributions.Independent(q, 1).log_prob(torch.ones(5, 3)).shape == (5,)
    with pytest.raises(ValueError, match="support"):
        wide.log_prob(torch.tensor([0.5, 1.0, 1.5]))
    with pytest.raises(ValueError, match="constraint"):
        k.DiscretizedLogistic(validate=True).distribution((torch.full((3,), math.nan), q.log_scale))


def test_distributions_of_counts_expand_and_validate() -> None:
    q = k.ZeroInflatedNegativeBinomial(validate=True).distribution(
        (torch.ones(3), torch.ones(1), torch.zeros(3))
    )
    wide = q.expand((2, 3))
    assert wide.batch_shape == wide.sample().shape == wide.mean.shape == (2, 3)
    events = torch.distributions.Independent(q, 1)
    assert events.log_prob(torch.ones(5, 3)).shape == (5,)
    with pytest.raises(ValueError, match="support"):
        wide.log_prob(torch.tensor([0.5, 1.0, 1.0]))
    with pytest.raises(ValueError, match="constraint"):
        k.NegativeBinomial(validate=True).distribution((-torch.ones(3), torch.ones(3)))


def test_a_distribution_without_dispersion_samples_a_poisson_variable() -> None:
    q = k.NegativeBinomial().distribution((torch.full((20_000,), 4.0), torch.tensor([math.inf])))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = q.sample()
    assert drawn.mean().item() == pytest.approx(4.0, abs=0.08)
    assert drawn.var().item() == pytest.approx(4.0, rel=0.05)


def test_16_bit_outputs_have_float32_distributions() -> None:
    output = (torch.ones(3, dtype=torch.bfloat16), torch.ones(3, dtype=torch.bfloat16))
    assert k.NegativeBinomial().distribution(output).mean.dtype == torch.float32


def test_a_kind_may_be_defined_again() -> None:
    """A notebook cell that runs twice defines its likelihood twice."""

    def define(factor: float) -> None:
        class Fixed(k.Bernoulli, name="of a notebook"):
            def elements(self, call: Any) -> Tensor:
                return torch.full_like(call.outputs[0], -factor)

    for factor in (1.0, 2.0):
        define(factor)
        assert vf.nll(torch.zeros(3), torch.zeros(3), "of a notebook", reduction="mean") == factor
    with pytest.raises(
        ValueError, match="name must differ from that of Bernoulli, got 'bernoulli'"
    ):
        type("Other", (k.Bernoulli,), {}, name="bernoulli")


def test_laplace_of_a_fixed_scale_has_the_dtype_and_device_of_the_output() -> None:
    d = k.Laplace(sigma=0.1).distribution(torch.zeros(3, dtype=torch.float64, device="meta"))
    assert d.scale.dtype == torch.float64 and d.scale.device.type == "meta"


def test_the_kinds_of_strings_exist_before_their_first_use() -> None:
    """Otherwise, a graph that torch.compile traces at the first use would be compiled twice."""
    program = "from vae_fused import _likelihood as l; assert set(l._DEFAULT_KINDS) == set(l.KINDS)"
    subprocess.run([sys.executable, "-I", "-W", "ignore", "-c", program], check=True)
