"""Reads the cost of a compiled extension's kernels from cuobjdump and their SASS.

  registers, stack, shared   from cuobjdump --dump-resource-usage. `stack` is in bytes per thread.
                             `shared` is bytes per block, 1 KiB of it the driver's from sm_90 on.
  spills                     local loads and stores (LDL, STL) on the hot path, and in the whole
                             kernel: spilled registers, and arrays that are not in registers.
  instructions               of the whole kernel, including padding.
  per element                instructions of the hot path divided by its elements.
  in_flight                  bytes that a thread requests before it waits (in_flight.py), and
                             KB of all resident threads of an SM (occupancy.py).
  load, store                bits of the widest global load and store on the hot path, or in the
                             whole kernel if options determine the path.
  size                       bytes of all cubins of an architecture.

The likelihood kernels have no hot path in this sense. A block loads a piece into shared memory,
waits at a barrier, computes the piece and waits again. Separate loops process counts that are not
0, and gradients. The cost of these kernels is counted by executing them
(tests/machine_code/count.py), and their load and store are those of the whole kernel.

hot_path.py defines the hot path. The path's number of elements is V times the largest number of
unrolled copies of the loop body for which its loads and stores suffice. V is the kernel's first
integer template argument or, if there is none, the number of elements in its widest global load.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from build_support.toolchain import cuda_home

from .hot_path import HotPath, hot_path
from .in_flight import bytes_in_flight
from .occupancy import resident_threads
from .sass import Instruction, functions, widest, width

# The number of tensors that a kernel reads and writes: mu, logvar and z; in backward also the
# gradients of z, mu and logvar. Other kernels are not counted per element.
TENSORS = {"forward": (2, 1), "backward": (3, 2)}
ELEMENT_BITS = {"float": 32, "double": 64, "Half": 16, "BFloat16": 16}
LOCAL = ("LDL", "STL")

# The likelihood kernels that compute elements, with their directions.
LIKELIHOODS = {"nll": "forward", "nll_backward": "backward"}

Row = dict[str, Any]


def die(message: str) -> NoReturn:
    raise SystemExit(f"budget: error: {message}")


def find_cuobjdump() -> Path | None:
    """Find cuobjdump on PATH, in the CUDA toolkit, or in triton, which torch's CUDA wheels need."""
    places = [Path(shutil.which("cuobjdump") or "")]
    if home := cuda_home():
        places.append(home / "bin" / "cuobjdump")
    triton = importlib.util.find_spec("triton")
    if triton and triton.origin:
        places.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump")
    return next((place for place in places if place.is_file()), None)


def cuobjdump(*arguments: str | Path, cwd: str | None = None) -> str:
    if (tool := find_cuobjdump()) is None:
        die("cuobjdump must be on PATH, in the CUDA toolkit or in triton, got none")
    done = subprocess.run([tool, *arguments], cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-500:]
        die(f"cuobjdump {arguments[0]}: status {done.returncode}: {said}")
    return done.stdout


def installed_extension() -> Path:
    spec = importlib.util.find_spec("vae_fused")
    if spec is None or spec.origin is None:
        die("vae_fused must be installed, got no package; install it or name an extension")
    found = sorted(Path(spec.origin).parent.glob("_C*.so"))
    if not found:
        where = Path(spec.origin).parent
        die(f"vae_fused must have a compiled part, got none in {where}; name an extension")
    return found[0]


def build_info(extension: Path) -> dict[str, Any]:
    """Return the record that setup.py has written next to the extension."""
    record = extension.parent / "_build_info.json"
    return json.loads(record.read_text()) if record.exists() else {}


def demangled(name: str) -> str:
    demangle = ctypes.CDLL("libstdc++.so.6").__cxa_demangle
    demangle.restype = ctypes.c_char_p
    found: bytes | None = demangle(name.encode(), None, None, None)
    return found.decode() if found else name


def short_name(signature: str) -> str:
    """``void ns::forward_kernel<ns::Half, 8>(ns::Params)`` -> ``forward<Half, 8>``.

    The short name omits DefaultOptions.
    """
    text = signature.replace("(anonymous namespace)::", "")
    depth, start, end = 0, 0, len(text)
    for at, character in enumerate(text):
        depth += (character == "<") - (character == ">")
        if depth == 0 and character == " ":
            start = at + 1  # a template's signature begins with its return type
        elif depth == 0 and character == "(":
            end = at
            break
    name = re.sub(r"(?:\w+::)+", "", text[start:end])
    name = re.sub(r", DefaultOptions<\w+> ?", "", name)
    return re.sub(r"_kernel(?=<|$)", "", name)


def template_arguments(name: str) -> list[str]:
    """Return the template arguments of a short name, without their own arguments."""
    arguments = name.partition("<")[2].rpartition(">")[0]
    while (outer := re.sub(r"<[^<>]*>", "", arguments)) != arguments:
        arguments = outer
    return re.split(r",\s*", arguments)


