"""The budget tool reads compiled kernels, and reports every kernel that exceeds its record.

Most tests use planted records. A few read the project's record, and the last test reads the
installed extension.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
from machine_code import count

from tools.kernel_budget import __main__ as command
from tools.kernel_budget import document, kernels, sass
from tools.kernel_budget import record as budget
from tools.kernel_budget.hot_path import hot_path
from tools.kernel_budget.pipes import busy, pipe
from vae_fused import _ext

# --- kernel names and figures --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signature", "name", "arguments"),
    [
        (
            "void vae_fused::cuda::(anonymous namespace)::forward_kernel<vae_fused::math::Half, 8>"
            "(vae_fused::ForwardParams, int)",
            "forward<Half, 8>",
            ["Half", "8"],
        ),
        ("void a::k_kernel<float, true, (a::M)2>(a::P)", "k<float, true, (M)2>",
         ["float", "true", "(M)2"]),
        ("void b_kernel<a::P<a::X<2>, 2>, 4>(void (*)(int))", "b<P<X<2>, 2>, 4>", ["P", "4"]),
        ("vae_fused::cuda::zero_kernel(int*, long)", "zero", [""]),
        ("_Zunknown", "_Zunknown", [""]),
    ],
)  # fmt: skip
def test_kernels_are_named_by_their_template_arguments(
    signature: str, name: str, arguments: list[str]
) -> None:
    assert kernels.short_name(signature) == name
    assert kernels.template_arguments(name) == arguments


@pytest.mark.skipif(sys.platform != "linux", reason="asks libstdc++")
def test_names_are_demangled() -> None:
    name = "_ZN9vae_fused4cuda12_GLOBAL__N_114forward_kernelIfLi4EEEvNS_13ForwardParamsEi"
    assert kernels.short_name(kernels.demangled(name)) == "forward<float, 4>"
    assert kernels.demangled("main") == "main"


@pytest.mark.parametrize(
    ("name", "loads", "stores", "served"),
    [
        ("forward<float, 4>", "128 128", "128", 4),
        ("forward<float, (Access)0>", "128 128", "128", 4),
        ("forward<float, (Access)0>", "128 128", "32 32 32 32", 4),  # a vector in 4 accesses
        ("forward<float, (Access)0>", "128 128 128 128", "128 128", 8),  # unrolled
        ("forward<float, (Access)0>", "128 128 128 128", "128", 4),  # shifted vectors: two loads
        ("backward<Half, true>", "128 128 128", "128 128", 8),
        ("backward<Half, true>", "128 128 128 128", "128 128 128", 8),  # the noise and its gradient
        ("backward<BFloat16, 1>", "32 16 16 16", "16 16", 1),
        ("combine<float>", "64", "64", None),
    ],
)
def test_elements_follow_from_loads_and_stores(
    name: str, loads: str, stores: str, served: int | None
) -> None:
    def widths(base: str, bits: str) -> list[str]:
        return [
            f"{base}.E.{b} R4, R2".replace(".32", "").replace(".16", ".U16") for b in bits.split()
        ]

    texts = ["FADD R1, R1, R1", *widths("LDG", loads), *widths("STG", stores), "@P0 BRA 0x0"]
    lines = [f"  /*{16 * n:04x}*/  {text} ; /* */" for n, text in enumerate(texts)]
    assert kernels.elements(name, hot_path(sass.parse(lines))) == served


def test_resource_usage_is_read_by_kernel() -> None:
    text = (
        "\nResource usage:\n Common:\n  GLOBAL:4\n Function _Zf:\n  REG:70 STACK:8 SHARED:9 LOCAL:0"
    )
    usage = kernels.usages(text + " CONSTANT[0]:15\n")["_Zf"]
    assert (usage["REG"], usage["STACK"], usage["SHARED"]) == (70, 8, 9)


def test_pipes_are_kept_busy_by_their_instructions() -> None:
    texts = [
        "FFMA R1, R1, R1, R1",
        "IMAD.WIDE.U32 R2, R4, 0x3, RZ",
        "IMAD R1, R2, R3, R4",
        "LOP3.LUT R1, R2, R3, R4, 0x96, !PT",
        "MUFU.EX2 R1, R1",
        "LDG.E R1, [R2.64]",
    ]
    code = sass.parse([f"  /*{16 * n:04x}*/  {text} ; /* */" for n, text in enumerate(texts)])
    found = busy(code, "sm_90")
    assert found == {"FMA": 1, "FMA_HEAVY": 6, "ALU": 2, "XU": 8, "LSU": 4}


@pytest.mark.parametrize(
    ("arch", "instruction", "expected"),
    [
        ("sm_80", "FADD R1, R2, R3", ("FMA_HEAVY", 2)),  # one FMA pipe
        ("sm_100", "FFMA2 R2, R4, R6, R8", ("FMA_BOTH", 2)),
        ("sm_89", "DADD R2, R4, R6", ("FP64", 64)),
        ("sm_80", "DADD R2, R4, R6", ("FP64", 4)),
        ("sm_90", "BSSY B0, 0x10", ("BRANCH", 1)),
    ],
)
def test_pipes_depend_on_the_architecture(
    arch: str, instruction: str, expected: tuple[str, int]
) -> None:
    (found,) = sass.parse([f"  /*0000*/  {instruction} ; /* */"])
    assert pipe(found, arch) == expected


# --- the record ----------------------------------------------------------------------------------

ROW = {
    "registers": 40, "stack": 0, "shared": 1024, "spills": 0, "all_spills": 0,
    "instructions": 900, "per_element": 30.0, "load": 128, "store": 128,
}  # fmt: skip
RECORD: dict[str, Any] = {
    "nvcc": "13.0",
    "sizes": {"sm_90": 1_000_000, "sm_100": 2_000_000},
    "spilling": {},
    "oversized": {},
    "kernels": {"forward<float, 4>": {"sm_90": dict(ROW), "sm_100": dict(ROW)}},
}


def found(**changes: Any) -> dict[str, Any]:
    """Returns the tool's findings for the recorded extension, for sm_90 and with these changes."""
    return {
        "nvcc": "13.0",
        "sizes": {"sm_90": 1_000_000},
        "kernels": {"forward<float, 4>": {"sm_90": ROW | changes}},
    }


