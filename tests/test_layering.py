"""The include table of docs/design.md, and the other rules that keep the layers apart."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"

# What the files of a folder may include, beside the C++ standard library: regular expressions.
MAY_INCLUDE = {
    "math": [r"math/\w+\.h"],
    ".": [r"math/platform\.h", r"params\.h"],
    "cpu": [r"math/\w+\.h", r"params\.h", r"cpu/\w+\.h"],
    "cuda": [r"math/\w+\.h", r"params\.h", r"cuda/\w+\.cuh", r"cuda_runtime\.h"],
    "torch": [
        r"math/\w+\.h",
        r"params\.h",
        r"space\.h",
        r"torch/(ops|rng|reduction)\.h",
        r"(ATen|c10)/[\w/]+\.h",
        r"torch/library\.h",
        r"torch/csrc/autograd/custom_function\.h",
        r"Python\.h",
    ],
}
STANDARD = re.compile(r"^(c?[a-z_]+)$")  # <cmath>, <vector>: no slash, no suffix

SOURCES = sorted(p for p in CSRC.rglob("*") if p.suffix in {".h", ".cuh", ".cpp", ".cu"})


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), re.MULTILINE)


def folder(path: Path) -> str:
    return path.parent.relative_to(CSRC).as_posix()


def without_comments(path: Path) -> str:
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(CSRC).as_posix())
def test_files_include_only_what_their_layer_may(path: Path) -> None:
    allowed = MAY_INCLUDE[folder(path)]
    for name in includes(path):
        assert STANDARD.match(name) or any(re.fullmatch(a, name) for a in allowed), name


def test_the_table_in_the_design_document_is_this_one() -> None:
    text = (ROOT / "docs" / "design.md").read_text()
    for layer in MAY_INCLUDE:
        assert f"`csrc/{layer}/`" in text or (layer == "." and "`csrc/params.h`" in text), layer


def test_only_platform_h_looks_at_the_compiler() -> None:
    for path in SOURCES:
        if folder(path) == "math" and path.name != "platform.h":
            assert not re.search(r"__CUDACC__|__CUDA_ARCH__|__GNUC__", without_comments(path)), path


def test_kernels_know_no_torch() -> None:
    for path in SOURCES:
        if folder(path) != "torch":
            assert not re.search(r"\b(at|c10|torch)::", without_comments(path)), path


def test_extension_binds_nothing_with_pybind11() -> None:
    assert not any("pybind" in name for path in SOURCES for name in includes(path))


def test_one_name_for_one_concept_on_both_devices() -> None:
    cpu = {p.stem for p in (CSRC / "cpu").glob("*.cpp")}
    cuda = {p.stem for p in (CSRC / "cuda").glob("*.cu")}
    assert cpu == cuda


def test_files_stay_readable() -> None:
    python = [
        p for d in ("vae_fused", "tests", "examples", "tools") for p in (ROOT / d).rglob("*.py")
    ]
    for path in [*SOURCES, *python]:
        assert len(path.read_text().splitlines()) <= 400, path


def test_nothing_turns_on_fast_math_or_picks_a_language_standard() -> None:
    text = "\n".join(
        line for line in (ROOT / "setup.py").read_text().splitlines()
        if not line.lstrip().startswith("#")
    )  # fmt: skip
    for flag in (
        "-ffast-math",
        "-Ofast",
        "-funsafe-math",
        '"--use_fast_math"',
        "-march=native",
        '"-std',
    ):
        assert flag not in text, flag
