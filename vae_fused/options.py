"""What a call may ask for beyond mu and its raw scale: how sigma is read, and what the prior is.

``Scale`` and ``Prior`` are what a user gives; they check themselves, reading no tensor. ``Options``
is what a checked call hands on, to the operators as a flat list of numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["Prior", "Scale"]

# The operators know a kind by its place here.
KINDS = ("logvar", "logstd", "std", "var", "softplus", "sigmoid2")


def check_number(
    name: str, value: float, wants: str = "a finite number", low: float = -math.inf
) -> float:
    """A finite number of at least ``low``. A tensor's value is not asked for: that would wait."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not (low <= value and -math.inf < value < math.inf):  # nor is NaN
        raise ValueError(f"{name} is {value}, wants {wants}")
    return float(value)


def check_positive(name: str, value: float) -> float:
    """A finite number above 0."""
    if check_number(name, value) <= 0:
        raise ValueError(f"{name} is {value}, wants a number above 0")
    return float(value)


@dataclass(frozen=True)
class Scale:
    r"""How sigma is read from a raw scale, a network's output.

    .. math::
        x = \mathrm{gain} \cdot C(\mathrm{raw}) + \mathrm{shift}, \qquad
        \sigma = \sqrt{\sigma_0(x)^2 + \mathrm{var\_floor}} + \mathrm{std\_floor}

    Both the sample and the KL use that sigma. :math:`\sigma_0` is, by kind:

    ==============  ===================================  ==================================
    ``"logvar"``    :math:`e^{x/2}`                      most VAEs
    ``"logstd"``    :math:`e^x`                          VITS, VDVAE, NVAE, PyG
    ``"std"``       :math:`x`; NaN below 0               ``torch.distributions``, Pyro
    ``"var"``       :math:`\sqrt x`                      scvi-tools
    ``"softplus"``  :math:`\ln(1 + e^{\beta x})/\beta`   Bayesian layers, Dreamer
    ``"sigmoid2"``  :math:`2 / (1 + e^{-x/2})`           Dreamer
    ==============  ===================================  ==================================

    softplus and sigmoid2 are stable for any x: where sigma itself underflows, its logarithm, which
    the KL needs, and the gradients of that are still right.

    Args:
        kind: One of the above.
        clamp: ``(lo, hi)``, either may be None: C clamps raw. The gradient is 0 outside and passes
            at the bounds, with every torch. diffusers' (-30, 20), say.
        soft_clamp: Instead of ``clamp``: ``C(raw) = c tanh(raw / c)``, as in NVAE.
        gain, shift: Factor and summand of what C returns.
        beta: Of softplus alone.
        std_floor, var_floor: What is added to sigma and to its square: Dreamer's 0.1 and
            scvi-tools' 1e-4. With a ``var_floor`` the gradient of a ``"var"`` at 0 is finite; below
            ``-var_floor`` it is NaN.

    Raises:
        TypeError: A value of the wrong type.
        ValueError: An unknown kind, ``lo > hi``, a number that is not finite or out of range, both
            clamps, or a ``beta`` for another kind than softplus.
    """

    kind: str = "logvar"
    clamp: tuple[float | None, float | None] | None = field(default=None, kw_only=True)
    soft_clamp: float | None = field(default=None, kw_only=True)
    gain: float = field(default=1.0, kw_only=True)
    shift: float = field(default=0.0, kw_only=True)
    beta: float = field(default=1.0, kw_only=True)
    std_floor: float = field(default=0.0, kw_only=True)
    var_floor: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str):
            raise TypeError(f"kind must be a str, got {type(self.kind).__name__}")
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}, wants one of {', '.join(KINDS)}")
        if self.clamp is not None:
            object.__setattr__(self, "clamp", _check_clamp(self.clamp))
        if self.soft_clamp is not None:
            check_positive("soft_clamp", self.soft_clamp)
            if self.clamp is not None:
                raise ValueError("give one of clamp and soft_clamp, got both")
        check_number("gain", self.gain)
        check_number("shift", self.shift)
        check_positive("beta", self.beta)
        if self.beta != 1.0 and self.kind != "softplus":
            raise ValueError(f"beta is {self.beta}, but belongs to softplus, not to {self.kind}")
        for name, floor in (("std_floor", self.std_floor), ("var_floor", self.var_floor)):
            check_number(name, floor, "a number of at least 0", low=0.0)

    @property
    def raw_name(self) -> str:
        """What messages call a raw scale: the quantity that it is, if it is one."""
        return "raw" if self.kind in ("softplus", "sigmoid2") else self.kind

    @property
    def _bounds(self) -> tuple[float, float]:
        """Those of the hard clamp, infinite where there is none."""
        lo, hi = self.clamp or (None, None)
        return -math.inf if lo is None else lo, math.inf if hi is None else hi

    def argument(self, raw: float) -> float:
        """What sigma is a function of, x, for a number; of a ``"var"`` with its floor."""
        if self.soft_clamp is not None:
            raw = self.soft_clamp * math.tanh(raw / self.soft_clamp)
        low, high = self._bounds
        raw = min(high, max(low, raw))
        return self.gain * raw + self.shift + (self.var_floor if self.kind == "var" else 0.0)

    def packed(self) -> list[float]:
        """The nine numbers that the operators take."""
        numbers = (
            KINDS.index(self.kind),
            self.gain,
            self.shift,
            *self._bounds,
            self.soft_clamp or 0.0,
            self.beta,
            self.var_floor,
            self.std_floor,
        )
        return [float(number) for number in numbers]


