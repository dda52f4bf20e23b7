"""The output of `python -m benchmarks`: JSON, tables, comparisons and figures."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import json
import sys
import time
import types

import pytest
import torch
from conftest import AVAILABLE

import benchmarks
from benchmarks import __main__ as cli
from benchmarks import latents, losses, measuring, readme, record, running, tables
from benchmarks.cases import Case, Contest, Unable
from benchmarks.latents import Latent


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Returns the JSON, the output and the exit status of a short run of all cases."""
    path = tmp_path_factory.mktemp("bench") / "results.json"
    options = ["--quick", "--device", "cpu", "--seconds", "0.02", "--budget", "300"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with more threads, small tensors wait for busy processors
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = cli.main([*options, "--json", str(path)])
    torch.set_num_threads(threads)
    return json.loads(path.read_text()), printed.getvalue(), code


# --- the JSON ------------------------------------------------------------------------------------


def test_quick_measures_every_family(quick):
    data, _, code = quick
    assert code == (0 if AVAILABLE else 1)
    assert {row["family"] for row in data["results"]} == set(latents.FAMILIES)
    assert data["not_run"] == {}
    measured = {name for row in data["results"] for name in row["contenders"]}
    expected = {"eager", "distributions", "distributions-unchecked", "reference"}
    assert expected | ({"vae_fused", "compat-diffusers"} if AVAILABLE else set()) <= measured


def test_the_json_tells_where_and_of_what(quick):
    data, _, _ = quick
    assert (data["kind"], data["schema"]) == ("vae_fused benchmarks", record.SCHEMA)
    assert data["command"].startswith("python -m benchmarks --quick --device cpu")
    assert "results.json" not in data["command"]
    for key in ("device", "kind", "threads", "cores", "cpu_capability", "system"):
        assert key in data["machine"]
    assert data["versions"]["torch"] == torch.__version__
    assert {"python", "vae_fused", "build", "compiler"} <= set(data["versions"])
    assert {"date", "commit", "dirty", "settings", "seconds"} <= set(data)


def test_each_contender_has_times_ratios_memory_and_counts(quick):
    data, _, _ = quick
    for row in data["results"]:
        base = row["contenders"][row["base"]]
        assert row["base"] == ("vae_fused" if AVAILABLE else "eager")
        assert not row["wrong"]
        for figures in row["contenders"].values():
            for kind in ("forward", "backward", "step"):
                stat = figures["times"][kind]
                assert 0 < stat["q1"] <= stat["median"] <= stat["q3"] and stat["rounds"] >= 3
                assert figures["ratio"][kind] > 0
            assert base["ratio"] == dict.fromkeys(("forward", "backward", "step", "processor"), 1.0)
            assert figures["kept_bytes"] >= 0
            assert figures["dispatches"]["forward"] >= 1
            share = figures["gb_per_s"]["step"] / row["copy"]["gb_per_s"]["step"]
            assert figures["share_of_copy"]["step"] == pytest.approx(share, rel=1e-3, abs=1e-4)


def test_what_hits_all_alike_changes_no_ratio():
    jumping = [1.0, 5.0] * 20
    samples = {"vae_fused": {"step": jumping}, "eager": {"step": [1.25 * t for t in jumping]}}
    assert measuring.summary(samples["eager"], samples["vae_fused"])["ratio"] == {"step": 1.25}


@pytest.mark.parametrize(("away", "untimed"), [(-1.0, 5), (1e9, 0)])
def test_a_step_that_has_rested_is_made_once_before_it_is_timed(away, untimed, monkeypatch):
    """A host may reclaim idle memory, which does not happen in a training loop."""
    monkeypatch.setattr(measuring, "AWAY", away)
    calls = []
    step = measuring.Step(lambda: calls.append("forward"))
    times, _ = measuring.interleaved({"a": step}, "cpu", 0.0, fewest=5)
    assert len(times["a"]["step"]) == 5
    assert len(calls) == 2 + untimed + 5  # two initial calls


def test_other_work_is_a_share_of_the_processors():
    share = measuring.Others().share()
    assert share is None or 0.0 <= share <= 1.0


def test_what_cannot_run_is_named(tmp_path):
    path = tmp_path / "none.json"
    cli.main(["--quick", "--device", "cpu", "--budget", "-1", "--json", str(path)])
    data = record.read(path, "benchmarks")
    assert data["results"] == []
    assert len(data["not_run"]) == 7 and "budget" in str(data["not_run"])


def test_a_case_without_the_memory_is_not_measured(monkeypatch):
    monkeypatch.setattr("benchmarks.record.free_bytes", lambda device: 1e5)
    with pytest.raises(Unable, match="free memory"):
        running.measure(Latent("plain", (64, 20)), [], "cpu", 0.0)


# --- the table -----------------------------------------------------------------------------------


def test_the_table_fits_a_hundred_columns(quick):
    data, printed, _ = quick
    assert "plain 128x20 float32" in printed
    wide = copy.deepcopy(data)
    row = wide["results"][0]
    row["contenders"]["a-name-that-is-much-too-long-for-it"] = row["contenders"]["eager"]
    row["wrong"] = {"somebody": "a reason " * 40}
    wide["machine"]["device"] = "AMD EPYC"
    for text in (printed, tables.latents(wide), tables.comparison(wide, data)):
        lines = [
            line for line in text.split("\n") if not line.startswith(("written", "vae_fused "))
        ]
        assert max(map(len, lines)) <= tables.WIDTH


@pytest.mark.parametrize(
    ("us", "text"),
    [(1.234, "1.23 us"), (106.4, "106 us"), (999.7, "1.00 ms"), (4100, "4.10 ms"), (2e6, "2.00 s")],
)
def test_durations_have_three_digits(us, text):
    assert tables.duration(us) == text


def test_show_prints_a_table_again(quick, tmp_path, capsys):
    path = tmp_path / "shown.json"
    path.write_text(json.dumps(quick[0]))
    assert cli.main(["--show", str(path)]) == 0
    assert "masked 32x100x64" in capsys.readouterr().out


# --- comparison ----------------------------------------------------------------------------------


def test_compare_tells_what_became_slower(quick):
    new, old = copy.deepcopy(quick[0]), quick[0]
    stat = new["results"][0]["contenders"]["eager"]["times"]["step"]
    for key in ("median", "q1", "q3"):
        stat[key] *= 3
    line = next(x for x in tables.comparison(new, old).split("\n") if "plain 128x20" in x)
    other = new["results"][0]["contenders"]
    first = next(iter(other))
    assert first in line and ("+200%" in tables.comparison(new, old))
    assert "compare" not in tables.comparison(old, old).split("\n")[3]
    assert "+200%" not in tables.comparison(old, old)


def test_compare_says_when_machines_differ(quick):
    old = copy.deepcopy(quick[0])
    old["machine"]["device"], old["versions"]["torch"] = "another", "1.0"
    text = tables.comparison(quick[0], old)
    assert "device: was another" in text and "torch: was 1.0" in text
    assert "only the shares of eager's time compare" in text


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 1}', '{"kind": "other", "schema": 1}'])
def test_a_file_that_is_no_report_is_refused(text, tmp_path):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--compare", str(path)])
    assert stopped.value.code == 2


