"""tools/gpu_check without a GPU: correct verdicts, a budget that is kept, and no lost results.

The tests find processes by name, so two of them cannot run at the same time. With several workers,
one worker runs all tests of a file (``--dist loadfile``).
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nvidia_stubs
import pytest
from conftest import native

import vae_fused
from tools.gpu_check import ROOT, bundle, commands, report, steps
from tools.gpu_check.__main__ import RESERVE, SHARES, run_steps
from tools.gpu_check.commands import Finished
from tools.gpu_check.report import Line, Report, overall


def processes(word: str) -> list[int]:
    """The processes with this argument."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if word.encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except (OSError, ValueError):
            continue
    return found


def wait_for(condition: Any, seconds: float = 60.0) -> bool:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def started(code: str, log: Path) -> commands.Running:
    return commands.Running([sys.executable, "-c", code], dict(os.environ), log.parent, log)


# --------------------------------------------------------------------------------------------------
# Processes
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("waits", [True, False])
def test_a_command_ends_with_everything_that_it_started(tmp_path: Path, waits: bool) -> None:
    sleep = f"86398.{os.getpid()}{int(waits)}"  # seconds, by which the process is found
    code = f"import subprocess; child = subprocess.Popen(['sleep', '{sleep}'])"
    code += f"; print('started', flush=True); {waits} and child.wait()"
    running = started(code, tmp_path / "log")
    assert wait_for(lambda: b"started" in running.log.read_bytes())
    done = running.wait(1 if waits else 60)
    assert done.status == (None if waits else 0) and done.output == "started\n"
    assert wait_for(lambda: not processes(sleep), 5) and not commands.Running.every


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.default_int_handler])
def test_a_command_may_write_its_results_after_the_interrupt(tmp_path: Path, handler: Any) -> None:
    code = """
import time
print("begun", flush=True)
try: time.sleep(60)
except KeyboardInterrupt: print("results")
"""
    previous = signal.signal(signal.SIGINT, handler)  # a shell in the background ignores it
    try:
        done = started(code, tmp_path / "log").wait(12, patience=9)
    finally:
        signal.signal(signal.SIGINT, previous)
    assert done.status is None and done.output.split() == ["begun", "results"]
    assert done.ended() == "stopped: begun | results"


# --------------------------------------------------------------------------------------------------
# Verdicts
# --------------------------------------------------------------------------------------------------


def test_what_was_not_run_is_not_a_pass() -> None:
    assert overall(["pass", "pass"]) == "pass"
    assert overall(["pass", "not run"]) == overall([]) == "not run"
    assert overall(["not run", "fail", "pass"]) == "fail"
    assert report.STATUS == {"pass": 0, "fail": 1, "no gpu": 2, "not run": 3}


@pytest.mark.parametrize(
    ("output", "status", "kept", "failures"),
    [
        ("5 passed in 2 s", 0, True, []),
        ("5 passed, 1 skipped in 2 s", 0, True, []),
        ("FAILED tests/a.py::b - no\n1 failed, 4 passed in 2 s", 1, False, ["tests/a.py::b - no"]),
        ("FAILED tests/a.py::b - no\n1 failed, 4 passed", None, False, ["tests/a.py::b - no"]),
        ("ERROR tests/a.py - cannot import", 2, False, ["tests/a.py - cannot import"]),
        ("4 passed in 2 s\n!!! KeyboardInterrupt !!!", None, None, []),
        ("5 skipped in 1 s", 0, None, []),
        ("no tests ran", 5, None, []),
        ("ImportError", 4, None, []),
    ],
)
def test_pytest_passes_only_if_it_ended_with_tests_that_passed(
    output: str, status: int | None, kept: bool | None, failures: list[str]
) -> None:
    first, *others = steps.judge_tests("tests", Finished(status, output))
    assert first.kept is kept and [line.name for line in others] == failures
    assert all(line.kept is False for line in others)


