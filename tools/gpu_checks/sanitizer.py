"""Calls compute-sanitizer on several programs in parallel, and reads its output."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gpu_checks import probe
from gpu_checks.bundle import Bundle
from gpu_checks.machine import find
from gpu_checks.package import Place
from gpu_checks.processes import Finished
from gpu_checks.report import FAIL, NOT_RUN, PASS, Promise, exactly
from gpu_checks.schedule import Outcome

ERROR_STATUS = 86  # of compute-sanitizer if it has found an error
DONE = "gpu_checks: done"  # the last line of a driver program
WRONG = "differs from the CPU by"  # raised by a driver program if a result is wrong
FAILED = '"status": "FAIL"'  # in a line of the probe
# The tool, its program, and whether the program makes an error on purpose. memcheck and racecheck
# come first and use the probe, which starts in a second, while torch takes ten.
JOBS = (
    ("memcheck", "probe", False),
    ("racecheck", "probe", False),
    ("memcheck", "driver", True),
    ("synccheck", "driver", False),
    ("initcheck", "driver", False),
)


def title(tool: str, plant: bool) -> str:
    return f"compute-sanitizer {tool} finds {'a planted error' if plant else 'nothing'}"


def command_line(binary: str, tool: str, help_text: str, program: list[str]) -> list[str]:
    """Filter kernels by the option that this version supports. Without a filter it is slower.

    The driver programs initialize all memory by copies, which initcheck sees under any filter.
    """
    command = [binary, "--tool", tool, "--error-exitcode", str(ERROR_STATUS), "--print-limit", "20"]
    for option in ("--kernel-name", "--kernel-regex"):
        if re.search(rf"{option}\b(?!-)", help_text):
            command += [option, "kns=vae_fused"]
            break
    if "--launch-timeout" in help_text:
        command += ["--launch-timeout", "0"]  # importing torch may take longer than the default
    if tool == "memcheck" and "--report-api-errors" in help_text:
        command += ["--report-api-errors", "no"]  # torch probes the API; our launches are checked
    return [*command, *program]


def findings(output: str) -> int | None:
    """The number of errors or hazards in the last summary; None without a summary."""
    counts = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:errors?|hazards?)", output)
    return int(counts[-1]) if counts else None


def first_complaint(output: str) -> str:
    """The first line that names an error, without the tool's prefix."""
    prefix = re.compile(r"^=+ ?")
    lines = [prefix.sub("", line).strip() for line in output.splitlines()]
    lines = [line for line in lines if '"status": "PASS"' not in line]  # lines of the probe
    for words in (
        "Invalid|Uninitialized|hazard|Race reported|Barrier error",
        "FAIL|rror|not supported",
    ):
        for line in lines:
            if re.search(words, line) and "SUMMARY" not in line:
                return line[:200]
    return lines[-1][:200] if lines else "no output"


def judge(tool: str, done: Finished, complete: bool) -> Promise:
    """`complete`: the program itself finished without an error."""
    name = title(tool, False)
    found = findings(done.output)
    if found:
        detail = f"{found} findings; the first: {first_complaint(done.output)}"
        return Promise(name, FAIL, "0", str(found), detail)
    if WRONG in done.output or FAILED in done.output:
        return Promise(name, FAIL, "0", "", first_complaint(done.output))
    if found is None or not complete:
        detail = f"not run: {done.ended()}; {first_complaint(done.output)}"
        return Promise(name, NOT_RUN, "0", "", detail)
    return exactly(name, 0, found)


def planted(tool: str, done: Finished) -> Promise:
    """Whether the tool reports the program's deliberate error, which shows that it sees kernels."""
    name = title(tool, True)
    words = {"memcheck": "Invalid __global__ read", "initcheck": "Uninitialized __global__"}[tool]
    if words in done.output:
        return Promise(name, PASS)
    if DONE in done.output and findings(done.output) == 0:
        return Promise(name, FAIL, detail="it reports nothing: it does not see the kernels")
    detail = f"not run: {done.ended()}; {first_complaint(done.output)}"
    return Promise(name, NOT_RUN, detail=detail, optional=True)


def check(
    place: Place, timeout: float, binary: str, tool: str, program: list[str], plant: bool
) -> tuple[Promise, dict[str, Any]]:
    """One program under one tool."""
    name = f"{'planted-' if plant else ''}{tool}"
    text = place.run([binary, "--help"], 20, f"{name}-help").output
    command = command_line(binary, tool, text, program)
    env = place.env()
    if tool in ("memcheck", "initcheck"):
        # Each tensor is a separate allocation, so the bytes beside it are out of bounds.
        env["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    done = place.run(command, timeout, name, env)
    complete = DONE in done.output or (program[0].endswith("probe") and done.status == 0)
    promise = planted(tool, done) if plant else judge(tool, done, complete)
    figures: dict[str, Any] = {
        "command": [Path(c).name if os.path.isabs(c) else c for c in command],
        "findings": findings(done.output),
        "ended": done.ended(),
    }
    if promise.verdict != PASS:
        figures["output"] = done.output[:3000] + "\n...\n" + done.tail(30)
    return promise, figures


def run(
    place: Place, bundle: Bundle, timeout: float, no_package: str, before: list[Promise]
) -> Outcome:
    """Run all jobs in parallel, except those that passed in an earlier call.

    Without a probe or a package, the jobs use the other one.
    """
    binary = find("compute-sanitizer")
    kept = {p.promise: p for p in before if p.verdict == PASS}

    def job(tool: str, what: str, plant: bool) -> tuple[Promise, dict[str, Any]]:
        name = title(tool, plant)
        if name in kept:
            return kept[name], {"ended": "passed in an earlier call"}
        if binary is None:
            reason = "not run: there is no compute-sanitizer here"
            return Promise(name, NOT_RUN, detail=reason, optional=plant), {}
        if bundle.probe and (what == "probe" or (no_package and not plant)):
            program = probe.command(place, bundle, "correctness", "--tiny")
        elif no_package:
            return Promise(name, NOT_RUN, detail=f"not run: {no_package}", optional=plant), {}
        else:
            program = place.drive(f"planted-{tool}" if plant else "sanitize")
        return check(place, timeout, binary, tool, program, plant)

    with ThreadPoolExecutor(len(JOBS)) as pool:
        results = list(pool.map(lambda each: job(*each), JOBS))
    figures = {promise.promise: found for promise, found in results}
    return Outcome([promise for promise, _ in results], figures)
