"""Draw the figures of docs/theory.md, which illustrate its statements numerically.

    python examples/theory_figures.py --out docs/figures
    python examples/theory_figures.py --out /tmp/figures --quick     # fewer samples

Most figures use a model whose evidence is known: p(z) = N(0, I), p(x|z) = N(Wz, s^2 I) with
orthogonal columns of W. Then x ~ N(0, W W^T + s^2 I), and p(z|x) is a diagonal Gaussian.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

import vae_fused as vf

F64 = torch.float64
WEIGHT = torch.linalg.qr(torch.tensor([[1.0, 2.0], [-1.0, 1.0], [0.5, 0.3]], dtype=F64))[0]
WEIGHT = WEIGHT * torch.tensor([1.5, 0.8], dtype=F64)
NOISE = 0.6
X = torch.tensor([1.2, -0.7, 0.4], dtype=F64)
BLUE, ORANGE, GREEN, RED, GREY = "#1f6fb4", "#e08214", "#2b8a3e", "#c92a2a", "#777777"


def keyed(seed: int) -> Tensor:
    return torch.tensor([seed, 0], dtype=torch.uint64)


def nll(z: Tensor) -> Tensor:
    """Return -ln p(x|z) of samples (..., 2)."""
    return vf.nll(z @ WEIGHT.T, X, vf.likelihoods.Gaussian(sigma=NOISE), dim=-1)


def log_prior(z: Tensor) -> Tensor:
    zero = torch.zeros((), dtype=F64)
    return vf.gaussian_log_prob(z, zero, zero, dim=-1)


def log_evidence() -> float:
    covariance = WEIGHT @ WEIGHT.T + NOISE**2 * torch.eye(3, dtype=F64)
    zero = torch.zeros(3, dtype=F64)
    return float(torch.distributions.MultivariateNormal(zero, covariance).log_prob(X))


def posterior() -> tuple[Tensor, Tensor]:
    precision = 1.0 + WEIGHT.square().sum(0) / NOISE**2
    return X @ WEIGHT / NOISE**2 / precision, -precision.log()


def elbo(mu: Tensor, logvar: Tensor) -> Tensor:
    """Return the exact ELBO of Gaussians (..., 2)."""
    spread = (logvar.exp() * WEIGHT.square().sum(0)).sum(-1) / (2.0 * NOISE**2)
    return -nll(mu) - spread - vf.gaussian_kl(mu, logvar, dim=-1)


def panels(count: int, width: float = 7.6) -> tuple[Figure, list]:
    figure = Figure(figsize=(width, 3.2), layout="constrained", dpi=100)
    axes = [figure.add_subplot(1, count, i + 1) for i in range(count)]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def draw_kl(quick: bool) -> Figure:
    """Draw the KL of one element near the prior, in float32."""
    figure, (ax,) = panels(1)
    x = torch.logspace(-7, 0.5, 60 if quick else 250)
    wide = x.double()
    ax.loglog(x, 0.5 * (torch.expm1(wide) - wide), color=GREY, lw=5, alpha=0.5, label="exact")
    ax.loglog(x, vf.gaussian_kl(x * 0, x, reduction="none"), color=BLUE, label="vf.gaussian_kl")
    usual = 0.5 * (x.exp() - 1.0 - x)
    for sign, color, text in ((1.0, ORANGE, "above 0"), (-1.0, RED, "below 0, its size")):
        part = sign * usual > 0
        label = f"(exp(x) - 1 - x) / 2, {text}"
        ax.loglog(x[part], usual[part].abs(), ".", ms=3, color=color, label=label)
    ax.set(xlabel="log-variance x, with mu = 0", ylabel="KL in nats", ylim=(1e-15, 10))
    ax.legend(frameon=False, fontsize=8)
    return figure


def draw_evidence(quick: bool) -> Figure:
    """Draw the two parts of ln p(x) along a line of posteriors through the true posterior."""
    figure, (ax,) = panels(1)
    mean, logvar = posterior()
    t = torch.linspace(-1.5, 2.5, 40 if quick else 200, dtype=F64).unsqueeze(-1)
    start = torch.tensor([-0.6, 0.9], dtype=F64)
    q = mean + (1.0 - t) * start, logvar + (1.0 - t) * 0.8
    bound, gap = elbo(*q), vf.gaussian_kl(*q, prior=vf.Prior(mean, logvar), dim=-1)
    line = t.squeeze(-1)
    ax.fill_between(line, bound, bound + gap, color=ORANGE, alpha=0.3, label="KL(q || p(z|x))")
    ax.plot(line, bound, color=BLUE, label="ELBO")
    ax.plot(line, bound + gap, color=GREEN, lw=2.5, label="their sum")
    ax.axhline(log_evidence(), color="black", lw=1, ls="--", label="ln p(x), known exactly")
    ax.axvline(1.0, color=GREY, lw=0.8, ls=":")
    ax.set(xlabel="position of q on a line; at 1 it is p(z|x)", ylabel="nats")
    ax.legend(frameon=False, fontsize=8, loc="lower center")
    return figure


def draw_bound(quick: bool) -> Figure:
    """Draw gradient ascent to a Gaussian true posterior, and the gap to a non-Gaussian one."""
    figure, (left, right) = panels(2)
    mu, logvar = (torch.full((2,), v, dtype=F64, requires_grad=True) for v in (-1.0, 1.0))
    bounds, optimizer = [], torch.optim.SGD((mu, logvar), lr=0.02)
    for _ in range(60 if quick else 400):
        optimizer.zero_grad()
        bound = elbo(mu, logvar)
        (-bound).backward()
        optimizer.step()
        bounds.append(bound.item())
    left.plot(bounds, color=BLUE, label="ELBO")
    left.axhline(log_evidence(), color="black", lw=1, ls="--", label="ln p(x)")
    left.set(title="linear decoder", xlabel="steps of gradient ascent", ylabel="nats")
    left.legend(frameon=False, fontsize=8, loc="lower right")

    weight, bits = (torch.tensor(v, dtype=F64) for v in ([4.0, -3.0, 5.0], [1.0, 1.0, 0.0]))
    z = torch.linspace(-12, 12, 4001, dtype=F64)
    step = (z[1] - z[0]).item()
    log_joint = log_prior(z.unsqueeze(-1)) - vf.nll(z[:, None] * weight, bits, "bernoulli", dim=-1)
    evidence = log_joint.logsumexp(0) + math.log(step)
    mus, logvars = torch.linspace(-1.5, 1, 60, dtype=F64), torch.linspace(-5, 0.5, 60, dtype=F64)
    gap = torch.empty(len(logvars), len(mus), dtype=F64)
    for i, value in enumerate(logvars):
        log_q = vf.gaussian_log_prob(z[:, None], mus, value)
        gap[i] = evidence - (log_q.exp() * (log_joint[:, None] - log_q)).sum(0) * step
    levels = [0.05, 0.1, 0.2, 0.5, 1, 2, 4]
    lines = right.contour(mus, logvars, gap, levels=levels, cmap="viridis_r", linewidths=1.2)
    right.clabel(lines, fontsize=7)
    best = int(gap.argmin())
    right.plot(mus[best % 60], logvars[best // 60], "+", color=RED, ms=9)
    title = f"decoder of bits: gap in nats, at least {gap.min():.3f}"
    right.set(title=title, xlabel="mu of q", ylabel="log-variance of q")
    for ax in (left, right):
        ax.title.set_fontsize(9)
    return figure


def draw_closed_form(quick: bool) -> Figure:
    """Draw the closed form, and the mean over an increasing number of samples."""
    figure, (ax,) = panels(1)
    mu, logvar, m, prior = (torch.tensor([v], dtype=F64) for v in (0.3, 0.0, -0.5, 1.0))
    z = vf.reparameterize(mu, logvar, sample_shape=20_000 if quick else 200_000, key=keyed(1))
    ratio = (vf.gaussian_log_prob(z, mu, logvar) - vf.gaussian_log_prob(z, m, prior))[:, 0]
    sizes = [int(100 * 2**k) for k in range(40) if 100 * 2**k <= len(ratio)]
    means = [float(ratio[:n].mean()) for n in sizes]
    errors = [5.0 * float(ratio[:n].std()) / math.sqrt(n) for n in sizes]
    ax.errorbar(sizes, means, errors, fmt="o", ms=3, capsize=3, color=BLUE,
                label="mean of ln q(z) - ln p(z), 5 standard errors")  # fmt: skip
    for pair, color, text in (
        ((mu, logvar, m, prior), GREEN, "closed form of KL(q || p)"),
        ((m, prior, mu, logvar), RED, "closed form of KL(p || q)"),
    ):
        kl = vf.gaussian_kl(pair[0], pair[1], prior=vf.Prior(pair[2], pair[3]))
        ax.axhline(kl.item(), color=color, lw=1.2, ls="--" if color == RED else "-", label=text)
    ax.set(xscale="log", xlabel="samples of q", ylabel="nats")
    ax.legend(frameon=False, fontsize=8)
    return figure


def draw_log_variance(quick: bool) -> Figure:
    """Draw the effect of a small change in the raw scale on sigma and on the KL."""
    figure, (left, right) = panels(2)
    sigma = torch.logspace(-4, 2, 30 if quick else 200, dtype=F64)
    for kind, raw, color in (
        ("logvar", 2.0 * sigma.log(), BLUE),
        ("std", sigma, ORANGE),
        ("var", sigma.square(), RED),
        ("softplus", sigma + (-(-sigma).expm1()).log(), GREEN),
    ):
        raw = raw.clone().requires_grad_()
        value = vf.reparameterize(raw.detach() * 0, raw, scale=kind, eps=torch.ones_like(raw))
        (slope,) = torch.autograd.grad(value.log().sum(), raw)
        left.loglog(sigma, slope, color=color, label=kind)
        kl = vf.gaussian_kl(raw.detach() * 0, raw, scale=kind, reduction="sum")
        right.loglog(sigma, torch.autograd.grad(kl, raw)[0].abs(), color=color, label=kind)
    left.set(xlabel="sigma", ylabel="d ln sigma / d raw")
    right.set(xlabel="sigma", ylabel="|d KL / d raw|", ylim=(1e-3, 1e9))
    left.legend(frameon=False, fontsize=8)
    return figure


def draw_gradient(quick: bool) -> Figure:
    """Draw the variances of three gradient estimators for E[|z|^2 / 2] at mu = 1, sigma = 1."""
    figure, (ax,) = panels(1)
    dims = [1, 10, 100] if quick else [1, 3, 10, 30, 100, 300, 1000]
    texts = ("score function", "score function with the best baseline", "reparameterized")
    measured: dict[str, list[tuple[float, float]]] = {text: [] for text in texts}
    for size in dims:
        draws = max(2000, min(100_000, 1_000_000 // size)) // (10 if quick else 1)
        mu = torch.ones(draws, size, dtype=F64, requires_grad=True)
        z = vf.reparameterize(mu, torch.zeros_like(mu), key=keyed(size))
        (pathwise,) = torch.autograd.grad(0.5 * z.square().sum(), mu)
        z, value = z.detach(), 0.5 * z.detach().square().sum(-1, keepdim=True)
        log_q = vf.gaussian_log_prob(z, mu, torch.zeros_like(z), reduction="sum")
        (score,) = torch.autograd.grad(log_q, mu)
        for text, got in zip(
            texts, (score * value, score * (value - size - 1), pathwise), strict=True
        ):
            errors = (got - 1.0).square().mean(-1)
            bar = 5.0 * errors.std() / math.sqrt(draws)
            measured[text].append((errors.mean().item(), bar.item()))
    for text, color in zip(texts, (RED, ORANGE, BLUE), strict=True):
        value, bars = zip(*measured[text], strict=True)
        ax.errorbar(dims, value, bars, fmt="o-", ms=3, lw=1, capsize=3, color=color, label=text)
    ax.set(xscale="log", yscale="log", xlabel="dimensions of z", ylabel="variance of an element")
    ax.legend(frameon=False, fontsize=8)
    return figure


def draw_samples(quick: bool) -> Figure:
    """Draw the importance-weighted bound, and the effective share of the samples."""
    figure, (left, right) = panels(2)
    mean, logvar = posterior()
    mu, logvar = mean + 0.6, logvar + 0.6
    most, draws = (64, 500) if quick else (256, 4000)
    z = vf.reparameterize(mu, logvar, sample_shape=(most, draws), key=keyed(5))
    log_ratio = vf.gaussian_log_prob(z, mu, logvar, dim=-1) - log_prior(z)
    counts, bounds, shares = [2**k for k in range(int(math.log2(most)) + 1)], [], []
    for count in counts:
        terms = vf.iwae_loss(nll(z), log_ratio, groups=most // count, reduction="none")
        bounds.append((-terms.loss.mean(), 5.0 * terms.loss.std() / math.sqrt(draws)))
        shares.append(terms.ess.mean() / count)
    value, bars = zip(*bounds, strict=True)
    left.axhline(log_evidence(), color="black", lw=1, ls="--", label="ln p(x)")
    left.errorbar(counts, value, bars, fmt="o-", ms=3, lw=1, capsize=3, color=BLUE,
                  label="bound, 5 standard errors")  # fmt: skip
    left.axhline(elbo(mu, logvar).item(), color=ORANGE, lw=1, ls=":", label="ELBO, exact")
    left.set(xscale="log", xlabel="samples K", ylabel="nats")
    left.legend(frameon=False, fontsize=8, loc="center right")
    right.semilogx(counts, shares, "o-", ms=3, lw=1, color=GREEN)
    right.set(xlabel="samples K", ylabel="effective sample size / K", ylim=(0, 1.05))
    return figure


FIGURES: dict[str, Callable[[bool], Figure]] = {
    "kl": draw_kl,
    "evidence": draw_evidence,
    "bound": draw_bound,
    "closed_form": draw_closed_form,
    "log_variance": draw_log_variance,
    "gradient": draw_gradient,
    "samples": draw_samples,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder of the PNG files")
    parser.add_argument("--quick", action="store_true", help="fewer samples")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        path = options.out / f"{name}.png"
        draw(options.quick).savefig(path)
        print(path)


if __name__ == "__main__":
    main()
