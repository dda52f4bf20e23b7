"""The tables for the terminal, and the comparison of two records."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from benchmarks.record import Data, others

WIDTH = 100
DISTURBED = 0.1  # share of other work above which the results contain a remark
COPY = "copy"  # the step that copies the minimum bytes of a case

Columns = Sequence[tuple[str, int]]  # titles and widths, negative for left-aligned cells


def duration(us: float | None) -> str:
    """Return three significant digits and the unit: '106 us', '4.10 ms'."""
    if us is None:
        return ""
    units = (("us", 1.0), ("ms", 1e3), ("s", 1e6))
    unit, scale = next(pair for pair in units if us < 999.5 * pair[1] or pair[0] == "s")
    return f"{number(us / scale)} {unit}"


def number(value: float) -> str:
    """Return three significant digits, never an exponent: '0.01', '12.0', '1024'."""
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def uncertainty(stat: dict[str, float]) -> str:
    """Return half the interquartile range over the median. Smaller differences mean nothing."""
    return f"{min(999, 50 * (stat['q3'] - stat['q1']) / stat['median']):.0f}%"


def aligned(columns: Columns, rows: Sequence[Sequence[str]], *, drop: bool = False) -> list[str]:
    """Return titles and rows. Cells of negative width are left-aligned, and cut if too long.

    With ``drop``, columns without entries are omitted.
    """
    kept = [i for i in range(len(columns)) if not drop or not i or any(row[i] for row in rows)]
    lines = []
    for cells in ([title for title, _ in columns], *rows):
        pairs = ((cells[i], columns[i][1]) for i in kept)
        texts = (f"{t[: -w - 1]:{-w}}" if w < 0 else f"{t:>{w}}" for t, w in pairs)
        lines.append("".join(texts).rstrip())
    return lines


def markdown(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table, and an empty line."""
    first, *others = ("| " + " | ".join(cells) + " |" for cells in (titles, *rows))
    return [first, "|---" * len(titles) + "|", *others, ""]


def wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, break_on_hyphens=False)


def cut(text: str) -> str:
    return text if len(text) <= WIDTH else text[: WIDTH - 3] + "..."


def head(data: Data) -> str:
    m, v = data["machine"], data["versions"]
    where = f"{m['threads']} of {m['cores']} threads, {m['cpu_capability']}"
    if m["kind"] == "cuda":
        where = f"compute capability {m['capability']}, driver {m['driver']}, CUDA {v['cuda']}"
    dirty = " with changes" if data["dirty"] else ""
    return (
        f"{m['device']} ({where})\n"
        f"torch {v['torch']}, vae_fused {v['vae_fused']}, commit {data['commit']}{dirty}"
    )


def busy(data: Data) -> str:
    """Return a remark if other processes took a noticeable share of the processors."""
    share = others(data)
    return f" (other work took {share:.0%} of the processors)" * (share > DISTURBED)


def not_run(data: Data) -> list[str]:
    return [cut(f"not run: {name}: {why}") for name, why in data["not_run"].items()]


# --- latents -------------------------------------------------------------------------------------

LEGEND = """\
step: forward and backward, median; ±: half the distance of its quartiles; ratio: of the step to
that of the first line; kept: bytes per element saved for backward; ops: operators of both passes;
wall: steps in a row, with the host; rate: least bytes of the step per second, as a share of what a
copy of them reaches"""
COLUMNS = (
    ("", -26), ("step", 9), ("±", 5), ("ratio", 7), ("forward", 9), ("backward", 9), ("wall", 9),
    ("kept", 7), ("ops", 6), ("rate", 6),
)  # fmt: skip


def _latent(name: str, row: Data) -> list[str]:
    times, ratio = row["times"], row.get("ratio", {}).get("step")
    step = [duration(times["step"]["median"]), uncertainty(times["step"])]
    passes = (times.get(kind, {}).get("median") for kind in ("forward", "backward", "step_wall"))
    return [f"  {name}", *step, "" if ratio is None else number(ratio), *map(duration, passes)]


