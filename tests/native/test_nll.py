"""The CUDA likelihood kernels on the emulated device, against the formulas in double.

The oracle evaluates the formulas of csrc/math at each element in double. numpy computes everything
else: the softmax, masks, weights and sums.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from .calls import DTYPES
from .conftest import Case

Maker = Callable[[np.ndarray], np.ndarray]
POSITIVE: Maker = lambda u: 0.1 + 2 * u  # noqa: E731
REAL: Maker = lambda u: 3 * u - 1.5  # noqa: E731
PROBS: Maker = lambda u: 0.05 + 0.9 * u  # noqa: E731
KIND_NAMES = (
    "bernoulli", "gaussian", "laplace", "poisson", "nb", "zinb", "student", "continuous bernoulli",
    "nb of logits", "logistic",
)  # fmt: skip
# Kind, options, and a function for each output that computes it from uniform numbers.
KINDS: dict[str, tuple[str, dict[str, Any], list[Maker]]] = {
    "bernoulli": ("bernoulli", {}, [REAL]),
    "gaussian": (
        "gaussian",
        {"scale": {"base": "exp", "gain": 0.5}, "constant": 0.9},
        [REAL, REAL],
    ),
    "gaussian of softplus": (
        "gaussian",
        {"scale": {"base": "softplus", "std_floor": 0.1}},
        [REAL, REAL],
    ),
    "gaussian of fixed sigma": ("gaussian", {"precision": 2.0}, [REAL]),
    "laplace": ("laplace", {"scale": {"base": "exp"}, "constant": 0.7}, [REAL, REAL]),
    "poisson": ("poisson", {"mean": "exp"}, [REAL]),
    "poisson of rate": ("poisson", {"constants": False}, [POSITIVE]),
    "poisson of softmax": ("poisson", {"mean": "softmax"}, [REAL]),
    "nb": ("nb", {}, [POSITIVE, POSITIVE]),
    "nb of scvi": ("nb", {"eps": 1e-2, "dispersion_max": 1.5}, [POSITIVE, POSITIVE]),
    "nb of softmax": ("nb", {"mean": "softmax", "dispersion": "exp"}, [REAL, REAL]),
    "nb of softplus": (
        "nb",
        {"mean": "softplus", "dispersion": "softplus", "constants": False},
        [REAL, REAL],
    ),
    "zinb": ("zinb", {}, [POSITIVE, POSITIVE, REAL]),
    "zinb of softmax": (
        "zinb",
        {"mean": "softmax", "dispersion": "exp", "probs": True},
        [REAL, REAL, PROBS],
    ),
    "student": (
        "student",
        {"scale": {"base": "exp", "gain": 0.5}, "constant": 0.9, "df": 0.0},
        [REAL, REAL, POSITIVE],
    ),
    "student of softplus": (
        "student",
        {"scale": {"base": "softplus"}, "df": 0.0, "dispersion": "softplus"},
        [REAL, REAL, REAL],
    ),
    "student of fixed df": ("student", {"scale": {"base": "exp"}, "df": 3.0}, [REAL, REAL]),
    "student of fixed sigma": ("student", {"precision": 2.0, "df": 3.0}, [REAL]),
    "continuous bernoulli": ("continuous bernoulli", {}, [lambda u: 12 * u - 6]),
    "nb of logits": ("nb of logits", {}, [REAL, POSITIVE]),
    "nb of logits without constants": ("nb of logits", {"constants": False}, [REAL, POSITIVE]),
    "logistic": ("logistic", {"half_step": 1 / 7, "log_scale_min": -1.0}, [REAL, REAL]),
}
COUNTS = ("poisson", "nb", "zinb", "nb of logits")
FEW_KINDS = ["bernoulli", "gaussian", "nb of softmax", "zinb", "student", "nb of logits"]
NAMES = ("output", "second", "third")
# The relative tolerances by dtype. OF_ARITHMETIC is for results in the type of the arithmetic, and
# OF_STORAGE for results that are stored in the dtype.
OF_ARITHMETIC = {"float64": 1e-11, "float32": 2e-5, "float16": 2e-5, "bfloat16": 2e-5}
OF_STORAGE = {"float64": 1e-11, "float32": 2e-5, "float16": 2e-3, "bfloat16": 1e-2}


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    words = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((words + 0x7FFF + (words >> 16 & 1)) >> 16).astype(np.uint16)


def stored(x: np.ndarray, dtype: str) -> np.ndarray:
    return to_bfloat16(x) if dtype == "bfloat16" else x.astype(DTYPES[dtype])


def widened(x: np.ndarray) -> np.ndarray:
    if x.dtype == np.uint16:
        return (x.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return x.astype(np.float64)


# The layouts of an array in memory. Each function returns a view of new memory with equal values.
def dense(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x)


def shifted(x: np.ndarray) -> np.ndarray:
    block = np.zeros(x.size + 1, x.dtype)
    block[1:] = x.ravel()
    return block[1:].reshape(x.shape)


def spaced(x: np.ndarray) -> np.ndarray:
    block = np.zeros((*x.shape, 2), x.dtype)
    block[..., 0] = x
    return block[..., 0]


def transposed(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x.swapaxes(0, -1)).swapaxes(0, -1)


def chunked(x: np.ndarray) -> np.ndarray:
    block = np.zeros((x.shape[0], 2, *x.shape[1:]), x.dtype)
    block[:, 1] = x
    return block[:, 1]


LAYOUTS = {"dense": dense, "shifted": shifted, "spaced": spaced, "transposed": transposed,
           "chunked": chunked}  # fmt: skip
# (shape, summed dimensions)
ROWS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "one element": ((1,), (0,)),
    "elementwise": ((7, 300), ()),
    "elements that are no whole vectors": ((3, 1367), ()),
    "rows of two": ((1500, 2), (1,)),
    "rows of three": ((1501, 3), (1,)),
    "a row per sample": ((40, 130), (1,)),
    "images": ((3, 4, 9, 11), (1, 2, 3)),
    "rows of half a piece": ((5, 512), (1,)),
    "rows of more than half a piece": ((5, 516), (1,)),
    "rows that are no whole vectors": ((9, 1001), (1,)),
    "rows of two pieces": ((4, 2000), (1,)),
    "long rows": ((3, 5000), (1,)),
    "many long rows": ((21, 2049), (1,)),
    "one long row": ((9, 1001), (0, 1)),
    "columns": ((50, 70), (0,)),
    "inner kept": ((4, 6, 8), (1,)),
    "outer summed": ((6, 50, 7), (0, 2)),
}


@dataclass
class Problem:
    """A call. Its arrays have the names of its operands and the shape of the call."""

    kind: str
    options: dict[str, Any]
    dtype: str
    dims: tuple[int, ...]
    arrays: dict[str, np.ndarray]
    factor: float = 0.5
    library: np.ndarray | None = None
    keep: list[np.ndarray] = field(default_factory=list)

    @property
    def wide(self) -> np.dtype:
        return np.dtype(np.float64 if self.dtype == "float64" else np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.arrays["output"].shape

    @property
    def outputs(self) -> int:
        return sum(name in self.arrays for name in NAMES)

    @property
    def inputs(self) -> int:
        inputs = {"bernoulli": 2, "poisson": 2, "continuous bernoulli": 2, "zinb": 4, "student": 4}
        return inputs.get(self.kind, 3)

    @property
    def is_softmax(self) -> bool:
        return self.options.get("mean") == "softmax"


def make(
    name: str,
    shape: tuple[int, ...],
    dims: tuple[int, ...],
    dtype: str = "float32",
    *,
    target: str | None = None,
    layout: Callable[[np.ndarray], np.ndarray] = dense,
    second: tuple[int, ...] | None = None,
    third: tuple[int, ...] | None = None,
    mask: bool = False,
    weight: tuple[int, ...] | None = None,
    seed: int = 0,
) -> Problem:
    kind, options, makers = KINDS[name]
    random = np.random.default_rng(seed)
    wide = np.float64 if dtype == "float64" else np.float32
    arrays: dict[str, np.ndarray] = {}
    for maker, operand, own in zip(makers, NAMES, (shape, second, third), strict=False):
        values = stored(maker(random.random(own or shape)), dtype)
        if own is None or own == shape:
            arrays[operand] = layout(values)
        else:
            arrays[operand] = np.broadcast_to(values, shape)
    x = random.random(shape)
    if kind in COUNTS:
        x = np.where(x > 0.6, np.floor(x * 30), 0.0)
    elif target in ("uint8", "int32", "int64"):
        x = np.floor(2 * x)
    of = target or dtype
    arrays["target"] = layout(x.astype(of) if "int" in of else stored(x, of))
    if mask:
        arrays["mask"] = layout((random.random(shape) > 0.3).astype(np.uint8))
    if weight is not None:
        arrays["weight"] = np.broadcast_to(random.random(weight).astype(wide) + 0.5, shape)
    problem = Problem(kind, options, dtype, dims, arrays)
    if problem.is_softmax:
        problem.library = np.asarray(random.random(shape[:-1]) + 1, wide)
    return problem


def softmax_rows(native: ModuleType, problem: Problem) -> np.ndarray:
    """Returns the maximum and the shift of each row, which the kernel computes."""
    arrays = {"logits": problem.arrays["output"]}
    if "mask" in problem.arrays:
        arrays["mask"] = problem.arrays["mask"]
    rows = np.full((2, *problem.shape[:-1], 1), np.nan, problem.wide)
    native.softmax_rows(
        arrays, dims=(len(problem.shape) - 1,), library=problem.library, row_max=rows[0],
        row_shift=rows[1],
    )  # fmt: skip
    return rows


def with_rows(native: ModuleType, problem: Problem) -> Problem:
    """Returns the problem with the arrays of its softmax, if it has one."""
    if not problem.is_softmax:
        return problem
    rows = softmax_rows(native, problem)
    more = {
        "row_max": np.broadcast_to(rows[0], problem.shape),
        "row_shift": np.broadcast_to(rows[1], problem.shape),
    }
    return replace(problem, arrays=problem.arrays | more, keep=[rows])


@dataclass
class Truth:
    value: np.ndarray  # weighted values of the elements
    grads: list[np.ndarray]  # gradients of these values with respect to each input
    log_mean: np.ndarray
    kept: np.ndarray


def truth(native: ModuleType, problem: Problem) -> Truth:
    arrays = problem.arrays
    inputs = [widened(arrays[name]) if name in arrays else np.zeros(problem.shape)
              for name in NAMES[: problem.inputs - 1]]  # fmt: skip
    kept = arrays.get("mask", np.ones(problem.shape, np.uint8)) != 0
    if problem.is_softmax:
        logits = np.where(kept, inputs[0], -np.inf)
        with np.errstate(invalid="ignore"):
            total = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
            library = widened(problem.library)[..., None]
            inputs[0] = inputs[0] - logits.max(-1, keepdims=True) - total + library
    x = np.stack([*inputs, widened(arrays["target"])]).reshape(problem.inputs, -1)
    out = native.likelihood("scalar", KIND_NAMES.index(problem.kind), problem.options, x)
    out = out.reshape(-1, *problem.shape)
    weight = widened(arrays["weight"]) if "weight" in arrays else 1.0
    out = np.where(kept, out * weight, 0.0)
    return Truth(out[0], list(out[1:]), inputs[0], kept)


def forward(native: ModuleType, problem: Problem) -> np.ndarray:
    problem = with_rows(native, problem)
    shape = [n for d, n in enumerate(problem.shape) if d not in problem.dims]
    result = np.full(shape, np.nan, problem.wide)
    native.nll(
        KIND_NAMES.index(problem.kind), problem.options, problem.arrays, dims=problem.dims,
        factor=problem.factor, result=result,
    )  # fmt: skip
    return result


def close(got: np.ndarray, want: np.ndarray, tolerance: float, terms: np.ndarray) -> None:
    """Asserts that ``got`` is ``want`` within ``tolerance`` of the sum of the terms' magnitudes."""
    error = np.abs(widened(got) - want)
    allowed = tolerance * (np.abs(want) + terms) + 1e-30
    bad = ~(error <= allowed)
    assert not bad.any(), (
        f"{bad.sum()} of {bad.size} differ: {widened(got)[bad][:4]}, not {want[bad][:4]}"
    )


