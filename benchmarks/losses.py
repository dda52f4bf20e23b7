"""Times a likelihood's forward and backward, compared with common code for the same loss.

    python -m benchmarks.losses                     table, and a JSON in benchmarks/results
    python -m benchmarks.losses --case nb scvi      cases whose names contain one of these

All contenders of a case compute the same loss. Their losses and gradients are compared before they
are timed. The contenders take turns in this process. Other work on the machine slows all of them,
and affects their medians most. The table therefore shows the median of the rounds' ratios, and the
ratios of the minimum wall-clock times and processor times. ``CASES`` contains the promised ratios.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch import distributions as D

import vae_fused as vf
from benchmarks import command, record, tables
from benchmarks.cases import OURS, Case, Contest, Noise, Row
from benchmarks.measuring import FEWEST, interleaved, ratios, repeated

MODULE = "benchmarks.losses"
SECONDS = 6.0
MILLION = 2**20
CELLS, GENES, NONZERO = 128, 20_000, 0.11
SOFTMAX_NB = vf.likelihoods.NegativeBinomial("softmax", dispersion="exp")
SOFTMAX_ZINB = vf.likelihoods.ZeroInflatedNegativeBinomial("softmax", dispersion="exp")
BCE = "F.binary_cross_entropy_with_logits"


def against(
    leaves: Sequence[Tensor], x: Tensor, kind: Any, theirs: dict[str, Callable[[], Tensor]],
    **options: Any,
) -> Contest:  # fmt: skip
    """Compare ``vf.nll`` and other code for one sum. The tolerance allows for cancellation."""
    output = leaves[0] if len(leaves) == 1 else tuple(leaves)

    def ours() -> Tensor:
        return vf.nll(output, x, kind, reduction="sum", **options)

    return Contest(leaves, {OURS: ours, **theirs}, tolerance=5e-3)


def log_prob(q: Callable[[], D.Distribution], x: Tensor) -> dict[str, Callable[[], Any]]:
    """Return the loss that a class of ``torch.distributions`` computes."""
    return {f"{type(q()).__name__}.log_prob": lambda: -q().log_prob(x).sum()}


def bernoulli(*shape: int) -> Contest:
    logits, x = torch.randn(shape), torch.rand(shape)

    def theirs() -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, x, reduction="sum")

    return against([logits], x, "bernoulli", {BCE: theirs})


def gaussian() -> Contest:
    mean, logvar, x = torch.randn(MILLION), 0.3 * torch.randn(MILLION), torch.randn(MILLION)

    def functional() -> Tensor:
        return F.gaussian_nll_loss(mean, x, logvar.exp(), full=True, reduction="sum")

    theirs = log_prob(lambda: D.Normal(mean, torch.exp(0.5 * logvar)), x)
    return against([mean, logvar], x, "gaussian", theirs | {"F.gaussian_nll_loss": functional})


def laplace() -> Contest:
    mean, raw, x = torch.randn(MILLION), 0.3 * torch.randn(MILLION), torch.randn(MILLION)
    return against([mean, raw], x, "laplace", log_prob(lambda: D.Laplace(mean, raw.exp()), x))


def poisson() -> Contest:
    log_rate, x = 0.5 * torch.randn(MILLION), torch.poisson(torch.full((MILLION,), 1.5))
    return against([log_rate], x, "poisson", log_prob(lambda: D.Poisson(log_rate.exp()), x))


def student_t(learned: bool) -> Contest:
    """Use a learned scale, and degrees of freedom that are learned or fixed."""
    mean, raw = torch.randn(MILLION), 0.3 * torch.randn(MILLION)
    x, df = mean + D.StudentT(4.0).sample((MILLION,)), 1.0 + 4.0 * torch.rand(MILLION)
    kind = vf.likelihoods.StudentT("logstd", df=None if learned else 4.0)
    leaves, freedom = ([mean, raw, df], df) if learned else ([mean, raw], 4.0)
    return against(leaves, x, kind, log_prob(lambda: D.StudentT(freedom, mean, raw.exp()), x))


def continuous_bernoulli() -> Contest:
    logits, x = torch.randn(MILLION), torch.rand(MILLION)
    theirs = log_prob(lambda: D.ContinuousBernoulli(logits=logits), x)
    return against([logits], x, "continuous_bernoulli", theirs)


def discretized_logistic() -> Contest:
    """Compare with the formula that vdvae and other models use for 8-bit pixels."""
    x = torch.randint(0, 256, (MILLION,)) / 127.5 - 1.0
    mean, log_scale = x + 0.05 * torch.randn(MILLION), -3.0 + 0.3 * torch.randn(MILLION)

    def theirs() -> Tensor:
        scale = log_scale.clamp(min=-7.0)
        inverse, c = torch.exp(-scale), x - mean
        p, q, middle = inverse * (c + 1 / 255), inverse * (c - 1 / 255), inverse * c
        difference = torch.sigmoid(p) - torch.sigmoid(q)
        density = middle - scale - 2.0 * F.softplus(middle) - math.log(127.5)
        inner = torch.where(difference > 1e-5, torch.log(difference.clamp(min=1e-12)), density)
        inner = torch.where(x > 0.999, -F.softplus(q), inner)
        return -torch.where(x < -0.999, p - F.softplus(p), inner).sum()

    return against([mean, log_scale], x, "discretized_logistic", {"vdvae's formula": theirs})


def sparse(*shape: int) -> Tensor:
    """Return counts, few of which are not 0, as in single-cell data."""
    counts = torch.poisson(torch.full(shape, 2.0)) + 1
    return counts * (torch.rand(shape) < NONZERO)


def nb_of_logits() -> Contest:
    total, logits, x = 0.5 + torch.rand(MILLION), torch.randn(MILLION), sparse(MILLION)
    theirs = log_prob(lambda: D.NegativeBinomial(total, logits=logits), x)
    return against([total, logits], x, "negative_binomial_logits", theirs)


def cells() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return logits, each gene's log inverse dispersion, zero-inflation logits, and counts."""
    logits, inflation = torch.randn(2, CELLS, GENES)
    counts = sparse(CELLS, GENES)
    return logits, torch.randn(GENES), inflation, counts


