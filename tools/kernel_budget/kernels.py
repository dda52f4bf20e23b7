"""The cost of the kernels of a compiled extension, from cuobjdump and their SASS.

  registers, stack, shared   from cuobjdump --dump-resource-usage. Stack is bytes per thread, shared
                             is bytes per block, 1 KiB of which is the driver's from sm_90 on.
  spills                     local loads and stores (LDL, STL) on the hot path, and in the whole
                             kernel: spilled registers, and arrays that are not in registers.
  instructions               of the whole kernel, including padding.
  per element                instructions of the hot path divided by its elements.
  in_flight                  bytes that a thread requests before it waits (in_flight.py), and
                             KB of all resident threads of an SM (occupancy.py).
  load, store                bits of the widest global load and store on the hot path, or in the
                             whole kernel if options determine the path.
  size                       bytes of all cubins of an architecture.

The kernels of likelihoods have no hot path in this sense. A block loads a piece into shared memory,
waits at a barrier, computes the piece and waits again. Counts that are not 0 and gradients have
their own loops. Their cost is counted by executing them (machine_code/count.py), and their load and
store are those of the whole kernel.

hot_path.py defines the hot path. Its elements are V, the first integer among the kernel's template
arguments, or else the elements of its widest global load, multiplied by the number of unrolled
copies of the loop body, for which both its loads and its stores suffice.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import importlib.util
import json
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from hot_path import HotPath, hot_path
from in_flight import bytes_in_flight
from occupancy import resident_threads
from sass import Instruction, functions, widest, width
from toolchain import cuda_home

# The number of tensors that a kernel reads and writes: mu, logvar and z; in backward also the
# gradients of z, mu and logvar. Other kernels are not counted per element.
TENSORS = {"forward": (2, 1), "backward": (3, 2)}
ELEMENT_BITS = {"float": 32, "double": 64, "Half": 16, "BFloat16": 16}

# The kernels of likelihoods that compute elements, by direction.
LIKELIHOODS = {"nll": "forward", "nll_backward": "backward"}

Row = dict[str, Any]


def die(message: str) -> NoReturn:
    raise SystemExit(f"budget: error: {message}")


# --- reading an extension ------------------------------------------------------------------------


def find_cuobjdump() -> Path | None:
    places = [shutil.which("cuobjdump")]
    if home := cuda_home():
        places.append(str(home / "bin" / "cuobjdump"))
    triton = importlib.util.find_spec("triton")
    if triton and triton.origin:
        bin_ = Path(triton.origin).parent / "backends" / "nvidia" / "bin"
        places.append(str(bin_ / "cuobjdump"))
    return next((Path(p) for p in places if p and Path(p).is_file()), None)


def cuobjdump(*arguments: str | Path, cwd: str | Path | None = None) -> str:
    tool = find_cuobjdump()
    if tool is None:
        die("cuobjdump must be on PATH, in the CUDA toolkit or in triton, got none")
    done = subprocess.run([tool, *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        die(f"cuobjdump {arguments[0]}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def installed_extension() -> Path:
    spec = importlib.util.find_spec("vae_fused")
    if spec is None or spec.origin is None:
        die("vae_fused must be installed, got no package; install it or name an extension")
    found = sorted(Path(spec.origin).parent.glob("_C*.so"))
    if not found:
        die(
            f"vae_fused must have a compiled part, got none in {Path(spec.origin).parent}; name an "
            "extension"
        )
    return found[0]


def build_info(extension: Path) -> dict[str, Any]:
    """The record that setup.py has written beside the extension."""
    record = extension.parent / "_build_info.json"
    return json.loads(record.read_text()) if record.exists() else {}


@functools.cache
def _demangler() -> Any:
    function = ctypes.CDLL("libstdc++.so.6").__cxa_demangle
    function.restype = ctypes.c_void_p
    return function


def demangled(name: str) -> str:
    status = ctypes.c_int()
    result = _demangler()(name.encode(), None, None, ctypes.byref(status))
    if status.value:
        return name
    text = ctypes.string_at(result).decode()
    ctypes.CDLL(None).free(ctypes.c_void_p(result))
    return text


def short_name(signature: str) -> str:
    """``void ns::forward_kernel<ns::Half, 8>(ns::Params)`` -> ``forward<Half, 8>``.

    The short name omits the types of option families, and omits DefaultOptions entirely.
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
    name = re.sub(r", LatentOptions<\w+> ?", ", LatentOptions", name)
    return re.sub(r"_kernel(?=<|$)", "", name)


