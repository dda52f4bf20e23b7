"""Verdicts on the results of the driver programs, from their figures alone."""

from __future__ import annotations

from typing import Any

from gpu_checks.report import FAIL, NOT_RUN, PASS, Promise, at_least

# The share of a copy's rate that each group of cases must reach. The target of the option families
# is a guess, because the cost of options has not been measured on a GPU.
TARGETS = {
    "contiguous": 0.90, "rows": 0.80, "chunked": 0.80, "channels_last": 0.80, "family": 0.50,
}  # fmt: skip


def judge_bandwidth(rows: list[dict[str, Any]]) -> list[Promise]:
    """The worst ratio to a copy of each group, dtype and direction."""
    promises = []
    keys = dict.fromkeys((r["group"], r["dtype"], w) for r in rows for w in ("forward", "backward"))
    for group, dtype, way in keys:
        mine = [r for r in rows if (r["group"], r["dtype"]) == (group, dtype)]
        name = f"{group.replace('_', ' ')}, {dtype}, {way}: share of a copy's rate"
        promises.append(judge_group(name, TARGETS.get(group), mine, way))
    return promises


def judge_group(name: str, target: float | None, rows: list[dict[str, Any]], way: str) -> Promise:
    """Without a target the ratio is only recorded, and the promise is that it was measured."""
    done = [row for row in rows if way in row]
    errors = [row["error"] for row in rows if "error" in row]
    bound = f">= {target}" if target else ""
    if not done:
        skipped = rows[0].get("skipped")
        if skipped and not errors:
            return Promise(name, NOT_RUN, bound, "", f"not run: {skipped}")
        return Promise(name, FAIL, bound, "", errors[0] if errors else "no figures")
    worst = min(done, key=lambda row: row[way]["ratio"])
    figures = worst[way]
    detail = (
        f"worst of {len(done)}: {worst['case']}, {figures['us']:.1f} us, "
        f"{figures['gb_per_s']:.0f} GB/s, the copy {figures['copy_gb_per_s']:.0f}, "
        f"the same streams {figures['streams_gb_per_s']:.0f}"
    )
    if not figures.get("mode", "graph").startswith("graph"):
        detail += f"; timed as {figures['mode']}"
    left = [row["case"] for row in rows if way not in row]
    if left:
        detail += f"; not measured: {', '.join(left)}"
    promise = at_least(name, target or 0.0, figures["ratio"], detail)
    promise.target = bound
    if errors:
        promise.verdict = FAIL
    elif left and promise.verdict != FAIL:
        promise.verdict = NOT_RUN
    return promise


def judge_likelihoods(rows: list[dict[str, Any]]) -> list[Promise]:
    """The likelihoods' share of a copy's rate, for the record, and their speedup over eager."""
    steps = [row for row in rows if "step" in row]
    return judge_bandwidth([row for row in rows if "step" not in row]) + judge_steps(steps)


def judge_steps(rows: list[dict[str, Any]]) -> list[Promise]:
    """The speedup of a step over each rival, and the bytes that it keeps for backward."""
    promises = []
    for row in rows:
        us = row["us"]
        for rival, target in row["targets"].items():
            name = f"step {row['step']}: times as fast as {rival}"
            missing = next((n for n in ("vae_fused", rival) if n not in us), None)
            if missing == "vae_fused":
                reason = row["unable"].get(missing, "not measured")
                promises.append(Promise(name, FAIL, f">= {target}", "", reason))
                continue
            if missing:
                reason = row["unable"].get(missing, "not measured")
                promises.append(at_least(name, target, None, f"not run: {missing}: {reason}"))
                continue
            detail = f"{us['vae_fused']:.1f} us, {rival} {us[rival]:.1f} us ({row['clock']} time)"
            promises.append(at_least(name, target, us[rival] / us["vae_fused"], detail))
        kept = row.get("kept_bytes", {}).get("vae_fused")
        if row["clock"] == "device" and "kept_bytes" in row:
            name = f"step {row['step']}: bytes kept for backward"
            verdict = NOT_RUN if kept is None else PASS if kept <= 1024 else FAIL
            promises.append(Promise(name, verdict, "<= 1024", "" if kept is None else str(kept)))
    return promises
