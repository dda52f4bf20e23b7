from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import ModuleType

import pytest

from . import build
from .machine_code import MachineCode

Case = Callable[..., subprocess.CompletedProcess[str]]


def show(config: pytest.Config):
    """A context in which build output reaches the terminal, even from xdist workers."""
    capture = config.pluginmanager.get_plugin("capturemanager")
    return capture.global_and_fixture_disabled() if capture else nullcontext()


@pytest.fixture(scope="session")
def native_module(pytestconfig: pytest.Config) -> ModuleType:
    pytest.importorskip("pybind11")
    if shutil.which(build.CXX[0]) is None:
        pytest.skip(f"no compiler: {build.CXX[0]}")
    with show(pytestconfig):
        return build.module()


@pytest.fixture
def native(native_module: ModuleType) -> Iterator[ModuleType]:
    """The module, with the default configuration of the emulator."""
    native_module.emulator.configure()
    yield native_module
    native_module.emulator.configure()


@pytest.fixture(scope="session")
def machine(native_module: ModuleType) -> MachineCode:
    """The native module, whose launches run the machine code of the kernels."""
    return MachineCode(native_module)


def command(config: pytest.Config, variant: str) -> list[str]:
    if build.launcher(variant) is None:
        pytest.skip(f"no {variant} runtime for {build.CXX[0]} here")
    with show(config):
        return build.program(variant)


@pytest.fixture(scope="session", params=["asan", "tsan"])
def sanitizer(request: pytest.FixtureRequest) -> str:
    command(request.config, request.param)  # builds it
    return request.param


@pytest.fixture(scope="session")
def case(pytestconfig: pytest.Config) -> Case:
    """``case(variant, name, ..., VARIABLE=value)`` runs a case of cases.cpp under a sanitizer."""

    def run(variant: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        whole = [*command(pytestconfig, variant), *arguments]
        environment = {**os.environ, **variables}
        return subprocess.run(whole, capture_output=True, text=True, timeout=300, env=environment)

    return run
