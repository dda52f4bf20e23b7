"""Checks the include table in docs/design.md, and the other rules that separate the layers."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"

# The files that each folder may include, in addition to the C++ standard library. `*` stands for a
# name without a slash, and `**` for any path. The design document contains the same rows.
MAY_INCLUDE = {
    "math": ["math/*.h"],
    "iteration": ["math/platform.h", "iteration/*.h"],
    "params": ["iteration/*.h", "params/device.h"],
    "cpu": [
        "math/*.h",
        "iteration/*.h",
        "params/device.h",
        "cpu/*.h",
        "immintrin.h",
        "arm_neon.h",
        "cpuid.h",
        "sys/mman.h",
        "unistd.h",
    ],
    "cuda": ["math/*.h", "iteration/*.h", "params/device.h", "cuda/*.cuh", "cuda_runtime.h"],
    "torch": [
        "math/*.h",
        "iteration/*.h",
        "params/device.h",
        "torch/*.h",
        "ATen/**.h",
        "c10/**.h",
        "torch/csrc/autograd/**.h",
        "torch/csrc/dynamo/**.h",
        "Python.h",
    ],
}
# Each family has its own files in each layer, which may include the following files in addition to
# the layer's includes. Shared files therefore include no family, and families do not include each
# other.
FAMILIES = ("latent", "likelihood")
MAY_INCLUDE_OF_FAMILY = {
    "math": ["math/<family>/*.h"],
    "params": ["math/<family>/options.h", "math/<family>/stats.h", "params/<family>*.h"],
    "cpu": ["math/<family>/*.h", "params/<family>*.h", "cpu/<family>/*.h"],
    "cuda": ["math/<family>/*.h", "params/<family>*.h", "cuda/<family>/*.cuh"],
    "torch": ["math/<family>/*.h", "params/<family>*.h", "torch/<family>/*.h"],
}
STANDARD = re.compile(r"^(c?[a-z_]+)$")  # <cmath>, <vector>: no slash, no suffix

# The modules of the package, and the submodules of torch, that each Python module may import.
# `ENTRANCES` contains the other two modules: __init__ collects the public names, and env.py prints
# a diagnosis.
MAY_IMPORT = {
    "_remedies": [],
    "_numbers": ["_remedies"],
    "_overrides": [r"torch\.overrides"],
    "_restored": [],
    "_shapes": [],
    "options": ["_ext", "_numbers", "_overrides", "_remedies", "_restored", "_shapes"],
    "_keywords": ["options", r"torch\.nn"],
    "_layouts": [],
    "_learned_prior": ["_numbers", "options", r"torch\.nn"],
    "_checks": [
        "_estimator",
        "_keywords",
        "_layouts",
        "_learned_prior",
        "_numbers",
        "_remedies",
        "_scalar_checks",
        "_shapes",
        "_tracing",
        "options",
    ],
    "_estimator": ["_numbers"],
    "_scalar_checks": [
        "_numbers",
        r"torch\.autograd",
        r"torch\.fx\.experimental\.symbolic_shapes",
    ],
    "_formulas.__init__": [],
    "_formulas.gaussian": ["_forward_mode", "options", r"torch\.nn\.functional"],
    "_formulas.latent": ["_formulas", r"_formulas\.gaussian", "options"],
    "_formulas.special": ["_forward_mode", "_shapes", r"torch\.nn\.functional"],
    "_formulas.likelihood": [r"_formulas\.(gaussian|special)"],
    "_formulas.count_logits": [r"_formulas(\.(gaussian|likelihood|special))?"],
    "_formulas.densities": [r"_formulas\.(gaussian|special)"],
    "_formulas.reconstruction": [r"_formulas\.latent", "_likelihood"],
    "_likelihood": ["_ext", "_numbers", "_restored", "options"],
    "_likelihood_checks": ["_checks", "_likelihood", "_numbers", "_remedies", "_shapes"],
    "_elbo_checks": [
        "_checks",
        "_likelihood",
        "_likelihood_checks",
        "_numbers",
        "_remedies",
        "_scalar_checks",
    ],
    "_ext": ["_install"],
    "_tracing": [r"torch\.fx\..*", r"torch\.utils\.checkpoint", r"torch\._functorch\.config"],
    "_install": ["_version"],
    "_version": [],
    "_forward_mode": [r"torch\.autograd"],
    "_native.__init__": [],
    "_native.call": ["options"],
    "_native.autograd": ["_formulas", "_forward_mode", r"_native\.call", "options"],
    "_native.latent": ["_ext", r"_native\.(autograd|call)", "options", r"torch\.autograd"],
    "_native.likelihood": ["_ext", "_formulas", "_likelihood", r"_native\.(autograd|call|latent)"],
    "_spread": ["_checks", "_ext", "_formulas", "_native", "options", r"torch\.distributed\..*"],
    "_sharding": ["_checks", "_learned_prior", "_spread", "options"],
    "_native.registration": [r"_formulas\.latent", r"_native\.(autograd|call|likelihood)"],
    "functional": [
        "_checks",
        "_ext",
        "_formulas",
        "_keywords",
        "_native",
        "_overrides",
        "_sharding",
        "_tracing",
        "options",
    ],
    "_list_checks": ["_checks", "_learned_prior", "options"],
    "lists": [
        "_ext",
        "_formulas",
        "_keywords",
        "_list_checks",
        "_native",
        "_overrides",
        "_sharding",
        "functional",
    ],
    "keys": ["_checks", r"_formulas\.latent", "_overrides", "functional", r"torch\.overrides"],
    "losses": [
        "_checks",
        "_formulas",
        "_keywords",
        "_likelihood",
        "_likelihood_checks",
        "_native",
        "_overrides",
        "_sharding",
        "options",
    ],
    "elbo": [
        "_checks",
        "_elbo_checks",
        "_formulas",
        r"_formulas\.(gaussian|latent)",
        "_keywords",
        "_likelihood",
        "_likelihood_checks",
        "_native",
        "_numbers",
        "_overrides",
        "_scalar_checks",
        "_sharding",
        "functional",
        "losses",
    ],
    "export": ["_ext", "_formulas", r"_native\.(call|likelihood|registration)", "options", "stats"],
    "iwae": ["_checks", r"_formulas\.latent", "_numbers", "_overrides", "_scalar_checks"],
    "_iwae_module": ["iwae", r"torch\.nn"],
    "stats": [
        "_checks",
        "_ext",
        "_formulas",
        r"_formulas\.gaussian",
        "_keywords",
        "_native",
        "_overrides",
        "_sharding",
        "options",
    ],
    "reference": [r"_formulas\.latent", "elbo", "functional", "iwae", "lists", "losses", "stats"],
    "_normal": [
        "_checks",
        r"_formulas\.(gaussian|latent|special)",
        "_shapes",
        "functional",
        "options",
        r"torch\.distributions",
    ],
    "distributions": ["_checks", "_normal", "options", r"torch\.distributions"],
    "_count_distributions": ["losses", r"torch\.distributions(\.utils)?"],
    "_grid_distribution": ["_likelihood", "losses", r"torch\.distributions"],
    "_kinds.__init__": [],
    "_kinds.base": [
        r"_formulas\.latent",
        "_likelihood",
        "_likelihood_checks",
        "losses",
        r"torch\.distributions",
    ],
    "_kinds.bounded": [
        r"_formulas(\.\w+)?",
        "_grid_distribution",
        r"_kinds\.base",
        "_likelihood",
        "_numbers",
        r"torch\.distributions",
    ],
    "_kinds.counts": [
        r"_formulas(\.\w+)?",
        "_count_distributions",
        r"_kinds\.base",
        "_likelihood",
        "_numbers",
        r"torch\.distributions",
    ],
    "_kinds.real": [
        r"_formulas(\.\w+)?",
        r"_kinds\.base",
        "_likelihood",
        "_numbers",
        "distributions",
        "options",
        r"torch\.distributions",
    ],
    "likelihoods": [r"_kinds\.(bounded|counts|real)", "_likelihood"],
    "schedules": ["_numbers", r"torch\.nn"],
    "nn": [
        "_checks",
        "_elbo_checks",
        "_formulas",
        "_iwae_module",
        "_keywords",
        "_learned_prior",
        "_likelihood",
        "_numbers",
        "_overrides",
        "_remedies",
        "elbo",
        "functional",
        "likelihoods",
        "options",
        "schedules",
        r"torch\.nn",
    ],
    "compat.__init__": [],
    "compat._patch": [],
    "compat.distributions": ["_checks", "_normal", "options", r"torch\.distributions"],
    "compat._posterior": ["distributions", "functional", "options"],
    "compat.diffusers": [
        "_checks",
        "compat",
        r"compat\._posterior",
        "distributions",
        "functional",
        "options",
    ],
    "compat.pyro": ["_normal", "compat", "distributions"],
    "compat.scvi": ["_likelihood", "likelihoods", "losses"],
}
ENTRANCES = {"__init__", "env"}
PACKAGE = ROOT / "vae_fused"
MODULES = {
    ".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in sorted(PACKAGE.rglob("*.py"))
}

SOURCES = sorted(p for p in CSRC.rglob("*") if p.suffix in {".h", ".cuh", ".cpp", ".cu"})


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), re.MULTILINE)


def layer_of(path: Path) -> tuple[str, str | None]:
    """Returns the folder in csrc that contains a file, and the file's family, if any."""
    layer, *family = path.parent.relative_to(CSRC).parts
    if layer == "params":  # params has one or two files per family
        family = [f for f in FAMILIES if path.stem.startswith(f)]
    return layer, family[0] if family else None


