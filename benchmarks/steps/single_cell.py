"""SCVI of scvi-tools, unmodified and with ``vae_fused.compat.scvi.patch()``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.cases import Case, Contest, part
from benchmarks.losses import CELLS, NONZERO, sparse
from benchmarks.steps.work import training


def scvi(likelihood: str, genes: int) -> Contest:
    import anndata
    import scvi as package
    from scvi.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial

    from vae_fused.compat import scvi as compat

    counts = sparse(CELLS, genes)
    data = anndata.AnnData(counts.cpu().numpy())
    package.model.SCVI.setup_anndata(data)
    module = package.model.SCVI(data, gene_likelihood=likelihood).module.to(counts.device)
    indices = torch.zeros(CELLS, 1, dtype=torch.long)
    batch = {"X": counts, "batch": indices, "labels": indices}

    def step() -> Tensor:
        found: Tensor = module(batch)[2].loss
        return found

    def loss(mean: Tensor, theta: Tensor, inflation: Tensor | None = None) -> Tensor:
        if inflation is None:
            found = NegativeBinomial(mu=mean, theta=theta)
        else:
            found = ZeroInflatedNegativeBinomial(mu=mean, theta=theta, zi_logits=inflation)
        total: Tensor = -found.log_prob(counts).sum(-1).mean()
        return total

    def patched(function: Callable[..., Tensor], *leaves: Tensor) -> Tensor:
        compat.patch()
        try:
            return function(*leaves)
        finally:
            compat.unpatch()

    px = module(batch)[1]["px"]
    leaves = [px.mu, module.px_r.exp(), *([px.zi_logits] if likelihood == "zinb" else [])]
    parts = {"loss": part(leaves, theirs=loss, ours=partial(patched, loss))}
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-5, eps=0.01, weight_decay=1e-6)
    ours = partial(patched, step)
    # scvi's formula suffers from cancellation: see docs/likelihoods.md.
    return training(module.parameters(), step, ours, parts, tolerance=5e-3, optimizer=optimizer)


def _case(likelihood: str, genes: int, **targets: float) -> Case:
    names = {"nb": "negative binomial", "zinb": "with zero inflation"}
    return Case(
        f"scvi {likelihood} {genes}",
        partial(scvi, likelihood, genes),
        f"SCVI, {names[likelihood]}, {CELLS} cells of {genes:,} genes, {NONZERO:.0%} non-zeros",
        "scvi-tools",
        targets,
    )


CASES = [
    _case("nb", 2_000),
    _case("nb", 20_000, theirs=1.8),
    _case("zinb", 2_000),
    _case("zinb", 20_000, theirs=1.8),
]
