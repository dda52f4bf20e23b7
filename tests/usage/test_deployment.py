"""Models are exported and saved: AOTInductor packages, ONNX, fx graphs and files."""

from __future__ import annotations

import copy
import io
import math
import pickle
import warnings

import numpy as np
import option_recipes
import pytest
import torch
from conftest import native, random
from option_recipes import OPTIONS
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import vae_fused as vf
from vae_fused import likelihoods as kinds

KEY = torch.tensor([3, 2**40 + 7])


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def same(got, want, **tolerance) -> None:
    got, want = tuple(got), tuple(want)
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(torch.as_tensor(g), w, **tolerance)


# --------------------------------------------------------------------------------------------------
# A model with every option, parts of which the tests export
# --------------------------------------------------------------------------------------------------


class Sampling(nn.Module):
    """Computes samples and KLs with a one-sided clamp, a scalar prior, and annealed options.

    The options that users anneal are numbers, except for `scalar`, a tensor on the device.
    """

    def forward(self, mu, raw, key, mask, scalar):
        scale = vf.Scale("softplus", clamp=(None, 3.0), std_floor=0.1)
        weights = {"free_bits": 0.1, "balance": (0.8, 0.2)}
        z, kl = vf.reparameterize_kl(
            mu, raw, key=key, scale=scale, prior=vf.Prior(0.3, 0.5, "std"), temperature=0.7,
            mask=mask, **weights,
        )  # fmt: skip
        learned = vf.Prior(mu.flip(0), raw.flip(0), vf.Scale(clamp=(-2.0, None)))
        kl_2 = vf.gaussian_kl(
            mu, raw, prior=learned, free_bits=scalar, scale=vf.Scale(soft_clamp=5.0), dim=1
        )
        h = torch.cat([mu, raw], 1)
        z_3, kl_3 = vf.reparameterize_kl_moments(
            h, key=key, estimator="sample", mu_soft_clamp=2.0, sample_shape=2, reduction="sample"
        )
        priors = [vf.Prior(0.1, raw), vf.Prior(mu, 0.2)]
        zs, kl_4 = vf.reparameterize_kl_multi(
            [mu, raw], [raw, mu], key=key, temperature=scalar, prior=priors
        )
        kl_5 = vf.gaussian_kl_multi([mu, raw], [raw, mu], prior=vf.Prior(0.1, 0.2))
        stats = vf.latent_stats(mu, raw, scale=vf.Scale(clamp=(-1.0, 1.0)), mask=mask)
        return z, kl, kl_2, z_3, kl_3, *zs, kl_4, kl_5, vf.sampled_kl(z, raw), *stats


class Losses(nn.Module):
    """Computes an ELBO and several likelihoods. One passes an infinite option to its operator."""

    def forward(self, mu, raw, x, scalar):
        gaussian = kinds.Gaussian(vf.Scale("logstd", clamp=(-3.0, None)))
        counts = kinds.NegativeBinomial(dispersion_max=None)
        kl = vf.gaussian_kl(mu, raw)
        return (
            vf.nll((mu.exp(), raw.exp()), x, counts, mask=x > 0),
            vf.nll(mu, x, kinds.Poisson("softmax"), library=raw[:, :1], reduction="sample"),
            *vf.elbo_loss((mu, raw), x, kl=kl, likelihood=gaussian, beta=scalar, capacity=0.5),
            vf.nll((mu, raw), x, gaussian, grad="forward"),
        )


def tensors():
    mu, raw = random(4, 6), random(4, 6, seed=1)
    return mu, raw, random(4, 6, seed=2) > -0.7, torch.tensor(0.3), random(4, 6).abs().round()


def sampling_inputs():
    mu, raw, mask, scalar, _ = tensors()
    return mu, raw, KEY, mask, scalar


def losses_inputs():
    mu, raw, _, scalar, x = tensors()
    return mu, raw, x, scalar


MODELS = {"sampling": (Sampling, sampling_inputs), "losses": (Losses, losses_inputs)}


# --------------------------------------------------------------------------------------------------
# AOTInductor
# --------------------------------------------------------------------------------------------------


