"""Programs that run in separate processes, so that a crash or a leak affects no other program.

``python tools/gpu.py --driver NAME`` runs one, which writes JSON to ``--out``. Only these programs
import torch and vae_fused.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vae_fused as vf
from gpu_checks import cases, judge, likelihoods, measure
from gpu_checks.report import ROOT
from gpu_checks.sanitizer import DONE, WRONG
from vae_fused import _ext


def write(path: Path | None, data: Any) -> None:
    """Replace the file by all data collected so far."""
    if path:
        scratch = path.with_suffix(".tmp")
        scratch.write_text(json.dumps(data), encoding="utf-8")
        scratch.replace(path)


def eager_formula() -> measure.Latent:
    """The eager formula of the benchmarks."""
    path = ROOT / "benchmarks" / "formulas.py"
    spec = importlib.util.spec_from_file_location("benchmark_formulas", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    latent: measure.Latent = module.plain
    return latent


# --- this machine --------------------------------------------------------------------------------


def smoke(args: argparse.Namespace) -> None:
    """The machine, the versions, and one step compared with the CPU."""
    versions = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "vae_fused": vf.__version__,
        "build": {k: _ext.build_info.get(k) for k in ("mode", "cuda", "archs", "compiler")},
    }
    device: dict[str, Any] = {"name": platform.processor() or "cpu"}
    if args.device != "cpu":
        properties = torch.cuda.get_device_properties(0)
        device = {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "l2_bytes": getattr(properties, "L2_cache_size", None),
            "count": torch.cuda.device_count(),
        }
    write(args.out, {"versions": versions, "device": device, "smoke": "started"})
    difference = compare(*sample_step((3, 5001), "sample", "float32", args.device))
    write(args.out, {"versions": versions, "device": device, "smoke": difference})
    print(f"largest difference from the CPU: {difference:.2g}")


# --- a step compared with the CPU ----------------------------------------------------------------

Tensors = tuple[Tensor, ...]


def sample_step(
    shape: tuple[int, ...],
    reduction: str,
    dtype: str,
    device: str,
    layout: str = "contiguous",
    noise: str = "key",
) -> tuple[Tensors, Tensors]:
    """Results of one step on the device and on the CPU.

    Only our kernels run on the device. Inputs are copied there, and initcheck sees the copies.
    """
    generator = torch.Generator().manual_seed(len(shape) + shape[0])
    kind = cases.DTYPES[dtype]

    def random(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(kind)

    wide = list(shape)
    if layout == "chunk":
        wide[1] *= 2
    raw = [random(*wide), random(*wide)]
    if layout == "channels_last":
        raw = [t.contiguous(memory_format=torch.channels_last) for t in raw]
    grad_z = random(*shape)
    eps = random(*shape) if noise == "eps" else None
    results: list[Tensors] = []
    drawn: Tensor | None = None
    for place in (device, "cpu"):
        moved = [t.to(place) for t in raw]
        pair = list(moved[0].chunk(2, dim=1)) if layout == "chunk" else moved
        mu, logvar = (t.detach().requires_grad_() for t in pair)
        more: dict[str, Any] = {"key": torch.tensor([7, 5], dtype=torch.int64).to(place)}
        if eps is not None:
            more = {"eps": eps.to(place)}
        if noise == "generator" and drawn is None:
            z, kl, key = torch.ops.vae_fused.reparameterize_kl.generator(
                mu, logvar, generator=None, reduction=reduction, dim=None
            )
            drawn = key.cpu()
        else:
            if drawn is not None:
                more = {"key": drawn}
            z, kl = vf.reparameterize_kl(mu, logvar, reduction=reduction, **more)
        grad_kl = torch.full(kl.shape, 0.5, dtype=kl.dtype).to(place)
        grads = torch.autograd.grad((z, kl), (mu, logvar), (grad_z.to(place), grad_kl))
        results.append(tuple(t.detach().cpu() for t in (z, kl, *grads)))
    return results[0], results[1]


def compare(got: Tensors, want: Tensors) -> float:
    """The largest difference relative to max(1, the largest value). Raises if it is large."""
    worst = 0.0
    for g, w in zip(got, want, strict=True):
        bound = {torch.float64: 1e-12, torch.float32: 1e-5}.get(g.dtype, 2e-2)
        error = (g.double() - w.double()).abs().max() / w.double().abs().max().clamp(min=1)
        if not float(error) <= bound:
            raise AssertionError(f"{g.dtype} {WRONG} {float(error):.3g}")
        worst = max(worst, float(error))
    return worst


SANITIZED = [
    # Odd sizes on both sides of a tile and of a vector; every layout, kind of noise and dtype.
    ((3, 5), "sum", "float32", "contiguous", "key"),
    ((1, 1), "mean", "bfloat16", "contiguous", "key"),
    ((128, 20), "batchmean", "float32", "contiguous", "generator"),
    ((130, 17), "sample", "bfloat16", "contiguous", "key"),
    ((7, 2049), "sample", "float32", "contiguous", "generator"),
    ((2, 10_001), "sum", "bfloat16", "contiguous", "eps"),
    ((9, 4099), "sample", "float64", "contiguous", "key"),
    ((1, 40_960), "mean", "float32", "contiguous", "key"),
    ((3001, 1), "none", "float32", "contiguous", "key"),
    ((5, 2048), "none", "float16", "contiguous", "generator"),
    ((4, 6, 5, 7), "batchmean", "float32", "chunk", "key"),
    ((4, 6, 16, 16), "sample", "bfloat16", "chunk", "generator"),
    ((2, 8, 9, 33), "sum", "float32", "channels_last", "key"),
    ((3, 5, 700), "sample", "float64", "chunk", "eps"),
]


def sanitize(args: argparse.Namespace) -> None:
    """Run the short list, each step twice: the second run fails if a ticket was not reset."""
    for shape, reduction, dtype, layout, noise in SANITIZED:
        for _ in range(2):
            compare(*sample_step(shape, reduction, dtype, args.device, layout, noise))
    if args.device != "cpu":
        streams = [torch.cuda.Stream() for _ in range(2)]
        for stream in streams:
            with torch.cuda.stream(stream):
                compare(*sample_step((3, 9000), "sample", "float32", args.device))
    print(f"{len(SANITIZED)} cases")
    print(DONE)


class Overlong:
    """An array interface that claims more elements than its memory has."""

    def __init__(self, tensor: Tensor, numel: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (numel,),
            "typestr": "<f4",
            "data": (tensor.data_ptr(), False),
            "strides": None,
            "version": 2,
        }


def planted_memcheck(args: argparse.Namespace) -> None:
    """Read out of bounds on purpose: memcheck must report it."""
    numel = 2**24
    logvar = torch.zeros(numel).to(args.device)
    mu = torch.as_tensor(Overlong(torch.zeros(1024).to(args.device), numel), device=args.device)
    vf.reparameterize_kl(mu, logvar, key=torch.tensor([1, 0]).to(args.device))
    torch.cuda.synchronize()
    print(DONE)


def planted_initcheck(args: argparse.Namespace) -> None:
    """Read uninitialized memory on purpose: initcheck must report it."""
    mu, logvar = (torch.empty(100_000, device=args.device) for _ in range(2))
    vf.reparameterize_kl(mu, logvar, key=torch.tensor([1, 0]).to(args.device))
    torch.cuda.synchronize()
    print(DONE)


# --- measurements --------------------------------------------------------------------------------


def bandwidth(args: argparse.Namespace) -> None:
    rows: list[dict[str, Any]] = []
    small = args.exponent < 20
    dtypes = ("float32", "bfloat16")
    chosen = cases.cases(args.exponent, dtypes, args.exponent + 4, args.exponent - 2)
    # The most important promises come first: contiguous tensors, then the rest, then large ones.
    order = ["contiguous", "small", *judge.TARGETS]
    chosen.sort(key=lambda c: (c.numel > 2 ** (args.exponent + 1), order.index(c.group)))
    warm_up(args.device)
    for case in chosen:
        try:
            row = measure.measure_case(case, args.device, 3 if small else measure.REPEATS)
        except Exception as error:
            name = {"case": case.name, "group": case.group, "dtype": case.dtype}
            row = {**name, "error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
        rows.append(row)
        write(args.out, rows)
        if args.device != "cpu":
            torch.cuda.empty_cache()
        ratios = [f"{row[way]['ratio']:.3f}" for way in ("forward", "backward") if way in row]
        print(case.name, *ratios, row.get("skipped") or row.get("error") or "", flush=True)
    print(DONE)


def likelihood(args: argparse.Namespace) -> None:
    """Measure the rates of each case's operators, then compare its loss with eager code."""
    measure.quiet()
    rows: list[dict[str, Any]] = []
    repeats = 3 if args.exponent < 20 else measure.REPEATS
    warm_up(args.device)
    for case in likelihoods.cases(args.exponent):
        for what in ("rate", "loss"):
            try:
                if what == "rate":
                    row = measure.measure_case(case, args.device, repeats, likelihoods.inputs)
                else:
                    row = likelihoods.measure_loss(case, args.device, repeats)
            except Exception as error:
                reason = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
                name = {"case": case.name, "group": case.group, "dtype": case.dtype}
                row = {**name, "error": f"{what}: {reason}"}
            rows.append(row)
            write(args.out, rows)
        if args.device != "cpu":
            torch.cuda.empty_cache()
        print(case.name, rows[-2].get("error") or "", rows[-1].get("us"), flush=True)
    print(DONE)


