"""Tests every kernel on small odd shapes and on large shapes.

The small shapes are quick enough for compute-sanitizer. The inputs are created on the CPU and
copied, so that only this library's kernels run on the device. compute-sanitizer's initcheck always
sees copies, even if it watches only some kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
import torch
from conftest import exact_kl, make_key, reduced
from test_streams import DEVICE, assert_same_bits, capture, pytestmark
from torch import Tensor

import vae_fused as vf

__all__ = ["pytestmark"]  # skips these tests without a GPU, as in test_streams

Call = Callable[[], Sequence[Tensor]]
F32, F64, F16, BF16 = torch.float32, torch.float64, torch.float16, torch.bfloat16
# The maximum error relative to the largest magnitude. Both devices compute in the same arithmetic,
# and then round to the dtype.
TOLERANCE = {F64: 1e-10, F32: 1e-5, F16: 4e-3, BF16: 3e-2}


class Inputs:
    """Creates random tensors that are the same on every device."""

    def __init__(self, device: str) -> None:
        self.device, self.leaves = device, list[Tensor]()
        self.generator = torch.Generator().manual_seed(0)
        self.key = make_key(7, 5, device)

    def draw(self, *shape: int, dtype: torch.dtype = F32) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=F64).to(dtype)

    def counts(self, *shape: int) -> Tensor:
        return torch.poisson(torch.full(shape, 0.7), generator=self.generator).to(self.device)

    def leaf(self, *shape: int, dtype: torch.dtype = F32, channels_last: bool = False) -> Tensor:
        drawn = self.draw(*shape, dtype=dtype)
        if channels_last:
            drawn = drawn.contiguous(memory_format=torch.channels_last)
        self.leaves.append(drawn.to(self.device).requires_grad_())
        return self.leaves[-1]


def latent(*shape: int, dtype: torch.dtype = F32, layout: str = "", **options: Any) -> Any:
    def make(given: Inputs) -> Call:
        how: dict[str, Any] = {"dtype": dtype, "channels_last": "channels_last" in layout}
        more = {"key": given.key, **options}
        if options.get("eps"):
            more = {**options, "eps": given.draw(*shape, dtype=dtype).to(given.device)}
        if "chunk" in layout:
            wide = given.leaf(shape[0], 2 * shape[1], *shape[2:], **how)
            return lambda: vf.reparameterize_kl(*wide.chunk(2, 1), **more)
        mu, raw = (given.leaf(*shape, **how) for _ in range(2))
        return lambda: vf.reparameterize_kl(mu, raw, **more)

    return make


def own_generator(given: Inputs) -> Call:
    """The kernel reads its key from the device's generator, on which the KL does not depend."""
    mu, raw = given.leaf(7, 2049), given.leaf(7, 2049)
    return lambda: [vf.reparameterize_kl(mu, raw, reduction="sample")[1]]


def general_options(given: Inputs) -> Call:
    mu, raw, mean, std = (given.leaf(41, 96) for _ in range(4))
    scale = vf.Scale("softplus", std_floor=0.1)
    options: dict[str, Any] = {"scale": scale, "prior": vf.Prior(mean, std, scale)}
    options |= {"mask": (given.draw(41, 96) > -1.0).to(given.device), "sample_shape": 3}
    return lambda: vf.reparameterize_kl(mu, raw, key=given.key, **options)


def moments(given: Inputs) -> Call:
    h = given.leaf(4, 6, 5, 7)
    return lambda: vf.reparameterize_kl_moments(h, key=given.key)


def statistics(*shape: int) -> Any:
    def make(given: Inputs) -> Call:
        mu, raw = (given.draw(*shape).to(given.device) for _ in range(2))
        return lambda: [t.double() for t in vf.latent_stats(mu, raw)]

    return make


def lists(kind: str) -> Any:
    """Makes a call for a list of tensors, each of which has its own prior.

    Some tensors are shorter than a vector, and some are longer than a tile.
    """
    shapes = [(5001,), (1,), (3, 7), (4096,)]

    def make(given: Inputs) -> Call:
        mus, raws = ([given.leaf(*shape) for shape in shapes] for _ in range(2))
        priors = [vf.Prior(0.1 * k, 0.5 + 0.2 * k, "std") for k in range(len(shapes))]
        if kind == "tensors":
            tensors = [given.draw(*shape).to(given.device) for shape in shapes]
            priors = [vf.Prior(t, 0.7, "std") for t in tensors]

        def call() -> Sequence[Tensor]:
            if kind == "kl":
                return [vf.gaussian_kl_multi(mus, raws, scale="softplus", prior=priors)]
            options: dict[str, Any] = {"scale": "softplus", "prior": priors, "key": given.key}
            zs, kl = vf.reparameterize_kl_multi(mus, raws, **options)
            return [*zs, kl]

        return call

    return make