class Numbers(TorchDispatchMode):
    """Records the numbers that operators receive in addition to their tensors."""

    def __init__(self):
        super().__init__()
        self.found: list[float] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "vae_fused":
            leaves = pytree.tree_leaves((args, kwargs))
            self.found += [x for x in leaves if isinstance(x, float)]
        return function(*args, **(kwargs or {}))


@native
@pytest.mark.parametrize("name", OPTIONS)
def test_operators_get_finite_numbers(name):
    """An AOTInductor package stores the numbers as JSON, which has no infinities."""
    recipe = OPTIONS[name]
    leaves = option_recipes.tensors(recipe)
    with Numbers() as numbers:
        z, kl = vf.reparameterize_kl(
            leaves["mu"], leaves["raw"], **option_recipes.arguments(recipe, leaves)
        )
        (z.sum() + kl.sum()).backward()
    assert all(map(math.isfinite, numbers.found))


@native
@pytest.mark.parametrize("model", MODELS)
def test_operators_of_likelihoods_get_finite_numbers(model):
    module, inputs = MODELS[model]
    with Numbers() as numbers:
        module()(*inputs())
    assert len(numbers.found) > 4 and all(map(math.isfinite, numbers.found))


@pytest.mark.slow
@native
def test_a_package_of_aotinductor(tmp_path):
    class Model(nn.Module):
        def forward(self, mu, raw, key, mask, scalar, x):
            return *Sampling()(mu, raw, key, mask, scalar), *Losses()(mu, raw, x, scalar)

    inputs = (*sampling_inputs(), losses_inputs()[2])
    with torch.no_grad():
        want = Model()(*inputs)
        program = torch.export.export(Model(), inputs)
        path = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "model.pt2")
        )
        same(torch._inductor.aoti_load_package(path)(*inputs), want)


# --------------------------------------------------------------------------------------------------
# Export and ONNX
# --------------------------------------------------------------------------------------------------


def operators(program) -> list[str]:
    return [str(n.target) for n in program.graph.nodes if "vae_fused" in str(n.target)]


@native
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_decompositions_leave_no_operator_and_the_same_values(name, strict):
    model, inputs = MODELS[name]
    inputs = inputs()
    with torch.no_grad():
        want = model()(*inputs)
        program = torch.export.export(model(), inputs, strict=strict)
        assert operators(program)
        plain = program.run_decompositions(vf.export.decompositions())
        assert not operators(plain)
        same(plain.module()(*inputs), want, rtol=1e-5, atol=1e-5)


@native
def test_every_operator_has_a_decomposition():
    table = vf.export.decompositions()
    for name in torch._C._dispatch_get_all_op_names():
        if not name.startswith("vae_fused::") or name.endswith("_options"):
            continue
        packet, _, overload = name.removeprefix("vae_fused::").partition(".")
        assert getattr(getattr(torch.ops.vae_fused, packet), overload or "default") in table


@native
def test_a_program_with_gradients_is_refused():
    class Step(nn.Module):
        def forward(self, mu, raw):
            z, kl = vf.reparameterize_kl(mu, raw)
            return torch.autograd.grad((z.sum(), kl), (mu, raw))

    mu, raw = (t.requires_grad_() for t in tensors()[:2])
    graph = torch.fx.experimental.proxy_tensor.make_fx(Step())(mu, raw)
    program = torch.export.export(graph, (mu.detach(), raw.detach()))
    with pytest.raises(RuntimeError, match="must not contain gradients"):
        program.run_decompositions(vf.export.decompositions())


class Wrapped(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *tensors):
        return self.function(*tensors)


