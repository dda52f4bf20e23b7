"""Loads the compiled extension, and records whether it is available and, if not, why.

Importing never compiles anything, and does not fail if `_C` is missing: the package then computes
the same functions in eager PyTorch and warns once. Two environment variables, which are read at
import, select the code:

    VAE_FUSED_BACKEND   auto    compiled code if available, else eager PyTorch (default)
                        native  compiled code; without it, the called function raises a RuntimeError
                        torch   eager PyTorch, without a warning
    VAE_FUSED_STRICT=1  a RuntimeError wherever auto would fall back

A third variable configures the compiled code. Importing raises a ValueError if the value is not
supported:

    VAE_FUSED_CPU_CAPABILITY   the instruction set of the CPU kernels: avx512, avx2 or default (any
                               machine of the architecture); if unset, the best that is supported
"""

from __future__ import annotations

import importlib
import os
import warnings
from pathlib import Path
from typing import Any

import torch

from vae_fused import _install

BACKENDS = ("auto", "native", "torch")
PACKAGE = Path(__file__).parent
DIAGNOSE = "see `python -m vae_fused.env`"


def _read_backend() -> str:
    value = os.environ.get("VAE_FUSED_BACKEND", "").lower() or "auto"
    if value not in BACKENDS:
        raise ValueError(f"VAE_FUSED_BACKEND must be one of {', '.join(BACKENDS)}, got {value!r}")
    return value


def _numbers(version: str | None) -> list[str]:
    """'2.13.0+cpu' -> ['2', '13']."""
    return (version or "").split("+")[0].split(".")[:2]


def _mismatch(info: dict[str, Any]) -> str:
    """Return why a `_C` with the build record `info` cannot run with this torch, or ''.

    This check runs before `_C` is loaded, because torch's C++ interface changes with every minor
    release. Not every change causes an undefined symbol. Some cause a crash later.
    """
    built, running = info.get("torch"), str(torch.__version__)
    if built and _numbers(built) != _numbers(running):
        return f"built for torch {built}, running torch {running}"
    if info.get("mode") != "cuda":
        return ""
    built_cuda, running_cuda = info.get("torch_cuda"), torch.version.cuda
    if running_cuda is None:
        return f"built for CUDA {built_cuda}, running torch {running} without CUDA"
    if _numbers(built_cuda)[:1] != _numbers(running_cuda)[:1]:
        return f"built for CUDA {built_cuda}, running torch for CUDA {running_cuda}"
    return ""


def _load(info: dict[str, Any]) -> str:
    """Import `_C`, which registers `torch.ops.vae_fused`. Return '' or one line with the error."""
    if info.get("mode") == "none":
        return (
            f"installed without compiled code ({info.get('why')}); to compile it, run "
            f"VAE_FUSED_BUILD=auto {_install.reinstall_command(PACKAGE)}"
        )
    problem = _mismatch(info)
    if problem:
        return f"{problem}; reinstall: {_install.reinstall_command(PACKAGE)}"
    try:
        importlib.import_module(f"{__package__}._C")
    except ModuleNotFoundError as error:
        if error.name != f"{__package__}._C":
            return f"importing it failed: {error}"
        return f"not built here (a source tree?): {_install.reinstall_command(PACKAGE)}"
    except (ImportError, OSError, RuntimeError) as error:
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        return (
            f"built for torch {info.get('torch')}, running torch {torch.__version__}, and it does "
            f"not load ({first_line}); reinstall: {_install.reinstall_command(PACKAGE)}"
        )
    return ""


def _read_cpu_capability() -> str:
    return str(importlib.import_module(f"{__package__}._C").cpu_capability())


backend: str = _read_backend()
strict: bool = os.environ.get("VAE_FUSED_STRICT", "").lower() in ("1", "on", "true", "yes")
build_info: dict[str, Any] = _install.read_build_info(PACKAGE)
reason: str = "VAE_FUSED_BACKEND=torch" if backend == "torch" else _load(build_info)
available: bool = not reason
cpu_capability: str = _read_cpu_capability() if available else "none"
has_cuda: bool = available and build_info.get("mode") == "cuda"

# `use_native` costs one dictionary lookup, which torch.compile can trace. "meta" is the device of
# tensors without data, for which the operators compute only shapes.
_served: dict[str, bool] = {"cpu": available, "meta": available, "cuda": has_cuda}
_warned: set[str] = set()


def use_native(device_type: str) -> bool:
    """Return whether compiled kernels support tensors on this type of device.

    Args:
        device_type: `tensor.device.type`.

    Returns:
        True if compiled kernels support them, and False if eager PyTorch must be used. The first
        False for a device type issues a RuntimeWarning, unless VAE_FUSED_BACKEND=torch. The result
        is always False during an export to ONNX, because an ONNX runtime does not have our kernels.

    Raises:
        RuntimeError: no compiled kernels support the device, and VAE_FUSED_STRICT=1 or
            VAE_FUSED_BACKEND=native forbids the fallback.
    """
    if torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export():
        return False
    return _served.get(device_type, False) or _decline(device_type)


def _complaint(device_type: str) -> str:
    if not available:
        return f"vae_fused has no compiled code: {reason}; {DIAGNOSE}"
    if device_type == "cuda":
        return (
            f"vae_fused was built without CUDA ({build_info.get('why')}); to build it with "
            f"CUDA, run VAE_FUSED_BUILD=cuda {_install.reinstall_command(PACKAGE)}; {DIAGNOSE}"
        )
    return f"vae_fused has no compiled code for {device_type} tensors, only for CPU and CUDA"


def _decline(device_type: str) -> bool:
    """Warn or raise because no compiled code supports this type of device. Return False."""
    if backend == "torch":
        return False
    if strict or backend == "native":
        raise RuntimeError(_complaint(device_type))
    # Without `_C`, the import has already issued a warning. A traced function cannot warn.
    if available and device_type not in _warned and not torch.compiler.is_compiling():
        _warned.add(device_type)
        warnings.warn(
            f"{_complaint(device_type)}; using eager PyTorch", RuntimeWarning, stacklevel=4
        )
    return False


if not available and backend != "torch":
    outcome = "calls raise" if strict or backend == "native" else "using eager PyTorch"
    warnings.warn(f"{_complaint('cpu')}; {outcome}", RuntimeWarning, stacklevel=3)
