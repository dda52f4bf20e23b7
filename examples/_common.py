"""Code that the examples share: the command line, a network, and the layout of the figures."""

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"


def parse(
    doc: str | None,
    argv: Sequence[str] | None,
    *,
    out: str,
    steps: int,
    quick: int,
    flags: dict[str, str] | None = None,
) -> argparse.Namespace:
    """Parse the options that all examples share, and set the number of threads.

    The models are small, so the default is one thread: more threads mostly wait for each other.

    Args:
        doc: The docstring of the example, whose first line describes it.
        argv: The arguments, or None for those of the process.
        out: The default path of the figure.
        steps: The number of steps of a full run.
        quick: The number of steps with ``--quick``.
        flags: The names of additional options that take no value, and their help texts.

    Returns:
        The parsed options. ``steps`` is the number of optimizer steps for each model.
    """
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"{quick} steps: below two minutes")
    parser.add_argument("--steps", type=int, help=f"optimizer steps of a model (default {steps})")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default 1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(out), help="the figure (PNG)")
    for name, text in (flags or {}).items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    args = parser.parse_args(argv)
    if args.steps is None:
        args.steps = quick if args.quick else steps
    if args.steps < 1:
        parser.error(f"--steps must be at least 1, got {args.steps}")
    torch.set_num_threads(args.threads)
    return args


def mlp(*sizes: int) -> nn.Sequential:
    """Return linear layers with SiLU between them."""
    layers = [m for i, o in itertools.pairwise(sizes) for m in (nn.Linear(i, o), nn.SiLU())]
    return nn.Sequential(*layers[:-1])


def panels(
    count: int, size: tuple[float, float] = (9.5, 3.4), widths: Sequence[float] | None = None
) -> tuple[Figure, list[Axes]]:
    """Create a figure with ``count`` axes side by side."""
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.add_gridspec(1, count, width_ratios=widths)
    axes = [figure.add_subplot(grid[0, i]) for i in range(count)]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save(figure: Figure, path: Path) -> None:
    """Write the figure as a PNG, and create the folder of ``path`` if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    print(f"Figure: {path}")
