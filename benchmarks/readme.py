"""Writes the measured parts of README.md from JSONs, so that each figure has a record.

    python -m benchmarks.readme benchmarks/results/FILE.json [MORE.json ...]

Two comments delimit each part. JSONs of ``python -m benchmarks`` produce the part about the latent,
which shows NAME-time.svg, drawn beside the JSON by ``python -m benchmarks.plot``. JSONs of
``python -m benchmarks.steps`` produce the part about whole steps, and its details in docs/steps.md.
A part without a JSON remains unchanged.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

from benchmarks import ROOT, report
from benchmarks.cases import FAMILIES
from benchmarks.steps import table as steps_table

README = ROOT / "README.md"
STEPS_PAGE = ROOT / "docs" / "steps.md"
BEGIN = "<!-- measured: written by `python -m benchmarks.readme`, from the JSONs that it names -->"
END = "<!-- end of what was measured -->"
STEPS_BEGIN = "<!-- whole steps: written by `python -m benchmarks.readme`, from JSONs -->"
STEPS_END = "<!-- end of the whole steps -->"
RIVALS = {
    "eager": "the formula",
    "compile": "`torch.compile`",
    "distributions": "`torch.distributions`",
    "diffusers": "diffusers",
}
DTYPE = "float32"
Data = dict[str, Any]


def ends(rows: list[Data]) -> list[Data]:
    """The smallest, the middle and the largest of more than four rows, else the two ends."""
    rows = sorted(rows, key=lambda row: row["elements"])
    picked = {0, len(rows) // 2, len(rows) - 1} if len(rows) > 4 else {0, len(rows) - 1}
    return [row for i, row in enumerate(rows) if i in picked]


def telling(data: Data, dtype: str) -> list[Data]:
    """A few representative sizes of each workload, for which vae_fused was measured."""
    rows = [r for r in data["results"] if r["dtype"] == dtype and r["base"] == "vae_fused"]
    return [row for family in FAMILIES for row in ends([r for r in rows if r["family"] == family])]


def name_of(row: Data) -> str:
    return str(row["case"]).removesuffix(row["dtype"]).strip()


def wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, 100, subsequent_indent=indent, break_on_hyphens=False)


def table(rows: list[Data], kind: str, how: str) -> list[str]:
    """Times of vae_fused, and the others' times as multiples of them."""
    rivals = [name for name in RIVALS if any(name in row["contenders"] for row in rows)]
    lines = [
        f"| latent | `vae_fused`{how} | " + " | ".join(RIVALS[name] for name in rivals) + " |",
        "|---" * (2 + len(rivals)) + "|",
    ]
    for row in rows:
        figures = row["contenders"]
        ratios = (report.number(figures[n]["ratio"][kind]) if n in figures else "" for n in rivals)
        median = report.duration(figures["vae_fused"]["times"][kind]["median"])
        lines.append(f"| {name_of(row)} | {median} | " + " | ".join(ratios) + " |")
    return [*lines, ""]


def slower(rows: list[Data], kind: str) -> list[str]:
    """The cases in which the eager formula is faster."""
    eager = [(name_of(row), row["contenders"].get("eager")) for row in rows]
    lost = [name for name, figures in eager if figures and figures["ratio"][kind] < 1.0]
    if not lost:
        return []
    return [*wrapped(f"Slower than the formula here: {', '.join(lost)}."), ""]


def training(rows: list[Data]) -> list[str]:
    """The time saved in a whole step."""
    lines = []
    for row in rows:
        if saved := row["saved_of_eager_step"]:
            share, error = saved["share"], saved["standard_error"]
            noise = ", which is no more than noise" if abs(share) < 2 * error else ""
            text = (
                f"- {row['training']} ({row['what']}): {100 * share:.1f}% ± {100 * error:.1f}% of "
                f"the step with the formula{noise}."
            )
            lines += wrapped(text, "  ")
    return ["What it saves of a whole training step, all else alike:", "", *lines, ""] * bool(lines)


