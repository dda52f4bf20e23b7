"""In each recipe in docs/cookbook.md, `ours` equals `theirs` in values and in all gradients."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from conftest import random
from torch import Tensor

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cookbook.md"
F64 = torch.float64
# The maximum error against float64, in units of the largest element or of 1.
TOLERANCE = {F64: 1e-12, torch.float32: 3e-6}


class Recipe(NamedTuple):
    source: str
    line: int  # the line on the page, so that errors point there

    def functions(self) -> dict[str, Callable[..., Any]]:
        namespace: dict[str, Any] = {}
        for code, line in ((IMPORTS.source, IMPORTS.line), self):
            exec(compile("\n" * line + code, str(PAGE), "exec"), namespace)
        return namespace

    def arguments(self, dtype: torch.dtype, device: str, draw: int = 0) -> dict[str, Tensor]:
        """Creates the arguments that line 1 declares: `# mu, eps: (8, 20); mask: (8, 1) bool`."""
        made: dict[str, Tensor] = {}
        for names, shape, kind in DECLARATION.findall(self.source.splitlines()[0]):
            sizes = [int(size) for size in re.findall(r"\d+", shape)]
            for name in names.split(", "):
                value = random(*sizes, seed=100 * draw + len(made), dtype=F64, device=device)
                if kind == "bool":
                    made[name] = value > -0.7
                    continue
                value = 0.3 + value.abs() if kind == "positive" else value
                made[name] = value.to(dtype).requires_grad_()
        return made


DECLARATION = re.compile(r"(\w+(?:, \w+)*): (\([\d, ]*\))(?: (bool|positive))?")


def blocks() -> dict[str, Recipe]:
    """Returns the page's recipes by heading. The first block contains all recipes' imports."""
    found: dict[str, Recipe] = {}
    page, title = PAGE.read_text(), ""
    for part in re.finditer(r"^```python\n(.*?)^```|^#+ (.*?)$", page, re.MULTILINE | re.DOTALL):
        if part[2] is not None:
            title = part[2]
            continue
        number = sum(name.startswith(title) for name in found)
        name = f"{title}, {number + 1}" if number else title
        found[name] = Recipe(part[1], page[: part.start()].count("\n") + 1)
    return found


RECIPES = blocks()
IMPORTS = RECIPES.pop("Cookbook")


def results(
    function: Callable[..., Any], arguments: dict[str, Tensor], passes: int = 1
) -> list[Tensor]:
    """Returns a recipe's values, and all gradients of a random combination of the values.

    Backward runs `passes` times through the graph, and must compute the same gradients each time.
    """
    values = function(**arguments)
    values = [values] if isinstance(values, Tensor) else [*values]
    leaves = [t for t in arguments.values() if t.requires_grad]
    weights = [random(*v.shape, seed=90 + i, device=v.device.type) for i, v in enumerate(values)]
    gradients = [
        torch.autograd.grad(
            values,
            leaves,
            [w.to(v.dtype) for v, w in zip(values, weights, strict=True)],
            retain_graph=i + 1 < passes,
        )
        for i in range(passes)
    ]
    for again in gradients[1:]:
        assert all(torch.equal(a, b) for a, b in zip(again, gradients[0], strict=True))
    return [v.detach() for v in values] + [*gradients[0]]


def both(
    name: str, dtype: torch.dtype, device: str, draw: int = 0
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Returns `ours` and `theirs` in this dtype, and `theirs` in float64 for the same inputs."""
    recipe = RECIPES[name]
    functions, arguments = recipe.functions(), recipe.arguments(dtype, device, draw)
    doubles = {
        k: v if v.dtype == torch.bool else v.detach().double().requires_grad_()
        for k, v in arguments.items()
    }
    return (
        results(functions["ours"], arguments, passes=2),
        results(functions["theirs"], arguments),
        results(functions["theirs"], doubles),
    )


def error(got: Tensor, truth: Tensor) -> float:
    """The largest error over all elements, relative to the largest element or to 1."""
    return (got.double() - truth).abs().max().item() / max(1.0, truth.abs().max().item())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", RECIPES)
def test_ours_is_theirs(name, dtype, device):
    ours, _, truth = both(name, dtype, device)
    for got, want in zip(ours, truth, strict=True):
        assert got.shape == want.shape and got.dtype == dtype
        assert error(got, want) <= TOLERANCE[dtype]


@pytest.mark.parametrize("name", RECIPES)
def test_in_bfloat16_ours_is_no_further_from_the_truth(name, device):
    """Over ten draws, our largest error of a result is at most twice theirs, or at most 2^-8.

    With a single draw, the error of a scalar would depend on chance.
    """
    draws = [both(name, torch.bfloat16, device, draw) for draw in range(10)]
    ours, theirs = (
        [
            max(error(result, want) for result, want in results)
            for results in zip(*(zip(draw[k], draw[2], strict=True) for draw in draws), strict=True)
        ]
        for k in (0, 1)
    )
    for mine, other in zip(ours, theirs, strict=True):
        assert mine <= max(2 * other, 2.0**-8)


def test_the_page_has_a_recipe_for_each_code_base():
    page = PAGE.read_text()
    for name in (
        "pytorch/examples", "diffusers", "CompVis", "contperceptual", "scvi-tools", "vdvae",
        "PlaNet", "torchrl", "dreamerv2", "VITS", "pythae", "IWAE", "torch.distributions", "Pyro",
        "bayesian-torch", "MONAI", "Oobleck", "global_average", "PyTorch Geometric", "torchbnn",
        "Keras", "Lightning", "LearnedPrior",
    ):  # fmt: skip
        assert name in page
    assert len(RECIPES) >= 30 and all(r.source.startswith("# ") for r in RECIPES.values())
