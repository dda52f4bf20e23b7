"""The origin of a measurement: device, versions, commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

import vae_fused as vf
from benchmarks import ROOT
from vae_fused import _ext

PACKAGE = Path(vf.__file__).resolve().parent


def _output(*command: str) -> str:
    """A program's output; '' if it fails."""
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return run.stdout.strip()


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def machine(device: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "device": processor(),
        "kind": device,
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "vae_fused_cpu_capability": _ext.cpu_capability,
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        found |= {
            "host": found["device"],
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "l2_bytes": getattr(properties, "L2_cache_size", None),
            "driver": driver.split("\n")[0] or None,
        }
    return found


class Others:
    """Measures the share of processor time that other processes take from now on.

    An operator with several threads waits for the slowest of them. A process that shares their
    processors makes it many times slower, and does not slow all contenders equally.
    """

    def __init__(self) -> None:
        self.began = self._seconds()

    def share(self) -> float | None:
        """The share of the time of all processors; None if it is not available."""
        if self.began is None or (now := self._seconds()) is None or now[1] <= self.began[1]:
            return None
        return round(max(0.0, (now[0] - self.began[0]) / (now[1] - self.began[1])), 2)

    @staticmethod
    def _seconds() -> tuple[float, float] | None:
        """Processor seconds spent outside this process, and the total available seconds."""
        try:
            words = Path("/proc/stat").read_text(encoding="utf-8").split("\n")[0].split()[1:9]
        except OSError:
            return None
        tick = os.sysconf("SC_CLK_TCK")
        user, nice, system, idle, waiting, *rest = (int(word) / tick for word in words)
        busy = user + nice + system + sum(rest)  # interrupts, and time taken by a hypervisor
        mine = os.times()
        return busy - mine.user - mine.system, busy + idle + waiting


def versions() -> dict[str, Any]:
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "vae_fused": vf.__version__,
        "build": _ext.build_info.get("mode") or ("unknown" if _ext.available else None),
        "compiler": _ext.build_info.get("compiler"),
    }
    for name in ("triton", "diffusers", "pyro-ppl"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def commit() -> tuple[str, bool]:
    """The commit of this checkout, and whether it has uncommitted changes or differs from the
    package in use.

    Without git, VAE_FUSED_COMMIT gives the commit. The suffix "-dirty" marks uncommitted changes.
    """
    git = ("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12")
    given = os.environ.get("VAE_FUSED_COMMIT", "").strip()
    given = given or _output(*git, "--exclude", "*") or "unknown"
    return given.removesuffix("-dirty"), given.endswith("-dirty") or package_differs()


def package_differs() -> bool:
    """Whether the Python files of the package in use differ from those of the checkout."""
    here = ROOT / "vae_fused"

    def sources(folder: Path) -> dict[str, bytes]:
        return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.py")}

    return here != PACKAGE and sources(PACKAGE) != sources(here)


def package() -> str:
    """A description of the vae_fused in use, for the terminal."""
    where = "this checkout's sources" if PACKAGE.parent == ROOT else str(PACKAGE)
    code = _ext.build_info.get("mode") or "compiled"
    if not _ext.available:
        code = f"no compiled code, {_ext.reason}"
    differs = "; its files are not those of this checkout" if package_differs() else ""
    return f"vae_fused {vf.__version__} from {where} ({code}){differs}"


def free_bytes(device: str) -> float:
    """Available memory; inf if it is not known."""
    if device == "cuda":
        return float(torch.cuda.mem_get_info()[0])
    try:
        text = Path("/proc/meminfo").read_text(encoding="utf-8")
        return 1024 * float(re.findall(r"^MemAvailable:\s+(\d+)", text, re.MULTILINE)[0])
    except (OSError, IndexError):
        return float("inf")


def slug(name: str) -> str:
    """The name for use in file names: 'NVIDIA H200' becomes 'h200'."""
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return words.removeprefix("nvidia-") or "unknown"
