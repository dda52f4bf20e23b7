"""`vae_fused._ext` finds the compiled code, or reports why it falls back to eager PyTorch."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import vae_fused
from vae_fused import _ext

RUNNING = str(torch.__version__)
MAJOR, MINOR = RUNNING.split(".")[:2]
CPU_BUILD = {"mode": "cpu", "why": "planted", "torch": RUNNING, "torch_cuda": None}
CUDA_BUILD = {"mode": "cuda", "why": "planted", "torch": RUNNING, "torch_cuda": "13.0"}

COMPILED = "def cpu_capability(): return 'default'"

Make = Callable[..., ModuleType]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Import a copy of `_ext` from another package, with the given `_C` and build record."""
    monkeypatch.delenv("VAE_FUSED_BACKEND", raising=False)
    monkeypatch.delenv("VAE_FUSED_STRICT", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "other_vae_fused"

    def make(info: dict[str, Any] | None, compiled: str | None = COMPILED, **variables: str) -> Any:
        package.mkdir()
        shutil.copy(str(_ext.__file__), package)
        (package / "__init__.py").touch()
        if compiled is not None:
            (package / "_C.py").write_text(compiled)
        if info is not None:
            (package / "_build_info.json").write_text(json.dumps(info))
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return importlib.import_module("other_vae_fused._ext")

    yield make
    for name in [n for n in sys.modules if n.split(".")[0] == "other_vae_fused"]:
        del sys.modules[name]


def make_warned(make: Make, *args: Any, **variables: str) -> tuple[Any, str]:
    """Returns the module, and the only warning that its import raises."""
    with pytest.warns(RuntimeWarning, match="(using eager PyTorch|calls raise)$") as caught:
        ext = make(*args, **variables)
    assert len(caught) == 1
    return ext, str(caught[0].message)


def test_compiled_code_is_used_without_a_word(make: Make) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ext = make(CPU_BUILD)
        assert ext.available and ext.reason == "" and not ext.has_cuda
        assert ext.use_native("cpu")


def test_cpu_build_says_once_that_it_serves_no_gpu(make: Make) -> None:
    ext = make(CPU_BUILD)
    with pytest.warns(
        RuntimeWarning, match=r"built without CUDA \(planted\).*VAE_FUSED_BUILD=cuda"
    ):
        assert not ext.use_native("cuda")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not ext.use_native("cuda")
    with pytest.warns(RuntimeWarning, match="no compiled code for xpu tensors"):
        assert not ext.use_native("xpu")


def test_cuda_build_serves_both(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.2")  # another minor version is accepted
    ext = make(CUDA_BUILD)
    assert ext.has_cuda and ext.use_native("cuda") and ext.use_native("cpu")


def test_missing_extension_warns_once_and_falls_back(make: Make) -> None:
    ext, message = make_warned(make, None, None)
    assert "not built here" in message and "vae_fused.env" in message
    assert not ext.available and ext.reason and ext.build_info == {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not ext.use_native("cpu") and not ext.use_native("cuda")


def test_pure_python_install_says_why(make: Make) -> None:
    info = {"mode": "none", "why": "there is no C++ compiler", "torch": None}
    ext, message = make_warned(make, info, None)
    assert "there is no C++ compiler" in message and "there is no C++ compiler" in ext.reason
    assert "VAE_FUSED_BUILD=auto pip install " in message


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        ("ImportError('_C.abi3.so: undefined symbol: _ZN3c10Ev')", "undefined symbol"),
        ("OSError('libtorch_cuda.so: cannot open')", "libtorch_cuda.so"),
        ("RuntimeError('registered twice\\nBacktrace:')", "registered twice"),
    ],
)
def test_extension_that_does_not_load_names_both_torches(
    make: Make, error: str, shown: str
) -> None:
    ext, message = make_warned(make, CPU_BUILD, f"raise {error}")
    assert f"built for torch {RUNNING}, running torch {RUNNING}" in ext.reason
    assert shown in message and "--force-reinstall" in message and "\n" not in message


def test_missing_dependency_of_the_extension_is_not_called_unbuilt(make: Make) -> None:
    ext, _ = make_warned(make, CPU_BUILD, "import no_such_module")
    assert "no_such_module" in ext.reason


@pytest.mark.parametrize(
    ("change", "cuda", "shown"),
    [
        ({"torch": f"{MAJOR}.{int(MINOR) + 1}.0"}, None, f"running torch {RUNNING}"),
        ({"torch": f"{MAJOR}.{int(MINOR) - 1}.0+cpu"}, None, f"running torch {RUNNING}"),
        ({}, None, "without CUDA"),
        ({}, "12.8", "torch for CUDA 12.8"),
    ],
)
def test_another_torch_is_refused_before_loading(
    make: Make, monkeypatch: pytest.MonkeyPatch, change: dict[str, str], cuda: str, shown: str
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    ext, message = make_warned(make, CUDA_BUILD | change, "raise SystemError('was loaded')")
    assert message.count("built for ") == 1
    assert shown in ext.reason
    command = ext.reason.partition("; reinstall: ")[2]
    assert "--no-cache-dir" in command and not command.endswith("vae_fused")


def test_another_patch_release_is_accepted(make: Make) -> None:
    assert make(CPU_BUILD | {"torch": f"{MAJOR}.{MINOR}.9+local"}).available


def test_torch_backend_is_silent_and_loads_nothing(make: Make) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ext = make(CPU_BUILD, "raise OSError", VAE_FUSED_BACKEND="torch", VAE_FUSED_STRICT="1")
        assert not ext.available and ext.reason == "VAE_FUSED_BACKEND=torch"
        assert not ext.use_native("cpu") and not ext.use_native("cuda")


@pytest.mark.parametrize("variable", [("VAE_FUSED_STRICT", "1"), ("VAE_FUSED_BACKEND", "native")])
def test_strict_and_native_raise_at_the_call_not_at_import(
    make: Make, variable: tuple[str, str]
) -> None:
    ext, warning = make_warned(make, None, None, **dict([variable]))
    assert warning.endswith("calls raise")
    with pytest.raises(RuntimeError, match="not built here"):
        ext.use_native("cpu")


def test_strict_cpu_build_raises_for_gpu_tensors_alone(make: Make) -> None:
    ext = make(CPU_BUILD, VAE_FUSED_STRICT="1")
    assert ext.use_native("cpu")
    with pytest.raises(RuntimeError, match="built without CUDA"):
        ext.use_native("cuda")


def test_unknown_backend_is_refused(make: Make) -> None:
    with pytest.raises(
        ValueError, match="VAE_FUSED_BACKEND must be one of auto, native, torch, got 'nativ'"
    ):
        make(CPU_BUILD, VAE_FUSED_BACKEND="nativ")


@pytest.mark.parametrize("compiled", [COMPILED, None])
def test_use_native_traces_without_a_graph_break(make: Make, compiled: str | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ext = make(CPU_BUILD, compiled)

    @torch.compile(backend="eager", fullgraph=True)
    def traced(x: torch.Tensor) -> torch.Tensor:
        cuda = ext.use_native("cuda")  # declines, with a warning that must not break the graph
        return x + 1 if ext.use_native(x.device.type) and not cuda else x - 1

    assert traced(torch.zeros(())).item() == (1 if compiled else -1)


def test_installed_package_is_what_its_record_says() -> None:
    """Check the package under test. A compiled build that does not load fails this test."""
    mode = _ext.build_info.get("mode")
    if mode is None:
        pytest.skip(f"{Path(vae_fused.__file__).parent} is a source tree")
    if _ext.backend == "torch":
        pytest.skip("VAE_FUSED_BACKEND=torch")
    assert _ext.available == (mode != "none"), _ext.reason
    assert _ext.has_cuda == (mode == "cuda")
