"""The JSON, the table, and the comparison with an older JSON."""

from __future__ import annotations

import json
import re
import shlex
import statistics
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks import ROOT, machine
from benchmarks.running import COPY, Row

SCHEMA = 1
KIND = "vae_fused benchmarks"
STEPS = "vae_fused whole steps"  # of python -m benchmarks.steps
WIDTH = 100
DISTURBED = 0.1  # share of other work above which the report contains a remark
RESULTS = ROOT / "benchmarks" / "results"
FILES = ("--json", "--compare")  # options that do not affect the measurement


def kept(argv: Sequence[str]) -> list[str]:
    """The arguments that affect the measurement, without the names of files."""
    found: list[str] = []
    words = iter(argv)
    for word in words:
        if word in FILES:
            next(words, None)
        elif not word.startswith(tuple(f"{option}=" for option in FILES)):
            found.append(word)
    return found


def command(argv: Sequence[str]) -> str:
    """The command line that repeats a run."""
    return shlex.join(["python", "-m", "benchmarks", *kept(argv)])


def new(
    argv: Sequence[str], device: str, settings: dict[str, Any], kind: str = KIND
) -> dict[str, Any]:
    """The head of a JSON, without results."""
    name, dirty = machine.commit()
    return {
        "kind": kind,
        "schema": SCHEMA,
        "command": command(argv),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": name,
        "dirty": dirty,
        "machine": machine.machine(device),
        "versions": machine.versions(),
        "settings": settings,
        "seconds": 0.0,
        "results": [],
        "training": [],
        "not_run": {},
    }


def default_path(data: dict[str, Any], quick: bool) -> Path:
    device = machine.slug(data["machine"]["device"])
    marks = ("-quick" if quick else "") + ("-dirty" if data["dirty"] else "")
    return RESULTS / f"bench-{device}-{data['commit'][:12]}{marks}.json"


def others(data: dict[str, Any]) -> float:
    """The median over the cases of the share of processor time that other work took."""
    rows = [row for name in ("results", "training", "steps") for row in data.get(name, ())]
    shares = [row["others"] or 0.0 for row in rows]
    return statistics.median(shares) if shares else 0.0


