"""The KL term of an evidence lower bound, and loss and gradients in one pass.

The kernels run on the emulated device.
For the likelihood, the oracle is that of test_nll.py. The tests add the KL to it in numpy.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from .test_nll import (
    FEW_KINDS,
    KIND_NAMES,
    KINDS,
    NAMES,
    OF_ARITHMETIC,
    OF_STORAGE,
    Problem,
    close,
    forward,
    make,
    stored,
    summed_shape,
    truth,
    widened,
    with_rows,
)

DTYPES = ["float32", "float64", "bfloat16"]
WAYS = ("with nll", "alone", "with buffers")  # the launch that writes the gradients of the KL
CAPACITIES = [None, 1.25, np.float64(1.25)]


def samples_of(batch: int, wide: np.dtype, strided: bool = False) -> np.ndarray:
    k = np.random.default_rng(8).random(batch) * 3
    k[0] = 1.25  # the capacity
    if strided:
        return np.repeat(k, 2).astype(wide)[::2]
    return k.astype(wide)


def term_of(
    k: np.ndarray, results: int, factor: float, capacity: Any, beta: Any = 0.375
) -> dict[str, Any]:
    wide = k.dtype
    term: dict[str, Any] = {"samples": k, "results": results, "factor": factor, "beta": beta}
    if isinstance(capacity, np.floating):  # it is passed on the device
        term["capacity"], term["beta"] = np.full((), capacity, wide), np.full((), beta, wide)
    elif capacity is not None:
        term["capacity"] = capacity
    return term


def penalty(k: np.ndarray, capacity: Any) -> np.ndarray:
    return k if capacity is None else np.abs(k - float(capacity))


@pytest.mark.parametrize("capacity", CAPACITIES, ids=["none", "number", "device"])
@pytest.mark.parametrize("shape", [(7, 3), (5, 700), (3, 5000), (300, 2), (1, 1)], ids=str)
@pytest.mark.parametrize("per_sample", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_launch_of_the_likelihood_adds_the_kl(
    native: ModuleType, dtype: str, shape: tuple[int, ...], per_sample: bool, capacity: Any
) -> None:
    check_kl(native, dtype, shape, per_sample, capacity)


def check_kl(
    native: ModuleType,
    dtype: str,
    shape: tuple[int, ...],
    per_sample: bool,
    capacity: Any,
    *,
    is_exact: bool = True,
) -> None:
    dims = (1,) if per_sample else (0, 1)
    problem = with_rows(native, make("nb of softmax", shape, dims, dtype))
    results = shape[0] if per_sample else 1
    k = samples_of(shape[0], problem.wide, strided=True)
    term = term_of(k, results, 0.5, capacity)
    out = {name: np.full(results, np.nan, problem.wide) for name in ("loss", "kl")}
    nll = np.full(results, np.nan, problem.wide)
    native.nll(
        KIND_NAMES.index(problem.kind), problem.options, problem.arrays, dims=dims,
        factor=problem.factor, result=nll, kl=term | out,
    )  # fmt: skip
    again = forward(native, problem).reshape(results)
    close(nll, again.astype(np.float64), 0.0 if is_exact else 1e-6, np.zeros(results))
    wide = k.astype(np.float64)
    of_result = (lambda x: 0.5 * x) if per_sample else (lambda x: 0.5 * x.sum(keepdims=True))
    close(out["kl"], of_result(wide), OF_ARITHMETIC[dtype], np.zeros(results))
    want = nll.astype(np.float64) + 0.375 * of_result(penalty(wide, capacity))
    close(out["loss"], want, OF_ARITHMETIC[dtype], np.zeros(results))


def test_many_samples_are_added_by_one_block(native: ModuleType) -> None:
    problem = make("bernoulli", (3000, 2), (0, 1))
    k = samples_of(3000, problem.wide)
    loss, kl, nll = (np.full(1, np.nan, problem.wide) for _ in range(3))
    native.nll(
        0, {}, problem.arrays, dims=(0, 1), factor=1.0, result=nll,
        kl=term_of(k, 1, 1 / 3000, 0.5) | {"loss": loss, "kl": kl},
    )  # fmt: skip
    wide = k.astype(np.float64)
    close(kl, wide.mean(keepdims=True), 1e-6, np.zeros(1))
    close(loss, nll + 0.375 * np.abs(wide - 0.5).mean(keepdims=True), 1e-6, np.zeros(1))


def grads_of(problem: Problem) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns arrays for the gradients of a problem, and the same arrays as operands."""
    results, operands = {}, {}
    for name in NAMES[: problem.outputs]:
        like = problem.arrays[name]
        if name != "output" and 0 in like.strides:
            results[name] = np.full(summed_shape(like), 77.0)
            operands[f"sum_{name}"] = np.broadcast_to(results[name], problem.shape)
        else:
            results[name] = operands[f"grad_{name}"] = np.zeros_like(like)
    return results, operands


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", KINDS)
def test_one_pass_computes_loss_and_gradients(native: ModuleType, name: str, dtype: str) -> None:
    check_one_pass(native, make(name, (5, 700), (0, 1), dtype))


@pytest.mark.parametrize("second", [(700,), (5, 1), (5, 700)], ids=str)
@pytest.mark.parametrize("shape", [(5, 700), (40, 130), (1, 1)], ids=str)
@pytest.mark.parametrize("name", FEW_KINDS)
def test_one_pass_sums_shared_gradients(
    native: ModuleType, name: str, shape: tuple[int, ...], second: tuple[int, ...]
) -> None:
    own = {(700,): shape[1:], (5, 1): (shape[0], 1), (5, 700): shape}[second]
    problem = make(name, shape, (0, 1), second=own, mask=True, weight=shape, third=own)
    for operand in NAMES[: problem.outputs]:  # masked elements may have any value
        if problem.arrays[operand].strides[-1] != 0 and problem.arrays[operand].strides[0] != 0:
            problem.arrays[operand] = np.where(
                problem.arrays["mask"] == 0, np.nan, problem.arrays[operand]
            ).astype(problem.arrays[operand].dtype)
    check_one_pass(native, problem)


