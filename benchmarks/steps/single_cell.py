"""SCVI of scvi-tools, unmodified and with ``vae_fused.compat.scvi.patch()``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.steps.work import Case, Noise, Part, Work

CELLS, NONZERO = 128, 0.11


def counts_of(genes: int) -> Tensor:
    """A batch of cells with a share of nonzero counts that is typical of real data."""
    counts = torch.poisson(torch.full((CELLS, genes), 2.0)) + 1
    return counts * (torch.rand(CELLS, genes) < NONZERO)


def _decoded(module: Any, batch: dict[str, Tensor]) -> Any:
    """The distribution of the counts that the model returns for a batch."""
    return module(batch)[1]["px"]


def scvi(likelihood: str, genes: int) -> Work:
    import anndata
    import scvi as package
    from scvi.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial

    from vae_fused.compat import scvi as compat

    counts = counts_of(genes)
    data = anndata.AnnData(counts.numpy())
    package.model.SCVI.setup_anndata(data)
    module = package.model.SCVI(data, gene_likelihood=likelihood).module
    indices = torch.zeros(CELLS, 1, dtype=torch.long)
    batch = {"X": counts, "batch": indices, "labels": indices}

    def theirs() -> Tensor:
        loss: Tensor = module(batch)[2].loss
        return loss

    def ours() -> Tensor:
        compat.patch()
        try:
            return theirs()
        finally:
            compat.unpatch()

    px = _decoded(module, batch)
    leaves = [px.mu, module.px_r.exp()]
    if likelihood == "zinb":
        leaves.append(px.zi_logits)

    def loss(mean: Tensor, theta: Tensor, inflation: Tensor | None = None) -> Tensor:
        if inflation is None:
            found = NegativeBinomial(mu=mean, theta=theta)
        else:
            found = ZeroInflatedNegativeBinomial(mu=mean, theta=theta, zi_logits=inflation)
        total: Tensor = -found.log_prob(counts).sum(-1).mean()
        return total

    def patched(*leaves: Tensor) -> Tensor:
        compat.patch()
        try:
            return loss(*leaves)
        finally:
            compat.unpatch()

    optimizer = torch.optim.Adam(module.parameters(), lr=1e-5, eps=0.01, weight_decay=1e-6)
    parts = {"loss": Part(leaves, loss, patched)}
    # scvi's formula suffers from cancellation: see docs/likelihoods.md.
    return Work(list(module.parameters()), theirs, ours, Noise(), parts, 5e-3, optimizer)


def _case(likelihood: str, genes: int, target: float | None = None) -> Case:
    names = {"nb": "negative binomial", "zinb": "with zero inflation"}
    return Case(
        f"scvi {likelihood} {genes}",
        "scvi-tools",
        f"SCVI, {names[likelihood]}, {CELLS} cells of {genes:,} genes, {NONZERO:.0%} non-zeros",
        lambda: scvi(likelihood, genes),
        target,
    )


CASES = [
    _case("nb", 2_000),
    _case("nb", 20_000, 1.8),
    _case("zinb", 2_000),
    _case("zinb", 20_000, 1.8),
]
