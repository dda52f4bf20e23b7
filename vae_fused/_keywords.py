"""The options of the public functions, each named and typed once.

Each typed dictionary declares the options of a function, and ``DEFAULTS`` contains their default
values. The functions take the options as ``**options``, and :func:`named` makes ``help`` and
``inspect`` show them as keywords.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict, TypeVar

from torch import Tensor
from torch.nn import Module

from vae_fused.options import Prior, Scale

F = TypeVar("F", bound=Callable[..., Any])


class NoOptions(TypedDict):
    pass


class DensityOptions(TypedDict, total=False):
    scale: str | Scale
    mask: Tensor | None


class SampledKlOptions(DensityOptions, total=False):
    prior: Prior | Module | None


class SampleOptions(DensityOptions, total=False):
    mu_soft_clamp: float | None
    temperature: float | Tensor
    sample_shape: int | Sequence[int]


class StatsOptions(SampledKlOptions, total=False):
    mu_soft_clamp: float | None


class KlOptions(StatsOptions, total=False):
    free_bits: float | Tensor
    balance: tuple[float | Tensor, float | Tensor] | None


class LatentOptions(SampleOptions, KlOptions, total=False):
    estimator: str
    stop_q: bool


class MultiKlOptions(TypedDict, total=False):
    scale: str | Scale
    mu_soft_clamp: float | None
    prior: Prior | Module | Sequence[Prior | Module] | None
    free_bits: float | Tensor


class MultiOptions(MultiKlOptions, total=False):
    temperature: float | Tensor


DEFAULTS: dict[str, Any] = {
    "scale": "logvar",
    "mu_soft_clamp": None,
    "prior": None,
    "mask": None,
    "free_bits": 0.0,
    "balance": None,
    "temperature": 1.0,
    "sample_shape": (),
    "estimator": "analytic",
    "stop_q": False,
}


def chosen(options: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """Return the non-default options in a new dictionary. Tensors are not compared."""
    given = {}
    for name, value in options.items():
        if name not in kind.__annotations__:
            raise TypeError(f"got an unexpected keyword argument {name!r}")
        default = DEFAULTS[name]
        if value is not default and (type(value) is not type(default) or value != default):
            given[name] = value
    return given


def named(options: type) -> Callable[[F], F]:
    """Replace ``**options`` in a function's signature by the keywords of a typed dictionary."""
    shown = [name for name in DEFAULTS if name in options.__annotations__]

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        given = [p for p in signature.parameters.values() if not p.name.startswith("_")]
        first = [p for p in given if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        keywords = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=DEFAULTS[name],
                annotation=options.__annotations__[name].__forward_arg__,
            )
            for name in shown
        ]
        own = [p for p in given if p.kind is p.KEYWORD_ONLY]
        function.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[*first, *keywords, *own]
        )
        return function

    return decorate
