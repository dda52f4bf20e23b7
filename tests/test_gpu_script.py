"""What tools/gpu.py promises without a GPU: it judges rightly, keeps its budget, loses nothing."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from gpu_checks import outside, package, report, run, suite  # noqa: E402
from gpu_checks.report import FAIL, NOT_RUN, PASS, Promise  # noqa: E402

SCRIPT = ROOT / "tools" / "gpu.py"


def script(*arguments, cwd, **env):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **env},
        timeout=240,
    )


def test_without_a_gpu_it_says_so(tmp_path):
    done = script("--out", str(tmp_path / "results"), cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert done.stdout.startswith("no GPU: torch ") and "Traceback" not in done.stderr
    assert not (tmp_path / "results").exists()


def test_without_torch_it_says_so(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('planted')")
    done = script(cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert "importing torch fails" in done.stdout and "planted" in done.stdout


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
# Budget and stages
# --------------------------------------------------------------------------------------------------


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_the_budget_reserves_for_later_stages_and_skips_what_does_not_fit():
    clock = Clock()
    budget = run.Budget(100 + run.GRACE, clock)
    assert budget.allow(10, 300, reserved=40) == 60
    assert budget.allow(10, 30, reserved=40) == 30
    assert budget.allow(10, 30, reserved=99) == 10  # least comes first
    clock.now = 91
    assert budget.allow(10, 30, reserved=0) == 0
    clock.now = 500
    assert budget.allow(1, 30, reserved=0) == 0


def a_report(tmp_path, monkeypatch):
    monkeypatch.setenv("VAE_FUSED_COMMIT", "0123456789abcdef-dirty")
    made = report.Report(tmp_path, "python tools/gpu.py", 480.0)
    made.data["device"] = {"name": "NVIDIA H200 NVL"}
    return made


def test_stages_fail_alone_and_the_file_is_written_after_each(tmp_path, monkeypatch):
    made, clock, lines, seen = a_report(tmp_path, monkeypatch), Clock(), [], []
    budget = run.Budget(100 + run.GRACE, clock)

    def read():
        return json.loads(made.path.read_text())["stages"]

    def good(seconds):
        return run.Outcome([Promise("kept", PASS)], {"n": 1})

    def broken(seconds):
        raise RuntimeError("planted")

    def silent(seconds):
        seen.append(read())
        clock.now = 95
        return run.Outcome([])

    groups = [
        [run.Stage("good", good, 1, 9), run.Stage("broken", broken, 1, 9)],
        [run.Stage("silent", silent, 1, 9)],
        [run.Stage("late", good, 6, 9)],
        [run.Stage("small", good, 1, 9, optional=True)],
    ]
    run.run_stages(groups, budget, made, lines.append, workers=1)
    assert set(seen[0]) == {"good", "broken"}
    stages = read()
    verdicts = {name: s["verdict"] for name, s in stages.items()}
    absent = dict.fromkeys(("broken", "silent", "late"), NOT_RUN)
    assert verdicts == {"good": PASS, **absent, "small": PASS}
    assert stages["late"]["reason"] == "out of time"
    assert "planted" in stages["broken"]["reason"]
    assert {p.promise: p.optional for p in made.promises}["kept"] in (True, False)
    assert [p.detail for p in made.promises if p.stage == "late"] == ["not run: out of time"]
    assert report.overall(made.promises) == NOT_RUN


def test_the_file_has_the_promised_entries(tmp_path, monkeypatch):
    made = a_report(tmp_path, monkeypatch)
    made.add("one", [report.at_least("x", 0.9, 0.95)], seconds=1.23, figures={"rows": []})
    path = made.write(12.34)
    assert path.name == "gpu-h200-nvl-0123456789ab-dirty.json"
    data = json.loads(path.read_text())
    assert data["schema"] == report.SCHEMA and data["verdict"] == PASS
    assert data["commit"] == "0123456789abcdef" and data["dirty"] is True
    assert data["seconds"] == 12.3 and data["command"] == "python tools/gpu.py"
    assert set(data["stages"]["one"]) == {"verdict", "seconds", "reason", "figures"}
    (promise,) = data["promises"]
    assert promise["stage"] == "one" and promise["target"] == ">= 0.90"
    assert {"device", "versions", "date", "budget_s"} <= set(data)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_command_is_stopped_with_all_it_started(tmp_path):
    child = "[sys.executable, '-c', 'import time; time.sleep(60)']"
    code = f"import subprocess, sys; subprocess.run({child})"
    start = time.monotonic()
    done = run.execute([sys.executable, "-c", code], 1.0, log=tmp_path / "log")
    assert done.status is None and time.monotonic() - start < 20
    assert done.ended().startswith("stopped after")


def test_a_command_that_is_missing_or_fails_tells_so(tmp_path):
    done = run.execute(["/no/such/program"], 5, log=tmp_path / "log")
    assert done.status == 127 and "/no/such/program" in done.output
    code = "import os; print('before', flush=True); os.abort()"
    done = run.execute([sys.executable, "-c", code], 30, log=tmp_path / "log")
    assert done.ended() == "killed by signal 6" and "before" in done.output


def test_subprocesses_do_not_see_the_sources(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), ".", "/elsewhere"]))
    place = package.Place(tmp_path, target=tmp_path / "package")
    paths = place.env()["PYTHONPATH"].split(os.pathsep)
    assert paths == [str(tmp_path / "package"), "/elsewhere", str(ROOT / "tools")]
    sources = {"file": str(ROOT / "vae_fused" / "_ext.py"), "has_cuda": True}
    assert "imports the sources" in package.usable(sources)
    assert package.usable({"file": "/site/vae_fused/_ext.py", "has_cuda": True}) == ""
    command = package.build_command(tmp_path)
    assert {"--no-index", "--no-deps", "--no-build-isolation", "--target"} <= set(command)


# --------------------------------------------------------------------------------------------------
# The suite
# --------------------------------------------------------------------------------------------------

PLANTED = """
import pytest