def nb(zero_inflated: bool) -> Contest:
    """Compare with scvi-tools' classes and functions, with one theta per gene as in SCVI."""
    from scvi import distributions as scvi
    from scvi.distributions import _negative_binomial as functions

    mean, theta, inflation, x = cells()
    leaves = [F.softplus(mean), theta.exp(), *[inflation] * zero_inflated]
    names = ("mu", "theta", "zi_logits")
    kind = scvi.ZeroInflatedNegativeBinomial if zero_inflated else scvi.NegativeBinomial
    function = functions.log_zinb_positive if zero_inflated else functions.log_nb_positive
    compiled: Callable[..., Tensor] = torch.compile(function)
    theirs: dict[str, Callable[[], Tensor]] = {
        "scvi's class": lambda: (
            -kind(**dict(zip(names, leaves, strict=False))).log_prob(x).sum(-1).sum()
        ),
        "scvi's function": lambda: -function(x, *leaves).sum(),
        "its torch.compile": lambda: -compiled(x, *leaves).sum(),
    }
    return against(leaves, x, "zero_inflated_" * zero_inflated + "negative_binomial", theirs)


def nb_of_softmax() -> Contest:
    """The loss includes the decoder's softmax, its library and the exponential for theta."""
    from scvi.distributions._negative_binomial import log_nb_positive

    logits, raw, _, x = cells()
    library = x.sum(-1, keepdim=True).add(1.0).log()

    def theirs() -> Any:
        mean = library.exp() * torch.softmax(logits, -1)
        return -log_nb_positive(x, mean, raw.exp()).sum()

    return against([logits, raw], x, SOFTMAX_NB, {"scvi's function": theirs}, library=library)