def write(data: dict[str, Any], path: Path) -> None:
    """Rewrite the whole file, so that it is complete whenever the run ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")
    text = json.dumps(data, indent=1)
    text = re.sub(r"\{[^{}]*\}", lambda found: " ".join(found[0].split()), text)  # a line per leaf
    scratch.write_text(text + "\n", encoding="utf-8")
    scratch.replace(path)


class NotAReport(Exception):
    """A file that is not one of these JSONs."""


def read(path: Path, kinds: Sequence[str] = (KIND,)) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NotAReport(f"{path}: {error}") from error
    kind = data.get("kind") if isinstance(data, dict) else None
    if kind not in kinds or data.get("schema") != SCHEMA:
        raise NotAReport(f"{path} is not a JSON of {' or '.join(kinds)}, schema {SCHEMA}")
    return data


# --- the table -----------------------------------------------------------------------------------


def duration(us: float | None) -> str:
    """Three significant digits: '106 us', '4.10 ms'."""
    if us is None:
        return ""
    for unit, scale in (("us", 1.0), ("ms", 1e3), ("s", 1e6)):
        if us < 999.5 * scale or unit == "s":
            value = us / scale
            digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
            return f"{value:.{digits}f} {unit}"
    raise AssertionError


def number(value: float) -> str:
    """Three significant digits, never an exponent: '0.006', '12.0', '1024'."""
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def uncertainty(stat: dict[str, float]) -> str:
    """Half the interquartile range over the median; smaller differences mean nothing."""
    return f"{min(999, 50 * (stat['q3'] - stat['q1']) / stat['median']):.0f}%"


def change(ratio: float) -> str:
    return f"{ratio - 1:+.0%}" if ratio < 10 else f"x{ratio:.0f}"


def head(data: dict[str, Any]) -> str:
    m, v = data["machine"], data["versions"]
    where = f"{m['threads']} of {m['cores']} threads, {m['cpu_capability']}"
    if m["kind"] == "cuda":
        where = f"compute capability {m['capability']}, driver {m['driver']}, CUDA {v['cuda']}"
    dirty = " with changes" if data["dirty"] else ""
    return (
        f"{m['device']} ({where})\n"
        f"torch {v['torch']}, vae_fused {v['vae_fused']}, commit {data['commit']}{dirty}"
    )


LEGEND = """\
step: forward and backward, median; ±: half the distance of its quartiles; ratio: of the step to
that of the first line; kept: bytes per element saved for backward; peak: bytes per element
allocated at once; ops: {ops};
rate: least bytes of the step per second, as a share of what a copy of them reaches"""
ON_CPU = "operators of both passes"
ON_CUDA = "launches of both passes; wall: steps in a row, with the host"


def legend(kind: str) -> str:
    return LEGEND.format(ops=ON_CUDA if kind == "cuda" else ON_CPU)


Columns = Sequence[tuple[str, int]]  # titles and widths
COLUMNS = (
    ("", 26), ("step", 9), ("±", 5), ("ratio", 7), ("forward", 9), ("backward", 9), ("wall", 9),
    ("kept", 7), ("peak", 7), ("ops", 6), ("rate", 6),
)  # fmt: skip
TRAINING_COLUMNS = (("", 26), ("step", 9), ("±", 5), ("ratio", 7), ("latent", 9))


def aligned(columns: Columns, rows: Sequence[Sequence[str]]) -> list[str]:
    """The titles, then the rows. The first cell is left-aligned, long names are cut, and columns
    without entries are left out."""
    filled = [i for i in range(1, len(columns)) if any(row[i] for row in rows)]
    lines = []
    for cells in ([title for title, _ in columns], *rows):
        first = f"  {cells[0]}"[: columns[0][1] - 1].ljust(columns[0][1])
        text = first + "".join(f"{cells[i]:>{columns[i][1]}}" for i in filled)
        lines.append(text.rstrip()[:WIDTH])
    return lines


def _times(row: Row) -> list[str]:
    times = row["times"]
    step = times["step"]
    return [
        duration(step["median"]),
        uncertainty(step),
        number(row["ratio"]["step"]) if "ratio" in row else "",
        duration(times["forward"]["median"]),
        duration(times["backward"]["median"]),
        duration(times.get("step_wall", {}).get("median")),
    ]


def _contender(name: str, row: Row, elements: int) -> list[str]:
    counted = row["dispatches"]
    operators = counted["forward"] + counted["backward"] if counted else ""
    launched = operators if row["launches"] is None else row["launches"]
    memory = (row["kept_bytes"], row["peak_bytes"])
    return [
        name,
        *_times(row),
        *("" if size is None else number(size / elements) for size in memory),
        str(launched),
        f"{row['share_of_copy']['step']:.0%}",
    ]


def _remarks(row: Row) -> list[str]:
    """Remarks on other work on the machine, on contenders with wrong results, and on contenders
    that cannot compute the case, except those that are not installed or not meant for it."""
    lines = []
    if (row["others"] or 0.0) > DISTURBED:
        lines.append(f"  other work took {row['others']:.0%} of the processors meanwhile")
    lines += [f"  {name} computes wrong: {why}" for name, why in row["wrong"].items()]
    usual = ("not installed", "for packed moments", "for GPUs")
    lines += [f"  {n}: {why}" for n, why in row["unable"].items() if why not in usual]
    return [text if len(text) <= WIDTH else text[: WIDTH - 3] + "..." for text in lines]


def table(row: Row) -> str:
    """The table of a case: a line for each contender, and one for the copy."""
    size = f"{row['elements']:,} elements".replace(",", " ")
    copied = row["copy"]
    rate = f"{number(copied['gb_per_s']['step'])} GB/s"
    cells = [_contender(n, figures, row["elements"]) for n, figures in row["contenders"].items()]
    cells.append([f"{COPY}, {rate}", *_times(copied), "", "", "", "100%"])
    lines = [f"{row['case']}, {size}"[:WIDTH], *aligned(COLUMNS, cells)]
    graphs = {
        name: figures["times"]["step_graph"]["median"]
        for name, figures in row["contenders"].items()
        if "step_graph" in figures["times"]
    }
    if graphs:
        text = "  in a CUDA graph: " + ", ".join(f"{n} {duration(us)}" for n, us in graphs.items())
        lines.append(text[:WIDTH])
    return "\n".join([*lines, *_remarks(row)])


def training_table(row: Row) -> str:
    """The table of a training step: its time with each latent, and the latent's share of it."""
    kind = row["clock"]
    cells = []
    for name, figures in row["contenders"].items():
        stat = figures["times"][kind]
        ratio = number(figures["ratio"][kind]) if "ratio" in figures else ""
        share = f"{figures['latent_share']:.0%}"
        cells.append([name, duration(stat["median"]), uncertainty(stat), ratio, share])
    title = f"training step, {row['training']}: {row['what']}"[:WIDTH]
    lines = [title, *aligned(TRAINING_COLUMNS, cells)]
    saved = row["saved_of_eager_step"]
    if saved:
        share, error = saved["share"], saved["standard_error"]
        noise = ", which is noise" if abs(share) < 2 * error else ""
        lines.append(f"  vae_fused saves {share:.1%} ± {error:.1%} of the step with eager{noise}")
    return "\n".join([*lines, *_remarks(row)])


