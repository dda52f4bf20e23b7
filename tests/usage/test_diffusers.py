"""Compares the posteriors in diffusers with their stand-ins, and trains with ``patch()``."""

from __future__ import annotations

import copy
import importlib
import io
import pickle
import pkgutil
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from conftest import AVAILABLE, Calls, native, random
from torch import Tensor

from vae_fused.compat import diffusers as compat

pytestmark = pytest.mark.packages
diffusers = pytest.importorskip("diffusers")
from diffusers.models import autoencoders  # noqa: E402
from diffusers.models.autoencoders import vae  # noqa: E402

F64 = torch.float64
NAMES = tuple(stand_in.__name__ for stand_in, _ in compat.STAND_INS.values())
MODULES = {s.__name__: f"{compat.PACKAGE}.{m}" for m, (s, _) in compat.STAND_INS.items()}
CLASSES = {name: getattr(importlib.import_module(MODULES[name]), name) for name in NAMES}
BEFORE = {name: dict(vars(cls)) for name, cls in CLASSES.items()}


def untouched(name: str) -> Any:
    """Returns a copy of diffusers' original class, which patches do not affect."""
    kept = {k: v for k, v in BEFORE[name].items() if k not in ("__dict__", "__weakref__")}
    return type(name, (), kept)


THEIRS = {name: untouched(name) for name in NAMES}
OURS = {name: getattr(compat, name) for name in NAMES}
COUNT = {s.__name__: count for s, count in compat.STAND_INS.values()}


@pytest.fixture
def patched() -> Iterator[None]:
    assert compat.patch()
    yield
    compat.unpatch()


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    compat.unpatch()
    for name, cls in CLASSES.items():
        now = {k: v for k, v in vars(cls).items() if k != "__slotnames__"}  # copyreg's cache
        assert now == BEFORE[name]


def inputs(
    name: str, seed: int = 0, shape: tuple[int, ...] = (2, 3, 4, 5), dtype: torch.dtype = F64
) -> list[Tensor]:
    """Returns constructor arguments. Some raw scales are outside the image posterior's clamp."""
    mean, raw = random(2, *shape, seed=seed, dtype=dtype)
    raw = 3.0 * raw
    raw[0, 0], raw[1, 0] = -40.0, 25.0
    if name.startswith("MiniMax"):
        raw = raw.clamp(-5.0, 5.0)
    made = [mean, raw] if COUNT[name] == 2 else [torch.cat([mean, raw], 1)]
    return [t.requires_grad_() for t in made]


