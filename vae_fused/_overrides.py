"""Calls that a non-tensor argument overrides through ``__torch_function__``.

A ``torch.fx.Proxy`` represents a tensor in ``torch.fx.symbolic_trace`` and implements
``__torch_function__``, which records one node for a call to a public function.

``Tensor`` subclasses and modes are not handled here. They intercept each call to an operator, ours
or torch's, as in any function that is composed of operators.
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
    """Return whether a value represents a tensor without being one."""
    return hasattr(type(value), "__torch_function__") and not isinstance(value, Tensor)


def parts(value: Any) -> Sequence[Any]:
    """Return a list or tuple unchanged, and any other value in a tuple."""
    return value if isinstance(value, tuple | list) else (value,)


def has_override(*values: Any) -> bool:
    """Return whether one of the values overrides the call."""
    return has_torch_function(values) and any(is_proxy(value) for value in values)


def call_override(function: Callable[..., Result], given: Mapping[str, Any]) -> Result:
    """Dispatch a call to the ``__torch_function__`` of its arguments, and return the result.

    Args:
        function: The public function.
        given: The local variables of the function, before it changes any argument. Variables that
            are not arguments are ignored.

    Raises:
        TypeError: The call has a keyword that the function does not have.
    """
    parameters = inspect.signature(function).parameters
    options = {} if "options" in parameters else given.get("options", {})
    for name in options:
        if name not in parameters or parameters[name].kind is not inspect.Parameter.KEYWORD_ONLY:
            raise TypeError(f"got an unexpected keyword argument {name!r}")
    given = {**given, **options}
    arguments, keywords = [], {}
    for name, parameter in parameters.items():
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
