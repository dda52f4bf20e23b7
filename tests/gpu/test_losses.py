"""On a GPU, likelihoods agree with the CPU, and need as many launches as documented."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import DTYPES, random
from nll_cases import CASES, Case, Inputs, make
from test_calls import launches
from test_streams import DEVICE, assert_same_bits, pytestmark
from torch import Tensor

import vae_fused as vf

__all__ = ["pytestmark"]  # skips these tests without a GPU, as in test_streams

SHAPES = [(4, 6), (33, 257), (5, 4100)]
# The maximum error relative to the largest magnitude. Both devices compute in the same arithmetic,
# and then round to the dtype.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def resized(case: Case, shape: tuple[int, int]) -> Case:
    """Returns the case with the given numbers of rows and columns."""
    sizes = {4: shape[0], 6: shape[1], 1: 1}
    return case._replace(shapes=tuple(tuple(sizes[n] for n in own) for own in case.shapes))


def made(case: Case, dtype: torch.dtype) -> Inputs:
    """Returns inputs whose sums over 4100 columns are within the range of float16."""
    inputs = make(case, dtype)
    return inputs._replace(target=inputs.target.clamp(max=8))


def moved(inputs: Inputs, device: str) -> Inputs:
    def move(t: Tensor) -> Tensor:
        return t.detach().to(device).requires_grad_(t.requires_grad)

    library = None if inputs.library is None else move(inputs.library)
    return Inputs(tuple(map(move, inputs.outputs)), move(inputs.target), library)


def step(case: Case, inputs: Inputs, **options: Any) -> list[Tensor]:
    """Returns the loss and its gradients."""
    loss = inputs.nll(case.kind, **options)
    return [loss, *torch.autograd.grad(loss, inputs.leaves, torch.ones_like(loss))]


def assert_close(got: list[Tensor], want: list[Tensor], dtype: torch.dtype) -> None:
    for ours, theirs in zip(got, want, strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        scale = theirs.double().abs().max().item() + 1e-30
        error = (ours.cpu().double() - theirs.double()).abs().max().item()
        assert error <= TOLERANCE[dtype] * scale


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_a_gpu_computes_what_the_cpu_does(
    name: str, dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    case = resized(CASES[name], shape)
    inputs = made(case, dtype)
    for reduction in ("none", "sample", "batchmean"):
        want = step(case, inputs, reduction=reduction)
        assert_close(step(case, moved(inputs, DEVICE), reduction=reduction), want, dtype)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda t: t.t().contiguous().t(),
    "spaced": lambda t: torch.stack([t, t], -1)[..., 0],
    "misaligned": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["gaussian", "nb, softmax", "zinb"])
def test_strides_masks_and_weights(name: str, layout: str) -> None:
    case = resized(CASES[name], (33, 257))
    inputs = made(case, torch.float32)
    mask = random(33, 257, seed=1) > -0.5
    weight = random(33, 1, seed=2).abs() + 0.5
    view = LAYOUTS[layout]

    def on(device: str) -> list[Tensor]:
        here = moved(inputs, device)
        first = view(here.outputs[0].detach()).requires_grad_()
        strided = Inputs((first, *here.outputs[1:]), view(here.target), here.library)
        return step(case, strided, mask=mask.to(device), weight=weight.to(device))

    assert_close(on(DEVICE), on("cpu"), torch.float32)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64, torch.float16], ids=str)
def test_counts_of_any_dtype_are_the_same_counts(dtype: torch.dtype) -> None:
    case = resized(CASES["zinb"], (33, 256))
    inputs = moved(made(case, torch.float32), DEVICE)
    counts = inputs.target.clamp(max=200)
    want = step(case, inputs._replace(target=counts))
    assert_same_bits(step(case, inputs._replace(target=counts.to(dtype))), want)


@pytest.mark.parametrize("name", ["bernoulli", "nb, softmax", "zinb, softmax"])
def test_repeated_losses_have_the_same_bits(name: str) -> None:
    case = resized(CASES[name], (128, 5001))
    inputs = moved(made(case, torch.float32), DEVICE)
    first = step(case, inputs)
    for _ in range(5):
        assert_same_bits(step(case, inputs), first)


# The numbers of launches in forward and in backward. A softmax needs one more launch in both, and
# finishing theta's sum needs one more in backward.
@pytest.mark.parametrize(
    ("name", "forward", "backward"), [("bernoulli", 1, 1), ("zinb", 1, 2), ("nb, softmax", 2, 3)]
)
def test_the_launches_of_a_likelihood(name: str, forward: int, backward: int) -> None:
    case = resized(CASES[name], (128, 5000))
    inputs = moved(made(case, torch.float32), DEVICE)

    def ours(function: Callable[[], Any]) -> int:
        kernels, _ = launches(function)
        return sum("vae_fused" in kernel for kernel in kernels)

    loss = inputs.nll(case.kind)
    assert ours(lambda: inputs.nll(case.kind)) == forward
    assert ours(lambda: torch.autograd.grad(loss, inputs.leaves, retain_graph=True)) == backward


def test_a_likelihood_waits_for_nothing() -> None:
    case = resized(CASES["zinb, softmax"], (128, 5000))
    inputs = moved(made(case, torch.float32), DEVICE)
    step(case, inputs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(case, inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_captured_loss_can_be_replayed() -> None:
    case = resized(CASES["zinb, softmax"], (16, 5000))
    inputs = moved(made(case, torch.float32), DEVICE)
    want = step(case, inputs)
    graph = torch.cuda.CUDAGraph()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step(case, inputs)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        results = step(case, inputs)
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    assert_same_bits(results, want)


def test_an_empty_call_launches_nothing() -> None:
    empty = torch.zeros(0, 5, device=DEVICE, requires_grad=True)
    assert vf.nll(empty, torch.zeros(0, 5, device=DEVICE), "bernoulli", reduction="sum") == 0
