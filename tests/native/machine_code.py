"""Runs the test calls on the sm_90 machine code of the kernels.

The machine code is that of the installed extension if it was built for sm_90 from this `csrc`.
Otherwise, nvcc compiles the `.cu` files of `csrc/cuda`. The cubins are kept in `build/native`. The
native module's host code, which launches the kernels, is unchanged, and the emulator passes each
launch to the interpreter of `tests/machine_code`.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from machine_code.device import Device, Launched

from build_support.digest import sources_digest
from tools.kernel_budget import kernels
from tools.kernel_budget.kernels import demangled, find_cuobjdump, short_name
from vae_fused import _ext

from . import build

SOURCES = tuple(sorted((build.CSRC / "cuda").rglob("*.cu")))
# The functions of the native module that launch kernels.
LAUNCHING = (
    "forward", "backward", "multi", "nll", "nll_backward", "softmax_rows", "kl_backward",
    "scale_gradients", "stats",
)  # fmt: skip
COMMAND = ["nvcc", "-std=c++17", "-O3", "-arch=sm_90", "-cubin", f"-I{build.CSRC}"]


def missing() -> str | None:
    """Returns the reason why the machine code cannot run here, or None."""
    if shutil.which("nvcc") is None and _installed() is None:
        return "no nvcc compiles the kernels here"
    if find_cuobjdump() is None:
        return "no cuobjdump lists machine code: not on PATH, in a CUDA toolkit or in triton"
    return None


def _installed() -> Path | None:
    """Returns the installed extension if it contains the machine code of these sources."""
    info = _ext.build_info
    is_usable = _ext.has_cuda and "-O0" not in str(info)
    if not is_usable or info.get("sources") != sources_digest(build.ROOT):
        return None
    archs = [arch.removesuffix("+PTX") for arch in info["archs"]]
    return kernels.installed_extension() if "9.0" in archs else None


def _extract(extension: Path) -> list[Path]:
    """Returns the sm_90 cubins of an extension."""
    key = build.digest(json.dumps(_ext.build_info, sort_keys=True).encode())
    folder = build.OUT / f"installed-{key}"
    with build.alone():
        if not folder.exists():
            for older in build.OUT.glob("installed-*"):
                shutil.rmtree(older)
            made = folder.with_suffix(".part")
            made.mkdir()
            for arch, cubin in kernels.cubins(extension):
                if arch == "sm_90":
                    shutil.copy(cubin, made)
            made.rename(folder)
    return sorted(folder.iterdir())


def _compile(source: Path) -> Path:
    """Returns the cubin of a source file, from the cache if nothing in csrc has changed."""
    files = [source, *sorted(build.CSRC.rglob("*.h")), *sorted(build.CSRC.rglob("*.cuh"))]
    version = subprocess.run(["nvcc", "--version"], capture_output=True).stdout
    key = build.digest(shlex.join(COMMAND).encode(), version, *(f.read_bytes() for f in files))
    name = f"{source.parent.name}-{source.stem}"
    target = build.OUT / f"{name}-sm_90-{key}.cubin"
    if not target.exists():
        build.OUT.mkdir(parents=True, exist_ok=True)
        made = target.with_suffix(f".{os.getpid()}")
        build.run([*COMMAND, str(source), "-o", str(made)])
        for older in build.OUT.glob(f"{name}-sm_90-*.cubin"):
            older.unlink(missing_ok=True)
        made.replace(target)
    return target


@lru_cache
def cubins() -> list[Path]:
    if extension := _installed():
        return _extract(extension)
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
        return list(pool.map(_compile, SOURCES))


@lru_cache
def _kernels_of(module: str) -> dict[int, str]:
    """Returns kernel names by the offsets of their host functions, which `nm` lists."""
    lines = subprocess.run(["nm", module], capture_output=True, text=True, check=True).stdout
    found = {}
    for line in lines.splitlines():
        address, *_, symbol = line.split()
        if "_kernel" in symbol:
            found[int(address, 16)] = short_name(demangled(symbol))
    return found


def _extent(array: np.ndarray) -> tuple[int, int]:
    """Returns the addresses at which a view starts and ends."""
    start = end = array.ctypes.data
    if array.size == 0:
        return start, start
    for length, step in zip(array.shape, array.strides, strict=True):
        start += min(0, (length - 1) * step)
        end += max(0, (length - 1) * step)
    return start, end + array.itemsize


def _arrays(value: Any) -> Iterator[np.ndarray]:
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _arrays(part)


class MachineCode:
    """The native module, whose launches run the machine code of the CUDA kernels.

    A kernel may access only the arrays of the call that launches it and the module's scratch
    memory.
    """

    def __init__(self, native: ModuleType, seed: int = 1, perturb: bool = True) -> None:
        self.native = native
        self.device = Device(cubins(), seed, perturb)
        self.launched: list[tuple[str, Launched]] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.native, name)
        return self._with_buffers(found) if name in LAUNCHING else found

    def reseed(self, seed: int) -> None:
        self.device.random = np.random.default_rng(seed)

    def _with_buffers(self, function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            arrays = _arrays([*arguments, *options.values()])
            with self.device.memory.buffers([_extent(array) for array in arrays]):
                return function(*arguments, **options)

        return call

    def _launch(
        self, offset: int, blocks: int, arguments: list[bytes], scratch: list[tuple[int, int]]
    ) -> None:
        name = _kernels_of(self.native.__file__)[offset]
        with self.device.memory.buffers(scratch):
            self.launched.append((name, self.device.launch(name, blocks, arguments)))

    @contextmanager
    def installed(self) -> Iterator[MachineCode]:
        self.native.emulator.set_executor(self._launch)
        try:
            yield self
        finally:
            self.native.emulator.set_executor(None)
