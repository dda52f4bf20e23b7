"""A device: modules with their variables, kernels by name, launches."""

from __future__ import annotations

import dataclasses
import struct
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from tools.kernel_budget.sass import Instruction

from . import cubin
from .errors import LaunchError
from .memory import ConstantBank, GlobalMemory
from .program import Program, decode, decode_instructions
from .schedule import run_blocks
from .warps import LANES, Environment, Shared, Warps

THREADS = 256  # per block, in all kernels
# The number of blocks that are resident together, and the number of groups to which their warps are
# assigned. numpy takes as long for 100 lanes as for 1000, so a few large groups are faster.
RESIDENT, GROUPS = 16, 2

# Offsets in constant bank 0 of sm_90: the block and grid sizes, the end of the stack, and the
# descriptor of global memory, whose value no instruction here reads.
_BLOCK_SIZE, _STACK, _DESCRIPTOR, _DESCRIPTOR_BYTES = 0x0, 0x28, 0x208, 8


@dataclasses.dataclass
class Launched:
    """The issued instructions of a launch, counted per warp."""

    program: Program
    blocks: int
    counts: np.ndarray  # for each instruction
    trace: list[Instruction]  # one warp's executed instructions, if the device traces launches

    @property
    def issued(self) -> int:
        return int(self.counts.sum())

    def by_opcode(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for instruction, count in zip(self.program.instructions, self.counts, strict=True):
            if count:
                found[instruction.opcode] += int(count)
        return found


class Device:
    """The kernels of some cubins, which share the memory of this process."""

    def __init__(self, paths: list[Path], seed: int = 1, perturb: bool = True) -> None:
        self.memory = GlobalMemory()
        self.random = np.random.default_rng(seed)
        self.perturb = perturb
        self.traces = False
        self._kernels: dict[str, tuple[cubin.Kernel, bytes]] = {}
        self._programs: dict[str, Program] = {}
        self._variables: list[np.ndarray] = []
        with ThreadPoolExecutor() as pool:  # cuobjdump takes a second for each 5 MB of listing
            for module in pool.map(cubin.read, paths):
                self._load(module)

    def _load(self, module: cubin.Cubin) -> None:
        variables = np.zeros(module.variables + 256, np.uint8)
        start = -(-variables.ctypes.data // 256) * 256
        self._variables.append(variables)
        self.memory.add(start, start + module.variables)
        constants = bytearray(module.constants)
        for offset, target in module.addresses:
            struct.pack_into("<Q", constants, offset, start + target)
        for kernel in module.kernels:
            self.add(kernel, bytes(constants))

    def add(self, kernel: cubin.Kernel, constants: bytes = b"") -> None:
        """Add a kernel, with the constant bank 4 of its module."""
        if kernel.name in self._kernels:
            raise LaunchError(f"kernels must have different names, got {kernel.name} twice")
        self._kernels[kernel.name] = kernel, constants

    @property
    def names(self) -> list[str]:
        return sorted(self._kernels)

    def program(self, name: str) -> Program:
        """Return the decoded kernel, which is decoded on first use."""
        if name not in self._kernels:
            raise LaunchError(f"the kernel must be one of {', '.join(self.names)}, got {name}")
        if name not in self._programs:
            self._programs[name] = decode(self._kernels[name][0])
        return self._programs[name]

    def plant(self, name: str, code: list[Instruction]) -> None:
        """Replace a kernel's instructions, to test whether a fault is detected."""
        self._programs[name] = decode_instructions(name, code)

    def _constants(
        self, kernel: cubin.Kernel, constants: bytes, blocks: int, arguments: list[bytes]
    ) -> dict[int, ConstantBank]:
        sizes = [parameter.size for parameter in kernel.parameters]
        if [len(argument) for argument in arguments] != sizes:
            given = [len(argument) for argument in arguments]
            raise LaunchError(f"arguments of {kernel.name} must have {sizes} bytes, got {given}")
        bank = ConstantBank(kernel.parameter_base + kernel.parameter_bytes)
        bank.allow(kernel.parameter_base, kernel.parameter_bytes)
        bank.define(_BLOCK_SIZE, struct.pack("<6I", THREADS, 1, 1, blocks, 1, 1))
        bank.define(_STACK, bytes(4))
        bank.define(_DESCRIPTOR, bytes(_DESCRIPTOR_BYTES))
        for parameter, argument in zip(kernel.parameters, arguments, strict=True):
            bank.define(kernel.parameter_base + parameter.offset, argument)
        of_kernel, of_module = ConstantBank(len(kernel.tables)), ConstantBank(len(constants))
        of_kernel.define(0, kernel.tables)
        of_module.define(0, constants)
        return {0: bank, 2: of_kernel, 4: of_module}

    def launch(self, name: str, blocks: int, arguments: list[bytes]) -> Launched:
        """Run a grid of blocks in random order."""
        program = self.program(name)
        kernel, module_constants = self._kernels[name]
        constants = self._constants(kernel, module_constants, blocks, arguments)
        for bank, offset, size in program.constants:
            constants[bank].check(np.array([offset]), min(size, 4))
        salt = self.random.integers(2**32, dtype=np.uint32)
        environment = Environment(self.memory, constants, self.random, self.perturb, salt)
        counts = np.zeros(len(program.instructions), np.int64)
        order = self.random.permutation(blocks)
        trace: list[int] | None = [] if self.traces else None
        with np.errstate(all="ignore"):
            for first in range(0, blocks, RESIDENT):
                resident = order[first : first + RESIDENT]
                shared = Shared(len(resident), kernel.shared, program.shared_unit)

                def make(
                    slots: np.ndarray,
                    warp: np.ndarray,
                    shared: Shared,
                    resident: np.ndarray = resident,
                ) -> Warps:
                    return Warps(environment, shared, slots, resident[slots], warp)

                counts += run_blocks(
                    program, make, resident, THREADS // LANES, shared, self.random, GROUPS,
                    None if first else trace,
                )  # fmt: skip
        return Launched(program, blocks, counts, [program.instructions[at] for at in trace or ()])
