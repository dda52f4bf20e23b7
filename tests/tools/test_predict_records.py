"""Records of predictions: comparable rows are compared, and slower ones are reported.

All tests except the last need no CUDA build. test_predict.py tests the model itself.
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import pytest

from vae_fused import _ext

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tools")]

import budget  # noqa: E402
import kernels  # noqa: E402
import predict as command  # noqa: E402
import sass  # noqa: E402
from prediction import MODEL_VERSION, simulation  # noqa: E402
from prediction.chips import CHIPS, LATENCIES_NS  # noqa: E402
from prediction.program import Program, program  # noqa: E402
from prediction.reading import programs  # noqa: E402
from prediction.record import Record, compared, dump, make_record  # noqa: E402
from prediction.table import markdown  # noqa: E402

BASELINE = ROOT / "tools" / "prediction" / "baseline-8c2bdcc.json"
NAME = "forward<float, (Access)0>"
H200 = CHIPS["h200"]

needs_compiler = pytest.mark.skipif(
    simulation.compiler() is None, reason="the simulation needs a C++ compiler"
)


def planted(name: str = NAME) -> Program:
    """A kernel that consists of a loop with two loads, their use and a store."""
    texts = [
        "NOP",
        "LDG.E.128 R8, desc[UR4][R2.64]",
        "LDG.E.128 R12, desc[UR4][R4.64]",
        "FADD R20, R8, R12",
        "STG.E.128 desc[UR4][R6.64], R20",
        "@P0 BRA 0x10",
        "EXIT",
    ]
    lines = [f"  /*{16 * n:04x}*/  {text} ;" for n, text in enumerate(texts)]
    found = program(name, "sm_90", {"REG": 64, "SHARED": 1120}, sass.parse(lines))
    assert found is not None
    return found


def baseline() -> Record:
    record: Record = json.loads(BASELINE.read_text())
    return record


def test_the_baseline_has_every_hot_kernel_and_latency_of_this_model() -> None:
    record = baseline()
    assert record["model"] == MODEL_VERSION and record["elements"] == 2**24
    assert record["chips"]["h200"]["ghz"] == 1.755
    hot = {
        f"{kernel}<{dtype}, (Access){access}>"
        for kernel in ("forward", "backward")
        for dtype in ("float", "double", "Half", "BFloat16")
        for access in (0, 1, 2)
    }
    rows = {(row["kernel"], row["latency_ns"]) for row in record["predictions"]}
    assert rows == {(name, ns) for name in hot for ns in LATENCIES_NS}


def test_a_record_is_written_as_it_is_read() -> None:
    assert dump(baseline()) == BASELINE.read_text()


@pytest.mark.parametrize("what", ["share", "loop"])
def test_losing_more_than_two_percent_of_either_share_is_slower(what: str) -> None:
    old = baseline()
    assert compared(old, old)[1] == [] and len(compared(old, old)[0]) == len(old["predictions"])
    new = copy.deepcopy(old)
    new["predictions"][7][what] *= 0.985  # type: ignore[literal-required]
    assert compared(old, new)[1] == []
    new["predictions"][7][what] *= 0.985  # type: ignore[literal-required]
    (line,) = compared(old, new)[1]
    assert new["predictions"][7]["kernel"] in line and "SLOWER" in line


def test_records_of_other_sizes_are_not_compared() -> None:
    assert compared(baseline(), {**baseline(), "elements": 2**20}) == ([], [])


@needs_compiler
def test_the_tables_call_predictions_by_their_name() -> None:
    found = [planted(), planted("forward<float, 4>")]
    record = make_record(
        found, {"h200": H200, "b200": CHIPS["b200"]}, [500.0, 2000.0], 2**20, "abc"
    )
    text = markdown(record)
    assert text.startswith("Predictions of the code at abc, not measurements (issue model ")
    assert f"issue model {MODEL_VERSION}" in text and "1,048,576 elements" in text
    row = next(line for line in text.splitlines() if f"`{NAME}`" in line)
    fast, slow = (r for r in record["predictions"] if r["kernel"] == NAME)
    high, low = (f"{r['share']:.2f}" for r in (fast, slow))
    loops = f"{slow['loop']:.2f} to {fast['loop']:.2f}"
    assert row == f"| `{NAME}` | {high} | {low} | {low} to {high} | {loops} |"
    assert "B200" not in text  # it has other machine code


@needs_compiler
def test_the_command_compares_with_a_record_and_answers_by_its_status(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "programs", lambda file, kernel, archs: [planted()])
    asked = ["x.cubin", "--chip", "h200", "--latency", "700", "--elements", "2^20"]
    assert command.main([*asked, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [row["kernel"] for row in record["predictions"]] == [NAME]
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record))
    assert command.main([*asked, "--compare", str(path)]) == 0
    record["predictions"][0]["share"] *= 1.1
    path.write_text(json.dumps(record))
    assert command.main([*asked, "--compare", str(path)]) == 1
    assert "SLOWER" in capsys.readouterr().out
    path.write_text(json.dumps(record | {"model": MODEL_VERSION + 1}))
    assert command.main([*asked, "--compare", str(path)]) == 2
    assert command.main([*asked[:2], "b200", *asked[3:]]) == 2  # no such machine code


@pytest.mark.slow
@needs_compiler
@pytest.mark.skipif(not _ext.has_cuda, reason="needs a CUDA build")
@pytest.mark.skipif("-O0" in str(_ext.build_info), reason="a DEBUG build has no speed")
@pytest.mark.skipif(kernels.find_cuobjdump() is None, reason="needs cuobjdump")
def test_no_installed_kernel_is_predicted_slower_than_the_baseline() -> None:
    extension = kernels.installed_extension()
    if (kernels.build_info(extension).get("cuda") or "") != budget.load()["nvcc"]:
        pytest.skip("the baseline is of another nvcc")
    found = list(programs(extension, archs=["sm_90"]))
    if not found:
        pytest.skip("the extension has no code for sm_90")
    new = make_record(found, {"h200": H200}, [660.0], 2**24, "")
    lines, slower = compared(baseline(), new)
    assert len(lines) == len(baseline()["predictions"]) // len(LATENCIES_NS)
    assert not slower, "\n".join(slower)
