"""Stubs of NVIDIA's tools, for the tests of tools/gpu_check.

`install(folder)` puts them into a folder. The file STUBS_LOG records their calls. STUBS_FAULT names
a tool that fails, or "hang NAME".
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

HANG = "86399"  # seconds, by which a test finds the processes
FORWARD = "void vae_fused::cuda::forward_kernel<float, (vae_fused::Access)0>(Params)"


def install(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in ("nvidia-smi", "ncu", "compute-sanitizer"):
        script = folder / name
        here = str(Path(__file__).resolve().parent)
        script.write_text(
            f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {here!r})\n"
            f"import nvidia_stubs\nsys.exit(nvidia_stubs.main({name!r}, sys.argv[1:]))\n"
        )
        script.chmod(0o755)
    return folder


def main(name: str, arguments: list[str]) -> int:
    with open(os.environ["STUBS_LOG"], "a", encoding="utf-8") as file:
        print(name, *arguments, file=file)
    fault = os.environ.get("STUBS_FAULT", "")
    if fault == name:
        print("==ERROR== planted")
        return 9
    if fault == f"hang {name}" and "--help" not in arguments:
        subprocess.run(["sleep", HANG])
    tools = {"nvidia-smi": nvidia_smi, "ncu": ncu, "compute-sanitizer": sanitizer}
    return tools[name](arguments)


def nvidia_smi(arguments: list[str]) -> int:
    if "dmon" in arguments:
        print("# Date Time gpu pwr", flush=True)
        time.sleep(float(HANG))
    print("NVIDIA H200, 580.1, 9.0")
    return 0


def ncu(arguments: list[str]) -> int:
    if "--import" in arguments:
        print('==PROF== x\n"ID","Kernel Name","smsp__inst_executed.sum"\n"","","inst"')
        print(f'"0","{FORWARD}","15,728,640"\n"1","{FORWARD}","7"')
        return 0
    status = subprocess.run(arguments[arguments.index(sys.executable) :]).returncode
    Path(arguments[arguments.index("--export") + 1]).write_text("the report of a stub\n")
    return status


def sanitizer(arguments: list[str]) -> int:
    if "--help" in arguments:
        print("--kernel-name-exclude arg\n--kernel-regex arg\n--report-api-errors arg")
        return 0
    tool = arguments[arguments.index("--tool") + 1]
    command = arguments[arguments.index(sys.executable) :]
    if "planted" in command[-1]:
        print("========= Invalid __global__ read of size 4 bytes\n========= ERROR SUMMARY: 1 error")
        return 86
    status = subprocess.run(command).returncode
    kind = "RACECHECK" if tool == "racecheck" else "ERROR"
    print(f"========= {kind} SUMMARY: 0 {'hazards displayed' if tool == 'racecheck' else 'errors'}")
    return status
