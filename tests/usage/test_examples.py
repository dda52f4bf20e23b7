"""The promises of examples/: it runs, it learns, and it is reproducible."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def digits() -> Iterator[ModuleType]:
    path = EXAMPLES / "train_digits.py"
    spec = importlib.util.spec_from_file_location("train_digits", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the model is small: more threads only wait for each other
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules[spec.name]
        torch.set_num_threads(threads)


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
    # About -44.5 untrained and -25.3 after these epochs. A decoder that ignores z, and so pays no
    # KL, gets to -27.2 with the mean of each pixel.
    for curve in (history.train_elbo, history.heldout_elbo):
        assert curve[0] < -40
        assert curve[-1] > -26.2


@pytest.mark.parametrize("impl", ["fused", "eager"])
def test_main_writes_a_readable_figure_and_both_times(
    digits: ModuleType, impl: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from matplotlib.image import imread

    out = tmp_path / "new folder" / "digits.png"
    runs = digits.main(["--quick", "--impl", impl, "--out", str(out)])
    assert list(runs) == [impl]
    height, width, _ = imread(out).shape
    assert height >= 400 and width >= 800
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
