"""The JSON of a run, with the measurements, the machine, the versions and the commit."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import vae_fused as vf
from benchmarks import ROOT
from build_support.digest import sources_digest
from vae_fused import _ext

Data = dict[str, Any]
SCHEMA = 1
RESULTS = ROOT / "benchmarks" / "results"
PACKAGE = Path(vf.__file__).resolve().parent
FILES = ("--json", "--compare")  # options that do not affect the measurement
VERSIONS = ("triton", "diffusers", "pyro-ppl")

# For each command: the kind of its records, the prefix of its files, and its lists of rows.
KINDS = {
    "benchmarks": ("vae_fused benchmarks", "bench", ("results",)),
    "benchmarks.losses": ("vae_fused losses", "losses", ("rows",)),
    "benchmarks.steps": ("vae_fused whole steps", "steps", ("steps",)),
}


class NotARecord(Exception):
    """A file that is not one of these JSONs."""


# --- the machine ---------------------------------------------------------------------------------


def _output(*command: str) -> str:
    """Return a program's output, or '' if it fails."""
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return run.stdout.strip()


def processor() -> str:
    """Return the name of the processor, which ``platform`` does not return on Linux."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def machine(device: str) -> Data:
    found: Data = {
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


def free_bytes(device: str) -> float:
    """Return the available memory in bytes, or inf if it is not known."""
    if device == "cuda":
        return float(torch.cuda.mem_get_info()[0])
    try:
        text = Path("/proc/meminfo").read_text(encoding="utf-8")
        return 1024 * float(re.findall(r"^MemAvailable:\s+(\d+)", text, re.MULTILINE)[0])
    except (OSError, IndexError):
        return float("inf")


# --- the software --------------------------------------------------------------------------------


def versions(packages: Sequence[str] = ()) -> Data:
    found: Data = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "vae_fused": vf.__version__,
        "build": _ext.build_info.get("mode") or ("unknown" if _ext.available else None),
        "compiler": _ext.build_info.get("compiler"),
    }
    for name in (*VERSIONS, *packages):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def commit() -> tuple[str, bool]:
    """Return the commit of this checkout, and whether it has uncommitted changes or differs from
    the package in use.

    VAE_FUSED_COMMIT replaces the commit from git. The suffix "-dirty" marks uncommitted changes.
    """
    git = ("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12")
    given = os.environ.get("VAE_FUSED_COMMIT", "").strip()
    given = given or _output(*git, "--exclude", "*") or "unknown"
    return given.removesuffix("-dirty"), given.endswith("-dirty") or package_differs()


def package_differs() -> bool:
    """Return whether the package's Python files or compiled sources differ from the checkout's."""
    here, built_from = ROOT / "vae_fused", _ext.build_info.get("sources")

    def sources(folder: Path) -> dict[str, bytes]:
        return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.py")}

    is_other = here != PACKAGE and sources(PACKAGE) != sources(here)
    return is_other or built_from not in (None, sources_digest(ROOT))


def package() -> str:
    """Return a description of the vae_fused in use, for the terminal."""
    where = "this checkout's sources" if PACKAGE.parent == ROOT else str(PACKAGE)
    code = _ext.build_info.get("mode") or "compiled"
    if not _ext.available:
        code = f"no compiled code, {_ext.reason}"
    differs = "; its files are not those of this checkout" if package_differs() else ""
    return f"vae_fused {vf.__version__} from {where} ({code}){differs}"


# --- the file ------------------------------------------------------------------------------------


def command(module: str, argv: Sequence[str]) -> str:
    """Return the command line that repeats a run, without file names."""
    kept, words = [], iter(argv)
    for word in words:
        if word in FILES:
            next(words, None)
        elif not word.startswith(tuple(f"{option}=" for option in FILES)):
            kept.append(word)
    return shlex.join(["python", "-m", module, *kept])


def new(
    module: str, argv: Sequence[str], device: str, settings: Data, packages: Sequence[str] = ()
) -> Data:
    """A record without results."""
    name, dirty = commit()
    return {
        "kind": KINDS[module][0],
        "schema": SCHEMA,
        "command": command(module, argv),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": name,
        "dirty": dirty,
        "machine": machine(device),
        "versions": versions(packages),
        "settings": settings,
        "seconds": 0.0,
        **{rows: [] for rows in KINDS[module][2]},
        "not_run": {},
    }


def default_path(module: str, data: Data) -> Path:
    words = re.sub(r"[^a-z0-9]+", "-", data["machine"]["device"].lower()).strip("-")
    device = words.removeprefix("nvidia-") or "unknown"
    marks = "-quick" * data["settings"].get("quick", False) + "-dirty" * data["dirty"]
    return RESULTS / f"{KINDS[module][1]}-{device}-{data['commit'][:12]}{marks}.json"


def others(data: Data) -> float:
    """Return the share of processor time that other work took, as the median over the cases."""
    rows = [row for *_, names in KINDS.values() for name in names for row in data.get(name, ())]
    return statistics.median([row.get("others") or 0.0 for row in rows] or [0.0])


def write(data: Data, path: Path) -> None:
    """Rewrite the whole file, so that it is complete whenever the run ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")
    text = json.dumps(data, indent=1)
    text = re.sub(r"\{[^{}]*\}", lambda found: " ".join(found[0].split()), text)  # a line per leaf
    scratch.write_text(text + "\n", encoding="utf-8")
    scratch.replace(path)


def read(path: Path, *modules: str) -> Data:
    """Read a record of one of these commands."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NotARecord(f"{path}: {error}") from error
    kinds = [KINDS[module][0] for module in modules]
    if not isinstance(data, dict) or data.get("kind") not in kinds or data.get("schema") != SCHEMA:
        raise NotARecord(f"{path} is not a JSON of {' or '.join(kinds)}, schema {SCHEMA}")
    return data
