"""The base class of all likelihoods, and the checked form of a likelihood call.

``vae_fused.likelihoods`` exports the kinds, which register here under their names.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

from vae_fused import _ext
from vae_fused._numbers import check_choice
from vae_fused._restored import Restored
from vae_fused.options import Scale, as_scale, pairs, unpaired

T = TypeVar("T")

# The operators identify each of these strings by its index.
MEANS = ("identity", "exp", "softplus", "softmax")
INFLATIONS = ("logits", "probs")
_KINDS_OF_OPERATORS = (
    "bernoulli",
    "gaussian",
    "laplace",
    "poisson",
    "negative_binomial",
    "zero_inflated_negative_binomial",
    "student_t",
    "continuous_bernoulli",
    "negative_binomial_logits",
    "discretized_logistic",
)

# The operators take a kind as a list of numbers, in the order of these names. Without compiled
# code, the lists are empty.
_SCOPES, _NAMES, _DEFAULTS = (
    torch.ops.vae_fused.likelihood_options() if _ext.available else ([], [], [])
)
_NUMBERS = {
    f"{scope}.{name}" if scope else name: default
    for scope, name, default in zip(_SCOPES, _NAMES, _DEFAULTS, strict=True)
}


class _Crossing(NamedTuple):
    """How the operators represent an option: the name of a number, and conversions both ways."""

    number: str
    to_number: Callable[[Any], float]
    from_number: Callable[[float], Any]


def _choice(number: str, choices: tuple[str, ...]) -> _Crossing:
    return _Crossing(number, choices.index, lambda place: choices[int(place)])


_CROSSINGS = {
    "constants": _Crossing("constants", float, bool),
    "sigma": _Crossing("sigma", lambda sigma: sigma or 1.0, lambda sigma: sigma),
    "rate": _choice("mean", MEANS),
    "mean": _choice("mean", MEANS),
    "dispersion": _choice("dispersion", MEANS),
    "dispersion_max": _Crossing(
        "dispersion_max",
        lambda bound: bound or math.inf,
        lambda bound: None if bound == math.inf else bound,
    ),
    "eps": _Crossing("eps", float, float),
    "zero_inflation": _choice("zero_inflation", INFLATIONS),
    "df": _Crossing("df", lambda df: df or 0.0, lambda df: df or None),
    "freedom": _choice("dispersion", MEANS),
    "bits": _Crossing("bits", float, int),
    "log_scale_min": _Crossing("log_scale_min", float, float),
}

KINDS: dict[str, type[Likelihood]] = {}
_DEFAULT_KINDS: dict[str, Likelihood] = {}  # for strings


@dataclass(frozen=True, repr=False)
class Likelihood(Restored):
    """Base class of the kinds. Every kind has these two options.

    Args:
        constants: Whether the value includes the terms that do not depend on any output. With these
            terms, the value is a log likelihood in nats. Without them, it is torch's loss of the
            same name.
        validate: Whether each call checks the values of ``target``. The check waits for all work
            that is queued on the device, and it cannot be traced.
    """

    constants: bool = field(default=True, kw_only=True)
    validate: bool = field(default=False, kw_only=True)

    name: ClassVar[str]  # the string for the kind
    target_has_gradient: ClassVar[bool]  # False for counts and for grid values
    # The index of the output that the operators take first. If it is not 0, all outputs broadcast
    # together. Otherwise, the other outputs broadcast to the first.
    leading: ClassVar[int] = 0
    target_is: ClassVar[str]  # the valid values of a target, for messages
    has_operator: ClassVar[bool] = False  # False for subclasses, which may define another density

    if TYPE_CHECKING:
        packed: ClassVar[list[float] | None]  # the operators' `options`
        output_count: ClassVar[int]

    def __init_subclass__(cls, name: str | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.has_operator = _ext.available and name in _KINDS_OF_OPERATORS
        if name is not None:
            if name in _KINDS_OF_OPERATORS and name in KINDS:
                raise ValueError(
                    f"name must differ from that of {KINDS[name].__name__}, got {name!r}"
                )
            cls.name = name
            KINDS[name] = cls
            _DEFAULT_KINDS.pop(name, None)
            torch.serialization.add_safe_globals([cls])

    def __post_init__(self) -> None:
        self.check()
        object.__setattr__(self, "packed", self._pack() if self.has_operator else None)
        object.__setattr__(self, "output_count", len(self.outputs))

    def check(self) -> None:
        """Raise an error if an option is invalid."""
        for option in ("constants", "validate"):
            value = getattr(self, option)
            if not isinstance(value, bool):
                raise TypeError(f"{option} must be a bool, got {type(value).__name__}")

    def __repr__(self) -> str:
        """Show the options that differ from their defaults."""
        given = ((f.name, getattr(self, f.name), f.default) for f in fields(self))
        shown = (f"{name}={value!r}" for name, value, default in given if value != default)
        return f"{type(self).__name__}({', '.join(shown)})"

    def _pack(self) -> list[float] | None:
        numbers = {**_NUMBERS, "kind": _KINDS_OF_OPERATORS.index(self.name)}
        for name in (f.name for f in fields(self)):
            value, crossing = getattr(self, name), _CROSSINGS.get(name)
            if crossing is not None:
                numbers[crossing.number] = crossing.to_number(value)
            elif name == "scale":
                numbers.update(as_scale(value).numbers("scale"))
        return pairs([numbers[name] for name in _NUMBERS], _NUMBERS.values()) or None

    @staticmethod
    def unpacked(packed: Sequence[float] | None, outputs: int) -> Likelihood:
        """Invert :attr:`packed`, for a call with this many outputs."""
        numbers = dict(zip(_NUMBERS, unpaired(packed, _NUMBERS.values()), strict=True))
        kind = KINDS[_KINDS_OF_OPERATORS[int(numbers["kind"])]]
        options: dict[str, Any] = {}
        for name in (f.name for f in fields(kind)):
            if name == "scale":
                options[name] = Scale.of_numbers(numbers, "scale")
            elif name in _CROSSINGS:
                crossing = _CROSSINGS[name]
                options[name] = crossing.from_number(numbers[crossing.number])
        if outputs > 1 and "sigma" in options:  # the second is a raw scale
            options["sigma"] = None
        return kind(**options)

    @property
    @abstractmethod
    def outputs(self) -> tuple[str, ...]:
        """The names of the tensors in ``output``, in order."""

    def ordered(self, outputs: Sequence[T]) -> tuple[T, ...]:
        """Reorder items, one per output, so that the item of the leading output comes first."""
        k = self.leading
        return (outputs[k], *outputs[:k], *outputs[k + 1 :]) if k else tuple(outputs)

    @property
    def has_library(self) -> bool:
        """Whether a size factor multiplies the mean."""
        return False

    @abstractmethod
    def elements(self, call: Call) -> Tensor:
        """Compute the log likelihood of each element.

        All tensors in ``call`` have the same dtype, float32 or float64, and are finite at masked
        elements.
        """

    @abstractmethod
    def is_valid(self, target: Tensor) -> Tensor:
        """Return which elements of ``target`` have a value that the likelihood allows."""


class Call(NamedTuple):
    """A checked likelihood call.

    Attributes:
        likelihood: The kind with its options.
        outputs: The tensors of ``output``, with the same floating-point dtype, in the order of
            ``Likelihood.ordered``. The first has the shape of the call, and the others broadcast to
            it.
        target: A tensor, not necessarily of that dtype, whose shape broadcasts to that of the call.
        mask: None, or a bool tensor, whose shape broadcasts to that of the call.
        weight: None, or a tensor in the dtype of the result, whose shape broadcasts like the mask.
        library: None, or a tensor in the dtype of the result. Its shape broadcasts to that of the
            call, with the last dimension replaced by 1.
        reduction, dims, divisor: The results of ``check_reduction``.
    """

    likelihood: Likelihood
    outputs: tuple[Tensor, ...]
    target: Tensor
    mask: Tensor | None
    weight: Tensor | None
    library: Tensor | None
    reduction: str
    dims: tuple[int, ...] | None
    divisor: Tensor | float | None


class KlTerm(NamedTuple):
    """A checked KL term of an evidence lower bound, in the dtype of the loss.

    Attributes:
        kl: A 0-d tensor that is reduced like the loss, or a tensor with one value for each sample.
        beta: The weight of the KL: a number, or a 0-d tensor, which may require grad.
        capacity: None, or C, a number or a 0-d tensor. The distance between C and the KL replaces
            the KL.
    """

    kl: Tensor
    beta: float | Tensor
    capacity: float | Tensor | None

    def times(self, batch: int) -> KlTerm:
        """Convert the term of a batch mean to the term of a sum over the batch."""
        capacity = None if self.capacity is None else self.capacity * batch
        return KlTerm(self.kl * batch, self.beta, capacity)


def class_or_type(value: object) -> str:
    """Describe a value that is not a likelihood: its type, or the class with a remedy."""
    if isinstance(value, type):
        return f"the class {value.__name__}; pass an instance of it"
    return type(value).__name__


def as_likelihood(likelihood: str | Likelihood) -> Likelihood:
    """Return the kind for a ``likelihood`` argument. A string selects the default options."""
    if isinstance(likelihood, Likelihood):
        return likelihood
    if not isinstance(likelihood, str):
        raise TypeError(
            "likelihood must be a str or an instance of a class of vf.likelihoods, got "
            f"{class_or_type(likelihood)}"
        )
    if likelihood not in _DEFAULT_KINDS:
        check_choice("likelihood", likelihood, tuple(KINDS))
        _DEFAULT_KINDS[likelihood] = KINDS[likelihood]()
    return _DEFAULT_KINDS[likelihood]
