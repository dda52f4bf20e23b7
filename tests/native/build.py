"""Builds the programs for the tests of `csrc/` with the host compiler alone.

`module()` returns a Python module with the mathematics, the CPU kernels and the CUDA kernels on the
emulated device. `program(variant)` returns a command line that runs the cases of `cases.cpp`:
"asan" and "tsan" under a sanitizer, "plain" without one. `CXX` selects the compiler. It may compile
for another machine whose programs `qemu` runs. All output is in `build/native`. An object is
compiled again only if its flags or the contents of a file that it includes have changed.
The names of the files that are compiled go to stderr.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import itertools
import json
import math
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "tests" / "native"
EMULATOR = ROOT / "tests" / "emulator"
CSRC = ROOT / "csrc"
OUT = ROOT / "build" / "native"

CXX = shlex.split(os.environ.get("CXX", "g++"))
IS_GCC = "clang" not in CXX[0]
FLAGS = ["-std=c++17", "-g1", "-fPIC", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
# Every operation rounds its result on every host, because the definition of the noise excludes FMA.
FLAGS += ["-ffp-contract=off"]
INCLUDES = [f"-I{CSRC}", f"-I{NATIVE}", f"-I{EMULATOR}", f"-I{EMULATOR / 'include'}"]
# Tests can change this number, which is a few blocks by default.
LIMITS = ["-DVAE_FUSED_ENOUGH_BLOCKS=(::emu::config().enough_blocks)"]
SANITIZERS = {
    "plain": [],
    "asan": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "tsan": ["-fsanitize=thread"],
}
if IS_GCC:  # checks are calls, which compile in half the time of inline code
    SANITIZERS["asan"] += ["--param", "asan-instrumentation-with-call-threshold=0"]
# The average processor time that a file takes in each variant, for the printed estimate.
SECONDS = {"module": 3, "plain": 3, "asan": 8, "tsan": 4}
OTHER_LIKELIHOODS = ("nll_half", "nll_bfloat16", "nll_double")
EMULATOR_DEFINES = {"plain": [], "asan": ["-DEMU_ASAN"], "tsan": ["-DEMU_TSAN"]}


class BuildError(RuntimeError):
    """Contains the output of the compiler."""


@lru_cache
def target_machine() -> str:
    """Returns the machine for which the compiler builds: "x86_64" or "aarch64"."""
    command = [*CXX, "-dumpmachine"]
    return subprocess.run(command, capture_output=True, text=True).stdout.partition("-")[0].strip()


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:20]


def run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise BuildError(f"{shlex.join(command)}\n{result.stderr[-8000:]}")


@lru_cache
def content(path: str) -> bytes:
    try:
        return digest(Path(path).read_bytes()).encode()
    except FileNotFoundError:
        return b"missing"


def compile_command(source: Path, flags: list[str]) -> tuple[list[str], Path]:
    """The command without its inputs and outputs, and the record of the object that it makes."""
    command = [*CXX, *FLAGS, *flags, *INCLUDES]
    name = f"{source.stem}-{digest(shlex.join(command).encode(), str(source).encode())}"
    return command, OUT / f"{name}.json"


def cached_object(source: Path, flags: list[str]) -> Path | None:
    """The object of `source`; None if something that it depends on has changed."""
    _, record = compile_command(source, flags)
    if not record.exists():
        return None
    known = json.loads(record.read_text())
    target = OUT / known["object"]
    return target if target.exists() and known["state"] == state(known["files"]) else None


def compile_object(source: Path, flags: list[str]) -> Path:
    command, record = compile_command(source, flags)
    with tempfile.TemporaryDirectory(dir=OUT) as folder:
        made, deps = Path(folder, "made.o"), Path(folder, "made.d")
        language = ["-x", "c++"] if source.suffix == ".cu" else []
        run([*command, "-MMD", "-MF", str(deps), *language, "-c", str(source), "-o", str(made)])
        text = deps.read_text().replace("\\\n", " ").split(":", 1)[1]
        files = sorted(set(shlex.split(text)))
        now = state(files)
        target = OUT / f"{record.stem}-{now}.o"
        if record.exists():  # keep only the newest
            (OUT / json.loads(record.read_text())["object"]).unlink(missing_ok=True)
        os.replace(made, target)
        notes = Path(folder, "notes")
        notes.write_text(json.dumps({"object": target.name, "state": now, "files": files}))
        os.replace(notes, record)
    return target


def state(files: list[str]) -> str:
    return digest(*(content(file) for file in files))


def say(message: str) -> None:
    print(f"tests/native: {message}", file=sys.stderr, flush=True)


def compile_all(variant: str, sources: list[tuple[Path, list[str]]]) -> list[Path]:
    """The objects of all sources. Prints the names of compiled files and the estimated time."""
    OUT.mkdir(parents=True, exist_ok=True)
    objects = [cached_object(*source) for source in sources]
    missing = [source for source, known in zip(sources, objects, strict=True) if known is None]
    if not missing:
        return [known for known in objects if known is not None]
    cores = os.cpu_count() or 1
    jobs = int(os.environ.get("MAX_JOBS", min(4, cores)))
    minutes = math.ceil(len(missing) * SECONDS.get(variant, 5) / min(jobs, cores) / 60)
    say(f"compiling {len(missing)} files for the {variant} build, some {minutes} min")
    done = itertools.count(1)

    def compile_missing(source: tuple[Path, list[str]]) -> Path:
        began = time.monotonic()
        made = compile_object(*source)
        seconds = time.monotonic() - began
        path = source[0].relative_to(ROOT)
        say(f"{variant} {next(done):3} of {len(missing)}: {path} in {seconds:.0f} s")
        return made

    with ThreadPoolExecutor(jobs) as pool:
        made = pool.map(compile_missing, missing)
        return [next(made) if known is None else known for known in objects]


def link(name: str, suffix: str, objects: list[Path], flags: list[str]) -> Path:
    kind = f"{name}-{digest(shlex.join([*CXX, *flags]).encode())}"
    target = OUT / f"{kind}-{digest(*(str(part).encode() for part in objects))}" / f"{name}{suffix}"
    if not target.exists():
        older = list(OUT.glob(f"{kind}-*"))
        target.parent.mkdir(exist_ok=True)
        made = target.with_suffix(f".{os.getpid()}")
        run([*CXX, *map(str, objects), *flags, "-pthread", "-o", str(made)])
        os.replace(made, target)
        for folder in older:
            shutil.rmtree(folder, ignore_errors=True)
    return target


def common_sources(variant: str, *, every_target: bool) -> list[tuple[Path, list[str]]]:
    """Returns the sources of the emulator and the kernels, with their flags.

    The emulator is never instrumented, so that its scheduler causes no reports of races. The
    kernels of `csrc/cpu` are the oracle of the emulated kernels. With `every_target` they are built
    for every instruction set. Otherwise they are built for the baseline alone, and are then the
    same on every machine. The CPU kernels of the likelihoods are tested through the extension,
    because with sanitizers their three files take over a minute to compile. For the same reason,
    the sanitizers' programs contain the CUDA likelihood kernels only for float. Other dtypes use
    the same templates.
    """
    fibers = [] if target_machine() == "x86_64" else ["-DEMU_UCONTEXT"]
    emulator = ["-O2", *EMULATOR_DEFINES[variant], *fibers]
    # Device code accesses any memory in words, and nvcc assumes no strict aliasing.
    device = ["-DVAE_FUSED_EMULATOR", "-DVAE_FUSED_CALL_FORMULAS", "-fno-strict-aliasing"]
    kernels = ["-O1", *device, *LIMITS, *SANITIZERS[variant]]
    oracle = ["-O1", *(SANITIZERS[variant] if every_target else ["-DVAE_FUSED_CPU_BASELINE"])]
    if IS_GCC:
        # Without weak symbols, the files of different instruction sets share no compiled formula.
        oracle += ["-DVAE_FUSED_CALL_FORMULAS", "-fno-weak", "-Wno-psabi"]
    cuda = [*sorted(NATIVE.glob("*.cu")), *sorted((CSRC / "cuda").rglob("*.cu"))]
    if variant != "plain":
        kernels.append("-DVAE_FUSED_FLOAT_LIKELIHOODS")
        cuda = [path for path in cuda if path.stem not in OTHER_LIKELIHOODS]
    return [
        *((path, emulator) for path in sorted(EMULATOR.glob("*.cpp"))),
        *((path, kernels) for path in cuda),
        *(
            (path, oracle)
            for path in sorted((CSRC / "cpu").rglob("*.cpp"))
            if path.parent.name != "likelihood"
        ),
    ]


def likelihood_sources() -> list[tuple[Path, list[str]]]:
    """Returns `likelihoods.cpp` for each variant. AVX2 and AVX-512 fuse products and sums."""
    variants = {
        "scalar": [],
        "emulated": ["-DVAE_FUSED_EMULATOR"],
        "baseline": ["-DVARIANT_BYTES=16"],
    }
    if target_machine() == "x86_64":
        fused = [
            "-ffp-contract=fast",
            "-mavx2",
            "-mbmi2",
            "-mfma",
            "-mf16c",
            "-DLIKELIHOOD_TARGETS",
        ]
        wide = [f"-mavx512{part}" for part in ("f", "bw", "cd", "dq", "vl")]
        supports = "-DAVAILABLE=__builtin_cpu_supports"
        variants["avx2"] = [*fused, "-DVARIANT_BYTES=32", f'{supports}("avx2")']
        variants["avx512"] = [*fused, *wide, "-DVARIANT_BYTES=64", f'{supports}("avx512vl")']
    source = NATIVE / "likelihoods.cpp"
    return [(source, ["-O2", f"-DVARIANT={name}", *flags]) for name, flags in variants.items()]


@contextmanager
def alone() -> Iterator[None]:
    """Lets one process build at a time. The others then use its results."""
    OUT.mkdir(parents=True, exist_ok=True)
    with (OUT / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@lru_cache
def module() -> ModuleType:
    with alone():
        path = built_module()
    spec = importlib.util.spec_from_file_location("_native", path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def built_module() -> Path:
    import pybind11

    # -isystem disables warnings in these headers.
    python = [f"-isystem{sysconfig.get_paths()['include']}", f"-isystem{pybind11.get_include()}"]
    targets = ["-DLIKELIHOOD_TARGETS"] if target_machine() == "x86_64" else []
    objects = compile_all(
        "module",
        [
            (NATIVE / "bind.cpp", ["-fvisibility=hidden", *targets, *python]),
            (NATIVE / "maths.cpp", ["-O2"]),
            *likelihood_sources(),
            *common_sources("plain", every_target=False),
        ],
    )
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    return link("_native", suffix, objects, ["-shared"])


@lru_cache
def launcher(variant: str) -> list[str] | None:
    """Returns the prefix of a command of this variant, or None if the variant cannot run here."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "a.cpp"), Path(folder, "a")
        source.write_text("int main() {}")
        command = [*CXX, *SANITIZERS[variant], str(source), "-o", str(target)]
        if subprocess.run(command, capture_output=True).returncode != 0:
            return None
        # GCC 12's ThreadSanitizer may not start if Linux randomises more than 28 address bits.
        fixed = ["setarch", platform.machine(), "-R"]
        for prefix in ([], fixed, [f"qemu-{target_machine()}"]):
            try:
                if subprocess.run([*prefix, str(target)], capture_output=True).returncode == 0:
                    return prefix
            except OSError:  # not installed, or built for another machine
                continue
    return None


@lru_cache
def program(variant: str) -> list[str]:
    """Returns the command that runs `cases.cpp`. Append the name of a case."""
    cases = ["-O1", *SANITIZERS[variant]]
    # The cases run the CPU kernels on one thread, so the baseline is enough for tsan.
    common = common_sources(variant, every_target=variant != "tsan")
    sources = [(NATIVE / name, cases) for name in ("cases.cpp", "nll_cases.cpp")]
    with alone():
        objects = compile_all(variant, [*sources, *common])
        built = link("cases", "", objects, SANITIZERS[variant])
    return [*(launcher(variant) or []), str(built)]


if __name__ == "__main__":
    wanted = sys.argv[1:] or ["module"]
    for variant in wanted:
        print(module().__file__ if variant == "module" else shlex.join(program(variant)))
