"""Shows whether a change affects results or machine code, by hashes of both.

    python tools/fingerprint.py results                      of the vae_fused that is imported
    python tools/fingerprint.py code forward.cubin ...       of each kernel in these cubins

Each call or kernel has one line. A refactoring leaves both lists unchanged, which `diff` shows.
The results are those of the CPU kernels, bit for bit, for the instruction set in use
(VAE_FUSED_CPU_CAPABILITY selects another). The hash of machine code covers instructions and their
operands, but neither names nor addresses.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

DTYPES = ("float32", "float64", "float16", "bfloat16")


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


# --- results -------------------------------------------------------------------------------------


def options(vf: Any, torch: Any, like: Any) -> dict[str, dict[str, Any]]:
    """Sets of options for a posterior of this shape and dtype."""
    rng = torch.Generator().manual_seed(1)
    half = torch.randn(like.shape, generator=rng).to(like.dtype)
    row = half[0] if half.numel() > 1 else half
    scales = {
        kind: {"scale": vf.Scale(kind, std_floor=0.1)} for kind in ("std", "softplus", "sigmoid2")
    }
    return {
        "default": {},
        "clamp": {"scale": vf.Scale("logvar", clamp=(-1.0, 1.0))},
        "soft": {"scale": vf.Scale("logstd", soft_clamp=2.0, var_floor=1e-4), "mu_soft_clamp": 3.0},
        "var": {"scale": vf.Scale("var", var_floor=1e-4)},
        **scales,
        "prior": {"prior": vf.Prior(row, 0.1, "logstd")},
        "learned": {"prior": vf.Prior(half, row, vf.Scale("softplus")), "balance": (0.8, 0.2)},
        "numbers": {"prior": vf.Prior(0.3, 0.2), "free_bits": 0.5, "temperature": 0.7},
        "mask": {"mask": half > -1},
        "samples": {"sample_shape": (3,), "temperature": 0.5},
    }


def layouts(torch: Any, dtype: Any) -> Iterator[tuple[str, Any, Any]]:
    rng = torch.Generator().manual_seed(0)

    def values(*shape: int) -> Any:
        return torch.rand(shape, generator=rng).add(0.1).to(dtype)

    yield "rows", values(33, 20), values(33, 20)
    yield "long", values(3, 5001), values(3, 5001)
    yield "wide", values(9, 517), values(9, 1)
    mu, raw = values(2, 8, 6, 6).chunk(2, 1)
    yield "chunks", mu, raw
    mu, raw = (values(2, 6, 6, 8).permute(0, 3, 1, 2) for _ in range(2))
    yield "channels_last", mu, raw
    yield "strided", values(40, 31).t()[:, ::2], values(40, 31).t()[:, ::2]
    yield "empty", values(0, 4), values(0, 4)
    yield "scalar", values(), values()


def results() -> Iterator[tuple[str, str]]:
    import torch

    import vae_fused as vf

    torch.set_num_threads(2)
    key = torch.tensor([12345, 67])
    for name in DTYPES:
        for layout, mu, raw in layouts(torch, getattr(torch, name)):
            for recipe, asked in options(vf, torch, mu).items():
                for reduction in ("batchmean", "none", "sample"):
                    label = f"{name} {layout} {recipe} {reduction}"
                    yield label, outcome(vf, torch, mu, raw, key, reduction, asked)


def outcome(
    vf: Any, torch: Any, mu: Any, raw: Any, key: Any, reduction: str, asked: dict[str, Any]
) -> str:
    """z, the KL and every gradient of a call, or the type of the error that it raises."""
    asked, leaves = dict(asked), [t.detach().requires_grad_() for t in (mu, raw)]
    prior = asked.get("prior")
    if prior is not None:
        parts = [
            p.detach().clone().requires_grad_() if isinstance(p, torch.Tensor) else p
            for p in (prior.mean, prior.raw)
        ]
        asked["prior"] = vf.Prior(*parts, prior.scale)
        leaves += [p for p in parts if isinstance(p, torch.Tensor)]
    try:
        z, kl = vf.reparameterize_kl(*leaves[:2], reduction=reduction, key=key, **asked)
    except (TypeError, ValueError, IndexError) as error:
        return type(error).__name__
    grads = torch.autograd.grad(
        (z, kl), leaves, (torch.ones_like(z), torch.ones_like(kl)), allow_unused=True
    )
    found = [t.detach().flatten() for t in (z, kl, *grads) if t is not None]
    return digest(b"".join(t.view(torch.uint8).numpy().tobytes() for t in found))


# --- machine code --------------------------------------------------------------------------------


def code(cubins: list[str]) -> Iterator[tuple[str, str]]:
    from kernels import demangled, find_cuobjdump

    tool = find_cuobjdump()
    if tool is None:
        raise SystemExit("cuobjdump must be on PATH, in a CUDA toolkit or in triton, got none")
    for cubin in cubins:
        listing = subprocess.run([tool, "-sass", cubin], capture_output=True, text=True, check=True)
        for part in listing.stdout.split("Function : ")[1:]:
            name, _, body = part.partition("\n")
            lines = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(.*?;)", body)
            yield demangled(name.strip()), f"{len(lines)} {digest(chr(10).join(lines).encode())}"


def main(arguments: list[str]) -> int:
    what, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if what not in ("results", "code"):
        print(__doc__)
        return 2
    for name, value in results() if what == "results" else code(rest):
        print(value, name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
