"""Takes one case from its inputs to its row of results: check, count, time."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks import machine, truth
from benchmarks.cases import Case, Inputs, inputs
from benchmarks.contenders import Contender, Latent, Unable
from benchmarks.counting import counts
from benchmarks.measuring import (
    GRAPHED,
    Clock,
    Step,
    copy_step,
    graph_times,
    interleaved,
    latent_step,
    summary,
)

BASES = ("vae_fused", "eager")  # the baseline is the first of these that was measured
COPY = "copy"
Row = dict[str, Any]


def reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or "no message"
    return text[:200] if isinstance(error, Unable) else f"{type(error).__name__}: {text}"[:200]


def admitted(
    contenders: Sequence[Contender], case: Case, device: str, data: Inputs
) -> tuple[dict[str, Latent], dict[str, str], dict[str, str]]:
    """Contenders with correct results, the reasons of those without support, and the failures."""
    latents, unable, wrong = dict[str, Latent](), dict[str, str](), dict[str, str]()
    for contender in contenders:
        try:
            latent = contender.make(case, device)
            truth.check(latent, case, data)
        except truth.Wrong as error:
            wrong[contender.name] = str(error)
        except Exception as error:  # the other contenders continue after any failure
            unable[contender.name] = reason(error)
        else:
            latents[contender.name] = latent
    return latents, unable, wrong


def tidy(device: str, *, reset: bool = False) -> None:
    """Free memory. With ``reset``, discard torch.compile's results, too."""
    if reset and "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    if reset and "torch._inductor.cudagraph_trees" in sys.modules:
        sys.modules["torch._inductor.cudagraph_trees"].reset_cudagraph_trees()
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def counted(
    latents: dict[str, Latent],
    data: Inputs,
    contenders: Sequence[Contender],
    device: str,
    unable: dict[str, str],
) -> tuple[dict[str, Step], dict[str, Row]]:
    """The steps that run, and their counts. Reasons of the others are added to ``unable``."""
    steps, figures = dict[str, Step](), dict[str, Row]()
    traced = {c.name: c.traced for c in contenders}
    for name, latent in latents.items():
        step = latent_step(latent, data)
        try:
            step()
            found = counts(step, data.arguments, device, traced=traced[name])
            step()
        except Exception as error:
            unable[name] = reason(error)
        else:
            steps[name], figures[name] = step, found
    return steps, figures


def measure(
    case: Case,
    contenders: Sequence[Contender],
    device: str,
    clock: Clock,
    seconds: float,
    tick: Callable[[float], None] = lambda _: None,
    fewest: int = 7,
) -> Row:
    """The whole row of one case. Raises Unable if the memory does not suffice."""
    tidy(device, reset=True)
    if case.needed > 0.9 * machine.free_bytes(device):
        raise Unable(f"wants {case.needed / 1e9:.1f} GB of free memory to be checked and measured")
    data = inputs(case, device)
    latents, unable, wrong = admitted(contenders, case, device, data)
    tidy(device)
    steps, figures = counted(latents, data, contenders, device, unable)
    others = machine.Others()
    samples = interleaved({**steps, COPY: copy_step(case, device)}, clock, seconds, tick, fewest)
    others_took = others.share()
    if device == "cuda" and case.elements <= GRAPHED:
        graphed = {c.name: steps[c.name] for c in contenders if c.graph and c.name in steps}
        for name, found in graph_times(graphed).items():
            if isinstance(found, str):
                figures[name]["graph_error"] = found
            else:
                samples[name]["step_graph"] = found
    base = next((name for name in BASES if name in steps), None)
    forward, backward = case.bytes
    least = {"forward": forward, "backward": backward, "step": forward + backward}
    copy = summary(samples[COPY], None)
    copy["gb_per_s"] = rates(least, copy["times"])
    for name, row in figures.items():
        row |= summary(samples[name], samples[base] if base else None)
        row["gb_per_s"] = rates(least, row["times"])
        row["share_of_copy"] = {
            k: round(row["gb_per_s"][k] / copy["gb_per_s"][k], 4) for k in least
        }
    return {
        "case": case.name,
        "family": case.family,
        "shape": list(case.shape),
        "dtype": case.dtype,
        "elements": case.elements,
        "least_bytes": least,
        "base": base,
        "others": others_took,
        "copy": copy,
        "contenders": figures,
        "unable": unable,
        "wrong": wrong,
    }


def rates(least: dict[str, int], times: dict[str, dict[str, float]]) -> dict[str, float]:
    """The least bytes over the time, in GB/s."""
    return {k: float(f"{least[k] / times[k]['median'] / 1e3:.5g}") for k in least}