def test_what_was_recorded_is_within_the_budget() -> None:
    assert budget.violations(RECORD, found()) == []
    slack = {"registers": 44, "per_element": 32.5, "instructions": 9999, "load": 256}
    assert budget.violations(RECORD, found(**slack)) == []


@pytest.mark.parametrize(
    ("what", "value", "allowed"),
    [
        ("registers", 45, "at most 44"),
        ("per_element", 32.6, "at most 32.5"),
        ("stack", 8, "at most 0"),
        ("shared", 1025, "at most 1024"),
        ("all_spills", 1, "at most 0"),
        ("load", 64, "at least 128"),
        ("store", 32, "at least 128"),
    ],
)
def test_each_limit_is_kept_and_named(what: str, value: float, allowed: str) -> None:
    (line,) = budget.violations(RECORD, found(**{what: value}))
    assert line == (
        f"sm_90 forward<float, 4>: {what}: recorded {ROW[what]}, allowed {allowed}, found {value}"
    )


@pytest.mark.parametrize(
    ("arch", "kernel", "kilobytes", "floor"),
    [
        ("sm_90", "forward<float, (Access)0>", 31.0, 32),
        ("sm_90", "forward<BFloat16, (Access)0>", 16.0, 32),
        ("sm_90", "backward<Half, (Access)0>", 47.9, 48),
        ("sm_90", "backward<float, (Access)0>", None, 48),
        ("sm_90", "forward<Half, (Access)0>", 32.0, None),
        ("sm_90", "backward<BFloat16, (Access)0>", 48.0, None),
        ("sm_90", "forward<BFloat16, (Access)1>", 12.0, None),  # chunks have no floor
        ("sm_90", "forward<double, (Access)0>", 16.0, None),
        ("sm_80", "forward<BFloat16, (Access)0>", 16.0, None),
    ],
)
def test_contiguous_kernels_have_a_floor_of_bytes_in_flight_whatever_the_record_says(
    arch: str, kernel: str, kilobytes: float | None, floor: int | None
) -> None:
    row = ROW | {"in_flight": 16.0, "in_flight_kb": kilobytes}
    same: dict[str, Any] = {**RECORD, "sizes": {arch: 1}, "kernels": {kernel: {arch: row}}}
    for other in (same, same | {"nvcc": "13.2"}):
        line = f"{arch} {kernel}: in_flight_kb: at least {floor}, found {kilobytes}"
        assert budget.violations(same, other) == ([] if floor is None else [line])


@pytest.mark.parametrize(
    ("recorded", "counted", "allowed"),
    [(40.0, 43.0, ""), (40.0, 43.1, "at most 43.0"), (None, 1.0, "at most None")],
)
def test_executed_instructions_are_held_to_their_record(
    recorded: float | None, counted: float, allowed: str
) -> None:
    row = ROW | ({} if recorded is None else {budget.EXECUTED: recorded})
    record = {**RECORD, "kernels": {"forward<float, (Access)0>": {"sm_90": row}}}
    row = {budget.EXECUTED: counted}
    lines = list(budget.executed_violations(record, {"forward<float, (Access)0>": row}))
    assert [f"allowed {allowed}, found {counted}" in line for line in lines] == [True] * bool(
        allowed
    )


