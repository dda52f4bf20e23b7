"""Well-conditioned calls that hypothesis draws: shapes, layouts, dtypes, options and values.

All values lie in [-2, 2], and those of a "std" or a "var" in [0.4, 2]. The options keep every
sigma between 0.03 and 30. A rounding error therefore grows by at most a few powers of 30, and also
in sums (see `tolerance`). With free bits, the gradient jumps at the floor. The floor is in the
middle of the widest gap between the elements' KLs, so that no element is near the jump.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from conftest import DTYPES, REDUCTIONS, make_key, random
from hypothesis import strategies as st
from torch import Tensor

import vae_fused as vf

F64 = torch.float64
SIZES = (1, 2, 3, 4, 5, 8, 16, 17, 0)
MOST_ELEMENTS = 5000


class Layout(NamedTuple):
    """How to make a call's tensor from its leaf: permute, slice and expand it."""

    shape: tuple[int, ...]
    order: tuple[int, ...]  # the leaf's dimensions, outermost first
    start: tuple[int, ...]  # where the slice of each dimension begins
    step: tuple[int, ...]
    expanded: tuple[bool, ...]

    def leaf(self, seed: int, dtype: torch.dtype, positive: bool = False) -> Tensor:
        sizes = [
            1 if e else first + by * n
            for n, first, by, e in zip(
                self.shape, self.start, self.step, self.expanded, strict=True
            )
        ]
        value = random(*(sizes[d] for d in self.order), seed=seed, dtype=F64).clamp(-2, 2)
        return (0.4 + 0.8 * value.abs() if positive else value).to(dtype)

    def view(self, leaf: Tensor, implicit: bool = False) -> Tensor:
        """Returns the view of the leaf.

        With `implicit`, the view is not expanded, and its leading dimensions of size 1 are dropped.
        """
        x = leaf.permute([self.order.index(d) for d in range(len(self.shape))])
        for d, (first, by, e) in enumerate(zip(self.start, self.step, self.expanded, strict=True)):
            if not e:
                x = x.narrow(d, first, x.shape[d] - first).unflatten(d, (self.shape[d], by))
                x = x.select(d + 1, 0)
        if not implicit:
            return x.expand(self.shape)
        while x.dim() and x.shape[0] == 1:
            x = x[0]
        return x


@st.composite
def layouts(draw: Any, shape: tuple[int, ...], expands: bool = True) -> Layout:
    ndim = len(shape)

    def each(strategy: st.SearchStrategy[Any], default: Any) -> tuple[Any, ...]:
        given = draw(st.none() | st.tuples(*[strategy] * ndim))
        return (default,) * ndim if given is None else given

    order = draw(st.none() | st.permutations(range(ndim)))
    return Layout(
        shape,
        tuple(range(ndim)) if order is None else tuple(order),
        each(st.integers(0, 3), 0),
        each(st.sampled_from((1, 1, 2)), 1),
        each(st.booleans(), False) if expands else (False,) * ndim,
    )


@st.composite
def shapes(draw: Any) -> tuple[int, ...]:
    shape = draw(st.lists(st.sampled_from(SIZES), max_size=4))
    while math.prod(shape) > MOST_ELEMENTS:
        shape.pop()
    if draw(st.integers(0, 7)) == 7:  # rows of several tiles, or many short rows
        shape = draw(st.sampled_from(([1, 4099], [4099], [2, 2048], [2050, 2], [2, 1, 2049])))
    return tuple(shape)


def near(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, width=16)