CLEAN = "========= COMPUTE-SANITIZER\n33 passed in 9 s\n========= ERROR SUMMARY: 0 errors\n"
INVALID = """========= COMPUTE-SANITIZER
========= Invalid __global__ read of size 16 bytes
=========     at void vae_fused::cuda::forward_kernel<float, (int)4>(ForwardParams, int)+0x100
========= ERROR SUMMARY: 7 errors
"""
RACE = """========= Error: Race reported between Write access at forward_kernel+0x1 and Read access
33 passed in 9 s
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""
NO_RACE = "33 passed\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"
WRONG = "1 failed, 32 passed in 9 s\n========= ERROR SUMMARY: 0 errors\n"
REFUSED = "========= Error: Device not supported.\n========= ERROR SUMMARY: 0 errors\n"


@pytest.mark.parametrize(
    ("output", "kept", "planted", "words"),
    [
        (CLEAN, True, None, "findings: 0"),
        (CLEAN.replace("33 passed in 9 s", "planted"), True, False, "findings: 0"),
        (NO_RACE, True, None, "findings: 0"),
        (INVALID, False, True, "findings: 7; ========= Invalid __global__ read"),
        (RACE, False, None, "findings: 1; ========= Error: Race reported"),
        (WRONG, False, None, "1 failed"),
        (REFUSED, None, None, "Device not supported"),
        ("", None, None, "stopped"),
        ("Traceback\nImportError: planted", None, None, "ImportError: planted"),
    ],
)
def test_a_sanitizer_passes_only_if_it_saw_the_kernels_and_found_nothing(
    output: str, kept: bool | None, planted: bool | None, words: str
) -> None:
    done = Finished(None if output == "" else 0, output)
    line = steps.judge_sanitizer("memcheck", done)
    assert line.kept is kept and words in line.detail
    # With a planted error, a tool that reports nothing is no witness.
    also = steps.judge_sanitizer("memcheck, planted error", done).kept
    assert planted is None or also is planted


def test_kernels_are_filtered_by_the_option_that_the_sanitizer_has() -> None:
    new = "--kernel-name arg\n--kernel-name-exclude arg\n--report-api-errors arg"
    assert commands.sanitizer("cs", "racecheck", new)[-2:] == ["--kernel-name", "kns=vae_fused"]
    assert "--report-api-errors" in commands.sanitizer("cs", "memcheck", new)
    assert "--kernel-regex" in commands.sanitizer("cs", "racecheck", "--kernel-regex arg")
    none = commands.sanitizer("cs", "racecheck", "--kernel-name-exclude arg")
    assert not any("kns" in word for word in none)


def row(case: str, share: float, eager: float | None = None) -> dict[str, Any]:
    ours = {"share_of_copy": {"forward": share, "backward": 0.99}, "ratio": {"step": 1.0}}
    rivals = {} if eager is None else {"eager": {"ratio": {"step": eager, "step_wall": 4.0}}}
    return {"case": case, "contenders": {"vae_fused": ours, **rivals}}


def test_a_share_of_a_copy_and_a_speedup_have_lower_bounds() -> None:
    def kept(*rows: dict[str, Any]) -> list[bool | None]:
        return [line.kept for line in steps.judge_rows(list(rows))]

    assert kept(row("plain 4096x4096 float32", 0.9)) == [True, True]
    assert kept(row("plain 4096x4096 float32", 0.89)) == [False, True]
    assert kept(row("moments 64x8x256x256 bfloat16", 0.8)) == [True, True]
    assert kept(row("plain 4096x4096 float32", math.nan)) == [False, True]
    assert kept({"case": "plain 4096x4096 float32", "contenders": {}}) == [False, False]
    assert kept(row("plain 4096x4096 float32", 0.95, 6.1)) == [True, True, True]
    assert kept(row("plain 4096x4096 bfloat16", 0.95, 5.9)) == [True, True, False]
    assert kept(row("plain 128x20 float32", 0.1, 2.0)) == [True]  # by the wall clock, 4.0
    loss: dict[str, Any] = {"case": "gaussian 1M", "contender": "eager", "target": 6.0}
    assert kept({**loss, "ratio": {"median": 1.1}}, {"case": "gaussian 1M"}) == [True]
    assert kept({**loss, "ratio": {"median": 0.9}}) == [False]


def test_the_records_of_the_benchmarks_have_the_rows_that_are_judged() -> None:
    """Every judged case exists, with its clock, in a record of the command that is called."""
    results = ROOT / "benchmarks" / "results"
    latents = json.loads(max(results.glob("bench-*.json")).read_text())
    losses = json.loads(max(results.glob("losses-*.json")).read_text())
    cases = [found["case"] for found in latents["results"]]
    assert {"plain 4096x4096 float32", "plain 128x20 float32"} <= set(cases)
    shares = [line for line in steps.judge_rows(latents["results"]) if "share of" in line.name]
    assert shares and all("None" not in line.detail for line in shares)
    speedups = steps.judge_rows(losses["rows"])
    assert speedups and all("None" not in line.detail for line in speedups)


# --------------------------------------------------------------------------------------------------
# Steps and their results
# --------------------------------------------------------------------------------------------------


def test_steps_fail_alone_and_results_are_on_disk_before_the_next_begins(tmp_path: Path) -> None:
    class Planted(steps.Steps):
        def step(self, name: str, seconds: float) -> steps.Result:
            self.given = {**getattr(self, "given", {}), name: seconds}
            if name == "smoke":
                raise RuntimeError("planted")
            if name == "bandwidth":
                self.seen = json.loads(self.report.path.read_text())["steps"]
                return [], None
            return [Line("kept", True)], {"n": 1}

    made = Report(report.new_folder(tmp_path, "NVIDIA H200 NVL", "0123abc-dirty"), "first", "0123")
    planted = Planted(made, tmp_path)
    run_steps(planted, ["machine", "smoke", "bandwidth"], RESERVE + 62.0)
    assert {name: found["verdict"] for name, found in planted.seen.items()} == {
        "machine": "pass", "smoke": "not run"
    }  # fmt: skip
    assert "planted" in planted.seen["smoke"]["lines"][0][2]
    data = json.loads(made.path.read_text())
    assert data["steps"]["bandwidth"]["verdict"] == data["verdict"] == "not run"
    # A step also gets what the earlier ones left: here nearly all of their time.
    unit = 62.0 / sum(SHARES[name] for name in ("machine", "smoke", "bandwidth"))
    assert planted.given["machine"] == pytest.approx(unit * SHARES["machine"], abs=0.5)
    assert planted.given["bandwidth"] == pytest.approx(62.0, abs=0.5)
    assert made.folder.name == "gpu-h200-nvl-0123abc-dirty"
    assert report.new_folder(tmp_path, "H200 NVL", "0123abc-dirty").name.endswith("-dirty-2")


# Simulates a sticky error: after it, the process cannot use its device.
SUITE = """
import os, sys, time, types
import pytest

