"""Measures a latent, and returns its row of results."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from benchmarks import latents, record
from benchmarks.cases import Contest, Row, Unable, Wrong, reason
from benchmarks.contenders import Contender
from benchmarks.counting import counts
from benchmarks.latents import Function, Inputs, Latent
from benchmarks.measuring import FEWEST, Samples, Step, interleaved, summary, tidy
from benchmarks.tables import COPY

BASES = ("vae_fused", "eager")  # the baseline is the first of these that was measured


def admitted(
    contenders: Sequence[Contender], latent: Latent, device: str, data: Inputs
) -> tuple[dict[str, Function], Row]:
    """Return the functions with correct results, and why the others are unable or wrong."""
    functions, reasons = dict[str, Function](), Row(unable={}, wrong={})
    for contender in contenders:
        try:
            function = contender.make(latent, device)
            latents.check(function, latent, data)
        except Wrong as error:
            reasons["wrong"][contender.name] = str(error)
        except Exception as error:  # the other contenders continue after any failure
            reasons["unable"][contender.name] = reason(error)
        else:
            functions[contender.name] = function
    return functions, reasons


def latent_contest(functions: dict[str, Function], data: Inputs) -> Contest:
    """Return forward and backward of a latent. Each step allocates new outputs, as in training."""

    def call(function: Function) -> list[torch.Tensor]:
        return latents.outputs(function(*data.arguments))

    calls = {name: partial(call, function) for name, function in functions.items()}
    return Contest(data.leaves, calls, grads=data.grad_zs)


def copy_step(latent: Latent, device: str) -> Step:
    """Return a step that copies the minimum bytes of both passes, in preallocated memory."""
    sizes = [max(1, n // 2) for n in latent.bytes]
    source, target = (
        torch.zeros(max(sizes), dtype=torch.uint8, device=device) for _ in range(2)
    )  # untouched pages of zeros would all map to one page
    source.fill_(1)

    def copy(size: int) -> None:
        target[:size].copy_(source[:size])

    return Step(lambda: copy(sizes[0]), lambda _: copy(sizes[1]))


def measure(
    latent: Latent,
    contenders: Sequence[Contender],
    device: str,
    seconds: float,
    fewest: int = FEWEST,
) -> Row:
    """Return the row of a latent. Raise Unable if there is not enough memory."""
    tidy(device)
    if latent.needed > 0.9 * record.free_bytes(device):
        raise Unable(f"{latent.needed / 1e9:.1f} GB of free memory are needed for the check")
    data = latents.inputs(latent, device)
    functions, reasons = admitted(contenders, latent, device, data)
    contest = latent_contest(functions, data)
    traced = {c.name for c in contenders if c.traced}
    steps, figures = dict[str, Step](), dict[str, Row]()
    for name in contest.functions:
        step = contest.step(name)
        try:
            step()
            found = counts(step, data.arguments, traced=name in traced)
            step()
        except Exception as error:
            reasons["unable"][name] = reason(error)
        else:
            steps[name], figures[name] = step, found
    everything = {**steps, COPY: copy_step(latent, device)}
    samples, others = interleaved(everything, device, seconds, fewest)
    base = next((name for name in BASES if name in steps), None)
    for name in steps:
        figures[name] |= summary(samples[name], samples[base] if base else None)
    row = {"base": base, "others": others, "contenders": figures, **reasons}
    return row | _rates(latent, figures, samples)


def _rates(latent: Latent, figures: dict[str, Row], samples: dict[str, Samples]) -> Row:
    """Return a row with the rates at which the contenders and a copy move the minimum bytes."""
    forward, backward = latent.bytes
    least = {"forward": forward, "backward": backward, "step": forward + backward}
    copy = summary(samples[COPY], None)
    for row in (copy, *figures.values()):
        rates = {kind: least[kind] / row["times"][kind]["median"] / 1e3 for kind in least}
        row["gb_per_s"] = {kind: float(f"{rate:.5g}") for kind, rate in rates.items()}
        shares = {kind: rate / copy["gb_per_s"][kind] for kind, rate in row["gb_per_s"].items()}
        row["share_of_copy"] = {kind: round(share, 4) for kind, share in shares.items()}
    return {
        "case": latent.name,
        "family": latent.family,
        "shape": list(latent.shape),
        "dtype": latent.dtype,
        "elements": latent.elements,
        "least_bytes": least,
        "copy": copy,
    }
