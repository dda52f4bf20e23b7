"""`make test` skips tests that need more packages, and `--few` skips most parametrizations."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import pytest_collection_modifyitems

ROOT = Path(__file__).resolve().parents[2]
TESTS = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if path != Path(__file__)]


class Item:
    def __init__(self, name: str) -> None:
        self.nodeid = name


def required(text: str) -> set[str]:
    return set(re.findall(r"^([\w-]+)", text, re.MULTILINE))


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_tests_that_import_another_package_are_marked(path: Path) -> None:
    installed = required((ROOT / "requirements" / "test.txt").read_text())
    installed.add("triton")  # a dependency of CUDA builds of torch
    text = path.read_text()
    others = set(re.findall(r'importorskip\(\s*"(\w+)', text)) - installed
    assert not others or "pytest.mark.packages" in text, others


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "Makefile"])
def test_both_commands_are_documented(name: str) -> None:
    text = (ROOT / name).read_text()
    assert "make test-all" in text and re.search(r"make test\b(?!-)", text)


@pytest.mark.parametrize(("few", "kept"), [(0, [0, 1, 2, 3, 4, 5, 6]), (3, [0, 2, 4]), (1, [0])])
def test_few_keeps_evenly_spaced_parametrizations_of_each_function(
    few: int, kept: list[int]
) -> None:
    names = [*(f"tests/a/b.py::f[{i}]" for i in range(7)), "tests/a/b.py::g", "tests/a/b.py::h[x]"]
    items: list[Any] = [Item(name) for name in names]
    skipped: list[Any] = []
    hook = SimpleNamespace(pytest_deselected=lambda items: skipped.extend(items))
    config: Any = SimpleNamespace(getoption={"few": few}.get, hook=hook)
    pytest_collection_modifyitems(config, items)
    assert [item.nodeid for item in items] == [*(f"tests/a/b.py::f[{i}]" for i in kept), *names[7:]]
    assert len(items) + len(skipped) == len(names)
