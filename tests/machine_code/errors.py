"""Exceptions of reading and executing machine code."""

from __future__ import annotations


class MachineCodeError(RuntimeError):
    """The base of all errors of this package."""


class UnknownInstructionError(MachineCodeError):
    """An opcode, a modifier or an operand whose meaning is not defined here."""


class BadAccessError(MachineCodeError):
    """A load or store outside of the permitted memory, or one that is not aligned."""


class ConvergenceError(MachineCodeError):
    """Lanes that must execute an instruction together have diverged."""


class DeadlockError(MachineCodeError):
    """Threads wait for each other, and none can continue."""


class LaunchError(MachineCodeError):
    """A launch that does not fit the kernel: a parameter's size is wrong, or no such kernel."""


class RaceError(MachineCodeError):
    """Two warps access the same shared memory without a barrier, and at least one writes."""
