"""The negative binomials of scvi-tools, implemented with the fused functions.

    import vae_fused.compat.scvi

    vae_fused.compat.scvi.patch()

From then on, every scvi-tools model computes its negative binomial and zero-inflated negative
binomial log likelihoods with :func:`vae_fused.nll`. The patch replaces the functions
``log_nb_positive`` and ``log_zinb_positive`` of ``scvi.distributions._negative_binomial``, and
``__init__`` and ``log_prob`` of the classes ``NegativeBinomial`` and
``ZeroInflatedNegativeBinomial``. The class objects remain scvi's own, so sampling, moments,
``isinstance`` and classes that were imported by name are not affected.

Results differ as follows:

- They are accurate where terms of scvi's formula cancel: for theta above 1e4 in float32.
- 16-bit inputs give float32 results.
- ``ZeroInflatedNegativeBinomial.log_prob`` checks its argument only if ``validate_args=True``, as
  ``NegativeBinomial.log_prob`` does. scvi always checks it, which waits for the GPU.
- If cells share a theta, its gradient is written once, not once per cell.
- A negative count gives NaN, where scvi's functions return minus infinity.

Calls that :func:`vae_fused.nll` does not support, such as those whose ``log_fn`` comes from another
library, go to scvi's functions.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vae_fused import losses
from vae_fused._likelihood import Likelihood
from vae_fused.likelihoods import NegativeBinomial, ZeroInflatedNegativeBinomial

__all__ = ["is_patched", "patch", "unpatch"]

MODULE = "scvi.distributions._negative_binomial"
EPS = 1e-8  # the default in scvi

_originals: dict[str, Any] = {}  # by name in scvi's module; empty if nothing is patched
_declined = False


def patch() -> bool:
    """Replace scvi's negative binomials, after comparing them with those of this package.

    The comparison covers values and gradients of both functions, and ``log_prob`` of both classes,
    on a small batch in float64. If scvi's results differ, as they may in a future version, this
    function warns once and changes nothing.

    Returns:
        Whether scvi is patched. A second call changes nothing.

    Raises:
        ImportError: scvi-tools is not installed.
    """
    global _declined
    if _originals or _declined:
        return not _declined
    module = importlib.import_module(MODULE)
    problem = _difference(module)
    if problem:
        _declined = True
        warnings.warn(
            f"vae_fused does not replace the likelihoods of scvi-tools: {problem}",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    for name, replacement in _FUNCTIONS.items():
        _originals[name] = getattr(module, name)
        setattr(module, name, functools.wraps(_originals[name])(replacement))
    for name, log_prob in _METHODS.items():
        cls = getattr(module, name)
        _originals[name] = (cls, cls.__init__, cls.log_prob)
        cls.__init__ = _keeping_theta(cls.__init__)
        cls.log_prob = functools.wraps(cls.log_prob)(log_prob)
    return True


def unpatch() -> None:
    """Undo :func:`patch`, and let it compare scvi again if it declined before."""
    global _declined
    _declined = False
    module = importlib.import_module(MODULE) if _originals else None
    for name, original in _originals.items():
        if name in _FUNCTIONS:
            setattr(module, name, original)
        else:
            cls, cls.__init__, cls.log_prob = original
    _originals.clear()


def is_patched() -> bool:
    """Whether scvi is patched."""
    return bool(_originals)


# --------------------------------------------------------------------------------------------------
# Functions
# --------------------------------------------------------------------------------------------------


def _log_nb_positive(
    x: Any,
    mu: Any,
    theta: Any,
    eps: float = EPS,
    log_fn: Callable[..., Any] = torch.log,
    lgamma_fn: Callable[..., Any] = torch.lgamma,
) -> Any:
    if log_fn is torch.log and lgamma_fn is torch.lgamma and _is_served(eps, x, mu, theta):
        return _log_prob(_negative_binomial(eps), x, mu, theta)
    original = _originals["log_nb_positive"]
    return original(x, mu, theta, eps=eps, log_fn=log_fn, lgamma_fn=lgamma_fn)


def _log_zinb_positive(
    x: Any,
    mu: Any,
    theta: Any,
    pi: Any,
    eps: float = EPS,
    log_fn: Callable[..., Any] = torch.log,
    lgamma_fn: Callable[..., Any] = torch.lgamma,
) -> Any:
    if log_fn is torch.log and lgamma_fn is torch.lgamma and _is_served(eps, x, mu, theta, pi):
        return _log_prob(_zero_inflated(eps), x, mu, theta, pi)
    original = _originals["log_zinb_positive"]
    return original(x, mu, theta, pi, eps=eps, log_fn=log_fn, lgamma_fn=lgamma_fn)


@functools.lru_cache(maxsize=16)
def _negative_binomial(eps: float) -> Likelihood:
    return NegativeBinomial(eps=eps)


@functools.lru_cache(maxsize=16)
def _zero_inflated(eps: float) -> Likelihood:
    return ZeroInflatedNegativeBinomial(eps=eps)


def _is_served(eps: Any, x: Any, *parameters: Any) -> bool:
    """Whether the fused function supports these arguments and gives the same result as scvi."""
    if type(eps) not in (int, float) or eps < 0:
        return False
    tensors = (x, *parameters)
    if not all(isinstance(t, Tensor) and t.layout == torch.strided for t in tensors):
        return False
    if not all(t.is_floating_point() and t.device == x.device for t in parameters):
        return False
    if x.device.type == "mps" or x.requires_grad:
        return False
    wide = x.dtype == torch.float64 and all(t.dtype != torch.float64 for t in parameters)
    return not wide and x.dtype not in (torch.bool, torch.int8, torch.int16)


def _log_prob(kind: Likelihood, x: Tensor, mu: Tensor, *others: Tensor) -> Tensor:
    """The log likelihood in the shape that all arguments broadcast to, as in scvi's formula."""
    shape = torch.broadcast_shapes(x.shape, mu.shape, *(t.shape for t in others))
    return -losses.nll((mu.expand(shape), *others), x, kind, reduction="none")


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "log_nb_positive": _log_nb_positive,
    "log_zinb_positive": _log_zinb_positive,
}