@pytest.mark.parametrize(
    ("recorded", "counted", "fails"), [(48.0, 48.0, False), (48.0, 47.9, True), (None, 99.0, True)]
)
def test_likelihoods_are_held_to_their_bytes_in_flight(
    recorded: float | None, counted: float, fails: bool
) -> None:
    name = "nll<float, Gaussian>"
    row = ROW | ({} if recorded is None else {budget.EXECUTED_IN_FLIGHT: recorded})
    record = {**RECORD, "kernels": {name: {"sm_90": row}}}
    lines = list(budget.executed_violations(record, {name: {budget.EXECUTED_IN_FLIGHT: counted}}))
    assert [f"allowed at least {recorded}, found {counted}" in line for line in lines] == (
        [True] * fails
    )


def cells(text: str, arch: str, kernel: str) -> dict[str, str]:
    """Returns a kernel's row in an architecture's table, by column."""
    lines = text.partition(f"## {arch}")[2].partition("\n## ")[0].splitlines()
    (line,) = (line for line in lines if f"`{kernel}`" in line)
    values = [cell.strip() for cell in line.split("|")[2:-1]]
    return dict(zip(document.COLUMNS[1:], values, strict=True))


def test_the_document_has_what_is_recorded() -> None:
    record = copy.deepcopy(RECORD)
    rows = record["kernels"]["forward<float, 4>"]
    rows["sm_90"] |= {"in_flight": 32.0, "in_flight_kb": 24.0, budget.EXECUTED: 30.5}
    record["kernels"]["nll<float, Gaussian>"] = {
        "sm_90": ROW
        | {"registers": 64, "per_element": None, "all_spills": 2}
        | {budget.EXECUTED: 151.3, budget.EXECUTED_IN_FLIGHT: 48.0}
    }
    record["spilling"] = {"nll<float, Gaussian>": "because"}
    text = document.document(record)
    assert "- `nll<float, Gaussian>`: because" in text and "## sm_100: 2,000,000 bytes" in text
    assert cells(text, "sm_90", "forward<float, 4>") == {
        "regs": "40", "stack": "0", "shared": "1,024", "spills": "0/0", "instr.": "900",
        "per elem.": "30.0", "executed": "30.5", "in flight": "32/24", "ld/st": "128/128",
    }  # fmt: skip
    found = cells(text, "sm_90", "nll<float, Gaussian>")
    assert (found["per elem."], found["spills"]) == ("", "0/2")
    assert (found["executed"], found["in flight"]) == ("151.3", "48/48")
    found = cells(text, "sm_100", "forward<float, 4>")
    assert (found["executed"], found["in flight"]) == ("", "")
    assert "nll" not in text.partition("## sm_100")[2]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("nll<BFloat16, Gaussian>", ("forward", "BFloat16", "Gaussian")),
        ("nll_backward<double, AnyKind, (bool)0>", ("backward", "double", "AnyKind")),
        ("nll_backward<Half, StudentT, (bool)1>", ("both", "Half", "StudentT")),
        ("softmax_rows<float>", None),
        ("forward<float, (Access)0>", None),
    ],
)
def test_kernels_of_likelihoods_are_told_from_the_others(
    name: str, found: tuple[str, str, str] | None
) -> None:
    of = kernels.likelihood(name)
    assert (of and (of.direction, of.element, of.kind)) == found


@pytest.mark.parametrize(
    ("name", "is_counted"),
    [
        ("nll<BFloat16, Gaussian>", True),
        ("nll<BFloat16, StudentT>", False),
        ("nll_backward<float, StudentT, (bool)1>", True),
        ("nll_backward<BFloat16, Gaussian, (bool)1>", False),
        ("nll<Half, Gaussian>", False),
        ("nll_backward<double, AnyKind, (bool)0>", False),
        ("forward<float, (Access)0>", True),
        ("softmax_rows<float>", False),
    ],
)
def test_a_few_kernels_are_counted_by_executing_them(name: str, is_counted: bool) -> None:
    assert count.is_hot(name) == is_counted


def test_the_widths_of_a_likelihood_are_those_of_all_its_loops() -> None:
    """The loop with the most additions neither loads from nor stores to global memory."""
    texts = [
        *("LDG.E.128 R4, desc[UR4][R2.64]", "STS.128 [R0], R4", "BAR.SYNC 0x0"),
        *("LDS R4, [R0]", "FADD R4, R4, R4", "@P0 BRA 0x30", "STG.E.64 desc[UR4][R2.64], R4"),
        "EXIT",
    ]
    code = sass.parse([f"  /*{16 * n:04x}*/  {text} ; /* */" for n, text in enumerate(texts)])
    usage = {"REG": 64, "STACK": 0, "SHARED": 18544}
    row = kernels.row("nll<float, Gaussian>", "sm_90", usage, code)
    assert (row["load"], row["store"], row["per_element"]) == (128, 64, None)


