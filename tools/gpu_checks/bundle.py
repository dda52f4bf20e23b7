"""The files that a GPU run needs and cannot make: prepared without a GPU and checked on one.

The bundle is a folder of the checkout, `build/gpu-bundle/`:

    manifest.json   commit, versions, and a digest of each part
    probe           the static program of tools/gpu_probe
    package/        vae_fused, compiled for the torch and the GPU of the other machine
    modules/        modules in Python that the tests import, where that machine lacks one

The archive holds the checkout's tracked files and that folder at the same place, so an unpacked
archive and a copy of the working tree are the same to tools/gpu.py.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

from gpu_checks.report import ROOT, commit

FOLDER = ROOT / "build" / "gpu-bundle"
LIMIT = 64 * 10**6  # bytes, packed and unpacked: an upload limit that a machine may have
GPU_PYTHON = "3.12"
# Without mpmath: torch brings the version that its sympy requires, and these come before torch's.
WHEELS = ("pytest", "pytest-xdist", "hypothesis", "expecttest", "pybind11", "pytest-benchmark")
LITTER = shutil.ignore_patterns("__pycache__", "*.pyc")


class BundleError(RuntimeError):
    """The reason why no bundle was made."""


# --- digests -------------------------------------------------------------------------------------


def digest(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of all files of a folder."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    whole = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file() and "__pycache__" not in file.parts:
            whole.update(f"{file.relative_to(path).as_posix()}\0{digest(file)}\n".encode())
    return whole.hexdigest()


def sources_digest(root: Path = ROOT) -> str:
    """The digest of all sources of the package and the probe."""
    whole = hashlib.sha256()
    for part in ("csrc", "vae_fused", "tools/gpu_probe", "setup.py"):
        files = [root / part] if (root / part).is_file() else sorted((root / part).rglob("*"))
        for file in files:
            if file.suffix in (".py", ".h", ".cuh", ".cpp", ".cu"):
                whole.update(f"{file.relative_to(root).as_posix()}\0{digest(file)}\n".encode())
    return whole.hexdigest()


def glibc_of(folder: Path) -> str:
    """The least glibc that the binaries require: the other machine may have an older one."""
    versions = [(0, 0)]
    for path in [folder / "probe", *folder.rglob("*.so")]:
        found = re.findall(rb"GLIBC_(\d+)\.(\d+)", path.read_bytes())
        versions += [(int(major), int(minor)) for major, minor in found]
    return "{}.{}".format(*max(versions))


# --- on the machine with the GPU -----------------------------------------------------------------


@dataclasses.dataclass
class Bundle:
    """The intact parts of a bundle, and the defects of the others."""

    manifest: dict[str, Any] = dataclasses.field(default_factory=dict)
    probe: Path | None = None
    package: Path | None = None
    modules: Path | None = None
    problem: str = ""


def load(folder: Path = FOLDER) -> Bundle:
    """Load the bundle. Parts that were changed or made from other sources are not used."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return Bundle(problem="there is no bundle: `make gpu-bundle` makes one")
    found = Bundle(manifest)
    stale = manifest.get("sources") != sources_digest()
    problems = ["it was made of other sources"] if stale else []
    for part, sha in manifest.get("sha256", {}).items():
        path = folder / part
        if not path.exists() or digest(path) != sha:
            problems.append(f"{part} is missing or damaged")
        elif part == "modules" or not stale:
            setattr(found, part, path)
    if found.probe and not os.access(found.probe, os.X_OK):
        found.probe.chmod(0o755)
    found.problem = "; ".join(problems)
    return found


# --- on a machine without one --------------------------------------------------------------------


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 0:
        tail = "\n".join(f"{done.stdout}\n{done.stderr}".strip().splitlines()[-12:])
        raise BundleError(f"{' '.join(command)} failed:\n{tail}")
    return done.stdout


def installed_package() -> Path:
    """The compiled package of this Python, which must support a GPU."""
    code = "from vae_fused import _ext; print(_ext.has_cuda, _ext.__file__, sep='\\n')"
    has_cuda, file = run([sys.executable, "-I", "-W", "ignore", "-c", code]).splitlines()[-2:]
    folder = Path(file).parent
    if has_cuda != "True":
        raise BundleError(f"{folder} was compiled without CUDA: see `make gpu-bundle`")
    if not list(folder.glob("_C.abi3.*")):
        raise BundleError(f"{folder} serves one version of Python alone: it is not abi3")
    return folder


def build_probe(folder: Path, arch: str) -> Path:
    script = ROOT / "tools" / "gpu_probe" / "build.py"
    run([sys.executable, str(script), "--out", str(folder), "--arch", arch])
    return folder / "probe"


def download_modules(folder: Path) -> None:
    """Wheels for the other machine's Python; --only-binary is what pip requires for that."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--no-compile", "--target", str(folder), "--only-binary=:all:"]
    command += ["--python-version", GPU_PYTHON, "--platform", "manylinux_2_17_x86_64"]
    command += ["--implementation", "cp"]
    run([*command, *WHEELS])
    shutil.rmtree(folder / "bin", ignore_errors=True)


def tracked_files() -> list[Path]:
    names = run(["git", "ls-files", "-z"]).split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


@dataclasses.dataclass
class Parts:
    """The contents of the bundle. Missing parts are built or downloaded."""

    package: Path | None = None
    probe: Path | None = None
    modules: Path | None = None
    arch: str = "sm_90"


def lay_out(folder: Path, parts: Parts) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    source = parts.package or installed_package()
    shutil.copytree(source, folder / "package" / "vae_fused", ignore=LITTER)
    probe = parts.probe or build_probe(ROOT / "build" / "gpu-probe", parts.arch)
    shutil.copy(probe, folder / "probe")
    (folder / "probe").chmod(0o755)
    if parts.modules:
        shutil.copytree(parts.modules, folder / "modules", ignore=LITTER)
    else:
        download_modules(folder / "modules")
    name, dirty = commit()
    record = folder / "package" / "vae_fused" / "_build_info.json"
    build = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    manifest = {
        "commit": name + ("-dirty" if dirty else ""),
        "build": build,
        "arch": parts.arch,
        "python": GPU_PYTHON,
        "glibc": glibc_of(folder),
        "modules": sorted(path.name for path in (folder / "modules").iterdir()),
        "sources": sources_digest(),
        "sha256": {part: digest(folder / part) for part in ("probe", "package", "modules")},
    }
    text = json.dumps(manifest, indent=1) + "\n"
    (folder / "manifest.json").write_text(text, encoding="utf-8")


def make(out: Path, folder: Path, parts: Parts, limit: int = LIMIT) -> str:
    """Make the folder and the archive. Returns a line with their sizes."""
    lay_out(folder, parts)
    files = {path: path.relative_to(ROOT) for path in tracked_files()}
    home = FOLDER.relative_to(ROOT)
    bundled = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files |= {path: home / path.relative_to(folder) for path in bundled}
    unpacked = sum(path.stat().st_size for path in files)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(out, "w:gz") as archive:
        for path, name in files.items():
            archive.add(path, arcname=f"vae_fused/{name.as_posix()}")
    packed = out.stat().st_size
    sizes = f"{packed / 1e6:.1f} MB, {unpacked / 1e6:.1f} MB unpacked"
    if max(packed, unpacked) > limit:
        out.unlink()
        raise BundleError(f"the bundle has {sizes}; the limit is {limit / 1e6:.0f} MB")
    glibc = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["glibc"]
    return f"{out}: {sizes}, for glibc {glibc} or newer; the same parts are in {folder}"