def generator(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same(got: Tensor, want: Tensor, leaves: list[Tensor]) -> None:
    torch.testing.assert_close(got, want)
    gradients = [
        torch.autograd.grad(
            (y * random(*y.shape, seed=5, dtype=y.dtype)).sum(),
            leaves,
            allow_unused=True,
            materialize_grads=True,
            retain_graph=True,
        )
        for y in (got, want)
    ]
    torch.testing.assert_close(*gradients)


def everything(q: Any, p: Any) -> dict[str, Callable[[], Tensor]]:
    """Returns functions that compute a posterior's results, by name."""
    point = random(2, 3, 4, 5, seed=3, dtype=F64)
    calls = {
        "sample": lambda: q.sample(generator()),
        "kl": lambda: q.kl(),
        "kl(other)": lambda: q.kl(p),
        "nll": lambda: q.nll(point),
        "nll(dims)": lambda: q.nll(point, dims=[1, 2]),
        "mode": lambda: q.mode(),
    }
    return {k: v for k, v in calls.items() if hasattr(q, k.split("(")[0])}


def attributes(name: str) -> set[str]:
    return set(vars(THEIRS[name](*inputs(name)))) - {"parameters", "deterministic"}


# --------------------------------------------------------------------------------------------------
# Stand-ins
# --------------------------------------------------------------------------------------------------


def test_every_posterior_of_diffusers_has_a_stand_in_or_needs_none() -> None:
    """A class with `sample` and `mode` is a posterior. A new posterior makes this test fail."""
    found = set()
    for info in pkgutil.iter_modules(autoencoders.__path__):
        module = importlib.import_module(f"{autoencoders.__name__}.{info.name}")
        for name, cls in vars(module).items():
            if isinstance(cls, type) and hasattr(cls, "sample") and hasattr(cls, "mode"):
                found.add(name)
    assert found == {*NAMES, "IdentityDistribution"}
    h = random(2, 3)  # no noise and no KL: nothing to replace
    identity = vae.IdentityDistribution(h)
    assert identity.sample() is h and identity.mode() is h and not hasattr(identity, "kl")


@pytest.mark.parametrize("name", NAMES)
def test_attributes_and_results_are_those_of_diffusers(name: str) -> None:
    leaves, others = inputs(name), inputs(name, seed=1)
    for attribute in attributes(name):
        q, want = OURS[name](*leaves), THEIRS[name](*leaves)
        same(getattr(q, attribute), getattr(want, attribute), leaves)
    results = everything(OURS[name](*leaves), OURS[name](*others))
    expected = everything(THEIRS[name](*leaves), THEIRS[name](*others))
    assert results.keys() == expected.keys()
    for result, call in results.items():
        same(call(), expected[result](), leaves + others)


@pytest.mark.parametrize("name", NAMES)
def test_the_fused_noise_gives_the_same_law(name: str) -> None:
    """Compares the mean and standard deviation of many samples drawn without a generator."""
    leaves = inputs(name, shape=(2, 3, 4, 1))
    with torch.no_grad():
        many = [t[:1].clamp(-2.0, 2.0).expand(20_000, *t.shape[1:]) for t in leaves]
        z, q = OURS[name](*many).sample(), THEIRS[name](*(t[:1] for t in many))
        standard = (z - q.mean) / q.std
    assert (standard.mean(0).abs() < 5 / 20_000**0.5).all()
    assert ((standard.std(0) - 1).abs() < 5 / 20_000**0.5).all()


@pytest.mark.parametrize("name", NAMES[:2])
def test_deterministic_posteriors_are_those_of_diffusers(name: str) -> None:
    (h,) = inputs(name)
    q, want = OURS[name](h, True), THEIRS[name](h, deterministic=True)
    for attribute in attributes(name):
        torch.testing.assert_close(getattr(q, attribute), getattr(want, attribute))
    same(q.sample(generator()), want.sample(generator()), [h])
    assert torch.equal(q.kl().float(), want.kl())


# --------------------------------------------------------------------------------------------------
# Assigned attributes
# --------------------------------------------------------------------------------------------------

CHANGES: dict[str, Callable[[Any], Any]] = {
    "mean": lambda q: setattr(q, "mean", 0.2 * q.mean),
    "mean of another shape": lambda q: setattr(q, "mean", q.mean[:1]),
    "mean, nan_to_num": lambda q: setattr(q, "mean", torch.nan_to_num(q.mean)),
    "std": lambda q: setattr(q, "std", 0.5 * q.std),
    "std to a number": lambda q: setattr(q, "std", 0.0),
    "var to a number": lambda q: setattr(q, "var", 2.0),
    "logvar to a number": lambda q: setattr(q, "logvar", 0.0),
    "std in place": lambda q: setattr(q, "std", q.std.detach().clone()) or q.std.mul_(2.0),
    "var": lambda q: setattr(q, "var", q.var + 1.0),
    "logvar": lambda q: setattr(q, "logvar", q.logvar.clamp(-1.0, 1.0)),
    "all": lambda q: [setattr(q, n, getattr(q, n) * 0.5) for n in ("mean", "std", "var", "logvar")],
    "read, not assigned": lambda q: [q.mean, q.std, q.var, q.logvar],
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", NAMES)
def test_assignments_act_as_in_diffusers(name: str, change: str) -> None:
    leaves, others = inputs(name), inputs(name, seed=1)
    pairs = []
    for classes in (OURS, THEIRS):
        q, p = classes[name](*leaves), classes[name](*others)
        if not hasattr(q, "var") and ("var" in change or change in ("all", "read, not assigned")):
            return
        CHANGES[change](q)
        pairs.append((everything(q, p), everything(p, q)))
    for results, expected in zip(*pairs, strict=True):
        for result, call in results.items():
            if change != "mean of another shape" or result in ("sample", "mode", "kl"):
                same(call(), expected[result](), leaves + others)


@pytest.mark.parametrize("name", NAMES)
def test_changes_in_place_act_as_in_diffusers(name: str) -> None:
    with torch.no_grad():
        for attribute in ("std", "var", "logvar"):
            leaves = inputs(name)
            q, want = OURS[name](*leaves), THEIRS[name](*leaves)
            if hasattr(want, attribute):
                for posterior in (q, want):
                    getattr(posterior, attribute).mul_(0.5)
                for result, call in everything(q, q).items():
                    torch.testing.assert_close(call(), everything(want, want)[result]())
        pair = [classes[name](*inputs(name)) for classes in (OURS, THEIRS)]
        for posterior in pair:
            posterior.mean.mul_(0.5)
        torch.testing.assert_close(pair[0].sample(generator()), pair[1].sample(generator()))


@pytest.mark.parametrize("name", NAMES)
def test_assigned_in_inference_mode_and_with_a_seed(name: str) -> None:
    """Without a generator, the noise is torch's, as in diffusers."""
    samples = []
    for classes in (OURS, THEIRS):
        with torch.inference_mode():
            q = classes[name](*inputs(name))
            q.mean = 2.0 * q.mean
            torch.manual_seed(3)
            samples.append(q.sample())
    torch.testing.assert_close(*samples)


def test_a_16_bit_kl_of_assigned_attributes_is_float32() -> None:
    (h,) = inputs(NAMES[0], dtype=torch.float16)
    q = OURS[NAMES[0]](h.detach())
    q.mean = q.mean + 100.0
    kl = q.kl()
    assert kl.dtype == torch.float32 and kl.isfinite().all() and q.sample().dtype == torch.float16


@native
def test_untouched_posteriors_stay_fused_after_a_read() -> None:
    q = OURS[NAMES[0]](*inputs(NAMES[0]))
    _ = q.mean, q.std, q.var, q.logvar
    with Calls() as calls:
        q.sample(), q.kl()
    others = {n for n in calls.names if "vae_fused" not in n}
    assert others <= {"aten::detach", "aten::split.Tensor"}


def test_assignments_compile_whole() -> None:
    def function(h: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        q = OURS[NAMES[0]](h)
        q.mean = 0.2 * q.mean
        q.std = q.std * 0.0
        return q.sample() + noise, q.kl(), q.nll(noise), q.mode()

    torch._dynamo.reset()
    (h,), noise = inputs(NAMES[0]), random(2, 3, 4, 5, dtype=F64)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(h, noise), function(h, noise))


# --------------------------------------------------------------------------------------------------
# One launch for the sample and the KL
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 4), (2, 3, 2, 4, 5)], ids=str)
@pytest.mark.parametrize("name", NAMES[:2])
@native
def test_sample_and_kl_can_share_a_launch(name: str, shape: tuple[int, ...]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about the dimensions of video
        (h,) = inputs(name, shape=shape)
        q, alone = OURS[name](h, share_launch=True), OURS[name](h)
        with Calls() as calls:
            z, kl = q.sample(generator()), q.kl()
        assert sum("vae_fused" in n for n in calls.names) == 1
        same(z, alone.sample(generator()), [h])
        same(kl, alone.kl(), [h])
        same(q.kl(), alone.kl(), [h])  # the second request computes the KL again
        with torch.no_grad():
            q.sample()
        same(q.kl(), alone.kl(), [h])  # and so does one that needs a gradient after no_grad
        first, second = q.sample(), q.sample()
        assert not torch.equal(first, second)
        q.mean = 0.5 * q.mean
        alone.mean = 0.5 * alone.mean
        same(q.kl(), alone.kl(), [h])


def test_a_shared_launch_compiles_whole() -> None:
    def function(h: Tensor) -> tuple[Tensor, ...]:
        q = OURS[NAMES[0]](h, share_launch=True)
        z, kl = q.sample(), q.kl()
        return 0.0 * z, kl, q.kl()

    torch._dynamo.reset()
    (h,) = inputs(NAMES[0])
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(h), function(h))


