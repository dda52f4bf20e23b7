"""compute-sanitizer and ncu: how they are called, and what their output says."""

from __future__ import annotations

import csv
import os
import re
import shutil
import sys
from glob import glob
from pathlib import Path

from gpu_checks.package import TOOLS, Place
from gpu_checks.report import FAIL, NOT_RUN, PASS, Promise, exactly
from gpu_checks.run import Finished, Outcome

SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck")
ERROR_STATUS = 86  # of compute-sanitizer when it has found something
DONE = "gpu_checks: done"  # the driver's last line
WRONG = "differs from the CPU by"  # what it raises if a result does

NCU_BASIC = ("gpu__time_duration.sum", "launch__registers_per_thread")
NCU_METRICS = (
    *NCU_BASIC,
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "dram__bytes_read.sum",
    "dram__bytes_write.sum",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "smsp__inst_executed.sum",
    "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "smsp__sass_inst_executed_op_local_ld.sum",
    "smsp__sass_inst_executed_op_local_st.sum",
)


def find(name: str, *places: str) -> str | None:
    """A tool on the PATH or where toolkits put it; the newest if there are several."""
    found = shutil.which(name)
    if found:
        return found
    home = os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    for pattern in (f"{home}/bin/{name}", *places):
        hits = [p for p in sorted(glob(pattern)) if os.access(p, os.X_OK)]
        if hits:
            return hits[-1]
    return None


def driver(name: str, *arguments: str) -> list[str]:
    """A driver program of tools/gpu.py, as a command."""
    return [sys.executable, str(TOOLS / "gpu.py"), "--driver", name, *arguments]


# --- compute-sanitizer ---------------------------------------------------------------------------


def sanitizer_command(binary: str, tool: str, help_text: str, program: list[str]) -> list[str]:
    """Kernels are filtered by the option that this version has; unfiltered is slower, not worse.

    The driver initialises all memory by copies, which initcheck sees under any filter.
    """
    command = [binary, "--tool", tool, "--error-exitcode", str(ERROR_STATUS), "--print-limit", "20"]
    for option in ("--kernel-name", "--kernel-regex"):
        if re.search(rf"{option}\b(?!-)", help_text):
            command += [option, "kns=vae_fused"]
            break
    if "--launch-timeout" in help_text:
        command += ["--launch-timeout", "0"]  # importing torch may take longer than it waits for
    if tool == "memcheck" and "--report-api-errors" in help_text:
        command += ["--report-api-errors", "no"]  # torch probes; ours are checked after each launch
    return [*command, *program]


def sanitizer_findings(output: str) -> int | None:
    """How many errors or hazards the last summary counts; None without a summary."""
    counts = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:errors?|hazards?)", output)
    return int(counts[-1]) if counts else None


def first_complaint(output: str) -> str:
    """The first line that tells what is wrong, without the tool's prefix."""
    prefix = re.compile(r"^=+ ?")
    lines = [prefix.sub("", line).strip() for line in output.splitlines()]
    for words in ("Invalid|Uninitialized|hazard|Race reported|Barrier error", "rror|not supported"):
        for line in lines:
            if re.search(words, line) and "SUMMARY" not in line:
                return line[:200]
    return lines[-1][:200] if lines else "no output"


def judge_sanitizer(tool: str, done: Finished) -> Promise:
    name = f"compute-sanitizer {tool} finds nothing"
    found = sanitizer_findings(done.output)
    if found:
        detail = f"{found} findings; the first: {first_complaint(done.output)}"
        return Promise(name, FAIL, "0", str(found), detail)
    if WRONG in done.output:
        return Promise(name, FAIL, "0", "", first_complaint(done.output))
    if found is None or DONE not in done.output:
        detail = f"not run: {done.ended()}; {first_complaint(done.output)}"
        return Promise(name, NOT_RUN, "0", "", detail)
    return exactly(name, 0, found)


def planted(tool: str, done: Finished) -> Promise:
    """Whether the tool reports the error that the driver makes: that it looks at our kernels."""
    name = f"compute-sanitizer {tool} finds a planted error"
    words = {"memcheck": "Invalid __global__ read", "initcheck": "Uninitialized __global__"}[tool]
    if words in done.output:
        return Promise(name, PASS)
    if DONE in done.output and sanitizer_findings(done.output) == 0:
        return Promise(name, FAIL, detail="it reports nothing: it does not see the kernels")
    detail = f"not run: {done.ended()}; {first_complaint(done.output)}"
    return Promise(name, NOT_RUN, detail=detail, optional=True)


