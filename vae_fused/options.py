"""The options of a call: how sigma is computed from a raw scale, the prior, and others.

Users construct ``Scale`` and ``Prior``, which check their arguments without reading a tensor.
``Options`` is a checked call. The operators take its numbers as one flat list, in the order of the
names that the extension exports, and its tensors as separate arguments. A ``Scale`` is packed once,
when it is constructed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from vae_fused import _ext
from vae_fused._numbers import (
    check_choice,
    check_not_negative,
    check_number,
    check_pair,
    check_positive,
)
from vae_fused._overrides import is_proxy
from vae_fused._remedies import kind_of
from vae_fused._restored import Restored
from vae_fused._shapes import has_shape

__all__ = ["Prior", "Scale"]

# The operators' numbers that a call may also pass as 0-d tensors.
SCALARS = ("temperature", "free_bits", "to_posterior", "to_prior")

# The operators identify a kind by its index here.
KINDS = ("logvar", "logstd", "std", "var", "softplus", "sigmoid2")

# The names of the operators' numbers, in their order: those of the posterior's scale, those of the
# prior's scale (the same names), and all others. Without compiled code, the lists are empty.
_SCOPES, _NAMES, _DEFAULT_NUMBERS = (
    torch.ops.vae_fused.latent_options() if _ext.available else ([], [], [])
)
_SCALE_NUMBERS = [n for scope, n in zip(_SCOPES, _NAMES, strict=True) if scope == "posterior"]
_OTHER_NUMBERS = [n for scope, n in zip(_SCOPES, _NAMES, strict=True) if not scope]
_DEFAULT_OTHERS = _DEFAULT_NUMBERS[2 * len(_SCALE_NUMBERS) :]


def pairs(numbers: Iterable[float], defaults: Iterable[float], first: int = 0) -> list[float]:
    """Return the operators' ``options``: index and value of each number that is not a default.

    ``first`` is the index of the first number.
    """
    both = enumerate(zip(numbers, defaults, strict=True), first)
    return [float(x) for k, (n, default) in both if n != default for x in (k, n)]


def unpaired(packed: Sequence[float] | None, defaults: Iterable[float]) -> list[float]:
    """Invert :func:`pairs`."""
    numbers = list(defaults)
    for k in range(0, len(packed or ()), 2):
        numbers[int(packed[k])] = packed[k + 1]  # type: ignore[index]
    return numbers


@dataclass(frozen=True)
class Scale(Restored):
    r"""How sigma is computed from a raw scale, which is a network's output.

    .. math::
        x = \mathrm{gain} \cdot C(\mathrm{raw}) + \mathrm{shift}, \qquad
        \sigma = \max\big(\sqrt{\sigma_0(x)^2 + \mathrm{var\_floor}} + \mathrm{std\_floor},
        \mathrm{std\_min}\big)

    Both the sample and the KL use that sigma. The kind selects :math:`\sigma_0`:

    ==============  ===================================  ==================================
    ``"logvar"``    :math:`e^{x/2}`                      most VAEs
    ``"logstd"``    :math:`e^x`                          VITS, VDVAE, NVAE, PyG
    ``"std"``       :math:`x`; NaN below 0               ``torch.distributions``, Pyro
    ``"var"``       :math:`\sqrt x`                      scvi-tools
    ``"softplus"``  :math:`\ln(1 + e^{\beta x})/\beta`   Bayesian layers, Dreamer
    ``"sigmoid2"``  :math:`2 / (1 + e^{-x/2})`           Dreamer
    ==============  ===================================  ==================================

    softplus and sigmoid2 are stable for any x. If sigma underflows, its logarithm, which the KL
    needs, and the gradients of the logarithm are still correct.

    Args:
        kind: One of the above.
        clamp: C clamps raw to ``(lo, hi)``, either of which may be None. The gradient is 0 outside
            the bounds and passes at the bounds, with every torch version. diffusers uses (-30, 20).
        soft_clamp: Instead of ``clamp``: ``C(raw) = c tanh(raw / c)``, as in NVAE.
        gain, shift: The factor and the offset that are applied to C(raw).
        beta: The softplus parameter. Other kinds do not have it.
        std_floor, var_floor: Terms added to sigma and to its square, respectively. Dreamer adds 0.1
            to sigma, and scvi-tools adds 1e-4 to the square. With a ``var_floor``, the gradient of
            ``"var"`` at 0 is finite. Below ``-var_floor``, it is NaN.
        std_min: The minimum sigma. The gradient is 0 below it and passes at equality.

    Raises:
        TypeError: A value of the wrong type.
        ValueError: An unknown kind, ``lo > hi``, a number that is not finite or out of range, both
            clamps, or a ``beta`` for a kind other than softplus.
    """

    kind: str = "logvar"
    clamp: tuple[float | None, float | None] | None = field(default=None, kw_only=True)
    soft_clamp: float | None = field(default=None, kw_only=True)
    gain: float = field(default=1.0, kw_only=True)
    shift: float = field(default=0.0, kw_only=True)
    beta: float = field(default=1.0, kw_only=True)
    std_floor: float = field(default=0.0, kw_only=True)
    var_floor: float = field(default=0.0, kw_only=True)
    std_min: float = field(default=0.0, kw_only=True)

    if TYPE_CHECKING:
        _packed: ClassVar[tuple[float, ...]]
        _pairs: ClassVar[tuple[list[float], list[float]]]  # for a posterior, for a prior

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, KINDS)
        if self.clamp is not None:
            object.__setattr__(self, "clamp", _check_clamp(self.clamp))
        if self.soft_clamp is not None:
            check_positive("soft_clamp", self.soft_clamp)
            if self.clamp is not None:
                raise ValueError("clamp and soft_clamp must not be given together, got both")
        check_number("gain", self.gain)
        check_number("shift", self.shift)
        check_positive("beta", self.beta)
        if self.beta != 1.0 and self.kind != "softplus":
            raise ValueError(f"beta must be 1 unless kind is 'softplus', got {self.beta}")
        for name in ("std_floor", "var_floor", "std_min"):
            check_not_negative(name, getattr(self, name))
        object.__setattr__(self, "_packed", self._pack())
        count, defaults = len(_SCALE_NUMBERS), _DEFAULT_NUMBERS
        both = pairs(self._packed, defaults[:count]), pairs(self._packed, defaults[:count], count)
        object.__setattr__(self, "_pairs", both)

    @property
    def raw_name(self) -> str:
        """The name of the raw scale in messages: the kind if it names a quantity, else ``raw``."""
        return "raw" if self.kind in ("softplus", "sigmoid2") else self.kind

    @property
    def _bounds(self) -> tuple[float, float]:
        """The bounds of the hard clamp. A missing bound is infinite."""
        lo, hi = self.clamp or (None, None)
        return -math.inf if lo is None else lo, math.inf if hi is None else hi

    def argument(self, raw: float) -> float:
        """Return x, the argument of sigma, for a number. For ``"var"``, x includes the floor."""
        if self.soft_clamp is not None:
            raw = self.soft_clamp * math.tanh(raw / self.soft_clamp)
        low, high = self._bounds
        raw = min(high, max(low, raw))
        return self.gain * raw + self.shift + (self.var_floor if self.kind == "var" else 0.0)

    def _pack(self) -> tuple[float, ...]:
        """Return the numbers that the operators take. Names missing from ``values`` are fields."""
        low, high = self._bounds
        values = {
            "kind": KINDS.index(self.kind),
            "low": low,
            "high": high,
            "soft_clamp": self.soft_clamp or 0.0,
        }
        return tuple(
            float(values[name] if name in values else getattr(self, name))
            for name in _SCALE_NUMBERS
        )

    def pairs(self, scope: str) -> list[float]:
        """Return the operators' ``options`` for the scale of a posterior or a prior."""
        return self._pairs[1 if scope == "prior" else 0]

    def numbers(self, scope: str) -> dict[str, float]:
        """Return the numbers by their names in another family's list."""
        names = (f"{scope}.{name}" for name in _SCALE_NUMBERS)
        return dict(zip(names, self._packed, strict=True))

    @staticmethod
    def of_numbers(numbers: Mapping[str, float], scope: str) -> Scale:
        """Invert :meth:`numbers`."""
        return Scale.unpacked([numbers[f"{scope}.{name}"] for name in _SCALE_NUMBERS])

    @staticmethod
    def unpacked(numbers: Sequence[float]) -> Scale:
        """Return the scale that packs to these numbers."""
        fields: dict[str, Any] = dict(zip(_SCALE_NUMBERS, numbers, strict=True))
        lo, hi = (b if math.isfinite(b) else None for b in (fields.pop("low"), fields.pop("high")))
        clamp = None if lo is None and hi is None else (lo, hi)
        kind, soft_clamp = KINDS[int(fields.pop("kind"))], fields.pop("soft_clamp") or None
        return Scale(kind, clamp=clamp, soft_clamp=soft_clamp, **fields)


