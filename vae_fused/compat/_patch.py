"""Replaces the methods of another library's class with those of a stand-in, and restores them.

The class object remains the library's own, so code that imported it by name gets the new methods,
``isinstance`` works as before, and pickles refer to the same class.
"""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["difference", "install", "live_instances", "restore"]

ABSENT = object()


def install(original: type, stand_in: type) -> dict[str, Any]:
    """Give ``original`` the methods of ``stand_in``. Return the argument for :func:`restore`."""
    saved: dict[str, Any] = {}
    for base in reversed(stand_in.__mro__[:-1]):
        for name, value in vars(base).items():
            if inspect.isfunction(value) or (name[0] == "_" and name[:2] != "__"):
                saved.setdefault(name, vars(original).get(name, ABSENT))
                setattr(original, name, value)
    return saved


def restore(original: type, saved: dict[str, Any]) -> None:
    """Undo :func:`install`."""
    for name, value in saved.items():
        if value is ABSENT:
            delattr(original, name)
        else:
            setattr(original, name, value)


def live_instances(classes: Iterable[type]) -> Iterator[Any]:
    """Yield all instances of these classes. This visits every object and takes about 0.1 s."""
    found = tuple(classes)
    for candidate in gc.get_objects():
        # Use type(), because proxies compute __class__.
        if issubclass(type(candidate), found):
            yield candidate


def difference(original: type, stand_in: type, count: int) -> str:
    """Return a description of how two posterior classes differ on a small batch, or ''.

    Args:
        original: The class of the library.
        stand_in: The class whose methods replace those of ``original``.
        count: The number of constructor tensors: 1 (a packed tensor) or 2 (the mean and the scale).
    """
    try:
        with torch.inference_mode(False), torch.enable_grad():
            results = [_results(cls, count) for cls in (stand_in, original)]
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    for (name, got), (_, expected) in zip(*results, strict=True):
        if got.shape != expected.shape or not torch.allclose(got, expected, rtol=1e-6, atol=1e-9):
            return f"{name} of {original.__name__} differs from that of vae_fused"
    return ""


def _results(cls: Callable[..., Any], count: int) -> list[tuple[str, Tensor]]:
    """Return the values and gradients of all attributes and methods of a posterior, with names."""
    generator = torch.Generator().manual_seed(0)

    def draw() -> list[Tensor]:
        shape = (2, 4 // count, 2, 2)
        numbers = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in "12"]
        return [t.requires_grad_() for t in numbers[:count]]

    leaves, others = draw(), draw()
    q, p = cls(*leaves), cls(*others)
    attributes = ("mean", "scale", "logs", "std", "var", "logvar")
    found = [(name, getattr(q, name)) for name in attributes if hasattr(q, name)]
    q = cls(*leaves)
    found += [("sample", q.sample(torch.Generator().manual_seed(1))), ("mode", q.mode())]
    if hasattr(q, "kl"):
        found += [("kl", q.kl()), ("kl", q.kl(p))]
    if hasattr(q, "nll"):
        found.append(("nll", q.nll(torch.ones(2, 2, 2, 2, dtype=torch.float64))))
    gradients = []
    for name, value in found:
        of = torch.autograd.grad(
            value.sum(),
            [*leaves, *others],
            allow_unused=True,
            materialize_grads=True,
            retain_graph=True,
        )
        gradients += [(f"the gradient of {name}", g) for g in of]
    return [(name, value.detach()) for name, value in found] + gradients