def sanitize(place: Place, timeout: float, tool: str, plant: bool = False) -> Outcome:
    binary = find("compute-sanitizer", "/usr/local/cuda*/compute-sanitizer/compute-sanitizer")
    title = f"compute-sanitizer {tool} finds {'a planted error' if plant else 'nothing'}"
    if binary is None:
        reason = "not run: there is no compute-sanitizer here"
        return Outcome([Promise(title, NOT_RUN, detail=reason, optional=plant)], reason=reason)
    name = f"{'planted-' if plant else ''}{tool}"
    text = place.run([binary, "--help"], 30, f"{name}-help").output
    command = sanitizer_command(
        binary, tool, text, driver(f"planted-{tool}" if plant else "sanitize")
    )
    env = place.env()
    if tool in ("memcheck", "initcheck"):
        # Each tensor is an allocation of its own: what lies beside it is out of bounds.
        env["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    done = place.run(command, timeout, name, env)
    promise = planted(tool, done) if plant else judge_sanitizer(tool, done)
    figures = {
        "command": [Path(c).name if os.path.isabs(c) else c for c in command],
        "findings": sanitizer_findings(done.output),
        "ended": done.ended(),
    }
    if promise.verdict != PASS:
        figures["output"] = done.output[:3000] + "\n...\n" + done.tail(30)
    return Outcome([promise], figures, done.ended())


# --- ncu -----------------------------------------------------------------------------------------


def ncu_command(binary: str, metrics: tuple[str, ...], program: list[str]) -> list[str]:
    """The clocks stay as they are: they are shared, and so are the other measurements' clocks."""
    return [
        *(binary, "--csv", "--print-units", "base", "--clock-control", "none"),
        *("--kernel-name", "regex:forward_kernel|backward_kernel"),
        *("--metrics", ",".join(metrics), *program),
    ]


def number(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None


def parse_ncu(output: str) -> list[dict[str, object]]:
    """A dict for each launch: its kernel, and the metrics that have a value.

    The table starts at the line that begins with "ID"; other lines of ncu and of the program may
    stand before, between and behind. A metric has a row, or (`--page raw`) a column.
    """
    lines = output.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        return []
    table = [line for line in lines[start:] if line.startswith('"')]
    launches: dict[str, dict[str, object]] = {}
    for row in csv.DictReader(table):
        if number(row.get("ID") or "") is None:
            continue  # the units of a table by columns
        launch = launches.setdefault(row["ID"], {"kernel": row.get("Kernel Name", "")})
        if row.get("Metric Name"):
            launch[row["Metric Name"]] = number(row.get("Metric Value") or "")
        else:
            for name, value in row.items():
                if name and "__" in name:
                    launch[name] = number(value or "")
    return list(launches.values())


def judge_ncu(launches: list[dict[str, object]]) -> list[Promise]:
    promises = []
    for launch in launches:
        kernel = str(launch["kernel"])
        title = "forward" if "forward_kernel" in kernel else "backward"
        dtype = launch.get("dtype")
        name = f"{title}{f' {dtype}' if dtype else ''}: instructions on local memory"
        spills = [launch.get(f"smsp__sass_inst_executed_op_local_{op}.sum") for op in ("ld", "st")]
        if None in spills:
            detail = "not available: ncu gives no value"
            promises.append(Promise(name, NOT_RUN, "0", detail=detail, optional=True))
        else:
            promises.append(exactly(name, 0, int(sum(float(str(s)) for s in spills))))
    return promises


def derive(launch: dict[str, object], numel: int) -> None:
    """Per element, as docs/design.md counts."""
    instructions = launch.get("smsp__inst_executed.sum")
    if isinstance(instructions, float):  # of a warp
        launch["instructions_per_element"] = round(32 * instructions / numel, 2)
    moved = [launch.get(f"dram__bytes_{way}.sum") for way in ("read", "write")]
    if all(isinstance(m, float) for m in moved):
        launch["dram_bytes_per_element"] = round(sum(float(str(m)) for m in moved) / numel, 2)


def dtype_of(kernel: str) -> str:
    """What a kernel stores, by its first template argument: of bfloat16, too, a later one is
    `Plain<float>`.
    """
    return "float32" if re.search(r"_kernel(<float\b|If)", kernel) else "bfloat16"


def ncu(place: Place, timeout: float, exponent: int = 24) -> Outcome:
    """Counters of one forward and one backward launch, in float32 and in bfloat16."""
    binary = find("ncu", "/opt/nvidia/nsight-compute/*/ncu", "/usr/local/cuda*/bin/ncu")
    title = "ncu reads the counters of both kernels"
    if binary is None:
        reason = "not available: there is no ncu here"
        return Outcome([Promise(title, NOT_RUN, detail=reason, optional=True)], reason=reason)
    program = driver("profile", "--exponent", str(exponent))
    done, launches = Finished(None, "", 0.0), []
    for metrics in (NCU_METRICS, NCU_BASIC):  # a name that this version does not know ends it
        done = place.run(ncu_command(binary, metrics, program), timeout / 2, "ncu")
        launches = parse_ncu(done.output)
        if launches:
            break
    for launch in launches:
        launch["dtype"] = dtype_of(str(launch["kernel"]))
        derive(launch, 2**exponent)
    figures = {"elements": 2**exponent, "launches": launches, "ended": done.ended()}
    if not launches:
        figures["output"] = done.tail(30)
        reason = f"not available: {done.ended()}; {first_complaint(done.output)}"
        return Outcome(
            [Promise(title, NOT_RUN, detail=reason, optional=True)], figures, reason=reason
        )
    found = Promise(title, PASS, "", f"{len(launches)} launches")
    return Outcome([found, *judge_ncu(launches)], figures)
