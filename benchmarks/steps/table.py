"""The JSON of whole steps, and its tables: for the terminal, README.md and docs/steps.md."""

from __future__ import annotations

import importlib.metadata
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine, report
from benchmarks.steps.work import OURS, THEIRS

NOTICEABLE = 0.03  # share of a step; a smaller gain counts as none
EXPLAINED = 0.01  # share of a step that the parts alone must save if the step gains
Data = dict[str, Any]

LEGEND = """\
theirs, ours: least wall time of a step; ratio: how many times as long theirs takes, by the median
of the rounds' ratios, by least wall time and by least processor time; latent, loss: what share of
the step each takes, theirs and ours, from least wall times of the parts alone"""
HEAD = (
    f"{'case':20}{'theirs':>9}{'ours':>9}  median minima processor"
    f"  {'latent':>13}{'loss':>15}  verdict"
)


def new(argv: Sequence[str], settings: dict[str, Any], packages: Sequence[str]) -> Data:
    """The head of a JSON, without results."""
    data = report.new(argv, "cpu", settings, kind=report.STEPS)
    data["command"] = shlex.join(["python", "-m", "benchmarks.steps", *report.kept(argv)])
    for package in packages:
        try:
            data["versions"][package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            data["versions"][package] = None
    del data["results"], data["training"]
    return data | {"steps": []}


def read(path: Path) -> Data:
    return report.read(path, (report.STEPS,))


def default_path(data: Data) -> Path:
    mark = "-dirty" * data["dirty"]
    name = f"steps-{machine.slug(data['machine']['device'])}-{data['commit'][:12]}{mark}.json"
    return report.RESULTS / name


def saved_by_parts(row: Data) -> float:
    """The share of the package's step that its latent and its loss alone save."""
    parts = [part["minima"] for part in row["parts"].values()]
    saved = sum(part[THEIRS]["step"] - part[OURS]["step"] for part in parts)
    return float(saved / row["variants"][THEIRS]["minima"]["step"])


def verdict(row: Data) -> str:
    """Whether the step gains. All three ratios must agree, and the parts must explain a gain.

    Both conditions guard against noise: only the latent and the loss differ, so nothing else gains.
    """
    ratios = row["ratio"].values()
    if min(ratios) > 1 + NOTICEABLE and saved_by_parts(row) > EXPLAINED:
        return "gains"
    return "slower" if max(ratios) < 1 - NOTICEABLE else "no gain"


def least(row: Data, name: str) -> str:
    return report.duration(row["variants"][name]["minima"]["step"])


def share(row: Data, part: str, arrow: str) -> str:
    """'12.1% -> 3.4%': a part's share of both steps, package first; '' without this part."""
    if part not in row["parts"]:
        return ""
    found = row["parts"][part]["share_of_step"]
    return f"{100 * found[THEIRS]:.1f}%{arrow}{100 * found[OURS]:.1f}%"


def terminal(row: Data) -> str:
    ratio = row["ratio"]
    return (
        f"{row['case']:20}{least(row, THEIRS):>9}{least(row, OURS):>9}"
        f"  {ratio['median']:6.2f} {ratio['minima']:6.2f} {ratio['processor']:9.2f}"
        f"  {share(row, 'latent', ' > '):>13}{share(row, 'loss', ' > '):>15}  {verdict(row)}"
    )


def whole(data: Data) -> str:
    rows = [LEGEND, "", HEAD, *map(terminal, data["steps"])]
    return "\n".join([*rows, *(f"{name}: {why}" for name, why in data["not_run"].items())])


# --- Markdown ------------------------------------------------------------------------------------


def _name(row: Data) -> str:
    release = f" ({row['package']} {row['release']})" if row["package"] else ""
    return row["what"] + release


def gain(row: Data, kind: str) -> str:
    """The ratio, in bold if the step gains."""
    number = report.number(row["ratio"][kind])
    found = verdict(row)
    return f"**{number}**" if found == "gains" else f"{number}, {found}"


def markdown(data: Data) -> list[str]:
    """README's table: the step, the ratio of the package's time to ours, and the shares."""
    lines = [
        "| training step | untouched | times as long as with `vae_fused` "
        "| latent, before and after | loss, before and after |",
        "|---|---|---|---|---|",
    ]
    for row in data["steps"]:
        shares = (share(row, part, " → ") for part in ("latent", "loss"))
        cells = [_name(row), least(row, THEIRS), gain(row, "minima"), *shares]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, "", *missing(data)]


def missing(data: Data) -> list[str]:
    """A line for each case that was not measured."""
    lines = [f"- Not measured: {name}: {why}." for name, why in data["not_run"].items()]
    return [*lines, ""] if lines else []


def details(data: Data) -> list[str]:
    """The table of docs/steps.md: every ratio, the isolated parts, and how well losses agree."""
    lines = [
        "| case | step: median | minima | processor | from the parts | latent alone | loss alone "
        "| difference of losses | of gradients |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in data["steps"]:
        parts = (
            report.number(row["parts"][part]["ratio"]["minima"]) if part in row["parts"] else ""
            for part in ("latent", "loss")
        )
        ratios = (report.number(row["ratio"][kind]) for kind in ("median", "minima", "processor"))
        from_parts = report.number(1 / (1 - saved_by_parts(row)))
        found = row["agreement"]
        differences = (
            f"{found[f'{of}_difference']:.0e}".replace("0e+00", "0") for of in ("loss", "gradient")
        )
        lines.append(
            "| " + " | ".join([row["case"], *ratios, from_parts, *parts, *differences]) + " |"
        )
    return [*lines, "", *missing(data)]