def iwae(samples: int = 50, batch: int = 128, latent: int = 20, pixels: int = 784) -> Contest:
    """An importance-weighted model without its networks: samples, their log ratios, the likelihoods
    of given logits, and the bound. Without a decoder, z affects only the log ratio."""
    mu, logvar = torch.randn(batch, latent), 0.3 * torch.randn(batch, latent)
    logits, x, noise = torch.randn(samples, batch, pixels), torch.rand(batch, pixels), Noise()
    standard = D.Normal(torch.zeros(latent), torch.ones(latent))

    def ours() -> Tensor:
        _, log_ratio = vf.reparameterize_kl(
            mu, logvar, sample_shape=samples, estimator="sample", reduction="sample",
            eps=noise(samples, batch, latent),
        )  # fmt: skip
        nll = vf.nll(logits, x, "bernoulli", dim=-1)
        return vf.iwae_loss(nll, log_ratio, reduction="sum").loss

    def eager() -> Tensor:
        q = D.Normal(mu, torch.exp(0.5 * logvar))
        z = q.rsample((samples,))
        log_ratio = (q.log_prob(z) - standard.log_prob(z)).sum(-1)
        nll = F.binary_cross_entropy_with_logits(
            logits, x.expand(samples, -1, -1), reduction="none"
        ).sum(-1)
        return -(torch.logsumexp(-nll - log_ratio, 0) - math.log(samples)).sum()

    losses = {OURS: ours, "torch.distributions": eager}
    return Contest([mu, logvar, logits], losses, noise, tolerance=5e-3)


# --- gradients in backward or in forward: see ``grad=`` of ``vf.nll`` -----------------------------


def ways(outputs: list[Tensor], x: Tensor, kind: Any, **options: Any) -> Contest:
    """Compare gradients in backward, in forward, and in forward times a GradScaler's factor."""
    factor = 2.0**16
    scale, scaled = torch.tensor(factor), 'grad="forward", scaled'

    def loss(grad: str) -> Tensor:
        return vf.nll(tuple(outputs), x, kind, grad=grad, **options)

    losses: dict[str, Callable[[], Tensor]] = {
        OURS: lambda: loss("backward"),
        'grad="forward"': lambda: loss("forward"),
        scaled: lambda: loss("forward") * scale,
    }
    return Contest(outputs, losses, factors={scaled: factor})


def bernoulli_ways(*shape: int) -> Contest:
    return ways([torch.randn(shape)], torch.rand(shape), "bernoulli")


def gaussian_ways(*shape: int) -> Contest:
    return ways([torch.randn(shape), 0.3 * torch.randn(shape)], torch.randn(shape), "gaussian")


def nb_ways(kind: Any) -> Contest:
    x = sparse(CELLS, GENES)
    outputs = [torch.randn(CELLS, GENES), torch.randn(GENES)]
    outputs += [torch.randn(CELLS, GENES)] * (kind is SOFTMAX_ZINB)
    return ways(outputs, x, kind, library=torch.full((CELLS, 1), 8.0))


