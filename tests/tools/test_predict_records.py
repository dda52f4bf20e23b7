"""Records of predictions: comparable rows are compared, and slower ones are reported.

All tests except the last need no CUDA build. test_predict.py tests the model itself.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from tools.kernel_budget import kernels, sass
from tools.kernel_budget.__main__ import main
from tools.kernel_budget.prediction import MODEL_VERSION, command, simulation
from tools.kernel_budget.prediction.command import Record, compared, dump, make_record, tables
from tools.kernel_budget.prediction.model import LATENCIES_NS
from tools.kernel_budget.prediction.simulation import Program, program, programs
from tools.kernel_budget.record import load
from vae_fused import _ext

BASELINE = Path(command.__file__).with_name("baseline-8c2bdcc.json")
NAME = "forward<float, (Access)0>"

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


def slower(lines: Iterable[str]) -> list[str]:
    return [line for line in lines if line.endswith("SLOWER")]


def test_the_baseline_has_every_hot_kernel_and_latency_of_this_model() -> None:
    record = baseline()
    assert record["model"] == MODEL_VERSION
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


def test_losing_more_than_two_percent_is_slower() -> None:
    old = baseline()
    same = list(compared(old, old))
    assert not slower(same) and len(same) == len(old["predictions"])
    new = copy.deepcopy(old)
    new["predictions"][7]["loop"] *= 0.985
    assert not slower(compared(old, new))
    new["predictions"][7]["loop"] *= 0.985
    (line,) = slower(compared(old, new))
    assert new["predictions"][7]["kernel"] in line


@needs_compiler
def test_the_tables_call_predictions_by_their_name() -> None:
    found = [planted(), planted("forward<float, 4>")]
    record = make_record(found, ["h200", "b200"], [500.0, 2000.0])
    text = tables(record)
    assert text.startswith("Predictions, not measurements (issue model ")
    assert "**H200 SXM** (132 SMs, 1.755 GHz, copy 4.3 TB/s)" in text
    assert f"issue model {MODEL_VERSION}" in text
    row = next(line for line in text.splitlines() if f"`{NAME}`" in line)
    row = " ".join(row.split())
    fast, slow = (r for r in record["predictions"] if r["kernel"] == NAME)
    assert row == f"| `{NAME}` | {fast['loop']:.2f} | {slow['loop']:.2f} |"
    assert "B200" not in text  # it has other machine code


@needs_compiler
def test_the_command_compares_with_a_record_and_answers_by_its_status(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "programs", lambda file, kernel, archs: [planted()])
    asked = ["predict", "x.cubin", "--chip", "h200", "--latency", "700"]
    assert main([*asked, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [row["kernel"] for row in record["predictions"]] == [NAME]
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record))
    assert main([*asked, "--compare", str(path)]) == 0
    record["predictions"][0]["loop"] *= 1.1
    path.write_text(json.dumps(record))
    assert main([*asked, "--compare", str(path)]) == 1
    assert "SLOWER" in capsys.readouterr().out
    path.write_text(json.dumps(record | {"model": MODEL_VERSION + 1}))
    assert main([*asked, "--compare", str(path)]) == 2
    assert main([*asked[:3], "b200", *asked[4:]]) == 2  # no such machine code


@pytest.mark.slow
@needs_compiler
@pytest.mark.skipif(not _ext.has_cuda, reason="needs a CUDA build")
@pytest.mark.skipif("-O0" in str(_ext.build_info), reason="a DEBUG build has no speed")
@pytest.mark.skipif(kernels.find_cuobjdump() is None, reason="needs cuobjdump")
def test_no_installed_kernel_is_predicted_slower_than_the_baseline() -> None:
    extension = kernels.installed_extension()
    if (kernels.build_info(extension).get("cuda") or "") != load()["nvcc"]:
        pytest.skip("the baseline is of another nvcc")
    found = list(programs(extension, "", ["sm_90"]))
    if not found:
        pytest.skip("the extension has no code for sm_90")
    new = make_record(found, ["h200"], [660.0])
    lines = list(compared(baseline(), new))
    assert len(lines) == len(baseline()["predictions"]) // len(LATENCIES_NS)
    assert not slower(lines), "\n".join(lines)
