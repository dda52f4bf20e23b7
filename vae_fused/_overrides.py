"""Calls that something else than a tensor takes over, by torch's protocol for that.

A ``torch.fx.Proxy`` stands for a tensor in ``torch.fx.symbolic_trace`` and implements
``__torch_function__``, which records one node for a call of a public function.

Subclasses of ``Tensor`` and modes do not come here: they see the calls of the operators and of
torch, as they do for any function that is composed of these.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

__all__ = ["call_override", "has_override", "is_proxy", "parts"]

Result = TypeVar("Result")


def is_proxy(value: Any) -> bool:
    """Whether a value stands for a tensor and is none."""
    return hasattr(type(value), "__torch_function__") and not isinstance(value, Tensor)


def parts(value: Any) -> Sequence[Any]:
    """The parts of a list or tuple of tensors, or the value alone."""
    return value if isinstance(value, tuple | list) else (value,)


def has_override(*values: Any) -> bool:
    """Whether one of the values takes the call over."""
    return has_torch_function(values) and any(is_proxy(value) for value in values)


def call_override(function: Callable[..., Result], given: Mapping[str, Any]) -> Result:
    """What the values make of a call.

    Args:
        function: The public function.
        given: Its local variables, before it changes any argument. Those that are no arguments
            are left out.
    """
    given = {**given, **given.get("options", {})}
    arguments, keywords = [], {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is not parameter.KEYWORD_ONLY:
            arguments.append(given[name])
        elif name in given and given[name] is not parameter.default:
            keywords[name] = given[name]
    if given.get("_reference"):
        keywords["_reference"] = True
    values = [*arguments, *keywords.values()]
    proxies = [part for value in values for part in parts(value) if is_proxy(part)]
    result: Result = handle_torch_function(function, proxies, *arguments, **keywords)
    return result
