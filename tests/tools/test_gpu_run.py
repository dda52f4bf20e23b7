"""A whole GPU run with stubs of the GPU's tools: it loses no result and leaves no process behind.

The runs use an unpacked bundle, which is what a machine with a GPU receives. The tests find
processes by name, so two tests cannot run at the same time: with several workers, one worker runs
all tests of a file (``--dist loadfile``).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import gpu_stubs
import pytest
from conftest import native

import vae_fused

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from gpu_checks import package, suite
from gpu_checks.bundle import Bundle
from gpu_checks.processes import execute
from gpu_checks.report import FAIL, NOT_RUN, PASS, ROOT

git = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="the tracked files are those of git")
STEPS = ["machine", "probe correctness", "probe bandwidth", "counters", "sanitizers"]
STEPS += ["smoke", "tests", "bandwidth", "likelihood", "step", "rest"]


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


def wait_for(condition, seconds: float = 60.0) -> bool:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


# --------------------------------------------------------------------------------------------------
# Processes
# --------------------------------------------------------------------------------------------------

# A child and two grandchildren, one of them in its own session, that sleep for `{}` seconds.
FAMILY = """
import subprocess, sys, time
subprocess.Popen(["sleep", "{0}"])
subprocess.Popen(["sleep", "{0}"], start_new_session=True)
print("started", flush=True)
if {1}: time.sleep({0})
"""


def test_a_command_is_stopped_at_its_limit_with_all_it_started(tmp_path):
    code = FAMILY.format("86398", True)
    done = execute([sys.executable, "-c", code], 1.0, log=tmp_path / "log")
    assert done.status is None and done.ended().startswith("stopped after")
    assert "started" in done.output and processes("86398") == []


def test_a_command_that_ends_leaves_nobody_behind(tmp_path):
    code = FAMILY.format("86397", False)
    done = execute([sys.executable, "-c", code], 60, log=tmp_path / "log")
    assert done.status == 0 and "started" in done.output and processes("86397") == []


def test_a_command_that_is_missing_or_crashes_tells_so(tmp_path):
    done = execute(["/no/such/program"], 5, log=tmp_path / "log")
    assert done.status == 127 and "/no/such/program" in done.output and not done.crashed
    code = "import os; print('before', flush=True); os.abort()"
    done = execute([sys.executable, "-c", code], 30, log=tmp_path / "log")
    assert done.crashed and done.ended() == "killed by signal 6" and "before" in done.output


# --------------------------------------------------------------------------------------------------
# The suite
# --------------------------------------------------------------------------------------------------

# Simulates a sticky error: after it, the process cannot use its device.
PLANTED = """
import sys, time, types
import pytest

def use_the_device():
    if "torch" in sys.modules:
        sys.modules["torch"].cuda.synchronize()

def lose_the_device():
    def synchronize(): raise RuntimeError("CUDA error: an illegal memory access\\nmore")
    cuda = types.SimpleNamespace(is_initialized=lambda: True, synchronize=synchronize)
    sys.modules["torch"] = types.SimpleNamespace(cuda=cuda)

def test_passes(): use_the_device()
@pytest.mark.parametrize("x", [1, 2])
def test_fails(x): assert x == 1, "planted"
def test_skips(): pytest.skip("no reason")
@pytest.mark.xfail
def test_is_expected_to_fail(): assert 0
@pytest.fixture
def broken(): raise RuntimeError("planted")
def test_has_a_broken_fixture(broken): pass
def test_loses_the_device(): lose_the_device()
def test_follows_that(): use_the_device()
def test_hangs(): time.sleep(60)
def test_follows_the_hang(): use_the_device()
def test_ends_the_process():
    import os
    os._exit(3)
