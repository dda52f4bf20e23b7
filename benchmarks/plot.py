"""Draws a JSON of ``python -m benchmarks``: the time of a step against the latent's size.

    python -m benchmarks.plot FILE.json [--dtype float32]

writes NAME-time.png and NAME-time.svg next to the JSON. The line of a copy shows the minimum
possible times. The colours (Okabe and Ito) suit colour-blind readers, and the markers and dashes
suit black-and-white prints. The SVG stores text as text, in a tenth of the bytes of outlines.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from benchmarks import command, record
from benchmarks.record import Data
from benchmarks.tables import busy, duration, head

# Label, colour, marker and dashes of each contender. The reference, an oracle, is not drawn.
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
}
SETTINGS: dict[Any, Any] = {
    "font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#DDDDDD", "axes.axisbelow": True, "axes.titlelocation": "left",
    "axes.titleweight": "bold", "legend.frameon": False, "svg.fonttype": "none",
    "svg.hashsalt": "vae_fused",  # makes the file deterministic
}  # fmt: skip


def caption(data: Data) -> str:
    lines = [*head(data).split("\n"), f"{data['date'][:10]}{busy(data)}, {data['command']}"]
    return "\n".join(textwrap.fill(line, 95) for line in lines)


def elements(n: float, _: Any = None) -> str:
    unit, scale = next(u for u in (("G", 2**30), ("M", 2**20), ("K", 2**10), ("", 1)) if n >= u[1])
    return f"{n / scale:.3g}{unit}"


def figure(data: Data, dtype: str) -> Figure | None:
    """Draw the plain workload's times against its sizes, with one line for each contender and one
    for the copy. Return None if there are fewer than two sizes."""
    rows = [row for row in data["results"] if (row["family"], row["dtype"]) == ("plain", dtype)]
    rows.sort(key=lambda row: int(row["elements"]))
    if len(rows) < 2:
        return None
    figure = Figure(figsize=(6.4, 5.8), layout="constrained")  # inches: a column of a page
    axes = figure.add_subplot()

    def draw(mine: list[tuple[int, Data]], **style: Any) -> None:
        stats = [figures["times"]["step"] for _, figures in mine]
        x = [size for size, _ in mine]
        axes.plot(x, [s["median"] for s in stats], **style)
        low, high = ([s[q] for s in stats] for q in ("q1", "q3"))
        axes.fill_between(x, low, high, color=style["color"], alpha=0.15, lw=0)

    for name, (label, color, marker, dashes) in STYLES.items():
        mine = [(r["elements"], r["contenders"][name]) for r in rows if name in r["contenders"]]
        lw, zorder = (2.6, 5) if name == "vae_fused" else (1.6, 3)
        style = {"color": color, "marker": marker, "ls": dashes, "lw": lw, "zorder": zorder}
        if mine:
            draw(mine, label=label, **style)
    copies = [(row["elements"], row["copy"]) for row in rows]
    draw(copies, label="copy of the least bytes", color="black", lw=1, zorder=2)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(elements))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda us, _: duration(us)))
    axes.yaxis.set_minor_locator(NullLocator())
    low, high = rows[0]["elements"], rows[-1]["elements"]
    axes.set_xticks([2**n for n in range(8, 34, 2) if low / 2 <= 2**n <= 2 * high])
    axes.set_xlabel("elements of mu (K = 1024, M = K²)")
    axes.set_title(f"Forward + backward of the latent, {dtype}")
    cuda = data["machine"]["kind"] == "cuda"
    clock = "CUDA events, cold L2 cache" if cuda else "wall clock"
    axes.set_ylabel(f"time of a step, median\n({clock})")
    axes.legend(loc="upper left", handlelength=3.4)
    figure.supxlabel(caption(data), fontsize=8, color="#444444", x=0.02, ha="left")
    return figure


def main(argv: list[str] | None = None) -> int:
    parser = command.described("benchmarks.plot", __doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args(argv)
    try:
        data = record.read(args.file, "benchmarks")
    except record.NotARecord as error:
        parser.error(str(error))
    stem = args.file.stem + f"-{args.dtype}" * (args.dtype != "float32")
    with mpl.rc_context(SETTINGS):
        drawn = figure(data, args.dtype)
        if drawn is None:
            print(f"{args.file} has nothing to draw in {args.dtype}", file=sys.stderr)
            return 1
        for suffix, metadata in (("png", {}), ("svg", {"Date": None})):
            path = args.file.with_name(f"{stem}-time.{suffix}")
            drawn.savefig(path, dpi=160, metadata=metadata)
            print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
