"""Figures of a JSON of ``python -m benchmarks``, beside it or in ``--out``, as PNG and SVG.

    python -m benchmarks.plot FILE.json [--out FOLDER] [--dtype float32]

    NAME-time      time of a step against the latent's size
    NAME-wall      the same by the wall clock, for a GPU
    NAME-ratio     how many times as long the others take, at the smallest and largest sizes
    NAME-roofline  least bytes per second against those of a copy, which is the upper limit
    NAME-training  a whole training step, with the latent as the only difference

Figures show only results that the JSON contains. The colours are Okabe and Ito's, which are
distinguishable with colour blindness. Markers and dashes distinguish the lines in black and white.
An SVG keeps its text as text, which takes a tenth of the bytes of outlines.
"""

from __future__ import annotations

import argparse
import functools
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator
from matplotlib.transforms import ScaledTranslation

from benchmarks import report
from benchmarks.readme import telling
from benchmarks.training import NONE

# Label, colour, marker and dashes of each contender in the figures. The reference is an oracle and
# is not meant to be fast.
STYLES: dict[str, tuple[str, str, str, str]] = {
    "vae_fused": ("vae_fused", "#0072B2", "o", "-"),
    "compat-diffusers": ("vae_fused.compat", "#0072B2", "X", ":"),
    "eager": ("formula, eager", "#D55E00", "s", "--"),
    "compile": ("torch.compile", "#009E73", "^", "-."),
    "compile-reduce-overhead": ("compile, reduce-overhead", "#009E73", "v", ":"),
    "distributions": ("torch.distributions", "#CC79A7", "D", "--"),
    "distributions-unchecked": ("distributions, unchecked", "#CC79A7", "d", ":"),
    "diffusers": ("diffusers", "#56B4E9", "P", "-."),
    "pyro": ("pyro", "#E69F00", "*", "-."),
    NONE: (NONE, "#BBBBBB", "", "-"),
}
RIVALS = ("eager", "compile", "compile-reduce-overhead", "distributions", "diffusers")  # bars
WIDTH = 6.4  # inches: a column of a page, or a phone in portrait format
SETTINGS: dict[Any, Any] = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "svg.hashsalt": "vae_fused",  # makes the file deterministic
    "svg.fonttype": "none",
}
Data = dict[str, Any]


def style(name: str) -> dict[str, Any]:
    label, color, marker, dashes = STYLES[name]
    ours = name == "vae_fused"
    return {
        "label": label,
        "color": color,
        "marker": marker,
        "ls": dashes,
        "lw": 2.6 if ours else 1.6,
        "zorder": 5 if ours else 3,
    }


def caption(data: Data) -> str:
    m, v = data["machine"], data["versions"]
    threads = f", {m['threads']} thread{'s' * (m['threads'] > 1)}, {m['cpu_capability']}"
    dirty = " with changes" if data["dirty"] else ""
    others = report.others(data)
    busy = f"; other work took {others:.0%} of the processors" if others > report.DISTURBED else ""
    where = f"{m['device']}{'' if m['kind'] == 'cuda' else threads}; torch {v['torch']}"
    what = f"commit {data['commit']}{dirty}, {data['date'][:10]}{busy}"
    return "\n".join(textwrap.fill(line, 95) for line in (where, what, data["command"]))


def clock(data: Data, kind: str) -> str:
    """The method behind a kind of time."""
    if kind == "step_wall":
        return "wall clock, steps in a row"
    cuda = data["machine"]["kind"] == "cuda"
    return "CUDA events, cold L2 cache" if cuda else "wall clock"


def _seconds(us: float, _: Any = None) -> str:
    for unit, scale in (("µs", 1.0), ("ms", 1e3), ("s", 1e6)):
        if us < 999 * scale or unit == "s":
            return f"{us / scale:g} {unit}"
    raise AssertionError


def _power(n: float, _: Any = None) -> str:
    for unit, scale in (("G", 2**30), ("M", 2**20), ("K", 2**10)):
        if n >= scale:
            return f"{n / scale:.3g}{unit}"
    return f"{n:.0f}"


def _sizes(data: Data, dtype: str) -> list[Data]:
    """Rows of the workload that has enough sizes for a line."""
    found = [r for r in data["results"] if r["family"] == "plain" and r["dtype"] == dtype]
    return sorted(found, key=lambda row: row["elements"])