def check_one_pass(native: ModuleType, problem: Problem, *, is_exact: bool = True) -> None:
    """Use ``is_exact=False`` for machine code, whose approximations vary with each launch."""
    expected = truth(native, problem)
    problem = with_rows(native, problem)
    kind = KIND_NAMES.index(problem.kind)
    arrays = dict(problem.arrays)
    if problem.is_softmax:
        dot = np.full((*problem.shape[:-1], 1), np.nan, problem.wide)
        native.nll_backward(
            kind, problem.options, arrays, dims=(len(problem.shape) - 1,), factor=problem.factor,
            dot=dot,
        )  # fmt: skip
        arrays["row_dot"] = np.broadcast_to(dot, problem.shape)
        assert problem.library is not None
        arrays["library"] = np.broadcast_to(problem.library[..., None], problem.shape)
    results, operands = grads_of(problem)
    value, loss, kl = (np.full(1, np.nan, problem.wide) for _ in range(3))
    k = samples_of(problem.shape[0], problem.wide)
    native.nll_backward(
        kind, problem.options, arrays | operands, dims=(), factor=problem.factor, value=value,
        kl=term_of(k, 1, 0.5, 1.25) | {"loss": loss, "kl": kl},
    )  # fmt: skip
    want = problem.factor * expected.value.sum(keepdims=True).reshape(1)
    terms = problem.factor * (1 + np.abs(expected.value)).sum(keepdims=True).reshape(1)
    close(value, want, OF_ARITHMETIC[problem.dtype], terms)
    penalties = 0.375 * 0.5 * np.abs(k.astype(np.float64) - 1.25).sum()
    close(loss, value.astype(np.float64) + penalties, 1e-6, np.zeros(1))

    again, others = grads_of(problem)
    one = np.broadcast_to(np.ones((), problem.wide), problem.shape)
    native.nll_backward(
        kind, problem.options, arrays | others | {"grad": one}, dims=(), factor=problem.factor
    )
    for name, got in results.items():
        if is_exact:
            np.testing.assert_array_equal(got, again[name])
        else:
            want = widened(again[name])
            close(got, want, OF_STORAGE[problem.dtype], np.full(want.shape, np.abs(want).max()))


@pytest.mark.parametrize("capacity", CAPACITIES, ids=["none", "number", "device"])
@pytest.mark.parametrize("results", [1, 600])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_of_the_kl(
    native: ModuleType, dtype: str, way: str, results: int, capacity: Any
) -> None:
    check_kl_gradients(native, dtype, way, results, capacity)


def check_kl_gradients(
    native: ModuleType, dtype: str, way: str, results: int, capacity: Any
) -> None:
    wide, random = np.dtype(dtype), np.random.default_rng(2)
    k = samples_of(600, wide)
    g_loss, g_kl = (random.random(results).astype(wide) - 0.5 for _ in range(2))
    grad_samples, grad_beta = np.full(600, np.nan, wide), np.full(1, np.nan, wide)
    term = term_of(k, results, 0.5, capacity) | {
        "grad_loss": g_loss, "grad_kl": g_kl, "grad_samples": grad_samples, "grad_beta": grad_beta,
    }  # fmt: skip
    if way == "alone":
        native.kl_backward(dtype, term)
    elif way == "with buffers":
        buffers = [random.random(5000).astype(wide), random.random(7).astype(np.float32)]
        before = [buffer.copy() for buffer in buffers]
        native.scale_gradients(buffers, np.full((), 1.0, wide), kl=term)
        for buffer, old in zip(buffers, before, strict=True):
            np.testing.assert_array_equal(buffer, old)
    else:
        problem = make("bernoulli", (600, 5), (0, 1), dtype)
        arrays = problem.arrays | {
            "grad": np.broadcast_to(np.ones((), wide), problem.shape),
            "grad_output": np.zeros_like(problem.arrays["output"]),
        }
        native.nll_backward(0, {}, arrays, dims=(), factor=1.0, kl=term)
    wide_k = k.astype(np.float64)
    slope = np.ones(600) if capacity is None else np.sign(wide_k - float(capacity))
    full = np.broadcast_to(g_loss.astype(np.float64), 600)
    want = 0.5 * (0.375 * slope * full + np.broadcast_to(g_kl.astype(np.float64), 600))
    close(grad_samples, want, OF_ARITHMETIC[dtype], np.abs(full))
    terms = 0.5 * penalty(wide_k, capacity) * full
    close(
        grad_beta, terms.sum(keepdims=True), OF_ARITHMETIC[dtype], np.abs(terms).sum(keepdims=True)
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_buffers_are_multiplied_by_the_factor(native: ModuleType, dtype: str) -> None:
    check_buffers(native, dtype)


def check_buffers(native: ModuleType, dtype: str) -> None:
    random = np.random.default_rng(3)
    values = [random.random(n) - 0.5 for n in (7_000, 1, 33)]
    buffers = [stored(x, dtype) for x in values]
    wide = np.dtype(np.float64 if dtype == "float64" else np.float32)
    native.scale_gradients(buffers, np.full((), 0.3, wide))
    for buffer, x in zip(buffers, values, strict=True):
        close(buffer, 0.3 * x, 2 * OF_STORAGE[dtype], np.full(x.shape, 1e-3))