def test_follows_the_end(): use_the_device()
"""
GOOD = {"passes", "is expected to fail", "follows that", "follows the hang", "follows the end"}
BAD = {"fails", "has a broken fixture", "loses the device", "hangs", "ends the process"}


def test_a_lost_device_a_hang_or_a_crash_costs_one_test_and_only_failures_run_again(tmp_path):
    tests = tmp_path / "suite" / "gpu" / "test_planted.py"
    tests.parent.mkdir(parents=True)
    tests.write_text(PLANTED)
    place = package.Place(tmp_path, tmp_path / "first")
    place.logs.mkdir()
    outcome = suite.run(place, 100, "tests", [str(tests.parent.parent)], [], test_limit=2)
    verdicts = {p.promise: p.verdict for p in outcome.promises}
    assert verdicts == {
        **dict.fromkeys(GOOD, PASS),
        **dict.fromkeys(BAD, FAIL),
        "skips": NOT_RUN,
    }
    details = {p.promise: p.detail for p in outcome.promises}
    assert "the CUDA context is lost: CUDA error: an illegal" in details["loses the device"]
    assert "did not end within 2 s" in details["hangs"]
    assert "1 of 2 failed; test_fails[2]: " in details["fails"] and "planted" in details["fails"]
    assert "crashed while running" in details["ends the process"]
    hangs = (place.logs / "tests-hangs.txt").read_text()
    assert "Timeout" in hangs and "in test_hangs" in hangs

    earlier = place.logs / "tests.jsonl"
    ran = tmp_path / "ran"
    mended = PLANTED.replace("time.sleep(60)", "pass").replace("os._exit(3)", "pass")
    mended = mended.replace("x == 1", "True").replace("lose_the_device()\ndef", "pass\ndef")
    note = f"\n@pytest.fixture(autouse=True)\ndef note(request):\n    open({str(ran)!r}, 'a')"
    tests.write_text(f"{mended}{note}.write(request.node.name + ' ')\n")
    place.logs = tmp_path / "again"
    place.logs.mkdir()
    outcome = suite.run(place, 100, "tests", [str(tests.parent.parent)], [], earlier, test_limit=20)
    verdicts = {p.promise: p.verdict for p in outcome.promises}
    good = GOOD | BAD - {"has a broken fixture"}
    assert {name for name, verdict in verdicts.items() if verdict == PASS} == good
    names = {f"test_{name.replace(' ', '_')}" for name in BAD | {"skips"}} - {"test_fails"}
    assert set(ran.read_text().split()) == names | {"test_fails[2]"}


# --------------------------------------------------------------------------------------------------
# The package
# --------------------------------------------------------------------------------------------------


@native
def test_a_package_that_does_not_import_is_built_in_the_background(tmp_path, monkeypatch):
    broken = tmp_path / "broken" / "vae_fused"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('planted')")
    monkeypatch.setenv("PYTHONPATH", str(broken.parent))
    source = str(Path(vae_fused.__file__).parent)

    def command(target):
        code = f"import shutil, time; time.sleep(1); shutil.copytree({source!r}, {str(target)!r})"
        return [sys.executable, "-c", code.replace(str(target), f"{target}/vae_fused")]

    monkeypatch.setattr(package, "build_command", command)
    place = package.Place(tmp_path, tmp_path, device="cpu")
    found = package.Package(place)
    found.begin(Bundle(package=broken.parent))
    assert found.wait(0.0) == "the package is still being looked for"
    assert wait_for(lambda: found.build is not None)
    assert found.problem.count("planted") == 2
    assert found.wait(0.0) == "the package is still being built"
    assert found.wait(60) == "" and found.origin.startswith("built here")
    assert Path(found.answer["file"]).is_relative_to(tmp_path / "package")


# --------------------------------------------------------------------------------------------------
# The run
# --------------------------------------------------------------------------------------------------

SUITE = """
import os
import pytest
def test_one(): assert not os.path.exists(r"{fault}")
def test_two(): pass
def test_of_the_rest(): pass
"""


class Machine:
    """An unpacked bundle, and a path with stubs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "calls"
        self.stubs = gpu_stubs.install(folder / "bin")
        self.out = folder / "results"
        self.fault = folder / "fault"  # while it exists, a test fails
        tests = folder / "suite" / "gpu"
        tests.mkdir(parents=True)
        (tests / "test_planted.py").write_text(SUITE.format(fault=self.fault))
        modules = folder / "modules"
        modules.mkdir()
        (modules / "planted_module.py").touch()
        parts = ["--package", str(Path(vae_fused.__file__).parent), "--modules", str(modules)]
        parts += ["--probe", str(self.stubs / "probe"), "--folder", str(folder / "made")]
        archive = folder / "bundle.tar.gz"
        script = ROOT / "tools" / "gpu.py"
        command = [sys.executable, str(script), "bundle", "--out", str(archive), *parts]
        self.bundled = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        with tarfile.open(archive) as packed:
            packed.extractall(folder / "unpacked", filter="data")
        self.script = folder / "unpacked" / "vae_fused" / "tools" / "gpu.py"
        self.tests = str(tests.parent)

    def command(self, *arguments: str) -> list[str]:
        """The command without site packages: neither torch nor vae_fused can be imported."""
        command = [sys.executable, "-I", "-S", str(self.script), *arguments]
        command += ["--device", "cpu", "--exponent", "8", "--tests", self.tests]
        return [*command, "--out", str(self.out)]

    def start(self, *arguments: str, fault: str = "") -> subprocess.Popen[str]:
        env = gpu_stubs.environment(self.stubs, self.log, fault)
        return subprocess.Popen(
            self.command(*arguments), env=env, stdout=subprocess.PIPE, text=True, cwd="/"
        )

    def results(self) -> tuple[Path, dict]:
        (folder,) = self.out.iterdir()
        return folder, json.loads((folder / "report.json").read_text())


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    made = Machine(tmp_path_factory.mktemp("machine"))
    yield made
    shutil.rmtree(made.folder, ignore_errors=True)


