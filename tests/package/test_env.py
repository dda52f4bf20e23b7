"""`python -m vae_fused.env` always prints a report, and the report is correct."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vae_fused import _ext, env

SECTIONS = ["vae_fused", "torch", "gpu", "tools", "system", "variables"]


def run(cwd: Path, *args: str, **variables: str) -> str:
    """Returns Python's output. ``cwd`` has no sources, which would hide the installed package."""
    done = subprocess.run(
        [sys.executable, *args],
        cwd=cwd,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_module_prints_json(tmp_path: Path) -> None:
    report = json.loads(run(tmp_path, "-m", "vae_fused.env", "--json", VAE_FUSED_STRICT="1"))
    assert list(report) == SECTIONS
    assert report["torch"]["version"] == torch.__version__
    assert report["vae_fused"]["version"]
    assert report["variables"]["VAE_FUSED_STRICT"] == "1"
    assert (report["vae_fused"]["on CPU"] == "compiled") == _ext.available


@pytest.mark.parametrize("error", ["ImportError", "OSError", "RuntimeError"])
@pytest.mark.parametrize("how", [("-m", "vae_fused.env"), (str(env.__file__),)])
def test_broken_torch_is_reported(tmp_path: Path, error: str, how: tuple[str, ...]) -> None:
    (tmp_path / "torch.py").write_text(f"raise {error}('libgone.so: cannot open')")
    path = os.pathsep.join([str(tmp_path), str(Path(env.__file__).parent.parent)])
    report = run(tmp_path, *how, PYTHONPATH=path)
    assert "libgone.so" in report
    for section in SECTIONS:
        assert f"{section}\n" in report
    assert "unavailable" in report


def test_text_is_aligned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "")
    report = env.collect()
    text = env.to_text(report)
    entries = [
        line for line in text.splitlines() if line.startswith("  ") and "none set" not in line
    ]
    width = max(len(label) for section in report.values() for label in section)
    for line in entries:
        assert line[2 + width : 4 + width] == "  ", line
        assert line[4 + width] != " ", line


def test_report_survives_probes_that_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise OSError("planted")

    for name in ("_torch", "_ext", "_output", "_load"):
        monkeypatch.setattr(env, name, fail)
    report = env.collect()
    assert list(report) == SECTIONS
    assert "planted" in env.to_text(report)


@pytest.mark.parametrize(
    ("archs", "capability", "runs"),
    [
        (["9.0"], (9, 0), True),
        (["8.0"], (8, 6), True),  # machine code also runs on later minor versions
        (["8.6"], (8, 0), False),
        (["8.0"], (9, 0), False),
        (["8.0+PTX"], (12, 0), True),  # PTX also runs on any newer GPU
        (["9.0+PTX"], (8, 0), False),
        (["9.0a"], (9, 0), True),
        (["10.0a"], (10, 3), False),
        (["Hopper"], (9, 0), True),
        ([], (9, 0), False),
    ],
)
def test_covers(archs: list[str], capability: tuple[int, int], runs: bool) -> None:
    assert env.covers(archs, capability) is runs
