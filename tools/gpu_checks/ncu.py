"""ncu: counters and stall reasons of the headline kernels, as a report file and as figures."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

from gpu_checks import probe
from gpu_checks.bundle import Bundle
from gpu_checks.machine import find
from gpu_checks.package import Place
from gpu_checks.processes import Finished
from gpu_checks.report import NOT_RUN, PASS, Promise, exactly, read_lines
from gpu_checks.sanitizer import first_complaint
from gpu_checks.schedule import Outcome

TITLE = "ncu reads the counters of the headline kernels"
KERNELS = "regex:forward_kernel|backward_kernel"
LOCAL = tuple(f"smsp__sass_inst_executed_op_local_{op}.sum" for op in ("ld", "st"))
BASIC = ("gpu__time_duration.sum", "launch__registers_per_thread")
METRICS = (
    *BASIC,
    *LOCAL,
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "dram__bytes_read.sum",
    "dram__bytes_write.sum",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "smsp__inst_executed.sum",
    "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "lts__t_sectors_op_read.sum",
    "lts__t_sectors_op_write.sum",
    "lts__t_sector_hit_rate.pct",
    "l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum",
    "l1tex__t_sectors_pipe_lsu_mem_global_op_st.sum",
)
# WarpStateStats has the stall reasons, SourceCounters those of each instruction.
SECTIONS = (
    *("SpeedOfLight", "WarpStateStats", "SchedulerStats", "MemoryWorkloadAnalysis"),
    *("MemoryWorkloadAnalysis_Tables", "LaunchStats", "Occupancy", "InstructionStats"),
    "SourceCounters",
)
# Sets of sections to try in turn: a version of ncu stops at a name that it does not support.
ATTEMPTS = ((SECTIONS, METRICS), (("WarpStateStats",), METRICS), ((), METRICS), ((), BASIC))
# The metrics of each launch in the JSON; the report file has all metrics.
KEPT = re.compile(
    r"issue_stalled|issue_active|lts__t_sector|op_local|dram__bytes|dram__throughput|time_duration"
    r"|registers_per_thread|inst_executed.sum$|warps_active|sm__throughput|global_op_(ld|st).sum"
)


def collect_command(
    binary: str,
    report: Path,
    sections: tuple[str, ...],
    metrics: tuple[str, ...],
    program: list[str],
) -> list[str]:
    """The clocks are not locked: other programs may share them, and other steps measure time."""
    command = [binary, "--force-overwrite", "--export", str(report), "--clock-control", "none"]
    for section in sections:
        command += ["--section", section]
    return [*command, "--kernel-name", KERNELS, "--metrics", ",".join(metrics), *program]


def import_command(binary: str, report: Path) -> list[str]:
    return [binary, "--import", str(report), "--csv", "--page", "raw", "--print-units", "base"]


def number(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None


def parse(output: str) -> list[dict[str, object]]:
    """A dict for each launch: its kernel and its metrics, None for a metric without a value.

    The table starts at the line that begins with "ID". Lines of ncu and of the program may occur
    before, between and after its rows. Each metric has a row or, with `--page raw`, a column.
    """
    lines = output.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        return []
    table = [line for line in lines[start:] if line.startswith('"')]
    launches: dict[str, dict[str, object]] = {}
    for row in csv.DictReader(table):
        if number(row.get("ID") or "") is None:
            continue  # the row of units in a table with a column for each metric
        launch = launches.setdefault(row["ID"], {"kernel": row.get("Kernel Name", "")})
        if row.get("Metric Name"):
            launch[row["Metric Name"]] = number(row.get("Metric Value") or "")
        else:
            for name, value in row.items():
                if name and "__" in name:
                    launch[name] = number(value or "")
    return list(launches.values())


def short(kernel: str) -> str:
    """'void a::b::forward_kernel<float, (Access)0>(Params)' -> 'forward_kernel<float, (Access)0>'.

    A mangled name stays as it is.
    """
    plain = re.sub(r"<unnamed>::|\(anonymous namespace\)::|\b\w+::", "", kernel)
    found = re.search(r"\w+_kernel<.*?>(?=\()|\w+_kernel", plain)
    return found[0] if found and not kernel.startswith("_Z") else kernel


def name_cases(launches: list[dict[str, object]], rows: list[dict[str, Any]]) -> None:
    """Set the case of each launch from the probe's lines, if their numbers agree."""
    cases = [row["case"] for row in rows for _ in range(row.get("launches", 0)) if "case" in row]
    if len(cases) == len(launches):
        for launch, case in zip(launches, cases, strict=True):
            launch["case"] = case


