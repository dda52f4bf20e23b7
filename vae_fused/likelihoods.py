"""The likelihoods that :func:`vae_fused.nll` computes: one class for each kind, with its options.

A string selects a kind with its default options: ``"bernoulli"``, ``"continuous_bernoulli"``,
``"gaussian"``, ``"laplace"``, ``"student_t"``, ``"poisson"``, ``"negative_binomial"``,
``"zero_inflated_negative_binomial"``, ``"negative_binomial_logits"``, ``"discretized_logistic"``.
Kinds are immutable and hashable. They can be compared, pickled, and loaded by
``torch.load(weights_only=True)``.
"""

from __future__ import annotations

from vae_fused._kinds.bounded import Bernoulli, ContinuousBernoulli, DiscretizedLogistic
from vae_fused._kinds.counts import (
    NegativeBinomial,
    NegativeBinomialLogits,
    Poisson,
    ZeroInflatedNegativeBinomial,
)
from vae_fused._kinds.real import Gaussian, Laplace, StudentT
from vae_fused._likelihood import Likelihood, as_likelihood

__all__ = [
    "Bernoulli",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "Gaussian",
    "Laplace",
    "Likelihood",
    "NegativeBinomial",
    "NegativeBinomialLogits",
    "Poisson",
    "StudentT",
    "ZeroInflatedNegativeBinomial",
]

for _name in __all__:  # so that pickles refer to the public module
    if _name != "Likelihood":
        _kind = globals()[_name]
        _kind.__module__ = __name__
        # torch.compile may trace the first use of a string. If that use created the kind, the graph
        # would have a guard on its absence, and the second call would recompile.
        as_likelihood(_kind.name)