# Calls with a batch `a` of shape (B, 4) and a tensor `b` of shape (4,), whose rank is lower.
LOWER_RANK = {
    "prior": lambda a, b: vf.reparameterize_kl(a, a, prior=vf.Prior(b, b), key=KEY),
    "raw": vf.gaussian_kl,
    "mu": lambda a, b: vf.gaussian_kl(b, a),
    "mask": lambda a, b: vf.gaussian_kl(a, a, mask=b > 0),
    "log density": lambda a, b: vf.gaussian_log_prob(a, b, b),
    "sampled kl": lambda a, b: vf.sampled_kl(a, b, prior=vf.Prior(b, b)),
    "rsample_kl": lambda a, b: vf.DiagonalGaussian(a, a).rsample_kl(
        prior=vf.DiagonalGaussian(b, b), key=KEY
    ),
    "larger prior": lambda a, b: torch.distributions.kl_divergence(
        vf.DiagonalGaussian(b, b), vf.DiagonalGaussian(a, a)
    ),
    "statistics": lambda a, b: tuple(vf.latent_stats(a, a, prior=vf.Prior(b, b))),
    "list": lambda a, b: vf.gaussian_kl_multi([a], [a], prior=vf.Prior(b, b)),
    "elbo": lambda a, b: vf.elbo_loss(a, a, a, b, likelihood="bernoulli", mask=b > 0).loss,
    "nll": lambda a, b: vf.nll((b, a), a.abs().round(), "negative_binomial_logits", weight=b),
    "reference": lambda a, b: vf.reference.gaussian_kl(a, b, prior=vf.Prior(b, b), mask=b > 0),
}

# Calls with a batch `a` of shape (B, 4) and a key.
KEYED = {
    "sample": lambda a, key: vf.reparameterize(a, a, key=key),
    "sample in float64": lambda a, key: vf.reparameterize(a.double(), a.double(), key=key),
    "sample and kl": lambda a, key: vf.reparameterize_kl(a, a, key=key, sample_shape=3),
    "a sample for each row": lambda a, key: vf.reparameterize(
        a[0], a[1], key=key, sample_shape=a.shape[0]
    ),
    "moments": lambda a, key: vf.reparameterize_kl_moments(a, key=key),
    "list": lambda a, key: vf.reparameterize_kl_multi([a, a + 1], [a, a], key=key)[1],
    "noise": lambda a, key: vf.normal(key, a.shape),
    "counted key": lambda a, key: vf.reparameterize(a, a, key=vf.key(key[0], a.shape[0])),
    "reference": lambda a, key: vf.reference.reparameterize_kl(a, a, key=key),
    "reference, 3 latents": lambda a, key: vf.reference.reparameterize(a[:, 1:], a[:, 1:], key=key),
}


@pytest.mark.parametrize(
    ("function", "other"),
    [pytest.param(f, random(4, seed=1), id=f"lower rank, {name}") for name, f in LOWER_RANK.items()]
    + [
        pytest.param(f, KEY, id=f"key, {name}", marks=[pytest.mark.slow] * (name != "sample"))
        for name, f in KEYED.items()
    ],
)
def test_an_exported_batch_size_stays_dynamic(function, other):
    batch = torch.export.Dim("batch", min=2, max=100)
    program = torch.export.export(
        Wrapped(function), (random(8, 4), other), dynamic_shapes=(({0: batch}, None),)
    )
    plain = program.run_decompositions(vf.export.decompositions())
    for form in (program.module(), plain.module()):
        for rows in (2, 13):
            new = random(rows, 4, seed=2)
            want = pytree.tree_leaves(function(new, other))
            same(pytree.tree_leaves(form(new, other)), want, rtol=1e-5, atol=1e-5)


def run_onnx(model, inputs, path, **how):
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of torch.onnx about itself
        program = torch.onnx.export(model, inputs, dynamo=True, verbose=False, **how)
    program.save(path)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    nodes = [node.op_type for node in program.model_proto.graph.node]
    return nodes, lambda *new: session.run(
        None, {name: t.numpy() for name, t in zip(names, new, strict=True)}
    )


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 8)

    def forward(self, x, eps=None):
        mu, logvar = self.linear(x).chunk(2, 1)
        return vf.reparameterize_kl(
            mu, logvar, eps=eps, scale=vf.Scale(clamp=(-3.0, None)), reduction="sample"
        )


