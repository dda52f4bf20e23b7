"""Prints what is installed, what was built, which code is in use, and why anything is missing.

    python -m vae_fused.env           aligned text, to read and to paste into a bug report
    python -m vae_fused.env --json    the same as JSON

The report is always printed. If a probe fails, its error is printed in place of its result.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

Section = dict[str, str]

VARIABLES = (
    "VAE_FUSED_BACKEND",
    "VAE_FUSED_STRICT",
    "VAE_FUSED_CPU_CAPABILITY",
    "VAE_FUSED_BUILD",
    "CC",
    "CUDA_HOME",
    "CUDA_PATH",
    "CUDA_VISIBLE_DEVICES",
    "CXX",
    "DEBUG",
    "FORCE_CUDA",
    "LD_LIBRARY_PATH",
    "MAX_JOBS",
    "OMP_NUM_THREADS",
    "PYTHONPATH",
    "TORCH_CUDA_ARCH_LIST",
)


def _probe(question: Callable[[], object]) -> str:
    """Return a probe's result or error as text, so that one broken part does not hide others."""
    try:
        return str(question())
    except Exception as error:
        first_line = next(iter(str(error).splitlines()), "")
        return f"unavailable ({type(error).__name__}: {first_line})"


def _output(*command: str) -> str:
    """Return the output of a command. Raise if the command fails."""
    run = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=True
    )
    return run.stdout.strip()


