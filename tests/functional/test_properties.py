"""Random calls agree in compiled code, eager PyTorch and float64.

The tests compare values and gradients for all combinations of options. `drawn.py` documents the
random calls and the error that is allowed for each result. Every run draws the same calls.
"""

from __future__ import annotations

import math

import drawn
import pytest
import torch
from conftest import make_key, random
from drawn import F64, calls
from hypothesis import HealthCheck, given, settings

import vae_fused as vf

DETERMINISTIC = settings(
    derandomize=True,
    database=None,
    deadline=None,
    print_blob=False,
    suppress_health_check=list(HealthCheck),
)


def compare(
    call: drawn.Drawn, got: dict[str, torch.Tensor], want: dict[str, torch.Tensor], times: float
) -> None:
    assert got.keys() == want.keys()
    sizes = {
        name: truth.double().abs().nan_to_num().max().item() if truth.numel() else 0.0
        for name, truth in want.items()
    }
    for name, truth in want.items():
        value = got[name]
        assert value.shape == truth.shape, name
        terms = sizes.values() if drawn.is_sum(call, name) else (sizes[name],)
        unit = max(1.0, *terms)
        bound = times * drawn.tolerance(call, name, value) * unit
        torch.testing.assert_close(
            value.double(), truth.double(), rtol=0, atol=bound, equal_nan=True, msg=name
        )


@settings(DETERMINISTIC, max_examples=600)
@given(call=calls())
def test_compiled_reference_and_float64_agree(call, device):
    leaves = drawn.leaves_of(call, device)
    floor = drawn.free_bits_of(call, leaves)
    compiled, eager, truth = (
        drawn.results_of(call, module, leaves, dtype, **floor)
        for module, dtype in ((vf, call.dtype), (vf.reference, call.dtype), (vf.reference, F64))
    )
    for name, value in compiled.items():
        assert value.dtype == eager[name].dtype, name
    compare(call, compiled, truth, 1)
    compare(call, eager, truth, 1)
    compare(call, compiled, eager, 2)


@settings(DETERMINISTIC, max_examples=60)
@given(call=calls(dtypes=(F64,)))
def test_finite_differences(call, device):
    """Tests small calls without the options whose gradient is not the value's derivative."""
    options = {k: v for k, v in call.options.items() if k not in ("balance", "stop_q")}
    call = call._replace(options=options)
    if not 0 < math.prod(call.shape) <= 40 or math.prod(call.samples) > 2:
        return
    leaves = drawn.leaves_of(call, device)
    more = drawn.free_bits_of(call, leaves)
    if call.keyed:
        more = {**more, "key": make_key(call.seed, device=device)}
    names = [name for name in leaves if name not in ("mask", "grad_z")]
    fixed = {name: leaf for name, leaf in leaves.items() if name == "mask"}
    inputs = [leaves[name].requires_grad_(name not in call.frozen) for name in names]

    def results(*values):
        return drawn.call_of(call, vf, {**dict(zip(names, values, strict=True)), **fixed}, **more)

    # gradcheck accepts only results that require a gradient, and the mean of no elements is NaN.
    smooth = [i for i, out in enumerate(results(*inputs)) if out.requires_grad]
    if not smooth or any(out.isnan().any() for out in results(*inputs)):
        return

    def function(*values):
        outputs = results(*values)
        return tuple(outputs[i] for i in smooth)

    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


# --------------------------------------------------------------------------------------------------
# float16 over its whole range
# --------------------------------------------------------------------------------------------------

EVERY_LOGVAR = torch.arange(-60.0, 60.25, 0.25, dtype=F64)
WIDE = {
    **{kind: vf.Scale(kind) for kind in ("logvar", "logstd", "softplus", "sigmoid2")},
    "common clamp": vf.Scale(clamp=(-30.0, 20.0)),
    "soft clamp": vf.Scale("logstd", soft_clamp=20.0),
    "variance floor": vf.Scale(var_floor=1e-4),
    "std floor": vf.Scale("softplus", std_floor=0.1),
    "gain": vf.Scale(gain=0.5, shift=1.0),
}


# Two saturated soft clamps cancel in their difference. The remaining error is float32 rounding.
ABSOLUTE = {"soft clamp": 1e-5}


def assert_right_where_finite(
    name: str, got: torch.Tensor, truth: torch.Tensor, atol: float
) -> None:
    """Requires a result without NaN that is correct wherever float16 can represent the truth."""
    assert not got.isnan().any(), f"{name}: {int(got.isnan().sum())} NaN"
    finite = truth.abs() <= torch.finfo(torch.float16).max / 1.001
    torch.testing.assert_close(
        got[finite].double(), truth[finite], rtol=2.0**-10, atol=atol, msg=name
    )


@pytest.mark.parametrize("prior", ["none", "number", "tensors", "far tensors"])
@pytest.mark.parametrize("scale", WIDE)
def test_float16_is_right_wherever_the_truth_is_finite(scale, prior, device):
    """In float16, e^logvar overflows for logvar above 11.1 and underflows for logvar below -17."""
    n, every = len(EVERY_LOGVAR), EVERY_LOGVAR.repeat(4)
    tensors = {
        "mu": torch.tensor([0.0, -0.5, 3.0, 100.0]).repeat_interleave(n),
        "raw": every,
        "eps": random(4 * n, seed=3),
        "m": torch.tensor([0.0, 1.0]).repeat(2 * n),
        "t": -every if prior == "far tensors" else every + random(4 * n),
    }
    results = []
    for dtype, module in ((torch.float16, vf), (F64, vf.reference)):
        leaves = {k: v.half().to(dtype).to(device).requires_grad_() for k, v in tensors.items()}
        p = {"none": None, "number": vf.Prior(0.5, 2.0, "std")}.get(
            prior, vf.Prior(leaves["m"], leaves["t"], WIDE[scale])
        )
        z, kl = module.reparameterize_kl(
            leaves["mu"], leaves["raw"], scale=WIDE[scale], prior=p, reduction="none",
            eps=leaves["eps"],
        )  # fmt: skip
        got = {"z": z, "kl": kl}
        for name, value in (("z", z), ("kl", kl)):
            found = torch.autograd.grad(
                value.sum(), [*leaves.values()], retain_graph=True, allow_unused=True
            )
            got |= {f"d{name}/d{k}": g for k, g in zip(leaves, found, strict=True) if g is not None}
        results.append({k: v.detach() for k, v in got.items()})
    for name, truth in results[1].items():
        assert_right_where_finite(name, results[0][name], truth, ABSOLUTE.get(scale, 2.0**-24))
