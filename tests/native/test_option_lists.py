"""An option added to a list of ``csrc/math`` takes effect in all code generated from the list."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from . import build

EXTRA = [
    *(f"-DVAE_FUSED_EXTRA_{k}_OPTIONS(OPTION)=OPTION(T, fake, 1)" for k in ("SCALE", "LATENT")),
    "-DVAE_FUSED_EXTRA_DEVICE_SCALARS(SCALAR)=SCALAR(fake)",
]


def numbers(tmp_path, flags: list[str]) -> list[str]:
    target = tmp_path / "options"
    source = build.NATIVE / "options.cpp"
    build.run([*build.CXX, *build.FLAGS, *flags, f"-I{build.CSRC}", str(source), "-o", str(target)])
    return subprocess.run([target], capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.skipif(shutil.which(build.CXX[0]) is None, reason="no compiler")
def test_nothing_ignores_an_option_that_is_added(tmp_path):
    names = numbers(tmp_path, EXTRA)
    assert not [line for line in names if line.startswith("ignored")]
    assert (
        names.count("posterior.fake 1")
        == names.count("prior.fake 1")
        == names.count(".fake 1")
        == 1
    )
    assert names[-1] == ".fake 1", "a list appends"
