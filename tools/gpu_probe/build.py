"""Builds the probe, a static program that needs only a driver.

    python tools/gpu_probe/build.py --out FOLDER [--arch sm_90] [--verbose]

`FOLDER/probe` is the program, and `FOLDER/objects` contains its objects. An object is compiled
again if a flag or a source that it may include has changed. `--verbose` prints ptxas's messages
about each kernel.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))
from build_support.toolchain import cuda_home  # noqa: E402

CSRC = ROOT / "csrc"
SUFFIXES = {".h", ".cuh", ".cpp", ".cu"}
LARGEST = 8_000_000  # bytes of the program, which is part of a bundle for a machine with a GPU


def kernels_in(folder: str, suffix: str) -> list[Path]:
    """The project's kernels except the likelihoods, which would make the program too large."""
    found = sorted((CSRC / folder).rglob(f"*{suffix}"))
    return [path for path in found if path.parent.name != "likelihood"]


def device_sources() -> list[Path]:
    """The project's kernels and the probe's own."""
    return [*kernels_in("cuda", ".cu"), *sorted(HERE.glob("*.cu"))]


def host_sources() -> list[Path]:
    """The probe's host code, and the CPU kernels, which are its oracle."""
    return [*sorted(HERE.glob("*.cpp")), *kernels_in("cpu", ".cpp")]


def flags_of(source: Path, arch: str) -> list[str]:
    flags = ["-std=c++17", f"-I{CSRC}", f"-I{HERE}"]
    if source.suffix == ".cu":
        # Only machine code: PTX for later architectures would be a third of the program.
        code = f"arch={arch.replace('sm_', 'compute_')},code={arch}"
        return [*flags, "-O3", "-gencode", code, "-Xptxas", "-v"]
    # Without fused multiply-adds, as the oracle's noise is defined, and with the baseline
    # instruction set, so that results are equal on every machine.
    host = "-ffp-contract=off,-Wall,-Wextra"
    return [*flags, "-O1", "-DVAE_FUSED_CPU_BASELINE", "-Xcompiler", host]


def digest_of(*folders: Path) -> str:
    """One digest for all sources in these folders, except csrc/torch."""
    files = [p for folder in folders for p in folder.rglob("*") if p.suffix in SUFFIXES]
    texts = (p.read_bytes() for p in sorted(files) if "torch" not in p.parts)
    return hashlib.sha256(b"\0".join(texts)).hexdigest()[:16]


def run(command: list[str]) -> str:
    """Run a command and return its stderr. If it fails, print its output and end the build."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise SystemExit(f"{shlex.join(command)}\n{result.stdout}{result.stderr}")
    return result.stderr


def compile_object(nvcc: str, source: Path, flags: list[str], digest: str, objects: Path) -> Path:
    """Compile `source` to an object, and write ptxas's messages to a .log file beside it."""
    name = "-".join(source.relative_to(ROOT).with_suffix("").parts)
    state = hashlib.sha256(f"{digest} {shlex.join(flags)}".encode()).hexdigest()[:16]
    target = objects / f"{name}-{state}.o"
    if target.exists():
        return target
    for old in objects.glob(f"{name}-{'?' * len(state)}.*"):
        old.unlink()
    made = target.with_suffix(".new")
    log = run([nvcc, *flags, "-c", str(source), "-o", str(made)])
    target.with_suffix(".log").write_text(log)
    made.rename(target)
    return target


def build(out: Path, arch: str = "sm_90") -> Path:
    """Compile missing or outdated objects in `out`, and return the program."""
    home = cuda_home()
    if home is None:
        raise SystemExit("there is no nvcc on PATH and CUDA_HOME is not set")
    nvcc = str(home / "bin" / "nvcc")
    objects = out / "objects"
    objects.mkdir(parents=True, exist_ok=True)
    # csrc includes no file of the probe. Its kernels, which are the slowest to compile, therefore
    # remain valid when the probe changes.
    digests = {True: digest_of(CSRC, HERE), False: digest_of(CSRC)}
    sources = [*device_sources(), *host_sources()]  # the slowest first

    def compiled(source: Path) -> Path:
        digest = digests[source.parent == HERE]
        return compile_object(nvcc, source, flags_of(source, arch), digest, objects)

    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
        made = list(pool.map(compiled, sources))
    program = out / "probe"
    link = ["-cudart", "static", "-Xlinker", "--strip-all"]
    run([nvcc, *link, *map(str, made), "-o", str(program)])
    size = program.stat().st_size
    if size >= LARGEST:
        raise SystemExit(f"the probe has {size} bytes, and may have {LARGEST - 1}")
    return program


def ptxas_log(out: Path) -> str:
    """ptxas's messages about every kernel of the program in `out`."""
    return "".join(path.read_text() for path in sorted((out / "objects").glob("*.log")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--arch", default="sm_90")
    parser.add_argument("--verbose", action="store_true", help="print what ptxas says")
    options = parser.parse_args()
    program = build(options.out, options.arch)
    if options.verbose:
        print(ptxas_log(options.out), end="")
    print(program)


if __name__ == "__main__":
    main()