def check_forward(native: ModuleType, problem: Problem) -> None:
    expected = truth(native, problem)
    want = problem.factor * expected.value.sum(problem.dims)
    terms = problem.factor * (1 + np.abs(expected.value)).sum(problem.dims)
    close(forward(native, problem), want, OF_ARITHMETIC[problem.dtype], terms)


@dataclass
class Grads:
    arrays: dict[str, np.ndarray]
    dot: np.ndarray | None = None


def summed_shape(array: np.ndarray) -> tuple[int, ...]:
    return tuple(1 if step == 0 else n for n, step in zip(array.shape, array.strides, strict=True))


def backward(native: ModuleType, problem: Problem, grad: np.ndarray, *, target: bool) -> Grads:
    problem = with_rows(native, problem)
    full = np.expand_dims(grad, problem.dims)
    arrays = problem.arrays | {"grad": np.broadcast_to(full, problem.shape)}
    kind, dot = KIND_NAMES.index(problem.kind), None
    if problem.is_softmax:
        dot = np.full((*problem.shape[:-1], 1), np.nan, problem.wide)
        native.nll_backward(
            kind, problem.options, arrays, dims=(len(problem.shape) - 1,), factor=problem.factor,
            dot=dot,
        )  # fmt: skip
        arrays["row_dot"] = np.broadcast_to(dot, problem.shape)
        arrays["library"] = np.broadcast_to(problem.library[..., None], problem.shape)
    results: dict[str, np.ndarray] = {}
    for name in NAMES[: problem.outputs]:
        like = problem.arrays[name]
        if name != "output" and 0 in like.strides:
            results[f"sum_{name}"] = np.full(summed_shape(like), 77.0)
            arrays[f"sum_{name}"] = np.broadcast_to(results[f"sum_{name}"], problem.shape)
        else:
            results[f"grad_{name}"] = np.zeros_like(like)
            arrays[f"grad_{name}"] = results[f"grad_{name}"]
    if target:
        results["grad_target"] = stored(np.full(problem.shape, 77.0), problem.dtype)
        arrays["grad_target"] = results["grad_target"]
    native.nll_backward(kind, problem.options, arrays, dims=(), factor=problem.factor)
    return Grads(results, dot)


