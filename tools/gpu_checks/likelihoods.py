"""The measured likelihoods: headline cases, their bytes, and eager code for comparison."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import vae_fused as vf
from gpu_checks.cases import DTYPES
from gpu_checks.measure import REPEATS, Run, elapsed, in_turn

NONZERO = 0.11  # share of nonzero counts, as in single-cell data
Outputs = tuple[Tensor, ...]
Formula = Callable[[Outputs, Tensor, Tensor | None], Tensor]


# --- common eager code ---------------------------------------------------------------------------
# These losses take float32 outputs and are not divided by the batch size.


def eager_bernoulli(outputs: Outputs, x: Tensor, library: Tensor | None) -> Tensor:
    (logits,) = outputs
    return F.binary_cross_entropy_with_logits(logits, x, reduction="sum")


def eager_gaussian(outputs: Outputs, x: Tensor, library: Tensor | None) -> Tensor:
    mean, logvar = outputs
    squared = (x - mean) ** 2 * torch.exp(-logvar)
    return 0.5 * (math.log(2 * math.pi) + logvar + squared).sum()


def eager_nb(outputs: Outputs, x: Tensor, library: Tensor | None) -> Tensor:
    plain, counted = _of_counts(outputs, x, library)
    return -(plain + counted).sum()


def eager_zinb(outputs: Outputs, x: Tensor, library: Tensor | None) -> Tensor:
    logits, raw, inflation = outputs
    plain, counted = _of_counts((logits, raw), x, library)
    kept = -F.softplus(inflation)
    zero = F.softplus(plain - inflation) + kept + inflation
    return -torch.where(x == 0, zero, kept + plain + counted).sum()


def _of_counts(outputs: Outputs, x: Tensor, library: Tensor | None) -> tuple[Tensor, ...]:
    """ln p in two parts. The second part is 0 where the count is 0."""
    assert library is not None
    logits, raw = outputs
    log_mean = torch.log_softmax(logits, -1) + library
    theta = raw.exp()
    log_sum = torch.log(theta + log_mean.exp())
    counted = x * (log_mean - log_sum)
    counted = counted + torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
    return theta * (raw - log_sum), counted


# --- cases ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Kind:
    """A likelihood. `full` outputs have the shape of the call; theta has a value for each gene."""

    likelihood: vf.likelihoods.Likelihood
    full: int
    has_theta: bool
    eager: Formula
    target: float  # speedup over eager code; a guess, because it has not been measured on a GPU


KINDS = {
    "bernoulli": Kind(vf.likelihoods.Bernoulli(), 1, False, eager_bernoulli, 1.0),
    "gaussian": Kind(vf.likelihoods.Gaussian(), 2, False, eager_gaussian, 1.5),
    "nb": Kind(
        vf.likelihoods.NegativeBinomial("softmax", dispersion="exp"), 1, True, eager_nb, 1.5
    ),
    "zinb": Kind(
        vf.likelihoods.ZeroInflatedNegativeBinomial("softmax", dispersion="exp"),
        2, True, eager_zinb, 1.5,
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class LikelihoodCase:
    """The loss of a batch, divided by its size."""

    kind: str  # a key of KINDS
    shape: tuple[int, int]
    dtype: str
    group: str = "likelihood"

    @property
    def name(self) -> str:
        return f"{self.kind} {self.dtype} {self.shape[0]}x{self.shape[1]}"

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def bytes(self, direction: str) -> int:
        """Outputs and target are read, and in backward the gradients of outputs are written.

        A softmax reads its logits more than once. This is avoidable, so it does not count. Theta
        and library are left out, because they have one value for each column and row.
        """
        kind = KINDS[self.kind]
        streams = kind.full + 1 + (kind.full if direction == "backward" else 0)
        return streams * DTYPES[self.dtype].itemsize * self.numel


def cases(exponent: int, dtypes: tuple[str, ...] = ("float32", "bfloat16")) -> list[LikelihoodCase]:
    """Each kind at about 2^exponent elements; counts have 20,000 genes if that many fit."""
    side = 2 ** (exponent // 2)
    square = (side, 2**exponent // side)
    genes = min(20_000, 2 ** (exponent - exponent // 3))
    found = []
    for dtype in dtypes:
        for name, kind in KINDS.items():
            shape = (2**exponent // genes, genes) if kind.has_theta else square
            found.append(LikelihoodCase(name, shape, dtype))
    return found


@dataclasses.dataclass
class Inputs:
    """The tensors of one call. `forward` and `backward` are the bare operators."""

    case: LikelihoodCase
    outputs: Outputs
    target: Tensor
    library: Tensor | None

    def __post_init__(self) -> None:
        output, second, third = (*self.outputs, None, None)[:3]
        self._tensors = (output, second, third, self.target, self.library, None, None)
        kind = KINDS[self.case.kind].likelihood
        self._numbers: dict[str, Any] = {
            "reduction": "batchmean", "dim": None, "options": kind.packed,
        }  # fmt: skip
        self._mask = [True, second is not None, third is not None, False, False]
        loss, self._rows = self.forward()
        self._grad = torch.ones_like(loss)

    def forward(self) -> tuple[Tensor, Tensor]:
        loss, rows = torch.ops.vae_fused.nll.default(*self._tensors, **self._numbers)
        return loss, rows

    def backward(self) -> tuple[Tensor, ...]:
        grads = torch.ops.vae_fused.nll_backward.default(
            self._grad, *self._tensors, self._rows, **self._numbers, output_mask=self._mask
        )
        return tuple(grads)

    def loss(self) -> Tensor:
        return vf.nll(
            self.outputs, self.target, KINDS[self.case.kind].likelihood, library=self.library
        )

    def eager(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The loss by the formulas above, with all tensors first converted to this dtype."""
        outputs = tuple(t.to(dtype) for t in self.outputs)
        library = None if self.library is None else self.library.to(dtype)
        formula = KINDS[self.case.kind].eager
        return formula(outputs, self.target.to(dtype), library) / self.case.shape[0]

    def gradients(self, loss: Callable[[], Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss(), self.outputs)


def inputs(case: LikelihoodCase, device: str, seed: int = 0) -> Inputs:
    generator = torch.Generator(device).manual_seed(seed)
    dtype, kind = DTYPES[case.dtype], KINDS[case.kind]

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).mul_(0.5).to(dtype)

    def uniform() -> Tensor:
        return torch.rand(case.shape, generator=generator, device=device)

    outputs = [normal(*case.shape) for _ in range(kind.full)]
    if not kind.has_theta:
        return Inputs(case, tuple(outputs), uniform().to(dtype), None)
    outputs.insert(1, normal(case.shape[1]))
    counts = torch.where(uniform() < NONZERO, 1 + (uniform() * 20).floor(), 0.0).to(dtype)
    library = torch.full((case.shape[0], 1), math.log(5000.0), device=device)
    return Inputs(case, tuple(outputs), counts, library)


