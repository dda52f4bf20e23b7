"""Builds vae_fused: decides what to compile, prints the decision, and compiles exactly that.

`decide()` makes every decision once, before anything is compiled:

  mode      VAE_FUSED_BUILD = auto | cuda | cpu | none
              auto  CUDA if this torch is a CUDA build and its nvcc is available (no GPU is needed),
                    otherwise CPU if there is a C++ compiler, otherwise none: pure Python.
              If an explicit mode is impossible here, the build fails. No other mode replaces it.
            FORCE_CUDA=1 turns auto into cuda.
  archs     TORCH_CUDA_ARCH_LIST, otherwise the visible GPUs, with PTX for the newest, otherwise
            PORTABLE_ARCHS, with PTX for those of PORTABLE_PTX.
  flags     DEBUG=1: -O0 -g.  VAE_FUSED_PTXAS_V=1: nvcc reports registers and spills per kernel.
            VAE_FUSED_LINEINFO=1: -lineinfo, for profilers; this doubles the device code's size.
            -std is never set, because torch selects the standard that its headers need.
  jobs      MAX_JOBS, otherwise as many as the processors and the memory of this machine allow.

  version   from vae_fused/_version.py, with a label for the torch and the mode of the wheel:
            +torch2.13.cpu, +torch2.13.cuda13 or +none. Wheels that differ have different names.
            Sdists, and wheels that are built from them, have no label, because installers require
            that both have the same version.

If compilation fails, the installation fails. The decision and its reason are printed and recorded
in `vae_fused/_build_info.json`, which `vae_fused._ext` and `python -m vae_fused.env` read.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import re
import runpy
import shutil
import sys
import sysconfig
from pathlib import Path

import setuptools
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

from build_support.digest import sources_digest
from build_support.toolchain import (
    Toolkit,
    compiler_is_gcc,
    compiler_version,
    die,
    find_toolkit,
    import_torch,
    numbers,
    wheel_dirs,
    why_no_cpu,
    why_no_cuda,
)

ROOT = Path(__file__).resolve().parent
MODES = ("auto", "cuda", "cpu", "none")
MIN_SETUPTOOLS = (77, 0)  # reads the license expression in pyproject.toml; torch requires it too
# One architecture for each generation. For a newer GPU, the driver compiles the PTX. The PTX for
# 10.0 runs on 11.0, for which the PTX for 12.0 is too new, and the PTX for 12.0 runs on future
# GPUs.
PORTABLE_ARCHS = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0")
PORTABLE_PTX = ("10.0", "12.0")
GB_PER_JOB = 2  # memory that a compiler needs for a file that includes ATen


@dataclasses.dataclass(frozen=True)
class Plan:
    """The build, and the reason for it."""

    mode: str  # cuda | cpu | none
    why: str
    toolkit: Toolkit | None = None
    archs: str = ""  # in the notation of TORCH_CUDA_ARCH_LIST


def say(message: str) -> None:
    print(f"vae_fused: {message}", file=sys.stderr, flush=True)


def flag(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "on", "true", "yes")


# --- what to build -------------------------------------------------------------------------------


def choose_archs(torch, toolkit: Toolkit) -> str:
    """Returns the architectures to compile for, in the notation of TORCH_CUDA_ARCH_LIST."""
    asked = ";".join(re.findall(r"[^;,\s]+", os.environ.get("TORCH_CUDA_ARCH_LIST", "")))
    known = toolkit.archs or PORTABLE_ARCHS
    if asked and asked != "native":
        for arch in re.findall(r"(?<![\w.])\d+\.\d+", asked):
            if arch not in known:
                die(
                    f"TORCH_CUDA_ARCH_LIST must contain only architectures of nvcc "
                    f"{toolkit.version} ({' '.join(known)}), got {arch}"
                )
        return asked
    gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    visible = {"{}.{}".format(*torch.cuda.get_device_capability(i)) for i in gpus}
    if visible:
        # A GPU newer than nvcc runs the PTX of the newest architecture that nvcc supports.
        archs = {min(arch, known[-1], key=numbers) for arch in visible}
        with_ptx: tuple[str, ...] = ()
    else:
        archs = {arch for arch in PORTABLE_ARCHS if arch in known} or {known[-1]}
        with_ptx = PORTABLE_PTX
    *older, newest = sorted(archs, key=numbers)
    return ";".join([f"{a}+PTX" if a in with_ptx else a for a in older] + [f"{newest}+PTX"])


def decide(torch) -> Plan:
    """Chooses what to build. `main` reads VAE_FUSED_BUILD only to skip the import of torch."""
    asked = os.environ.get("VAE_FUSED_BUILD", "").lower() or "auto"
    if asked not in MODES:
        die(f"VAE_FUSED_BUILD must be one of {', '.join(MODES)}, got {asked!r}")
    why = f"VAE_FUSED_BUILD={asked}"
    if asked == "none":
        return Plan("none", why)
    if asked == "auto" and flag("FORCE_CUDA"):
        asked, why = "cuda", "FORCE_CUDA=1"

    no_cpu = why_no_cpu()  # the CUDA build compiles C++ as well
    if asked in ("cuda", "auto"):
        toolkit = find_toolkit()
        no_cuda = no_cpu or why_no_cuda(torch, toolkit)
        if not no_cuda and isinstance(toolkit, Toolkit):
            if asked == "auto":
                why = f"torch is built for CUDA {torch.version.cuda}, nvcc is {toolkit.version}"
            return Plan("cuda", why, toolkit, choose_archs(torch, toolkit))
        if asked == "cuda":
            die(f"a CUDA build is impossible ({why}): {no_cuda}")
        why = f"no CUDA: {no_cuda}"
    if not no_cpu:
        return Plan("cpu", why)
    if asked == "cpu":
        die(f"a CPU build is impossible ({why}): {no_cpu}")
    return Plan("none", no_cpu)


def jobs() -> int:
    """Returns the number of parallel jobs. Ninja's default ignores memory and container limits."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError, AttributeError):
        return cpus
    return max(1, min(cpus, int(gigabytes / GB_PER_JOB)))


