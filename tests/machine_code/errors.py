"""Exceptions that are raised when machine code is read or executed."""

from __future__ import annotations


class MachineCodeError(RuntimeError):
    """The base class of all errors in this package."""


class UnknownInstructionError(MachineCodeError):
    """An opcode, a modifier or an operand whose meaning is not defined here."""


class BadAccessError(MachineCodeError):
    """A load or store outside of the permitted memory, or one that is not aligned."""


class ConvergenceError(MachineCodeError):
    """Lanes that must execute an instruction together have diverged."""


class DeadlockError(MachineCodeError):
    """Threads wait for each other, and none can continue."""


class LaunchError(MachineCodeError):
    """A launch that matches no kernel: the kernel is unknown, or a parameter's size is wrong."""


class RaceError(MachineCodeError):
    """Two warps access the same shared memory without a barrier, and at least one writes."""
