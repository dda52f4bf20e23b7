"""tools/gpu.py without a GPU: correct verdicts, a budget that is kept, and no lost results."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import gpu_stubs
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from gpu_checks import bundle, machine, package, report, schedule, suite  # noqa: E402
from gpu_checks.report import FAIL, NOT_RUN, PASS, Promise  # noqa: E402

SCRIPT = ROOT / "tools" / "gpu.py"


def test_without_a_gpu_it_says_so(tmp_path):
    stubs = gpu_stubs.install(tmp_path / "bin")
    env = gpu_stubs.environment(stubs, tmp_path / "log", "fail nvidia-smi")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--out", str(tmp_path / "results")],
        capture_output=True,
        text=True,
        env={**env, "CUDA_VISIBLE_DEVICES": ""},
        timeout=240,
    )
    assert done.returncode == 2
    assert done.stdout.startswith("no GPU: nvidia-smi names none, and torch ")
    assert "Traceback" not in done.stderr and not (tmp_path / "results").exists()


# --------------------------------------------------------------------------------------------------
# Verdicts
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [(0.9, PASS), (1.2, PASS), (0.8999, FAIL), (math.nan, FAIL), (None, NOT_RUN)],
)
def test_a_bound_is_kept_missed_or_not_measured(measured, verdict):
    assert report.at_least("x", 0.9, measured).verdict == verdict


def test_what_was_not_run_is_not_a_pass():
    kept, missed = Promise("a", PASS), Promise("b", FAIL)
    absent, optional = Promise("c", NOT_RUN), Promise("d", NOT_RUN, optional=True)
    assert report.overall([kept]) == report.overall([kept, optional]) == PASS
    assert report.overall([kept, absent]) == report.overall([]) == NOT_RUN
    assert report.overall([kept, absent, missed]) == FAIL
    statuses = {report.STATUS[v] for v in (PASS, FAIL, NOT_RUN)}
    assert report.STATUS[PASS] == 0 and len(statuses) == 3 and 2 not in statuses


def test_the_table_is_narrow_and_tells_why():
    promises = [
        report.at_least("bandwidth " * 9, 0.9, 0.5, "worst of 3: " + "some case " * 30),
        Promise("second", NOT_RUN, detail="not run: out of time"),
        report.exactly("third", 1, 1),
    ]
    text = report.table(promises)
    assert max(map(len, text.splitlines())) <= 100 and text.isascii()
    assert "FAIL     bandwidth" in text and ">= 0.90" in text and "worst of 3" in text
    assert "NOT RUN  second" in text and "out of time" in text and "PASS     third" in text


# --------------------------------------------------------------------------------------------------
# Steps and their results
# --------------------------------------------------------------------------------------------------


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def a_step(name, share=1.0, action=None, **more):
    kept = schedule.Outcome([Promise(f"{name} kept", PASS)], {"n": 1})
    return schedule.Step(name, share, action or (lambda seconds: kept), **more)


def test_a_step_gets_what_earlier_ones_left_and_takes_nothing_from_later_ones():
    clock = Clock()
    steps = [a_step("a", 10), a_step("b", 30), a_step("c", 60)]
    deadlines = schedule.Deadlines(steps, 200 + schedule.RESERVE, clock)
    assert [deadlines.left(i) for i in range(3)] == [20, 80, 200]
    clock.now = 5
    assert deadlines.left(1) == 75  # the 15 s that remained from `a`, plus its own 60
    clock.now = 90  # `b` exceeded its time by 10 s
    assert deadlines.left(2) == 110


def test_what_is_repeated_shares_the_whole_budget():
    deadlines = schedule.Deadlines([a_step("a", 10)], 200, Clock())
    assert deadlines.left(0) == 200 - schedule.RESERVE


def a_report(tmp_path):
    made = report.Report(report.new_folder(tmp_path, "NVIDIA H200 NVL", "0123abc", True), tmp_path)
    made.begin("python tools/gpu.py", 240.0)
    return made


def test_steps_fail_alone_and_results_are_on_disk_before_the_next_begins(tmp_path):
    made, clock, seen = a_report(tmp_path), Clock(), []

    def broken(seconds):
        (made.running / "broken.log").write_text("as far as it came")
        raise RuntimeError("planted")

    def silent(seconds):
        with tarfile.open(made.archive) as archive:
            logs = [Path(name).name for name in archive.getnames() if name.endswith(".log")]
        seen.append((list(json.loads(made.path.read_text())["steps"]), logs))
        clock.now = 99
        return schedule.Outcome([])

    steps = [a_step("good"), a_step("broken", 1, broken), a_step("silent", 1, silent)]
    steps += [a_step("late"), a_step("optional", optional=True)]
    deadlines = schedule.Deadlines(steps, 100, clock)
    schedule.run_steps(steps, deadlines, made, lambda line: None)
    made.close(99)
    assert seen == [(["good", "broken"], ["broken.log"])]
    found = json.loads(made.path.read_text())
    verdicts = {name: step["verdict"] for name, step in found["steps"].items()}
    assert verdicts == {"good": PASS, **dict.fromkeys(list(verdicts)[1:], NOT_RUN)}
    assert "planted" in found["steps"]["broken"]["reason"]
    assert found["steps"]["late"]["reason"] == "out of time"
    assert [p.optional for p in made.promises] == [False] * 4 + [True]


def test_the_folder_has_the_promised_entries_and_an_earlier_run_stays(tmp_path):
    made = a_report(tmp_path)
    assert made.folder.name == "gpu-h200-nvl-0123abc-dirty"
    made.add("one", [report.at_least("x", 0.9, 0.95)], 1.23, figures={"rows": []})
    made.close(12.34)
    data = json.loads(made.path.read_text())
    assert data["schema"] == report.SCHEMA and data["verdict"] == PASS
    assert {"commit", "dirty", "device", "versions"} <= set(data)
    (call,) = data["calls"]
    assert call["seconds"] == 12.3 and call["steps"] == ["one"] and call["budget_s"] == 240
    assert set(data["steps"]["one"]) == {"verdict", "seconds", "call", "reason", "figures"}
    (promise,) = data["promises"]
    assert promise["step"] == "one" and promise["target"] == ">= 0.90"
    assert [p.name for p in made.folder.iterdir()] == ["report.json"]
    assert a_report(tmp_path).folder.name == "gpu-h200-nvl-0123abc-dirty-2"
    assert report.newest_folder(tmp_path).name == "gpu-h200-nvl-0123abc-dirty-2"


def test_children_do_not_see_the_sources(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), ".", "/elsewhere"]))
    place = package.Place(tmp_path, tmp_path, package=tmp_path / "package")
    paths = place.env()["PYTHONPATH"].split(os.pathsep)
    assert paths == [str(tmp_path / "package"), "/elsewhere", str(ROOT / "tools")]
    found = {"file": str(ROOT / "vae_fused" / "_ext.py"), "has_cuda": True}
    assert "imports the sources" in package.problem_with(found, "cuda")
    found = {"file": "/site/vae_fused/_ext.py", "has_cuda": True, "available": True}
    assert package.problem_with(found, "cuda") == package.problem_with(found, "cpu") == ""
    assert package.problem_with({**found, "has_cuda": False}, "cuda")
    command = package.build_command(tmp_path)
    assert {"--no-index", "--no-deps", "--no-build-isolation", "--target"} <= set(command)


def test_nvidia_smi_is_asked_field_by_field_if_it_refuses_them_all(monkeypatch):
    def smi(fields):
        return None if "unknown" in fields else [f"<{field}>" for field in fields]

    monkeypatch.setattr(machine, "smi", smi)
    assert machine.query(("name", "unknown", "power")) == {"name": "<name>", "power": "<power>"}
    monkeypatch.setattr(machine, "smi", lambda fields: None)
    assert machine.query(("name", "power")) == {}


# --------------------------------------------------------------------------------------------------
# The suite
# --------------------------------------------------------------------------------------------------


def result(test, outcome="passed", reason=""):
    return {"test": test, "outcome": outcome, "reason": reason, "seconds": 0.1}


def test_a_module_that_is_not_installed_is_no_failing():
    reason = "ModuleNotFoundError: No module named '{}'"
    names = ("expecttest", "vae_fused")
    results = {name: result(name, "failed", reason.format(name)) for name in names}
    suite.excuse(results, ["expecttest"])
    assert [r["outcome"] for r in results.values()] == ["skipped", "failed"]
    assert results["expecttest"]["reason"] == "expecttest is not installed"


def test_a_file_is_a_promise_and_so_is_each_test_that_only_a_gpu_can_run():
    groups = {
        "tests/test_a.py::test_x[1]": "test_a.py",
        "tests/gpu/test_streams.py::test_a_second_gpu[x]": "a second gpu",
        "tests/gpu/test_streams.py": "test_streams.py",  # it could not be collected
    }
    assert {test: suite.group_of(test) for test in groups} == groups


def test_one_gpu_is_no_failing_and_a_test_that_did_not_run_is_no_pass():
    tests = ["tests/test_a.py::test_x[1]", "tests/test_a.py::test_y", "tests/test_b.py::test_z"]
    results = {t: result(t) for t in tests[:2]}
    results[tests[2]] = result(tests[2], "skipped", "one GPU")
    first, second = suite.judge(tests, results, "")
    assert (first.promise, first.verdict, first.measured) == ("test_a.py", PASS, "2 passed")
    assert second.verdict == NOT_RUN and second.optional
    results[tests[1]] = result(tests[1], "skipped", "kernels are lost")
    first, _ = suite.judge(tests, results, "")
    assert first.verdict == NOT_RUN and "1 of 2 tests (kernels are lost)" in first.detail
    del results[tests[1]]
    first, _ = suite.judge(tests, results, "stopped after 9 s")
    assert first.verdict == NOT_RUN and "1 of 2 tests (stopped after 9 s)" in first.detail


def test_the_first_reason_of_a_failure_is_kept(tmp_path):
    record = tmp_path / "record.jsonl"
    lines = [{"collected": ["a"]}, result("a", "failed", "first"), result("a", "failed", "crash")]
    record.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"cut o')
    collected, results = suite.read(record)
    assert collected == ["a"] and results["a"]["reason"] == "first"


# --------------------------------------------------------------------------------------------------
# The bundle
# --------------------------------------------------------------------------------------------------


def planted_parts(folder):
    (folder / "package").mkdir()
    (folder / "package" / "_C.abi3.so").write_bytes(b"GLIBC_2.4\0GLIBC_2.17")
    (folder / "modules").mkdir()
    (folder / "modules" / "one.py").write_text("")
    (folder / "program").write_text("#!/bin/sh\n")
    return bundle.Parts(folder / "package", folder / "program", folder / "modules")


git = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="the tracked files are those of git")


@git
def test_a_bundle_that_is_too_large_is_refused(tmp_path):
    parts, out = planted_parts(tmp_path), tmp_path / "bundle.tar.gz"
    with pytest.raises(bundle.BundleError, match="the limit is 0 MB"):
        bundle.make(out, tmp_path / "made", parts, limit=10_000)
    assert not out.exists()


@git
def test_a_part_that_is_damaged_or_of_other_sources_is_not_used(tmp_path):
    bundle.lay_out(tmp_path / "made", planted_parts(tmp_path))
    whole = bundle.load(tmp_path / "made")
    assert whole.manifest["glibc"] == "2.17"
    assert whole.problem == "" and whole.probe and whole.package and whole.modules
    (tmp_path / "made" / "probe").write_text("damaged")
    found = bundle.load(tmp_path / "made")
    assert found.probe is None and found.package and "probe is missing" in found.problem
    manifest = tmp_path / "made" / "manifest.json"
    manifest.write_text(json.dumps(whole.manifest | {"sources": "others"}))
    found = bundle.load(tmp_path / "made")
    assert found.package is None and found.modules and "other sources" in found.problem
    assert "make gpu-bundle" in bundle.load(tmp_path / "absent").problem