def use_the_device():
    if "torch" in sys.modules: sys.modules["torch"].cuda.synchronize()

def lose_the_device():
    def synchronize(): raise RuntimeError("CUDA error: an illegal memory access\\nmore")
    cuda = types.SimpleNamespace(is_initialized=lambda: True, synchronize=synchronize)
    sys.modules["torch"] = types.SimpleNamespace(cuda=cuda)

@pytest.mark.parametrize("x", [1, 2])
def test_cuda_passes(x): open("{ran}", "a").write(f"passes[{x}] ")
def test_cuda_loses_the_device(): lose_the_device() if os.path.exists("{fault}") else None
def test_cuda_follows_that(): use_the_device()
def test_cuda_ends_the_process(): os._exit(3) if os.path.exists("{fault}") else None
def test_cuda_follows_the_end(): use_the_device()
def test_of_small_odd_and_headline_shapes(): pass
"""


class Machine:
    """A machine with stubs of NVIDIA's tools, and a suite of planted tests."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / "results"
        self.stubs = nvidia_stubs.install(folder / "bin")
        self.log, self.ran, self.fault = folder / "calls", folder / "ran", folder / "fault"
        self.log.touch()
        text = SUITE.replace("{ran}", str(self.ran)).replace("{fault}", str(self.fault))
        (folder / "test_planted.py").write_text(text)

    def start(self, *arguments: str, fault: str = "") -> subprocess.Popen[str]:
        env = {**os.environ, "STUBS_LOG": str(self.log), "STUBS_FAULT": fault}
        env["PATH"] = os.pathsep.join([str(self.stubs), env.get("PATH", "")])
        command = [sys.executable, "-m", "tools.gpu_check", *arguments, "--device", "cpu"]
        command += ["--tests", str(self.folder / "test_planted.py"), "--out", str(self.out)]
        return subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
        )

    def results(self) -> tuple[Path, dict[str, Any]]:
        (folder,) = self.out.iterdir()
        return folder, json.loads((folder / "report.json").read_text())


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_without_a_gpu_the_status_is_2(machine: Machine) -> None:
    run = machine.start("first", fault="nvidia-smi")
    output, _ = run.communicate(timeout=60)
    assert run.returncode == 2 and output == "no GPU: nvidia-smi names none\n"
    assert not machine.out.exists()


CHEAP = ["--only", "device-tests", "sanitizers", "counters"]


