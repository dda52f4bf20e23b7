"""Lower limits for the ratio of the eager formula's time to this library's time.

Both run in turn in this process, on one thread, and are compared round by round, so that a busy or
slow machine affects both. The floors are far below the measured ratios, except for those of small
calls, which are promises. A ratio below its floor gets two more tries. No test checks an absolute
time. pytest-benchmark stores the library's own times, which you can save and compare:

    pytest benchmarks/test_regressions.py --benchmark-autosave
"""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from benchmarks import calls, losses, truth
from benchmarks.cases import Case, inputs
from benchmarks.contenders import CONTENDERS
from benchmarks.counting import kept_bytes
from benchmarks.measuring import Clock, interleaved, latent_step, paired
from benchmarks.steps import images, single_cell
from benchmarks.steps.measure import measure as measure_step
from vae_fused import _ext

pytest.importorskip("pytest_benchmark")
pytestmark = pytest.mark.skipif(
    _ext.cpu_capability in ("none", "default"), reason="nobody promised speed without AVX2"
)

SECONDS, TRIES = 0.8, 3
# Half of the ratio measured with AVX-512, two thirds of AVX2's, and more for the smallest cases, in
# which calls dominate. A floor below 1 still detects the loss of a fast path.
FLOORS = {
    Case("plain", (128, 20)): 1.2,
    Case("plain", (512, 512)): 1.6,
    Case("plain", (1024, 1024)): 1.9,
    Case("plain", (512, 512), "bfloat16"): 1.4,
    Case("moments", (8, 8, 64, 64)): 1.1,
    Case("rssm", (50, 50, 30)): 0.9,
    Case("masked", (32, 100, 64)): 0.9,
    Case("samples", (1024, 64)): 1.2,
    Case("layers", (20, 64)): 1.5,
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("case", FLOORS, ids=lambda case: case.name.replace(" ", "-"))
def test_a_step_keeps_its_lead(case: Case, benchmark: Any) -> None:
    data, steps = inputs(case, "cpu"), {}
    for name in ("vae_fused", "eager"):
        latent = CONTENDERS[name].make(case, "cpu")
        truth.check(latent, case, data)
        steps[name] = latent_step(latent, data)
    ratios = []
    for _ in range(TRIES):
        samples = interleaved(steps, Clock(), SECONDS)
        ratios.append(
            statistics.median(paired(samples["eager"]["step"], samples["vae_fused"]["step"]))
        )
        if ratios[-1] >= FLOORS[case]:
            break
    benchmark.extra_info |= {"eager_over_vae_fused": round(ratios[-1], 2), "floor": FLOORS[case]}
    benchmark.pedantic(steps["vae_fused"], rounds=5, warmup_rounds=1)
    assert max(ratios) >= FLOORS[case], f"eager over vae_fused, {TRIES} tries: {ratios}"
    assert kept_bytes(steps["vae_fused"], data.arguments) <= 64


def slowdown(functions: dict[str, calls.Function], name: str, base: str) -> float:
    """The ratio of a function's time to the base's time."""
    pair = calls.steps({n: functions[n] for n in (name, base)})
    samples = interleaved(pair, Clock(), SECONDS)
    return statistics.median(paired(samples[name]["step"], samples[base]["step"]))


@pytest.mark.parametrize("name", calls.OPTIONS)
def test_an_option_costs_little(name: str) -> None:
    ratios, most = [], calls.OPTIONS[name]
    while len(ratios) < TRIES and min(ratios, default=most + 1) > most:
        ratios.append(slowdown(calls.options(), name, "default"))
    assert min(ratios) <= most, f"{name} over the default call, {TRIES} tries: {ratios}"


@pytest.mark.parametrize("name", calls.CONTESTS)
def test_a_small_call_keeps_its_lead(name: str) -> None:
    make, floor = calls.CONTESTS[name]
    ours, theirs = make()
    ratios: list[float] = []
    while len(ratios) < TRIES and max(ratios, default=floor - 1) < floor:
        ratios.append(slowdown({"ours": ours, "theirs": theirs}, "theirs", "ours"))
    assert max(ratios) >= floor, f"theirs over ours, {TRIES} tries: {ratios}"


# Small calls are noisy, and a compiled contender takes half a minute to start.
LOSSES = [name for name in losses.CASES if name.split()[0] in ("bernoulli", "gaussian", "laplace")]
LOSSES += ["poisson 1M"]


@pytest.mark.parametrize("name", LOSSES)
def test_a_likelihood_keeps_its_lead(name: str) -> None:
    """The ratio is at least half of the promised one."""
    promised = losses.CASES[name][1]
    best = dict.fromkeys(promised, 0.0)
    for _ in range(TRIES):
        for row in losses.measure(name, SECONDS):
            if (contender := row["contender"]) in best:
                best[contender] = max(best[contender], row["ratio"]["processor"])
        if all(best[contender] >= promised[contender] / 2 for contender in promised):
            break
    assert all(best[contender] >= promised[contender] / 2 for contender in promised), best


# Whole steps, and their latent and loss alone with the step's shapes: the ratio of the package's
# processor time to this library's. A floor is at most two thirds of the measured ratio, or 0.9 if
# the ratio was below 1.4. The latter only ensures that nothing is lost.
STEPS = {
    "pytorch-example": {"step": 0.9, "latent": 1.2, "loss": 1.5},
    "pyro": {"step": 0.9, "latent": 0.9, "loss": 1.5},
}
if importlib.util.find_spec("scvi"):
    STEPS["scvi nb 2000"] = {"step": 1.0, "loss": 1.4}


@pytest.mark.parametrize("name", STEPS)
def test_a_training_step_keeps_its_lead(name: str) -> None:
    case = next(c for c in (*images.CASES, *single_cell.CASES) if c.name == name)
    floors = STEPS[name]
    best = dict.fromkeys(floors, 0.0)
    for _ in range(TRIES):
        row = measure_step(case, 3 * SECONDS)  # first compares the losses of both
        assert set(row["parts"]) == set(floors) - {"step"}
        for key in floors:
            ratio = (row if key == "step" else row["parts"][key])["ratio"]["processor"]
            best[key] = max(best[key], ratio)
        if all(best[key] >= floors[key] for key in floors):
            break
    assert all(best[key] >= floors[key] for key in floors), f"{best}, floors {floors}"