def _check_clamp(clamp: Sequence[float | None]) -> tuple[float | None, float | None]:
    check_pair("clamp", clamp, "(lo, hi)")
    lo, hi = clamp
    for name, bound in (("clamp's lo", lo), ("clamp's hi", hi)):
        if bound is not None:
            check_number(name, bound, "a finite number or None")
    if lo is not None and hi is not None and lo > hi:
        raise ValueError(f"clamp must have lo <= hi, got ({lo}, {hi})")
    return lo, hi


_SCALES = {kind: Scale(kind) for kind in KINDS}


def as_scale(scale: str | Scale) -> Scale:
    """Return the ``Scale`` for a ``scale`` argument."""
    if isinstance(scale, Scale):
        return scale
    if not isinstance(scale, str):
        raise TypeError(f"scale must be a str or a vf.Scale, got {type(scale).__name__}")
    if scale not in _SCALES:
        raise ValueError(f"scale must be one of {', '.join(KINDS)} or a vf.Scale, got {scale!r}")
    return _SCALES[scale]


@dataclass(frozen=True, eq=False)
class Prior(Restored):
    """A diagonal Gaussian prior N(m, tau^2), fixed or learned. Its tensors get gradients.

    Args:
        mean: m, a number or a tensor that broadcasts to the posterior's shape.
        raw: The prior's raw scale, a number or a tensor like ``mean``.
        scale: How tau is computed from ``raw``.

    Tensors must be floating point and on the device of the posterior. All dtypes of a call promote
    together. For a prior that must not be trained, pass ``mean.detach()`` and ``raw.detach()``. A
    prior keeps these tensors even if a module replaces its parameters; see ``vf.nn.LearnedPrior``.

    Raises:
        TypeError: ``mean`` or ``raw`` is neither a tensor nor a number.
        ValueError: ``scale`` is invalid, a number is not finite, or ``raw`` is a number that is not
            a valid standard deviation or variance, if ``scale`` is of such a kind.

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
            if isinstance(value, Tensor) or is_proxy(value):
                continue
            if isinstance(value, bool) or not isinstance(value, Real):  # a NumPy scalar is one
                raise TypeError(f"prior.{name} must be a Tensor or a number, got {kind_of(value)}")
            value = check_number(f"prior.{name}", value)
            object.__setattr__(self, name, value)
            if name == "raw" and scale.kind in ("std", "var"):
                x = scale.argument(value)
                added = scale.std_floor + (scale.var_floor if scale.kind == "std" else 0.0)
                if x < 0.0 or max(x + added, scale.std_min) == 0.0:
                    got = f"{value}" if x == value else f"{value}, which is read as {x:.6g}"
                    raise ValueError(f"prior.raw must be above 0 for a {scale.kind}, got {got}")


torch.serialization.add_safe_globals([Scale, Prior])  # for weights_only=True


class CheckedPrior(NamedTuple):
    """A prior whose tensors have the posterior's shape and dtype."""

    mean: Tensor | float = 0.0
    raw: Tensor | float = 0.0
    scale: Scale = _SCALES["logvar"]


