"""The probe of tools/gpu_probe, on the emulated device, and the real one as far as nvcc can build it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from . import build

PROBE = build.ROOT / "tools" / "gpu_probe"

Row = dict[str, Any]


@pytest.fixture(scope="session")
def emulated() -> Path:
    """The probe for the emulated device, beside the kernels and the oracle of the other tests."""
    if shutil.which(build.CXX[0]) is None:
        pytest.skip(f"no compiler: {build.CXX[0]}")
    device = ["-O1", "-DVAE_FUSED_EMULATOR", "-fno-strict-aliasing", f"-I{PROBE}"]
    own = [(path, device) for path in sorted([*PROBE.glob("*.cpp"), *PROBE.glob("*.cu")])]
    others = build.common_sources("plain", every_target=False)
    shared = [(path, flags) for path, flags in others if path.parent != build.NATIVE]
    return build.link("gpu_probe", "", build.compile_all([*own, *shared]), [])


def run(
    program: Path, *arguments: str, **variables: str
) -> tuple[subprocess.CompletedProcess[str], list[Row]]:
    environment = {**os.environ, **variables}
    command = [str(program), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    return done, [json.loads(line) for line in done.stdout.splitlines()]


def test_the_probe_builds(emulated: Path) -> None:
    assert emulated.exists()