@pytest.mark.parametrize("name", NAMES[:2])
def test_by_default_backward_goes_through_each_alone(name: str) -> None:
    (h,) = inputs(name)
    q, want = OURS[name](h), THEIRS[name](h)
    z, kl = want.sample(generator()), want.kl()
    (z.sum() + kl.sum()).backward()
    expected, h.grad = h.grad, None
    z, kl = q.sample(generator()), q.kl()
    z.sum().backward()
    kl.sum().backward()
    torch.testing.assert_close(h.grad, expected)
    z, kl = OURS[name](h).sample(), OURS[name](h).kl()  # with the fused noise
    z.sum().backward()
    kl.sum().backward()


@native
@pytest.mark.parametrize("name", NAMES[:2])
def test_a_shared_launch_is_one_node(name: str) -> None:
    shared = OURS[name](*inputs(name), share_launch=True)
    z, kl = shared.sample(), shared.kl()
    z.sum().backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        kl.sum().backward()


# --------------------------------------------------------------------------------------------------
# patch and unpatch
# --------------------------------------------------------------------------------------------------


def tiny() -> Any:
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )


def tiny_oobleck() -> Any:
    torch.manual_seed(0)
    return diffusers.AutoencoderOobleck(
        encoder_hidden_size=6,
        downsampling_ratios=[2, 4],
        decoder_channels=3,
        decoder_input_channels=3,
        audio_channels=2,
        channel_multiples=[2, 4],
        sampling_rate=4,
    )


