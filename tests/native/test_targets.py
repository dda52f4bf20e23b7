"""The CPU kernels of every instruction set and compiler, call by call against the CUDA kernels.

`cases.cpp` puts each array in a heap block of exactly its size, so that AddressSanitizer stops a
kernel that accesses an element past its end.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from . import build
from .conftest import Case

OTHER_COMPILERS = ["clang++", "aarch64-linux-gnu-g++ -static"]


@pytest.mark.parametrize("name", ["forward", "backward"])
@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
def test_vectors_stay_within_their_arrays(case: Case, capability: str, name: str) -> None:
    result = case("asan", name, VAE_FUSED_CPU_CAPABILITY=capability)
    if "this machine and build have" in result.stderr:
        pytest.skip(f"no {capability} here")
    assert (result.returncode, result.stdout) == (0, "ok\n"), result.stdout + result.stderr


@pytest.mark.parametrize(
    "source", ["noise_avx2", "noise_avx512", "latent/tiles_avx2", "latent/tiles_avx512"]
)
def test_what_is_compiled_for_a_target_has_no_name_that_others_share(
    source: str, tmp_path: Path
) -> None:
    """The linker keeps any one of equal inline functions, even one that the machine cannot run."""
    compiled = tmp_path / "unoptimised.o"
    file = build.ROOT / f"csrc/cpu/{source}.cpp"
    command = [*build.CXX, *build.FLAGS, "-O0", *build.INCLUDES, "-c", file, "-o", compiled]
    subprocess.run(command, check=True)
    names = subprocess.run(
        ["nm", "--demangle", "--extern-only", "--defined-only", compiled],
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    target = source.split("_")[1]
    assert [n for n in names if f"::{target}::" not in n and "DW.ref." not in n] == []


@pytest.mark.parametrize("compiler", OTHER_COMPILERS)
def test_other_compilers_agree(compiler: str) -> None:
    if shutil.which(shlex.split(compiler)[0]) is None:
        pytest.skip(f"no {compiler}")
    command = [sys.executable, "-m", "tests.native.build", "plain"]
    environment = {**os.environ, "CXX": compiler}
    built = subprocess.run(
        command, cwd=build.ROOT, env=environment, capture_output=True, text=True, check=True
    )
    program = shlex.split(built.stdout)
    for name in ("forward", "backward"):
        result = subprocess.run([*program, name], capture_output=True, text=True)
        assert (result.returncode, result.stdout) == (0, "ok\n"), result.stdout + result.stderr
