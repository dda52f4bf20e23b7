"""The examples run, learn, and are reproducible."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytestmark = pytest.mark.packages
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """The models are so small that more threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _folder_of_the_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The import path of a script starts with its folder."""
    monkeypatch.syspath_prepend(str(EXAMPLES))


@pytest.fixture
def digits() -> ModuleType:
    return importlib.import_module("train_digits")


def assert_is_figure(path: Path) -> None:
    from matplotlib.image import imread

    height, width, _ = imread(path).shape
    assert height >= 200 and width >= 500


def test_loss_curves_coincide_for_the_same_noise(digits: ModuleType) -> None:
    config = digits.Config(epochs=7, same_noise=True)
    fused, eager = (
        digits.train(impl, config, progress=False).step_loss[:100] for impl in ("fused", "eager")
    )
    assert len(fused) == len(eager) == 100
    assert fused == pytest.approx(eager, rel=1e-5, abs=0)


@pytest.mark.parametrize("impl", ["fused", "eager"])
def test_a_seed_reproduces_a_run_bit_for_bit(digits: ModuleType, impl: str) -> None:
    first, second, other = (
        digits.train(impl, digits.Config(seed=seed, epochs=2), progress=False) for seed in (3, 3, 4)
    )
    assert first.step_loss == second.step_loss
    assert first.train_elbo == second.train_elbo
    assert first.heldout_elbo == second.heldout_elbo
    assert first.step_loss != other.step_loss


@pytest.mark.parametrize("impl", ["fused", "eager"])
def test_training_improves_the_elbo_and_uses_the_latent(digits: ModuleType, impl: str) -> None:
    history = digits.train(impl, digits.Config(epochs=10), progress=False)
    # The ELBO is about -44.5 before training and -25.3 after these epochs. A decoder that ignores
    # z, so that there is no KL, reaches -27.2 by predicting the mean of each pixel.
    for curve in (history.train_elbo, history.heldout_elbo):
        assert curve[0] < -40
        assert curve[-1] > -26.2


@pytest.mark.parametrize("impl", ["fused", "eager"])
def test_main_writes_a_readable_figure_and_both_times(
    digits: ModuleType, impl: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new folder" / "digits.png"
    runs = digits.main(["--quick", "--impl", impl, "--out", str(out)])
    assert list(runs) == [impl]
    assert_is_figure(out)
    printed = capsys.readouterr().out
    for text in ("training step: fused", "latent alone", "loss alone", "eager / fused", str(out)):
        assert text in printed


def test_main_compares_seeds(
    digits: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--quick", "--seeds", "0", "1", "--same-noise", "--out", str(tmp_path / "both.png")]
    runs = digits.main(options)
    assert {impl: len(histories) for impl, histories in runs.items()} == {"fused": 2, "eager": 2}
    printed = capsys.readouterr().out
    for text in ("over 2 seeds", "standard deviation", "standard error", "Same noise"):
        assert text in printed


def test_bad_sizes_are_refused(digits: ModuleType) -> None:
    for option in (["--epochs", "0"], ["--batch-size", "1501"], ["--latent-dim", "0"]):
        with pytest.raises(SystemExit):
            digits.main(option)


# --------------------------------------------------------------------------------------------------
# The examples that share _common.py, each with very few steps
# --------------------------------------------------------------------------------------------------


def test_importance_weighted_bounds(tmp_path: Path) -> None:
    example = importlib.import_module("iwae_digits")
    out = tmp_path / "new folder" / "iwae.png"
    results = example.main(["--quick", "--steps", "30", "--out", str(out)])
    assert list(results) == [1, 5, 50]
    for result in results.values():
        # The bound is about -44.6 before training and -28 after these steps.
        assert result["curve"][0] < -40 and result["curve"][-1] > -32
        bounds = dict(zip(example.COUNTS, result["bounds"], strict=False))
        nested = [bounds[count] for count in (1, 2, 10, 20, 100)]  # groups of groups of samples
        assert nested == sorted(nested)
    assert_is_figure(out)


def test_two_levels_of_latents(tmp_path: Path) -> None:
    example = importlib.import_module("hierarchical_digits")
    out = tmp_path / "hierarchical.png"
    history = example.main(["--quick", "--steps", "100", "--out", str(out)])
    assert history[0][0] < -40 and history[-1][0] > -30
    assert all(upper > 0.0 and lower > 0.0 for _, upper, lower in history)
    assert_is_figure(out)


def test_the_schedules_of_the_two_levels_end_at_the_plain_elbo() -> None:
    example = importlib.import_module("hierarchical_digits")
    model = example.HierarchicalVAE(warmup=4)
    model.end_schedules()
    assert (model.free_bits().item(), model.to_posterior().item()) == (0.0, 1.0)


def test_both_likelihoods_of_single_cells_have_the_same_losses(tmp_path: Path) -> None:
    pytest.importorskip("scvi")
    example = importlib.import_module("single_cell")
    out = tmp_path / "cells.png"
    ours, theirs = example.main(["--quick", "--steps", "15", "--out", str(out)]).values()
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-5, abs=0)
    assert ours.losses[-1] < 0.95 * ours.losses[0]
    assert len(ours.times) == len(theirs.times) == 15
    assert_is_figure(out)


def test_without_scvi_the_example_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scvi", None)
    monkeypatch.delitem(sys.modules, "single_cell", raising=False)
    with pytest.raises(SystemExit, match="pip install scvi-tools"):
        importlib.import_module("single_cell")


def test_an_autoencoder_trains_alike_in_16_and_32_bits(tmp_path: Path) -> None:
    example = importlib.import_module("photographs_bf16")
    out = tmp_path / "photographs.png"
    curves = example.main(["--quick", "--steps", "15", "--out", str(out)])
    assert list(curves) == ["bfloat16", "float32"]
    assert curves["bfloat16"] == pytest.approx(curves["float32"], rel=0.01, abs=0)
    for curve in curves.values():
        assert curve[-1] < 0.9 * curve[0]
    assert_is_figure(out)


def test_a_bayesian_network_learns_and_is_reproducible(tmp_path: Path) -> None:
    example = importlib.import_module("bayesian_mlp")
    out = tmp_path / "network.png"
    first, second, other = (
        example.main(["--steps", "200", "--seed", seed, "--out", str(out)]) for seed in "334"
    )
    assert first == second != other
    assert first["last"] < 0.6 * first["first"]
    assert all(math.isfinite(value) for value in first.values())
    assert_is_figure(out)


def test_steps_are_at_least_1() -> None:
    example = importlib.import_module("bayesian_mlp")
    with pytest.raises(SystemExit):
        example.main(["--steps", "0"])