def _contender(name: str, row: Data, elements: int) -> list[str]:
    counted = row["dispatches"]
    operators = counted["forward"] + counted["backward"] if counted else ""
    share = f"{row['share_of_copy']['step']:.0%}"
    return [*_latent(name, row), number(row["kept_bytes"] / elements), str(operators), share]


def _remarks(row: Data) -> list[str]:
    """Return remarks on other work on the machine, on wrong results, and on contenders that cannot
    compute the case for a reason other than a missing package or an unsuitable case."""
    lines = [f"  {name} computes wrong: {why}" for name, why in row["wrong"].items()]
    if (row["others"] or 0.0) > DISTURBED:
        lines.append(f"  other work took {row['others']:.0%} of the processors meanwhile")
    usual = ("not installed", "for packed moments", "for GPUs")
    lines += [f"  {n}: {why}" for n, why in row["unable"].items() if why not in usual]
    return list(map(cut, lines))


def latent(row: Data) -> str:
    """Return the table of a case: a line for each contender, and one for the copy."""
    size = f"{row['elements']:,} elements".replace(",", " ")
    copied, contenders = row["copy"], row["contenders"]
    cells = [_contender(name, figures, row["elements"]) for name, figures in contenders.items()]
    name = f"{COPY}, {number(copied['gb_per_s']['step'])} GB/s"
    cells.append([*_latent(name, copied), "", "", "100%"])
    lines = [f"{row['case']}, {size}", *aligned(COLUMNS, cells, drop=True)]
    return "\n".join([*lines, *_remarks(row), ""])


def latents(data: Data) -> str:
    rows = [head(data), "", LEGEND, "", *map(latent, data["results"]), *not_run(data)]
    return "\n".join(rows)


# --- comparison ----------------------------------------------------------------------------------

COMPARED = (("case", -31), ("", -24), ("old", 8), ("new", 9), ("change", 9), ("of eager", 17))


def _steps(data: Data) -> dict[tuple[str, str], tuple[dict[str, float], str]]:
    """Return the step time of each case and contender, and its ratio to that of eager PyTorch."""
    found = {}
    for row in data["results"]:
        eager = row["contenders"].get("eager")
        for name, figures in row["contenders"].items():
            other = eager and name != "eager"
            share = number(figures["ratio"]["step"] / eager["ratio"]["step"]) if other else ""
            found[row["case"], name] = figures["times"]["step"], share
    return found


def comparison(new: Data, old: Data) -> str:
    """Return the step times of both runs, and ratios to eager's that compare across machines."""
    lines = ["compared with", *(f"  {text}" for text in head(old).split("\n"))]
    differ = [
        f"  {key}: was {old[part].get(key)}, is {new[part].get(key)}"
        for part in ("machine", "versions")
        for key in ("device", "threads", "torch", "compiler", "driver")
        if old[part].get(key) != new[part].get(key)
    ]
    lines += [*differ, "  Where these differ only the shares of eager's time compare."] * bool(
        differ
    )
    before, cells = _steps(old), []
    for (case, name), (now, share) in _steps(new).items():
        was, old_share = before.get((case, name), (None, ""))
        if was:
            ratio = now["median"] / was["median"]
            change = f"{ratio - 1:+.0%}" if ratio < 10 else f"x{ratio:.0f}"
            apart = now["q1"] > was["q3"] or now["q3"] < was["q1"]
            shares = f"{old_share} -> {share}" if share and old_share else ""
            times = (duration(stat["median"]) for stat in (was, now))
            cells.append([case, name, *times, change + " *"[apart], shares])
    table = aligned(COMPARED, cells) if cells else ["  nothing that both have measured"]
    return "\n".join([*map(cut, lines), *table, "* the quartiles do not overlap", ""])
