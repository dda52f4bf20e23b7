"""What can go wrong while machine code is read or executed."""

from __future__ import annotations


class MachineCodeError(RuntimeError):
    """The base of all errors of this package."""


class UnknownInstructionError(MachineCodeError):
    """An opcode, a modifier or an operand whose meaning is not defined here."""


class BadAccessError(MachineCodeError):
    """A load or store outside of the memory that it may touch, or one that is not aligned."""


class ConvergenceError(MachineCodeError):
    """Lanes that must execute an instruction together do not."""


class DeadlockError(MachineCodeError):
    """Threads wait for each other, and none can go on."""


class LaunchError(MachineCodeError):
    """A launch that does not fit the kernel: another size of a parameter, a missing kernel."""


class RaceError(MachineCodeError):
    """Two warps of a block access the same shared memory, one writes, and no barrier is between."""
