"""Each example in docs/integration.md runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from conftest import native

from vae_fused import _ext

PAGE = Path(__file__).resolve().parents[2] / "docs" / "integration.md"
OPTIONAL = ("onnxruntime",)
NEEDS_A_GPU = "# needs a GPU\n"
# Examples whose assertions check the operators and not the values.
OF_OPERATORS = ("Saved-tensor hooks", "torch.compile", "torch.export", "Autocast and GradScaler")


class Example(NamedTuple):
    source: str
    line: int  # the line on the page, so that errors point there

    def run(self, namespace: dict[str, Any]) -> None:
        exec(compile("\n" * self.line + self.source, str(PAGE), "exec"), namespace)


def examples() -> dict[str, Example]:
    """Returns the page's examples by heading."""
    found: dict[str, Example] = {}
    page, title = PAGE.read_text(), ""
    for part in re.finditer(r"^```python\n(.*?)^```|^#+ (.*?)$", page, re.MULTILINE | re.DOTALL):
        if part[2] is not None:
            title = part[2]
            continue
        number = sum(name.split(", ")[0] == title for name in found)
        name = f"{title}, {number + 1}" if number else title
        found[name] = Example(part[1], page[: part.start()].count("\n") + 1)
    return found


EXAMPLES = examples()
SHARED = EXAMPLES.pop("Integration")
ON_GPUS = {name for name, example in EXAMPLES.items() if example.source.startswith(NEEDS_A_GPU)}
GPU = _ext.has_cuda and torch.cuda.is_available()


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=native) if name.split(", ")[0] in OF_OPERATORS else name
        for name in EXAMPLES
        if GPU or name not in ON_GPUS
    ],
)
def test_the_example_runs(name):
    example = EXAMPLES[name]
    for package in OPTIONAL:
        if f"import {package}\n" in example.source:
            pytest.importorskip(package)
    torch.manual_seed(0)
    namespace: dict[str, Any] = {"__name__": "example"}
    SHARED.run(namespace)
    example.run(namespace)


def test_examples_for_a_gpu_are_python():
    assert ON_GPUS
    for name in ON_GPUS:
        compile(EXAMPLES[name].source, name, "exec")


def test_each_row_of_the_tables_has_an_example():
    page = PAGE.read_text()
    features = page.split("## Features of torch")[1].split("###")[0]
    anchors = re.findall(r"\]\(#([\w-]+)\)", features)
    headings = {
        re.sub(r"[^\w -]", "", name.split(", ")[0]).lower().replace(" ", "-") for name in EXAMPLES
    }
    assert len(anchors) >= 17 and set(anchors) <= headings