def may_include(path: Path, name: str) -> bool:
    layer, family = layer_of(path)
    allowed = list(MAY_INCLUDE[layer])
    if family is not None:
        allowed += [a.replace("<family>", family) for a in MAY_INCLUDE_OF_FAMILY[layer]]
    escaped = (re.escape(a).replace(r"\*\*", r"[\w/]+").replace(r"\*", r"\w*") for a in allowed)
    return any(re.fullmatch(pattern, name) for pattern in escaped)


def without_comments(path: Path) -> str:
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(CSRC).as_posix())
def test_files_include_only_what_their_layer_may(path: Path) -> None:
    for name in includes(path):
        assert STANDARD.match(name) or may_include(path, name), name


def test_the_include_rules_keep_families_apart() -> None:
    shared, family = CSRC / "cpu" / "a.h", CSRC / "cpu" / "latent" / "a.h"
    assert may_include(family, "cpu/latent/b.h") and may_include(family, "cpu/b.h")
    assert may_include(family, "params/latent_multi.h")
    assert not may_include(shared, "cpu/latent/b.h")
    assert not may_include(shared, "params/latent.h")
    assert not may_include(family, "cpu/other/b.h")
    assert not may_include(family, "math/other/b.h")
    assert not may_include(CSRC / "params" / "latent.h", "params/other.h")
    assert not may_include(CSRC / "torch" / "latent" / "a.cpp", "cpu/b.h")