def test_passes(): pass
@pytest.mark.parametrize("x", [1, 2])
def test_fails(x): assert x == 1, "planted"
def test_skips(): pytest.skip("no GPU")
@pytest.mark.xfail
def test_is_expected_to_fail(): assert 0
@pytest.fixture
def broken(): raise RuntimeError("planted")
def test_has_a_broken_fixture(broken): pass
def test_ends_the_process():
    import os
    os._exit(3)
def test_never_runs(): pass
"""


def test_results_survive_the_end_of_the_process(tmp_path):
    (tmp_path / "test_planted.py").write_text(PLANTED)
    record = tmp_path / "record.jsonl"
    env = package.Place(tmp_path).env(GPU_CHECKS_RECORD=str(record))
    env.pop("PYTEST_XDIST_WORKER", None)
    command = [sys.executable, "-m", "pytest", "-p", "gpu_checks.record", "-q"]
    subprocess.run([*command, "test_planted.py"], cwd=tmp_path, env=env, capture_output=True)
    collected, results = suite.read(record)
    assert len(collected) == 8 and len(results) == 6
    promises = suite.judge(collected, results, suite.by_test, "ended with status 3")
    verdicts = {p.promise: p.verdict for p in promises}
    assert verdicts == {
        "passes": PASS,
        "fails": FAIL,
        "skips": NOT_RUN,
        "is expected to fail": PASS,
        "has a broken fixture": FAIL,
        "ends the process": NOT_RUN,
        "never runs": NOT_RUN,
    }
    details = {p.promise: p.detail for p in promises}
    assert "1 of 2 failed; test_fails[2]: " in details["fails"] and "planted" in details["fails"]
    assert details["skips"] == "not run: no GPU" and "status 3" in details["never runs"]
    assert "planted" in details["has a broken fixture"]


def test_a_module_that_is_not_installed_is_no_failing():
    reason = "ModuleNotFoundError: No module named '{}'"
    results = {
        name: {"outcome": "failed", "reason": reason.format(name), "test": name}
        for name in ("expecttest", "vae_fused")
    }
    suite.excuse(results, ["expecttest"])
    assert [r["outcome"] for r in results.values()] == ["skipped", "failed"]
    assert results["expecttest"]["reason"] == "expecttest is not installed"


def test_a_file_is_a_promise_and_one_gpu_is_no_failing():
    tests = ["tests/test_a.py::test_x[1]", "tests/test_a.py::test_y", "tests/test_b.py::test_z"]
    passed = {"outcome": "passed", "reason": ""}
    results = {t: {**passed, "test": t} for t in tests[:2]}
    results[tests[2]] = {"outcome": "skipped", "reason": "one GPU", "test": tests[2]}
    first, second = suite.judge(tests, results, suite.by_file, "")
    assert (first.promise, first.verdict, first.measured) == ("test_a.py", PASS, "2 passed")
    assert second.verdict == NOT_RUN and second.optional
    results[tests[1]] = {"outcome": "skipped", "reason": "kernels are lost", "test": tests[1]}
    first, _ = suite.judge(tests, results, suite.by_file, "")
    assert first.verdict == NOT_RUN and "1 of 2 tests (kernels are lost)" in first.detail


# --------------------------------------------------------------------------------------------------
# compute-sanitizer and ncu
# --------------------------------------------------------------------------------------------------

CLEAN = (
    f"========= COMPUTE-SANITIZER\n14 cases\n{outside.DONE}\n========= ERROR SUMMARY: 0 errors\n"
)
INVALID = """========= COMPUTE-SANITIZER
========= Invalid __global__ read of size 16 bytes
=========     at void vae_fused::cuda::forward_kernel<float, (int)4>(ForwardParams, int)+0x100
=========     by thread (255,0,0) in block (3,0,0)
========= Target application returned an error
========= ERROR SUMMARY: 7 errors
"""
RACE = f"""========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at forward_kernel+0x1 and Read access at +0x2
{outside.DONE}
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""
NO_RACE = f"""{outside.DONE}
========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)
"""
REFUSED = """========= COMPUTE-SANITIZER
========= Error: Device not supported. Please refer to the release notes.
========= ERROR SUMMARY: 0 errors
"""


