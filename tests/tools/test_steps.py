"""`python -m benchmarks.steps` checks before timing, names missing packages and prints tables."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from torch import nn

from benchmarks import ROOT, command, readme, record
from benchmarks.cases import Case, Noise, Wrong, part
from benchmarks.steps import __main__ as cli
from benchmarks.steps import images, single_cell, table
from benchmarks.steps.__main__ import measure
from benchmarks.steps.work import training

NAMES = [case.name for case in cli.CASES]
INSTALLED = [
    case
    for case in [*images.CASES, *single_cell.CASES[:1]]
    if not case.package or importlib.util.find_spec({"scvi-tools": "scvi", "pyro-ppl": "pyro"}.get(
        case.package, case.package))
]  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small(ours=lambda x: x.sum() * 2, noise=None):
    """A model with one parameter. Their loss is 2 * the sum, and `ours` computes our loss."""
    parameter = nn.Parameter(torch.ones(5))
    latent = part([parameter], theirs=lambda x: x * 2, ours=lambda x: (x * 2, x.sum()))
    return training(
        [parameter],
        lambda: (2 * parameter).sum(),
        lambda: ours(parameter),
        {"latent": latent},
        noise,
    )


def case_of(work, package="", name="small"):
    return Case(name, lambda: work, "a sum", package)


def run(cases, path=None):
    """Run the command line with these cases, and return its status and its JSON."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "CASES", cases)
        code = cli.main(["--device", "cpu", "--seconds", "0", "--json", str(path)])
    return code, record.read(path, table.MODULE)


def test_names_are_distinct_and_every_package_is_pinned():
    assert len(set(NAMES)) == len(NAMES)
    pinned = "".join(path.read_text() for path in (ROOT / "requirements").glob("steps*.txt"))
    for case in cli.CASES:
        assert not case.package or f"{case.package}==" in pinned


def test_cases_are_chosen_by_parts_of_names():
    assert [case.name for case in command.selected(cli.CASES, ["pythae, nb 2000"])] == [
        "scvi nb 2000", "scvi nb 20000", "scvi zinb 2000", "scvi zinb 20000",
        "pythae vae", "pythae iwae",
    ]  # fmt: skip
    assert command.selected(cli.CASES, None) == cli.CASES
    with pytest.raises(SystemExit):
        cli.main(["--cases", "nothing-like-this"])


@pytest.mark.parametrize("case", INSTALLED, ids=lambda case: case.name)
def test_both_variants_of_a_package_compute_the_same_loss(case):
    torch.manual_seed(0)
    work = case.make()
    assert work.check()["loss"] > 0 and not work.noise.is_given
    for isolated in work.parts.values():
        for name in ("theirs", "ours"):
            grads = isolated.step(name)()
            assert all(bool(grad.isfinite().all()) for grad in grads)


def test_our_timed_step_draws_its_own_noise():
    work = images.pytorch_example(images.loss_on_logits)
    torch.manual_seed(0)
    ours = work.functions["ours"]
    first = float(ours().detach())
    torch.manual_seed(0)
    assert float(ours().detach()) == first  # torch.manual_seed determines the noise
    assert float(ours().detach()) != first


@pytest.mark.parametrize(
    "ours",
    [
        lambda x: 2.01 * x.sum(),  # another loss
        lambda x: 2 * x.sum().detach() + 0 * x.sum(),  # the same value, without its gradient
        lambda x: x.sum() * torch.nan,
    ],
)
def test_a_variant_that_computes_something_else_is_not_timed(ours, tmp_path):
    code, data = run([case_of(small(ours))], tmp_path / "steps.json")
    assert code == 1
    assert data["steps"] == [] and "differ" in data["not_run"]["small"]


def test_a_small_gradient_counts_as_much_as_a_large_one():
    large, little = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    value = lambda factor: (100 * large + factor * little).sum()  # noqa: E731
    work = training([large, little], lambda: value(1.0), lambda: value(1.001), {})
    with pytest.raises(Wrong, match="differ"):
        work.check()


def test_the_comparison_gives_a_kl_of_small_weight_a_larger_one():
    """The check detects a KL that is wrong by a factor, which its training weight would hide."""
    noise = Noise()
    parameter = nn.Parameter(torch.ones(2))

    def loss(factor):
        return parameter.sum() + noise.weight(1e-6) * factor * parameter.square().sum()

    work = training([parameter], lambda: loss(1.0), lambda: loss(2.0), {}, noise)
    with pytest.raises(Wrong, match="differ"):
        work.check()
    noise.is_given = False
    assert float(loss(1.0).detach()) == pytest.approx(float(loss(2.0).detach()), rel=1e-5)


def test_a_loss_without_gradients_proves_nothing():
    work = small(lambda x: 0 * x.sum())
    work.functions = {"theirs": work.functions["ours"]}
    with pytest.raises(Wrong, match="zero"):
        work.check()