def not_run(what: str, why: str) -> str:
    return f"not run: {what}: {why}"[:WIDTH]


def tables(data: dict[str, Any]) -> str:
    found = [head(data), legend(data["machine"]["kind"])]
    found += [table(row) for row in data["results"]]
    found += [training_table(row) for row in data["training"]]
    found += [not_run(what, why) for what, why in data["not_run"].items()]
    return "\n\n".join(found)


# --- comparison ----------------------------------------------------------------------------------


def _steps(data: dict[str, Any]) -> dict[tuple[str, str], tuple[dict[str, float], float | None]]:
    """The step time of each case and contender, and its ratio to eager's."""
    found = {}
    for row in (*data["results"], *data["training"]):
        case = row["case"] if "case" in row else f"training {row['training']}"
        kind, eager = row.get("clock", "step"), row["contenders"].get("eager")
        for name, figures in row["contenders"].items():
            other = eager and name != "eager"
            share = figures["ratio"][kind] / eager["ratio"][kind] if other else None
            found[case, name] = figures["times"][kind], share
    return found


def comparison(new: dict[str, Any], old: dict[str, Any]) -> str:
    """Step times of both runs, and their ratios to eager's, comparable across machines."""
    lines = ["compared with", *(f"  {text}"[:WIDTH] for text in head(old).split("\n"))]
    differ = [
        f"{key}: was {old[part].get(key)}, is {new[part].get(key)}"
        for part in ("machine", "versions")
        for key in ("device", "threads", "torch", "compiler", "driver")
        if old[part].get(key) != new[part].get(key)
    ]
    lines += [f"  {text}"[:WIDTH] for text in differ]
    if differ:
        lines.append("  Where these differ only the shares of eager's time compare.")
    lines.append(f"{'case':54}{'old':>9}{'new':>9}{'change':>8}{'of eager':>16}")
    before, after, last = _steps(old), _steps(new), ""
    for key in [key for key in after if key in before]:
        (was, old_share), (now, new_share) = before[key], after[key]
        apart = now["q1"] > was["q3"] or now["q3"] < was["q1"]
        share = ""
        if old_share is not None and new_share is not None:
            share = f"{number(old_share)} -> {number(new_share)}"
        text = f"{key[0] if key[0] != last else '':<30.30} {key[1]:<23.23}"
        text += f"{duration(was['median']):>9}{duration(now['median']):>9}"
        text += f"{change(now['median'] / was['median']):>7}{'*' if apart else ' '}{share:>16}"
        lines.append(text.rstrip())
        last = key[0]
    if not last:
        lines.append("  nothing that both have measured")
    return "\n".join([*lines, "* the quartiles do not overlap"])
