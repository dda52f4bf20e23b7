"""Writes the measured part of README.md from JSONs, so that each of its figures has one.

    python -m benchmarks.readme benchmarks/results/FILE.json [MORE.json ...]

The part stands between two comments. It shows NAME-time.svg, which ``python -m benchmarks.plot``
draws beside the JSON.
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

README = ROOT / "README.md"
BEGIN = "<!-- measured: written by `python -m benchmarks.readme`, from the JSONs that it names -->"
END = "<!-- end of what was measured -->"
RIVALS = {
    "eager": "the formula",
    "compile": "`torch.compile`",
    "distributions": "`torch.distributions`",
    "diffusers": "diffusers",
}
DTYPE = "float32"
Data = dict[str, Any]


def ends(rows: list[Data]) -> list[Data]:
    """The smallest, the middle and the largest of more than four, the ends of fewer."""
    rows = sorted(rows, key=lambda row: row["elements"])
    picked = {0, len(rows) // 2, len(rows) - 1} if len(rows) > 4 else {0, len(rows) - 1}
    return [row for i, row in enumerate(rows) if i in picked]


def telling(data: Data, dtype: str) -> list[Data]:
    """A few sizes of each family, where vae_fused was measured."""
    rows = [r for r in data["results"] if r["dtype"] == dtype and r["base"] == "vae_fused"]
    return [row for family in FAMILIES for row in ends([r for r in rows if r["family"] == family])]


def name_of(row: Data) -> str:
    return str(row["case"]).removesuffix(row["dtype"]).strip()


def wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, 100, subsequent_indent=indent, break_on_hyphens=False)


def table(rows: list[Data], kind: str, how: str) -> list[str]:
    """Times of vae_fused, and the others' as multiples of them."""
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
    """The cases that the eager formula wins."""
    eager = [(name_of(row), row["contenders"].get("eager")) for row in rows]
    lost = [name for name, figures in eager if figures and figures["ratio"][kind] < 1.0]
    if not lost:
        return []
    return [*wrapped(f"Slower than the formula here: {', '.join(lost)}."), ""]


def training(rows: list[Data]) -> list[str]:
    """What a whole step saves."""
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


def section(path: Path, data: Data) -> list[str]:
    """What README says of one JSON."""
    m, cuda = data["machine"], data["machine"]["kind"] == "cuda"
    threads = f", {m['threads']} thread{'s' * (m['threads'] > 1)}"
    device = m["device"] + threads * (not cuda)
    others = report.others(data)
    busy = f" (other work took {others:.0%} of the processors)" * (others > report.DISTURBED)
    rows = telling(data, DTYPE)
    lines = [
        f"**{device}**{busy}, torch {data['versions']['torch']}, {data['date'][:10]},",
        f"`{data['command']}`,",
        f"[commit {data['commit']}{' with changes' * data['dirty']}]"
        f"({path.relative_to(ROOT).as_posix()}).",
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
    """The whole part, with its comments."""
    found = [report.read(path) for path in paths]
    lines = [line for path, data in zip(paths, found, strict=True) for line in section(path, data)]
    if not any(data["machine"]["kind"] == "cuda" for data in found):
        lines += ["No GPU has been measured yet; what is said of CUDA is a prediction.", ""]
    return "\n".join([BEGIN, "", *lines, END])


def replaced(text: str, part: str) -> str:
    """README with its measured part anew."""
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    if not pattern.search(text):
        raise ValueError("README.md lacks the comments between which the measured part stands")
    return pattern.sub(lambda _: part, text)


def sources(text: str) -> list[Path]:
    """The JSONs that README's measured part is from, in their order."""
    part = text[text.index(BEGIN) : text.index(END)]
    return [ROOT / link for link in re.findall(r"\[commit [^]]+\]\(([^)]+\.json)\)", part)]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.readme",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", type=Path, nargs="+", help="in benchmarks/results")
    args = parser.parse_args(argv)
    try:
        part = measured([path.resolve() for path in args.files])
        before = README.read_text(encoding="utf-8")
        text = replaced(before, part)
    except (report.NotAReport, ValueError) as error:
        parser.error(str(error))
    README.write_text(text, encoding="utf-8")
    print(f"written: {README}")
    for path in set(sources(before)) - set(sources(text)):
        print(f"no longer shown: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