def head(path: Path, data: Data, page: Path) -> list[str]:
    """The machine, date and versions of a JSON."""
    m, cuda = data["machine"], data["machine"]["kind"] == "cuda"
    threads = f", {m['threads']} thread{'s' * (m['threads'] > 1)}"
    others = report.others(data)
    busy = f" (other work took {others:.0%} of the processors)" * (others > report.DISTURBED)
    link = "../" * (page == STEPS_PAGE) + path.relative_to(ROOT).as_posix()
    return [
        f"**{m['device'] + threads * (not cuda)}**{busy}, torch {data['versions']['torch']}, "
        f"{data['date'][:10]},",
        f"`{data['command']}`,",
        f"[commit {data['commit']}{' with changes' * data['dirty']}]({link}).",
    ]


def section(path: Path, data: Data) -> list[str]:
    """README's section for one JSON."""
    m, cuda = data["machine"], data["machine"]["kind"] == "cuda"
    threads = f", {m['threads']} thread{'s' * (m['threads'] > 1)}"
    device = m["device"] + threads * (not cuda)
    rows = telling(data, DTYPE)
    lines = [
        *head(path, data, README),
        f"Forward and backward of the latent, {DTYPE}, medians; the others as multiples of it",
        "([how that is measured](CONTRIBUTING.md#benchmarks)):",
        "",
    ]
    figure = path.with_name(f"{path.stem}-time.svg")
    if figure.exists():
        link = figure.relative_to(ROOT).as_posix()
        lines += [f"![Time of a step against elements, {device}]({link})", ""]
    lines += table(rows, "step", "")
    if cuda:
        lines += table(rows, "step_wall", " by the wall clock, host included")
    shown = {row["family"]: FAMILIES[row["family"]].what for row in rows}
    lines += [*wrapped("; ".join(f"{name}: {what}" for name, what in shown.items()) + "."), ""]
    return [*lines, *slower(rows, "step_wall" if cuda else "step"), *training(data["training"])]


def measured(paths: list[Path]) -> str:
    """The whole part with its delimiting comments."""
    found = [report.read(path) for path in paths]
    lines = [line for path, data in zip(paths, found, strict=True) for line in section(path, data)]
    if not any(data["machine"]["kind"] == "cuda" for data in found):
        lines += ["No GPU has been measured yet; what is said of CUDA is a prediction.", ""]
    return "\n".join([BEGIN, "", *lines, END])


def whole_steps(paths: list[Path], page: Path) -> str:
    """The part about whole steps with its comments: README's table, or the details for docs."""
    lines = []
    for path in paths:
        data = steps_table.read(path)
        rows = steps_table.details(data) if page == STEPS_PAGE else steps_table.markdown(data)
        lines += [*head(path, data, page), "", *rows]
    return "\n".join([STEPS_BEGIN, "", *lines, STEPS_END])


def replaced(text: str, part: str) -> str:
    """The page with a new measured part, which begins and ends with its comments."""
    begin, end = part.split("\n", 1)[0], part.rsplit("\n", 1)[1]
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"the page lacks the comments {begin} and {end}")
    return pattern.sub(lambda _: part, text)


def sources(text: str, begin: str = BEGIN, end: str = END) -> list[Path]:
    """The JSONs behind a measured part, in order."""
    part = text[text.index(begin) : text.index(end)]
    links = re.findall(r"\[commit [^]]+\]\((?:\.\./)?([^)]+\.json)\)", part)
    return [ROOT / link for link in links]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.readme",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", type=Path, nargs="+", help="in benchmarks/results")
    args = parser.parse_args(argv)
    kinds: dict[str, list[Path]] = {report.KIND: [], report.STEPS: []}
    try:
        for path in args.files:
            kinds[report.read(path, tuple(kinds))["kind"]].append(path.resolve())
        if latents := kinds[report.KIND]:
            write(README, measured(latents))
        if steps := kinds[report.STEPS]:
            for page in (README, STEPS_PAGE):
                write(page, whole_steps(steps, page))
    except (report.NotAReport, ValueError) as error:
        parser.error(str(error))
    return 0


def write(page: Path, part: str) -> None:
    """Replace a part of a page, and report the JSONs that the page no longer shows."""
    before = page.read_text(encoding="utf-8")
    text = replaced(before, part)
    page.write_text(text, encoding="utf-8")
    print(f"written: {page}")
    marks = part.split("\n", 1)[0], part.rsplit("\n", 1)[1]
    for path in set(sources(before, *marks)) - set(sources(text, *marks)):
        print(f"no longer shown: {path}")


if __name__ == "__main__":
    sys.exit(main())