def likelihood(name: str, rows: int, columns: int, **options: Any) -> Any:
    def make(given: Inputs) -> Call:
        x, genes = given.counts(rows, columns), given.leaf(columns)
        outputs: list[Tensor] = [given.leaf(rows, columns), genes]
        kinds: dict[str, Any] = {
            "bernoulli": "bernoulli",
            "gaussian": "gaussian",
            "nb": vf.likelihoods.NegativeBinomial("softmax", dispersion="exp"),
            "zinb": vf.likelihoods.ZeroInflatedNegativeBinomial("exp", dispersion="exp"),
        }
        if name == "bernoulli":
            x, outputs, given.leaves = x.cpu().clamp(max=1).to(x.device), outputs[:1], outputs[:1]
        more = {"library": torch.full((rows, 1), 3.0).to(given.device)} if name == "nb" else {}
        outputs += [given.leaf(rows, columns)] if name == "zinb" else []
        return lambda: [vf.nll(tuple(outputs), x, kinds[name], **more, **options)]

    return make


def loss(grad: str) -> Any:
    def make(given: Inputs) -> Call:
        logits, mu, raw = given.leaf(33, 257), given.leaf(33, 20), given.leaf(33, 20)
        x = given.draw(33, 257).sigmoid().to(given.device)
        options: dict[str, Any] = {"likelihood": "bernoulli", "beta": 0.3, "grad": grad}
        return lambda: vf.elbo_loss(logits, x, mu, raw, **options)[:1]

    return make


# Odd sizes on both sides of a tile and of a vector, with every layout, kind of noise and dtype.
LATENTS = {
    "sum": latent(3, 5, reduction="sum"),
    "one element": latent(1, 1, dtype=BF16, reduction="mean"),
    "short rows": latent(128, 20),
    "odd rows, bf16": latent(130, 17, dtype=BF16, reduction="sample"),
    "rows longer than a tile": latent(7, 2049, reduction="sample"),
    "explicit noise": latent(2, 10_001, dtype=BF16, reduction="sum", eps=True),
    "double": latent(9, 4099, dtype=F64, reduction="sample"),
    "one long row": latent(1, 40_960, reduction="mean"),
    "elementwise": latent(3001, 1, reduction="none"),
    "elementwise, half": latent(5, 2048, dtype=F16, reduction="none"),
    "chunks": latent(4, 6, 5, 7, layout="chunk"),
    "chunks, bf16": latent(4, 6, 16, 16, dtype=BF16, layout="chunk", reduction="sample"),
    "chunks, double": latent(3, 5, 700, dtype=F64, layout="chunk", reduction="sample", eps=True),
    "channels_last": latent(2, 8, 9, 33, layout="channels_last", reduction="sum"),
    "channels_last chunks, bf16": latent(3, 4, 8, 16, dtype=BF16, layout="channels_last chunk"),
    "own generator": own_generator,
    "general options": general_options,
    "moments": moments,
}
FAMILIES = {
    "estimate": latent(7, 2049, estimator="sample", reduction="sample"),
    "estimate with q stopped": latent(33, 70, estimator="sample", stop_q=True, sample_shape=2),
    "statistics": statistics(33, 70),
    "statistics of few dimensions": statistics(5001, 3),
    "list, priors of numbers": lists("numbers"),
    "list, priors of tensors": lists("tensors"),
    "list, KL alone": lists("kl"),
    "bernoulli": likelihood("bernoulli", 33, 257),
    "bernoulli, gradients in forward": likelihood("bernoulli", 33, 257, grad="forward"),
    "gaussian, a scale for each column": likelihood("gaussian", 130, 17),
    "softmax nb": likelihood("nb", 5, 4100),
    "softmax nb, gradients in forward": likelihood("nb", 5, 4100, grad="forward"),
    "zinb": likelihood("zinb", 33, 129, reduction="sample"),
    "loss": loss("backward"),
    "loss, gradients in forward": loss("forward"),
}
CASES = LATENTS | FAMILIES


def step(call: Call, given: Inputs) -> list[Tensor]:
    """Returns the results of a call, followed by the gradients of its leaves, if any."""
    outputs = list(call())
    if not given.leaves:
        return outputs
    generator = given.generator.clone_state()
    grads = [
        torch.randn(t.shape, generator=generator).to(t.dtype).to(given.device) for t in outputs
    ]
    return [*(t.detach() for t in outputs), *torch.autograd.grad(outputs, given.leaves, grads)]