@pytest.mark.slow
@pytest.mark.parametrize("exported", [False, True])
def test_onnx_with_noise_given(tmp_path, exported):
    model, x, eps = Encoder().eval(), random(3, 5), random(3, 4, seed=1)
    batch = torch.export.Dim("batch")
    shapes = {"dynamic_shapes": ({0: batch}, {0: batch})}
    source = model
    if exported:
        program = torch.export.export(model, (x, eps), **shapes)
        source, shapes = program.run_decompositions(vf.export.decompositions()), {}
    _, run = run_onnx(source, (x, eps), tmp_path / "encoder.onnx", **shapes)
    for given in ((x, eps), (random(7, 5, seed=2), random(7, 4, seed=3))):
        with torch.no_grad():
            same(map(torch.from_numpy, run(*given)), model(*given), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_onnx_draws_noise_of_its_own(tmp_path):
    model, x = Encoder().eval(), random(4000, 5)
    nodes, run = run_onnx(model, (x,), tmp_path / "encoder.onnx")
    assert nodes.count("RandomNormalLike") == 1
    (z, kl), (z_2, _) = run(x), run(x)
    mu, logvar = model.linear(x).detach().chunk(2, 1)
    np.testing.assert_allclose(kl, model(x)[1].detach().numpy(), rtol=1e-5, atol=1e-5)
    for sample in (z, z_2):
        noise = (torch.from_numpy(sample) - mu) / (0.5 * logvar.clamp(-3.0)).exp()
        assert abs(noise.mean()) < 5 / 16000**0.5 and abs(noise.std() - 1) < 5 / 32000**0.5
    assert not np.array_equal(z, z_2)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_onnx_has_the_noise_of_a_key_and_every_option(tmp_path, name):
    model, inputs = MODELS[name]
    inputs = inputs()
    with torch.no_grad():
        want = model()(*inputs)
        # The optimizer of torch.onnx takes two thirds of the test, and other tests run it.
        _, run = run_onnx(model(), inputs, tmp_path / "model.onnx", optimize=False)
    same(map(torch.from_numpy, run(*inputs)), want, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_onnx_with_a_key_has_a_dynamic_batch_size(tmp_path):
    model, batch = Wrapped(KEYED["sample and kl"]), torch.export.Dim("batch", min=2, max=100)
    shapes = {"dynamic_shapes": (({0: batch}, None),)}
    _, run = run_onnx(model, (random(8, 4), KEY), tmp_path / "model.onnx", **shapes)
    new = random(13, 4, seed=2)
    same(map(torch.from_numpy, run(new, KEY)), model(new, KEY), rtol=1e-4, atol=1e-4)


# --------------------------------------------------------------------------------------------------
# torch.fx
# --------------------------------------------------------------------------------------------------


class Traced(nn.Module):
    """Calls all public functions, and the modules that use them."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(6))
        self.sample = vf.nn.Reparameterize(temperature=0.5)
        self.kl = vf.nn.GaussianKL("sample", free_bits=0.1)
        self.elbo, self.iwae = vf.nn.ELBOLoss("mse"), vf.nn.IWAELoss()

    def forward(self, mu, raw, key, mask, scalar, x):
        prior = vf.Prior(self.mean, raw, "logstd")
        z, kl = vf.reparameterize_kl(
            mu, raw, key=key, temperature=scalar, scale=vf.Scale("softplus", clamp=(None, 3.0)),
            prior=prior, reduction="sample", balance=(0.8, scalar), mask=mask,
        )  # fmt: skip
        z_2, _ = vf.reparameterize_kl_moments(torch.cat([mu, raw], 1), key=key)
        (z_3,), _ = vf.reparameterize_kl_multi([mu], [raw], key=key)
        items = vf.gaussian_kl(mu, raw, dim=1)
        loss = vf.elbo_loss(z, x, kl=kl, likelihood=kinds.Gaussian(sigma=2.0), beta=scalar)
        stats = vf.latent_stats(mu, raw)
        return (
            z, kl, z_2, z_3, items, loss.loss, loss.kl, stats.clamped,
            vf.reference.reparameterize(mu, raw, key=key), vf.sampled_kl(z, raw),
            vf.nll((z.exp(), raw.exp()), x, "negative_binomial", weight=mask.float()),
            vf.gaussian_log_prob(z, mu, raw), vf.iwae_loss(items, items).loss,
            self.sample(mu, raw, key=key), self.kl(mu, raw), self.iwae(items, items).ess,
            self.elbo(z, x, mu, raw).loss, self.elbo(z, x, kl=kl)[0],
        )  # fmt: skip


PUBLIC = (
    "reparameterize_kl", "reparameterize_kl_moments", "reparameterize_kl_multi", "reparameterize",
    "gaussian_kl", "sampled_kl", "nll", "gaussian_log_prob", "elbo_loss", "iwae_loss",
    "latent_stats",
)  # fmt: skip


@pytest.mark.parametrize("training", [True, False])
def test_symbolic_trace_records_one_node_for_each_call(training):
    model = Traced().train(training)
    traced = torch.fx.symbolic_trace(model)
    inputs = (*sampling_inputs(), losses_inputs()[2])
    same(traced(*inputs), model(*inputs), rtol=0, atol=0)
    again = pickle.loads(pickle.dumps(traced))
    same(again(*inputs), model(*inputs), rtol=0, atol=0)
    called = [n.target.__name__ for n in traced.graph.nodes if n.op == "call_function"]
    assert set(PUBLIC) <= set(called)
    assert called.count("reparameterize_kl") == called.count("iwae_loss") - 1 == 1
    assert called.count("reparameterize") == 1 + training  # evaluation returns the mean


MISSPELT = {
    "reparameterize_kl": lambda t: vf.reparameterize_kl(t, t, freebits=0.5),
    "reparameterize_kl_moments": lambda t: vf.reparameterize_kl_moments(t, freebits=0.5),
    "reparameterize": lambda t: vf.reparameterize(t, t, freebits=0.5),
    "gaussian_kl": lambda t: vf.gaussian_kl(t, t, freebits=0.5),
    "sampled_kl": lambda t: vf.sampled_kl(t, t, freebits=0.5),
    "gaussian_log_prob": lambda t: vf.gaussian_log_prob(t, t, t, freebits=0.5),
    "latent_stats": lambda t: vf.latent_stats(t, t, freebits=0.5),
    "reparameterize_kl_multi": lambda t: vf.reparameterize_kl_multi([t], [t], freebits=0.5),
    "gaussian_kl_multi": lambda t: vf.gaussian_kl_multi([t], [t], freebits=0.5),
    "nll": lambda t: vf.nll(t, t, "bernoulli", freebits=0.5),
    "elbo_loss": lambda t: vf.elbo_loss(t, t, t, t, likelihood="bernoulli", freebits=0.5),
    "iwae_loss": lambda t: vf.iwae_loss(t, t, freebits=0.5),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_symbolic_trace_refuses_an_unknown_keyword_as_a_call_does(name):
    def trace():
        torch.fx.symbolic_trace(MISSPELT[name])

    for call in (trace, lambda: MISSPELT[name](torch.zeros(2, 4))):
        with pytest.raises(TypeError, match="unexpected keyword argument 'freebits'"):
            call()


def test_symbolic_trace_refuses_an_option_of_another_function():
    for call in (
        lambda t: vf.gaussian_kl(t, t, temperature=0.5),
        lambda t: vf.reparameterize(t, t, free_bits=0.5),
        lambda t: vf.gaussian_kl(t, t, mu=t),
    ):
        with pytest.raises(TypeError, match="unexpected keyword argument"):
            torch.fx.symbolic_trace(call)


def test_a_type_that_takes_over_no_call():
    class Duck:
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            return NotImplemented

    with pytest.raises(TypeError, match=r"no implementation found for 'vae_fused.*gaussian_kl'"):
        vf.gaussian_kl(Duck(), torch.zeros(3))


def test_a_list_that_is_none_has_its_message():
    with pytest.raises(TypeError, match="mus must be a sequence of Tensors, got int"):
        vf.reparameterize_kl_multi(3, [torch.zeros(3)])


def test_subclasses_and_modes_see_operators_as_before():
    """A mode that intercepted the public function would miss the torch operators that it calls."""

    class Named(Tensor):
        pass

    class Recorder(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    seen: list = []
    mu, raw = tensors()[:2]
    z, kl = vf.reparameterize_kl(mu.as_subclass(Named), raw, key=KEY)
    assert type(z) is Named and type(kl) is Named
    with Recorder():
        got = vf.reparameterize_kl(mu, raw, key=KEY)
    assert seen and not any(function is vf.reparameterize_kl for function in seen)
    same(got, (z.as_subclass(Tensor), kl.as_subclass(Tensor)))
    with torch.device("meta"):  # this is also a mode
        assert vf.reparameterize_kl(torch.zeros(2, 3), torch.zeros(2, 3))[0].is_meta


# --------------------------------------------------------------------------------------------------
# A generator in a compiled graph
# --------------------------------------------------------------------------------------------------


def drawn(mu, raw, generator):
    z, kl = vf.reparameterize_kl(mu.sin(), raw, generator=generator)
    return z.cos(), kl


def test_a_generator_in_a_whole_graph_names_the_remedy():
    mu, raw = tensors()[:2]
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"draw a key.*and pass it as key="):
        torch.compile(drawn, fullgraph=True, backend="aot_eager")(mu, raw, torch.Generator())


def test_a_generator_breaks_a_graph_that_may_break():
    mu, raw = tensors()[:2]
    compiled = torch.compile(drawn, backend="aot_eager")
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    for _ in range(3):
        same(compiled(mu, raw, generators[0]), drawn(mu, raw, generators[1]))


# --------------------------------------------------------------------------------------------------
# Files
# --------------------------------------------------------------------------------------------------

SAVED = {
    "scale": vf.Scale("softplus", clamp=(-3.0, None), beta=2.0),
    "scale of NumPy": vf.Scale("softplus", clamp=(np.float64(-3.0), None), beta=np.float64(2.0)),
    "prior": vf.Prior(torch.arange(3.0), 0.5, vf.Scale("std", std_floor=0.1)),
    "likelihood": kinds.Gaussian(vf.Scale("std"), constants=False),
    "likelihood of NumPy": kinds.Gaussian(sigma=np.float64(2.0)),
    "terms": vf.ELBOTerms(torch.ones(()), torch.zeros(()), torch.ones(())),
    "bounds": vf.IWAETerms(torch.ones(()), torch.zeros(2), torch.ones(2, 3)),
    "stats": vf.LatentStats(*torch.ones(5, 2)),
}


def values_of(x):
    """Returns the contents of dataclasses and named tuples, with tensors as lists."""
    names = getattr(x, "_fields", None) or getattr(x, "__dataclass_fields__", None)
    if names is None:
        return x.tolist() if isinstance(x, Tensor) else x
    return type(x), {name: values_of(getattr(x, name)) for name in names}


@pytest.mark.parametrize("name", SAVED)
def test_torch_load_reads_options(name):
    file = io.BytesIO()
    torch.save({"hyper_parameters": {name: SAVED[name]}}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)["hyper_parameters"][name]
    copies = loaded, copy.deepcopy(SAVED[name]), pickle.loads(pickle.dumps(SAVED[name]))
    for each in copies:
        assert values_of(each) == values_of(SAVED[name])


@pytest.mark.parametrize("name", ["scale", "prior", "likelihood"])
def test_a_pickle_of_another_version(name):
    """A field that the pickle lacks gets its default. An unknown field raises an error."""
    value = SAVED[name]
    cls, old = type(value), object.__new__(type(value))
    old.__setstate__({})
    assert values_of(old) == values_of(cls())
    with pytest.raises(
        TypeError, match=rf"pickled {cls.__name__} must have only fields of this.*new_o"
    ):
        object.__new__(cls).__setstate__({**value.__getstate__(), "new_option": 1.0})


def test_a_pickle_is_checked_as_a_call_is():
    state = {**SAVED["scale"].__getstate__(), "beta": -1.0}
    with pytest.raises(ValueError, match=r"beta must be above 0, got -1\.0"):
        object.__new__(vf.Scale).__setstate__(state)