def warm_up(device: str, seconds: float = 0.5) -> None:
    """Bring the clocks up to full speed."""
    if device == "cpu":
        return
    x = torch.randn(2**26, device=device)
    y = torch.empty_like(x)
    calls = max(1, int(seconds / 1.3e-4))
    for _ in range(calls):
        y.copy_(x)
    torch.cuda.synchronize()


def step(args: argparse.Namespace) -> None:
    measure.quiet()
    rows = []
    eager = eager_formula()
    warm_up(args.device)
    for one in measure.steps(args.exponent):
        torch._dynamo.reset()
        row = measure.measure_step(
            one, eager, args.device, args.device != "cpu", 3 if args.exponent < 20 else 15
        )
        rows.append(row)
        write(args.out, rows)
        print(one.name, row["us"], row["unable"], flush=True)
    print(DONE)


def profile(args: argparse.Namespace) -> None:
    """Two launches for each dtype, for ncu."""
    side = 2 ** (args.exponent // 2)
    for dtype in ("float32", "bfloat16"):
        case = cases.Case("contiguous", "contiguous", (side, side), "batchmean", dtype)
        made = cases.inputs(case, args.device)
        made.forward()
        made.backward()
    if args.device != "cpu":
        torch.cuda.synchronize()
    print(DONE)


PROGRAMS: dict[str, Callable[[argparse.Namespace], None]] = {
    "smoke": smoke,
    "sanitize": sanitize,
    "planted-memcheck": planted_memcheck,
    "planted-initcheck": planted_initcheck,
    "bandwidth": bandwidth,
    "likelihood": likelihood,
    "step": step,
    "profile": profile,
}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--driver", required=True, choices=PROGRAMS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--exponent", type=int, default=24)
    args = parser.parse_args(argv)
    PROGRAMS[args.driver](args)


if __name__ == "__main__":
    main(sys.argv[1:])