@pytest.fixture
def fresh(machine):
    shutil.rmtree(machine.out, ignore_errors=True)
    machine.log.unlink(missing_ok=True)
    return machine


def logs(folder: Path) -> set[str]:
    with tarfile.open(folder / "logs.tar.gz") as archive:
        return {name.removeprefix("./") for name in archive.getnames()}


@git
@native
def test_the_first_call_does_everything_and_the_second_what_failed(fresh):
    blocked = [sys.executable, "-I", "-S", "-c", "import vae_fused"]
    assert subprocess.run(blocked, capture_output=True, cwd="/").returncode == 1
    fresh.fault.touch()
    output, _ = (first := fresh.start(fault="fail ncu")).communicate(timeout=240)
    folder, found = fresh.results()
    assert first.returncode == 1 and str(folder) in output
    assert list(found["steps"]) == STEPS == found["calls"][0]["steps"]
    assert found["calls"][0]["seconds"] < 240
    assert found["device"]["name"] == "NVIDIA H200" and len(found["commit"]) >= 7
    assert found["versions"]["package"] == "bundle"
    verdicts = {name: step["verdict"] for name, step in found["steps"].items()}
    kept = {"machine", "probe correctness", "probe bandwidth", "sanitizers", "smoke", "rest"}
    assert {name for name in kept if verdicts[name] != PASS} == set()
    assert verdicts["tests"] == FAIL and verdicts["counters"] == NOT_RUN
    for name in (
        "bandwidth",
        "likelihood",
        "step",
    ):  # the parent could import neither torch nor vae_fused
        rows = found["steps"][name]["figures"]["rows"]
        assert rows and not any("error" in row for row in rows)
    headlines = found["steps"]["probe bandwidth"]["figures"]["headlines"]
    assert len(headlines) == 8 and headlines[0]["variant"]["contender"] == "keys in shared"
    assert "  0.800" in output and "keys in shared" in output
    names = {"report.json", "logs.tar.gz", "probe-correctness.jsonl", "probe-bandwidth.jsonl"}
    assert {path.name for path in folder.iterdir()} == names
    wanted = {"clocks.csv", "nvidia-smi.log", "racecheck.log", "tests.jsonl", "bandwidth.log"}
    assert {f"call-1/{name}" for name in wanted} <= logs(folder)

    # On a machine where the figures reach their targets, these would have passed.
    for promise in found["promises"]:
        if promise["step"] in ("bandwidth", "likelihood", "step"):
            promise["verdict"] = PASS
    (folder / "report.json").write_text(json.dumps(found))
    fresh.fault.unlink()
    fresh.log.unlink()
    output, _ = (again := fresh.start("again")).communicate(timeout=240)
    _, found = fresh.results()
    assert again.returncode == 0, output
    assert found["calls"][1]["steps"] == ["machine", "counters", "tests"]
    assert list(found["steps"]) == STEPS and found["verdict"] == PASS
    assert found["steps"]["tests"]["figures"]["collected"] == 3
    assert (folder / "kernels.ncu-rep").exists() and "call-2/ncu.log" in logs(folder)
    stalls = [
        name for name in found["steps"]["counters"]["figures"]["launches"][0] if "stall" in name
    ]
    assert stalls and len(found["steps"]["counters"]["figures"]["launches"]) == 8
    assert not any("sanitizer --tool" in line for line in fresh.log.read_text().splitlines())
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) <= 8 and all(path.stat().st_size < 16e6 for path in files)
    assert len([line for line in output.splitlines() if "two" in line]) == 1  # still printed