def template_arguments(name: str) -> list[str]:
    """The template arguments of a short name, without their own arguments."""
    arguments = name.partition("<")[2].rpartition(">")[0]
    while (outer := re.sub(r"<[^<>]*>", "", arguments)) != arguments:
        arguments = outer
    return re.split(r",\s*", arguments)


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """The computation of a likelihood's kernel."""

    direction: str  # or "both": the loss and its gradients in one pass
    element: str  # a key of ELEMENT_BITS
    kind: str  # of csrc/math/likelihood, or AnyKind


def likelihood(name: str) -> Likelihood | None:
    """The likelihood of a kernel; None for kernels of the latent or without elements."""
    direction = LIKELIHOODS.get(name.partition("<")[0])
    if direction is None:
        return None
    element, kind, *with_values = template_arguments(name)
    if with_values and with_values[0] in ("true", "(bool)1"):
        direction = "both"
    return Likelihood(direction, element, kind)


def elements(name: str, path: HotPath) -> int | None:
    """The number of elements of the kernel's hot path."""
    arguments = template_arguments(name)
    bits = ELEMENT_BITS.get(arguments[0])
    loads = [width(i) for i in path.instructions if i.base == "LDG"]
    stores = [width(i) for i in path.instructions if i.base == "STG"]
    tensors = TENSORS.get(name.partition("<")[0])
    if tensors is None or bits is None or not loads:
        return None
    if "(Access)2" in arguments:  # kChannelsLast: a step has two blocks of noise
        vector = 4 if bits == 64 else 8
    else:
        vector = next((int(a) for a in arguments if a.isdigit()), max(loads) // bits)
    inputs, outputs = tensors
    read = loads.count(max(loads)) * max(loads) // (inputs * vector * bits)
    return vector * max(1, min(read, sum(stores) // (outputs * vector * bits)))


def cubins(extension: Path, folder: str) -> Iterator[tuple[str, Path]]:
    """Architecture and file of each cubin in an extension, or of a single cubin."""
    if extension.suffix == ".cubin":
        code_for = re.search(r"code for (sm_\w+)", cuobjdump("--dump-sass", extension))
        if code_for is None:
            die(f"the cubin must contain code, got none in {extension.name}")
        yield code_for[1], extension
        return
    cuobjdump("--extract-elf", "all", extension.resolve(), cwd=folder)
    for cubin in sorted(Path(folder).glob("*.cubin")):
        arch = re.search(r"\.(sm_\w+)\.", cubin.name)
        if arch is None:
            die(f"cuobjdump extracted {cubin.name}, which names no architecture")
        yield arch[1], cubin


def row(name: str, arch: str, usage: dict[str, int], code: list[Instruction]) -> Row:
    path = hot_path(code)
    # Kernels of option families have a path for each option, and no static path shows which ones a
    # call takes. Kernels of likelihoods have several loops.
    general = "LatentOptions" in name or "_multi" in name or likelihood(name) is not None
    served = None if general else elements(name, path)
    accesses = code if general else path.instructions
    flying = bytes_in_flight(path.instructions, in_loop=path.in_loop) if served else None
    threads = resident_threads(arch, usage["REG"], usage["SHARED"])
    return {
        "registers": usage["REG"],
        "stack": usage["STACK"],
        "shared": usage["SHARED"],
        "spills": path.count("LDL", "STL"),
        "all_spills": sum(i.base in ("LDL", "STL") for i in code),
        "instructions": len(code),
        "per_element": round(path.length / served, 1) if served else None,
        "in_flight": flying,
        "in_flight_kb": flying * threads / 1024 if flying is not None else None,
        "load": widest(accesses, "LDG"),
        "store": widest(accesses, "STG"),
    }


def usages(text: str) -> dict[str, dict[str, int]]:
    """The output of `cuobjdump --dump-resource-usage`, by mangled name."""
    found = re.findall(r"Function (\S+):\s*\n\s*(REG:.*)", text)
    return {name: {k: int(v) for k, v in re.findall(r"(\w+):(\d+)", u)} for name, u in found}


def measure(extension: Path) -> dict[str, Any]:
    """The cost of an extension's kernels, in the form of budget.json."""
    sizes: Counter[str] = Counter()
    kernels: dict[str, dict[str, Row]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for arch, cubin in cubins(extension, folder):
            sizes[arch] += cubin.stat().st_size
            resources = usages(cuobjdump("--dump-resource-usage", cubin))
            for mangled, code in functions(cuobjdump("--dump-sass", cubin)).items():
                name = plain = short_name(demangled(mangled))
                count = 1
                while arch in kernels.setdefault(name, {}):  # the same name in another file
                    count += 1
                    name = f"{plain} ({count})"
                kernels[name][arch] = row(plain, arch, resources[mangled], code)
    if not sizes:
        die(f"the extension must contain CUDA code, got none in {extension.name}")
    info = build_info(extension)
    return {"nvcc": info.get("cuda"), "sizes": dict(sizes), "kernels": kernels}


# --- the hot path, for reading -------------------------------------------------------------------

# Cycles for which an instruction occupies a pipe. Each of an SM's four parts has one pipe of each
# kind, from compute capability 8.6 to 9.0 (CUDA C++ Programming Guide, throughput of arithmetic
# instructions; Nsight Compute, pipelines). A part issues one instruction per cycle, so a pipe is
# the limit if its cycles exceed the instructions. Both FMA pipes execute FP32, and only the heavy
# one integers. IMAD.WIDE has no published figure and counts twice. FP64 is that of 9.0.
CYCLES = {"ALU": 2, "FMA heavy": 2, "XU": 8, "FP64": 2}

# Class: its instructions, and their pipe if it is one of those above.
CLASSES = {
    "FFMA FMUL FADD": (r"(FFMA|FMUL|FADD)2?$", None),
    "DFMA DMUL DADD": (r"(DFMA|DMUL|DADD|DSETP)$", "FP64"),
    "MUFU": (r"MUFU$", "XU"),
    "IMAD.WIDE": (r"IMAD\.(WIDE|HI)", "FMA heavy"),
    "IMAD as a move or shift": (r"IMAD\.(MOV|SHL|IADD|X|U32)", "FMA heavy"),
    "IMAD": (r"IMAD", "FMA heavy"),
    "HFMA2 as a constant": (r"HFMA2", None),
    "uniform": (r"(U\w+|R2UR|S2UR|VOTEU)$", None),
    "integer add, shift, LEA": (r"(IADD|VIADD|LEA|SHF|IMNMX|VIMNMX)", "ALU"),
    "LOP3": (r"P?LOP3", "ALU"),
    "votes and counts of bits": (r"(VOTE|POPC|FLO)$", None),
    "compare, select": (r"(ISETP|FSETP|SEL|FSEL|FMNMX|VIADDMNMX)", "ALU"),
    "convert": (r"(I2FP|F2FP|PRMT|HADD2|I2I)", "ALU"),
    "convert by XU": (r"(I2F|F2I|F2F)$", "XU"),
    "move": (r"(MOV|CS2R)", "ALU"),
    "constant": (r"(LDC|S2R)", None),
    "global": (r"(LDG|STG)", None),
    "shared": (r"(LDS|STS|SHFL|ATOMS)", None),
    "barrier": (r"BAR$", None),
    "local": (r"(LDL|STL)", None),
    "branch, reconverge": (r"(BRA|BRX|BSSY|BSYNC|CALL|RET|EXIT|WARPSYNC|BMOV)", None),
}


def class_of(instruction: Instruction) -> str:
    for name, (pattern, _) in CLASSES.items():
        text = instruction.base if pattern.endswith("$") else instruction.opcode
        if re.match(pattern, text):
            return name
    return "other: " + instruction.base


def busy(instructions: list[Instruction]) -> dict[str, int]:
    """Cycles for which a warp's instructions occupy each pipe and the issue slot."""
    found = {"issue": len(instructions)} | dict.fromkeys(CYCLES, 0)
    for instruction in instructions:
        name = class_of(instruction)
        pipe = CLASSES[name][1] if name in CLASSES else None
        if pipe:
            found[pipe] += CYCLES[pipe] * (2 if name == "IMAD.WIDE" else 1)
    return found


def show_hot_path(extension: Path, kernel: str, arch: str | None) -> None:
    names: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        for of, cubin in cubins(extension, folder):
            if arch and of != arch:
                continue
            for mangled, code in functions(cuobjdump("--dump-sass", cubin)).items():
                name = short_name(demangled(mangled))
                names.add(name)
                if name != kernel:
                    continue
                path = hot_path(code)
                print(
                    f"=== {of} {name}: {path.length} instructions, {elements(name, path)} elements"
                )
                for i in path.instructions:
                    print(f"{i.address:06x}  {i.guard:5} {i.opcode} {i.operands}".rstrip())
                print()
                for group, count in Counter(map(class_of, path.instructions)).most_common():
                    print(f"{count:6}  {group}")
                served = elements(name, path) or 1
                flying = bytes_in_flight(path.instructions, in_loop=path.in_loop)
                print(f"{flying:6g}  bytes in flight")
                for pipe, cycles in busy(path.instructions).items():
                    print(f"{cycles / served:6.1f}  cycles of {pipe} an element")
    if kernel not in names:
        die(f"the kernel must be one of {', '.join(sorted(names))}, got {kernel}")