def cxx_flags() -> list[str]:
    flags = ["-O0", "-g", "-UNDEBUG"] if flag("DEBUG") else ["-O3", "-g0"]
    flags += ["-Wall", "-Wextra", "-fvisibility=hidden"]
    # No code reads errno or the floating-point exception flags. Without these two options, sqrt and
    # selects are not vectorised, and the forward kernel is 3 times slower. Neither option changes a
    # result.
    flags += ["-fno-math-errno", "-fno-trapping-math"]
    if compiler_is_gcc():
        # at::parallel_for is serial in a file compiled without this flag. The flag is not passed to
        # the linker, so that GOMP_* resolves to the runtime that torch has loaded, and both share
        # one thread pool. Code from clang would call another runtime, which torch's Linux wheels do
        # not contain.
        flags.append("-fopenmp")
    return flags


def nvcc_flags() -> list[str]:
    # --use_fast_math is never set: it flushes denormals and replaces exp and log in the formulas.
    flags = ["-O0", "-g"] if flag("DEBUG") else ["-O3"]
    flags += ["-Xcompiler=-Wall,-Wextra,-fvisibility=hidden"]
    if flag("VAE_FUSED_LINEINFO"):
        flags.append("-lineinfo")
    if flag("VAE_FUSED_PTXAS_V"):
        flags += ["-Xptxas", "-v"]
    return flags


def release() -> str:
    """Returns the version of the sources."""
    return str(runpy.run_path(str(ROOT / "vae_fused" / "_version.py"))["__version__"])


def version(plan: Plan, torch) -> str:
    """Returns the built package's version. `_ext` accepts any torch with the same minor version."""
    if (ROOT / "PKG-INFO").exists():  # an unpacked sdist
        return release()
    if plan.mode == "none":
        return f"{release()}+none"
    major, minor = numbers(torch.__version__)
    kind = f"cuda{numbers(plan.toolkit.version)[0]}" if plan.toolkit else "cpu"
    return f"{release()}+torch{major}.{minor}.{kind}"


# --- building it ---------------------------------------------------------------------------------


def sources(plan: Plan) -> list[str]:
    patterns = ["csrc/torch/**/*.cpp", "csrc/cpu/**/*.cpp"]
    if plan.mode == "cuda":
        patterns.append("csrc/cuda/**/*.cu")
    return sorted(str(p.relative_to(ROOT)) for pattern in patterns for p in ROOT.glob(pattern))


def headers() -> list[str]:
    return sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/**/*.*h"))


def isystem(dirs: list[str | Path]) -> list[str]:
    """Passes include folders as system folders, so that compilers warn only about our own code.

    GCC and clang ignore the `-I` that torch adds for a folder that is also passed as `-isystem`.
    """
    return [word for d in dirs if str(d) != "/usr/include" for word in ("-isystem", str(d))]


def link_cudart(extension: setuptools.Extension, torch) -> None:
    """Links a versioned libcudart if no folder has libcudart.so, which wheels do not contain.

    When `_C` is loaded, torch has already loaded its own libcudart under the same soname.
    """
    if any((Path(d) / "libcudart.so").exists() for d in extension.library_dirs):
        return
    places = [Path(d) for d in extension.library_dirs] + wheel_dirs(torch, "lib")
    versioned = [lib for place in places for lib in sorted(place.glob("libcudart.so.*"))]
    if not versioned:
        die("libcudart.so must be in the CUDA toolkit or the nvidia wheels beside torch, got none")
    extension.libraries.remove("cudart")
    extension.extra_objects.append(str(versioned[0]))


