"""Calls that the tests share: every likelihood, with every way to interpret its outputs."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from conftest import random
from torch import Tensor

import vae_fused as vf
from vae_fused import likelihoods as k


class Case(NamedTuple):
    """A likelihood and the shapes of its outputs, which broadcast to the call's shape, SHAPE."""

    kind: k.Likelihood
    shapes: tuple[tuple[int, ...], ...]
    library: bool = False


SHAPE = (4, 6)
CASES = {
    "bernoulli": Case(k.Bernoulli(), (SHAPE,)),
    "gaussian": Case(k.Gaussian(), (SHAPE, SHAPE)),
    "gaussian, one scale": Case(k.Gaussian(vf.Scale("softplus", std_floor=0.1)), (SHAPE, ())),
    "gaussian, a scale per channel": Case(k.Gaussian("logstd"), (SHAPE, (6,))),
    "gaussian, fixed": Case(k.Gaussian(sigma=0.5), (SHAPE,)),
    "laplace": Case(k.Laplace(), (SHAPE, SHAPE)),
    "laplace, one scale": Case(k.Laplace("softplus"), (SHAPE, (1,))),
    "laplace, fixed": Case(k.Laplace(sigma=2.0), (SHAPE,)),
    "poisson": Case(k.Poisson(), (SHAPE,)),
    "poisson, identity": Case(k.Poisson("identity"), (SHAPE,)),
    "poisson, softplus": Case(k.Poisson("softplus"), (SHAPE,)),
    "poisson, softmax": Case(k.Poisson("softmax"), (SHAPE,), library=True),
    "poisson, no constants": Case(k.Poisson("identity", constants=False), (SHAPE,)),
    "nb": Case(k.NegativeBinomial(), (SHAPE, (6,))),
    "nb, exp": Case(k.NegativeBinomial("exp", dispersion="exp"), (SHAPE, (1, 6))),
    "nb, softplus": Case(k.NegativeBinomial("softplus", dispersion="softplus"), (SHAPE, (4, 1))),
    "nb, softmax": Case(k.NegativeBinomial("softmax", dispersion="exp"), (SHAPE, (6,)), True),
    "nb, eps": Case(k.NegativeBinomial(eps=0.1, dispersion_max=50.0), (SHAPE, SHAPE)),
    "nb, no constants": Case(k.NegativeBinomial(constants=False), (SHAPE, (6,))),
    "zinb": Case(k.ZeroInflatedNegativeBinomial(), (SHAPE, (6,), SHAPE)),
    "zinb, probs": Case(
        k.ZeroInflatedNegativeBinomial(zero_inflation="probs"), (SHAPE, SHAPE, (1,))
    ),
    "zinb, softmax": Case(
        k.ZeroInflatedNegativeBinomial("softmax", dispersion="softplus", eps=0.01),
        (SHAPE, (6,), SHAPE),
        library=True,
    ),
    "student": Case(k.StudentT(), (SHAPE, SHAPE, SHAPE)),
    "student, a df per channel": Case(
        k.StudentT("softplus", freedom="softplus"), (SHAPE, (), (6,))
    ),
    "student, df of exp": Case(k.StudentT(freedom="exp", constants=False), (SHAPE, (6,), (4, 1))),
    "student, fixed df": Case(k.StudentT("std", df=4.5), (SHAPE, (6,))),
    "student, fixed": Case(k.StudentT(sigma=0.5, df=3.0), (SHAPE,)),
    "continuous bernoulli": Case(k.ContinuousBernoulli(), (SHAPE,)),
    "nb of logits": Case(k.NegativeBinomialLogits(), (SHAPE, SHAPE)),
    "nb of logits, no constants": Case(k.NegativeBinomialLogits(constants=False), (SHAPE, (4, 1))),
    "logistic": Case(k.DiscretizedLogistic(), (SHAPE, SHAPE)),
    "logistic, 3 bits": Case(k.DiscretizedLogistic(3, log_scale_min=0.4), (SHAPE, (6,))),
}


class Inputs(NamedTuple):
    outputs: tuple[Tensor, ...]
    target: Tensor
    library: Tensor | None

    def nll(self, kind: k.Likelihood, **options: Any) -> Tensor:
        return vf.nll(self.outputs, self.target, kind, library=self.library, **options)

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """The tensors that may require grad, without the target."""
        return self.outputs if self.library is None else (*self.outputs, self.library)


def make(case: Case, dtype: torch.dtype = torch.float64, *, seed: int = 0) -> Inputs:
    """Make outputs between 0.1 and 0.9, which every likelihood accepts, and a suitable target.

    The target contains counts, values in [0, 1], discrete levels or real numbers.
    """
    outputs = [
        0.1 + 0.8 * torch.sigmoid(random(*shape, seed=seed + i))
        for i, shape in enumerate(case.shapes)
    ]
    noise = random(*SHAPE, seed=seed + 10)
    if isinstance(case.kind, (k.Bernoulli, k.ContinuousBernoulli)):
        target = torch.sigmoid(noise)
        target[0] = (target[0] > 0.5).to(target.dtype)
    elif isinstance(case.kind, (k.Gaussian, k.Laplace, k.StudentT)):
        target = noise
    elif isinstance(case.kind, k.DiscretizedLogistic):
        steps = 2**case.kind.bits - 1
        target = torch.round((noise.clamp(-1, 1) + 1) / 2 * steps) * 2 / steps - 1
        target[0, :2] = torch.tensor([-1.0, 1.0])
    else:
        target = torch.floor(noise.abs() * 2.0) * torch.arange(SHAPE[-1])
    library = random(SHAPE[0], 1, seed=seed + 20) + 1.0 if case.library else None
    return Inputs(
        tuple(output.to(dtype).requires_grad_() for output in outputs),
        target.to(dtype),
        None if library is None else library.to(dtype).requires_grad_(),
    )