def check_backward(native: ModuleType, problem: Problem) -> None:
    expected = truth(native, problem)
    shape = [n for d, n in enumerate(problem.shape) if d not in problem.dims]
    grad = np.random.default_rng(5).random(shape).astype(problem.wide) - 0.3
    target = problem.kind not in (*COUNTS, "logistic")
    got = backward(native, problem, grad, target=target)
    full = problem.factor * np.broadcast_to(
        np.expand_dims(grad.astype(np.float64), problem.dims), problem.shape
    )
    grads = [full * g for g in expected.grads]
    terms = [np.abs(full) * (1 + np.abs(g)) for g in expected.grads]
    if problem.is_softmax:
        dot = grads[0].sum(-1, keepdims=True)
        assert got.dot is not None
        size = terms[0].sum(-1, keepdims=True)
        close(got.dot, dot, OF_ARITHMETIC[problem.dtype], size)
        share = np.exp(expected.log_mean - problem.library[..., None].astype(np.float64))
        grads[0] = np.where(expected.kept, grads[0] - share * dot, 0.0)
        terms[0] = terms[0] + np.where(expected.kept, share * size, 0.0)
    for k, name in enumerate((*NAMES[: problem.inputs - 1], "target")):
        if f"grad_{name}" in got.arrays:
            tolerance = OF_STORAGE[problem.dtype]
            close(got.arrays[f"grad_{name}"], grads[k], tolerance, terms[k])
        elif f"sum_{name}" in got.arrays:
            result = got.arrays[f"sum_{name}"]
            axes = tuple(d for d, n in enumerate(result.shape) if n != problem.shape[d])
            close(
                result, grads[k].sum(axes, keepdims=True), OF_ARITHMETIC[problem.dtype],
                terms[k].sum(axes, keepdims=True),
            )  # fmt: skip


