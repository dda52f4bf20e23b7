"""The modifiers and operands of an instruction, consumed in turn by the function that defines it.

Such a function runs once, when a kernel is decoded, and returns a function that executes the
instruction. A modifier or operand that it does not consume is an error, so nothing is ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from tools.kernel_budget.sass import Instruction

from . import operands
from .errors import UnknownInstructionError
from .operands import PT, RZ, URZ, Address, Constant, Integer, Name, Number, Predicate, Register
from .warps import Warps, Where

Read = Callable[[Warps], Any]
Write = Callable[[Warps, Where, Any], None]
Execute = Callable[[Warps, Where], None]
Define = Callable[["Fields"], Execute]
T = TypeVar("T")

U32, U64, I32, I64 = np.uint32, np.uint64, np.int32, np.int64
F32, F64 = np.float32, np.float64
ZERO = U32(0)

TABLE: dict[str, Define] = {}


def instruction(*bases: str) -> Callable[[Define], Define]:
    """Add the function that defines these opcodes, which have no modifiers, to the table."""

    def enter(define: Define) -> Define:
        TABLE.update(dict.fromkeys(bases, define))
        return define

    return enter


def join(low: Any, high: Any) -> Any:
    """Join two words into a 64-bit integer."""
    return low.astype(U64) | (high.astype(U64) << U64(32))


class Fields:
    def __init__(self, source: Instruction) -> None:
        self.source = source
        self.base, *self._modifiers = source.opcode.split(".")
        # Instructions of the uniform datapath use the warp's uniform registers and predicates.
        self.uniform = self.base.startswith("U")
        self._operands = [operands.parse(text) for text in operands.split(source.operands)]
        self.constants: set[tuple[int, int, int]] = set()  # bank, offset, bytes: always read

    def unknown(self, what: str) -> UnknownInstructionError:
        text = f"{self.source.guard} {self.source.opcode} {self.source.operands}".strip()
        return UnknownInstructionError(
            f"not supported: {what} in `{text}` at {self.source.address:#x}"
        )

    # --- modifiers -------------------------------------------------------------------------------

    def flag(self, *names: str) -> bool:
        """Consume these modifiers and return whether the instruction has all of them."""
        if not set(names) <= set(self._modifiers):
            return False
        for name in names:
            self._modifiers.remove(name)
        return True

    def choice(self, *names: str, default: str | None = None) -> str:
        """Consume and return whichever of these modifiers the instruction has."""
        for name in names:
            if self.flag(name):
                return name
        if default is None:
            raise self.unknown("none of " + ", ".join(names))
        return default

    def done(self) -> None:
        if self._modifiers:
            raise self.unknown(f"modifier {self._modifiers[0]}")
        if self._operands:
            raise self.unknown("an operand too many")

    # --- operands --------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._operands)

    def peek(self, kind: type) -> bool:
        return bool(self._operands) and isinstance(self._operands[0], kind)

    def take(self, kind: type[T]) -> T:
        if not self._operands or not isinstance(self._operands[0], kind):
            raise self.unknown(f"no {kind.__name__.lower()} where one is expected")
        return self._operands.pop(0)  # type: ignore[return-value]

    def name(self) -> str:
        return self.take(Name).text

    def immediate(self) -> int:
        return self.take(Integer).value

    def address(self) -> Address:
        return self.take(Address)

    # --- results ---------------------------------------------------------------------------------

    def _destination(self) -> Register:
        register = self.take(Register)
        if register.negated or register.inverted or register.absolute or register.half is not None:
            raise self.unknown("a destination with a sign")
        if register.uniform != self.uniform and self.base not in ("R2UR", "S2UR", "VOTEU"):
            raise self.unknown("a destination of the other kind")
        return register

    def result(self) -> Write:
        """A result register, written as an integer."""
        register = self._destination()
        return self.writer(register.number, register.uniform)

    def writer(self, number: int, uniform: bool) -> Write:
        """Return a function that writes a register."""
        if number == (URZ if uniform else RZ):
            return lambda s, w, value: None
        if uniform:
            return lambda s, w, value: np.copyto(s.u[number], value, where=w)
        return lambda s, w, value: np.copyto(s.r[number], value, where=w)

    def result_float(self) -> Write:
        number = self._destination().number
        if number == RZ:
            return lambda s, w, value: None
        return lambda s, w, value: np.copyto(s.rf[number], value, where=w)

    def result_words(self, count: int) -> list[Write]:
        """Consecutive result registers."""
        register = self._destination()
        zero = URZ if register.uniform else RZ
        if register.number != zero and register.number % min(count, 4) != 0:
            raise self.unknown("a register that does not begin a group")
        numbers = [zero if register.number == zero else register.number + k for k in range(count)]
        return [self.writer(n, register.uniform) for n in numbers]

    def result_pair(self) -> Write:
        """A pair of result registers, written as a 64-bit integer."""
        low, high = self.result_words(2)

        def write(s: Warps, w: Where, value: Any) -> None:
            low(s, w, value.astype(U32))
            high(s, w, (value >> U64(32)).astype(U32))

        return write

    def result_double(self) -> Write:
        pair = self.result_pair()
        return lambda s, w, value: pair(s, w, np.asarray(value, F64).view(U64))

    def result_predicate(self) -> Write:
        predicate = self.take(Predicate)
        number = predicate.number
        if predicate.negated or predicate.uniform != self.uniform:
            raise self.unknown("a predicate that cannot be written")
        if number == PT:
            return lambda s, w, value: None
        if self.uniform:
            return lambda s, w, value: np.copyto(s.up[number], value, where=w)
        return lambda s, w, value: np.copyto(s.p[number], value, where=w)

    def results_predicate(self) -> list[Write]:
        """All predicates that follow."""
        found = []
        while self.peek(Predicate):
            found.append(self.result_predicate())
        return found

    # --- arguments -------------------------------------------------------------------------------

    def predicate(self) -> Read:
        return predicate_reader(self.take(Predicate))

    def _signed(self) -> tuple[Register | Constant | Integer | Number, bool, bool, bool]:
        """Return an operand, and whether it is negated, absolute and inverted."""
        operand = self._operands.pop(0) if self._operands else None
        if isinstance(operand, (Integer, Number)):
            return operand, False, False, False
        if not isinstance(operand, (Register, Constant)):
            raise self.unknown("an operand that has no value")
        if self.uniform and isinstance(operand, Register) and not operand.uniform:
            raise self.unknown("a register of threads")
        return operand, operand.negated, operand.absolute, operand.inverted

    def bits(self, operand: Any, word: int = 0) -> Read:
        """The bits of an operand, or of its second word."""
        if isinstance(operand, Register):
            if operand.half is not None:
                raise self.unknown("half a register")
            number = operand.number + word
            if operand.number == (URZ if operand.uniform else RZ):
                return lambda s: ZERO
            if operand.uniform:
                return lambda s: s.u[number]
            return lambda s: s.r[number]
        if isinstance(operand, Constant):
            if operand.index is not None or operand.offset % 4 != 0:
                raise self.unknown("an indexed constant")
            bank, at = operand.bank, operand.offset // 4 + word
            self.constants.add((bank, 4 * at, 4))
            return lambda s: s.constants[bank].words[at]
        if isinstance(operand, Integer):
            value = U32((operand.value >> (32 * word)) & 0xFFFFFFFF)
            return lambda s: value
        raise self.unknown("a number where bits are expected")

    def integer(self) -> Read:
        operand, negated, absolute, inverted = self._signed()
        bits = self.bits(operand)
        if absolute:
            raise self.unknown("the absolute value of an integer")
        if inverted:
            return lambda s: ~bits(s)
        if negated:
            return lambda s: ZERO - bits(s)
        return bits

    def addend(self) -> Read:
        """A 64-bit integer addend. A negated one is ~x + 1, which carries."""
        operand, negated, _, inverted = self._signed()
        bits = self.bits(operand)
        if negated:
            return lambda s: (~bits(s)).astype(U64) + U64(1)
        if inverted:
            return lambda s: (~bits(s)).astype(U64)
        return lambda s: bits(s).astype(U64)

    def magnitude(self) -> tuple[bool, Read]:
        """Return whether an integer is negated, and its bits without the sign."""
        operand, negated, absolute, inverted = self._signed()
        if absolute or inverted:
            raise self.unknown("the absolute value or the inverse of an integer")
        return negated, self.bits(operand)

    def pair(self) -> Read:
        """64 bits from two registers."""
        operand, negated, absolute, inverted = self._signed()
        if negated or absolute or inverted:
            raise self.unknown("a signed pair")
        low, high = self.bits(operand), self.bits(operand, 1)
        if isinstance(operand, Register) and operand.number in (RZ, URZ):
            return lambda s: U64(0)
        return lambda s: join(low(s), high(s))

    def words(self, count: int) -> list[Read]:
        """Consecutive registers."""
        register = self.take(Register)
        zero = register.number == (URZ if register.uniform else RZ)
        return [self.bits(register, 0 if zero else k) for k in range(count)]

    def single(self) -> Read:
        """A float operand."""
        operand, negated, absolute, inverted = self._signed()
        if inverted:
            raise self.unknown("an inverted float")
        if isinstance(operand, Number):
            value = self._number(operand.value)
            return lambda s: value
        if isinstance(operand, Register) and operand.number not in (RZ, URZ):
            number = operand.number
            if operand.half is not None:
                raise self.unknown("half a register")
            if operand.uniform:
                return signed(lambda s: s.uf[number], negated, absolute)
            return signed(lambda s: s.rf[number], negated, absolute)
        bits = self.bits(operand)
        return signed(lambda s: bits(s).view(F32), negated, absolute)

    def _number(self, value: float) -> np.float32:
        """Return a float from its decimal value, or a NaN from the encoding of the instruction.

        The upper half of a double NaN or infinity is also a float NaN, but not the default one.
        """
        if not np.isnan(value):
            return F32(value)
        if self.source.encoding is None:
            raise self.unknown("a NaN without its bits")
        return U32(self.source.encoding >> 32).view(F32)

    def double(self) -> Read:
        operand, negated, absolute, inverted = self._signed()
        if inverted:
            raise self.unknown("an inverted double")
        if isinstance(operand, Number) and not np.isnan(operand.value):
            value = F64(operand.value)
            return lambda s: value
        if isinstance(operand, Register) and operand.number in (RZ, URZ):
            zero = F64(-0.0 if negated else 0.0)
            return lambda s: zero
        if isinstance(operand, (Integer, Number)):
            raise self.unknown("bits as a double")
        low, high = self.bits(operand), self.bits(operand, 1)
        return signed(lambda s: join(low(s), high(s)).view(F64), negated, absolute)


def signed(read: Read, negated: bool, absolute: bool) -> Read:
    if absolute and negated:
        return lambda s: -np.abs(read(s))
    if absolute:
        return lambda s: np.abs(read(s))
    if negated:
        return lambda s: -read(s)
    return read


def predicate_reader(predicate: Predicate) -> Read:
    number = predicate.number
    if predicate.uniform:
        if predicate.negated:
            return lambda s: ~s.up[number]
        return lambda s: s.up[number]
    if predicate.negated:
        return lambda s: ~s.p[number]
    return lambda s: s.p[number]