def _load(name: str) -> Any:
    """Import a module without its warnings, because the report contains the same information."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def _torch() -> Any:
    return _load("torch")


def _ext() -> Any:
    return _load("vae_fused._ext")


def covers(archs: list[str], capability: tuple[int, int]) -> bool:
    """Return whether code built for `archs` ("8.0", "9.0+PTX") runs on a GPU of this capability.

    Machine code runs on GPUs with its major version and at least its minor version, and PTX also
    runs on all newer GPUs. Machine code for "9.0a" or "10.0f" runs only on the capability that it
    names.
    """
    for arch in archs:
        number, _, ptx = arch.partition("+")
        major, _, minor = number.partition(".")
        if not (major.isdigit() and minor.rstrip("af").isdigit()):
            return True  # a name like "Hopper" cannot be compared
        built = int(major), int(minor.rstrip("af"))
        if built == capability:
            return True
        if minor.isdigit() and built < capability and (ptx or built[0] == capability[0]):
            return True
    return False


# --- the sections --------------------------------------------------------------------------------


def _package() -> Section:
    section = {
        "version": _probe(lambda: _load("vae_fused._install").version),
        "location": str(Path(__file__).resolve().parent),
    }
    other = _installed_elsewhere()
    if other:
        section["installed, not imported"] = other
    section["setting"] = _probe(_setting)
    section["on CPU"] = _probe(_cpu_backend)
    section["CPU capability"] = _probe(lambda: _ext().cpu_capability)
    section["on CUDA"] = _probe(_cuda_backend)
    return section | _build()


def _build() -> Section:
    """Read the build record of setup.py without torch, because torch may be the broken part."""
    try:
        text = Path(__file__).with_name("_build_info.json").read_text(encoding="utf-8")
    except OSError:
        return {"built": "no record of a build: a source tree"}
    info = json.loads(text)
    section = {"built": f"{info['mode']} ({info['why']})"}
    if info["torch"]:
        cuda = f", CUDA {info['torch_cuda']}" if info["torch_cuda"] else ""
        section["built for torch"] = info["torch"] + cuda
        section["built with"] = info["compiler"]
        section["C++ flags"] = " ".join(info["flags"]["cxx"])
    if info["cuda"]:
        section["built with nvcc"] = info["cuda"]
        section["built for archs"] = " ".join(info["archs"])
        section["nvcc flags"] = " ".join(info["flags"]["nvcc"])
    return section


def _installed_elsewhere() -> str:
    """Return where pip installed vae_fused, if another copy, such as a source tree, is in use."""
    here = Path(__file__).resolve().parent
    try:
        distribution = importlib.metadata.distribution("vae_fused")
        installed = Path(str(distribution.locate_file("vae_fused"))).resolve()
    except Exception:
        return ""
    return str(installed) if installed != here and installed.is_dir() else ""


def _setting() -> str:
    ext = _ext()
    return f"VAE_FUSED_BACKEND={ext.backend}" + (", strict" if ext.strict else "")


def _cpu_backend() -> str:
    ext = _ext()
    return "compiled" if ext.available else f"eager PyTorch: {ext.reason}"


def _cuda_backend() -> str:
    ext = _ext()
    if not ext.available:
        return f"eager PyTorch: {ext.reason}"
    if not ext.has_cuda:
        return f"eager PyTorch: built without CUDA ({ext.build_info.get('why')})"
    cuda = _torch().cuda
    if not cuda.is_available():
        return "compiled, but torch sees no GPU here"
    archs = ext.build_info.get("archs", [])
    for index in range(cuda.device_count()):
        capability = cuda.get_device_capability(index)
        if not covers(archs, capability):
            needed = f"{capability[0]}.{capability[1]}"
            return (
                f"compiled, but not for GPU {index}, which needs {needed}: build again with "
                f"TORCH_CUDA_ARCH_LIST={needed}"
            )
    return "compiled"


def _pytorch() -> Section:
    torch = _torch()
    return {
        "version": str(torch.__version__),
        "location": _probe(lambda: Path(torch.__file__).parent),
        "CUDA": _probe(lambda: torch.version.cuda or "none: a build without CUDA"),
        "CPU": _probe(torch.backends.cpu.get_cpu_capability),
        "threads": _probe(torch.get_num_threads),
    }


def _gpus() -> Section:
    section = {"driver": _probe(_driver)}
    cuda = _torch().cuda
    count = cuda.device_count() if cuda.is_available() else 0
    for index in range(count):
        section[f"GPU {index}"] = _probe(partial(_gpu, cuda, index))
    if not count:
        section["GPU"] = "none visible to torch"
    return section


def _gpu(cuda: Any, index: int) -> str:
    major, minor = cuda.get_device_capability(index)
    return f"{cuda.get_device_name(index)}, capability {major}.{minor}"


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return "no nvidia-smi on PATH"
    lines = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return ", ".join(sorted(set(lines.splitlines())))


def _tools() -> Section:
    cxx = shlex.split(os.environ.get("CXX", "c++"))
    return {
        "C++ compiler": _probe(lambda: _output(*cxx, "--version").splitlines()[0]),
        "nvcc": _probe(_nvcc),
        "ninja": _probe(lambda: _output("ninja", "--version")),
    }


def _nvcc() -> str:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = str(Path(home, "bin", "nvcc")) if home else shutil.which("nvcc")
    if nvcc is None:
        return "not on PATH, and CUDA_HOME is not set"
    release = [line for line in _output(nvcc, "--version").splitlines() if "release" in line]
    return f"{release[0].strip()} at {nvcc}" if release else nvcc


def _system() -> Section:
    return {
        "python": f"{platform.python_version()} at {sys.executable}",
        "platform": _probe(platform.platform),
        "machine": _probe(lambda: f"{platform.machine()}, {os.cpu_count()} processors"),
    }


def _variables() -> Section:
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}


def collect() -> dict[str, Section]:
    """Collect the report: section -> label -> text. Never raises."""
    sections: dict[str, Callable[[], Section]] = {
        "vae_fused": _package,
        "torch": _pytorch,
        "gpu": _gpus,
        "tools": _tools,
        "system": _system,
        "variables": _variables,
    }
    report: dict[str, Section] = {}
    for name, section in sections.items():
        try:
            report[name] = section()
        except Exception as error:
            report[name] = {"unavailable": f"{type(error).__name__}: {error}"}
    return report


def to_text(report: dict[str, Section]) -> str:
    """Format the report as text, with one aligned column of labels."""
    width = max(len(label) for section in report.values() for label in section) + 2
    lines: list[str] = []
    for name, section in report.items():
        lines.append(name)
        entries = [f"  {label:<{width}}{text or '(empty)'}" for label, text in section.items()]
        lines += entries or ["  none set"]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(prog="python -m vae_fused.env", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--json", action="store_true", help="print JSON")
    report = collect()
    print(json.dumps(report, indent=2) if parser.parse_args(argv).json else to_text(report))


if __name__ == "__main__":
    main()
