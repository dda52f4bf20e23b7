"""Functions that create keys and the stateless noise of a key."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function

from vae_fused._checks import DTYPES, check_key, check_shape
from vae_fused._formulas.latent import philox
from vae_fused._overrides import has_override
from vae_fused.functional import reparameterize

__all__ = ["key", "normal"]

# "vae-key." in ASCII. It makes the words of a derived key differ from the noise of its seed.
_DOMAIN = 0x7661652D6B65792E
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def key(
    seed: int | Tensor, /, *counters: int | Tensor, device: torch.device | str | None = None
) -> Tensor:
    """Derive a key from a seed and any number of counters, such as the epoch, step and rank.

    Keys from different arguments generate independent noise, as with ``jax.random.fold_in``: Philox
    (Salmon et al., SC 2011) mixes the counters into the seed one after the other. If a training run
    derives its keys from the step, a resumed run draws the same noise again.

    ``torch.tensor([seed, step])`` is a valid key but unsuitable for this purpose. The second number
    of a key counts blocks of four normals, so the noise of step 1 would be that of step 0, shifted
    by four elements.

    Args:
        seed: An integer from -2^63 to 2^64 - 1, or a 0-d integer tensor.
        counters: Integers or tensors like ``seed``. ``key(1)``, ``key(1, 0)`` and ``key(1, 0, 0)``
            are different keys.
        device: The device of the key; default: the device of the tensor arguments, or the CPU if
            there are none. Use a key only with tensors on its device. Nothing is copied to the
            host, so a 0-d tensor that a step increments in place also works in compiled code and in
            a CUDA graph. If an argument is a tensor, the key takes about 300 small operations for
            each counter, which a compiler fuses.

    Returns:
        ``(seed, offset)``, an int64 tensor of shape ``(2,)``.

    Raises:
        TypeError: An argument is neither an integer nor an integer tensor.
        ValueError: An integer out of range, or a tensor that is not 0-d.

    Example:
        >>> for step in range(2):
        ...     z, kl = vf.reparameterize_kl(torch.zeros(2), torch.zeros(2), key=vf.key(0, step))
    """
    if has_override(seed, *counters):
        found: Tensor = handle_torch_function(
            key, (seed, *counters), seed, *counters, device=device
        )
        return found
    tensors = [t for t in (seed, *counters) if isinstance(t, Tensor)]
    if device is None:
        device = tensors[0].device if tensors else "cpu"
    # The host computes a key from integers in a few microseconds. While compiling, the device
    # computes it, because a compiler may replace integers by symbols.
    on_device = device if tensors or torch.compiler.is_compiling() else None
    state = _integer("seed", seed, on_device) ^ _DOMAIN
    offset = state - state
    for counter in (len(counters), *counters):
        w0, w1, w2, w3 = philox(state, offset + _integer("counter", counter, on_device))
        state, offset = w0 | (w1 << 32), w2 | (w3 << 32)
    if on_device is None:
        return torch.tensor([_signed(state), _signed(offset)], device=device)
    return torch.stack([state, offset])


def normal(
    key: Tensor, shape: int | Sequence[int], *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return the standard normals of a key: the ``eps`` that a call with this key draws.

    Args:
        key: ``(seed, offset)``, a uint64 or int64 tensor of shape ``(2,)``, on the device of the
            result.
        shape: Shape of the result. Element i in row-major order is normal i of the key's stream.
        dtype: float32, float64, float16 or bfloat16. 16-bit values are the float32 values, rounded.
            float64 has a separate stream.

    Returns:
        A tensor of ``shape`` and ``dtype``, without a gradient.

    Raises:
        TypeError, ValueError: An invalid argument.

    Example:
        >>> key = vf.key(0, 1)
        >>> z = vf.reparameterize(torch.ones(3), torch.zeros(3), key=key)
        >>> torch.testing.assert_close(z, 1.0 + vf.normal(key, 3))
    """
    check_key(key, key)
    if dtype not in DTYPES:
        names = ", ".join(str(d) for d in DTYPES)
        raise TypeError(f"dtype must be one of {names}, got {dtype}")
    zero = torch.zeros((), dtype=dtype, device=key.device).expand(check_shape("shape", shape))
    return reparameterize(zero, zero, key=key)


def _integer(name: str, value: int | Tensor, device: torch.device | str | None) -> Any:
    """Return a value's low 64 bits: an int64 tensor on ``device``, or a signed int for None."""
    if isinstance(value, Tensor):
        if value.dtype not in _INTEGERS:
            raise TypeError(f"{name} must be an integer tensor, got {value.dtype}")
        if value.dim() != 0:
            raise ValueError(f"{name} must be a 0-d tensor, got shape {tuple(value.shape)}")
        return value.to(device=device, dtype=torch.int64)
    if torch.compiler.is_compiling() and isinstance(value, int | torch.SymInt):  # symbols lack bits
        return torch.full((), value, dtype=torch.int64, device=device)
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    number = operator.index(value)
    if not -(2**63) <= number < 2**64:
        raise ValueError(f"{name} must be between -2**63 and 2**64 - 1, got {number}")
    number = _signed(number)
    return number if device is None else torch.full((), number, dtype=torch.int64, device=device)


def _signed(word: int) -> int:
    """Reinterpret the bits of ``word``, an integer from -2^63 to 2^64 - 1, as an int64."""
    return word - 2**64 if word >= 2**63 else word
