"""The likelihood calls that test the machine code.

`test_nll.py` makes the calls and compares them with the formulas, as for the emulated kernels.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from . import test_elbo, test_nll
from .calls import DTYPES

# For each variant, the arguments of a call in addition to its kind and dtype.
VARIANTS: dict[str, dict[str, Any]] = {
    # Elements are accessed one at a time, in rows that a warp or a few lanes sum.
    "odd rows, mask, weight": {"shape": (3, 301), "dims": (1,), "mask": True, "weight": (3, 1)},
    # Elements are accessed in vectors of four, and a row is more than half a piece.
    "vectors": {"shape": (2, 700), "dims": (1,)},
    "vectors, mask, weight": {"shape": (2, 524), "dims": (1,), "mask": True, "weight": (2, 524)},
    "one element": {"shape": (1,), "dims": (0,)},
    "elementwise": {"shape": (3, 67), "dims": ()},
    "rows of three": {"shape": (401, 3), "dims": (1,)},
    "rows of half a piece": {"shape": (3, 512), "dims": (1,)},
    "images": {"shape": (2, 3, 5, 7), "dims": (1, 2, 3)},
    "columns": {"shape": (13, 37), "dims": (0,)},
    "outer summed": {"shape": (3, 20, 7), "dims": (0, 2)},
    # Rows have several tiles, which the last block of the launch adds up.
    "long rows": {"shape": (2, 4100), "dims": (1,)},
    "many long rows": {"shape": (9, 2049), "dims": (1,)},
    # Parameters are shared along columns, lines or both, in one task and in several.
    "theta of a column": {"shape": (11, 300), "dims": (1,), "second": (300,), "weight": (300,)},
    "theta of a row": {"shape": (13, 130), "dims": (1,), "second": (13, 1), "mask": True},
    "one theta": {"shape": (5, 210), "dims": (1,), "second": (1, 1)},
    "few columns": {"shape": (90, 3), "dims": (1,), "second": (3,)},
    "shared along the middle": {"shape": (2, 3, 2, 65), "dims": (3,), "second": (2, 1, 2, 1)},
    "wide shared": {"shape": (2, 1501), "dims": (1,), "second": (1501,)},
    "two shared": {"shape": (6, 150), "dims": (1,), "second": (150,), "third": (6, 1)},
    "two shared, swapped": {"shape": (6, 150), "dims": (1,), "second": (6, 1), "third": (150,)},
}
LAYOUTS = [layout for layout in test_nll.LAYOUTS if layout != "dense"]
for layout in LAYOUTS:
    VARIANTS[layout] = {
        "shape": (3, 5, 36),
        "dims": (1, 2),
        "mask": True,
        "layout": test_nll.LAYOUTS[layout],
    }
TARGETS = ("float32", "float64", "float16", "bfloat16", "uint8", "int32", "int64")
for target in TARGETS:
    VARIANTS[f"vectors of {target}"] = {"shape": (2, 260), "dims": (1,), "target": target}
    VARIANTS[f"elements of {target}"] = {"shape": (2, 131), "dims": (1,), "target": target}


@dataclasses.dataclass(frozen=True)
class NllCase:
    kind: str  # a key of test_nll.KINDS
    dtype: str
    variant: str
    blocks: int = 12  # enough blocks for a launch: see emu::Config
    large: bool = False  # 64-bit offsets

    def __str__(self) -> str:
        more = ["large"] * self.large + [f"{self.blocks} blocks"] * (self.blocks != 12)
        return "-".join((self.kind, self.dtype, self.variant, *more))

    def problem(self) -> test_nll.Problem:
        options = dict(VARIANTS[self.variant])
        shape, dims = options.pop("shape"), options.pop("dims")
        problem = test_nll.make(self.kind, shape, dims, self.dtype, **options)
        if "mask" in problem.arrays and self.dtype.startswith("float"):
            hide_masked(problem)
        return problem


def hide_masked(problem: test_nll.Problem) -> None:
    """Sets masked elements to NaN, in place, so that layouts do not change."""
    masked = problem.arrays["mask"] == 0
    for name in (*test_nll.NAMES, "target"):
        array = problem.arrays.get(name)
        if array is not None and array.dtype.kind == "f" and array.flags.writeable:
            array[masked] = np.nan


NLL_CASES = [
    *(
        NllCase(kind, dtype, "odd rows, mask, weight")
        for kind in test_nll.KINDS
        for dtype in DTYPES
    ),
    *(
        NllCase(kind, dtype, "vectors")
        for kind in ("bernoulli", "gaussian", "laplace", "poisson", "nb of softmax", "zinb")
        for dtype in ("float32", "float16", "bfloat16")
    ),
    *(
        NllCase("zinb of softmax", dtype, rows)
        for rows in (
            *("vectors, mask, weight", "one element", "elementwise", "rows of three"),
            *("rows of half a piece", "images", "columns", "outer summed", "long rows"),
        )
        for dtype in ("float32", "float64")
    ),
    NllCase("gaussian", "bfloat16", "many long rows"),
    NllCase("nb of softmax", "float16", "long rows"),
    NllCase("nb of softmax", "bfloat16", "long rows"),
    *(
        NllCase(kind, dtype, shared)
        for shared in (
            *("theta of a column", "theta of a row", "one theta", "few columns"),
            *("shared along the middle", "wide shared"),
        )
        for kind, dtype in (("gaussian", "float32"), ("nb of softmax", "float64"))
    ),
    *(
        NllCase(kind, dtype, shared)
        for shared in ("two shared", "two shared, swapped")
        for kind, dtype in (("zinb", "float32"), ("zinb of softmax", "bfloat16"))
    ),
    *(
        NllCase(kind, dtype, layout)
        for layout in LAYOUTS
        for kind, dtype in (("gaussian", "float32"), ("nb of softmax", "float16"))
    ),
    *(
        NllCase(kind, dtype, f"{form} of {target}")
        for target in TARGETS
        for kind, dtype, form in (
            ("bernoulli", "float32", "vectors"),
            ("zinb", "bfloat16", "elements"),
            ("nb", "float64", "elements"),
        )
    ),
    # In these cases, each thread block computes more than one tile, task and piece.
    NllCase("zinb", "float32", "many long rows", blocks=1),
    NllCase("nb of softmax", "float32", "theta of a column", blocks=1),
    NllCase("laplace", "float64", "rows of three", blocks=1),
    NllCase("nb of softmax", "float32", "transposed", large=True),
    NllCase("zinb of softmax", "float64", "shared along the middle", large=True),
]


def check(native: Any, case: NllCase) -> None:
    """Compares both directions with the formulas; `native` may be the machine code."""
    native.emulator.configure(enough_blocks=case.blocks, large=case.large)
    try:
        test_nll.check(native, case.problem())
    finally:
        native.emulator.configure()


@dataclasses.dataclass(frozen=True)
class ElboCase:
    """A KL term, and the loss and its gradients in one pass."""

    kind: str  # a key of test_nll.KINDS
    dtype: str
    variant: str

    def __str__(self) -> str:
        return "-".join((self.kind, self.dtype, self.variant))

    def check(self, native: Any) -> None:
        native.emulator.configure(enough_blocks=12)
        try:
            problem = NllCase(self.kind, self.dtype, self.variant).problem()
            whole = dataclasses.replace(problem, dims=tuple(range(len(problem.shape))))
            test_elbo.check_one_pass(native, whole, is_exact=False)
            if self.dtype == "bfloat16":
                return
            capacity = np.float64(1.25)  # passed on the device
            for per_sample in (False, True):
                rows = (5, 300)
                test_elbo.check_kl(native, self.dtype, rows, per_sample, capacity, is_exact=False)
            for way in test_elbo.WAYS:
                test_elbo.check_kl_gradients(native, self.dtype, way, 1, capacity)
            test_elbo.check_buffers(native, self.dtype)
        finally:
            native.emulator.configure()


ELBO_CASES = [
    *(
        ElboCase(kind, dtype, "odd rows, mask, weight")
        for kind in test_nll.FEW_KINDS
        for dtype in ("float32", "float64", "bfloat16")
    ),
    *(
        ElboCase(kind, dtype, "vectors")
        for kind in ("laplace", "poisson", "continuous bernoulli", "logistic")
        for dtype in ("float32", "bfloat16")
    ),
    *(
        ElboCase("nb of softmax", dtype, shared)
        for shared in ("theta of a column", "theta of a row")
        for dtype in ("float32", "float64")
    ),
]