@native
@pytest.mark.slow
def test_the_second_call_does_what_the_first_did_not(machine: Machine) -> None:
    machine.fault.touch()
    run = machine.start("first", *CHEAP, fault="ncu")
    output, _ = run.communicate(timeout=240)
    folder, found = machine.results()
    assert run.returncode == 1 and str(folder) in output
    verdicts = {name: step["verdict"] for name, step in found["steps"].items()}
    assert verdicts == {
        "machine": "pass", "device-tests": "fail", "sanitizers": "pass", "counters": "not run"
    }, output  # fmt: skip
    failed = " ".join(line[0] for line in found["steps"]["device-tests"]["lines"][1:])
    assert "loses_the_device" in failed and "the CUDA context is lost" in failed
    assert "ends_the_process" in failed and "follows" not in failed
    assert found["device"]["name"] == "NVIDIA H200" and len(found["commit"]) >= 7
    assert found["versions"]["vae_fused"] == vae_fused.__version__
    assert not Path(found["versions"]["file"]).is_relative_to(ROOT / "vae_fused")
    passed = [line.split("::")[1] for line in (folder / "passed.txt").read_text().split()]
    assert sorted(passed) == sorted(
        f"test_cuda_{name}"
        for name in ("passes[1]", "passes[2]", "follows_that", "follows_the_end")
    )
    assert "==ERROR== planted" in (folder / "log.txt").read_text()

    machine.fault.unlink()
    machine.ran.unlink()
    run = machine.start("again", *CHEAP)
    output, _ = run.communicate(timeout=240)
    _, found = machine.results()
    assert run.returncode == 0 and found["verdict"] == "pass", output
    assert found["calls"][0]["steps"] == list(verdicts)
    assert found["calls"][1]["steps"] == ["machine", "device-tests", "counters"]
    assert not machine.ran.exists()  # tests that had passed
    assert found["steps"]["counters"]["figures"] == [nvidia_stubs.FORWARD] * 2
    assert (folder / "kernels.ncu-rep").exists()
    calls = machine.log.read_text()
    assert calls.count("--kernel-regex kns=vae_fused") == len(steps.SANITIZERS)
    assert len(list(folder.iterdir())) <= 8 and all(p.is_file() for p in folder.iterdir())

    run = machine.start("again", *CHEAP)
    run.communicate(timeout=240)
    assert run.returncode == 0 and machine.results()[1]["calls"][2]["steps"] == ["machine"]


@native
@pytest.mark.slow
def test_a_run_that_is_stopped_leaves_its_results_and_no_process(machine: Machine) -> None:
    run = machine.start("first", "--only", "counters", fault="hang ncu")
    assert wait_for(lambda: processes(nvidia_stubs.HANG))
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=60)
    assert run.returncode not in (0, 3)
    assert wait_for(lambda: not processes(nvidia_stubs.HANG), 10)
    _, found = machine.results()
    assert list(found["steps"]) == ["machine"] and found["verdict"] == "pass"
    run = machine.start("first", "--only", "counters", "--budget", "40", fault="hang ncu")
    begun = time.monotonic()
    run.communicate(timeout=120)
    assert run.returncode == 3 and time.monotonic() - begun < 46
    assert not processes(nvidia_stubs.HANG)


@native
@pytest.mark.slow
def test_the_benchmarks_run_as_they_are_called(machine: Machine) -> None:
    run = machine.start("first", "--only", "bandwidth")
    output, _ = run.communicate(timeout=300)
    _, found = machine.results()
    step = found["steps"]["bandwidth"]
    assert run.returncode == 0 and step["verdict"] == "pass", output
    cases = {row["case"] for row in step["figures"]["results"]}
    assert cases == {"plain 64x64 float32", "plain 64x64 bfloat16"}


# --------------------------------------------------------------------------------------------------
# The bundle
# --------------------------------------------------------------------------------------------------


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = tmp_path / "package"
    package.mkdir()
    (package / "_C.abi3.so").write_bytes(b"\0GLIBC_2.4\0GLIBC_2.17\0")
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "x.pyc").touch()

    def download(folder: Path) -> None:
        folder.mkdir()
        (folder / "one.py").touch()

    monkeypatch.setattr(bundle, "installed_package", lambda: package)
    monkeypatch.setattr(bundle, "download_modules", download)
    return tmp_path / "made"


def test_a_bundle_has_the_parts_and_says_what_they_need(parts: Path) -> None:
    said = bundle.make(parts)
    assert "python -m tools.gpu_check" in said and "glibc 2.17 or newer" in said
    files = {p.relative_to(parts).as_posix() for p in parts.rglob("*") if p.is_file()}
    assert files == {"manifest.json", "package/vae_fused/_C.abi3.so", "modules/one.py"}
    manifest, problem = bundle.load(parts)
    assert problem == "" and manifest["glibc"] == "2.17" and manifest["commit"]


def test_a_bundle_that_is_too_large_is_refused(parts: Path) -> None:
    with pytest.raises(SystemExit, match="the limit is 0 MB"):
        bundle.make(parts, limit=10)
    assert not (parts / "manifest.json").exists()


def test_a_bundle_of_other_sources_is_not_used(parts: Path, monkeypatch: Any) -> None:
    bundle.make(parts)
    monkeypatch.setattr(bundle, "sources_digest", lambda: "others")
    assert bundle.load(parts)[1] == "the bundle was made of other sources"
    assert bundle.load(parts / "absent") == ({}, "there is no bundle")


def test_a_package_without_cuda_is_not_bundled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "python", lambda *_: "False\n/site/vae_fused/_ext.py\n")
    with pytest.raises(SystemExit, match="lacks CUDA"):
        bundle.installed_package()
    monkeypatch.setattr(bundle, "python", lambda *_: "True\n/site/vae_fused/_ext.py\n")
    with pytest.raises(SystemExit, match="is not abi3"):
        bundle.installed_package()