def test_a_missing_package_is_named_and_no_failure(tmp_path, capsys):
    path = tmp_path / "steps.json"
    cases = [case_of(small(), "no-such-package", "absent"), case_of(small())]
    code, written = run(cases, path)
    assert code == 0
    assert written["not_run"] == {"absent": "no-such-package is not installed"}
    assert [row["case"] for row in written["steps"]] == ["small"]
    assert written["versions"]["no-such-package"] is None and written["versions"]["torch"]
    assert "absent: no-such-package is not installed" in capsys.readouterr().out
    page = "\n".join(table.markdown(written))
    assert "- Not measured: absent: no-such-package is not installed." in page


def test_a_step_trains_the_parameters_of_the_model():
    work = small()
    (parameter,) = work.leaves
    before = parameter.detach().clone()
    work.step("ours")()
    after_ours = parameter.detach().clone()
    work.step("theirs")()
    assert bool((after_ours < before).all()) and bool((parameter < after_ours).all())


def test_a_row_has_times_ratios_and_shares():
    row = json.loads(json.dumps(measure(case_of(small()), "cpu", 0.0, fewest=3)))
    for name in ("theirs", "ours"):
        times = row["variants"][name]["times"]
        assert {"forward", "backward", "step", "processor"} == set(times)
        assert times["step"]["rounds"] == 3
        assert 0 < row["variants"][name]["minima"]["step"] <= times["step"]["median"]
        assert row["parts"]["latent"]["share_of_step"][name] > 0
    assert set(row["ratio"]) == {"median", "minima", "processor"}
    minima = [row["variants"][name]["minima"]["step"] for name in ("theirs", "ours")]
    assert row["ratio"]["minima"] == pytest.approx(minima[0] / minima[1], rel=1e-2)
    assert row["agreement"]["gradient_difference"] == 0


def row_of(ratios, part=(0.0, 0.0)):
    """Returns a row whose package takes 100 us, with a part's times: the package's, then ours."""
    row = {"case": "small", "what": "a sum", "package": "", "release": None}
    minima = {name: {"step": us} for name, us in zip(("theirs", "ours"), part, strict=True)}
    times = {name: {"minima": {"step": 100.0}} for name in ("theirs", "ours")}
    return row | {
        "ratio": dict(zip(("median", "minima", "processor"), ratios, strict=True)),
        "variants": times,
        "parts": {"latent": {"minima": minima}},
    }


@pytest.mark.parametrize(
    ("ratios", "part", "verdict"),
    [
        ((1.5, 1.4, 1.3), (40.0, 10.0), "gains"),
        ((1.5, 1.4, 1.3), (0.5, 0.1), "no gain"),  # noise: the parts cannot save that much
        ((1.5, 1.4, 1.01), (40.0, 10.0), "no gain"),
        ((1.0, 1.0, 1.0), (40.0, 10.0), "no gain"),
        ((0.9, 1.1, 0.9), (40.0, 10.0), "no gain"),
        ((0.9, 0.8, 0.95), (40.0, 10.0), "slower"),
    ],
)
def test_a_table_says_where_a_step_does_not_gain(ratios, part, verdict):
    row = row_of(ratios, part)
    assert table.verdict(row) == verdict
    page = "\n".join(table.markdown({"steps": [row], "not_run": {}}))
    others = f"small {ratios[1]:.2f}" + ", slower" * (verdict == "slower") + "."
    assert (f"| {ratios[1]:.2f} |" in page) == (verdict == "gains")
    assert (others in page.replace("\n", " ")) == (verdict != "gains")


def test_what_the_parts_save_is_a_share_of_the_step():
    assert table.saved_by_parts(row_of((1, 1, 1), (40.0, 10.0))) == pytest.approx(0.3)


def test_the_tables_of_the_pages_are_those_of_their_json():
    marks = readme.STEPS_BEGIN, readme.STEPS_END
    for page in (readme.README, readme.STEPS_PAGE):
        text = page.read_text(encoding="utf-8")
        paths = readme.sources(text, *marks)
        assert paths, f"{page} has no figures"
        assert readme.whole_steps(paths, page) in text, "python -m benchmarks.readme FILES"


def test_readme_writes_the_part_of_each_kind_alone(tmp_path, monkeypatch):
    pages = [tmp_path / "README.md", tmp_path / "steps.md"]
    data = record.new(table.MODULE, [], "cpu", {})
    data["steps"] = [measure(case_of(small()), "cpu", 0.0, fewest=2)]
    path = ROOT / "benchmarks" / "results" / "steps-of-a-test.json"
    monkeypatch.setattr(readme, "README", pages[0])
    monkeypatch.setattr(readme, "STEPS_PAGE", pages[1])
    empty = f"above\n{readme.STEPS_BEGIN}\n{readme.STEPS_END}\nbelow\n"
    pages[0].write_text(f"{empty}{readme.BEGIN}\nkept\n{readme.END}\n")
    pages[1].write_text(empty)
    try:
        record.write(data, path)
        assert readme.main([str(path)]) == 0
    finally:
        path.unlink()
    texts = [page.read_text() for page in pages]
    assert "gain: small " in texts[0] and "\nkept\n" in texts[0]
    assert "| small |" in texts[1] and all("above\n<!--" in text for text in texts)
    assert "../benchmarks/results/steps-of-a-test.json" not in texts[0]
