"""Stubs of the driver, of NVIDIA's tools and of the probe, for the tests of tools/gpu.py.

`install(folder)` puts them on a path. They record each call in the file GPU_STUBS_LOG. The variable
GPU_STUBS_FAULT selects a fault: "hang NAME", "fail NAME" or "crash NAME", where NAME is a program
or a section of the probe.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = ("nvidia-smi", "ncu", "compute-sanitizer", "probe")
HANG = "86399"  # seconds; the argument by which a test finds the processes
DEVICE = {"name": "NVIDIA H200", "driver_version": "580.1", "compute_cap": "9.0"}
KERNELS = [
    f"void vae_fused::cuda::{way}_kernel<{dtype}, (vae_fused::Access){access}>(Params)"
    for way in ("forward", "backward")
    for dtype in ("float", "vae_fused::math::BFloat16")
    for access in (0, 1)
]
METRICS = {
    "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio": 7.5,
    "smsp__issue_active.avg.pct_of_peak_sustained_active": 61.0,
    "lts__t_sectors_op_read.sum": 4194304,
    "smsp__sass_inst_executed_op_local_ld.sum": 0,
    "smsp__sass_inst_executed_op_local_st.sum": 0,
    "smsp__inst_executed.sum": 15728640,
}


def install(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in PROGRAMS:
        script = folder / name
        here = str(Path(__file__).resolve().parent)
        script.write_text(
            f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {here!r})\n"
            f"import gpu_stubs\nsys.exit(gpu_stubs.main({name!r}, sys.argv[1:]))\n"
        )
        script.chmod(0o755)
    return folder


def environment(folder: Path, log: Path, fault: str = "") -> dict[str, str]:
    """Variables for a process that uses the programs in `folder`."""
    env = {**os.environ, "GPU_STUBS_LOG": str(log), "GPU_STUBS_FAULT": fault}
    env["PATH"] = os.pathsep.join([str(folder), env.get("PATH", "")])
    return env


def main(name: str, arguments: list[str]) -> int:
    log = os.environ.get("GPU_STUBS_LOG")
    if log:
        with open(log, "a", encoding="utf-8") as file:
            file.write(" ".join([name, *arguments]) + "\n")
    programs = {"nvidia-smi": nvidia_smi, "ncu": ncu, "compute-sanitizer": sanitizer}
    return programs.get(name, probe)(arguments)


def faulty(name: str) -> int:
    """Hang with a child in another session, or return the exit status of the fault, or 0."""
    kind, _, what = os.environ.get("GPU_STUBS_FAULT", "").partition(" ")
    if what != name:
        return 0
    if kind == "hang":
        subprocess.Popen(["sleep", HANG], start_new_session=True)
        time.sleep(float(HANG))
    if kind == "crash":
        os.abort()
    return 1


def option(arguments: list[str], name: str) -> str:
    return arguments[arguments.index(name) + 1] if name in arguments else ""


def nvidia_smi(arguments: list[str]) -> int:
    if faulty("nvidia-smi"):
        print("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver")
        return 9
    query = next((a for a in arguments if a.startswith("--query-gpu=")), "")
    fields = query.partition("=")[2].split(",")
    while True:
        print(", ".join(DEVICE.get(field, "[N/A]") for field in fields), flush=True)
        if "-lms" not in arguments:
            return 0
        time.sleep(0.1)


def program_of(arguments: list[str]) -> list[str]:
    """The command after the options of a tool, which begins with an absolute path."""
    start = next(i for i, a in enumerate(arguments) if os.access(a, os.X_OK) and os.path.isabs(a))
    return arguments[start:]


def ncu(arguments: list[str]) -> int:
    if "--version" in arguments:
        print("NVIDIA (R) Nsight Compute Command Line Profiler\nVersion 2025.3.1.0")
        return 0
    if "--import" in arguments:
        names = ["ID", "Kernel Name", *METRICS]
        print(",".join(f'"{n}"' for n in names))
        print(",".join(f'"{n}"' for n in ["", "", *("unit" for _ in METRICS)]))
        for i, kernel in enumerate(KERNELS):
            print(",".join(f'"{v}"' for v in [i, kernel, *METRICS.values()]))
        return 0
    if faulty("ncu"):
        print("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission")
        return 1
    command = program_of(arguments)
    report = option(arguments, "--export")
    status = subprocess.run(command).returncode
    Path(report).write_text("the report of a stub\n")
    return status


def sanitizer(arguments: list[str]) -> int:
    if "--help" in arguments or "--version" in arguments:
        print("NVIDIA compute-sanitizer Version 2025.3\n--kernel-name arg\n--report-api-errors arg")
        return 0
    tool = option(arguments, "--tool")
    if faulty(tool):
        print("========= Error: Device not supported.\n========= ERROR SUMMARY: 0 errors")
        return 1
    command = program_of(arguments)
    if any(a.startswith("planted-") for a in command):
        print("========= Invalid __global__ read of size 4 bytes\n========= ERROR SUMMARY: 1 error")
        return 86
    if "sanitize" in command:  # other tests run this program, because it takes seconds
        print("gpu_checks: done")
        status = 0
    else:
        status = subprocess.run(command).returncode
    kind = "RACECHECK" if tool == "racecheck" else "ERROR"
    print(f"========= {kind} SUMMARY: 0 {'hazards' if tool == 'racecheck' else 'errors'}")
    return status


def probe(arguments: list[str]) -> int:
    section = option(arguments, "--section")
    out = option(arguments, "--out") or os.devnull
    rows: list[dict[str, object]] = [{"kind": "device", "name": DEVICE["name"]}]
    for case in KERNELS:
        row: dict[str, object] = {"kind": section, "case": short(case), "status": "PASS"}
        if section == "bandwidth":
            timed = {"mode": "graph", "us": 25, "share_of_copy": 0.8}
            rows.append(row | timed | {"contender": "shipped", "group": "shipped"})
            row |= timed | {"contender": "keys in shared", "group": "variant", "us": 20.0}
        rows.append(row)
        if section == "profile":
            rows[-1]["launches"] = 1
    with open(out, "a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
            file.flush()
            status = faulty(section)
            if status:
                failed = {"kind": section, "case": "planted", "status": "FAIL"}
                file.write(json.dumps(failed) + "\n")
                return status
        file.write(json.dumps({"kind": "summary", "status": "PASS"}) + "\n")
    return 0


def short(kernel: str) -> str:
    return kernel.partition("::cuda::")[2].partition("(Params")[0]