def trained(model: Any, x: Tensor, steps: int = 3) -> tuple[list[float], list[Tensor], type]:
    """Returns the losses of all steps, the final parameters, and the posterior's class."""
    optimizer, noise = torch.optim.SGD(model.parameters(), lr=1e-2), generator()
    losses = []
    for _ in range(steps):
        posterior = model.encode(x).latent_dist
        z, kl = posterior.sample(noise), posterior.kl().mean()
        loss = (model.decode(z).sample - x).square().mean() + 1e-3 * kl
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, [p.detach().clone() for p in model.parameters()], type(posterior)


@pytest.mark.parametrize("share_launch", [False, True])
@pytest.mark.parametrize(
    ("make", "shape", "module"),
    [(tiny, (2, 3, 16, 16), "vae"), (tiny_oobleck, (2, 2, 32), "autoencoder_oobleck")],
    ids=["AutoencoderKL", "AutoencoderOobleck"],
)
def test_training_is_that_of_the_untouched_package(
    make: Callable[[], Any], shape: tuple[int, ...], module: str, share_launch: bool
) -> None:
    x = random(*shape)
    losses, parameters, cls = trained(make(), x)
    assert compat.patch(share_launch=share_launch)
    with Calls() as calls:
        got, moved, patched_cls = trained(make(), x)
    assert patched_cls is cls and cls.sample is compat.STAND_INS[module][0].sample
    assert any("vae_fused" in n for n in calls.names) == AVAILABLE
    torch.testing.assert_close(got, losses, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(moved, parameters, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("patched")
def test_every_module_uses_it() -> None:
    holders = [
        m for n, m in sys.modules.items()
        if n.startswith("diffusers.") and "DiagonalGaussianDistribution" in vars(m)
    ]  # fmt: skip
    assert len(holders) > 20
    for holder in holders:
        assert vars(holder)["DiagonalGaussianDistribution"].sample is OURS[NAMES[0]].sample
    user = types.ModuleType("user")
    exec(f"from {vae.__name__} import DiagonalGaussianDistribution as Posterior", vars(user))
    assert user.Posterior is CLASSES[NAMES[0]]
    video = sys.modules.pop("diffusers.models.autoencoders.autoencoder_kl_wan")
    try:
        again = importlib.import_module(video.__name__)
        assert again is not video
        assert again.DiagonalGaussianDistribution.sample is OURS[NAMES[0]].sample
    finally:
        sys.modules[video.__name__] = video


@pytest.mark.parametrize("name", NAMES)
def test_posteriors_live_through_patch_and_unpatch(name: str) -> None:
    cls, leaves, others = CLASSES[name], inputs(name), inputs(name, seed=1)
    expected = everything(THEIRS[name](*leaves), THEIRS[name](*others))
    q, p = cls(*leaves), cls(*others)
    assert compat.patch() and compat.patch() and compat.is_patched()
    assert isinstance(q, cls)
    new, other = cls(*leaves), cls(*others)
    for a, b in ((q, p), (new, other), (q, other), (new, p)):
        assert isinstance(a, cls)
        for result, call in everything(a, b).items():
            same(call(), expected[result](), leaves + others)
    unread = cls(*leaves)
    compat.unpatch()
    compat.unpatch()
    assert not compat.is_patched()
    for a, b in ((q, p), (new, other), (unread, p)):
        assert isinstance(a, cls) and vars(a).keys() == vars(THEIRS[name](*leaves)).keys()
        for result, call in everything(a, b).items():
            same(call(), expected[result](), leaves + others)


@pytest.mark.parametrize("name", NAMES)
def test_pickles_are_those_of_diffusers(name: str) -> None:
    leaves = [t.detach() for t in inputs(name)]
    assert compat.patch()
    q = CLASSES[name](*leaves)
    file = io.BytesIO()
    torch.save(q, file)
    text = pickle.dumps(q)
    assert b"vae_fused" not in text

    def copies() -> list[Any]:
        file.seek(0)
        return [pickle.loads(text), torch.load(file, weights_only=False), copy.deepcopy(q)]

    loaded = copies()
    compat.unpatch()
    want = THEIRS[name](*leaves)
    for twin in loaded + copies():
        assert type(twin) is CLASSES[name] and vars(twin).keys() == vars(want).keys()
        for result, call in everything(twin, twin).items():
            torch.testing.assert_close(call(), everything(want, want)[result]())
    twin = pickle.loads(pickle.dumps(OURS[name](*leaves)))
    torch.testing.assert_close(twin.sample(generator()), want.sample(generator()))


@pytest.mark.usefixtures("patched")
def test_a_class_derived_from_theirs_keeps_its_changes() -> None:
    class Colder(CLASSES[NAMES[0]]):
        def __init__(self, parameters: Tensor) -> None:
            super().__init__(parameters)
            self.std = 0.5 * self.std

    (h,) = inputs(NAMES[0])
    want = THEIRS[NAMES[0]](h)
    want.std = 0.5 * want.std
    same(Colder(h).sample(generator()), want.sample(generator()), [h])


def test_another_formula_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    cls, original = CLASSES[NAMES[1]], CLASSES[NAMES[1]].kl
    monkeypatch.setattr(cls, "kl", lambda self, other=None: 1.01 * original(self, other))
    with pytest.warns(RuntimeWarning, match=r"kl of OobleckDiagonal\w+ differs"):
        assert not compat.patch()
    assert cls.sample is BEFORE[NAMES[1]]["sample"]
    assert CLASSES[NAMES[0]].sample is OURS[NAMES[0]].sample
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not compat.patch()
    compat.unpatch()
    monkeypatch.undo()
    assert compat.patch()


@pytest.mark.usefixtures("patched")
def test_encode_and_decode_compile() -> None:
    torch._dynamo.reset()
    model, x = tiny().eval(), random(1, 3, 16, 16)
    compiled = torch.compile(lambda x: model.encode(x).latent_dist, backend="eager")
    got, want = compiled(x), model.encode(x).latent_dist
    assert type(got) is CLASSES[NAMES[0]]
    torch.testing.assert_close(got.mode(), want.mode(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got.kl(), want.kl(), rtol=1e-4, atol=1e-4)
    sampled = got.sample(generator()), want.sample(generator())
    torch.testing.assert_close(*sampled, rtol=1e-4, atol=1e-5)