# --- comparison with eager code ------------------------------------------------------------------


def check(made: Inputs, loss: Callable[[], Tensor]) -> None:
    """Check that the loss and its gradients agree with the formula in double."""
    tolerance = 1e-4 if made.case.dtype == "float32" else 2e-2

    def exact() -> Tensor:
        return made.eager(torch.float64)

    torch.testing.assert_close(loss().double(), exact(), rtol=tolerance, atol=1e-3)
    for got, want in zip(made.gradients(loss), made.gradients(exact), strict=True):
        scale = float(want.abs().max())
        torch.testing.assert_close(got, want, rtol=20 * tolerance, atol=tolerance * scale)


def measure_loss(case: LikelihoodCase, device: str, repeats: int = REPEATS) -> dict[str, Any]:
    """Median times of the loss and its gradients, for ours and for eager code."""
    made = inputs(case, device)
    made.outputs = tuple(t.requires_grad_() for t in made.outputs)
    contenders: dict[str, Callable[[], Tensor]] = {"vae_fused": made.loss, "eager": made.eager}
    runs: dict[str, Run] = {}
    unable: dict[str, str] = {}
    for name, loss in contenders.items():
        try:
            check(made, loss)
        except Exception as error:
            unable[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
            continue
        runs[name] = partial(made.gradients, loss)
    seconds = in_turn(runs, device, elapsed, repeats, sample=5e-3)
    return {
        "step": case.name,
        "clock": "device",
        "targets": {"eager": KINDS[case.kind].target},
        "us": {name: round(s * 1e6, 2) for name, s in seconds.items()},
        "unable": unable,
        "elements": case.numel,
    }