@st.composite
def scales(draw: Any) -> vf.Scale:
    kind = draw(st.sampled_from(vf.options.KINDS))
    options: dict[str, Any] = {}
    limited = draw(st.sampled_from((None, None, "clamp", "soft_clamp")))
    if limited == "clamp":
        options["clamp"] = draw(
            st.tuples(st.none() | near(0.5, 0.75), st.none() | near(1.0, 1.5))
            if kind in ("std", "var")
            else st.tuples(st.none() | near(-1.5, -0.25), st.none() | near(0.0, 1.5))
        )
    elif limited == "soft_clamp":
        options["soft_clamp"] = draw(near(0.75, 4.0))
    if draw(st.booleans()):
        options["gain"] = draw(near(0.5, 1.25))
    if draw(st.booleans()):
        options["shift"] = draw(near(0.0 if kind in ("std", "var") else -0.5, 0.5))
    if kind == "softplus" and draw(st.booleans()):
        options["beta"] = draw(near(0.5, 1.5))
    for name, most in (("std_floor", 0.5), ("var_floor", 0.25), ("std_min", 1.0)):
        if draw(st.integers(0, 3)) == 3:
            options[name] = draw(near(2.0**-10, most))
    return vf.Scale(kind, **options)


def is_positive(scale: vf.Scale) -> bool:
    return scale.kind in ("std", "var")


class Drawn(NamedTuple):
    """A call without the values of its tensors."""

    function: str
    dtype: torch.dtype
    seed: int
    shape: tuple[int, ...]
    layouts: dict[str, Layout]  # the leaves' layouts, by name: see `TAKES` and `calls`
    scale: vf.Scale
    prior: dict[str, Any] | None
    options: dict[str, Any]  # further arguments of the function
    floored: bool  # whether the call has free bits
    keyed: bool
    packed_dim: int
    broadcasts: bool  # whether the function expands the tensors
    frozen: frozenset[str]  # tensors without gradients
    unused: str  # a result that receives no gradient

    @property
    def samples(self) -> tuple[int, ...]:
        n = self.options.get("sample_shape", ())
        return (n,) if isinstance(n, int) else n


TAKES = {
    "reparameterize_kl": ("mu", "raw", "sample", "kl"),
    "reparameterize_kl_moments": ("h", "sample", "kl"),
    "reparameterize": ("mu", "raw", "sample"),
    "gaussian_kl": ("mu", "raw", "kl"),
    "sampled_kl": ("mu", "raw"),
    "gaussian_log_prob": ("mu", "raw", "value"),
}