@git
@native
def test_when_the_run_is_killed_its_results_stay_and_no_process_does(fresh):
    only = ["--only", "probe correctness", "probe bandwidth"]
    run = fresh.start("first", *only, fault="hang bandwidth")
    assert wait_for(lambda: len(processes(gpu_stubs.HANG)) == 1)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    assert wait_for(lambda: not processes(gpu_stubs.HANG), 20)
    assert wait_for(lambda: not processes("bandwidth"), 20)
    folder, found = fresh.results()
    assert list(found["steps"]) == ["machine", "probe correctness"]
    assert found["steps"]["probe correctness"]["verdict"] == PASS
    assert "call-1/probe-correctness.log" in logs(folder)
    (line,) = (folder / "probe-bandwidth.jsonl").read_text().splitlines()
    assert json.loads(line)["kind"] == "device"
    assert (folder / "running" / "probe-bandwidth.log").exists()

    run = fresh.start("again", *only)
    assert run.wait(timeout=120) == 0
    _, found = fresh.results()
    steps = [call["steps"] for call in found["calls"]]
    assert steps == [["machine", "probe correctness"], ["machine", "probe bandwidth"]]
    assert not (folder / "running").exists()


@git
@native
def test_a_step_that_hangs_costs_its_own_time_alone(fresh):
    arguments = ["first", "--budget", "24", "--only", "probe correctness", "probe bandwidth"]
    run = fresh.start(*arguments, fault="hang correctness")
    assert run.wait(timeout=120) == 3
    _, found = fresh.results()
    verdicts = {name: step["verdict"] for name, step in found["steps"].items()}
    assert verdicts == {"machine": PASS, "probe correctness": NOT_RUN, "probe bandwidth": PASS}
    ended = found["steps"]["probe correctness"]["figures"]["ended"]
    assert ended.startswith("stopped after") and found["calls"][0]["seconds"] <= 24
    assert processes(gpu_stubs.HANG) == []


@git
def test_the_bundle_tells_its_size_and_what_it_was_made_of(machine):
    assert " MB, " in machine.bundled and " MB unpacked" in machine.bundled
    folder = machine.script.parents[1] / "build" / "gpu-bundle"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["sha256"]) == {"probe", "package", "modules"}
    assert manifest["commit"] and manifest["build"]["mode"] in ("cpu", "cuda", "none")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    names = tracked.stdout.split()
    assert all((folder.parents[1] / name).exists() for name in names if (ROOT / name).exists())
