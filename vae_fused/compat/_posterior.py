"""The common part of the stand-ins for diffusers' posteriors: attributes, samples and noise.

In diffusers, each attribute of a posterior is computed when the posterior is constructed, and is an
ordinary attribute from then on. Users assign to it and modify it in place, and ``sample``, ``kl``
and ``nll`` use its current value. Here, an attribute is computed when it is first read. As long as
the attributes that a method depends on have not changed, the method is one fused call on the
encoder's output. Otherwise, the method evaluates diffusers' formula on the attributes.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from vae_fused import functional
from vae_fused.distributions import DiagonalGaussian
from vae_fused.options import Scale

__all__ = [
    "LATENT_DIMS",
    "LOG_2PI",
    "Posterior",
    "State",
    "as_tuple",
    "default_dims",
    "is_point",
    "kl_by_formula",
    "moments",
    "reduction",
    "untouched",
    "widen",
]

LATENT_DIMS = (1, 2, 3)  # of images, (B, C, H, W)
LOG_2PI = 1.8378770664093453

Generators = torch.Generator | Sequence[torch.Generator] | None


class Read(NamedTuple):
    """The computed value of an attribute, with which later changes are detected."""

    value: Tensor
    version: int | None  # of the tensor's memory; None if not available


class State:
    """The inputs of a posterior, and the values that have been computed from them."""

    __slots__ = ("deterministic", "grad", "halves", "kl", "packed", "read", "shares_launch")

    def __init__(
        self,
        packed: Tensor | None = None,
        halves: tuple[Tensor, Tensor] | None = None,
        deterministic: bool = False,
        shares_launch: bool = False,
    ) -> None:
        self.packed = packed
        self.halves = halves
        self.deterministic = deterministic
        self.shares_launch = shares_launch
        self.grad = torch.is_grad_enabled()  # the grad mode in which diffusers would compute
        self.read: dict[str, Read] = {}
        self.kl: Read | None = None  # of the last sample's launch, and the version of `packed`


class Posterior:
    """A diagonal Gaussian that uses fused functions while its attributes are unchanged.

    The methods are also installed in diffusers' own classes, whose instances may have been
    constructed earlier, by diffusers' constructor or by unpickling. Such instances have all
    attributes but no ``_state``.
    """

    _LAW: ClassVar[Scale]
    _RAW: ClassVar[str | None] = None  # the name of the second half, if it is an attribute
    _ATTRIBUTES: ClassVar[tuple[str, ...]] = ("mean", "logvar", "std", "var")
    _share_launch: ClassVar[bool] = False

    _state: State
    parameters: Tensor
    mean: Tensor
    logvar: Tensor
    std: Tensor
    var: Tensor
    deterministic: bool

    def __getattr__(self, name: str) -> Any:
        """Compute an attribute on its first read. From then on, it is an ordinary attribute."""
        state = self.__dict__.get("_state")
        if state is None or name not in self._ATTRIBUTES:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        mean, raw = self._halves()
        if name == "mean" or name == self._RAW:
            value = mean if name == "mean" else raw
            state.read[name] = Read(value, 0)
        else:
            # The attribute has a gradient if it would have had one when computed at construction.
            with torch.set_grad_enabled(state.grad):
                value = self._derived(name, mean, raw)
            state.read[name] = Read(value, _version(value))
        setattr(self, name, value)
        return value

    def _derived(self, name: str, mean: Tensor, raw: Tensor) -> Tensor:
        if self._state.deterministic and name != "logvar":
            return torch.zeros_like(mean)
        q = DiagonalGaussian(mean, raw, scale=self._LAW)
        value = {"logvar": "logvar", "std": "stddev", "var": "variance"}[name]
        found: Tensor = getattr(q, value)
        return found

    def _halves(self) -> tuple[Tensor, Tensor]:
        """Return the mean and the raw scale as given. Packed moments are split only once."""
        state = self._state
        if state.halves is None:
            assert state.packed is not None
            if torch.is_grad_enabled() == state.grad:
                mean, raw = _split(state.packed)
            else:
                with torch.set_grad_enabled(state.grad):
                    mean, raw = _split(state.packed)
            state.halves = mean, raw
        return state.halves

    def _is_touched(self, *names: str) -> bool:
        """Whether one of these attributes may have changed since it was computed.

        An in-place change of the mean does not count, because the fused functions read its memory.
        """
        attributes = self.__dict__
        state = attributes.get("_state")
        if state is None:
            return True
        for name in names:
            if name in attributes:
                read = state.read.get(name)
                if read is None or attributes[name] is not read.value:
                    return True
                if name != "mean" and (
                    read.version is None or read.version != _version(read.value)
                ):
                    return True
        return False

    def __getstate__(self) -> dict[str, Any]:
        """Return diffusers' attributes. Unpickling then needs neither the patch nor vae_fused."""
        self._compute_all()
        return {name: value for name, value in self.__dict__.items() if name != "_state"}

    def _compute_all(self) -> None:
        """Compute all missing attributes, so that diffusers' own methods find them."""
        if "_state" in self.__dict__:
            for name in self._ATTRIBUTES:
                getattr(self, name)

    def sample(self, generator: Generators = None) -> Tensor:
        """A reparameterized sample, ``(B, C, ...)`` in the dtype of ``parameters``.

        Args:
            generator: A generator on the device of ``parameters`` or on the CPU, or a list that
                contains one generator for the whole batch or one per item. The noise of a CPU
                generator is copied to the device.

        Raises:
            TypeError: ``generator`` has another type.
            ValueError: A generator is on a GPU and the parameters are not, or the list has the
                wrong length.
        """
        if self._is_touched("mean", "std"):
            like = self.__dict__.get("parameters", self.mean)
            return self.mean + self.std * randn(self.mean.shape, like, generator)
        state = self._state
        eps = None
        if generator is not None:
            eps = randn(
                self._shape(), self.mean if state.packed is None else state.packed, generator
            )
        if state.deterministic:
            return self.mean.clone()
        if state.shares_launch and state.packed is not None:
            z, kl = self._sample_and_kl(eps)
            state.kl = Read(kl, _version(state.packed))
            return z
        if (
            eps is None
            and state.packed is not None
            and torch.is_grad_enabled()
            and self._packed().requires_grad
        ):
            # Use the operator for a sample and a KL, because its gradient is one packed tensor.
            return self._sample_and_kl(None)[0]
        mean, raw = self._halves()
        return functional.reparameterize(mean, raw, scale=self._LAW, eps=eps)

    def mode(self) -> Tensor:
        """The mean."""
        return self.mean

    def _sample_and_kl(self, eps: Tensor | None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _shape(self) -> tuple[int, ...]:
        """Return the shape of the mean without computing it."""
        state = self.__dict__.get("_state")
        if state is None or state.packed is None or "mean" in self.__dict__:
            return tuple(self.mean.shape)
        batch, channels, *sizes = state.packed.shape
        return (batch, channels // 2, *sizes)

    def _packed(self) -> Tensor:
        """``parameters`` as given, detached if gradients were disabled at construction."""
        state = self._state
        assert state.packed is not None
        return state.packed if state.grad else state.packed.detach()

    def _take_kl(self) -> Tensor | None:
        """Take the KL from the last sample's launch, or None if it is stale or lacks a gradient."""
        state = self._state
        found, state.kl = state.kl, None
        packed = self._packed()
        if found is None or found.version != _version(packed):
            return None
        wants_grad = torch.is_grad_enabled() and packed.requires_grad
        return found.value if found.value.requires_grad == wants_grad else None

    def _zero(self) -> Tensor:
        """The KL of a deterministic posterior."""
        dtype = torch.float64 if self.mean.dtype == torch.float64 else torch.float32
        return self.mean.new_zeros(1, dtype=dtype)


def widen(x: Any) -> Any:
    """Convert 16-bit types to float32 for sums. Other values, such as scalars, are unchanged."""
    is_narrow = isinstance(x, Tensor) and x.dtype in (torch.float16, torch.bfloat16)
    return x.float() if is_narrow else x


def _split(h: Tensor) -> tuple[Tensor, Tensor]:
    mean, raw = h.chunk(2, 1)
    return mean, raw


def _version(value: Tensor) -> int | None:
    """The number of writes to a tensor's memory; None when compiling or in inference mode."""
    if torch.compiler.is_compiling() or value.is_inference():
        return None
    return value._version


# --------------------------------------------------------------------------------------------------
# diffusers' formulas, evaluated on assigned attributes
# --------------------------------------------------------------------------------------------------


def moments(q: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean, variance and log variance, in the dtype in which they are summed."""
    mean = widen(q.mean)
    is_narrow = mean.dtype != q.mean.dtype
    if is_narrow and (wide := _widened(q)) is not None:
        return mean, wide.variance, wide.logvar
    return mean, widen(q.var), widen(q.logvar)


def _widened(q: Any) -> DiagonalGaussian | None:
    """Return the Gaussian in float32, because a variance may overflow float16.

    Return None if the posterior is deterministic or an attribute was assigned.
    """
    if not hasattr(type(q), "_is_touched") or q._is_touched("var", "logvar"):
        return None
    if q._state.deterministic:
        return None
    mean, raw = q._halves()
    return DiagonalGaussian(widen(mean), widen(raw), scale=q._LAW)


def kl_by_formula(q: Any, dims: int | Sequence[int], other: Any = None) -> Tensor:
    mean, var, logvar = moments(q)
    if other is None:
        return 0.5 * (mean**2 + var - 1.0 - logvar).sum(as_tuple(dims))
    m, prior_var, prior_logvar = moments(other)
    squares = (mean - m) ** 2 / prior_var + var / prior_var
    return 0.5 * (squares - 1.0 - logvar + prior_logvar).sum(as_tuple(dims))


def is_point(other: Any) -> bool:
    """Whether the variance of ``other`` is 0."""
    if not isinstance(other, Posterior) and not hasattr(type(other), "_is_touched"):
        return bool(getattr(other, "deterministic", False))
    state = other.__dict__.get("_state")
    return state is not None and state.deterministic and not other._is_touched("var")


def untouched(other: Any) -> DiagonalGaussian | None:
    """Return ``other`` as constructed, or None if an attribute may have been assigned since."""
    if hasattr(type(other), "_is_touched"):
        if other._is_touched("mean", "logvar", "var"):
            return None
        return DiagonalGaussian(*other._halves(), scale=other._LAW)
    if hasattr(other, "var"):
        return None
    return DiagonalGaussian(other.mean, other.logvar)


# --------------------------------------------------------------------------------------------------
# Dimensions
# --------------------------------------------------------------------------------------------------


def default_dims(ndim: int, name: str) -> tuple[int, ...]:
    if ndim > 4 and not torch.compiler.is_compiling():
        warnings.warn(
            f"latents of {ndim} dimensions are summed over {LATENT_DIMS}, as in diffusers, and not "
            f"over all dimensions of a sample; pass {name}={tuple(range(1, ndim))} for that",
            stacklevel=3,
        )
    return LATENT_DIMS if ndim >= 4 else tuple(range(1, ndim))


def reduction(ndim: int, dim: int | Sequence[int] | None) -> dict[str, Any]:
    """Return the arguments that sum a KL over ``dim``, by default over the image dimensions."""
    if dim is not None:
        return {"dim": dim}
    return {"dim": LATENT_DIMS} if ndim > 4 else {"reduction": "sample"}


def as_tuple(dims: int | Sequence[int]) -> tuple[int, ...]:
    return (dims,) if isinstance(dims, int) else tuple(dims)


# --------------------------------------------------------------------------------------------------
# The noise that diffusers' ``randn_tensor`` draws
# --------------------------------------------------------------------------------------------------


def randn(shape: Sequence[int], like: Tensor, generator: Generators) -> Tensor:
    """Noise in the dtype and on the device of ``like``."""
    if generator is None:
        return torch.randn(shape, dtype=like.dtype, device=like.device)
    if isinstance(generator, torch.Generator):
        return _randn(shape, like, generator)
    generators = list(generator)
    if len(generators) == 1:
        return _randn(shape, like, generators[0])
    if len(generators) != shape[0]:
        raise ValueError(
            f"generator must contain {shape[0]} generators, one for each item of the batch, or "
            f"only one, got {len(generators)}"
        )
    return torch.cat([_randn((1, *shape[1:]), like, g) for g in generators])


def _randn(shape: Sequence[int], like: Tensor, generator: torch.Generator) -> Tensor:
    if not isinstance(generator, torch.Generator):
        raise TypeError(
            f"generator must be a torch.Generator or a list of them, got {type(generator).__name__}"
        )
    device = like.device if generator.device.type == like.device.type else generator.device
    if device.type not in ("cpu", like.device.type):
        raise ValueError(
            f"generator must be on the device of parameters, {like.device}, or on cpu, got "
            f"{generator.device}"
        )
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=device).to(like.device)
