"""tools/gpu.py parses the outputs of the probe, compute-sanitizer and ncu."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from gpu_checks import bundle, ncu, package, probe, sanitizer
from gpu_checks.processes import Finished
from gpu_checks.report import FAIL, NOT_RUN, PASS

# --------------------------------------------------------------------------------------------------
# The probe
# --------------------------------------------------------------------------------------------------

RIGHT = {"section": "correctness", "name": "forward float", "verdict": "pass"}


@pytest.mark.parametrize(
    ("rows", "status", "verdict", "words"),
    [
        ([RIGHT], 0, PASS, ""),
        ([{"kind": "bandwidth", "case": "x", "status": "PASS"}], 0, PASS, ""),
        ([{"kind": "bandwidth", "case": "x", "status": "FAIL"}], 1, FAIL, "1 wrong: x"),
        ([{"kind": "device", "name": "x"}, {"kind": "summary", "status": "PASS"}], 0, NOT_RUN, ""),
        ([RIGHT, {"name": "backward", "verdict": "fail"}], 1, FAIL, "1 wrong: backward"),
        ([RIGHT, {"name": "backward", "verdict": "fail"}], None, FAIL, "backward"),
        ([RIGHT], 1, FAIL, "after forward float"),
        ([RIGHT], 139, FAIL, "killed by signal 11"),
        ([RIGHT], None, NOT_RUN, "stopped after"),
        ([], 2, NOT_RUN, "sees no device"),
        ([], 0, NOT_RUN, ""),
    ],
)
def test_what_the_probe_says_is_understood(rows, status, verdict, words):
    promise = probe.judge("correctness", rows, Finished(status, "", 9.0))
    assert promise.verdict == verdict and words in promise.detail


# --------------------------------------------------------------------------------------------------
# compute-sanitizer and ncu
# --------------------------------------------------------------------------------------------------

CLEAN = (
    f"========= COMPUTE-SANITIZER\n14 cases\n{sanitizer.DONE}\n========= ERROR SUMMARY: 0 errors\n"
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
{sanitizer.DONE}
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""
NO_RACE = f"""{sanitizer.DONE}
========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)
"""
RIGHT_LINE = '{"case": "x", "max_error": 1e-7, "status": "PASS"}'
WRONG_LINE = '{"case": "y", "max_error": 9.0, "status": "FAIL"}'
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
        (f"AssertionError: float16 {sanitizer.WRONG} 3\n{CLEAN}", 1, FAIL, "differs from the CPU"),
        (f"{RIGHT_LINE}\n{WRONG_LINE}\n{CLEAN}", 1, FAIL, '"case": "y"'),
        ("", None, NOT_RUN, "stopped after"),
        ("Traceback\nImportError: planted", 1, NOT_RUN, "ImportError: planted"),
    ],
)
def test_what_a_sanitizer_says_is_understood(output, status, verdict, words):
    promise = sanitizer.judge("memcheck", Finished(status, output, 9.0), sanitizer.DONE in output)
    assert promise.verdict == verdict and words in promise.detail


@pytest.mark.parametrize(
    ("output", "verdict"), [(INVALID, PASS), (CLEAN, FAIL), (REFUSED, NOT_RUN), ("", NOT_RUN)]
)
def test_a_sanitizer_that_misses_a_planted_error_is_no_witness(output, verdict):
    assert sanitizer.planted("memcheck", Finished(0, output, 9.0)).verdict == verdict


def test_kernels_are_filtered_by_the_option_that_the_sanitizer_has():
    def command(text, tool="racecheck"):
        return sanitizer.command_line("cs", tool, text, ["python", "x"])

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
    ("kernel", "name"),
    [
        (KERNELS[0], "forward_kernel<float, (int)4>"),
        (KERNELS[1], "backward_kernel<BFloat16, (int)8>"),
        ("void a::forward_kernel<a::BFloat16, (a::Access)0, a::DefaultOptions<float>>(a::Params)",
         "forward_kernel<BFloat16, (Access)0, DefaultOptions<float>>"),
        ("_ZN3a_b14forward_kernelIfLNS_6AccessE0EEvNS_13ForwardParamsE",
         "_ZN3a_b14forward_kernelIfLNS_6AccessE0EEvNS_13ForwardParamsE"),
    ],
)  # fmt: skip
def test_a_kernel_has_a_short_name(kernel, name):
    assert ncu.short(kernel) == name


def test_what_ncu_says_is_understood():
    launches = ncu.parse(NCU_LONG)
    assert [launch["kernel"] for launch in launches] == KERNELS
    ncu.derive(launches[0], 2**24)
    assert launches[0]["instructions_per_element"] == 30.0
    assert launches[0]["dram_bytes_per_element"] == 12.0
    assert launches[1]["launch__registers_per_thread"] == 98
    assert [p.verdict for p in ncu.judge(launches)] == [PASS, FAIL]
    assert len(ncu.judge([*launches, *launches])) == 2  # one line for each kernel
    ncu.name_cases(launches, [{"case": "a", "launches": 1}, {"case": "b", "launches": 1}])
    assert [p.promise.partition(":")[0] for p in ncu.judge(launches)] == ["a", "b"]
    ncu.name_cases(launches, [{"case": "c", "launches": 3}])  # does not match these launches
    assert [launch["case"] for launch in launches] == ["a", "b"]
    (wide,) = ncu.parse(NCU_WIDE)
    assert wide["launch__registers_per_thread"] == 70
    (promise,) = ncu.judge([wide])
    assert promise.verdict == NOT_RUN and promise.optional
    assert ncu.parse("==ERROR== ERR_NVGPUCTRPERM: no permission") == []


def test_missing_tools_are_not_a_pass_and_cost_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(sanitizer, "find", lambda name: None)
    monkeypatch.setattr(ncu, "find", lambda name: None)
    place, nothing = package.Place(tmp_path, tmp_path), bundle.Bundle()
    promises = sanitizer.run(place, nothing, 5, "", []).promises
    assert {p.verdict for p in promises} == {NOT_RUN} and not promises[0].optional
    (promise,) = ncu.run(place, nothing, 5, "", tmp_path / "x.ncu-rep").promises
    assert promise.verdict == NOT_RUN and promise.optional and "no ncu" in promise.detail