@pytest.mark.parametrize(
    "argv",
    [["--case", "nothing"], ["--contender", "nobody"], ["--case", "plain", "--plot"]],
)
def test_bad_arguments_are_refused_before_anything_is_measured(argv):
    with pytest.raises(SystemExit) as stopped:
        cli.main(argv)
    assert stopped.value.code == 2


# --- GPU timing, and likelihoods -----------------------------------------------------------------


def test_a_gpu_has_times_of_the_device_and_of_the_host(monkeypatch):
    """The test replaces `torch.cuda` functions, and an event reads its time from the host clock."""

    class Event:
        def __init__(self, **_):
            self.at = 0.0

        def record(self):
            self.at = 1e3 * time.perf_counter()

        def synchronize(self):
            pass

        def elapsed_time(self, other):
            return other.at - self.at

    properties = types.SimpleNamespace(L2_cache_size=2**10, clock_rate=1000)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, device, **rest: empty(*size, **rest))
    step = measuring.Step(lambda: time.sleep(2e-3), lambda _: time.sleep(1e-3))
    times = measuring.interleaved({"a": step}, "cuda", 0.0, fewest=3)[0]["a"]
    kinds = {"forward", "backward", "step", "step_wall", "processor"}
    assert set(times) == kinds and {len(seconds) for seconds in times.values()} == {3}
    for kind, least in {"forward": 2e-3, "backward": 1e-3, "step": 3e-3, "step_wall": 3e-3}.items():
        assert least <= min(times[kind]) < 5 * least
    assert max(times["processor"]) < 2e-3