class Options(NamedTuple):
    """A checked call, except for mu, raw, the reduction and the noise.

    The tensors come first. The prior's tensors have the posterior's shape and dtype, and the mask
    is unchanged. All fields after ``sample_shape`` are packed as numbers. If an option in
    ``SCALARS`` is a tensor, ``scalars`` contains it by name, and its field has the default value.
    """

    scale: Scale = _SCALES["logvar"]
    prior: CheckedPrior | None = None  # None: the standard normal
    mask: Tensor | None = None
    scalars: dict[str, Tensor] | None = None
    sample_shape: tuple[int, ...] = ()
    mu_soft_clamp: float | None = None
    free_bits: float = 0.0
    balance: tuple[float, float] = (1.0, 1.0)
    temperature: float = 1.0
    linear: float | None = None  # c of the form 1/2 (d^2 + c - x) instead of the KL
    estimator: str = "analytic"
    stop_q: bool = False

    @property
    def is_at_sample(self) -> bool:
        """Whether the KL is estimated at the sample."""
        return self.estimator == "sample"

    def scalar(self, name: str) -> float | Tensor:
        """Return the value of one of ``SCALARS``."""
        if self.scalars and name in self.scalars:
            return self.scalars[name]
        if name in ("to_posterior", "to_prior"):
            return self.balance[1 if name == "to_prior" else 0]
        number: float = getattr(self, name)
        return number

    def packed(self) -> list[float] | None:
        """Return the operators' ``options``, or None if all have their default values."""
        prior = self.prior or STANDARD
        found = [*self.scale.pairs("posterior"), *prior.scale.pairs("prior")]
        if self[_NUMBERS] != _DEFAULT_FIELDS or (
            self.prior and not (isinstance(prior.mean, Tensor) and isinstance(prior.raw, Tensor))
        ):
            found += pairs(self._pack_others(prior), _DEFAULT_OTHERS, 2 * len(_SCALE_NUMBERS))
        return found or None

    def _pack_others(self, prior: CheckedPrior) -> list[float]:
        """Return the numbers that belong to no scale. Names missing from ``values`` are fields."""
        values = {
            "mu_soft_clamp": self.mu_soft_clamp or 0.0,
            "prior_mean": 0.0 if isinstance(prior.mean, Tensor) else prior.mean,
            "prior_raw": 0.0 if isinstance(prior.raw, Tensor) else prior.raw,
            "to_posterior": self.balance[0],
            "to_prior": self.balance[1],
            "is_linear_form": self.linear is not None,
            "constant": self.linear or 0.0,
            "at_sample": self.is_at_sample,
        }
        return [
            float(values[name]) if name in values else getattr(self, name)
            for name in _OTHER_NUMBERS
        ]

    @staticmethod
    def unpacked(
        numbers: Sequence[float] | None,
        prior_mean: Tensor | None = None,
        prior_raw: Tensor | None = None,
        mask: Tensor | None = None,
        scalars: dict[str, Tensor] | None = None,
    ) -> Options:
        """Invert :meth:`packed`, and add the tensors that belong to the numbers."""
        numbers, count = unpaired(numbers, _DEFAULT_NUMBERS), len(_SCALE_NUMBERS)
        fields: dict[str, Any] = dict(zip(_OTHER_NUMBERS, numbers[2 * count :], strict=True))
        mean, raw = fields.pop("prior_mean"), fields.pop("prior_raw")
        prior = CheckedPrior(
            mean if prior_mean is None else prior_mean,
            raw if prior_raw is None else prior_raw,
            Scale.unpacked(numbers[count : 2 * count]),
        )
        is_standard = prior_mean is None and prior_raw is None and prior == STANDARD
        is_linear_form, constant = fields.pop("is_linear_form"), fields.pop("constant")
        estimator = "sample" if fields.pop("at_sample") else "analytic"
        return Options(
            scale=Scale.unpacked(numbers[:count]),
            prior=None if is_standard else prior,
            mask=mask,
            scalars=scalars,
            mu_soft_clamp=fields.pop("mu_soft_clamp") or None,
            balance=(fields.pop("to_posterior"), fields.pop("to_prior")),
            linear=constant if is_linear_form else None,
            estimator=estimator,
            stop_q=bool(fields.pop("stop_q")),
            **fields,
        )

    def arguments(self, mu: Tensor) -> dict[str, Any]:
        """Return the operators' keyword arguments that do not have their default values."""
        if self is DEFAULT_OPTIONS:
            return {}
        numbers, prior, mask = self.packed(), self.prior, self.mask
        arguments: dict[str, Any] = {} if numbers is None else {"options": numbers}
        if prior is not None:
            if isinstance(prior.mean, Tensor):
                arguments["prior_mean"] = prior.mean
            if isinstance(prior.raw, Tensor):
                arguments["prior_raw"] = prior.raw
        if mask is not None:
            arguments["mask"] = mask if has_shape(mask, mu.shape) else mask.expand_as(mu)
        if self.scalars:
            arguments |= self.scalars
        if self.sample_shape:
            arguments["sample_shape"] = self.sample_shape
        return arguments


_NUMBERS = slice(Options._fields.index("sample_shape") + 1, None)
DEFAULT_OPTIONS, STANDARD = Options(), CheckedPrior()
_DEFAULT_FIELDS = DEFAULT_OPTIONS[_NUMBERS]
# The operators' ``options`` for a call in which only ``estimator`` or only ``stop_q`` is set.
AT_SAMPLE = Options(estimator="sample").packed() or []
STOP_Q = Options(stop_q=True).packed() or []
