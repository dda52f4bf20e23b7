"""A description of the machine: the GPU by its driver, its clocks, the versions of tools."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from glob import glob
from pathlib import Path

from gpu_checks.package import Place
from gpu_checks.processes import Running
from gpu_checks.report import NOT_RUN, PASS, Promise
from gpu_checks.schedule import Outcome

FIELDS = (
    *("name", "driver_version", "pci.bus_id", "memory.total", "memory.used", "compute_cap"),
    *("clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "clocks.applications.graphics"),
    *("power.draw", "power.limit", "temperature.gpu", "ecc.mode.current", "mig.mode.current"),
    *("persistence_mode", "compute_mode", "utilization.gpu"),
)
WATCHED = (
    *("timestamp", "clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "utilization.gpu"),
    "clocks_event_reasons.active",
)
TOOL_PLACES = {
    "nvcc": ("/usr/local/cuda*/bin/nvcc",),
    "ncu": ("/opt/nvidia/nsight-compute/*/ncu", "/usr/local/cuda*/bin/ncu"),
    "compute-sanitizer": ("/usr/local/cuda*/compute-sanitizer/compute-sanitizer",),
}


def find(name: str) -> str | None:
    """A tool on the PATH or in a toolkit's usual folder; the newest if there are several."""
    found = shutil.which(name)
    if found:
        return found
    home = os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    for pattern in (f"{home}/bin/{name}", *TOOL_PLACES.get(name, ())):
        hits = [p for p in sorted(glob(pattern)) if os.access(p, os.X_OK)]
        if hits:
            return hits[-1]
    return None


def query(fields: tuple[str, ...]) -> dict[str, str]:
    """nvidia-smi's answer for the first GPU; empty without a GPU.

    nvidia-smi rejects a query that has an unknown field. The fields are then queried one at a time.
    """
    answer = smi(fields)
    if answer is None and len(fields) > 1 and smi(fields[:1]) is not None:
        answers = [smi((field,)) for field in fields]
        return {f: a[0] for f, a in zip(fields, answers, strict=True) if a}
    return dict(zip(fields, answer or (), strict=False))


def smi(fields: tuple[str, ...]) -> list[str] | None:
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = run.stdout.strip().splitlines()
    return [word.strip() for word in lines[0].split(",")] if lines else None


def gpu_name() -> str:
    return query(("name",)).get("name", "")


def watch(log: Path) -> Running | None:
    """Record clocks, power and temperature twice a second during the run."""
    fields = query(WATCHED)  # the supported ones: some names depend on the version
    if not fields:
        return None
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv", "-lms", "500"]
    return Running(command, env=None, cwd=None, log=log)


def version(place: Place, tool: str) -> str:
    binary = find(tool)
    if binary is None:
        return "not found"
    output = place.run([binary, "--version"], 15, f"{tool}-version").output
    found = re.search(r"[Vv]ersion\s+([\w.]+)|release ([\d.]+)", output)
    return (found[1] or found[2]) if found else output.strip()[:80]


def describe(place: Place) -> Outcome:
    """The figures describe the GPU and the host; the log has nvidia-smi's whole output."""
    device = query(FIELDS)
    place.run(["nvidia-smi", "-q"], 15, "nvidia-smi")
    place.run(["nvidia-smi", "topo", "-m"], 15, "topology")
    tools = {tool: version(place, tool) for tool in TOOL_PLACES}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    host = {"cores": cores, "kernel": platform.release(), "python": platform.python_version()}
    name = "the driver answers"
    if device:
        promise = Promise(name, PASS, "", device.get("driver_version", ""))
    else:
        promise = Promise(name, NOT_RUN, detail="not run: nvidia-smi names no GPU")
    return Outcome([promise], {"gpu": device, "host": host, "tools": tools})