def _names(rows: list[Data]) -> list[str]:
    present = {name for row in rows for name in row["contenders"]}
    return [name for name in STYLES if name in present]


def _figure(height: float, rows: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, [figure.add_subplot(rows, 1, i + 1) for i in range(rows)]


def _against_elements(axes: Axes, rows: list[Data]) -> None:
    """Make both axes logarithmic, with powers of two on the x axis."""
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(_power))
    axes.yaxis.set_minor_locator(NullLocator())
    low, high = rows[0]["elements"], rows[-1]["elements"]
    axes.set_xticks([2**n for n in range(8, 34, 2) if low / 2 <= 2**n <= 2 * high])
    axes.set_xlabel("elements of mu (K = 1024, M = K²)")


def _legend(axes: Axes, below: float = 0.6, **more: Any) -> None:
    """Draw the legend ``below`` inches under the axes."""
    down = ScaledTranslation(0, -below, axes.figure.dpi_scale_trans)
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.45, 0), bbox_transform=axes.transAxes + down, ncols=2,
        **more,
    )  # fmt: skip


def time_figure(data: Data, dtype: str, kind: str = "step") -> Figure | None:
    """Step time against elements."""
    rows = [row for row in _sizes(data, dtype) if kind in row["copy"]["times"]]
    if len(rows) < 2:
        return None
    figure, (axes,) = _figure(5.8)
    for name in _names(rows):
        mine = [row for row in rows if name in row["contenders"]]
        stats = [row["contenders"][name]["times"][kind] for row in mine]
        x = [row["elements"] for row in mine]
        axes.plot(x, [s["median"] for s in stats], **style(name))
        low, high = ([s[q] for s in stats] for q in ("q1", "q3"))
        axes.fill_between(x, low, high, color=STYLES[name][1], alpha=0.15, lw=0)
    x = [row["elements"] for row in rows]
    copies = [row["copy"]["times"][kind]["median"] for row in rows]
    axes.plot(x, copies, color="black", lw=1, label="copy of the least bytes", zorder=2)
    _against_elements(axes, rows)
    axes.yaxis.set_major_formatter(FuncFormatter(_seconds))
    axes.set_title(f"Forward + backward of the latent, {dtype}")
    axes.set_ylabel(f"time of a step, median\n({clock(data, kind)})")
    _legend(axes, handlelength=3.4)
    return figure


def ratio_figure(data: Data, dtype: str) -> Figure | None:
    """Bars: times in multiples of vae_fused's, for the cases of one dtype."""
    rows = telling(data, dtype)
    if not rows:
        return None
    names = [name for name in _names(rows) if name in RIVALS]
    gap = 0.8
    bars = sum(gap + sum(name in row["contenders"] for name in names) for row in rows)
    figure, (axes,) = _figure(2.0 + 0.19 * bars)
    at, ticks, drawn = 0.0, [], set[str]()
    for row in rows:
        begin = at
        for name in [name for name in names if name in row["contenders"]]:
            ratio = row["contenders"][name]["ratio"]["step"]
            label, color, _, dashes = STYLES[name]
            axes.barh(
                at, ratio - 1, 0.9, left=1, color=color, alpha=0.5 if dashes == ":" else 1.0,
                label=None if name in drawn else label,
            )  # fmt: skip
            axes.annotate(
                report.number(ratio), (ratio, at), (3 if ratio > 1 else -3, 0), fontsize=8,
                textcoords="offset points", va="center", ha="left" if ratio > 1 else "right",
            )  # fmt: skip
            drawn.add(name)
            at += 1
        ticks.append((0.5 * (begin + at - 1), row["case"].removesuffix(dtype).strip()))
        at += gap
    axes.axvline(1.0, color=STYLES["vae_fused"][1], lw=2, label="vae_fused")
    axes.set_yticks([y for y, _ in ticks], [text.replace(" ", "\n", 1) for _, text in ticks])
    axes.set_ylim(at - gap, -1.0)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.margins(x=0.1)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("time of a step over that of vae_fused;\nto the right of 1 vae_fused is faster")
    axes.set_title(f"Forward + backward of the latent, {dtype}")
    _legend(axes, 0.8)
    return figure