def judge(launches: list[dict[str, object]]) -> list[Promise]:
    """One line for each case or kernel; the judged figures of its launches are equal."""
    promises = []
    titles = [str(launch.get("case") or short(str(launch["kernel"]))) for launch in launches]
    for title in dict.fromkeys(titles):
        name = f"{title}: instructions on local memory"
        mine = [launch for launch, its in zip(launches, titles, strict=True) if its == title]
        spills = [launch.get(metric) for launch in mine for metric in LOCAL]
        if None in spills:
            detail = "not available: ncu gives no value"
            promises.append(Promise(name, NOT_RUN, "0", detail=detail, optional=True))
        else:
            promises.append(exactly(name, 0, int(max(float(str(s)) for s in spills))))
    return promises


def derive(launch: dict[str, object], elements: int) -> None:
    """Instructions and bytes per element."""
    instructions = launch.get("smsp__inst_executed.sum")
    if isinstance(instructions, float):  # counted per warp
        launch["instructions_per_element"] = round(32 * instructions / elements, 2)
    moved = [launch.get(f"dram__bytes_{way}.sum") for way in ("read", "write")]
    if all(isinstance(m, float) for m in moved):
        launch["dram_bytes_per_element"] = round(sum(float(str(m)) for m in moved) / elements, 2)


def run(
    place: Place, bundle: Bundle, timeout: float, no_package: str, report: Path, exponent: int = 24
) -> Outcome:
    """Collects from the probe's headline kernels or, without a probe, from a driver program."""
    binary = find("ncu")
    lines = place.scratch / "profile.jsonl"
    if bundle.probe:
        program = probe.command(place, bundle, "profile", "--out", str(lines))
    else:
        program = place.drive("profile", "--exponent", str(exponent))
    reason = "there is no ncu here" if binary is None else "" if bundle.probe else no_package
    if binary is None or reason:
        absent = Promise(TITLE, NOT_RUN, detail=f"not run: {reason}", optional=True)
        return Outcome([absent], reason=reason)
    report.unlink(missing_ok=True)
    done, launches = Finished(None, "", 0.0), []
    left = timeout
    for sections, metrics in ATTEMPTS:
        lines.unlink(missing_ok=True)
        command = collect_command(binary, report, sections, metrics, program)
        done = place.run(command, max(1.0, left - 4), "ncu")
        left -= done.seconds
        if report.exists():
            raw = place.run(import_command(binary, report), max(2.0, left), "ncu-raw")
            launches = parse(raw.output)
        if launches or left < 5:
            break
    name_cases(launches, read_lines(lines))
    for launch in launches:
        derive(launch, 2**exponent)
    kept = [{k: v for k, v in one.items() if "__" not in k or KEPT.search(k)} for one in launches]
    figures = {"elements": 2**exponent, "launches": kept, "ended": done.ended()}
    if not launches:
        figures["output"] = done.tail(30)
        reason = f"{done.ended()}; {first_complaint(done.output)}"
        absent = Promise(TITLE, NOT_RUN, detail=f"not run: {reason}", optional=True)
        return Outcome([absent], figures, reason)
    size = f"{report.stat().st_size / 1e6:.1f} MB in {report.name}"
    found = Promise(TITLE, PASS, "", f"{len(launches)} launches", size)
    return Outcome([found, *judge(launches)], figures)
