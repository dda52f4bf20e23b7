"""A case: contenders that compute the same outputs from the same leaves."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.measuring import Step, tidy

OURS = "vae_fused"
Row = dict[str, Any]


class Unable(Exception):
    """A contender or a machine does not support a case. The message gives the reason; this is not
    a defect."""


class Wrong(Exception):
    """A contender's results differ."""


def reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or "no message"
    return text[:200] if isinstance(error, Unable) else f"{type(error).__name__}: {text}"[:200]


class Noise:
    """The noise of a fused latent: its own, or that of ``torch.randn`` during the check.

    Other code calls ``torch.randn_like``. In the check, our variant draws the same numbers from the
    same seed, so all contenders compute one loss. In timed steps, our kernels draw the noise.
    """

    def __init__(self) -> None:
        self.is_given = False  # whether the contenders are being compared

    def __call__(self, *shape: int) -> Tensor | None:
        return torch.randn(shape) if self.is_given else None

    def weight(self, timed: float, compared: float = 1.0) -> float:
        """Return a KL's weight. It is larger in the check, where a tiny one would hide errors."""
        return compared if self.is_given else timed


@dataclasses.dataclass
class Contest:
    """Functions of the same leaves, one for each contender, and their isolated parts.

    A function returns one or several tensors. Backward starts from ``grads`` for the first outputs
    and from ones for the others. With an optimizer, the leaves are parameters, and a step trains
    them. ``tolerance`` bounds the relative differences between losses and between gradients.
    """

    leaves: Sequence[Tensor]
    functions: Mapping[str, Callable[[], Any]]
    noise: Noise = dataclasses.field(default_factory=Noise)
    tolerance: float = 1e-4
    optimizer: torch.optim.Optimizer | None = None
    parts: dict[str, Contest] = dataclasses.field(default_factory=dict)
    grads: Sequence[Tensor] = ()
    factors: dict[str, float] = dataclasses.field(default_factory=dict)  # of losses, if not 1

    def __post_init__(self) -> None:
        if self.optimizer is None:
            self.leaves = [leaf.requires_grad_() for leaf in self.leaves]
        else:
            self.leaves = [leaf for leaf in self.leaves if leaf.requires_grad]

    def step(self, name: str) -> Step:
        optimizer, grads = self.optimizer, list(self.grads)

        def train(loss: Tensor) -> None:
            assert optimizer is not None
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        def backward(results: Any) -> Any:
            if isinstance(results, Tensor) and not results.dim():
                return torch.autograd.grad(results, self.leaves)
            outputs = [results] if isinstance(results, Tensor) else list(results)
            grads.extend(torch.ones_like(output) for output in outputs[len(grads) :])
            return torch.autograd.grad(outputs, self.leaves, grads)

        return Step(self.functions[name], train if optimizer else backward)

    def _loss_and_gradients(self, name: str) -> list[Tensor]:
        torch.manual_seed(0)
        loss: Tensor = self.functions[name]() / self.factors.get(name, 1.0)
        grads = torch.autograd.grad(loss, self.leaves, allow_unused=True, materialize_grads=True)
        return [loss.detach(), *grads]

    def check(self) -> dict[str, float]:
        """Compare losses and gradients of all contenders for the same noise, or raise Wrong.

        A gradient's difference is divided by its largest element or, if larger, by a thousandth of
        all gradients' largest element, because mere rounding errors have no relative accuracy.
        """
        self.noise.is_given = True
        (loss, *grads), *others = (self._loss_and_gradients(name) for name in self.functions)
        self.noise.is_given = False
        largest = max(float(grad.abs().max()) for grad in grads)
        if not (largest > 0 and float(loss.abs()) > 0):
            raise Wrong("the loss or all gradients are zero")
        found = {"loss": float(loss), "loss_difference": 0.0, "gradient_difference": 0.0}
        for name, (its_loss, *its_grads) in zip(list(self.functions)[1:], others, strict=True):
            of_loss = abs(float(its_loss - loss)) / abs(float(loss))
            of_grads = max(
                float((its - grad).abs().max()) / max(float(grad.abs().max()), 1e-3 * largest)
                for its, grad in zip(its_grads, grads, strict=True)
            )
            worst = max(of_loss, of_grads)
            if not worst <= self.tolerance:  # `not`, because NaN is wrong, too
                text = f"loss by {of_loss:.1e}, gradients by {of_grads:.1e}"
                raise Wrong(f"{name}: its results differ, {text}, tolerance {self.tolerance}")
            found["loss_difference"] = max(found["loss_difference"], of_loss)
            found["gradient_difference"] = max(found["gradient_difference"], of_grads)
        return {name: float(f"{value:.3g}") for name, value in found.items()}


def part(leaves: Sequence[Tensor], **functions: Callable[..., Any]) -> Contest:
    """Return a contest of a latent or a loss alone, on detached inputs shaped as in a step."""
    own = [leaf.detach().clone().requires_grad_() for leaf in leaves]

    def call(function: Callable[..., Any]) -> Callable[[], Any]:
        return lambda: function(*own)

    return Contest(own, {name: call(function) for name, function in functions.items()})


@dataclasses.dataclass(frozen=True)
class Case:
    """A named contest. The package that it needs is imported when the contest is made.

    ``targets`` are the minimum times of the other contenders, in multiples of ours.
    """

    name: str
    make: Callable[[], Contest]
    what: str = ""
    package: str = ""  # pip's name
    targets: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def release(self) -> str | None:
        """Return the version of the package. Raise Unable if it is missing."""
        try:
            return importlib.metadata.version(self.package) if self.package else None
        except importlib.metadata.PackageNotFoundError:
            raise Unable(f"{self.package} is not installed") from None

    def checked(self, device: str) -> tuple[Contest, dict[str, float]]:
        """Return the contest, and how well its contenders agree. Raise Unable or Wrong."""
        _ = self.release
        tidy(device)
        torch.manual_seed(0)
        with torch.device(device):
            contest = self.make()
            return contest, contest.check()
