"""The modules agree with their functions, and with the ELBO that a user expects."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import DTYPES, make_key, posterior, random
from torch.distributions import Bernoulli, Normal

import vae_fused as vf

F64 = torch.float64
KEY = make_key(1)


def batch(shape: tuple[int, ...] = (4, 3, 5), dtype: torch.dtype = F64):
    """Returns a decoder's output, data in [0, 1], and a posterior."""
    output = random(*shape, seed=1, dtype=dtype).requires_grad_()
    return (
        output,
        random(*shape, seed=2).sigmoid().to(dtype),
        *posterior((shape[0], 6), dtype=dtype, seed=3, requires_grad=True),
    )


# --------------------------------------------------------------------------------------------------
# Reparameterize, GaussianKL
# --------------------------------------------------------------------------------------------------


def test_reparameterize_samples_in_training_and_returns_the_mean_in_evaluation():
    mu, logvar = posterior((3, 4))
    module = vf.nn.Reparameterize()
    assert torch.equal(module(mu, logvar, key=KEY), vf.reparameterize(mu, logvar, key=KEY))
    assert torch.equal(module.eval()(mu, logvar), mu)


@pytest.mark.parametrize("training", [True, False])
def test_reparameterize_has_one_shape_and_dtype_in_both_modes(training):
    mu, logvar = random(3, 1), random(4, dtype=F64)
    z = vf.nn.Reparameterize().train(training)(mu, logvar)
    assert z.shape == (3, 4) and z.dtype == F64


def test_evaluation_leaves_generators_alone():
    state = torch.get_rng_state()
    vf.nn.Reparameterize().eval()(*posterior((3, 4)))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({}, "reduction='batchmean'"),
        ({"reduction": "sample"}, "reduction='sample'"),
        ({"dim": (1, 2)}, "dim=(1, 2)"),
    ],
)
def test_gaussian_kl_is_the_function(kwargs, text):
    mu, logvar = posterior((3, 4, 5))
    module = vf.nn.GaussianKL(**kwargs)
    assert torch.equal(module(mu, logvar), vf.gaussian_kl(mu, logvar, **kwargs))
    assert repr(module) == f"GaussianKL({text})"


def test_modules_have_no_state():
    modules = [vf.nn.Reparameterize(), vf.nn.GaussianKL(), vf.nn.ELBOLoss(beta=torch.tensor(0.5))]
    for module in modules:
        assert not module.state_dict() and not [*module.parameters()]
        copy.deepcopy(module)
    assert repr(vf.nn.ELBOLoss("mse", beta=4)) == "ELBOLoss(reconstruction='mse', beta=4)"


# --------------------------------------------------------------------------------------------------
# ELBOLoss
# --------------------------------------------------------------------------------------------------

