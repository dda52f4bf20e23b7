"""Takes a case from its check to its row of figures."""

from __future__ import annotations

import importlib.metadata
import statistics
from typing import Any

import torch
from torch import Tensor

from benchmarks import machine
from benchmarks.measuring import ProcessorClock, Samples, interleaved, paired, spread
from benchmarks.running import tidy
from benchmarks.steps.work import OURS, THEIRS, Case, NotInstalled, Work

Row = dict[str, Any]
SHOWN = ("forward", "backward", "step", "processor")


class Wrong(Exception):
    """The two variants of a case do not compute the same loss."""


def version(package: str) -> str | None:
    """The version of a package; raises NotInstalled if it is missing."""
    if not package:
        return None
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise NotInstalled(f"{package} is not installed") from None


def _loss_and_gradients(work: Work, name: str) -> list[Tensor]:
    torch.manual_seed(0)
    loss: Tensor = getattr(work, name)()
    grads = torch.autograd.grad(loss, work.parameters, allow_unused=True, materialize_grads=True)
    return [loss.detach(), *grads]


def check(work: Work) -> dict[str, float]:
    """Compare losses and gradients of both variants for the same noise; raise Wrong if they differ.

    Differences in a tensor are relative to its largest gradient, but at least to a thousandth of
    the model's largest: a gradient that is zero except for rounding has no relative accuracy.
    """
    work.noise.is_given = True
    theirs, ours = (_loss_and_gradients(work, name) for name in (THEIRS, OURS))
    work.noise.is_given = False
    loss, *grads = theirs
    largest = max(float(grad.abs().max()) for grad in grads)
    if not (largest > 0 and float(loss.abs()) > 0):
        raise Wrong("the loss or all gradients are zero")
    of_loss = abs(float(ours[0] - loss)) / abs(float(loss))
    of_grads = max(
        float((mine - other).abs().max()) / max(float(other.abs().max()), 1e-3 * largest)
        for mine, other in zip(ours[1:], grads, strict=True)
    )
    found = {"loss": float(loss), "loss_difference": of_loss, "gradient_difference": of_grads}
    if not max(of_loss, of_grads) <= work.tolerance:  # `not`, because NaN is wrong, too
        raise Wrong(f"the variants differ: {found}, tolerance {work.tolerance}")
    return {name: float(f"{value:.3g}") for name, value in found.items()}


def figures(samples: Samples) -> Row:
    """Spread, minimum, and processor time of one variant, in microseconds."""
    minima = {kind: float(f"{1e6 * min(samples[kind]):.5g}") for kind in ("step", "processor")}
    return {"times": {kind: spread(samples[kind]) for kind in SHOWN}, "minima": minima}


def ratio(theirs: Samples, ours: Samples) -> dict[str, float]:
    """The ratios of their times to ours."""
    return {
        "median": round(statistics.median(paired(theirs["step"], ours["step"])), 3),
        "minima": round(min(theirs["step"]) / min(ours["step"]), 3),
        "processor": round(min(theirs["processor"]) / min(ours["processor"]), 3),
    }


def measure(case: Case, seconds: float, fewest: int = 7) -> Row:
    """Time both variants and their isolated parts in turn. Raises NotInstalled or Wrong."""
    release = version(case.package)
    tidy("cpu", reset=True)
    torch.manual_seed(0)
    work = case.make()
    agreement = check(work)
    steps = {(name, "step"): work.step(name) for name in (THEIRS, OURS)}
    for part, isolated in work.parts.items():
        steps |= {(name, part): isolated.step(name) for name in (THEIRS, OURS)}
    others = machine.Others()
    flat = interleaved(
        {" ".join(key): step for key, step in steps.items()},
        ProcessorClock(),
        seconds,
        fewest=fewest,
    )
    others_took = others.share()
    samples = {key: flat[" ".join(key)] for key in steps}
    shares = {
        part: {
            name: round(min(samples[name, part]["step"]) / min(samples[name, "step"]["step"]), 4)
            for name in (THEIRS, OURS)
        }
        for part in work.parts
    }
    return {
        "case": case.name,
        "package": case.package,
        "release": release,
        "what": case.what,
        "parameters": sum(p.numel() for p in work.parameters),
        "target": case.target,
        "agreement": agreement,
        "variants": {name: figures(samples[name, "step"]) for name in (THEIRS, OURS)},
        "ratio": ratio(samples[THEIRS, "step"], samples[OURS, "step"]),
        "parts": {
            part: {
                "ratio": ratio(samples[THEIRS, part], samples[OURS, part]),
                "share_of_step": shares[part],
                "minima": {name: figures(samples[name, part])["minima"] for name in (THEIRS, OURS)},
            }
            for part in work.parts
        },
        "others": others_took,
    }