# --------------------------------------------------------------------------------------------------
# Methods
# --------------------------------------------------------------------------------------------------


def _keeping_theta(init: Callable[..., None]) -> Callable[..., None]:
    """Return an ``__init__`` that also keeps theta as it was before broadcasting to the mean."""

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        by_count = kwargs.get("total_count", args[0] if args else None) is not None
        theta = kwargs.get("theta", args[4] if len(args) > 4 else None)
        # Store the broadcast theta too, so that a later assignment to ``theta`` is detected.
        keep = isinstance(theta, Tensor) and not by_count
        self._given_theta = (self.theta, theta) if keep else None

    return __init__


def _theta(self: Any) -> Tensor:
    """Return theta as given, unless ``theta`` has been assigned since."""
    kept = getattr(self, "_given_theta", None)
    theta: Tensor = self.theta if kept is None or kept[0] is not self.theta else kept[1]
    return theta


def _nb_log_prob(self: Any, value: Tensor) -> Tensor:
    if not self._validate_args and _is_served(self._eps, value, self.mu, self.theta):
        return _log_prob(_negative_binomial(self._eps), value, self.mu, _theta(self))
    return _original_log_prob("NegativeBinomial", self, value)


def _zinb_log_prob(self: Any, value: Tensor) -> Tensor:
    if not self._validate_args and _is_served(
        self._eps, value, self.mu, self.theta, self.zi_logits
    ):
        kind = _zero_inflated(EPS)
        return _log_prob(kind, value, self.mu, _theta(self), self.zi_logits)
    return _original_log_prob("ZeroInflatedNegativeBinomial", self, value)


def _original_log_prob(name: str, distribution: Any, value: Tensor) -> Tensor:
    """Call scvi's own method, which validates its argument and calls the replaced functions."""
    result: Tensor = _originals[name][2](distribution, value)
    return result


_METHODS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "NegativeBinomial": _nb_log_prob,
    "ZeroInflatedNegativeBinomial": _zinb_log_prob,
}


# --------------------------------------------------------------------------------------------------
# Comparison with scvi
# --------------------------------------------------------------------------------------------------


def _difference(module: Any) -> str:
    """Return a description of how scvi and this package differ on a small batch, or ''."""
    try:
        for got, expected, name in _comparisons(module):
            if not torch.allclose(got, expected, rtol=1e-6, atol=1e-9):
                error = float((got - expected).abs().max())
                return f"{name} differs by {error:.1e} from that of vae_fused"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _comparisons(module: Any) -> list[tuple[Tensor, Tensor, str]]:
    """Return pairs of results, of this package and of scvi, each with a name."""
    dtype = torch.float64
    x = torch.tensor([[0.0, 0.0, 1.0, 2.0], [3.0, 0.0, 17.0, 400.0]], dtype=dtype)
    mu = torch.tensor([[1e-3, 2.0, 0.5, 30.0], [3.0, 50.0, 1.0, 300.0]], dtype=dtype)
    theta = torch.tensor([0.1, 1.0, 10.0, 3.0], dtype=dtype)
    pi = torch.tensor([[-2.0, 1.0, 0.5, -0.5], [3.0, -1.0, 2.0, 0.0]], dtype=dtype)
    results = []
    for name, cls, kind, values in (
        ("log_nb_positive", "NegativeBinomial", _negative_binomial, (mu, theta)),
        ("log_zinb_positive", "ZeroInflatedNegativeBinomial", _zero_inflated, (mu, theta, pi)),
    ):
        theirs = getattr(module, name)
        for eps in (EPS, 1e-3):
            with torch.inference_mode(False), torch.enable_grad():
                leaves = [t.clone().requires_grad_() for t in values]
                got = _log_prob(kind(eps), x, *leaves)
                expected = theirs(x, *leaves, eps=eps)
                pairs = [torch.autograd.grad(value.sum(), leaves) for value in (got, expected)]
            results += [(got.detach(), expected.detach(), name)]
            results += [(a, b, f"the gradient of {name}") for a, b in zip(*pairs, strict=True)]
        names = ("mu", "theta", "zi_logits")[: len(values)]
        distribution = getattr(module, cls)(**dict(zip(names, values, strict=True)))
        for attribute, value in zip(names, values, strict=True):
            kept = getattr(distribution, attribute)
            results.append((kept, value.expand_as(kept), f"{cls}.{attribute}"))
        results.append(
            (_log_prob(kind(EPS), x, *values), distribution.log_prob(x), f"{cls}.log_prob")
        )
    return results