def test_the_table_in_the_design_document_is_this_one() -> None:
    text = (ROOT / "docs" / "design.md").read_text()
    rows = {
        folder: re.findall(r"`([^`]+)`", allowed)
        for folder, allowed in re.findall(r"^\| `csrc/([^`]+)` \| (.*) \|$", text, re.MULTILINE)
    }
    expected = {f"{layer}/": allowed for layer, allowed in MAY_INCLUDE.items()}
    for layer, allowed in MAY_INCLUDE_OF_FAMILY.items():
        name = f"{layer}/<family>*.h" if layer == "params" else f"{layer}/<family>/"
        expected[name] = [f"csrc/{layer}/", *allowed]
    assert rows == expected


def imports(path: Path) -> list[str]:
    """Returns the imported submodules of torch and of the package, the latter without its name."""
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
        if layer_of(path)[0] == "math" and path.name != "platform.h":
            assert not re.search(r"__CUDACC__|__CUDA_ARCH__|__GNUC__", without_comments(path)), path


def test_kernels_know_no_torch() -> None:
    for path in SOURCES:
        if layer_of(path)[0] != "torch":
            assert not re.search(r"\b(at|c10|torch)::", without_comments(path)), path


def test_extension_binds_nothing_with_pybind11() -> None:
    assert not any("pybind" in name for path in SOURCES for name in includes(path))


def test_one_name_for_one_concept_on_both_devices() -> None:
    """The exceptions are the CPU files per instruction set and the GPU files per dtype."""
    for family in FAMILIES:
        cpu = {p.stem for p in (CSRC / "cpu" / family).glob("*.cpp")}
        cpu -= {"tiles", "tiles_avx2", "tiles_avx512"}
        cuda = {p.stem for p in (CSRC / "cuda" / family).glob("*.cu")}
        cuda -= {f"nll_{dtype}" for dtype in ("float", "double", "half", "bfloat16")}
        assert cpu == cuda


def test_files_stay_readable() -> None:
    """Tests are exempt, because all tests of one promise are in one file."""
    folders = ("vae_fused", "examples", "build_support", "tools", "benchmarks")
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
