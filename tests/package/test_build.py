"""setup.py selects builds as documented, reports the choice in one line, and hides no failure."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
VARIABLES = ("CXX", "DEBUG", "FORCE_CUDA", "TORCH_CUDA_ARCH_LIST", "VAE_FUSED_BUILD")

NVCC = """#!/bin/sh
case "$1" in
    --version) echo "Cuda compilation tools, release {version}, V{version}.1" ;;
    --list-gpu-arch) printf 'compute_75\\ncompute_80\\ncompute_90\\ncompute_100\\n' ;;
    --dryrun) echo '#$ TOP={home}/bin/..' >&2 ;;
esac
"""


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Imports setup.py as a module, in an environment without the variables that it reads."""
    for name in (*VARIABLES, "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    spec = importlib.util.spec_from_file_location("vae_fused_setup", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module by name
    spec.loader.exec_module(module)
    return module


def fake_torch(cuda: str | None, gpus: list[tuple[int, int]] | None = None) -> SimpleNamespace:
    gpus = gpus or []
    return SimpleNamespace(
        __version__="2.13.0+fake",
        __file__="/nowhere/torch/__init__.py",
        version=SimpleNamespace(cuda=cuda),
        cuda=SimpleNamespace(
            is_available=lambda: bool(gpus),
            device_count=lambda: len(gpus),
            get_device_capability=lambda i: gpus[i],
        ),
    )


@pytest.fixture
def toolkit(tmp_path: Path) -> Path:
    """Creates a CUDA 13.0 toolkit with a stub of nvcc and the headers that torch includes."""
    home = tmp_path / "toolkit"
    for folder in ("bin", "include"):
        (home / folder).mkdir(parents=True)
    nvcc = home / "bin" / "nvcc"
    nvcc.write_text(NVCC.format(version="13.0", home=home))
    nvcc.chmod(0o755)
    for header in ("cuda_runtime_api.h", "cublas_v2.h", "cusparse.h", "cusolverDn.h"):
        (home / "include" / header).touch()
    return home


def error_of(call, *args) -> str:
    with pytest.raises(SystemExit) as caught:
        call(*args)
    message = str(caught.value)
    assert message.startswith("vae_fused: error: ")
    assert "\n" not in message
    return message


# --- the mode ------------------------------------------------------------------------------------


def test_auto_builds_cuda_without_a_gpu(setup, toolkit, monkeypatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(toolkit))
    plan = setup.decide(fake_torch(cuda="13.2"))
    assert plan.mode == "cuda" and plan.toolkit.version == "13.0"
    assert "13.2" in plan.why and "13.0" in plan.why


@pytest.mark.parametrize(
    ("torch_cuda", "home", "reason"),
    [
        (None, "toolkit", "built without CUDA"),
        ("12.8", "toolkit", "major versions must agree"),
        ("13.0", "elsewhere", "is missing or does not run"),
    ],
)
def test_impossible_cuda_is_cpu_for_auto_and_an_error_when_asked_for(
    setup, toolkit, monkeypatch, torch_cuda, home, reason
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(toolkit.parent / home))
    plan = setup.decide(fake_torch(torch_cuda))
    assert plan.mode == "cpu" and reason in plan.why

    monkeypatch.setenv("VAE_FUSED_BUILD", "cuda")
    assert reason in error_of(setup.decide, fake_torch(torch_cuda))
    monkeypatch.delenv("VAE_FUSED_BUILD")
    monkeypatch.setenv("FORCE_CUDA", "1")
    assert "FORCE_CUDA=1" in error_of(setup.decide, fake_torch(torch_cuda))


def test_missing_cuda_headers_are_named(setup, toolkit, monkeypatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(toolkit))
    (toolkit / "include" / "cusparse.h").unlink()
    plan = setup.decide(fake_torch(cuda="13.0"))
    assert plan.mode == "cpu" and "cusparse.h" in plan.why


def test_headers_may_come_from_the_nvidia_wheels(setup, toolkit, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("CUDA_HOME", str(toolkit))
    (toolkit / "include" / "cusparse.h").unlink()
    wheel = tmp_path / "site-packages" / "nvidia" / "cu13" / "include"
    wheel.mkdir(parents=True)
    (wheel / "cusparse.h").touch()
    beside = fake_torch(cuda="13.0")
    beside.__file__ = str(tmp_path / "site-packages" / "torch" / "__init__.py")
    assert setup.decide(beside).mode == "cuda"


def test_no_compiler_is_pure_python_for_auto_and_an_error_when_asked_for(
    setup, monkeypatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    plan = setup.decide(fake_torch(cuda=None))
    assert plan.mode == "none" and "no-such-compiler" in plan.why
    for mode in ("cpu", "cuda"):
        monkeypatch.setenv("VAE_FUSED_BUILD", mode)
        assert "no-such-compiler" in error_of(setup.decide, fake_torch(cuda=None))


def test_explicit_cpu_ignores_cuda(setup, toolkit, monkeypatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(toolkit))
    monkeypatch.setenv("FORCE_CUDA", "1")
    monkeypatch.setenv("VAE_FUSED_BUILD", "cpu")
    assert setup.decide(fake_torch(cuda="13.0")).mode == "cpu"


def test_unknown_mode_is_refused(setup, monkeypatch) -> None:
    monkeypatch.setenv("VAE_FUSED_BUILD", "gpu")
    assert "auto, cuda, cpu, none" in error_of(setup.decide, fake_torch(cuda=None))


# --- the version ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "torch_version", "cuda", "label"),
    [
        ("cpu", "2.13.0+cpu", None, "+torch2.13.cpu"),
        ("cpu", "2.14.1+cu130", None, "+torch2.14.cpu"),
        ("cuda", "2.14.1+cu130", "13.0", "+torch2.14.cuda13"),
        ("cuda", "2.15.0a0+git1234567", "12.8", "+torch2.15.cuda12"),
        ("none", "2.13.0", None, "+none"),
    ],
)
def test_the_version_says_what_the_wheel_fits(setup, mode, torch_version, cuda, label) -> None:
    toolkit = setup.Toolkit(Path("/nowhere"), cuda, ("9.0",)) if cuda else None
    plan = setup.Plan(mode, "because", toolkit)
    version = setup.version(plan, SimpleNamespace(__version__=torch_version))
    assert version == setup.release() + label
    # The version is in the version specification's normal form, so no index or tool changes it.
    assert re.fullmatch(r"\d+(\.\d+)*(\+[a-z0-9]+(\.[a-z0-9]+)*)?", version)


# --- the toolkit ---------------------------------------------------------------------------------


def test_toolkit_is_found_through_a_wrapper_script(setup, toolkit, monkeypatch, tmp_path) -> None:
    wrapper = tmp_path / "local" / "bin" / "nvcc"
    wrapper.parent.mkdir(parents=True)
    wrapper.write_text(f'#!/bin/sh\nexec {toolkit}/bin/nvcc "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", str(wrapper.parent), prepend=os.pathsep)
    assert setup.find_toolkit().home == toolkit


def test_versioned_cudart_is_linked_where_there_is_no_other(setup, tmp_path) -> None:
    lib = tmp_path / "nvidia" / "cu13" / "lib"
    lib.mkdir(parents=True)
    (lib / "libcudart.so.13").touch()
    beside = fake_torch(cuda="13.0")
    beside.__file__ = str(tmp_path / "torch" / "__init__.py")
    extension = SimpleNamespace(library_dirs=[], libraries=["c10", "cudart"], extra_objects=[])
    setup.link_cudart(extension, beside)
    assert extension.libraries == ["c10"]
    assert extension.extra_objects == [str(lib / "libcudart.so.13")]


# --- architectures and flags ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "gpus", "archs"),
    [
        ("9.0", [(8, 0)], "9.0"),
        ("8.0 9.0+PTX", [], "8.0;9.0+PTX"),
        ("", [(9, 0), (8, 0), (9, 0)], "8.0;9.0+PTX"),
        ("native", [(8, 0)], "8.0+PTX"),
        ("", [(12, 0)], "10.0+PTX"),  # newer than nvcc
        ("", [], "7.5;8.0;9.0;10.0+PTX"),  # the portable architectures that this nvcc supports
        ("Hopper", [], "Hopper"),
    ],
)
def test_archs_are_those_asked_for_or_visible_or_portable(
    setup, monkeypatch, variable, gpus, archs
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", variable)
    toolkit = setup.Toolkit(Path("/nowhere"), "13.0", ("7.5", "8.0", "9.0", "10.0"))
    assert setup.choose_archs(fake_torch("13.0", gpus), toolkit) == archs


@pytest.mark.parametrize(
    "gpu", ["7.5", "8.6", "8.9", "9.0", "10.0", "10.3", "11.0", "12.0", "12.1"]
)
def test_the_portable_build_has_code_for_every_gpu_that_nvcc_knows(setup, monkeypatch, gpu) -> None:
    """Machine code runs within its major version. PTX runs on any GPU that is at least as new."""
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "")
    known = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "10.3", "11.0", "12.0", "12.1")
    toolkit = setup.Toolkit(Path("/nowhere"), "13.0", known)
    device = setup.numbers(gpu)

    def runs(arch: str) -> bool:
        built = setup.numbers(arch)
        return built <= device and (built[0] == device[0] or arch.endswith("+PTX"))

    assert any(runs(arch) for arch in setup.choose_archs(fake_torch("13.0"), toolkit).split(";"))


def test_an_arch_that_nvcc_lacks_is_named(setup, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.0;9.0")
    toolkit = setup.Toolkit(Path("/nowhere"), "13.0", ("7.5", "9.0"))
    message = error_of(setup.choose_archs, fake_torch("13.0"), toolkit)
    assert "7.0" in message and "7.5 9.0" in message


def test_numerics_are_never_relaxed_and_std_is_left_to_torch(setup, monkeypatch) -> None:
    for debug in ("0", "1"):
        monkeypatch.setenv("DEBUG", debug)
        flags = setup.cxx_flags() + setup.nvcc_flags()
        assert not [f for f in flags if "fast" in f or "march" in f or "std" in f]
        assert ("-O0" in flags) == (debug == "1")


# --- builds with pip -----------------------------------------------------------------------------


def run_setup(*args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k not in VARIABLES} | variables
    return subprocess.run(
        [sys.executable, "setup.py", *args],
        cwd=variables.get("PWD", ROOT),
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )


def test_missing_torch_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('No torch', name='torch')")
    run = run_setup("--version", PYTHONPATH=str(tmp_path))
    assert run.returncode != 0
    (line,) = run.stderr.splitlines()
    assert "pip install --no-build-isolation ." in line


@pytest.mark.parametrize("error", ["ImportError", "OSError"])
def test_broken_torch_is_one_line(tmp_path: Path, error: str) -> None:
    (tmp_path / "torch.py").write_text(f"raise {error}('libgone.so: cannot open')")
    run = run_setup("--version", PYTHONPATH=str(tmp_path))
    assert run.returncode != 0
    (line,) = run.stderr.splitlines()
    assert "libgone.so" in line


def test_old_torch_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("__version__ = '2.3.1'")
    run = run_setup("--version", PYTHONPATH=str(tmp_path))
    assert run.returncode != 0
    (line,) = run.stderr.splitlines()
    assert "torch must be 2.11 or later, got 2.3.1" in line


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Copies the sources into a folder in which to build them."""
    for name in ("setup.py", "pyproject.toml", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "README.md").touch()
    for name in ("build_support", "vae_fused"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "csrc" / "torch").mkdir(parents=True)
    return tmp_path


def test_pure_python_build_needs_no_torch_and_records_itself(tree: Path) -> None:
    (tree / "torch.py").write_text("raise ImportError('torch was imported')")
    run = run_setup("build", VAE_FUSED_BUILD="none", PYTHONPATH=str(tree), PWD=str(tree))
    assert run.returncode == 0, run.stderr
    assert "vae_fused: building none (VAE_FUSED_BUILD=none)" in run.stderr
    built = tree / "build" / "lib" / "vae_fused"
    info = json.loads((built / "_build_info.json").read_text())
    assert info["mode"] == "none" and info["torch"] is None
    assert info["version"].endswith("+none")
    assert (built / "py.typed").exists() and not list(built.glob("_C*"))


def test_an_sdist_and_what_is_built_from_one_have_the_version_of_the_sources(tree: Path) -> None:
    """Installers reject a wheel whose version differs from its sdist's version."""
    variables = {"VAE_FUSED_BUILD": "none", "PWD": str(tree)}
    assert run_setup("--version", **variables).stdout.strip().endswith("+none")
    assert run_setup("-q", "sdist", "--formats=tar", **variables).returncode == 0
    (made,) = (tree / "dist").iterdir()
    assert re.fullmatch(r"vae_fused-[\d.]+\.tar", made.name)
    shutil.unpack_archive(made, tree / "unpacked")
    variables["PWD"] = str(tree / "unpacked" / made.stem)
    assert f"vae_fused-{run_setup('--version', **variables).stdout.strip()}" == made.stem


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_failed_compile_fails_the_build_and_says_so_last(tree: Path) -> None:
    (tree / "csrc" / "torch" / "module.cpp").write_text("#error planted\n")
    run = run_setup("build", VAE_FUSED_BUILD="cpu", PWD=str(tree))
    assert run.returncode != 0
    assert "planted" in run.stdout + run.stderr
    last = run.stderr.splitlines()[-1]
    assert last.startswith("vae_fused: error: the cpu build failed")
    assert "Traceback" not in run.stderr


def test_build_info_names_no_place_on_this_machine(setup) -> None:
    toolkit = setup.Toolkit(Path("/somewhere/cuda"), "13.0", ("9.0",))
    plan = setup.Plan("cuda", "because", toolkit, "9.0")
    recorded = json.dumps(setup.build_info(plan, torch))
    for place in ("/somewhere", str(ROOT), str(Path(torch.__file__).parent), sys.prefix):
        assert place not in recorded


def test_tests_import_the_installed_package() -> None:
    """An __init__.py would make pytest put the sources before the installed package."""
    assert not (ROOT / "tests" / "__init__.py").exists()