class Likelihood(NamedTuple):
    """The computation that a likelihood kernel performs."""

    direction: str  # or "both": the loss and its gradients in one pass
    element: str  # a key of ELEMENT_BITS
    kind: str  # of csrc/math/likelihood, or AnyKind


def likelihood(name: str) -> Likelihood | None:
    """Return a kernel's likelihood, or None for latent kernels and kernels without elements."""
    direction = LIKELIHOODS.get(name.partition("<")[0])
    if direction is None:
        return None
    element, kind, *with_values = template_arguments(name)
    if with_values and with_values[0] in ("true", "(bool)1"):
        direction = "both"
    return Likelihood(direction, element, kind)


def has_many_paths(name: str) -> bool:
    """Return whether a kernel has no single hot path, due to options, a list, or separate loops."""
    return "Options" in name or "_multi" in name or likelihood(name) is not None


def elements(name: str, path: HotPath) -> int | None:
    """Return the number of elements that the kernel's hot path computes."""
    arguments = template_arguments(name)
    bits = ELEMENT_BITS.get(arguments[0])
    loads = [width(i) for i in path.instructions if i.base == "LDG"]
    stores = [width(i) for i in path.instructions if i.base == "STG"]
    kernel = name.partition("<")[0]
    if kernel not in TENSORS or bits is None or not loads:
        return None
    if "(Access)2" in arguments:  # kChannelsLast: a step has two blocks of noise
        vector = 4 if bits == 64 else 8
    else:
        vector = next((int(a) for a in arguments if a.isdigit()), max(loads) // bits)
    inputs, outputs = TENSORS[kernel]
    read = loads.count(max(loads)) * max(loads) // (inputs * vector * bits)
    return vector * max(1, min(read, sum(stores) // (outputs * vector * bits)))


def cubins(extension: Path) -> Iterator[tuple[str, Path]]:
    """Yield the architecture and the file of each cubin in an extension, or of a single cubin."""
    if extension.suffix == ".cubin":
        code_for = re.search(r"code for (sm_\w+)", cuobjdump("--dump-sass", extension))
        if code_for is None:
            die(f"the cubin must contain code, got none in {extension.name}")
        yield code_for[1], extension
        return
    with tempfile.TemporaryDirectory() as folder:
        cuobjdump("--extract-elf", "all", extension.resolve(), cwd=folder)
        for cubin in sorted(Path(folder).glob("*.cubin")):
            arch = re.search(r"\.(sm_\w+)\.", cubin.name)
            if arch is None:
                die(f"the name of a cubin must contain its architecture, got {cubin.name}")
            yield arch[1], cubin


def kernels_of(cubin: Path) -> Iterator[tuple[str, dict[str, int], list[Instruction]]]:
    """Yield the short name, the resource usage and the instructions of each kernel in a cubin."""
    resources = usages(cuobjdump("--dump-resource-usage", cubin))
    for mangled, code in functions(cuobjdump("--dump-sass", cubin)).items():
        yield short_name(demangled(mangled)), resources[mangled], code


def row(name: str, arch: str, usage: dict[str, int], code: list[Instruction]) -> Row:
    path = hot_path(code)
    served = None if has_many_paths(name) else elements(name, path)
    accesses = code if has_many_paths(name) else path.instructions
    flying = bytes_in_flight(path.instructions, in_loop=path.in_loop) if served else None
    threads = resident_threads(arch, usage["REG"], usage["SHARED"])
    return {
        "registers": usage["REG"],
        "stack": usage["STACK"],
        "shared": usage["SHARED"],
        "spills": sum(i.base in LOCAL for i in path.instructions),
        "all_spills": sum(i.base in LOCAL for i in code),
        "instructions": len(code),
        "per_element": round(path.length / served, 1) if served else None,
        "in_flight": flying,
        "in_flight_kb": flying * threads / 1024 if flying is not None else None,
        "load": widest(accesses, "LDG"),
        "store": widest(accesses, "STG"),
    }


def usages(text: str) -> dict[str, dict[str, int]]:
    """Parse the output of `cuobjdump --dump-resource-usage` into usages by mangled name."""
    found = re.findall(r"Function (\S+):\s*\n\s*(REG:.*)", text)
    return {name: {k: int(v) for k, v in re.findall(r"(\w+):(\d+)", u)} for name, u in found}


def measure(extension: Path) -> dict[str, Any]:
    """Return the cost of an extension's kernels, in the format of budget.json."""
    sizes: Counter[str] = Counter()
    kernels: dict[str, dict[str, Row]] = {}
    for arch, cubin in cubins(extension):
        sizes[arch] += cubin.stat().st_size
        for plain, usage, code in kernels_of(cubin):
            name, count = plain, 1
            while arch in kernels.setdefault(name, {}):  # the same name in another file
                count += 1
                name = f"{plain} ({count})"
            kernels[name][arch] = row(plain, arch, usage, code)
    if not sizes:
        die(f"the extension must contain CUDA code, got none in {extension.name}")
    nvcc = build_info(extension).get("cuda")
    return {"nvcc": nvcc, "sizes": dict(sizes), "kernels": kernels}
