"""Checks for options that may be numbers or 0-d tensors. No check reads a tensor's value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx.experimental.symbolic_shapes import has_static_value

from vae_fused._numbers import check_not_negative, check_number, check_pair

__all__ = [
    "MAY_BE_SCALARS", "check_balance", "check_free_bits", "from_numpy", "is_scalar", "take_scalars",
    "without_symbol",
]  # fmt: skip

MAY_BE_SCALARS = frozenset(("temperature", "free_bits", "balance"))

# The two weights of ``balance``: their names in the operators and in error messages.
_OF_BALANCE = (("to_posterior", "balance's wq"), ("to_prior", "balance's wp"))

# Remedies for an option that needs one value per element, or a gradient.
_OF_ELEMENTS = {"temperature": "; pass eps=temperature * torch.randn_like(mu) for many values"}
_LEARNED = {"temperature": ", or eps=temperature * torch.randn_like(mu) to learn it"}


def take_scalars(given: dict[str, Any], mu: Tensor) -> None:
    """Check the options that are tensors, and move them from ``given`` to ``given["scalars"]``.

    The tensors are also moved to the device of ``mu`` and converted to the dtype of its arithmetic.
    """
    scalars: dict[str, Tensor] = {}
    for name, check in (("temperature", check_not_negative), ("free_bits", check_free_bits)):
        if name in given and is_scalar(value := from_numpy(given[name])):
            given.pop(name)
            scalars[name] = _as_scalar(name, value, mu, check)
    if "balance" in given and isinstance(given["balance"], Sequence):
        balance = [from_numpy(weight) for weight in given["balance"]]
        for (name, shown), weight in zip(_OF_BALANCE, balance, strict=False):
            if is_scalar(weight):
                scalars[name] = _as_scalar(shown, weight, mu, check_number)
        given["balance"] = [1.0 if is_scalar(weight) else weight for weight in balance]
    if scalars:
        given["scalars"] = scalars


def check_balance(name: str, balance: tuple[float, float]) -> tuple[float, float]:
    check_pair(name, balance, "(wq, wp)")
    return check_number(f"{name}'s wq", balance[0]), check_number(f"{name}'s wp", balance[1])


def check_free_bits(name: str, value: float) -> float:
    return check_not_negative(name, value, " nats")


def from_numpy(value: Any) -> Any:
    """Convert a NumPy scalar to a 0-d tensor while compiling. Return other values unchanged.

    The checks accept a NumPy scalar as a number. However, torch.compile represents the scalar as an
    array, whose value is unknown, and traces that array as a tensor.
    """
    if not torch.compiler.is_compiling() or type(value).__name__ != "ndarray":
        return value
    tensor = torch.as_tensor(value)
    is_integer = not tensor.is_floating_point() and tensor.dtype != torch.bool
    return tensor.double() if is_integer else tensor


def is_scalar(value: Any) -> bool:
    """Return whether the operators take an option as a tensor: a tensor, or a changing number.

    After a number has changed, torch.compile retraces the function with a symbol in place of the
    number. In an operator's list of numbers, the symbol would become a constant, and each new
    number would cause a recompilation.
    """
    if type(value) in (float, int):  # first, because isinstance(value, Tensor) takes 0.1 us
        return torch.compiler.is_compiling() and not has_static_value(value)
    return isinstance(value, Tensor)


def _as_scalar(
    name: str, value: float | Tensor, mu: Tensor, check: Callable[[str, float], float]
) -> Tensor:
    if isinstance(value, Tensor):
        return _check_scalar(name, value, mu)
    check(name, value)
    scalar: Tensor = without_symbol(value, mu)
    return scalar


def without_symbol(value: float | Tensor, like: Tensor) -> Any:
    """Convert a number that changes to a 0-d tensor, in the arithmetic dtype of ``like``.

    torch.compile can multiply by a symbol without turning the symbol into a constant.
    """
    if isinstance(value, Tensor) or not is_scalar(value):
        return value
    return like.new_ones((), dtype=_dtype_of_scalars(like)) * value


def _dtype_of_scalars(mu: Tensor) -> torch.dtype:
    return torch.float64 if mu.dtype == torch.float64 else torch.float32


def _check_scalar(name: str, value: Tensor, mu: Tensor) -> Tensor:
    if not value.is_floating_point():
        raise TypeError(
            f"{name} must be a floating-point tensor or a number, got {value.dtype}; pass it with "
            ".float()"
        )
    if value.dim() != 0:
        remedy = "; pass it with .reshape(())" if value.numel() == 1 else _OF_ELEMENTS.get(name, "")
        raise ValueError(
            f"{name} must be a number or a 0-d tensor, got shape {tuple(value.shape)}{remedy}"
        )
    if value.requires_grad or _has_tangent(value):
        raise ValueError(
            f"{name} must not require a gradient, because none is computed; pass it with .detach()"
            f"{_LEARNED.get(name, '')}"
        )
    dtype = _dtype_of_scalars(mu)
    if value.device != mu.device:
        if value.device.type != "cpu":
            raise RuntimeError(
                f"{name} must be on the device of mu, {mu.device}, or on cpu, got {value.device}"
            )
        return value.to(mu.device, dtype, non_blocking=True)
    return value if value.dtype == dtype else value.to(dtype)


def _has_tangent(value: Tensor) -> bool:
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(value).tangent is not None