def test_likelihoods_have_a_row_for_each_contender(tmp_path, capsys):
    path = tmp_path / "losses.json"
    options = ["--case", "gaussian 1M", "--seconds", "0", "--device", "cpu", "--json", str(path)]
    assert losses.main(options) == 0
    ours, *others = record.read(path, losses.MODULE)["rows"][:3]
    assert ours["contender"] == "vae_fused" and "ratio" not in ours
    assert [row["contender"] for row in others] == ["Normal.log_prob", "F.gaussian_nll_loss"]
    for row in others:
        assert row["us"] > 0 and set(row["ratio"]) == {"median", "minima", "processor"}
        assert row["ratio"]["minima"] == pytest.approx(row["us"] / ours["us"], rel=1e-2)
        assert row["target"] == {"Normal.log_prob": 6.0}.get(row["contender"], 5.0)
    capsys.readouterr()
    assert losses.main(["--show", str(path)]) == 0
    assert "F.gaussian_nll_loss" in capsys.readouterr().out


def test_a_likelihood_that_differs_is_not_timed(monkeypatch, tmp_path):
    def wrong():
        leaf = torch.ones(8)
        return Contest([leaf], {"vae_fused": lambda: leaf.sum(), "half": lambda: leaf.sum() / 2})

    monkeypatch.setattr(losses, "CASES", [Case("a sum", wrong)])
    path = tmp_path / "losses.json"
    assert losses.main(["--device", "cpu", "--json", str(path)]) == 1
    data = record.read(path, losses.MODULE)
    assert data["rows"] == [] and "half: its results differ" in data["not_run"]["a sum"]


# --- which package, which files ------------------------------------------------------------------


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("installed", [False, True])
def test_an_installed_package_goes_before_sources_without_compiled_code(
    installed, compiled, tmp_path, monkeypatch
):
    root, site = tmp_path / "checkout", tmp_path / "site"
    for folder in (root, *([site] if installed else [])):
        (folder / "vae_fused").mkdir(parents=True)
        (folder / "vae_fused" / "__init__.py").touch()
    if compiled:
        (root / "vae_fused" / "_C.abi3.so").touch()
    monkeypatch.delitem(sys.modules, "vae_fused")
    monkeypatch.setattr(sys, "path", [str(root), str(site)])
    benchmarks.prefer_installed(root)
    last = installed and not compiled
    assert sys.path == ([str(site), str(root)] if last else [str(root), str(site)])


def test_the_figure_is_drawn(quick, tmp_path):
    if importlib.util.find_spec("matplotlib") is None:
        pytest.skip("matplotlib is not installed")
    from matplotlib.image import imread

    from benchmarks import plot

    path = tmp_path / "results.json"
    path.write_text(json.dumps(quick[0]))
    assert plot.main([str(path)]) == 0
    height, width, _ = imread(tmp_path / "results-time.png").shape
    assert width >= 1000 and height >= 600
    assert "<svg" in (tmp_path / "results-time.svg").read_text()[:600]
    commit = quick[0]["commit"]
    assert commit in plot.caption(quick[0]) and quick[0]["machine"]["device"] in plot.caption(
        quick[0]
    )
    assert plot.main([str(path), "--dtype", "float64"]) == 1  # the file has no such results


RESULTS = sorted(record.RESULTS.glob("bench-*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_results_in_the_repository_can_be_read(path):
    data = record.read(path, "benchmarks")
    assert data["results"] and data["commit"] != "unknown"
    assert tables.latents(data)


def test_the_figures_of_readme_are_those_of_their_json():
    text = readme.README.read_text(encoding="utf-8")
    paths = readme.sources(text)
    assert readme.measured(paths) in text, "python -m benchmarks.readme FILES"
