"""Writes the measured parts of README.md from JSONs, so that each figure has a record.

    python -m benchmarks.readme benchmarks/results/FILE.json [MORE.json ...]

Two comments delimit each part. The part about the latent is generated from JSONs of ``python -m
benchmarks``, and shows the figures that ``python -m benchmarks.plot`` drew from them. The part
about whole steps and its details in docs/steps.md are generated from JSONs of ``python -m
benchmarks.steps``. Parts without a JSON remain unchanged.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from benchmarks import ROOT, command, record
from benchmarks.latents import FAMILIES
from benchmarks.record import Data
from benchmarks.steps import table as steps_table
from benchmarks.tables import busy, duration, markdown, number, wrapped

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


def ends(rows: list[Data]) -> list[Data]:
    """Return the smallest, middle and largest of more than four rows, otherwise the two ends."""
    rows = sorted(rows, key=lambda row: int(row["elements"]))
    picked = {0, len(rows) // 2, len(rows) - 1} if len(rows) > 4 else {0, len(rows) - 1}
    return [row for i, row in enumerate(rows) if i in picked]


def telling(data: Data) -> list[Data]:
    """Return a few representative sizes of each workload, for which vae_fused was measured."""
    rows = [r for r in data["results"] if r["dtype"] == DTYPE and r["base"] == "vae_fused"]
    return [row for family in FAMILIES for row in ends([r for r in rows if r["family"] == family])]


def name_of(row: Data) -> str:
    return str(row["case"]).removesuffix(row["dtype"]).strip()


def table(rows: list[Data], kind: str, how: str = "") -> list[str]:
    """Return a table of vae_fused's times, and of the others' times as multiples of these."""
    rivals = [name for name in RIVALS if any(name in row["contenders"] for row in rows)]
    titles = ["latent", f"`vae_fused`{how}", *(RIVALS[name] for name in rivals)]
    lines = []
    for row in rows:
        found = row["contenders"]
        ratios = (number(found[n]["ratio"][kind]) if n in found else "" for n in rivals)
        median = duration(found["vae_fused"]["times"][kind]["median"])
        lines.append([name_of(row), median, *ratios])
    return markdown(titles, lines)


def slower(rows: list[Data], kind: str) -> list[str]:
    """Return the cases in which the eager formula is faster."""
    eager = [(name_of(row), row["contenders"].get("eager")) for row in rows]
    lost = [name for name, figures in eager if figures and figures["ratio"][kind] < 1.0]
    return [*wrapped(f"Slower than the formula here: {', '.join(lost)}."), ""] * bool(lost)


def device(data: Data) -> str:
    m = data["machine"]
    threads = f", {m['threads']} thread{'s' * (m['threads'] > 1)}"
    return f"{m['device']}{threads * (m['kind'] == 'cpu')}"


def head(path: Path, data: Data, page: Path) -> list[str]:
    """Return the machine, date and versions of a JSON."""
    link = "../" * (page == STEPS_PAGE) + path.relative_to(ROOT).as_posix()
    return [
        f"**{device(data)}**{busy(data)}, torch {data['versions']['torch']}, {data['date'][:10]},",
        f"`{data['command']}`,",
        f"[commit {data['commit']}{' with changes' * data['dirty']}]({link}).",
    ]


def section(path: Path, data: Data) -> list[str]:
    """README's section for one JSON."""
    rows, cuda = telling(data), data["machine"]["kind"] == "cuda"
    lines = [
        *head(path, data, README),
        f"`vae_fused`: median times of forward and backward of the latent in {DTYPE}.",
        "The columns to its right are multiples of these times",
        "([how they are measured](CONTRIBUTING.md#benchmarks)).",
        "",
    ]
    figure = path.with_name(f"{path.stem}-time.svg")
    if figure.exists():
        link = figure.relative_to(ROOT).as_posix()
        lines += [f"![Time of a step against elements, {device(data)}]({link})", ""]
    lines += table(rows, "step")
    if cuda:
        lines += table(rows, "step_wall", " by the wall clock, host included")
    shown = {row["family"]: FAMILIES[row["family"]].what for row in rows}
    lines += [*wrapped("; ".join(f"{name}: {what}" for name, what in shown.items()) + "."), ""]
    return [*lines, *slower(rows, "step_wall" if cuda else "step")]


def measured(paths: list[Path]) -> str:
    """Return the whole part with its delimiting comments."""
    found = [record.read(path, "benchmarks") for path in paths]
    lines = [line for path, data in zip(paths, found, strict=True) for line in section(path, data)]
    if not any(data["machine"]["kind"] == "cuda" for data in found):
        lines += ["No GPU has been measured yet. Statements about CUDA are predictions.", ""]
    return "\n".join([BEGIN, "", *lines, END])


def whole_steps(paths: list[Path], page: Path) -> str:
    """Return the part about whole steps, with its comments: README's table or the details."""
    rows, lines = steps_table.details if page == STEPS_PAGE else steps_table.markdown, []
    for path in paths:
        data = record.read(path, steps_table.MODULE)
        lines += [*head(path, data, page), "", *rows(data)]
    return "\n".join([STEPS_BEGIN, "", *lines, STEPS_END])


def sources(text: str, begin: str = BEGIN, end: str = END) -> list[Path]:
    """Return the JSONs from which a part was generated, in order."""
    part = text[text.index(begin) : text.index(end)]
    links = re.findall(r"\[commit [^]]+\]\((?:\.\./)?([^)]+\.json)\)", part)
    return [ROOT / link for link in links]


def write(page: Path, part: str) -> None:
    """Replace a part of a page."""
    marks = part.split("\n", 1)[0], part.rsplit("\n", 1)[1]
    before = page.read_text(encoding="utf-8")
    pattern = re.compile(".*?".join(map(re.escape, marks)), re.DOTALL)
    if not pattern.search(before):
        raise ValueError(f"{page} lacks the comments {' and '.join(marks)}")
    page.write_text(pattern.sub(lambda _: part, before), encoding="utf-8")
    print(f"written: {page}")


def main(argv: list[str] | None = None) -> int:
    parser = command.described("benchmarks.readme", __doc__)
    parser.add_argument("files", type=Path, nargs="+", help="in benchmarks/results")
    args = parser.parse_args(argv)
    try:
        found = [(path.resolve(), record.read(path, "benchmarks", steps_table.MODULE))
                 for path in args.files]  # fmt: skip
        steps = [path for path, data in found if "steps" in data]
        if latents := [path for path, data in found if "results" in data]:
            write(README, measured(latents))
        for page in (README, STEPS_PAGE) if steps else ():
            write(page, whole_steps(steps, page))
    except (record.NotARecord, ValueError) as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
