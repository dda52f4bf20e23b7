"""Time of a training step's latent, forward and backward, against the formula as people write it.

``python benchmarks/step.py`` prints a table; ``--json FILE`` also writes it down with the machine,
the versions and the commit. Contenders run in turn, so that drift hits all alike; every result is
checked against float64 before anything is timed. Outputs are fresh in each step, as in training.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import vae_fused as vf
from vae_fused import _ext

Latent = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
SIZES = [(128, 20), (256, 256), (1024, 1024), (4096, 4096)]


def eager(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    """The usual formula."""
    std = torch.exp(0.5 * logvar)
    z = mu + std * torch.randn_like(std)
    return z, -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp()) / mu.shape[0]


def normal_distribution(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    """``torch.distributions`` as its documentation has it, validation included."""
    q = torch.distributions.Normal(mu, torch.exp(0.5 * logvar))
    p = torch.distributions.Normal(torch.zeros_like(mu), torch.ones_like(mu))
    return q.rsample(), torch.distributions.kl_divergence(q, p).sum() / mu.shape[0]


CONTENDERS: dict[str, Latent] = {
    "vae_fused": vf.reparameterize_kl,
    "eager formula": eager,
    "torch.distributions": normal_distribution,
}


def check(latent: Latent, mu: Tensor, logvar: Tensor) -> None:
    """The KL and its share of the gradient equal those in float64; z has the right spread."""
    z, kl = latent(mu, logvar)
    exact = [t.detach().double().requires_grad_() for t in (mu, logvar)]
    _, exact_kl = eager(*exact)
    grads = torch.autograd.grad(kl, [mu, logvar])
    torch.testing.assert_close(kl.double(), exact_kl, rtol=1e-4, atol=0)
    for got, want in zip(grads, torch.autograd.grad(exact_kl, exact), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-6)
    eps = (z.detach().double() - exact[0].detach()) / torch.exp(0.5 * exact[1].detach())
    assert abs(eps.std().item() - 1) < 5 / eps.numel() ** 0.5 + 1e-3


def step_time(latent: Latent, mu: Tensor, logvar: Tensor, grad_z: Tensor) -> float:
    """Seconds of one forward and backward."""
    start = time.perf_counter()
    z, kl = latent(mu, logvar)
    torch.autograd.grad([z, kl], [mu, logvar], [grad_z, torch.ones_like(kl)])
    return time.perf_counter() - start


def measure(shape: tuple[int, int], seconds: float) -> dict[str, object]:
    """Median step times of all contenders on one shape, and their ratios to vae_fused."""
    torch.manual_seed(0)
    mu, logvar = (torch.randn(shape, requires_grad=True) for _ in range(2))
    grad_z = torch.randn(shape)
    for latent in CONTENDERS.values():
        check(latent, mu, logvar)
        step_time(latent, mu, logvar, grad_z)
    times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["vae_fused"]) < 7:
        for name, latent in CONTENDERS.items():
            times[name].append(step_time(latent, mu, logvar, grad_z))
    medians = {name: statistics.median(t) for name, t in times.items()}
    return {
        "shape": list(shape),
        "dtype": "float32",
        "steps": len(times["vae_fused"]),
        "median_us": {name: round(1e6 * t, 1) for name, t in medians.items()},
        "ratio_to_vae_fused": {
            name: round(t / medians["vae_fused"], 2) for name, t in medians.items()
        },
    }


def commit() -> str:
    """The commit of the sources, marked if they have been edited since."""
    root = Path(__file__).resolve().parents[1]
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="for each shape (default 5)")
    parser.add_argument("--json", type=Path, help="where to write the results")
    args = parser.parse_args(argv)
    if not _ext.available:
        sys.exit(f"nothing to measure, vae_fused has no compiled code: {_ext.reason}")
    results = []
    print(f"{'shape':>12} " + "".join(f"{name:>24}" for name in CONTENDERS))
    for shape in SIZES:
        results.append(measure(shape, args.seconds))
        us, ratio = results[-1]["median_us"], results[-1]["ratio_to_vae_fused"]
        cells = (f"{us[name]:12.1f} us ({ratio[name]:5.2f}x)" for name in CONTENDERS)
        print(f"{'x'.join(map(str, shape)):>12} " + "".join(f"{c:>24}" for c in cells), flush=True)
    if args.json:
        report = {
            "command": "python benchmarks/step.py",
            "device": processor(),
            "threads": torch.get_num_threads(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "torch": str(torch.__version__),
            "vae_fused": vf.__version__,
            "commit": commit(),
            "compiler": _ext.build_info.get("compiler"),
            "results": results,
        }
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
