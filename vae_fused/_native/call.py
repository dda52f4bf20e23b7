"""The arguments of an operator call: tensors, and arguments that select the computation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vae_fused.options import SCALARS, Options

__all__ = ["Call", "Maybe", "Operands", "differentiable", "in_place", "scattered", "widened"]

Maybe = Tensor | None


class Call(NamedTuple):
    """The arguments that select the computation: all except the tensors and the generator."""

    sample: bool
    divergence: bool
    reduction: str = "none"
    dims: tuple[int, ...] | None = None
    numbers: list[float] | None = None  # the operators' `options`
    sample_shape: tuple[int, ...] = ()

    @property
    def is_at_sample(self) -> bool:
        """Whether the KL is estimated at the sample, so that each sample has its own KL."""
        return self.divergence and Options.unpacked(self.numbers).is_at_sample

    @property
    def kl_samples(self) -> int:
        """The number of leading sample dimensions of the KL."""
        return len(self.sample_shape) if self.is_at_sample else 0

    def lifted(self) -> Call:
        """The same call with one more leading dimension, which its KL keeps."""
        return self._replace(dims=self.dims and tuple(d + 1 for d in self.dims))


class Operands(NamedTuple):
    """The tensors of a call. Without ``raw``, sigma is 1."""

    mu: Tensor
    raw: Maybe = None
    eps: Maybe = None
    key: Maybe = None
    prior_mean: Maybe = None
    prior_raw: Maybe = None
    mask: Maybe = None
    temperature: Maybe = None
    free_bits: Maybe = None
    to_posterior: Maybe = None
    to_prior: Maybe = None

    def family(self) -> dict[str, Tensor]:
        """The operands that the operators accept only as keyword arguments."""
        return self._present("prior_mean", "prior_raw", "mask", *SCALARS)

    def scalars(self) -> dict[str, Tensor]:
        """The options that are tensors."""
        return self._present(*SCALARS)

    def _present(self, *names: str) -> dict[str, Tensor]:
        named = {name: getattr(self, name) for name in names}
        return {name: t for name, t in named.items() if t is not None}

    def expanded(self, shape: Sequence[int]) -> Operands:
        """The operands, expanded to this shape except for the noise and the scalars."""
        names = ("mu", "raw", "prior_mean", "prior_raw", "mask")
        present = self._present(*names)
        return self._replace(**{name: t.expand(shape) for name, t in present.items()})

    def widened(self) -> Operands:
        """The operands in the dtype of the arithmetic."""
        return Operands(*(widened(t) for t in self))  # type: ignore[arg-type]


def differentiable(x: Sequence[Any]) -> list[Any]:
    """Select the items of the operands that may have a gradient, in the order of the gradients."""
    mu, raw, eps, _, prior_mean, prior_raw, *_ = x
    return [mu, raw, eps, prior_mean, prior_raw]


def in_place(grads: Sequence[Maybe]) -> tuple[Maybe, ...]:
    """Arrange the gradients in the order of the operands: the inverse of :func:`differentiable`."""
    mu, raw, eps, prior_mean, prior_raw = grads
    others = [None] * (len(Operands._fields) - 6)
    return mu, raw, eps, None, prior_mean, prior_raw, *others


def widened(t: Maybe) -> Maybe:
    return t.float() if t is not None and t.dtype in (torch.float16, torch.bfloat16) else t


def scattered(values: Sequence[Any], mask: Sequence[bool]) -> list[Any]:
    """Place the values where the mask is True, and None elsewhere."""
    each = iter(values)
    return [next(each) if there else None for there in mask]
