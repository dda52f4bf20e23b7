"""Without a GPU, tools/gpu_check gives correct verdicts, keeps its budget and loses no results."""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import DEVICES, native

import benchmarks.__main__ as latents
from benchmarks import command, losses
from benchmarks.steps.__main__ import CASES as TRAININGS
from tools.gpu_check import steps
from tools.gpu_check.__main__ import RESERVE, ROOT, run
from tools.gpu_check.report import FAIL, NOT_RUN, PASS, overall
from tools.gpu_check.steps import STEPS, Step, judge

SLEEP = f"sleep 86399.{os.getpid()}"  # the tests find processes by this duration


def sleeping() -> bool:
    found = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    return SLEEP.replace(" ", "\0").encode() + b"\0" in found


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.05)
    return condition()


@pytest.fixture(autouse=True)
def _interrupts() -> Iterator[None]:
    """Commands inherit ignored interrupts, which shells set for processes in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def stubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Put stub programs on the path, before the machine's programs. Each stub logs its calls.

    The first stub is nvidia-smi.
    """

    def install(name: str, code: str) -> None:
        path = tmp_path / "bin" / name
        path.write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/calls\n{code}\n')
        path.chmod(0o755)

    for name in [name for name in os.environ if name.startswith("PYTEST_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    (tmp_path / "bin").mkdir()
    install("nvidia-smi", "echo NVIDIA H200")
    return install


class Machine:
    """Runs a table of commands instead of the steps, with `python -m tools.gpu_check`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / "results"

    def start(self, commands: dict[str, str], *arguments: str, **how: Any) -> Any:
        table = {name: (1, command) for name, command in commands.items()}
        code = f"""
import runpy, sys
from tools.gpu_check import steps
steps.STEPS = {{name: steps.Step(*step) for name, step in {table!r}.items()}}
runpy.run_module("tools.gpu_check", run_name="__main__", alter_sys=True)
"""
        line = [sys.executable, "-c", code, *arguments, "--out", str(self.out)]
        return subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True, **how)

    def call(self, commands: dict[str, str], *arguments: str, **how: Any) -> tuple[int, str]:
        process = self.start(commands, *arguments, **how)
        output, _ = process.communicate(timeout=240)
        return process.returncode, output

    def results(self) -> tuple[Path, dict[str, Any]]:
        (folder,) = self.out.iterdir()
        return folder, json.loads((folder / "report.json").read_text())

    def verdicts(self) -> dict[str, str]:
        return {name: step["verdict"] for name, step in self.results()[1]["steps"].items()}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


# --------------------------------------------------------------------------------------------------
# Verdicts
# --------------------------------------------------------------------------------------------------


def test_what_was_not_run_is_not_a_pass() -> None:
    assert overall([PASS, PASS]) == PASS
    assert overall([PASS, NOT_RUN]) == overall([]) == NOT_RUN
    assert overall([NOT_RUN, FAIL, PASS]) == FAIL


@pytest.mark.parametrize(
    ("status", "verdict"),
    # pytest exits with 0 or 1, with 2 if it is interrupted, with 4 for invalid arguments, and with
    # 5 if there are no tests. A shell exits with 127 if it does not find the program.
    [
        (0, PASS),
        (1, FAIL),
        (2, NOT_RUN),
        (4, NOT_RUN),
        (5, NOT_RUN),
        (127, NOT_RUN),
        (None, NOT_RUN),
    ],
)
def test_the_exit_status_decides(status: int | None, verdict: str) -> None:
    lines = judge(Step(1, ""), status, "the last line", {})
    assert [*lines.values()] == [verdict] and "the last line" in next(iter(lines))


def test_a_case_that_was_not_measured_is_not_a_pass() -> None:
    assert [*judge(Step(1, ""), 0, "", {"not_run": {"plain": "no memory"}}).values()] == [NOT_RUN]


def row(case: str, share: float, **ratios: float) -> dict[str, Any]:
    ours = {"share_of_copy": {"forward": share, "backward": 0.99}}
    rivals = {name: {"ratio": {"step": ratio, "step_wall": 4.0}} for name, ratio in ratios.items()}
    return {"case": case, "contenders": {"vae_fused": ours, **rivals}}


def kept(promises: Any, *rows: dict[str, Any]) -> list[str]:
    return [*judge(Step(1, "", promises), 0, "", {"results": rows}).values()][1:]


def test_a_share_of_a_copy_and_a_speedup_have_lower_bounds() -> None:
    shares, large, small = steps.BANDWIDTH, "plain 4096x4096 bfloat16", "plain 128x20 float32"
    assert kept(shares, row(large, 0.9)) == [PASS, PASS]
    assert kept(shares, row(large, 0.89)) == [FAIL, PASS]
    assert kept(shares, row("moments 64x8x256x256 bfloat16", 0.8)) == [PASS, PASS]
    assert kept(shares, row(large, math.nan)) == [FAIL, PASS]
    assert kept(shares, row(small, 0.1)) == []
    assert kept(shares, {"case": large, "contenders": {}}) == [NOT_RUN, NOT_RUN]
    assert kept(steps.SPEEDUPS, row(large, 0.1, eager=6.0, compile=1.7)) == [PASS, FAIL]
    assert kept(steps.SPEEDUPS, row(large, 0.1, eager=5.9)) == [FAIL, NOT_RUN]
    assert kept(steps.SPEEDUPS, row(small, 0.1, eager=2, compile=1)) == [PASS, PASS]  # wall clock


def test_code_that_a_loss_or_a_training_step_replaces_is_no_faster() -> None:
    loss: dict[str, Any] = {"case": "gaussian 1M", "contender": "eager", "target": 6.0}
    assert kept(None, {**loss, "ratio": {"median": 1.1}}, {"case": "gaussian 1M"}) == [PASS]
    assert kept(None, {**loss, "ratio": {"median": 0.9}}) == [FAIL]


@pytest.mark.parametrize("command_and_record", ["bench", "losses", "steps"])
def test_the_records_of_the_benchmarks_have_the_figures(command_and_record: str) -> None:
    path = max((ROOT / "benchmarks" / "results").glob(f"{command_and_record}-*.json"))
    figures = json.loads(path.read_text())
    lines = judge(Step(1, "", steps.BANDWIDTH | steps.SPEEDUPS), 0, "", figures)
    lines = [line for line in lines if "step_wall" not in line]  # only GPU records contain it
    assert len(lines) > 1 and "got {}" not in " ".join(lines)


def arguments(name: str) -> tuple[str, list[str]]:
    """Returns a benchmark's module and arguments."""
    words = shlex.split(STEPS[name].command.strip().split("\n")[-1])
    return words[2], words[3:]


@pytest.mark.parametrize("name", ["bandwidth", "speedups"])
def test_the_benchmark_of_latents_has_the_cases_with_promises(name: str) -> None:
    module, words = arguments(name)
    args = latents.parser().parse_args(words)
    args.device = "cuda"
    cases = [f"{case.name}" for case in latents.chosen(args)]
    assert module == "benchmarks" and STEPS[name].promises
    for promised in STEPS[name].promises or ():
        assert any(case.startswith(promised) for case in cases)
    for part in args.case:
        assert any(part in case for case in cases)


@pytest.mark.parametrize(
    ("name", "cases"), [("likelihoods", losses.CASES), ("training-step", TRAININGS)]
)
def test_the_other_benchmarks_have_the_cases_that_are_selected(name: str, cases: Any) -> None:
    module, words = arguments(name)
    args = command.parser(module, None, "").parse_args(words)
    for part in args.case:
        found = command.selected(cases, [part])
        assert found and (any(case.targets for case in found) or "ways" in part)


# --------------------------------------------------------------------------------------------------
# Calls
# --------------------------------------------------------------------------------------------------


def test_without_a_gpu_the_status_is_2(machine: Machine, stubs: Any) -> None:
    stubs("nvidia-smi", "exit 9")
    assert machine.call({"machine": "true"}) == (2, "no GPU: nvidia-smi names none\n")
    assert not machine.out.exists()


def test_the_second_call_does_what_the_first_did_not(machine: Machine) -> None:
    ran, repaired = machine.folder / "ran", machine.folder / "repaired"
    commands = {
        "machine": f"echo machine >> {ran}",
        "passes": f"echo passes >> {ran}; echo '{{\"n\": 1}}' > figures.json",
        "fails": f"echo fails >> {ran}; test -e {repaired}",
        "lacks": f"echo lacks >> {ran}; test -e {repaired} || exec no-such-program",
    }
    status, output = machine.call(commands)
    folder, found = machine.results()
    assert status == 1 and str(folder) in output and "FAIL     fails" in output
    assert machine.verdicts() == {"machine": PASS, "passes": PASS, "fails": FAIL, "lacks": NOT_RUN}
    assert found["steps"]["passes"]["figures"] == {"n": 1} and found["verdict"] == FAIL
    assert "no-such-program" in next(iter(found["steps"]["lacks"]["lines"]))
    assert folder.name.startswith("gpu-2") and folder.name.endswith("-h200")

    repaired.touch()
    ran.unlink()
    status, output = machine.call(commands, "again")
    assert status == 0 and {*machine.verdicts().values()} == {PASS}, output
    assert ran.read_text().split() == ["machine", "fails", "lacks"]
    assert (folder / "log.txt").read_text().count("===== passes") == 1
    assert machine.call(commands, "again", "--only", "lacks")[0] == 0
    assert ran.read_text().split()[3:] == ["machine"]


def test_nothing_passes_without_the_first_step(machine: Machine) -> None:
    assert machine.call({"machine": "exit 3", "passes": "true"})[0] == 3
    assert machine.verdicts() == {"machine": NOT_RUN, "passes": NOT_RUN}


def test_a_step_that_hangs_costs_only_itself(machine: Machine) -> None:
    """The step may use the time that earlier steps left. Processes that it started end with it."""
    commands = {"machine": "true", "hangs": f"trap '' INT; {SLEEP}", "leaves": f"{SLEEP} & true"}
    status, output = machine.call(commands, "--budget", str(RESERVE + 6))
    assert status == 3 and not sleeping()
    assert machine.verdicts() == {"machine": PASS, "hangs": NOT_RUN, "leaves": PASS}
    assert "machine, at most 2 s" in output and "hangs, at most 4 s" in output
    assert "stopped at the time limit" in output and "leaves, at most 2 s" in output


@pytest.mark.parametrize("ignored", [False, True])
def test_a_command_may_write_its_results_after_the_interrupt(
    machine: Machine, ignored: bool
) -> None:
    """A shell makes its background processes ignore interrupts."""
    code = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('results')"
    commands = {"machine": f'exec "$PYTHON" -c {shlex.quote(code)}'}
    ignore = (lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) if ignored else None
    assert machine.call(commands, "--budget", str(RESERVE + 6), preexec_fn=ignore)[0] == 3
    (line,) = machine.results()[1]["steps"]["machine"]["lines"]
    assert line == "stopped at the time limit: results"


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_killed_keeps_its_results(machine: Machine, by: signal.Signals) -> None:
    commands = {"machine": "echo of the first", "hangs": f"echo $$; exec {SLEEP}", "last": "true"}
    process = machine.start(commands)
    assert wait_for(sleeping)
    process.send_signal(by)
    process.communicate(timeout=60)
    assert process.returncode not in (0, 3)
    folder, found = machine.results()
    assert machine.verdicts() == {"machine": PASS, "hangs": NOT_RUN, "last": NOT_RUN}
    assert found["verdict"] == NOT_RUN and "of the first" in (folder / "log.txt").read_text()
    if by == signal.SIGKILL:  # SIGKILL leaves the step's process behind
        os.killpg(int((folder / "log.txt").read_text().split()[-1]), signal.SIGKILL)
    assert wait_for(lambda: not sleeping(), 10)


# --------------------------------------------------------------------------------------------------
# Commands
# --------------------------------------------------------------------------------------------------

# Simulates a sticky error, after which the process cannot use its device.
SUITE = """
import os, sys, types
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
def test_others(): open("{ran}", "a").write("others ")
"""


def test_a_test_that_loses_the_device_spoils_no_other(machine: Machine, tmp_path: Path) -> None:
    ran, fault = tmp_path / "ran", tmp_path / "fault"
    text = SUITE.replace("{ran}", str(ran)).replace("{fault}", str(fault))
    (tmp_path / "test_planted.py").write_text(text)
    planted = os.path.relpath(tmp_path / "test_planted.py", ROOT / "tests")
    commands = {"machine": "true", "tests": steps.tests("cuda", planted)}
    fault.touch()
    status, output = machine.call(commands)
    folder, _ = machine.results()
    assert status == 1 and sorted(ran.read_text().split()) == ["passes[1]", "passes[2]"], output
    passed = [line.split("::")[1] for line in (folder / "passed.txt").read_text().split()]
    names = ("follows_that", "follows_the_end", "passes[1]", "passes[2]")
    assert sorted(passed) == [f"test_cuda_{name}" for name in names]
    failures = (folder / "tests.xml").read_text()
    assert "the CUDA context is lost: CUDA error: an illegal memory access" in failures

    fault.unlink()
    ran.unlink()
    status, output = machine.call(commands, "again")
    assert status == 0 and not ran.exists(), output  # tests that passed do not run again
    assert "follows" not in (folder / "tests.xml").read_text()


@pytest.mark.slow
def test_a_test_that_hangs_leaves_the_results_of_others(tmp_path: Path) -> None:
    code = "def test_cuda(): pass\ndef test_cuda_fails(): assert 0\n"
    code += "def test_cuda_hangs():\n    import time; time.sleep(600)\n"
    (tmp_path / "test_planted.py").write_text(code)
    planted = os.path.relpath(tmp_path / "test_planted.py", ROOT / "tests")
    lines, _ = run("tests", Step(1, steps.tests("cuda", planted)), 25, tmp_path)
    assert [*lines.values()] == [FAIL] and "1 failed, 1 passed" in next(iter(lines))
    assert 'name="test_cuda_fails"' in (tmp_path / "tests.xml").read_text()
    assert (tmp_path / "passed.txt").read_text().endswith("::test_cuda\n")


@pytest.mark.parametrize(
    ("planted", "racecheck", "verdict"),
    [
        (86, 0, PASS),
        (86, 86, FAIL),
        (86, 1, FAIL),  # a test failed
        (86, 127, NOT_RUN),
        (0, 0, NOT_RUN),  # the sanitizer does not see our kernels
        (1, 86, NOT_RUN),
    ],
)
def test_a_sanitizer_that_does_not_see_a_planted_error_is_no_witness(
    stubs: Any, tmp_path: Path, planted: int, racecheck: int, verdict: str
) -> None:
    of_tools = f"*planted_error.py) exit {planted};; *racecheck*) exit {racecheck};;"
    stubs("compute-sanitizer", f'echo "1 passed for $*"; case "$*" in {of_tools} esac')
    lines, _ = run("sanitizers", STEPS["sanitizers"], 60, tmp_path)
    assert [*lines.values()] == [verdict], lines
    calls = (tmp_path / "calls").read_text()
    assert calls.count("--error-exitcode 86") == calls.count("--kernel-name kns=vae_fused") == 5
    assert calls.count("--report-api-errors no") == 2
    log = (tmp_path / "log.txt").read_text()
    assert f"racecheck {racecheck}\n" in log and "initcheck: 1 passed for --tool init" in log


def test_a_sanitizer_under_which_all_tests_are_skipped_has_checked_nothing(
    stubs: Any, tmp_path: Path
) -> None:
    of_tools = "*planted_error.py) exit 86;; *racecheck*) echo 33 skipped;; *) echo 33 passed;;"
    stubs("compute-sanitizer", f'case "$*" in {of_tools} esac')
    lines, _ = run("sanitizers", STEPS["sanitizers"], 60, tmp_path)
    assert [*lines.values()] == [NOT_RUN], lines


@pytest.mark.parametrize(
    ("write", "verdict"), [('echo counters > "$2"', PASS), ("exit 1", NOT_RUN)]
)
def test_counters_need_a_report_of_this_call(
    stubs: Any, tmp_path: Path, write: str, verdict: str
) -> None:
    (tmp_path / "kernels.ncu-rep").write_text("of an earlier call")
    stubs("ncu", f'case $1 in --import) cat "$2";; --export) {write};; esac')
    lines, _ = run("counters", STEPS["counters"], 60, tmp_path)
    assert [*lines.values()] == [verdict]
    assert "of an earlier call" not in (tmp_path / "log.txt").read_text()


@native
@pytest.mark.slow
def test_the_benchmarks_measure_the_installed_package(tmp_path: Path) -> None:
    text = steps.measured("benchmarks --case 'plain 64x64' --contender vae_fused")
    step = Step(1, text.replace("--device cuda", "--device cpu"))
    lines, figures = run("bandwidth", step, 200, tmp_path)
    assert [*lines.values()] == [PASS], (tmp_path / "log.txt").read_text()
    assert [row["case"] for row in figures["results"]] == ["plain 64x64 float32"]
    assert figures["commit"] and figures["machine"] and figures["versions"]["torch"]
    assert "from this checkout's sources" not in (tmp_path / "log.txt").read_text()
    lines, _ = run("machine", STEPS["machine"], 200, tmp_path)
    assert [*lines.values()] == [PASS if "cuda" in DEVICES else NOT_RUN], lines
    where = Step(1, '"$PYTHON" -c "import vae_fused; print(vae_fused.__file__)"')
    (line,), _ = run("where", where, 60, tmp_path)
    assert line.startswith("status 0: /") and f"{ROOT}/vae_fused" not in line
