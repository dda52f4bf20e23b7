"""Loads and stores of global and shared memory, constants, atomics. Every address is checked."""

from __future__ import annotations

from typing import Any

import numpy as np

from .errors import BadAccessError, RaceError
from .fields import I64, U32, Execute, Fields, Read, instruction, join
from .operands import Address, Constant, Register
from .warps import Shared, Warps, Where


def _bytes(f: Fields) -> int:
    """The size of an access."""
    if f.flag("U16"):
        return 2
    if f.flag("U8"):
        return 1
    return int(f.choice("32", "64", "128", default="32")) // 8


def _hints(f: Fields) -> None:
    """Consume the modifiers that affect only caching and ordering."""
    for hint in ("E", "STRONG", "GPU", "SYS", "CONSTANT", "EF", "EL", "NA"):
        f.flag(hint)


def _register(f: Fields, register: Register, wide: bool) -> Read:
    low = f.bits(register)
    if not wide:
        return lambda s: low(s).astype(I64)
    high = f.bits(register, 1)
    return lambda s: join(low(s), high(s)).view(I64)


def _address(f: Fields, address: Address) -> Read:
    """The addresses as 64-bit integers."""
    parts: list[Read] = []
    if address.base is not None:
        parts.append(_register(f, address.base, address.wide))
    if address.uniform is not None:
        # With a 64-bit base, a uniform register would be a pair, which no kernel uses.
        if address.wide:
            raise f.unknown("a uniform register beside a 64-bit address")
        parts.append(_register(f, address.uniform, False))
    offset = I64(address.offset)

    def read(s: Warps) -> Any:
        total: Any = offset
        for part in parts:
            total = total + part(s)
        return total

    return read


def _at(f: Fields, error: BadAccessError) -> BadAccessError:
    return BadAccessError(f"{f.source.opcode} at {f.source.address:#x}: {error}")


# --- global memory -------------------------------------------------------------------------------


