"""The tables of whole steps: for the terminal, README.md and docs/steps.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks import tables
from benchmarks.record import Data
from benchmarks.steps.work import OURS, THEIRS
from benchmarks.tables import duration, number

MODULE = "benchmarks.steps"
NOTICEABLE = 0.03  # share of a step; a smaller gain counts as none
EXPLAINED = 0.01  # share of a step that the parts alone must save if the step gains

LEGEND = """\
theirs, ours: least wall time of a step; ratio: how many times as long theirs takes, by the median
of the rounds' ratios, by least wall time and by least processor time; latent, loss: what share of
the step each takes, theirs and ours, from least wall times of the parts alone"""
COLUMNS = (
    ("case", -23), ("theirs", 8), ("ours", 8), ("median", 7), ("minima", 7), ("processor", 10),
    ("latent", 15), ("loss", 15), ("verdict", 9),
)  # fmt: skip
RATIOS = ("median", "minima", "processor")
PARTS = ("latent", "loss")


def saved_by_parts(row: Data) -> float:
    """Return the share of the package's step that the latent and the loss alone save."""
    parts = [part["minima"] for part in row["parts"].values()]
    saved = sum(part[THEIRS]["step"] - part[OURS]["step"] for part in parts)
    return float(saved / row["variants"][THEIRS]["minima"]["step"])


def verdict(row: Data) -> str:
    """Return the verdict. To guard against noise, all three ratios must agree. In addition, the
    latent and the loss, which alone can become faster, must account for a gain.
    """
    ratios = row["ratio"].values()
    if min(ratios) > 1 + NOTICEABLE and saved_by_parts(row) > EXPLAINED:
        return "gains"
    return "slower" if max(ratios) < 1 - NOTICEABLE else "no gain"


def least(row: Data, name: str) -> str:
    return duration(row["variants"][name]["minima"]["step"])


def shares(row: Data, arrow: str) -> list[str]:
    """Return '12.1% -> 3.4%' for each part: its share of their step and of ours; '' if missing."""
    found = (row["parts"].get(part, {}).get("share_of_step") for part in PARTS)
    return [f"{100 * f[THEIRS]:.1f}%{arrow}{100 * f[OURS]:.1f}%" if f else "" for f in found]


def terminal(rows: Sequence[Data]) -> list[str]:
    """The titles, and a line for each row."""
    cells = []
    for row in rows:
        times = [least(row, name) for name in (THEIRS, OURS)]
        ratios = [f"{row['ratio'][kind]:.2f}" for kind in RATIOS]
        cells.append([row["case"], *times, *ratios, *shares(row, " > "), verdict(row)])
    return tables.aligned(COLUMNS, cells)


def whole(data: Data) -> str:
    rows = [LEGEND, "", *terminal(data["steps"]), *tables.not_run(data)]
    return "\n".join([tables.head(data), "", *rows])


# --- Markdown ------------------------------------------------------------------------------------


def markdown(data: Data) -> list[str]:
    """Return README's table of the steps that gain, sorted by ratio, and a line with the others."""
    titles = ("training step", "untouched", "with `vae_fused`", "times as fast")
    rows, others = [], []
    for row in sorted(data["steps"], key=lambda row: -float(row["ratio"]["minima"])):
        ratio = number(row["ratio"]["minima"])
        if (found := verdict(row)) == "gains":
            name = row["what"] + f" ({row['package']} {row['release']})" * bool(row["package"])
            rows.append([name, least(row, THEIRS), least(row, OURS), ratio])
        else:
            others.append(f"{row['case']} {ratio}" + ", slower" * (found == "slower"))
    rule = "Not all [three ratios](docs/steps.md#how-it-is-measured) of these steps show a gain"
    text = f"{rule}: {'; '.join(others)}."
    return [*_page(data, titles, rows), *[*tables.wrapped(text), ""] * bool(others)]


def details(data: Data) -> list[str]:
    """Return the table of docs/steps.md: every ratio, the parts, and how well losses agree."""
    titles = (
        "case", "step: median", "minima", "processor", "verdict", "latent's share of the step",
        "loss's share", "from the parts", "latent alone", "loss alone", "difference of losses",
        "of gradients",
    )  # fmt: skip
    rows = []
    for row in data["steps"]:
        parts = (row["parts"].get(part) for part in PARTS)
        found = [row["agreement"][f"{of}_difference"] for of in ("loss", "gradient")]
        rows.append([
            row["case"],
            *(number(row["ratio"][kind]) for kind in RATIOS),
            verdict(row),
            *shares(row, " → "),
            number(1 / (1 - saved_by_parts(row))),
            *(number(part["ratio"]["minima"]) if part else "" for part in parts),
            *(f"{difference:.0e}".replace("0e+00", "0") for difference in found),
        ])  # fmt: skip
    return _page(data, titles, rows)


def _page(data: Data, titles: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a table, and a line for each case that was not measured."""
    missing = [f"- Not measured: {name}: {why}." for name, why in data["not_run"].items()]
    return [*tables.markdown(titles, rows), *missing, *[""] * bool(missing)]