@pytest.mark.parametrize("name", CASES)
def test_small_odd_shapes_are_those_of_the_cpu_each_time(name: str) -> None:
    """The second call fails if a launch of the first call has left a ticket behind."""
    here, there = Inputs("cpu"), Inputs(DEVICE)
    want, call = step(CASES[name](here), here), CASES[name](there)
    first, second = step(call, there), step(call, there)
    for got, exact in zip(first, want, strict=True):
        assert got.shape == exact.shape and got.dtype == exact.dtype
        error = (got.cpu().double() - exact.double()).abs().max()
        assert error <= TOLERANCE[exact.dtype] * max(1.0, float(exact.double().abs().max()))
    assert_same_bits(second, first)


@pytest.mark.parametrize("name", FAMILIES)
def test_no_family_waits_for_the_device(name: str) -> None:
    given = Inputs(DEVICE)
    call = FAMILIES[name](given)
    outputs = call()
    grads = [torch.ones_like(t) for t in outputs]
    torch.cuda.set_sync_debug_mode("error")
    try:
        outputs = call()
        if given.leaves:
            torch.autograd.grad(outputs, given.leaves, grads)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_can_be_captured_and_replayed(name: str) -> None:
    given = Inputs(DEVICE)
    call = FAMILIES[name](given)
    grads = [torch.ones_like(t) for t in call()]

    def whole() -> list[Tensor]:
        outputs = list(call())
        found = torch.autograd.grad(outputs, given.leaves, grads) if given.leaves else ()
        return [*(t.detach() for t in outputs), *found]

    want = whole()
    graph, results = capture(whole)
    for _ in range(3):
        for t in results:
            t.fill_(0)
        graph.replay()
    torch.cuda.synchronize()
    assert_same_bits(results, want)


LAYOUTS = pytest.mark.parametrize("layout", ["contiguous", "rows", "chunk", "channels_last chunk"])


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@LAYOUTS
def test_headline_shapes_are_exact(layout: str, dtype: torch.dtype) -> None:
    """A profiler inspects the launches of this test."""
    check_large(layout, dtype)


@pytest.mark.parametrize("dtype", [F64, F16], ids=str)
@LAYOUTS
def test_large_shapes_of_other_dtypes_are_exact(layout: str, dtype: torch.dtype) -> None:
    check_large(layout, dtype)


def check_large(layout: str, dtype: torch.dtype) -> None:
    """Tests a call with 2^24 elements, so that each thread block processes several tiles."""
    wide = torch.randn(2**13, 8, 32, 16, dtype=dtype, device=DEVICE)
    if "last" in layout:
        wide = wide.contiguous(memory_format=torch.channels_last)
    shape, reduction = ((2, -1, 256), "sample") if layout == "rows" else ((2, 2**12, -1), "sum")
    pair = wide.chunk(2, 1) if "chunk" in layout else wide.view(shape).unbind()
    mu, raw = (t.detach().requires_grad_() for t in pair)
    key = make_key(3, 0, DEVICE)
    z, kl = vf.reparameterize_kl(mu, raw, key=key, reduction=reduction)
    grads = torch.autograd.grad([z, kl], [mu, raw], [z.detach(), torch.ones_like(kl)])
    exact = exact_kl(mu.detach(), raw.detach())
    torch.testing.assert_close(kl.double(), reduced(exact, reduction), rtol=1e-5, atol=1e-5)
    few = [t.detach()[:16].clone().requires_grad_() for t in (mu, raw)]
    z2, kl2 = vf.reparameterize_kl(*few, key=key, reduction=reduction)
    more = torch.autograd.grad([z2, kl2], few, [z2.detach(), torch.ones_like(kl2)])
    for got, want in zip([z, *grads], [z2, *more], strict=True):
        torch.testing.assert_close(got[:16], want, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("name", ["bernoulli", "softmax nb"])
def test_headline_likelihoods_have_the_sum_of_their_parts(name: str, dtype: torch.dtype) -> None:
    logits = torch.randn(2**11, 2**13, dtype=dtype, device=DEVICE, requires_grad=True)
    x = (torch.rand(logits.shape, device=DEVICE) < 0.1).float()
    kind, outputs, more = cast(Any, name), cast(Any, logits), dict[str, Tensor]()
    if name == "softmax nb":
        kind = vf.likelihoods.NegativeBinomial("softmax", dispersion="exp")
        outputs = (logits, torch.zeros(2**13, dtype=dtype, device=DEVICE, requires_grad=True))
        more = {"library": torch.full((2**11, 1), 6.0, device=DEVICE)}
    total = vf.nll(outputs, x, kind, reduction="sum", **more)
    rows = vf.nll(outputs, x, kind, reduction="sample", **more)
    torch.testing.assert_close(total.double(), rows.double().sum(), rtol=1e-5, atol=0)
    grads = [torch.autograd.grad(loss, outputs) for loss in (total, rows.sum())]
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want)