def test_every_hot_kernel_has_a_record_of_what_it_executes() -> None:
    rows = budget.load()["kernels"]
    recorded = {name for name in rows if budget.EXECUTED in rows[name].get("sm_90", {})}
    assert recorded == {name for name in rows if count.is_hot(name)}


def test_the_record_keeps_the_floors_since_it_has_bytes_in_flight() -> None:
    rows = {
        (arch, name): budget.load()["kernels"][name][arch]
        for arch, floors in budget.FLOORS.items()
        for name in floors
    }  # fails for a kernel that was renamed
    if any("in_flight_kb" in row for row in rows.values()):
        assert [budget.below_floor(*key, row) for key, row in rows.items()] == [[]] * len(rows)


def test_new_and_missing_kernels_are_violations() -> None:
    other = found()
    other["kernels"] = {"forward<float, 8>": other["kernels"]["forward<float, 4>"]}
    assert budget.violations(RECORD, other) == [
        "sm_90 forward<float, 4>: is recorded, but gone",
        "sm_90 forward<float, 8>: is not recorded",
    ]


def test_sizes_have_a_limit_of_their_own_and_one_for_all() -> None:
    grown = found()
    grown["sizes"] = {"sm_90": 1_100_001}
    (line,) = budget.violations(RECORD, grown)
    assert "sm_90: size" in line and "1100000" in line
    large = copy.deepcopy(RECORD)
    large["sizes"]["sm_90"] = grown["sizes"]["sm_90"] = budget.LARGEST
    assert f"at most {budget.LARGEST - 1}" in budget.violations(large, grown)[0]
    assert budget.violations(large | {"oversized": {"sm_90": "because"}}, grown) == []


def test_exceptions_need_a_reason_and_keep_their_count() -> None:
    record = copy.deepcopy(RECORD)
    record["kernels"]["forward<float, 4>"]["sm_90"]["all_spills"] = 3
    record["spilling"] = {"forward<float, 4>": ""}
    assert "without a reason" in budget.violations(record, found(all_spills=3))[0]
    record["spilling"] = {"forward<float, 4>": "because"}
    assert budget.violations(record, found(all_spills=3)) == []
    assert "found 4" in budget.violations(record, found(all_spills=4))[0]


def test_another_nvcc_is_held_to_spills_widths_and_sizes() -> None:
    changed = {"registers": 99, "per_element": 99.0, "stack": 9, "shared": 9999}
    other = found(**changed) | {"nvcc": "13.2"}
    assert budget.violations(RECORD, other) == []
    other = found(**changed, load=64, all_spills=1) | {
        "nvcc": "13.2",
        "sizes": {"sm_90": 2_000_000},
    }
    assert len(budget.violations(RECORD, other)) == 3


def test_an_update_keeps_other_architectures_and_reasons() -> None:
    old = copy.deepcopy(RECORD) | {"spilling": {"forward<float, 4>": "because", "gone": "x"}}
    new = budget.updated(old, found(all_spills=2, registers=50))
    rows = new["kernels"]["forward<float, 4>"]
    assert rows["sm_90"]["registers"] == 50 and rows["sm_100"] == ROW
    assert new["spilling"] == {"forward<float, 4>": "because"}
    assert budget.updated(RECORD, found(all_spills=2))["spilling"] == {"forward<float, 4>": ""}


def test_the_record_is_written_as_it_is_read() -> None:
    assert budget.dump(budget.load()) == budget.BUDGET.read_text()


def test_the_document_is_written_from_the_record(tmp_path: Path) -> None:
    table = tmp_path / "folder" / "budget.md"
    assert command.main(["--markdown", str(table)]) == 0
    assert table.read_text() == document.document(budget.load())


def test_every_exception_has_its_reason() -> None:
    record = budget.load()
    assert all(record["spilling"].values()) and all(record["oversized"].values())


@pytest.mark.skipif(not _ext.has_cuda, reason="needs a CUDA build")
@pytest.mark.skipif("-O0" in str(_ext.build_info), reason="a DEBUG build has no budget")
@pytest.mark.skipif(kernels.find_cuobjdump() is None, reason="needs cuobjdump")
def test_the_installed_kernels_are_within_the_budget(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--check"]) == 0, capsys.readouterr().out
