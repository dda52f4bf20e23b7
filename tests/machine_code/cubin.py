"""Reads a cubin: each kernel's parameters, memory and instructions.

The listing is cuobjdump's. The ELF file contains the rest:

  .nv.info.KERNEL     the place of each parameter in the parameter block
  .nv.shared.KERNEL   the size of shared memory, including the system's part
  .nv.global          the module's variables
  .nv.constant2.KERNEL  the kernel's tables of branch targets, which are offsets in its code
  .nv.constant4       addresses of variables, given by relocations
"""

from __future__ import annotations

import dataclasses
import functools
import struct
from pathlib import Path

from tools.kernel_budget.kernels import cuobjdump, demangled, short_name
from tools.kernel_budget.sass import Instruction, functions

from .errors import LaunchError

# The .nv.info attributes that are read, and the format whose values include their size.
_PARAMETER, _PARAMETER_V2, _PARAMETER_BANK = 0x17, 0x45, 0x0A
_SIZED = 4

RELOCATION_64 = 2  # R_CUDA_64


@dataclasses.dataclass(frozen=True)
class Parameter:
    offset: int  # in the parameter block
    size: int


@dataclasses.dataclass(frozen=True)
class Kernel:
    name: str  # as in the budget: forward<float, (Access)0>
    code: tuple[Instruction, ...]
    parameters: tuple[Parameter, ...]
    parameter_base: int  # in constant bank 0
    parameter_bytes: int
    shared: int  # bytes, including the system's
    tables: bytes = b""  # constant bank 2


@dataclasses.dataclass(frozen=True)
class Cubin:
    kernels: tuple[Kernel, ...]
    variables: int  # bytes of .nv.global, which are 0 after the module is loaded
    constants: bytes  # bank 4
    addresses: tuple[tuple[int, int], ...]  # (offset in bank 4, offset in .nv.global)


@dataclasses.dataclass(frozen=True)
class _Section:
    name: str
    kind: int
    data: bytes
    size: int
    link: int
    info: int


def _text(table: bytes, offset: int) -> str:
    return table[offset : table.index(b"\0", offset)].decode()


def _sections(elf: bytes) -> list[_Section]:
    start, count, names = (
        *struct.unpack_from("<Q", elf, 0x28),
        *struct.unpack_from("<HH", elf, 60),
    )
    headers = [struct.unpack_from("<IIQQQQIIQQ", elf, start + 64 * i) for i in range(count)]
    table = elf[headers[names][4] : headers[names][4] + headers[names][5]]
    found = []
    for name, kind, _, _, offset, size, link, info, _, _ in headers:
        has_no_bytes = kind == 8  # SHT_NOBITS
        data = b"" if has_no_bytes else elf[offset : offset + size]
        found.append(_Section(_text(table, name), kind, data, size, link, info))
    return found


def _attributes(data: bytes) -> list[tuple[int, bytes]]:
    """Return attributes and values. The value is empty for formats without a size."""
    found = []
    at = 0
    while at < len(data):
        form, attribute, size = struct.unpack_from("<BBH", data, at)
        at += 4
        value = b""
        if form == _SIZED:
            value = data[at : at + size]
            at += size
        found.append((attribute, value))
    return found


def _parameters(info: bytes) -> tuple[tuple[Parameter, ...], int, int]:
    """Return the parameters in order, the first one's offset in bank 0, and their total bytes."""
    found: dict[int, Parameter] = {}
    base = size = 0
    for attribute, value in _attributes(info):
        if attribute == _PARAMETER:
            _, ordinal, offset, packed = struct.unpack("<IHHI", value)
            found[ordinal] = Parameter(offset, packed >> 18)
        elif attribute == _PARAMETER_V2:  # in kernels with large parameters
            _, ordinal, offset, length, _ = struct.unpack("<IHHHH", value)
            found[ordinal] = Parameter(offset, length)
        elif attribute == _PARAMETER_BANK:
            _, base, size = struct.unpack("<IHH", value)
    return tuple(found[k] for k in sorted(found)), base, size


def _addresses(sections: list[_Section], table: _Section) -> list[tuple[int, int]]:
    """Return the relocations of constant bank 4 as pairs of offsets in the bank and .nv.global."""
    found = []
    symbols = sections[table.link].data
    for at in range(0, len(table.data), 24):
        offset, info, addend = struct.unpack_from("<QQq", table.data, at)
        symbol = struct.unpack_from("<IBBHQQ", symbols, 24 * (info >> 32))
        if info & 0xFFFFFFFF != RELOCATION_64 or sections[symbol[3]].name != ".nv.global":
            raise LaunchError(f"constant bank 4 has a relocation of another kind: {info:#x}")
        found.append((offset, symbol[4] + addend))
    return found


@functools.lru_cache(maxsize=32)
def read(path: Path) -> Cubin:
    sections = _sections(path.read_bytes())
    by_name = {section.name: section for section in sections}
    listing = functions(cuobjdump("--dump-sass", path))
    kernels = []
    for mangled, code in listing.items():
        parameters, base, size = _parameters(by_name[f".nv.info.{mangled}"].data)
        shared = by_name.get(f".nv.shared.{mangled}")
        tables = by_name.get(f".nv.constant2.{mangled}")
        name = short_name(demangled(mangled))
        kernels.append(
            Kernel(
                name,
                tuple(code),
                parameters,
                base,
                size,
                shared.size if shared else 0,
                tables.data if tables else b"",
            )
        )
        relocations = by_name.get(f".rela.nv.constant2.{mangled}")
        if relocations is not None and relocations.data:
            raise LaunchError(f"constant bank 2 of {name} has relocations")
    addresses: list[tuple[int, int]] = []
    for section in sections:
        if section.name == ".rela.nv.constant4":
            addresses = _addresses(sections, section)
    variables, constants = by_name.get(".nv.global"), by_name.get(".nv.constant4")
    return Cubin(
        tuple(kernels),
        variables.size if variables else 0,
        constants.data if constants else b"",
        tuple(addresses),
    )
