"""The time of a likelihood's forward and backward, against common code for the same loss.

    python -m benchmarks.losses                     table, and a JSON in benchmarks/results
    python -m benchmarks.losses --case nb scvi      cases whose names contain one of these
    python -m benchmarks.losses --json FILE         another place for the JSON

All contenders of a case compute the same loss. Their losses are compared before they are timed.
They run in turn in this process. Other work on the machine slows all of them, and affects their
medians most. The table therefore has the median of the rounds' ratios, and the ratios of the minima
of wall-clock time and of processor time. ``CASES`` has the promised ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch import distributions as td

import vae_fused as vf
from benchmarks import ROOT, loss_bounds, loss_kinds, loss_ways, machine
from benchmarks.measuring import ProcessorClock, Step, interleaved, paired
from benchmarks.steps.work import Noise

L = vf.likelihoods
Loss: TypeAlias = Callable[[], Tensor]
OURS = "vae_fused"
MILLION = 2**20
CELLS, GENES, NONZERO = 128, 20_000, 0.11
SOFTMAX_NB = L.NegativeBinomial("softmax", dispersion="exp")
SOFTMAX_ZINB = L.ZeroInflatedNegativeBinomial("softmax", dispersion="exp")


class Contest:
    """Losses of the same leaves for each contender, one of which is ours."""

    def __init__(self, leaves: list[Tensor], losses: dict[str, Loss]) -> None:
        self.leaves = [leaf.requires_grad_() for leaf in leaves]
        self.losses = losses

    def step(self, name: str) -> Step:
        return Step(self.losses[name], lambda loss: torch.autograd.grad(loss, self.leaves))

    def check(self) -> None:
        """Raise if a contender's loss or gradients differ."""
        expected = [self.losses[OURS](), *self.step(OURS)()]
        for name in self.losses:
            found = [self.losses[name](), *self.step(name)()]
            if name == loss_ways.SCALED:
                continue
            for ours, theirs in zip(expected, found, strict=True):
                close = torch.allclose(theirs, ours, rtol=5e-3, atol=2e-2)  # for cancellation
                assert close, f"{name} differs by {(theirs - ours).abs().max()}"


class DrawingContest(Contest):
    """Losses that draw noise. For the comparison all draw torch's noise from one seed."""

    def __init__(self, make: Callable[[Noise], tuple[list[Tensor], dict[str, Loss]]]) -> None:
        self.noise = Noise()
        super().__init__(*make(self.noise))

    def check(self) -> None:
        drawn = self.losses

        def seeded(loss: Loss) -> Loss:
            def seed_and_draw() -> Tensor:
                torch.manual_seed(0)
                return loss()

            return seed_and_draw

        self.losses = {name: seeded(loss) for name, loss in drawn.items()}
        self.noise.is_given = True
        super().check()
        self.noise.is_given, self.losses = False, drawn


def bernoulli(*shape: int) -> Contest:
    logits, pixels = torch.randn(shape), torch.rand(shape)
    return Contest(
        [logits],
        {
            OURS: lambda: vf.nll(logits, pixels, "bernoulli", reduction="sum"),
            "F.binary_cross_entropy_with_logits": lambda: F.binary_cross_entropy_with_logits(
                logits, pixels, reduction="sum"
            ),
        },
    )


def gaussian() -> Contest:
    mean, logvar, x = torch.randn(MILLION), 0.3 * torch.randn(MILLION), torch.randn(MILLION)
    return Contest(
        [mean, logvar],
        {
            OURS: lambda: vf.nll((mean, logvar), x, "gaussian", reduction="sum"),
            "Normal.log_prob": lambda: -td.Normal(mean, torch.exp(0.5 * logvar)).log_prob(x).sum(),
            "F.gaussian_nll_loss": lambda: F.gaussian_nll_loss(
                mean, x, logvar.exp(), full=True, reduction="sum"
            ),
        },
    )


def laplace() -> Contest:
    mean, raw, x = torch.randn(MILLION), 0.3 * torch.randn(MILLION), torch.randn(MILLION)
    return Contest(
        [mean, raw],
        {
            OURS: lambda: vf.nll((mean, raw), x, "laplace", reduction="sum"),
            "Laplace.log_prob": lambda: -td.Laplace(mean, raw.exp()).log_prob(x).sum(),
        },
    )


def poisson() -> Contest:
    log_rate, counts = 0.5 * torch.randn(MILLION), torch.poisson(torch.full((MILLION,), 1.5))
    return Contest(
        [log_rate],
        {
            OURS: lambda: vf.nll(log_rate, counts, "poisson", reduction="sum"),
            "Poisson.log_prob": lambda: -td.Poisson(log_rate.exp()).log_prob(counts).sum(),
        },
    )


def cells() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, the logarithm of each gene's inverse dispersion, logits of zero inflation, counts."""
    logits, inflation = torch.randn(2, CELLS, GENES)
    theta = torch.randn(GENES)
    counts = torch.poisson(torch.full((CELLS, GENES), 2.0)) + 1
    counts *= torch.rand(CELLS, GENES) < NONZERO
    return logits, theta, inflation, counts


