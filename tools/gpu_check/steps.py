"""The steps of a run: shell commands, and the promises about their measurements.

A command can use the variables ROOT, PYTHON, OUT (the results folder) and STEP (the step's name).
It runs in a new folder that contains links to the benchmarks but not to the sources of the package,
so that Python imports the installed package. It may write figures.json in that folder. Exit status
0 means that the step passed, and 1 that it failed. Any other status means that it was not run.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from .report import FAIL, NOT_RUN, PASS


class Step(NamedTuple):
    share: int  # of the time
    command: str
    promises: dict[str, dict[str, float]] | None = None  # minimum figures by case prefix


def judge(step: Step, status: int | None, last: str, figures: dict[str, Any]) -> dict[str, str]:
    """Return the verdicts on the command and on each promise.

    The status is None if the time limit was reached. ``last`` is the last line of the output.
    Targets are for CPUs. On a GPU, a row with a target must reach a ratio of 1.0, which is a guess.
    """
    statuses: dict[int | None, str] = {0: NOT_RUN if figures.get("not_run") else PASS, 1: FAIL}
    if status is None and re.search(r"\b\d+ (failed|errors?)\b", last):  # before the time limit
        statuses[None] = FAIL
    ended = "stopped at the time limit" if status is None else f"status {status}"
    lines = {f"{ended}: {last}": statuses.get(status, NOT_RUN)}
    for row in [row for key in ("results", "rows", "steps") for row in figures.get(key, [])]:
        least = {"ratio/median": 1.0} if row.get("target") else {}
        for case, promised in (step.promises or {}).items():
            least |= promised if row["case"].startswith(case) else {}
        for path, bound in least.items():
            value: Any = row
            for key in path.split("/"):
                value = value.get(key, {})
            name = ", ".join(filter(None, [row["case"], row.get("contender"), path]))
            verdict = NOT_RUN if value in ({}, None) else PASS if value >= bound else FAIL
            lines[f"{name} must be at least {bound}, got {value}"] = verdict
    return lines


# Even a single test runs in a worker, which xdist replaces if the test ends it. A test that hangs
# ends its worker with a traceback. With small chunks, tests start in order and a hang delays few.
WORKERS = """-p gpu_plugin -p xdist.plugin -n auto --maxprocesses=8 --maxschedchunk=4 \\
    --max-worker-restart=50 --continue-on-collection-errors --junitxml="$OUT/$STEP.xml" \\
    -o faulthandler_timeout=45 -o faulthandler_exit_on_timeout=true"""


def tests(selection: str, *names: str) -> str:
    """Return a command that runs the tests which have not passed in an earlier call."""
    files = " ".join(f'"$ROOT/tests/{name}"' for name in names)
    return f"""
        touch "$OUT/passed.txt" && cp "$OUT/passed.txt" earlier.txt
        export GPU_CHECK_PASSED="$OUT/passed.txt" GPU_CHECK_EARLIER="$PWD/earlier.txt"
        export PYTHONPATH="$ROOT/tests:$PYTHONPATH" OMP_NUM_THREADS=2
        exec "$PYTHON" -m pytest {WORKERS} -k "{selection}" {files}"""


def measured(command: str) -> str:
    """Run a benchmark, and record clocks, power, temperature and throttling each second."""
    return f"""
        stdbuf -oL nvidia-smi dmon -s pucv -o DT -d 1 >> "$OUT/clocks.txt" &
        "$PYTHON" -m {command} --device cuda --seconds 0.5 --json figures.json"""


def speedups(eager: float, compiled: float, clock: str = "step") -> dict[str, float]:
    """Return the minimum step times of other code, in multiples of ours."""
    return {f"contenders/eager/ratio/{clock}": eager, f"contenders/compile/ratio/{clock}": compiled}


SHARES = {"plain 4096": 0.9, "moments": 0.8, "rssm": 0.5, "masked": 0.5}  # 0.5 is a guess
BANDWIDTH = {
    case: {f"contenders/vae_fused/share_of_copy/{way}": least for way in ("forward", "backward")}
    for case, least in SHARES.items()
}
SPEEDUPS = {
    # Host time dominates in small steps, so they are timed by the wall clock.
    "plain 128x20 float32": speedups(3.0, 2.0, "step_wall"),
    "plain 4096x4096 float32": speedups(6.0, 1.3),
    "plain 4096x4096 bfloat16": speedups(6.0, 1.8),
}
LATENTS = "benchmarks --dtype float32 bfloat16 --contender vae_fused eager"
LARGE = f"{LATENTS} --case 'plain 4096' 'moments 64' 'rssm 256' 'masked 64'"
COMPILED = f"{LATENTS} compile --case 'plain 128x20' 'plain 4096'"
LOSSES = "benchmarks.losses --case 'bernoulli 256x12288' 1M 'ways: nb' 'ways: zinb'"
KERNELS = "gpu/test_every_kernel.py"
# The smallest benchmark records the machine, the versions and the commit.
MACHINE = f"""
    nvidia-smi -q
    "$PYTHON" -c "
from benchmarks import record
from vae_fused import _ext
assert _ext.has_cuda, 'the package does not support a GPU'
assert not record.package_differs(), 'the package is not that of the checkout'" || exit 3
    {measured("benchmarks --case 'plain 128x20' --contender vae_fused")}
    test -e figures.json || exit 3"""
# The clocks are not locked, because other programs may share them. ncu stops at an unknown section,
# but all its versions have these sections. The raw page lists every counter of every launch.
COUNTERS = f"""
    rm -f "$OUT/kernels.ncu-rep"
    ncu --export "$OUT/kernels.ncu-rep" --clock-control none \\
        --set detailed --section WarpStateStats \\
        --kernel-name 'regex:(forward|backward|nll|softmax_rows|stats)_kernel' \\
        "$PYTHON" -m pytest -k headline "$ROOT/tests/{KERNELS}"
    ncu --import "$OUT/kernels.ncu-rep" --csv --page raw || exit 3
    echo 'the counters are in kernels.ncu-rep'"""

# All steps require the first one. The others are ordered by importance for a first run on a GPU.
STEPS = {
    "machine": Step(50, MACHINE),  # importing torch may take half a minute on a new machine
    "smoke": Step(20, tests("not headline", KERNELS)),
    "device-tests": Step(70, tests("cuda", "gpu", "functional", "layers", "usage")),
    "bandwidth": Step(22, measured(LARGE), BANDWIDTH),
    "likelihoods": Step(14, measured(LOSSES)),
    "sanitizers": Step(34, 'exec sh "$ROOT/tools/gpu_check/sanitizers.sh"'),
    "counters": Step(18, COUNTERS),
    "speedups": Step(20, measured(COMPILED), SPEEDUPS),
    "training-step": Step(12, measured("benchmarks.steps --case pytorch-example")),
    "other-tests": Step(4, tests("not cuda", "functional", "layers", "usage", "package")),
}