# A batch's negative log likelihood in torch operations, summed over each sample and then averaged.
LIKELIHOODS = {
    "bce_with_logits": lambda output, x: (
        -Bernoulli(logits=output, validate_args=False).log_prob(x).sum() / len(x)
    ),
    "mse": lambda output, x: F.mse_loss(output, x, reduction="sum") / len(x),
    "gaussian": lambda output, x: -Normal(output, 1.0).log_prob(x).sum() / len(x),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("shape", [(4,), (4, 7), (2, 3, 5, 5)], ids=str)
def test_elbo_is_likelihood_plus_weighted_kl(name, shape):
    output, x, mu, logvar = batch(shape)
    terms = vf.nn.ELBOLoss(name, beta=0.3)(output, x, mu, logvar)
    likelihood, kl = LIKELIHOODS[name](output, x), vf.gaussian_kl(mu, logvar)
    torch.testing.assert_close(terms.reconstruction, likelihood)
    torch.testing.assert_close(terms.kl, kl)
    torch.testing.assert_close(terms.loss, likelihood + 0.3 * kl)
    leaves = (output, mu, logvar)
    torch.testing.assert_close(
        torch.autograd.grad(terms.loss, leaves), torch.autograd.grad(likelihood + 0.3 * kl, leaves)
    )


def test_elbo_bounds_the_evidence_of_a_model_that_has_one():
    """The model is z ~ N(0, 1) and x | z ~ N(z, 1), so ln p(x) = ln N(x; 0, 2).

    The bound attains this evidence for q = N(x/2, 1/2).
    """
    x = random(2000, 1, dtype=F64)
    evidence = Normal(0.0, math.sqrt(2.0)).log_prob(x).mean()
    for shift, tight in ((0.0, True), (0.5, False)):
        mu = x.expand(2000, 1000) / 2 + shift
        z, _ = vf.reparameterize_kl(mu, torch.full_like(mu, math.log(0.5)), key=KEY)
        kl = vf.gaussian_kl(mu[:, :1], torch.full_like(x, math.log(0.5)))
        elbo = vf.nn.ELBOLoss("gaussian")(z.T.flatten(), x.T.expand(1000, 2000).flatten(), kl=kl)
        assert (abs(-elbo.loss - evidence) < 5e-3) == tight and -elbo.loss < evidence + 5e-3


def test_gaussian_decoder_may_have_its_own_variance():
    mean, x, mu, logvar = batch()
    for decoder_logvar in (random(4, 3, 5, seed=8, dtype=F64), torch.tensor(0.7, dtype=F64)):
        decoder_logvar = decoder_logvar.requires_grad_()
        terms = vf.nn.ELBOLoss("gaussian")((mean, decoder_logvar), x, mu, logvar)
        want = -Normal(mean, torch.exp(0.5 * decoder_logvar)).log_prob(x).sum() / 4
        torch.testing.assert_close(terms.reconstruction, want)
        torch.testing.assert_close(
            torch.autograd.grad(terms.loss, decoder_logvar),
            torch.autograd.grad(want, decoder_logvar),
        )


@pytest.mark.parametrize(
    "reduce", [lambda e: e, lambda e: e.flatten(1).sum(1), lambda e: e.sum() / 4]
)
def test_callables_return_elements_or_samples_or_the_mean_of_samples(reduce):
    output, x, mu, logvar = batch()
    loss = vf.nn.ELBOLoss(lambda output, x: reduce((output - x).abs()))
    terms = loss(output, x, mu, logvar)
    torch.testing.assert_close(terms.reconstruction, (output - x).abs().sum() / 4)
    kl = vf.gaussian_kl(mu, logvar)
    torch.testing.assert_close(terms.kl, kl)
    torch.testing.assert_close(terms.loss, terms.reconstruction + kl)


def test_callables_read_what_they_are_given():
    nodes, edges = {"nodes": torch.ones(3, 2)}, [0, 1]
    loss = vf.nn.ELBOLoss(lambda output, target: output["nodes"].sum() * target[1])
    assert loss(nodes, edges, kl=torch.tensor(1.0)).loss == 7.0


@pytest.mark.parametrize("reduction", ["batchmean", "sample", "none"])
def test_the_kl_of_the_fused_call_serves(reduction):
    output, x, mu, logvar = batch()
    _, kl = vf.reparameterize_kl(mu, logvar, reduction=reduction)
    loss = vf.nn.ELBOLoss("mse")
    torch.testing.assert_close(loss(output, x, kl=kl), loss(output, x, mu, logvar))


@pytest.mark.parametrize("beta", [0, 2.5, torch.tensor(2.5, dtype=F64)])
def test_beta_warms_up(beta):
    arguments = batch()
    loss, (value, reconstruction, kl) = (
        vf.nn.ELBOLoss("mse"),
        vf.nn.ELBOLoss("mse", beta=beta)(*arguments),
    )
    torch.testing.assert_close(value, reconstruction + float(beta) * kl)
    torch.testing.assert_close(loss(*arguments, beta=beta).loss, value)
    torch.testing.assert_close(loss(*arguments).loss, reconstruction + kl)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_sums_over_images_do_not_overflow(name, dtype):
    output, x = (
        torch.full((2, 3, 256, 256), 3.0, dtype=dtype),
        torch.zeros(2, 3, 256, 256).to(dtype),
    )
    terms = vf.nn.ELBOLoss(name)(output, x, *posterior((2, 6), dtype=dtype))
    assert all(t.dtype == (F64 if dtype == F64 else torch.float32) for t in terms)
    torch.testing.assert_close(
        terms.reconstruction.double(),
        LIKELIHOODS[name](output.double(), x.double()),
        rtol=1e-5,
        atol=0,
    )


def test_elbo_compiles_whole():
    torch._dynamo.reset()
    loss = vf.nn.ELBOLoss("bce_with_logits")
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for beta in (0.1, 0.2):
        arguments = batch()
        beta = torch.tensor(beta)
        torch.testing.assert_close(compiled(*arguments, beta=beta), loss(*arguments, beta=beta))


X = torch.rand(4, 3)
Q = torch.zeros(4, 2), torch.zeros(4, 2)
BAD = [
    (lambda: vf.nn.GaussianKL("batch"), ValueError, "reduction must be one of .*, got 'batch'"),
    (lambda: vf.nn.GaussianKL("sum", dim=1), ValueError, "reduction must have its default"),
    (lambda: vf.nn.GaussianKL(dim=7)(*Q), ValueError, "dim must be a dimension of .*, got 7"),
    (lambda: vf.nn.ELBOLoss("bce"), ValueError, "likelihood must be one of bernoulli.*, got 'bce'"),
    (
        lambda: vf.nn.ELBOLoss(3),
        TypeError,
        "reconstruction must be a str, a likelihood or a callable, got int",
    ),
    (
        lambda: vf.nn.ELBOLoss(vf.likelihoods.Bernoulli),
        TypeError,
        "got the class Bernoulli; pass an instance of it",
    ),
    (
        lambda: vf.nn.ELBOLoss(lambda y, x: y)(X, X, *Q, target_mask=X > 0),
        TypeError,
        "target_mask must come with a likelihood",
    ),
    (lambda: vf.nn.ELBOLoss(beta="1"), TypeError, "beta must be a number or a 0-d tensor, got str"),
    (lambda: vf.nn.ELBOLoss(beta=-1), ValueError, "beta must be at least 0, got -1"),
    (
        lambda: vf.nn.ELBOLoss(beta=torch.ones(1)),
        ValueError,
        r"0-d tensor, got shape \(1,\)",
    ),
    (lambda: vf.nn.ELBOLoss()(X, X), TypeError, "either mu and raw or kl must be given, got none"),
    (
        lambda: vf.nn.ELBOLoss()(X, X, Q[0]),
        TypeError,
        "either mu and raw or kl must be given, got mu; pass kl",
    ),
    (
        lambda: vf.nn.ELBOLoss()(X, X, *Q, kl=X),
        TypeError,
        "either mu and raw or kl must be given, got mu, raw, kl",
    ),
    (lambda: vf.nn.ELBOLoss()(X, X, kl=1.0), TypeError, "kl must be a Tensor, got float"),
    (
        lambda: vf.nn.ELBOLoss()(X, X[:, :1], *Q),
        ValueError,
        r"target must have the shape of output, \(4, 3\), got \(4, 1\)",
    ),
    (lambda: vf.nn.ELBOLoss()(X, None, *Q), TypeError, "target must be a Tensor, got NoneType"),
    (
        lambda: vf.nn.ELBOLoss()((X, X), X, *Q),
        TypeError,
        "output must be a Tensor for .*, got a pair; pass rec",
    ),
    (
        lambda: vf.nn.ELBOLoss()(X, X, kl=X.T),
        ValueError,
        r"kl must have the batch of output, 4, .* got shape \(3, 4\)",
    ),
    (
        lambda: vf.nn.ELBOLoss()(X[:2], X[:2], *Q),
        ValueError,
        r"mu must have the batch of output, 2, .* got shape \(4, 2\)",
    ),
    (
        lambda: vf.nn.ELBOLoss(lambda *_: X.T)(X, X, *Q),
        ValueError,
        r"reconstruction must have the batch of target, 4, .* got shape \(3, 4\)",
    ),
    (
        lambda: vf.nn.ELBOLoss(lambda *_: 1.0)(X, X, *Q),
        TypeError,
        "reconstruction must be a Tensor",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[b[2][:30] for b in BAD])
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


# --------------------------------------------------------------------------------------------------
# ELBOLoss with the options of elbo_loss
# --------------------------------------------------------------------------------------------------


def test_elbo_takes_every_likelihood_and_its_arguments():
    counts = torch.poisson(torch.full((5, 30), 2.0))
    logits, theta, kl = torch.randn(5, 30), torch.rand(30), torch.rand(5)
    kind = vf.likelihoods.NegativeBinomial("softmax", dispersion="exp")
    of_likelihood = {
        "target_mask": counts < 4,
        "weight": torch.rand(30),
        "library": torch.ones(5, 1),
    }
    got = vf.nn.ELBOLoss(kind, beta=0.5, capacity=0.3)(
        (logits, theta), counts, kl=kl, **of_likelihood
    )
    want = vf.elbo_loss(
        (logits, theta), counts, kl=kl, likelihood=kind, beta=0.5, capacity=0.3, **of_likelihood
    )
    assert [a.item() for a in got] == [b.item() for b in want]


def test_a_schedule_is_the_weight_of_an_elbo():
    logits, x, kl = torch.randn(4, 6), torch.rand(4, 6), torch.rand(4)
    schedule = vf.nn.LinearSchedule(4)
    elbo = vf.nn.ELBOLoss("bernoulli", beta=schedule)
    assert set(elbo.state_dict()) == {"beta.step_count"}
    for step in range(6):
        terms = elbo(logits, x, kl=kl)
        expected = terms.reconstruction + min(step / 4, 1.0) * terms.kl
        torch.testing.assert_close(terms.loss, expected)
        schedule.step()


def test_free_bits_of_the_module_apply_to_a_kl_of_elements():
    logits, x, elements = torch.randn(4, 6), torch.rand(4, 6), torch.rand(4, 3)
    elbo = vf.nn.ELBOLoss("bernoulli", free_bits=0.5)
    torch.testing.assert_close(elbo(logits, x, kl=elements).kl, elements.clamp_min(0.5).sum() / 4)
    torch.testing.assert_close(elbo(logits, x, kl=elements.sum(1)).kl, elements.sum() / 4)


@pytest.mark.parametrize("grad", ["backward", "forward"])
def test_an_elbo_keeps_its_way_and_survives_a_copy(grad):
    logits, x = torch.randn(4, 6, requires_grad=True), torch.rand(4, 6)
    mu, logvar = torch.randn(4, 2, requires_grad=True), torch.randn(4, 2, requires_grad=True)
    elbo = copy.deepcopy(vf.nn.ELBOLoss("bce_with_logits", beta=torch.tensor(0.5), grad=grad))
    loss = elbo(logits, x, mu, logvar).loss
    want = F.binary_cross_entropy_with_logits(logits, x, reduction="sum") / 4
    want = want + 0.5 * vf.reference.gaussian_kl(mu, logvar)
    torch.testing.assert_close(loss, want)
    leaves = (logits, mu, logvar)
    torch.testing.assert_close(torch.autograd.grad(loss, leaves), torch.autograd.grad(want, leaves))