def negative_binomial(zero_inflated: bool) -> Contest:
    """One theta for each gene, as in SCVI, against scvi-tools' classes and functions."""
    from scvi.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial
    from scvi.distributions._negative_binomial import log_nb_positive, log_zinb_positive

    mean, theta, inflation, counts = cells()
    mean, theta = torch.nn.functional.softplus(mean), theta.exp()
    if zero_inflated:
        compiled = torch.compile(log_zinb_positive)
        losses: dict[str, Loss] = {
            OURS: lambda: vf.nll(
                (mean, theta, inflation), counts, "zero_inflated_negative_binomial", reduction="sum"
            ),
            "scvi's class": lambda: (
                -ZeroInflatedNegativeBinomial(mu=mean, theta=theta, zi_logits=inflation)
                .log_prob(counts)
                .sum(-1)
                .sum()
            ),
            "scvi's function": lambda: -log_zinb_positive(counts, mean, theta, inflation).sum(),
            "its torch.compile": lambda: -compiled(counts, mean, theta, inflation).sum(),
        }
        return Contest([mean, theta, inflation], losses)
    compiled = torch.compile(log_nb_positive)
    losses = {
        OURS: lambda: vf.nll((mean, theta), counts, "negative_binomial", reduction="sum"),
        "scvi's class": lambda: (
            -NegativeBinomial(mu=mean, theta=theta).log_prob(counts).sum(-1).sum()
        ),
        "scvi's function": lambda: -log_nb_positive(counts, mean, theta).sum(),
        "its torch.compile": lambda: -compiled(counts, mean, theta).sum(),
    }
    return Contest([mean, theta], losses)


def negative_binomial_of_softmax() -> Contest:
    """The decoder's softmax, its library and the exponential of theta as parts of the loss."""
    from scvi.distributions._negative_binomial import log_nb_positive

    logits, raw, _, counts = cells()
    library = counts.sum(-1, keepdim=True).add(1.0).log()
    kind = L.NegativeBinomial("softmax", dispersion="exp")

    def theirs() -> Tensor:
        mean = library.exp() * torch.softmax(logits, -1)
        return -log_nb_positive(counts, mean, raw.exp()).sum()

    return Contest(
        [logits, raw],
        {
            OURS: lambda: vf.nll((logits, raw), counts, kind, reduction="sum", library=library),
            "scvi's function": theirs,
        },
    )


def scvi_step(likelihood: str) -> Contest:
    """A training step of the released SCVI, with its optimizer, on one batch of cells.

    Ours is the same step with ``vae_fused.compat.scvi`` patched in.
    """
    import anndata
    import scvi

    from vae_fused.compat import scvi as compat

    *_, counts = cells()
    data = anndata.AnnData(counts.numpy())
    scvi.model.SCVI.setup_anndata(data)
    module = scvi.model.SCVI(data, gene_likelihood=likelihood).module
    indices = torch.zeros(CELLS, 1, dtype=torch.long)
    batch = {"X": counts, "batch": indices, "labels": indices}
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3, eps=0.01, weight_decay=1e-6)

    def step() -> Tensor:
        optimizer.zero_grad()
        torch.manual_seed(0)
        loss: Tensor = module(batch)[2].loss
        loss.backward()
        optimizer.step()
        return torch.zeros((), requires_grad=True)

    def patched() -> Tensor:
        compat.patch()
        try:
            return step()
        finally:
            compat.unpatch()

    contest = Contest([], {OURS: patched, "scvi-tools": step})
    contest.step = lambda name: Step(contest.losses[name], lambda _: None)  # type: ignore[method-assign]
    contest.check = lambda: None  # type: ignore[method-assign]
    return contest