def check(native: ModuleType, problem: Problem) -> None:
    check_forward(native, problem)
    check_backward(native, problem)


# -- values ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_and_dtype_computes_the_formulas(
    native: ModuleType, name: str, dtype: str
) -> None:
    check(native, make(name, (5, 700), (1,), dtype))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", FEW_KINDS)
def test_rows_of_every_length_are_summed(native: ModuleType, name: str, rows: str) -> None:
    check(native, make(name, *ROWS[rows]))


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@pytest.mark.parametrize("rows", ROWS)
def test_rows_are_summed_in_every_arithmetic(native: ModuleType, rows: str, dtype: str) -> None:
    check(native, make("zinb of softmax", *ROWS[rows], dtype))


@pytest.mark.parametrize("shape", [(6, 260), (5, 7, 33), (3, 4, 8, 10)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_layout_gives_the_same(
    native: ModuleType, layout: str, shape: tuple[int, ...], dtype: str
) -> None:
    dims = tuple(range(1, len(shape)))
    for name in ("gaussian", "nb of softmax"):
        check(native, make(name, shape, dims, dtype, layout=LAYOUTS[layout], mask=True))


@pytest.mark.parametrize(
    "target", ["float32", "float64", "float16", "bfloat16", "uint8", "int32", "int64"]
)
@pytest.mark.parametrize("shape", [(4, 300), (3, 301)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_a_target_of_any_dtype_is_converted(
    native: ModuleType, target: str, shape: tuple[int, ...], dtype: str
) -> None:
    for name in ("bernoulli", "zinb"):
        check(native, make(name, shape, (1,), dtype, target=target))


@pytest.mark.parametrize("weight", [None, (4, 1), (600,), (4, 600)], ids=str)
@pytest.mark.parametrize("name", [*FEW_KINDS, "poisson of softmax"])
def test_masks_and_weights(native: ModuleType, name: str, weight: tuple[int, ...] | None) -> None:
    problem = make(name, (4, 600), (1,), mask=True, weight=weight)
    masked = problem.arrays["mask"] == 0
    for operand in (*NAMES[: problem.outputs], "target"):  # masked elements may have any value
        problem.arrays[operand] = np.where(masked, np.float32(np.nan), problem.arrays[operand])
    check(native, problem)


def test_a_row_without_an_element_is_zero(native: ModuleType) -> None:
    problem = make("nb of softmax", (3, 700), (1,), mask=True)
    problem.arrays["mask"][1] = 0
    assert forward(native, problem)[1] == 0
    got = backward(native, problem, np.ones(3, np.float32), target=False)
    assert (got.arrays["grad_output"][1] == 0).all() and (got.arrays["grad_second"][1] == 0).all()


def test_nan_stays_with_its_row(native: ModuleType) -> None:
    problem = make("zinb", (5, 900), (1,))
    problem.arrays["target"][2, 3] = np.nan
    problem.arrays["output"][4, 5] = np.nan
    np.testing.assert_array_equal(
        np.isnan(forward(native, problem)), [False, False, True, False, True]
    )


@pytest.mark.parametrize("columns", [3, 32, 500, 513, 3000, 9000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax_rows(native: ModuleType, columns: int, dtype: str) -> None:
    problem = make("nb of softmax", (11, columns), (1,), dtype, mask=True)
    problem.arrays["output"] = problem.arrays["output"].copy()
    problem.arrays["output"][1] = stored(np.array([-np.inf]), dtype)
    problem.arrays["output"][2, columns // 2] = stored(np.array([np.nan]), dtype)[0]
    problem.arrays["mask"][2] = 1
    problem.arrays["mask"][3] = 0
    rows = softmax_rows(native, problem)[..., 0].astype(np.float64)
    logits = np.where(problem.arrays["mask"] != 0, widened(problem.arrays["output"]), -np.inf)
    finite = [r for r in range(11) if r not in (1, 2, 3)]
    most = logits[finite].max(-1)
    shift = widened(problem.library)[finite] - np.log(
        np.exp(logits[finite] - most[:, None]).sum(-1)
    )
    tolerance = OF_ARITHMETIC[dtype]
    np.testing.assert_array_equal(rows[0, finite], most)
    np.testing.assert_allclose(rows[1, finite], shift, rtol=tolerance, atol=tolerance)
    assert rows[0, 1] == rows[0, 3] == 0 and rows[1, 1] == rows[1, 3] == np.inf
    assert np.isnan(rows[1, 2])


# -- parameters that are broadcast -----------------------------------------------------------------

SHARED = [
    ((40, 700), (700,)),
    ((40, 700), (40, 1)),
    ((40, 700), (1, 1)),
    ((70, 100), (100,)),
    ((300, 10), (10,)),
    ((300, 3), (300, 1)),
    ((3, 5, 260), (260,)),
    ((3, 5, 260), (5, 1)),
    ((2, 3, 4, 65), (3, 1, 1)),
    ((2, 3, 4, 65), (2, 1, 4, 1)),
    ((2, 3001), (3001,)),
    ((9001,), (1,)),
]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize(("shape", "second"), SHARED, ids=str)
def test_the_gradient_of_a_broadcast_parameter_is_summed(
    native: ModuleType, shape: tuple[int, ...], second: tuple[int, ...], dtype: str
) -> None:
    for name in ("gaussian", "nb of softmax"):
        check_backward(native, make(name, shape, (len(shape) - 1,), dtype, second=second))


@pytest.mark.parametrize("second", [(300,), (20, 1), (1, 1), None], ids=str)
@pytest.mark.parametrize("third", [(300,), (20, 1), (1, 1), None], ids=str)
def test_two_parameters_are_broadcast_in_any_way(
    native: ModuleType, second: tuple[int, ...] | None, third: tuple[int, ...] | None
) -> None:
    problem = make("zinb", (20, 300), (1,), second=second, third=third, mask=True, weight=(20, 1))
    check(native, problem)


# -- bits --------------------------------------------------------------------------------------


def bits(native: ModuleType, problem: Problem) -> list[bytes]:
    grad = np.ones([n for d, n in enumerate(problem.shape) if d not in problem.dims], problem.wide)
    got = backward(native, problem, grad, target=False)
    return [forward(native, problem).tobytes(), *(g.tobytes() for g in got.arrays.values())]


@pytest.mark.parametrize("second", [None, (1500,), (12, 1)], ids=str)
@pytest.mark.parametrize("name", ["gaussian", "zinb of softmax"])
def test_no_order_of_blocks_and_threads_changes_a_bit(
    native: ModuleType, name: str, second: tuple[int, ...] | None
) -> None:
    problem = make(name, (12, 1500), (1,), second=second)
    found = []
    for seed in (1, 2, 3):
        native.emulator.configure(seed=seed)
        found.append(bits(native, problem))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("rows", ["a row per sample", "elementwise", "rows of two pieces"])
def test_no_number_of_blocks_changes_a_bit(native: ModuleType, rows: str) -> None:
    problem = make("zinb", *ROWS[rows])
    found = []
    for blocks in (1, 2, 5, 2048):
        native.emulator.configure(enough_blocks=blocks)
        found.append(bits(native, problem))
    assert all(other == found[0] for other in found)


@pytest.mark.parametrize("blocks", [1, 3, 2048])
@pytest.mark.parametrize("name", ["laplace", "nb of softmax"])
def test_any_number_of_blocks_computes_the_formulas(
    native: ModuleType, name: str, blocks: int
) -> None:
    native.emulator.configure(enough_blocks=blocks)
    check(native, make(name, (4, 5000), (1,), second=(5000,)))


def test_offsets_beyond_32_bits_are_computed_in_64(native: ModuleType) -> None:
    native.emulator.configure(large=True)
    check(native, make("nb of softmax", (5, 7, 33), (1, 2), layout=transposed, second=(33,)))


def test_launches(native: ModuleType) -> None:
    launches = native.emulator.launches
    before = launches()
    forward(native, make("zinb", (20, 5000), (1,)))
    assert launches() - before == 1
    backward(native, make("zinb", (20, 300), (1,)), np.ones(20, np.float32), target=False)
    assert launches() - before == 2
    shared = make("zinb", (20, 300), (1,), second=(300,), third=(20, 1))
    backward(native, shared, np.ones(20, np.float32), target=False)
    assert launches() - before == 4
    softmax_rows(native, make("nb of softmax", (4, 9000), (1,)))
    assert launches() - before == 5


# -- faults ------------------------------------------------------------------------------------


def test_sanitizers_find_nothing(native: ModuleType, case: Case, sanitizer: str) -> None:
    result = case(sanitizer, "nll")
    assert (result.returncode, result.stdout) == (0, "ok\n"), result.stdout + result.stderr
