"""Times the fused latent against other implementations, and records the results.

    python -m benchmarks                        measures everything, in some minutes
    python -m benchmarks --quick                measures small cases, in less than a minute
    python -m benchmarks --case plain rssm --dtype bfloat16 --contender vae_fused eager
    python -m benchmarks --compare old.json     also prints the changes since an older run
    python -m benchmarks --show old.json        prints an older table, without measuring
    python -m benchmarks.plot FILE.json         draws figures

Every contender is checked against float64 before it is timed. A contender with wrong results is
reported and not timed. The JSON is written to benchmarks/results or to --json, and rewritten after
each case. With a selection of cases, it is written only if --json is given. The exit status is 1
if vae_fused is wrong or was selected but not measured, 2 for bad arguments, 130 if interrupted, and
0 otherwise.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path

from benchmarks import command, latents, measuring, record, running, tables
from benchmarks.contenders import CONTENDERS, Contender
from benchmarks.latents import Latent

MODULE = "benchmarks"
BUDGET = {"cpu": 900.0, "cuda": 480.0}
SECONDS = {"cpu": 4.0, "cuda": 1.0}
QUICK = {"seconds": 0.8, "budget": 50.0}


def parser() -> argparse.ArgumentParser:
    found = command.parser(MODULE, __doc__, "4, on CUDA 1; at least 7 rounds are made")
    add = found.add_argument
    add("--quick", action="store_true", help="small cases, without torch.compile")
    add("--contender", nargs="+", metavar="NAME", choices=CONTENDERS, help=", ".join(CONTENDERS))
    add("--dtype", nargs="+", choices=latents.DTYPES, help="default float32; on CUDA also bfloat16")
    add("--budget", type=float, help="seconds after which no other case begins")
    add("--plot", action="store_true", help="draw figures beside the JSON; needs matplotlib")
    add("--compare", type=Path, metavar="FILE", help="a JSON of an earlier run")
    return found


def chosen(args: argparse.Namespace) -> list[Latent]:
    """Return the cases that --case, --quick and --dtype select, ordered for a time budget."""
    first, others = [], []
    for dtype in args.dtype or ["float32"]:
        found = latents.latents(args.device, dtype)
        first += found[: latents.QUICK]
        others += found[latents.QUICK :]
    if args.device == "cuda" and not args.dtype:
        narrow = latents.latents(args.device, "bfloat16")
        first += [latent for latent in narrow if latent.family in ("plain", "moments")][:5]
    return command.selected([*first, *([] if args.quick else others)], args.case)


def contenders(args: argparse.Namespace) -> list[Contender]:
    if args.contender:
        return [c for c in CONTENDERS.values() if c.name in args.contender]
    return [c for c in CONTENDERS.values() if not (args.quick and c.slow_start)]


def status(data: record.Data, selected: bool) -> int:
    rows = data["results"]
    wrong = any("vae_fused" in row["wrong"] for row in rows)
    measured = any("vae_fused" in row["contenders"] for row in rows)
    return int(wrong or (selected and not measured))


def listing() -> str:
    lines = ["cases"]
    for family, about in latents.FAMILIES.items():
        lines.append(f"  {family:12}{about.what}")
        shapes = ", ".join("x".join(map(str, shape)) for shape in about.shapes)
        lines.append(textwrap.indent(textwrap.fill(shapes, 70), " " * 14))
    return "\n".join(
        [*lines, "contenders", *(f"  {c.name:24}{c.what}" for c in CONTENDERS.values())]
    )


def complete(args: argparse.Namespace, found: argparse.ArgumentParser) -> None:
    """Fill in defaults, and reject invalid combinations."""
    command.complete(args, found)
    for name, usual in (("seconds", SECONDS), ("budget", BUDGET)):
        if getattr(args, name) is None:
            setattr(args, name, QUICK[name] if args.quick else usual[args.device])
    if not chosen(args):
        found.error(f"no case is like {' or '.join(args.case)}; --list names them")
    if args.plot and not args.json and (args.case or args.contender or args.dtype):
        found.error("--plot needs --json where cases, contenders or dtypes are selected")


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    found = parser()
    args = found.parse_args(argv)
    if args.list:
        print(listing())
        return 0
    old = command.read(found, args.compare, MODULE)
    if shown := command.read(found, args.show, MODULE):
        print(tables.latents(shown))
        if old:
            print(tables.comparison(shown, old))
        return 0
    complete(args, found)
    settings = {k: getattr(args, k) for k in ("quick", "seconds", "budget")}
    data = record.new(MODULE, argv, args.device, settings)
    selected = args.case or args.contender or args.dtype
    path = args.json or (None if selected else record.default_path(MODULE, data))
    print(f"{record.package()}\n{tables.head(data)}\n\n{tables.LEGEND}\n", flush=True)
    setting = (contenders(args), args.device, args.seconds, 3 if args.quick else measuring.FEWEST)

    def measure(latent: Latent) -> str:
        data["results"].append(row := running.measure(latent, *setting))
        return tables.latent(row)

    code = command.run(chosen(args), measure, data, path, args.budget)
    if old:
        print(tables.comparison(data, old))
    if args.plot and path:
        from benchmarks import plot

        plot.main([str(path)])
    return code if code == 130 else status(data, "vae_fused" in [c.name for c in setting[0]])


if __name__ == "__main__":
    sys.exit(main())