NB_TARGETS = {"scvi's class": 10.0, "scvi's function": 7.0, "its torch.compile": 5.0}
# The least time of each contender, in multiples of ours.
CASES: dict[str, tuple[Callable[[], Contest], dict[str, float]]] = {
    "bernoulli 16x16": (lambda: bernoulli(16, 16), {"F.binary_cross_entropy_with_logits": 1.0}),
    "bernoulli 256x784": (lambda: bernoulli(256, 784), {"F.binary_cross_entropy_with_logits": 1.7}),
    "bernoulli 256x12288": (
        lambda: bernoulli(256, 12288),
        {"F.binary_cross_entropy_with_logits": 3.0},
    ),
    "gaussian 1M": (gaussian, {"Normal.log_prob": 6.0, "F.gaussian_nll_loss": 5.0}),
    "laplace 1M": (laplace, {"Laplace.log_prob": 4.0}),
    "poisson 1M": (poisson, {"Poisson.log_prob": 4.0}),
    "student-t 1M": (lambda: Contest(*loss_kinds.student_t(True)), {"StudentT.log_prob": 8.0}),
    "student-t, fixed df 1M": (
        lambda: Contest(*loss_kinds.student_t(False)),
        {"StudentT.log_prob": 8.0},
    ),
    "continuous bernoulli 1M": (
        lambda: Contest(*loss_kinds.continuous_bernoulli()),
        {"ContinuousBernoulli.log_prob": 8.0},
    ),
    "discretized logistic 1M": (
        lambda: Contest(*loss_kinds.discretized_logistic()),
        {"vdvae's formula": 8.0},
    ),
    "nb of logits 1M": (
        lambda: Contest(*loss_kinds.negative_binomial_logits()),
        {"NegativeBinomial.log_prob": 4.0},
    ),
    "iwae 50x128": (lambda: DrawingContest(loss_bounds.iwae), {loss_bounds.EAGER: 3.5}),
    # The time with gradients in forward, in multiples of the default; below 1 is faster.
    "ways: bernoulli 16x16": (lambda: Contest(*loss_ways.bernoulli(16, 16)), {}),
    "ways: bernoulli 256x784": (lambda: Contest(*loss_ways.bernoulli(256, 784)), {}),
    "ways: bernoulli 256x12288": (lambda: Contest(*loss_ways.bernoulli(256, 12_288)), {}),
    "ways: gaussian 1M": (lambda: Contest(*loss_ways.gaussian(1024, 1024)), {}),
    "ways: nb of softmax 128x20000": (
        lambda: Contest(*loss_ways.counts(SOFTMAX_NB, CELLS, GENES, NONZERO)),
        {},
    ),
    "ways: zinb of softmax 128x20000": (
        lambda: Contest(*loss_ways.counts(SOFTMAX_ZINB, CELLS, GENES, NONZERO)),
        {},
    ),
    "nb 128x20000": (lambda: negative_binomial(False), NB_TARGETS),
    "zinb 128x20000": (lambda: negative_binomial(True), NB_TARGETS),
    "nb of softmax 128x20000": (negative_binomial_of_softmax, {"scvi's function": 4.0}),
    "SCVI step, nb, 128x20000": (lambda: scvi_step("nb"), {"scvi-tools": 1.8}),
    "SCVI step, zinb, 128x20000": (lambda: scvi_step("zinb"), {"scvi-tools": 1.8}),
}


def measure(name: str, seconds: float) -> list[dict[str, Any]]:
    """A row for each contender of a case: its times and their ratios to ours."""
    make, targets = CASES[name]
    torch.manual_seed(0)
    contest = make()
    contest.check()
    calls = 50 if "16x16" in name else 1  # one call of a small case is too short for a clock

    def repeated(step: Step) -> Step:
        def loop() -> None:
            for _ in range(calls):
                step()

        return step if calls == 1 else Step(loop, lambda _: None)

    steps = {contender: repeated(contest.step(contender)) for contender in contest.losses}
    samples = interleaved(steps, ProcessorClock(), seconds)
    ours = samples[OURS]
    rows = []
    for contender, times in samples.items():
        row = {"case": name, "contender": contender, "rounds": len(times["step"])}
        row["us"] = round(1e6 * min(times["step"]) / calls, 1)
        row["us_processor"] = round(1e6 * min(times["processor"]) / calls, 1)
        if contender != OURS:
            row["target"] = targets.get(contender)
            row["ratio"] = {
                "median": round(statistics.median(paired(times["step"], ours["step"])), 2),
                "minima": round(min(times["step"]) / min(ours["step"]), 2),
                "processor": round(min(times["processor"]) / min(ours["processor"]), 2),
            }
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'case':28} {'contender':36} {'us':>10}  median  minima  processor  target"]
    for row in rows:
        line = f"{row['case']:28} {row['contender']:36} {row['us']:10.1f}"
        if "ratio" in row:
            ratio = row["ratio"]
            line += f"  {ratio['median']:6.2f}  {ratio['minima']:6.2f}  {ratio['processor']:9.2f}"
            line += f"  {row['target'] or '':>6}"
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.losses",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--case", nargs="+", metavar="PART", help="parts of names of cases")
    parser.add_argument("--seconds", type=float, default=6.0, help="of rounds for each case")
    parser.add_argument("--threads", type=int, help="of torch; default: torch's")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the results")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    names = [n for n in CASES if not arguments.case or any(c in n for c in arguments.case)]
    rows = []
    for name in names:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = measure(name, arguments.seconds)
        print(table(found) if not rows else table(found).split("\n", 1)[1], flush=True)
        rows += found
    path = arguments.json
    if path is None and not arguments.case:
        device = machine.slug(machine.machine("cpu")["device"])
        name = f"losses-{device}-{machine.commit()[0]}.json"
        path = ROOT / "benchmarks" / "results" / name
    if path is not None:
        content = {
            "command": "python -m benchmarks.losses",
            "machine": machine.machine("cpu"),
            "versions": machine.versions(),
            "commit": machine.commit()[0],
            "rows": rows,
        }
        path.write_text(json.dumps(content, indent=1) + "\n")
        print(path)


if __name__ == "__main__":
    main()
