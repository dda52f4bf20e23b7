"""The steps of a run. Each runs programs, and returns a line for each promise and its figures."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from . import ROOT, bundle, commands
from .commands import Finished, Running
from .report import Line, Report

Result = tuple[list[Line], Any]
PATIENCE = 12.0  # seconds that pytest may take to write its results after an interrupt
WORKERS = max(1, min(8, len(os.sched_getaffinity(0)) // 2))  # each has a CUDA context
# With small portions, tests start in order, and a hang delays few others. A hang ends its process
# with a traceback, and xdist starts another one.
OPTIONS = """-q --tb=short -p no:cacheprovider -p xdist.plugin --maxschedchunk=4
    --continue-on-collection-errors --max-worker-restart=50
    -o faulthandler_timeout=45 -o faulthandler_exit_on_timeout=true"""
PYTEST = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), *OPTIONS.split()]
# Plugins of other projects take seconds to import, and pytest shortens reasons to the columns.
PYTEST_ENV = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "COLUMNS": "240", "OMP_NUM_THREADS": "2"}
VERSIONS = """
import json, platform, torch, vae_fused as vf
from vae_fused import _ext
found = {"python": platform.python_version(), "torch": torch.__version__, "file": _ext.__file__}
found |= {"cuda": torch.version.cuda, "vae_fused": vf.__version__, "build": _ext.build_info}
found["has_cuda"] = _ext.has_cuda and torch.cuda.is_available()
print(json.dumps(found, default=str))
"""
KERNELS, PLANTED = "gpu/test_every_kernel.py", str(ROOT / "tests" / "gpu" / "planted_error.py")
# Folders and a selection. Tests that only a GPU can run come before the others that take a device.
TESTS = {
    "smoke": (KERNELS, "not headline"),
    "device-tests": ("gpu functional layers usage", "cuda"),
    "other-tests": ("functional layers usage package", "not cuda"),
}
SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck", "memcheck, planted error")
BENCHMARKS = {
    "bandwidth": ("plain 4096,moments 64,rssm 256,masked 64", ["vae_fused", "eager"]),
    "training-step": ("plain 128x20,plain 4096,digits,autoenc", ["vae_fused", "eager", "compile"]),
    "likelihoods": ("bernoulli 256x12288,1M,ways: nb,ways: zinb", []),
}
# The share of a copy's rate that a pass must reach. The shares of cases with options are guesses.
SHARES = {"plain 4096": 0.9, "moments": 0.8, "rssm": 0.5, "masked": 0.5}
# The least time of a step of eager and of compiled code in multiples of ours.
SPEEDUPS = {
    "plain 128x20 float32": (3.0, 2.0),
    "plain 4096x4096 float32": (6.0, 1.3),
    "plain 4096x4096 bfloat16": (6.0, 1.8),
}


@dataclasses.dataclass
class Steps:
    """The state of a run. ``device`` is "cpu" in tests of this package, and ``tests`` is theirs."""

    report: Report
    scratch: Path  # the working directory, which contains no sources
    device: str = "cuda"
    tests: list[str] | None = None
    path: list[Path] = dataclasses.field(default_factory=list)
    problem: str = ""

    def start(self, name: str, command: list[str], folder: Any = None, **more: str) -> Running:
        path = [*self.path, ROOT / "tests", os.environ.get("PYTHONPATH") or ROOT / "tests"]
        # Without the variables of a pytest that started this run.
        env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
        env |= {"PYTHONPATH": os.pathsep.join(map(str, path)), "PYTHONDONTWRITEBYTECODE": "1"}
        log = self.report.running / f"{name}.log"
        return Running(command, env | more, folder or self.scratch, log)

    def end(self, running: Running, seconds: float, patience: float = 0.0) -> Finished:
        done = running.wait(seconds, patience)
        self.report.file_log(running.log)
        return done

    def run(self, seconds: float, name: str, command: list[str], **more: Any) -> Finished:
        return self.end(self.start(name, command, **more), seconds)

    def step(self, name: str, seconds: float) -> Any:
        """A line for each promise, and figures. The step may take this many seconds."""
        if self.problem and name != "machine":
            return [Line(name, None, "there is no package to check")], None
        if name in TESTS or name in BENCHMARKS:
            return (self.pytest if name in TESTS else self.measure)(name, seconds)
        return getattr(self, name)(seconds)

    def pytest_command(self, folders: str, chosen: str) -> list[str]:
        files = [str(ROOT / "tests" / folder) for folder in folders.split()]
        return [*PYTEST, *(self.tests or files), "-k", chosen]

    def machine(self, seconds: float) -> Result:
        """Choose the package: that of the bundle, or else an installed one, but not the sources."""
        until, (manifest, problem) = time.monotonic() + seconds, bundle.load()
        self.run(seconds / 4, "nvidia-smi", ["nvidia-smi", "-q"])
        command, sources, kept = [sys.executable, "-c", VERSIONS], ROOT / "vae_fused", False
        for parts in ([] if problem else [["package", "modules"]]) + [["modules"]]:
            self.path = [bundle.FOLDER / part for part in parts if manifest]
            # On a machine that has just started, importing torch may take half a minute.
            done = self.run(until - time.monotonic(), "versions", command)
            found = json.loads((re.findall(r"^{.*}$", done.output, re.M) or ["{}"])[-1])
            file = Path(found.get("file", sources / "_ext.py"))
            kept = file.parent != sources and (found["has_cuda"] or self.device == "cpu")
            self.report.data["versions"] = found | {"bundle": manifest}
            problem += f"; {file}" + ("" if kept else f": {done.ended()}")
            if kept:
                break
        self.problem = "" if kept else problem
        return [Line("the package imports", kept or None, problem)], {"workers": WORKERS}

    def pytest(self, name: str, seconds: float) -> Result:
        """Even a single test runs in an xdist worker, which is replaced if a test ends it."""
        passed, earlier = self.report.folder / "passed.txt", self.scratch / "earlier.txt"
        passed.touch()
        shutil.copy(passed, earlier)
        more = {"GPU_CHECK_PASSED": str(passed), "GPU_CHECK_EARLIER": str(earlier), **PYTEST_ENV}
        command = [*self.pytest_command(*TESTS[name]), "-p", "gpu_plugin", "-n", str(WORKERS)]
        command += ["--junitxml", str(self.report.folder / f"{name}.xml")]
        done = self.end(self.start(name, command, **more), seconds, PATIENCE)
        return judge_tests(name, done), None

    def measure(self, name: str, seconds: float) -> Result:
        """Run benchmarks in the checkout. They prefer an installed package to its sources."""
        out, (cases, contenders) = self.scratch / f"{name}.json", BENCHMARKS[name]
        cases = cases if self.device == "cuda" else "plain 64x64,bernoulli 16x16"
        options = ["--case", *cases.split(","), "--seconds", "0.5", "--json", str(out)]
        if contenders:
            options += ["--dtype", "float32", "bfloat16", "--contender", *contenders]
            options += ["--budget", str(max(1.0, seconds - 15))]
        module = "benchmarks" if contenders else "benchmarks.losses"
        command = [sys.executable, "-m", module, "--device", self.device, *options]
        done = self.run(seconds, name, command, folder=ROOT)
        data = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
        kept = {0: None if data.get("not_run") else True, None: None}.get(done.status, False)
        line = Line(f"{name}: all measured", kept, done.ended())
        return [line, *judge_rows(data.get("results") or data.get("rows") or [])], data

    def sanitizers(self, seconds: float) -> Result:
        """All tools at once: most of their time is spent by one thread of the host."""
        until, binary = time.monotonic() + seconds, commands.find("compute-sanitizer")
        text, jobs = self.run(20, "sanitizer-help", [binary, "--help"]).output, {}
        for tool in SANITIZERS:
            command = commands.sanitizer(binary, tool.split(",")[0], text)
            tests = self.pytest_command(KERNELS, "small_odd")
            command += [sys.executable, PLANTED] if "planted" in tool else tests
            # Each tensor is a separate allocation, so the bytes beside it are out of bounds.
            more = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if tool[0] in "mi" else {}
            jobs[tool] = self.start(tool.replace(", ", "-"), command, **more, **PYTEST_ENV)
        ended = {tool: self.end(job, until - time.monotonic()) for tool, job in jobs.items()}
        return [judge_sanitizer(tool, done) for tool, done in ended.items()], None

    def counters(self, seconds: float) -> Result:
        """The counters are in the report. Its raw page, which names the kernels, is in the log."""
        binary, report = commands.find("ncu"), self.report.folder / "kernels.ncu-rep"
        command = commands.ncu(binary, report) + self.pytest_command(KERNELS, "headline")
        done = self.run(seconds - 5, "ncu", command)
        raw = self.run(5, "ncu-raw", [binary, "--import", str(report), "--csv", "--page", "raw"])
        kernels = re.findall(r'^"\d+".*?"([^"]*_kernel[^"]*)"', raw.output, re.M)
        name, detail = "ncu reads the headline kernels", f"{len(kernels)} launches; {done.ended()}"
        return [Line(name, bool(kernels) or None, detail)], kernels


def judge_tests(name: str, done: Finished) -> list[Line]:
    """A line for the step and one for each failed test, as in the summary of pytest."""
    failed = re.findall(r"^(?:FAILED|ERROR) (.*)$", done.output, re.M)
    passed = done.status == 0 and re.search(r"\b\d+ passed", done.output)
    kept = False if failed or done.status == 1 else True if passed else None
    return [Line(f"pytest {name}", kept, done.ended()), *(Line(test, False) for test in failed)]


def judge_sanitizer(tool: str, done: Finished) -> Line:
    """A planted error shows that the tool sees our kernels."""
    counts = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:errors?|hazards?)", done.output)
    found = int(counts[-1]) if counts else None  # without a summary it has not finished
    complete = re.search(r"^(\d+ passed|planted$)", done.output, re.M)
    failed = re.search(r"^\d+ failed", done.output, re.M)
    words = r"^.*(Invalid|Uninitialized|azard|Race rep|Barrier err|not supported|rror:).*$"
    first = re.search(words, done.output, re.M)  # the line that names the first error
    kept = False if found or failed else True if found == 0 and complete else None
    if "planted" in tool:
        kept = True if "Invalid __global__ read" in done.output else False if kept else None
    detail = f"findings: {found}; {first[0] if first else ''}; {done.ended()}"
    return Line(f"compute-sanitizer {tool}", kept, detail)


def judge_rows(rows: list[dict[str, Any]]) -> list[Line]:
    """The rows of either benchmark: shares of a copy's rate, and the speed of other code."""
    lines: list[Line] = []

    def at_least(name: str, least: float, value: float | None) -> None:
        kept = value is not None and value >= least  # None and NaN are not kept
        lines.append(Line(name, kept, f"{value}, must be at least {least}"))

    for row in rows:
        contenders, case = row.get("contenders", {}), row["case"]
        shares = contenders.get("vae_fused", {}).get("share_of_copy", {})
        for least in [least for part, least in SHARES.items() if case.startswith(part)]:
            for way in ("forward", "backward"):
                at_least(f"{case}, {way}: share of a copy's rate", least, shares.get(way))
        # Host time dominates in small steps, so they are timed by the wall clock.
        clock = "step_wall" if "128x20" in case else "step"
        for rival, least in zip(("eager", "compile"), SPEEDUPS.get(case, ()), strict=False):
            ratio = contenders.get(rival, {}).get("ratio", {}).get(clock)
            if rival in contenders:
                at_least(f"{case}, step: times as fast as {rival}", least, ratio)
        if row.get("target"):  # the target is a CPU's; 1.0 is a guess for a GPU
            at_least(f"{case}: times as fast as {row['contender']}", 1.0, row["ratio"]["median"])
    return lines
