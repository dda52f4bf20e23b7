"""Finds torch, a C++ compiler and a CUDA toolkit, or the reason why one is missing.

setup.py uses this module to choose a build. The module requires only Python.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

MIN_TORCH = (2, 11)
# Headers of the CUDA runtime and of CUDA libraries, which torch's CUDA headers include. A slim
# toolkit lacks the libraries, but the nvidia wheels that torch depends on contain them.
TORCH_CUDA_HEADERS = ("cuda_runtime_api.h", "cublas_v2.h", "cusparse.h", "cusolverDn.h")


@dataclasses.dataclass(frozen=True)
class Toolkit:
    """The CUDA toolkit of nvcc."""

    home: Path
    version: str  # "13.0"
    archs: tuple[str, ...]  # compilation targets of nvcc: ("7.5", "8.0", ...)


def die(message: str) -> NoReturn:
    """End the build with one line, which setuptools and pip print without a traceback."""
    raise SystemExit(f"vae_fused: error: {message}")


def numbers(version: str) -> tuple[int, ...]:
    """'2.13.0+cpu' -> (2, 13)."""
    return tuple(int(n) for n in re.findall(r"\d+", version)[:2])


def output_of(*command: str | Path, env: dict[str, str] | None = None) -> str:
    """Return stdout and stderr of a command, or '' if it cannot run."""
    try:
        return subprocess.run(
            [str(c) for c in command],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        ).stdout
    except OSError:
        return ""


def import_torch() -> Any:
    """Return the torch to compile against. End the build if torch cannot be imported."""
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            die(f"torch is installed, but importing it fails: {error}")
        die(
            "torch must be visible to this build, got no module; install torch and "
            "'setuptools>=77', then add --no-build-isolation to the command, as in `pip install "
            "--no-build-isolation .` (VAE_FUSED_BUILD=none installs without compiled code)"
        )
    except (ImportError, OSError) as error:  # one of its shared libraries is missing or broken
        die(f"torch is installed, but importing it fails: {error}")
    if numbers(torch.__version__) < MIN_TORCH:
        die(f"torch must be 2.11 or later, got {torch.__version__}; run pip install -U torch")
    return torch


def compiler_command() -> list[str]:
    """Return the C++ compiler that torch's BuildExtension will call."""
    return shlex.split(os.environ.get("CXX", "c++"))


def compiler_version() -> str:
    """Return the first line of `c++ --version`, or '' if there is no compiler."""
    command = compiler_command()
    if not command or shutil.which(command[0]) is None:
        return ""
    return next(iter(output_of(*command, "--version").splitlines()), "")


def compiler_is_gcc() -> bool:
    """Return whether the compiler is GCC and not clang, which also defines __GNUC__."""
    macros = output_of(*compiler_command(), "-dM", "-E", "-x", "c++", os.devnull)
    return "__GNUC__" in macros and "__clang__" not in macros


def cuda_home() -> Path | None:
    """Return the toolkit's root: CUDA_HOME, CUDA_PATH, or the root that the nvcc on PATH reports.

    If the `nvcc` on PATH is a wrapper script or a link (in /usr/bin or /usr/local/bin), the folder
    above it is not the root. `nvcc --dryrun` prints TOP, the root of nvcc's own files.
    """
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(name):
            return Path(os.environ[name])
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc is None:
        return None
    with tempfile.TemporaryDirectory() as scratch:  # even a dry run leaves files in TMPDIR
        dryrun = output_of(nvcc, "--dryrun", "x.cu", env={**os.environ, "TMPDIR": scratch})
    top = re.search(r"^#\$ TOP=(.+)$", dryrun, re.MULTILINE)
    return Path(top[1].strip() if top else Path(nvcc).resolve().parents[1]).resolve()


def find_toolkit() -> Toolkit | str:
    """Return the toolkit, or the reason why none was found."""
    home = cuda_home()
    if home is None:
        return "there is no nvcc on PATH and CUDA_HOME is not set"
    nvcc = home / "bin" / "nvcc"
    release = re.search(r"release (\d+\.\d+)", output_of(nvcc, "--version"))
    if release is None:
        return f"{nvcc} is missing or does not run (CUDA_HOME names the toolkit's root)"
    listed = re.findall(r"^compute_(\d+)(\d)$", output_of(nvcc, "--list-gpu-arch"), re.MULTILINE)
    return Toolkit(home, release[1], tuple(sorted((f"{a}.{b}" for a, b in listed), key=numbers)))


def wheel_dirs(torch: Any, kind: str) -> list[Path]:
    """Return `include` or `lib` of each nvidia wheel next to torch (nvidia/cu13, nvidia/cublas)."""
    site = Path(torch.__file__).resolve().parents[1]
    return sorted(d for d in site.glob(f"nvidia/*/{kind}") if d.is_dir())


def why_no_cuda(torch: Any, toolkit: Toolkit | str) -> str:
    """Return '' if a CUDA build is possible, and otherwise the obstacle."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if isinstance(toolkit, str):
        return toolkit
    if numbers(toolkit.version)[0] != numbers(torch.version.cuda)[0]:
        return (
            f"nvcc is CUDA {toolkit.version}, but torch {torch.__version__} is built for CUDA "
            f"{torch.version.cuda}; the major versions must agree"
        )
    places = [toolkit.home / "include", *wheel_dirs(torch, "include")]
    for header in TORCH_CUDA_HEADERS:
        if not any((place / header).is_file() for place in places):
            return f"{header} is neither in the CUDA toolkit nor in the nvidia wheels beside torch"
    return ""


def why_no_cpu() -> str:
    """Return '' if C++ can be compiled, and otherwise the obstacle."""
    if sys.platform == "win32":
        return "compiled builds are for Linux and macOS"
    if not compiler_version():
        return f"there is no C++ compiler ({' '.join(compiler_command())} does not run; see CXX)"
    return ""
