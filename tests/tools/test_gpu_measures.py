"""tools/gpu.py measures the right cases and bytes, and judges by the worst of them.

The drivers run here on the CPU at tiny sizes, to show that they run. Their figures are irrelevant.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from conftest import native

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from gpu_checks import cases, judge, likelihoods, measure, sanitizer
from gpu_checks.report import FAIL, NOT_RUN, PASS


@pytest.mark.parametrize(
    ("dtype", "reduction", "forward", "backward"),
    [
        ("float32", "sum", 12, 20),
        ("float32", "none", 16, 24),
        ("bfloat16", "batchmean", 6, 10),
        ("bfloat16", "none", 10, 14),
        ("float64", "none", 32, 48),
    ],
)
def test_bytes_are_those_that_must_move(dtype, reduction, forward, backward):
    case = cases.Case("contiguous", "contiguous", (1000, 1000), reduction, dtype)
    for way, want in (("forward", forward), ("backward", backward)):
        assert case.bytes(way) / case.numel == pytest.approx(want, abs=1e-5)
    rows = cases.Case("rows", "contiguous", (500, 2), "sample", "float32")
    assert rows.bytes("forward") == 12 * 1000 + 4 * 500


def test_every_promised_shape_and_reduction_is_measured():
    chosen = cases.cases(24, ("float32", "bfloat16"), 28, 22)
    assert len({c.name for c in chosen}) == len(chosen)
    small = [c for c in chosen if c.group == "small"]
    assert {c.numel for c in small} == {2**22} and len(small) == 8
    usual = [c for c in chosen if c.group != "small" and c.numel <= 2**24]
    assert all(c.numel > 0.99 * 2**24 for c in usual)
    assert {c.numel for c in chosen if c.numel > 2**24} == {2**28}
    for dtype in ("float32", "bfloat16"):
        mine = [c for c in usual if c.dtype == dtype]
        contiguous = {c.reduction for c in mine if c.group == "contiguous"}
        assert contiguous == set(cases.REDUCTIONS)
        columns = {c.shape[1] for c in mine if c.group == "rows"}
        assert columns == {2, 20, 256, 16384, 2**20}
        assert {c.group for c in mine} == set(judge.TARGETS)


def row(group, ratio, **more):
    figures = {"ratio": ratio, "us": 10.0, "gb_per_s": 4000.0, "copy_gb_per_s": 4200.0}
    figures["streams_gb_per_s"] = 4100.0
    ways = {"forward": figures, "backward": {**figures, "ratio": 0.99}}
    return {"case": f"{group} {ratio}", "group": group, "dtype": "float32", **ways, **more}


def test_the_worst_case_decides():
    promises = judge.judge_bandwidth([row("contiguous", 0.95), row("contiguous", 0.85)])
    assert [p.verdict for p in promises] == [FAIL, PASS]
    assert "contiguous 0.85" in promises[0].detail
    assert [p.verdict for p in judge.judge_bandwidth([row("rows", 0.85)])] == [PASS, PASS]
    lost = {"case": "lost", "group": "rows", "dtype": "float32", "error": "planted"}
    promises = judge.judge_bandwidth([row("rows", 0.85), lost])
    assert [p.verdict for p in promises] == [FAIL, FAIL] and "lost" in promises[0].detail
    (first, _) = judge.judge_bandwidth([lost])
    assert first.verdict == FAIL and "planted" in first.detail
    left = {"case": "left", "group": "rows", "dtype": "float32", "skipped": "no room"}
    promises = judge.judge_bandwidth([row("rows", 0.85), left])
    assert [p.verdict for p in promises] == [NOT_RUN, NOT_RUN]
    promises = judge.judge_bandwidth([left])
    assert [p.verdict for p in promises] == [NOT_RUN, NOT_RUN]


def test_a_size_without_a_target_is_for_the_record():
    promises = judge.judge_bandwidth([row("small", 0.3)])
    assert [(p.verdict, p.target) for p in promises] == [(PASS, ""), (PASS, "")]
    lost = {"case": "lost", "group": "small", "dtype": "float32", "error": "planted"}
    assert [p.verdict for p in judge.judge_bandwidth([lost])] == [FAIL, FAIL]


@pytest.mark.parametrize(
    ("kind", "dtype", "forward", "backward"),
    [
        ("bernoulli", "float32", 8, 12),
        ("gaussian", "bfloat16", 6, 10),
        ("nb", "float32", 8, 12),  # theta has a value for each gene
        ("zinb", "bfloat16", 6, 10),
    ],
)
def test_bytes_of_a_likelihood_are_those_of_its_outputs_and_target(kind, dtype, forward, backward):
    case = likelihoods.LikelihoodCase(kind, (1000, 100), dtype)
    assert case.bytes("forward") == forward * case.numel
    assert case.bytes("backward") == backward * case.numel


def test_every_headline_likelihood_is_measured_in_both_dtypes():
    chosen = likelihoods.cases(24)
    assert len({c.name for c in chosen}) == len(chosen) == 8
    assert {(c.kind, c.dtype) for c in chosen} == {
        (kind, dtype) for kind in likelihoods.KINDS for dtype in ("float32", "bfloat16")
    }
    assert all(0.99 * 2**24 < c.numel <= 2**24 for c in chosen)
    assert {c.shape[1] for c in chosen if c.kind in ("nb", "zinb")} == {20_000}


def test_likelihoods_have_no_target_but_that_of_eager_code():
    steps = {"step": "nb", "clock": "device", "targets": {"eager": 1.5}, "unable": {}}
    fast = {**steps, "us": {"vae_fused": 10.0, "eager": 16.0}}
    slow = {**steps, "us": {"vae_fused": 10.0, "eager": 14.0}}
    promises = judge.judge_likelihoods([row("likelihood", 0.2), fast, slow])
    assert [p.verdict for p in promises] == [PASS, PASS, PASS, FAIL]
    lost = {"case": "nb", "group": "likelihood", "dtype": "float32", "error": "planted"}
    assert judge.judge_likelihoods([row("likelihood", 0.2), lost])[0].verdict == FAIL


@native
def test_a_wrong_likelihood_is_not_timed(monkeypatch):
    monkeypatch.setattr(likelihoods.Inputs, "loss", lambda self: 1.001 * self.eager())
    case = likelihoods.LikelihoodCase("gaussian", (16, 20), "float32")
    found = likelihoods.measure_loss(case, "cpu", repeats=1)
    assert set(found["us"]) == {"eager"} and "AssertionError" in found["unable"]["vae_fused"]
    assert [p.verdict for p in judge.judge_likelihoods([found])] == [FAIL]


def test_yardsticks_move_the_streams_of_a_call():
    """Forward reads two tensors and writes one. Backward reads three and writes two."""
    case = cases.Case("contiguous", "contiguous", (8, 8), "sum", "float32")
    made = measure.streams(case, 2, "cpu")
    assert {name: len(runs) for name, runs in made.items()} == {"forward": 2, "backward": 2}
    forward, backward = made["forward"][0], made["backward"][0]
    assert len(forward.args) == 2 and list(forward.keywords) == ["out"]
    a, b, c, x, y = backward.args
    c.fill_(3)
    forward()
    backward()
    assert bool((forward.keywords["out"] == 2).all() and (x == a + b).all() and (y == c).all())
    assert len({t.data_ptr() for t in (a, b, c, x, y)}) == 5


def test_a_step_is_judged_by_each_rival():
    one = {
        "step": "x",
        "clock": "device",
        "targets": {"eager": 6.0, "torch.compile": 1.3},
        "us": {"vae_fused": 10.0, "eager": 61.0, "torch.compile": 12.0},
        "kept_bytes": {"vae_fused": 16},
        "unable": {},
    }
    assert [p.verdict for p in judge.judge_steps([one])] == [PASS, FAIL, PASS]
    del one["us"]["torch.compile"]
    one["unable"]["torch.compile"] = "no triton"
    one["kept_bytes"]["vae_fused"] = 2**20
    promises = judge.judge_steps([one])
    assert [p.verdict for p in promises] == [PASS, NOT_RUN, FAIL]
    assert "no triton" in promises[1].detail
    del one["us"]["vae_fused"]
    one["unable"]["vae_fused"] = "a wrong KL"
    one["kept_bytes"] = {}
    promises = judge.judge_steps([one])
    assert [p.verdict for p in promises] == [FAIL, FAIL, NOT_RUN]
    assert promises[0].detail == "a wrong KL"


def test_runs_take_turns_and_medians_are_compared():
    order = []
    clocks = {"fast": iter([9, 9, 1, 1, 5]), "slow": iter([9, 9, 3, 3, 3])}

    def clock(run, times, device):
        name = run()
        order.append(name)
        return next(clocks[name])

    runs = {"fast": lambda: "fast", "slow": lambda: "slow"}
    assert measure.in_turn(runs, "cpu", clock, repeats=3) == {"fast": 1, "slow": 3}
    assert order[4:] == ["fast", "slow"] * 3


@native
@pytest.mark.parametrize(
    "name", ["smoke", "sanitize", "bandwidth", "likelihood", "step", "profile"]
)
def test_drivers_run_on_the_cpu(name, tmp_path, monkeypatch, capsys):
    from gpu_checks import driver

    every = cases.cases
    monkeypatch.setattr(  # one of each group is enough here
        cases, "cases", lambda *a: list({c.group: c for c in every(*a)}.values())
    )
    out = tmp_path / "out.json"
    driver.main(["--driver", name, "--device", "cpu", "--exponent", "10", "--out", str(out)])
    if name == "bandwidth":
        rows = json.loads(out.read_text())
        assert len(rows) == 6 and not any("error" in r for r in rows)
        assert len(judge.judge_bandwidth(rows)) == 12
        assert all(r[way]["streams_ratio"] > 0 for r in rows for way in ("forward", "backward"))
    if name == "likelihood":
        rows = json.loads(out.read_text())
        assert len(rows) == 16 and not any("error" in r for r in rows)
        promises = judge.judge_likelihoods(rows)
        assert len(promises) == 4 + 8  # each dtype and direction; each case against eager
        assert all(not r["unable"] and set(r["us"]) == {"vae_fused", "eager"} for r in rows[1::2])
    if name == "step":
        rows = json.loads(out.read_text())
        assert [set(r["us"]) for r in rows] == [{"vae_fused", "eager"}] * 3
        assert len(judge.judge_steps(rows)) == 8
    if name == "smoke":
        assert json.loads(out.read_text())["smoke"] <= 1e-5
    if name in ("sanitize", "profile"):
        assert sanitizer.DONE in capsys.readouterr().out


@native
def test_a_wrong_contender_is_not_timed():
    step = measure.Step((64, 20), "float32", "wall", {"eager": 3.0})

    def wrong(mu, logvar):
        return mu, (mu * mu).sum()

    row = measure.measure_step(step, wrong, "cpu", compiled=False, repeats=1)
    assert set(row["us"]) == {"vae_fused"} and "AssertionError" in row["unable"]["eager"]
