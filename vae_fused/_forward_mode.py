"""Forward-mode differentiation of autograd functions, including nested levels."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["tangents", "without_jvp"]

_RULES = ("forward", "setup_context", "backward", "vmap", "generate_vmap_rule")


def without_jvp(function: Any) -> Any:
    """Copy an autograd function without its ``jvp``, because Dynamo cannot trace a ``jvp``."""
    rules = {name: value for name, value in vars(function).items() if name in _RULES}
    metaclass: Any = type(torch.autograd.Function)
    return metaclass(function.__name__, (torch.autograd.Function,), rules)


def tangents(jvp: Callable[..., Any]) -> Callable[..., Any]:
    """Turn a function of ``(ctx, saved, *tangents)`` into the ``jvp`` of an autograd function.

    Torch calls a ``jvp`` with forward mode disabled, which would lose the tangents of outer levels.
    The returned ``jvp`` enables forward mode again. It strips the saved tensors of their tangents
    at this level, and keeps those at all other levels.
    """

    @functools.wraps(jvp)
    def nested(ctx: Any, *tangents: Tensor | None) -> Any:
        with forward_ad._set_fwd_grad_enabled(True):
            saved = [t if t is None else torch.ops.aten._fw_primal(t, 0) for t in ctx.saved_tensors]
            return jvp(ctx, saved, *tangents)

    return nested