@pytest.mark.parametrize(
    ("output", "status", "verdict", "words"),
    [
        (CLEAN, 0, PASS, ""),
        (NO_RACE, 0, PASS, ""),
        (INVALID, 86, FAIL, "7 findings; the first: Invalid __global__ read"),
        (RACE, 86, FAIL, "1 findings; the first: Error: Race reported"),
        (REFUSED, 1, NOT_RUN, "Device not supported"),
        (f"AssertionError: float16 {outside.WRONG} 3\n{CLEAN}", 1, FAIL, "differs from the CPU"),
        ("", None, NOT_RUN, "stopped after"),
        ("Traceback\nImportError: planted", 1, NOT_RUN, "ImportError: planted"),
    ],
)
def test_what_a_sanitizer_says_is_understood(output, status, verdict, words):
    promise = outside.judge_sanitizer("memcheck", run.Finished(status, output, 9.0))
    assert promise.verdict == verdict and words in promise.detail


@pytest.mark.parametrize(
    ("output", "verdict"), [(INVALID, PASS), (CLEAN, FAIL), (REFUSED, NOT_RUN), ("", NOT_RUN)]
)
def test_a_sanitizer_that_misses_a_planted_error_is_no_witness(output, verdict):
    assert outside.planted("memcheck", run.Finished(0, output, 9.0)).verdict == verdict


def test_kernels_are_filtered_by_the_option_that_the_sanitizer_has():
    def command(text, tool="racecheck"):
        return outside.sanitizer_command("cs", tool, text, ["python", "x"])

    new = "--kernel-name arg\n--kernel-name-exclude arg\n--report-api-errors arg"
    assert command(new)[-4:] == ["--kernel-name", "kns=vae_fused", "python", "x"]
    assert "--kernel-regex" in command("--kernel-regex arg\n--kernel-regex-exclude arg")
    assert not any("kns" in word for word in command("--kernel-name-exclude arg"))
    assert "--report-api-errors" in command(new, "memcheck")