def _check_clamp(clamp: Sequence[float | None]) -> tuple[float | None, float | None]:
    if isinstance(clamp, str) or not isinstance(clamp, Sequence) or len(clamp) != 2:
        raise TypeError(f"clamp must be a pair (lo, hi), got {clamp!r}")
    lo, hi = clamp
    for name, bound in (("clamp's lo", lo), ("clamp's hi", hi)):
        if bound is not None:
            check_number(name, bound, "a finite number or None")
    if lo is not None and hi is not None and lo > hi:
        raise ValueError(f"clamp is ({lo}, {hi}), wants lo <= hi")
    return lo, hi


_SCALES = {kind: Scale(kind) for kind in KINDS}


def as_scale(scale: str | Scale) -> Scale:
    """The ``Scale`` that a ``scale`` argument means."""
    if isinstance(scale, Scale):
        return scale
    if not isinstance(scale, str):
        raise TypeError(f"scale must be a str or a vf.Scale, got {type(scale).__name__}")
    if scale not in _SCALES:
        raise ValueError(f"scale is {scale!r}, wants one of {', '.join(KINDS)}, or a vf.Scale")
    return _SCALES[scale]


@dataclass(frozen=True, eq=False)
class Prior:
    """A diagonal Gaussian prior N(m, tau^2), fixed or learned: gradients reach its tensors.

    Args:
        mean: m, a number or a tensor that broadcasts to the posterior's shape.
        raw: The prior's raw scale, likewise.
        scale: How tau is read from ``raw``.

    Tensors are floating point, on the device of the posterior. All dtypes of a call promote
    together. For a prior that shall not learn give ``mean.detach()`` and ``raw.detach()``.

    Raises:
        TypeError: ``mean`` or ``raw`` is neither a tensor nor a number.
        ValueError: A number that is not finite, or that is no standard deviation or variance where
            ``scale`` reads it as one; a bad ``scale``.

    Example:
        >>> prior = vf.Prior(torch.zeros(20), torch.zeros(20), "logstd")
        >>> z, kl = vf.reparameterize_kl(torch.randn(8, 20), torch.randn(8, 20), prior=prior)
    """

    mean: Tensor | float = 0.0
    raw: Tensor | float = 0.0
    scale: str | Scale = "logvar"

    def __post_init__(self) -> None:
        scale = as_scale(self.scale)
        for name, value in (("mean", self.mean), ("raw", self.raw)):
            if isinstance(value, Tensor):
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(
                    f"prior.{name} must be a Tensor or a number, got {type(value).__name__}"
                )
            check_number(f"prior.{name}", value)
            if name == "raw" and scale.kind in ("std", "var"):
                x = scale.argument(value)
                added = scale.std_floor + (scale.var_floor if scale.kind == "std" else 0.0)
                if x < 0.0 or x + added == 0.0:
                    read = "" if x == value else f", read as {x:.6g}"
                    raise ValueError(
                        f"prior.raw is {value}{read}, wants a number above 0 for a {scale.kind}"
                    )


class Options(NamedTuple):
    """A checked call, but for mu, raw, the reduction and the noise.

    The prior's tensors are in the posterior's shape and dtype; the mask is as it was given.
    """

    scale: Scale = _SCALES["logvar"]
    mu_soft_clamp: float | None = None
    prior: Prior | None = None  # None: the standard normal
    mask: Tensor | None = None
    free_bits: float = 0.0
    balance: tuple[float, float] = (1.0, 1.0)
    temperature: float = 1.0
    sample_shape: tuple[int, ...] = ()
    linear: float | None = None  # c of the form 1/2 (d^2 + c - x) instead of the KL

    def packed(self) -> list[float] | None:
        """The numbers, in the order of the operators' ``options``; None if all are defaults."""
        prior = self.prior or Prior()
        mean, raw = (0.0 if isinstance(v, Tensor) else float(v) for v in (prior.mean, prior.raw))
        values = [
            *self.scale.packed(),
            *as_scale(prior.scale).packed(),
            self.mu_soft_clamp or 0.0,
            mean,
            raw,
            self.temperature,
            self.free_bits,
            *self.balance,
            float(self.linear is not None),
            self.linear or 0.0,
        ]
        return None if values == _DEFAULTS else values

    def arguments(self, mu: Tensor) -> dict[str, Any]:
        """The operators' keyword arguments, without those that are defaults."""
        if self is PLAIN:
            return {}
        prior = self.prior or Prior()
        arguments = {
            "prior_mean": prior.mean if isinstance(prior.mean, Tensor) else None,
            "prior_raw": prior.raw if isinstance(prior.raw, Tensor) else None,
            "mask": None if self.mask is None else self.mask.expand(mu.shape),
            "options": self.packed(),
            "sample_shape": self.sample_shape or None,
        }
        return {name: value for name, value in arguments.items() if value is not None}


_DEFAULTS = [*Scale().packed(), *Scale().packed(), 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0]
PLAIN = Options()
