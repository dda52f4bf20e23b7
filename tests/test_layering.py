"""The include table of docs/design.md, and the other rules that keep the layers apart."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"

# What the files of a folder may include, beside the C++ standard library: regular expressions.
MAY_INCLUDE = {
    "math": [r"math/\w+\.h"],
    ".": [r"math/family\.h", r"params\.h"],
    "cpu": [
        r"math/\w+\.h",
        r"params\.h",
        r"space\.h",
        r"cpu/\w+\.h",
        r"immintrin\.h",
        r"arm_neon\.h",
        r"cpuid\.h",
        r"sys/mman\.h",
        r"unistd\.h",
    ],
    "cuda": [r"math/\w+\.h", r"params\.h", r"cuda/\w+\.cuh", r"cuda_runtime\.h"],
    "torch": [
        r"math/\w+\.h",
        r"params\.h",
        r"space\.h",
        r"torch/(ops|options|check|bind|differentiable|dispatch|node|rng|reduction)\.h",
        r"(ATen|c10)/[\w/]+\.h",
        r"torch/library\.h",
        r"torch/csrc/autograd/custom_function\.h",
        r"Python\.h",
    ],
}
STANDARD = re.compile(r"^(c?[a-z_]+)$")  # <cmath>, <vector>: no slash, no suffix

# What the Python modules may import of the package, and of torch beside `torch` itself. __init__
# gathers the public names, env.py is the diagnosis: both are read before all else.
MAY_IMPORT = {
    "options": [],
    "_checks": ["options"],
    "_gaussian": ["options", r"torch\.nn\.functional"],
    "_ext": [],
    "_tracing": [r"torch\.fx\..*", r"torch\.utils\.checkpoint", r"torch\._functorch\.config"],
    "_version": [],
    "reference": ["_checks", "_gaussian", "options"],
    "functional": ["_checks", "_ext", "_tracing", "options", "reference"],
    "distributions": [
        "_checks",
        "_gaussian",
        "functional",
        "options",
        "reference",
        r"torch\.distributions",
    ],
    "multi": ["_checks", "_ext", "functional", "options", "reference"],
    "nn": ["_checks", "distributions", "functional", "options", "reference", r"torch\.nn"],
    "compat.__init__": [],
    "compat.diffusers": ["distributions", "options"],
}
ENTRANCES = {"__init__", "env"}
PACKAGE = ROOT / "vae_fused"
MODULES = {
    ".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in sorted(PACKAGE.rglob("*.py"))
}

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


def imports(path: Path) -> list[str]:
    """Modules of torch, and those of the package without its name."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            from_package = node.module == "vae_fused"
            names += (
                [f"vae_fused.{a.name}" for a in node.names] if from_package else [str(node.module)]
            )
    ours = [n.removeprefix("vae_fused.") for n in names if n.startswith("vae_fused")]
    return ours + [n for n in names if n.startswith("torch.")]


def test_every_python_module_has_a_layer() -> None:
    assert set(MAY_IMPORT) | ENTRANCES == set(MODULES)


@pytest.mark.parametrize("module", MAY_IMPORT)
def test_modules_import_only_what_their_layer_may(module: str) -> None:
    for name in imports(MODULES[module]):
        assert any(re.fullmatch(allowed, name) for allowed in MAY_IMPORT[module]), name


def test_the_python_table_in_the_design_document_is_this_one() -> None:
    text = (ROOT / "docs" / "design.md").read_text()
    rows = dict(re.findall(r"^\| `(\w[\w/]*)\.py` \| (.*) \|$", text, re.MULTILINE))
    for module, allowed in MAY_IMPORT.items():
        ours = [name for name in allowed if "." not in name]
        if ours:
            assert re.findall(r"`(\w+)`", rows[module.replace(".", "/")]) == ours, module


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
    """Beside the CPU's own: what it makes of its instruction sets."""
    cpu = {p.stem for p in (CSRC / "cpu").glob("*.cpp")}
    cpu -= {"capability", "pages", "noise", "noise_avx2", "noise_avx512"}
    cpu -= {"tiles", "tiles_avx2", "tiles_avx512"}
    cuda = {p.stem for p in (CSRC / "cuda").glob("*.cu")}
    assert cpu == cuda


def test_files_stay_readable() -> None:
    folders = ("vae_fused", "tests", "examples", "tools", "benchmarks")
    python = [p for folder in folders for p in (ROOT / folder).rglob("*.py")]
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