def make_extension(plan: Plan, torch) -> setuptools.Extension:
    if plan.toolkit is not None:  # torch reads both, and would otherwise use the nvcc on PATH
        os.environ["CUDA_HOME"] = str(plan.toolkit.home)
        os.environ["TORCH_CUDA_ARCH_LIST"] = plan.archs
    from torch.utils import cpp_extension

    # With the prefix map, paths in error messages and debug info start at the project's root.
    cxx = [*cxx_flags(), f"-ffile-prefix-map={ROOT}{os.sep}="]
    # Without this macro, the autograd headers of torch include all operators: 3 s per file.
    macros = [("AT_PER_OPERATOR_HEADERS", None)]
    if plan.toolkit is not None:
        macros.append(("VAE_FUSED_WITH_CUDA", None))
    common = {
        "include_dirs": [str(ROOT / "csrc")],
        "define_macros": macros,
        "depends": headers(),
        "py_limited_api": not sysconfig.get_config_var("Py_GIL_DISABLED"),
    }
    python_include = sysconfig.get_path("include")
    if plan.toolkit is None:
        cxx += isystem([*cpp_extension.include_paths(), python_include])
        return cpp_extension.CppExtension(
            "vae_fused._C", sources(plan), extra_compile_args={"cxx": cxx}, **common
        )
    cpp_extension.CUDA_HOME = str(plan.toolkit.home)  # in case cpp_extension was imported before
    # The wheels come last, because their cuda_runtime.h may be newer than nvcc.
    cxx += isystem([*cpp_extension.include_paths("cuda"), python_include])
    cxx += isystem([*wheel_dirs(torch, "include")])
    extension = cpp_extension.CUDAExtension(
        "vae_fused._C",
        sources(plan),
        extra_compile_args={"cxx": cxx, "nvcc": nvcc_flags()},
        **common,
    )
    link_cudart(extension, torch)
    return extension


def build_info(plan: Plan, torch) -> dict[str, object]:
    """Returns what `_build_info.json` contains: no dates or paths, so builds are reproducible."""
    compiled = plan.mode != "none"
    return {
        "version": version(plan, torch),
        "mode": plan.mode,
        "why": plan.why,
        "torch": str(torch.__version__) if compiled else None,
        "torch_cuda": torch.version.cuda if compiled else None,
        "cuda": plan.toolkit.version if plan.toolkit else None,
        "archs": plan.archs.split(";") if plan.archs else [],
        "compiler": compiler_version() if compiled else None,
        "sources": sources_digest(ROOT) if compiled else None,
        "flags": {
            "cxx": cxx_flags() if compiled else [],
            "nvcc": nvcc_flags() if plan.mode == "cuda" else [],
        },
        "platform": f"{sys.platform}-{platform.machine()}" if compiled else None,
    }


def write_build_info(package: Path, info: dict[str, object]) -> None:
    package.mkdir(parents=True, exist_ok=True)
    (package / "_build_info.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")


def commands(plan: Plan, info: dict[str, object]) -> dict[str, type]:
    """Returns commands that record `info` and end a failed compile with a clear message."""

    class BuildPy(build_py):
        def run(self) -> None:
            target = ROOT / "vae_fused" if self.editable_mode else Path(self.build_lib, "vae_fused")
            if not self.editable_mode:
                shutil.rmtree(target, ignore_errors=True)  # remnants of renamed modules
            super().run()
            write_build_info(target, info)

        def get_outputs(self, include_bytecode: bool = True) -> list[str]:
            record = os.path.join(self.build_lib, "vae_fused", "_build_info.json")
            return [*super().get_outputs(include_bytecode), record]

    class Sdist(sdist):
        def initialize_options(self) -> None:
            super().initialize_options()
            self.distribution.metadata.version = release()

    if plan.mode == "none":
        return {"build_py": BuildPy, "sdist": Sdist}

    from torch.utils.cpp_extension import BuildExtension

    class BuildExt(BuildExtension):
        def run(self) -> None:
            os.environ.setdefault("MAX_JOBS", str(jobs()))
            try:
                super().run()
            except Exception as error:
                first_line = next(iter(str(error).splitlines()), type(error).__name__)
                die(f"the {plan.mode} build failed ({first_line}); the first error above says why")
            if self.inplace:
                write_build_info(ROOT / "vae_fused", info)

    return {"build_py": BuildPy, "build_ext": BuildExt, "sdist": Sdist}


def main() -> None:
    if numbers(setuptools.__version__) < MIN_SETUPTOOLS:
        die(
            f"setuptools must be 77 or later, got {setuptools.__version__}; run pip install -U "
            "'setuptools>=77'"
        )
    os.chdir(ROOT)
    # A build without compiled code does not need torch, which remains a runtime dependency.
    torch = None if os.environ.get("VAE_FUSED_BUILD", "").lower() == "none" else import_torch()
    plan = decide(torch)
    say(f"building {plan.mode} ({plan.why})" + (f" for {plan.archs}" if plan.archs else ""))
    options = {}
    extensions = []
    if plan.mode != "none":
        extensions.append(make_extension(plan, torch))
        # Builds that differ in torch or mode must not share objects, so each has its own folder.
        options["build"] = {"build_base": f"build/{plan.mode}-torch{torch.__version__}"}
        if extensions[0].py_limited_api:
            options["bdist_wheel"] = {"py_limited_api": "cp310"}
    info = build_info(plan, torch)
    setuptools.setup(
        version=info["version"],
        ext_modules=extensions,
        cmdclass=commands(plan, info),
        options=options,
    )


if __name__ == "__main__":
    main()