KERNELS = [
    "void vae_fused::cuda::<unnamed>::forward_kernel<float, (int)4>(const ForwardParams, int)",
    "void vae_fused::cuda::<unnamed>::backward_kernel<vae_fused::math::BFloat16, (int)8>(x)",
]
NCU_LONG = f"""==PROF== Connected to process 12
gpu_checks: done
==PROF== Disconnected from process 12
"ID","Process ID","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","12","{KERNELS[0]}","smsp__inst_executed.sum","inst","15,728,640"
"0","12","{KERNELS[0]}","dram__bytes_read.sum","byte","134,217,728"
"0","12","{KERNELS[0]}","dram__bytes_write.sum","byte","67108864"
"0","12","{KERNELS[0]}","smsp__sass_inst_executed_op_local_ld.sum","inst","0"
"0","12","{KERNELS[0]}","smsp__sass_inst_executed_op_local_st.sum","inst","0"
"1","12","{KERNELS[1]}","launch__registers_per_thread","register/thread","98"
"1","12","{KERNELS[1]}","smsp__sass_inst_executed_op_local_ld.sum","inst","4"
"1","12","{KERNELS[1]}","smsp__sass_inst_executed_op_local_st.sum","inst","2"
"""
NCU_WIDE = f"""==PROF== Connected
"ID","Kernel Name","launch__registers_per_thread","smsp__sass_inst_executed_op_local_ld.sum"
"","","register/thread","inst"
"0","{KERNELS[0]}","70","n/a"
"""


@pytest.mark.parametrize(
    ("kernel", "dtype"),
    [
        ("forward_kernel<float, (Access)0, Plain<float>>(ForwardParams, Plain<float>, Rows, int)",
         "float32"),
        ("void a::forward_kernel<a::BFloat16, (a::Access)0, a::Plain<float>>(a::ForwardParams)",
         "bfloat16"),
        ("_ZN3a_b14forward_kernelIfLNS_6AccessE0ENS_5PlainIfEEEEvNS_13ForwardParamsET1_",
         "float32"),
        ("_ZN3a_b15backward_kernelINS_8BFloat16ELNS_6AccessE0ENS_5PlainIfEEEEvNS_14BackwardParamsE",
         "bfloat16"),
    ],
)  # fmt: skip
def test_a_kernel_is_known_by_what_it_stores(kernel, dtype):
    assert outside.dtype_of(kernel) == dtype


def test_what_ncu_says_is_understood():
    launches = outside.parse_ncu(NCU_LONG)
    assert [launch["kernel"] for launch in launches] == KERNELS
    outside.derive(launches[0], 2**24)
    assert launches[0]["instructions_per_element"] == 30.0
    assert launches[0]["dram_bytes_per_element"] == 12.0
    assert launches[1]["launch__registers_per_thread"] == 98
    assert [p.verdict for p in outside.judge_ncu(launches)] == [PASS, FAIL]
    (wide,) = outside.parse_ncu(NCU_WIDE)
    assert wide["launch__registers_per_thread"] == 70
    (promise,) = outside.judge_ncu([wide])
    assert promise.verdict == NOT_RUN and promise.optional
    assert outside.parse_ncu("==ERROR== ERR_NVGPUCTRPERM: no permission") == []


def test_missing_tools_are_not_a_pass_and_cost_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(outside, "find", lambda *names: None)
    place = package.Place(tmp_path)
    (promise,) = outside.sanitize(place, 5, "memcheck").promises
    assert promise.verdict == NOT_RUN and not promise.optional
    (promise,) = outside.ncu(place, 5).promises
    assert promise.verdict == NOT_RUN and promise.optional and "no ncu" in promise.detail