NB = {"scvi's class": 10.0, "scvi's function": 7.0, "its torch.compile": 5.0}
# The targets are the minimum times of the other contenders, in multiples of ours.
CASES = [
    Case("bernoulli 16x16", partial(bernoulli, 16, 16), targets={BCE: 1.0}),
    Case("bernoulli 256x784", partial(bernoulli, 256, 784), targets={BCE: 1.7}),
    Case("bernoulli 256x12288", partial(bernoulli, 256, 12288), targets={BCE: 3.0}),
    Case("gaussian 1M", gaussian, targets={"Normal.log_prob": 6.0, "F.gaussian_nll_loss": 5.0}),
    Case("laplace 1M", laplace, targets={"Laplace.log_prob": 4.0}),
    Case("poisson 1M", poisson, targets={"Poisson.log_prob": 4.0}),
    Case("student-t 1M", partial(student_t, True), targets={"StudentT.log_prob": 8.0}),
    Case("student-t, fixed df 1M", partial(student_t, False), targets={"StudentT.log_prob": 8.0}),
    Case("continuous bernoulli 1M", continuous_bernoulli,
         targets={"ContinuousBernoulli.log_prob": 8.0}),
    Case("discretized logistic 1M", discretized_logistic, targets={"vdvae's formula": 8.0}),
    Case("nb of logits 1M", nb_of_logits, targets={"NegativeBinomial.log_prob": 4.0}),
    Case("iwae 50x128", iwae, targets={"torch.distributions": 3.5}),
    Case("ways: bernoulli 16x16", partial(bernoulli_ways, 16, 16)),
    Case("ways: bernoulli 256x784", partial(bernoulli_ways, 256, 784)),
    Case("ways: bernoulli 256x12288", partial(bernoulli_ways, 256, 12288)),
    Case("ways: gaussian 1M", partial(gaussian_ways, 1024, 1024)),
    Case("ways: nb of softmax 128x20000", partial(nb_ways, SOFTMAX_NB)),
    Case("ways: zinb of softmax 128x20000", partial(nb_ways, SOFTMAX_ZINB)),
    Case("nb 128x20000", partial(nb, False), package="scvi-tools", targets=NB),
    Case("zinb 128x20000", partial(nb, True), package="scvi-tools", targets=NB),
    Case("nb of softmax 128x20000", nb_of_softmax, package="scvi-tools",
         targets={"scvi's function": 4.0}),
]  # fmt: skip
COLUMNS = (
    ("case", -32), ("contender", -35), ("time", 8), ("median", 8), ("minima", 8), ("processor", 11),
    ("target", 8),
)  # fmt: skip


def measure(case: Case, device: str, seconds: float, fewest: int = FEWEST) -> list[Row]:
    """Return a row for each contender of a case, with its times and their ratios to ours."""
    contest, _ = case.checked(device)
    # One call of a small case is too short for a CPU clock.
    calls = 50 if "16x16" in case.name and device == "cpu" else 1
    steps = {name: contest.step(name) for name in contest.functions}
    if calls > 1:
        steps = {name: repeated(step, calls) for name, step in steps.items()}
    samples, others = interleaved(steps, device, seconds, fewest)
    rows = []
    for name, times in samples.items():
        row: Row = {"case": case.name, "contender": name, "rounds": len(times["step"])}
        for key, kind in (("us", "step"), ("us_wall", "step_wall"), ("us_processor", "processor")):
            if kind in times:
                row[key] = round(1e6 * min(times[kind]) / calls, 1)
        if name != OURS:
            row |= {"target": case.targets.get(name), "ratio": ratios(times, samples[OURS])}
        rows.append(row | {"others": others})
    return rows


def table(rows: Sequence[Row]) -> list[str]:
    cells = []
    for row in rows:
        found = [f"{value:.2f}" for value in row.get("ratio", {}).values()] or [""] * 3
        cells.append([row["case"], row["contender"], tables.duration(row["us"]), *found,
                      str(row.get("target") or "")])  # fmt: skip
    return tables.aligned(COLUMNS, cells)


def text(data: record.Data) -> str:
    return "\n".join([tables.head(data), "", *table(data["rows"]), *tables.not_run(data)])


def main(argv: list[str] | None = None) -> int:
    def measured(case: Case, data: record.Data, device: str, seconds: float) -> str:
        data["rows"] += (rows := measure(case, device, seconds))
        return "\n".join(table(rows)[1:])

    return command.main(MODULE, __doc__, argv, CASES, SECONDS, measured, text, table([])[0])


if __name__ == "__main__":
    sys.exit(main())