def roofline_figure(data: Data, dtype: str) -> Figure | None:
    """Least bytes over time, below the rate of a copy."""
    rows = _sizes(data, dtype)
    if len(rows) < 2:
        return None
    figure, (axes,) = _figure(5.8)
    roof = [row["copy"]["gb_per_s"]["step"] for row in rows]
    x = [row["elements"] for row in rows]
    axes.fill_between(x, roof, 2 * max(roof), color="#EEEEEE", lw=0, zorder=1)
    axes.plot(x, roof, color="black", lw=1.6, label="copy of as many bytes: the roof")
    for name in _names(rows):
        mine = [row for row in rows if name in row["contenders"]]
        rate = [row["contenders"][name]["gb_per_s"]["step"] for row in mine]
        axes.plot([row["elements"] for row in mine], rate, **style(name))
    _against_elements(axes, rows)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.set_ylim(top=1.5 * max(roof))
    axes.set_ylabel("GB/s: least bytes of the step over its time")
    axes.set_title(f"How near to the memory's speed, {dtype}")
    _legend(axes, handlelength=3.4)
    return figure


def training_figure(data: Data, dtype: str) -> Figure | None:
    """Bars: a whole training step with each latent; the rest of the step is grey."""
    rows = [row for row in data["training"] if NONE in row["contenders"]]
    if not rows:
        return None
    most = max(len(row["contenders"]) for row in rows)
    figure, panels = _figure((1.1 + 0.3 * most) * len(rows) + 0.5, len(rows))
    for row, axes in zip(rows, panels, strict=True):
        stats = {n: row["contenders"][n]["times"][row["clock"]] for n in _names([row])}
        for y, (name, stat) in enumerate(stats.items()):
            axes.barh(y, stat["median"], 0.7, color=STYLES[name][1])
            rest = min(stats[NONE]["median"], stat["median"])
            axes.barh(y, rest, 0.7, color=STYLES[NONE][1])
            spread = [[stat["median"] - stat["q1"]], [stat["q3"] - stat["median"]]]
            axes.errorbar(stat["median"], y, xerr=spread, color="black", lw=1, capsize=2)
            axes.annotate(
                report.duration(stat["median"]), (stat["q3"], y), (4, 0),
                textcoords="offset points", va="center", fontsize=9,
            )  # fmt: skip
        axes.set_yticks(range(len(stats)), [STYLES[name][0] for name in stats])
        axes.invert_yaxis()
        axes.margins(x=0.16)
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_formatter(FuncFormatter(_seconds))
        axes.locator_params(axis="x", nbins=6)
        axes.set_title(f"{row['training']}: {row['what']}", fontsize=9, weight="normal")
    panels[-1].set_xlabel("a whole training step; grey: without a latent; lines: quartiles")
    return figure


FIGURES: dict[str, Callable[[Data, str], Figure | None]] = {
    "time": time_figure,
    "wall": functools.partial(time_figure, kind="step_wall"),
    "ratio": ratio_figure,
    "roofline": roofline_figure,
    "training": training_figure,
}


def draw(data: Data, stem: Path, dtype: str) -> list[Path]:
    """Draw all figures for which the data suffice; returns the written files."""
    written = []
    stem.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(SETTINGS):
        for name, make in FIGURES.items():
            figure = make(data, dtype)
            if figure is None:
                continue
            figure.supxlabel(caption(data), fontsize=8, color="#444444", x=0.02, ha="left")
            for suffix, metadata in (("png", {}), ("svg", {"Date": None})):
                path = stem.with_name(f"{stem.name}-{name}.{suffix}")
                figure.savefig(path, dpi=160, metadata=metadata)
                written.append(path)
    return written


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--out", type=Path, help="a folder; default: that of the file")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args(argv)
    try:
        data = report.read(args.file)
    except report.NotAReport as error:
        parser.error(str(error))
    marks = "" if args.dtype == "float32" else f"-{args.dtype}"
    stem = (args.out or args.file.parent) / (args.file.stem + marks)
    written = draw(data, stem, args.dtype)
    for path in written:
        print(f"written: {path}")
    if not written:
        print(f"{args.file} has nothing to draw in {args.dtype}", file=sys.stderr)
    return 0 if written else 1


if __name__ == "__main__":
    sys.exit(main())
