"""Prepares, without a GPU, the files of a GPU run, in a folder that git ignores.

manifest.json   commit, versions, and a digest of the sources
package/        vae_fused, compiled for the torch and the GPU of the other machine
modules/        modules that the tests import, for the Python of that machine
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from . import ROOT
from .report import commit

FOLDER = ROOT / "build" / "gpu-bundle"
LIMIT = 64 * 10**6  # bytes: an upload limit that a machine may have
GPU_PYTHON = "3.12"
# Without mpmath: torch brings the version that its sympy requires, and these come before torch's.
WHEELS = ("pytest", "pytest-xdist", "hypothesis", "expecttest", "pybind11", "pytest-benchmark")


def sources_digest() -> str:
    whole = hashlib.sha256()
    for file in sorted([*(ROOT / "csrc").rglob("*.*"), *(ROOT / "vae_fused").rglob("*.py")]):
        whole.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes())
    return whole.hexdigest()


def load(folder: Path = FOLDER) -> tuple[dict[str, Any], str]:
    """The manifest, and why the package is not used: it must be compiled from this checkout."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}, "there is no bundle"
    same = manifest["sources"] == sources_digest()
    return manifest, "" if same else "the bundle was made of other sources"


def python(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{arguments} failed:\n{done.stdout[-500:]}{done.stderr[-2000:]}")
    return done.stdout


def installed_package() -> Path:
    """The compiled package of this Python, which must support a GPU and the other Python."""
    code = "from vae_fused import _ext; print(_ext.has_cuda, _ext.__file__, sep='\\n')"
    has_cuda, file = python("-I", "-W", "ignore", "-c", code).splitlines()[-2:]
    folder = Path(file).parent
    if has_cuda != "True" or not list(folder.glob("_C.abi3.*")):
        sys.exit(f"{folder} lacks CUDA or is not abi3 (cuda: {has_cuda}): use `make gpu-bundle`")
    return folder


def download_modules(folder: Path) -> None:
    """Wheels for another Python than this one, for which pip requires --only-binary."""
    options = f"--only-binary=:all: --implementation cp --python-version {GPU_PYTHON} --no-compile"
    options += " --platform manylinux_2_17_x86_64 --disable-pip-version-check --quiet"
    python("-m", "pip", "install", "--target", str(folder), *options.split(), *WHEELS)
    shutil.rmtree(folder / "bin", ignore_errors=True)


def make(folder: Path = FOLDER, limit: int = LIMIT) -> str:
    """Make the bundle. Returns a description with the next command."""
    shutil.rmtree(folder, ignore_errors=True)
    caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(installed_package(), folder / "package/vae_fused", ignore=caches)
    download_modules(folder / "modules")
    contents = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    size = sum(map(len, contents))
    if size > limit:
        sys.exit(f"the bundle has {size / 1e6:.1f} MB; the limit is {limit / 1e6:.0f} MB")
    versions = [int(v) for text in contents for v in re.findall(rb"\0GLIBC_2\.(\d+)(?=\0)", text)]
    glibc = f"2.{max(versions, default=0)}"  # the least that the binaries require
    manifest = {"commit": commit(), "python": GPU_PYTHON, "glibc": glibc}
    text = json.dumps({**manifest, "sources": sources_digest()}, indent=1)
    (folder / "manifest.json").write_text(text + "\n", encoding="utf-8")
    return f"""{folder}: {size / 1e6:.1f} MB, for Python {GPU_PYTHON} and glibc {glibc} or newer.
Copy the checkout with this folder, which git ignores, to the machine with the GPU, and run there:
    python -m tools.gpu_check first; python -m tools.gpu_check again"""