@st.composite
def calls(
    draw: Any, dtypes: tuple[torch.dtype, ...] = DTYPES, functions: Any = tuple(TAKES)
) -> Drawn:
    function = draw(st.sampled_from(functions))
    takes, shape = TAKES[function], draw(shapes())
    if function == "reparameterize_kl_moments" and not shape:
        shape = (4,)
    of: dict[str, Layout] = {}
    packed_dim = draw(st.integers(0, len(shape) - 1)) if "h" in takes else 0
    for name in ("mu", "raw", "value"):
        if name in takes:
            of[name] = draw(layouts(shape))
    if "h" in takes:
        packed = [2 * n if d == packed_dim else n for d, n in enumerate(shape)]
        of["h"] = draw(layouts(tuple(packed), expands=False))
    options: dict[str, Any] = {}
    prior, keyed = None, False
    if "sample" in takes:
        if draw(st.booleans()):
            options["temperature"] = draw(near(0.0, 2.0))
        if draw(st.integers(0, 3)) == 3:
            options["sample_shape"] = draw(st.sampled_from((1, 2, 5, (2, 2), (1, 3))))
        if draw(st.booleans()) and "h" not in takes:
            options["mu_soft_clamp"] = draw(near(0.75, 4.0))
        n = options.get("sample_shape", ())
        z_shape = ((n,) if isinstance(n, int) else n) + shape
        of["grad_z"] = draw(layouts(z_shape))
        keyed = draw(st.booleans())
        if not keyed:
            of["eps"] = draw(layouts(z_shape))
    if "kl" in takes or function == "sampled_kl":
        given = draw(st.sampled_from((None, "numbers", "tensors", "mean", "raw")))
        if given is not None:
            prior = {"scale": draw(scales())}
            prior["mean"] = draw(near(-1.0, 1.0))
            prior["raw"] = draw(near(0.5, 1.0))
            for name in ("mean", "raw"):
                if given in ("tensors", name):
                    of[f"prior_{name}"] = draw(layouts(shape))
    if {"sample", "kl"} <= {*takes} and draw(st.booleans()):
        options |= {"estimator": "sample", "stop_q": draw(st.booleans())}
    floored = "kl" in takes and "estimator" not in options and draw(st.integers(0, 3)) == 3
    if "kl" in takes and draw(st.integers(0, 3)) == 3:
        options["balance"] = draw(st.tuples(near(0.0, 2.0), near(0.0, 2.0)))
    if draw(st.integers(0, 2)) == 2:
        of["mask"] = draw(layouts(shape))
    if function != "reparameterize":
        named = [r for r in REDUCTIONS if shape or r != "sample"]
        if shape and draw(st.booleans()):
            dims = draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))
            signed = tuple(d - len(shape) if draw(st.booleans()) else d for d in sorted(dims))
            options["kl_dim" if "h" in takes else "dim"] = signed
        else:
            options["reduction"] = draw(st.sampled_from(named))
    return Drawn(
        function, draw(st.sampled_from(dtypes)), draw(st.integers(0, 999)), shape, of,
        draw(scales()), prior, options, floored, keyed, packed_dim, draw(st.booleans()),
        frozenset(draw(st.just(()) | st.sets(st.sampled_from(sorted(of) or ["mu"])))),
        draw(st.sampled_from(("", "", "z", "kl"))),
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------
# From a drawn call to tensors and results
# --------------------------------------------------------------------------------------------------


def leaves_of(call: Drawn, device: str = "cpu") -> dict[str, Tensor]:
    made = {}
    for i, (name, layout) in enumerate(call.layouts.items()):
        positive = (name == "raw" and is_positive(call.scale)) or (
            name == "prior_raw" and call.prior is not None and is_positive(call.prior["scale"])
        )
        leaf = layout.leaf(10 * call.seed + i, call.dtype, positive)
        if name == "h" and is_positive(call.scale):
            leaf = 0.4 + 0.8 * leaf.abs()
        made[name] = (leaf > -0.7 if name == "mask" else leaf).to(device)
    return made


def device_of(leaves: dict[str, Tensor]) -> str:
    return next(iter(leaves.values())).device.type


def call_of(call: Drawn, module: Any, leaves: dict[str, Tensor], **more: Any) -> list[Tensor]:
    """Returns the results as a list of one or two tensors."""
    view = {
        name: call.layouts[name].view(
            leaf, implicit=call.broadcasts and name in ("raw", "prior_mean", "prior_raw", "mask")
        )
        for name, leaf in leaves.items()
    }
    kwargs: dict[str, Any] = {"scale": call.scale, **call.options, **more}
    if call.prior is not None:
        kwargs["prior"] = vf.Prior(
            view.get("prior_mean", call.prior["mean"]),
            view.get("prior_raw", call.prior["raw"]),
            call.prior["scale"],
        )
    if "mask" in view:
        kwargs["mask"] = view["mask"]
    if "eps" in view:
        kwargs["eps"] = view["eps"]
    if "h" in view:
        positional, kwargs["dim"] = [view["h"]], call.packed_dim
    else:
        positional = [view[name] for name in ("value", "mu", "raw") if name in view]
    function: Callable[..., Any] = getattr(module, call.function)
    out = function(*positional, **kwargs)
    return [out] if isinstance(out, Tensor) else [*out]


def free_bits_of(call: Drawn, leaves: dict[str, Tensor]) -> dict[str, float]:
    """Returns the argument `free_bits`, the middle of the widest gap between the elements' KLs.

    The result is empty for a call without a floor, or if no gap is wide enough.
    """
    if not call.floored:
        return {}
    unreduced = {k: v for k, v in call.options.items() if k not in ("dim", "kl_dim", "reduction")}
    doubles = {k: v if k == "mask" else v.double() for k, v in leaves.items() if k != "grad_z"}
    whole = call._replace(options={**unreduced, "reduction": "none"})
    more = (
        {}
        if "eps" in doubles or "grad_z" not in call.layouts
        else {"key": make_key(0, device=device_of(leaves))}
    )
    kl = call_of(whole, vf.reference, doubles, **more)[-1].flatten().sort().values
    gaps = kl.diff()
    if gaps.numel() == 0 or gaps.max() < 1e-3:
        return {}
    i = int(gaps.argmax())
    return {"free_bits": (kl[i] + kl[i + 1]).item() / 2}


def results_of(
    call: Drawn, module: Any, leaves: dict[str, Tensor], dtype: torch.dtype, **more: Any
) -> dict[str, Tensor]:
    """Values and gradients by name. The mask, `grad_z` and frozen leaves have no gradient."""
    used = {
        k: v if k == "mask" else v.detach().to(dtype).requires_grad_(k not in call.frozen)
        for k, v in leaves.items()
        if k != "grad_z"
    }
    if call.keyed:
        key, shape = make_key(call.seed, 7, device_of(leaves)), (*call.samples, *call.shape)
        if dtype == call.dtype:
            more = {**more, "key": key}
        else:  # in float64, the key would generate different noise
            more = {**more, "eps": vf.reference.normal(key, shape).double()}
    out = call_of(call, module, used, **more)
    names = ["z", "kl"] if len(out) == 2 else ["z" if "grad_z" in call.layouts else "kl"]
    values = dict(zip(names, out, strict=True))
    grads = [
        call.layouts["grad_z"].view(leaves["grad_z"].to(v.dtype))
        if name == "z"
        else random(*v.shape, seed=call.seed).to(v)
        for name, v in values.items()
    ]
    differentiable = {name: leaf for name, leaf in used.items() if leaf.requires_grad}
    outputs = [
        (v, g)
        for (name, v), g in zip(values.items(), grads, strict=True)
        if v.requires_grad and name != call.unused
    ]
    found = (None,) * len(differentiable)
    if outputs:
        found = torch.autograd.grad(
            [v for v, _ in outputs],
            [*differentiable.values()],
            [g for _, g in outputs],
            allow_unused=True,
        )
    for (name, leaf), grad in zip(differentiable.items(), found, strict=True):
        values[f"grad_{name}"] = torch.zeros_like(leaf) if grad is None else grad
    return {name: v.detach() for name, v in values.items()}


# The maximum error of an element against float64, in units of the largest element of its tensor or
# of 1, whichever is larger. In 16-bit dtypes, autograd rounds a gradient several times: after
# conversions, products and sums.
ROUNDING = {F64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9}


def tolerance(call: Drawn, name: str, value: Tensor) -> float:
    """Returns the maximum error allowed for a result.

    A KL and the gradient of an expanded leaf are sums of n elements, and the error of such a sum is
    sqrt(n) times that of an element. The terms of a gradient may cancel, so its unit is the largest
    element of all results. Each term of a KL from a sample is itself a sum of two parts that
    cancel.
    """
    wide = value.dtype if name == "kl" else call.dtype
    parts = 4 if call.function == "sampled_kl" else 1
    return parts * ROUNDING[wide] * math.sqrt(_summed(call, name))


def is_sum(call: Drawn, name: str) -> bool:
    """Whether a gradient is a sum over elements."""
    return name.startswith("grad_") and _summed(call, name) > 1


def _summed(call: Drawn, name: str) -> int:
    """Returns the maximum number of elements that are summed into one element of this result."""
    every = max(1, math.prod(call.shape))
    if name == "z":
        return 1
    if name == "kl":
        return every
    layout = call.layouts[name.removeprefix("grad_")]
    expanded = [n for n, e in zip(layout.shape, layout.expanded, strict=True) if e]
    return max(1, math.prod(expanded)) * max(1, math.prod(call.samples))
