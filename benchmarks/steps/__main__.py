"""Times whole training steps of released packages, unmodified and with ``vae_fused``.

    python -m benchmarks.steps                       measures all cases, in ten minutes
    python -m benchmarks.steps --cases scvi,pythae   cases whose names contain one of these
    python -m benchmarks.steps --list                lists the cases, without measuring
    python -m benchmarks.steps --show FILE.json      prints an older table

A step is forward, backward and ``optimizer.step()`` on one batch that stays in memory. Before
timing, the losses and all gradients of both variants are compared for the same noise. The variants
then take turns in this process, as do the latent and the likelihood alone. The table names packages
that are not installed: ``pip install -r requirements/steps.txt``. The JSON is written to
benchmarks/results or to --json. With a selection, it is written only if --json is given. The exit
status is 0, or 1 if a case fails or its loss differs from its package's.
"""

from __future__ import annotations

import sys

from benchmarks import command, record
from benchmarks.cases import Case, Row
from benchmarks.measuring import FEWEST, Samples, interleaved, ratios, spread
from benchmarks.steps import images, sequences, single_cell, table, weights
from benchmarks.steps.work import OURS, THEIRS

SECONDS = 20.0
CASES = [*single_cell.CASES, *images.CASES, *weights.CASES, *sequences.CASES]
VARIANTS = (THEIRS, OURS)


def minima(samples: Samples) -> dict[str, float]:
    """Return the minimum times in microseconds."""
    return {kind: float(f"{1e6 * min(samples[kind]):.5g}") for kind in ("step", "processor")}


def measure(case: Case, device: str, seconds: float, fewest: int = FEWEST) -> Row:
    """Time both variants and their isolated parts in turn. Raise Unable or Wrong."""
    contest, agreement = case.checked(device)
    contests = {"step": contest, **contest.parts}
    keys = [(part, name) for part in contests for name in VARIANTS]
    steps = {f"{part} {name}": contests[part].step(name) for part, name in keys}
    samples, others = interleaved(steps, device, seconds, fewest)
    for found in samples.values():  # on a GPU the whole step includes the host's time
        found["step"] = found.pop("step_wall", found["step"])
    times = {part: {name: samples[f"{part} {name}"] for name in VARIANTS} for part in contests}
    least = {part: {name: minima(times[part][name]) for name in VARIANTS} for part in contests}
    whole = {name: min(times["step"][name]["step"]) for name in VARIANTS}

    def shown(samples: Samples) -> Row:
        return {k: spread(samples[k]) for k in ("forward", "backward", "step", "processor")}

    def isolated(part: str) -> Row:
        shares = {name: min(times[part][name]["step"]) / whole[name] for name in VARIANTS}
        return {
            "ratio": ratios(times[part][THEIRS], times[part][OURS]),
            "share_of_step": {name: round(share, 4) for name, share in shares.items()},
            "minima": least[part],
        }

    return {
        "case": case.name,
        "package": case.package,
        "release": case.release,
        "what": case.what,
        "parameters": sum(p.numel() for p in contest.leaves),
        "target": case.targets.get(THEIRS),
        "agreement": agreement,
        "variants": {
            name: {"times": shown(times["step"][name]), "minima": least["step"][name]}
            for name in VARIANTS
        },
        "ratio": ratios(times["step"][THEIRS], times["step"][OURS]),
        "parts": {part: isolated(part) for part in contest.parts},
        "others": others,
    }


def main(argv: list[str] | None = None) -> int:
    def measured(case: Case, data: record.Data, device: str, seconds: float) -> str:
        data["steps"].append(row := measure(case, device, seconds))
        return table.terminal([row])[1]

    head = f"{table.LEGEND}\n\n{table.terminal([])[0]}"
    return command.main(table.MODULE, __doc__, argv, CASES, SECONDS, measured, table.whole, head)


if __name__ == "__main__":
    sys.exit(main())
