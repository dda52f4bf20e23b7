"""The steps that run the torch-free probe, and the parser of its output.

The probe writes one JSON object per result, so a run that crashes or is stopped keeps its results.
"""

from __future__ import annotations

import math
from collections import Counter
from operator import itemgetter
from pathlib import Path
from typing import Any

from gpu_checks.bundle import Bundle
from gpu_checks.package import Place
from gpu_checks.processes import Finished
from gpu_checks.report import FAIL, NOT_RUN, PASS, Promise, read_lines
from gpu_checks.schedule import Outcome

NO_DEVICE = 2  # exit status
HEADLINE = ("contender", "us", "gb_s", "share_of_copy", "share_of_roof")
MOST = 45  # seconds after which later steps are more valuable than the probe's figures
TITLES = {
    "correctness": "the probe's kernels agree with the host's formulas",
    "bandwidth": "the probe measures its kernels, each checked before it is timed",
}


def command(place: Place, bundle: Bundle, section: str, *options: str) -> list[str]:
    tiny = ["--tiny"] if place.device == "cpu" and "--tiny" not in options else []
    return [str(bundle.probe), "--section", section, *tiny, *options]


def verdict(row: dict[str, Any]) -> str:
    """pass, fail or info; '' for a line without a result, such as the one about the device."""
    if row.get("kind") in ("device", "skipped", "summary"):
        return ""
    return str(row.get("verdict") or row.get("status") or "info").lower()


def name_of(row: dict[str, Any]) -> str:
    words = [row.get(key) for key in ("name", "case", "contender", "direction", "dtype", "error")]
    return " ".join(str(word) for word in words if word) or "?"


def headlines(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The shipped kernel and the fastest other kernel of each timed case.

    The probe's own file has all rows.
    """
    found = []
    timed = [
        row for row in rows if isinstance(row.get("us"), (int, float)) and row.get("contender")
    ]
    for key in dict.fromkeys((row.get("case"), row.get("mode")) for row in timed):
        mine = [row for row in timed if (row.get("case"), row.get("mode")) == key]
        line: dict[str, Any] = {"case": key[0], "mode": key[1]}
        for group in ("shipped", "copy", "roof", "variant"):
            best = min(
                (r for r in mine if r.get("group") == group), key=itemgetter("us"), default={}
            )
            line[group] = {name: best[name] for name in HEADLINE if name in best}
        found.append(line)
    return found


def table(figures: dict[str, Any]) -> list[str]:
    """The shares of a copy's rate, one line for each case."""
    lines = []
    for line in figures.get("headlines", []):
        shares = [line[group].get("share_of_copy") for group in ("shipped", "roof", "variant")]
        words = [
            f"{share:7.3f}" if isinstance(share, (int, float)) else "      -" for share in shares
        ]
        case = f"{line['case']}, {line['mode']}"[:50]
        lines.append(f"{case:<50}{''.join(words)}  {line['variant'].get('contender', '')}"[:100])
    head = f"{'share of a copy':<50}shipped   roof   best variant"
    return ["", head, *lines] if lines else []


def judge(section: str, rows: list[dict[str, Any]], done: Finished) -> Promise:
    title = TITLES[section]
    counts = Counter(verdict(row) for row in rows)
    failed = [name_of(row) for row in rows if verdict(row) == "fail"]
    good = counts["pass"] + counts["info"]
    measured = f"{good} of {good + len(failed)}"
    if failed:
        names = ", ".join(failed[:4]) + (", ..." if len(failed) > 4 else "")
        return Promise(title, FAIL, "", measured, f"{len(failed)} wrong: {names}")
    if done.status == NO_DEVICE:
        return Promise(title, NOT_RUN, detail=f"not run: the probe sees no device: {done.tail(2)}")
    if done.status == 0 and good:
        return Promise(title, PASS, "", measured)
    after = f", after {name_of(rows[-1])}" if rows else ""
    detail = f"{done.ended()}{after}: {done.tail(3)}"
    if done.status == 1 or done.crashed:
        return Promise(title, FAIL, "", measured, detail)
    return Promise(title, NOT_RUN, "", measured, f"not run to its end: {detail}")


def run(place: Place, bundle: Bundle, section: str, seconds: float, out: Path) -> Outcome:
    """Run one section of the probe. Its output is kept as a file in the report's folder."""
    if bundle.probe is None:
        reason = f"not run: {bundle.problem or 'the bundle has no probe'}"
        return Outcome([Promise(TITLES[section], NOT_RUN, detail=reason)], reason=reason)
    out.unlink(missing_ok=True)
    options = ["--out", str(out)]
    if section == "bandwidth":  # it measures the most informative cases first
        options += ["--seconds", str(max(1, math.floor(min(MOST, seconds - 4))))]
    done = place.run(command(place, bundle, section, *options), seconds, f"probe-{section}")
    rows = read_lines(out)
    promise = judge(section, rows, done)
    figures = {"results": len(rows), "ended": done.ended(), "file": out.name}
    figures |= {"rows": [row for row in rows if verdict(row) != "pass"]}
    figures |= {"headlines": headlines(rows)}
    if promise.verdict != PASS:
        figures["output"] = done.tail(30)
    return Outcome([promise], figures, "" if done.status == 0 else done.ended())
