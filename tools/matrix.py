"""Runs the tests of `make test` for pairs of Python and torch, and prints a table.

    python tools/matrix.py 3.12:2.11.0 3.13:2.14.1
    VAE_FUSED_BUILD=none python tools/matrix.py python3.10:2.13.0

A pair is an interpreter and a version of torch. The interpreter is a command, a path, or a version
that is searched as `pythonX.Y` and in pyenv. VAE_FUSED_BUILD defaults to `cpu`. Each pair has its
own environment in `build/matrix`, of several GB if pip chooses a torch with CUDA, which the next
run reuses. The output is printed and also written to a log in the same folder.
The exit status is the number of pairs that failed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACE = Path("build", "matrix")  # from ROOT
PYENV = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))


def runs(python: str) -> bool:
    try:
        return not subprocess.run([python, "-c", "import venv"], capture_output=True).returncode
    except OSError:
        return False


def find_python(name: str) -> str:
    """The interpreter for a command, a path or a version such as 3.12."""
    versions = sorted(str(path) for path in PYENV.glob(f"versions/{name}*/bin/python"))
    for python in (name, f"python{name}", *versions):
        if runs(python):
            return python
    raise SystemExit(
        f"matrix: python must be a command, a path or an installed version, got {name}"
    )


def make(target: str, log: Path, variables: list[str]) -> tuple[bool, float]:
    """Whether `make target` succeeds, and its seconds. The output is printed and logged."""
    began = time.monotonic()
    command = ["make", target, *variables]
    with log.open("a") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            print(line, end="", flush=True)
    return process.wait() == 0, time.monotonic() - began


def run(pair: str) -> tuple[bool, str]:
    """Whether the pair passed, and its row of the table."""
    name, _, torch = pair.rpartition(":")
    python = find_python(name)
    label = f"{Path(name).name}-torch{torch}"
    log = ROOT / PLACE / f"{label}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    variables = [f"PYTHON={python}", f"TORCH=torch=={torch}", f"VENV={PLACE / label}"]
    variables.append(f"VAE_FUSED_BUILD={os.environ.get('VAE_FUSED_BUILD', 'cpu')}")
    built, build_seconds = make("build", log, variables)
    passed, seconds = make("test", log, variables) if built else (False, 0.0)
    last_line = r"^=+ (.*(?:passed|failed|error).*?) in [\d.]+s.*=+$"
    summary = re.findall(last_line, log.read_text(), re.MULTILINE)
    result = summary[-1] if summary else ("the tests did not end" if built else "not built")
    return passed, f"| {name} | {torch} | {build_seconds:.0f} s | {seconds:.0f} s | {result} |"


def main(pairs: list[str]) -> None:
    if not pairs or not all(":" in pair for pair in pairs) or shutil.which("make") is None:
        raise SystemExit(__doc__)
    results = [run(pair) for pair in pairs]
    print("\n| Python | torch | environment and build | tests | result |\n|---|---|---|---|---|")
    print("\n".join(row for _, row in results))
    sys.exit(sum(not passed for passed, _ in results))


if __name__ == "__main__":
    main(sys.argv[1:])