@instruction("LDG")
def ldg(f: Fields) -> Execute:
    size = _bytes(f)
    _hints(f)
    writes, address = f.result_words(max(size // 4, 1)), _address(f, f.address())
    f.done()

    def execute(s: Warps, w: Where) -> None:
        active = s.all(w)
        try:
            words = s.environment.memory.load(s.full(address(s))[active], size)
        except BadAccessError as error:
            raise _at(f, error) from error
        for word, write in zip(words, writes, strict=True):
            value = np.zeros(active.shape, U32)
            value[active] = word
            write(s, w, value)

    return execute


@instruction("STG")
def stg(f: Fields) -> Execute:
    size = _bytes(f)
    _hints(f)
    address, reads = _address(f, f.address()), f.words(max(size // 4, 1))
    f.done()

    def execute(s: Warps, w: Where) -> None:
        active = s.all(w)
        words = np.stack([s.full(read(s))[active] for read in reads])
        try:
            s.environment.memory.store(s.full(address(s))[active], size, words)
        except BadAccessError as error:
            raise _at(f, error) from error

    return execute


@instruction("ATOMG")
def atomg(f: Fields) -> Execute:
    """Only INC is supported; its counter wraps to 0 after its limit. Lanes run in random order."""
    f.choice("INC")
    _hints(f)
    done = f.result_predicate()
    write, address, limit = f.result(), _address(f, f.address()), f.integer()
    f.done()

    def execute(s: Warps, w: Where) -> None:
        active = s.all(w)
        addresses, limits = s.full(address(s))[active], s.full(limit(s))[active]
        memory, old = s.environment.memory, np.zeros(len(addresses), U32)
        try:
            for k in s.environment.random.permutation(len(addresses)):
                old[k] = memory.load(addresses[k : k + 1], 4)[0, 0]
                new = U32(0) if old[k] >= limits[k] else old[k] + U32(1)
                memory.store(addresses[k : k + 1], 4, np.array([[new]], U32))
        except BadAccessError as error:
            raise _at(f, error) from error
        value = np.zeros(active.shape, U32)
        value[active] = old
        write(s, w, value)
        done(s, w, np.True_)

    return execute


# --- shared memory -------------------------------------------------------------------------------


def _shared(s: Warps, f: Fields, addresses: Any, active: np.ndarray, size: int) -> np.ndarray:
    """Return each lane's index into the shared memory of all blocks, in bytes."""
    at = s.full(addresses)[active]
    shared = s.shared
    good = (at >= Shared.RESERVED) & (at + size <= shared.size) & (at % size == 0)
    if not good.all():
        worst = int(at[~good][0])
        raise BadAccessError(
            f"{f.source.opcode} at {f.source.address:#x}: {size} bytes at {worst:#x} of shared "
            f"memory of {shared.size:#x}"
        )
    return s.full(s.shared_base)[active] + at


def _check_races(s: Warps, f: Fields, first: np.ndarray, active: np.ndarray, size: int) -> None:
    """Raise RaceError for a race. `first` contains the first byte of each lane's access."""
    warp, slot = s.full(s.warp)[active], s.full(s.slot)[active]
    for offset in range(0, size, s.shared.unit):
        races = s.shared.races(
            first + offset, warp, slot, f.base == "STS", atomic=f.base == "ATOMS"
        )
        if races.any():
            at = int((first - s.full(s.shared_base)[active])[races][0]) + offset
            raise RaceError(
                f"{f.source.opcode} at {f.source.address:#x}: warp {int(warp[races][0])} and "
                f"another access {at:#x} of shared memory, and no barrier is between"
            )


def _shared_elements(
    s: Warps, f: Fields, w: Where, address: Read, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return active lanes, shared memory in elements up to a word, and each lane's first index."""
    active = s.all(w)
    memory = s.shared.bytes.view({1: np.uint8, 2: np.uint16}.get(size, U32))
    first = _shared(s, f, address(s), active, size)
    _check_races(s, f, first, active, size)
    return active, memory, first // memory.itemsize


@instruction("LDS")
def lds(f: Fields) -> Execute:
    size = _bytes(f)
    writes, address = f.result_words(max(size // 4, 1)), _address(f, f.address())
    f.done()

    def execute(s: Warps, w: Where) -> None:
        active, memory, first = _shared_elements(s, f, w, address, size)
        for k, write in enumerate(writes):
            value = np.zeros(active.shape, U32)
            value[active] = memory[first + k]
            write(s, w, value)

    return execute


@instruction("STS")
def sts(f: Fields) -> Execute:
    size = _bytes(f)
    address, reads = _address(f, f.address()), f.words(max(size // 4, 1))
    f.done()

    def execute(s: Warps, w: Where) -> None:
        active, memory, first = _shared_elements(s, f, w, address, size)
        for k, read in enumerate(reads):
            memory[first + k] = s.full(read(s))[active].astype(memory.dtype)

    return execute


@instruction("ATOMS")
def atoms(f: Fields) -> Execute:
    """Only ADD on 32-bit words is supported. Lanes run in random order."""
    f.choice("ADD")
    write, address, addend = f.result(), _address(f, f.address()), f.integer()
    f.done()

    def execute(s: Warps, w: Where) -> None:
        active = s.all(w)
        first = _shared(s, f, address(s), active, 4)
        _check_races(s, f, first, active, 4)
        memory, more = s.shared.bytes.view(U32), s.full(addend(s))[active]
        old = np.zeros(len(first), U32)
        for k in s.environment.random.permutation(len(first)):
            old[k] = memory[first[k] // 4]
            memory[first[k] // 4] += more[k]
        value = np.zeros(active.shape, U32)
        value[active] = old
        write(s, w, value)

    return execute


# --- constants -----------------------------------------------------------------------------------


@instruction("LDC", "ULDC")
def ldc(f: Fields) -> Execute:
    size = _bytes(f)
    writes = f.result_words(max(size // 4, 1))
    constant = f.take(Constant)
    f.done()
    bank, offset, index = constant.bank, I64(constant.offset), constant.index
    position = None if index is None else _register(f, index, False)
    if position is None:
        f.constants.add((bank, constant.offset, size))
    unit = min(size, 4)

    def execute(s: Warps, w: Where) -> None:
        memory = s.constants[bank]
        at = offset if position is None else offset + position(s)
        if position is not None:
            active = w if w is True else np.broadcast_to(w, np.broadcast_shapes(at.shape, w.shape))
            at = np.where(active, at, I64(constant.offset % 16))
            checked = at if w is True else at[active]
            memory.check(checked, unit)
            memory.check(checked + (size - unit), unit)
        source = memory.words if unit == 4 else memory.bytes
        for k, write in enumerate(writes):
            write(s, w, source[at // unit + k].astype(U32))

    return execute
