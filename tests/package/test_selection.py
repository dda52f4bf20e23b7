"""`make test` skips tests that need more packages, and `--few` skips most parametrizations."""

from __future__ import annotations

import re
from collections.abc import Iterable
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


def selected(names: list[str], few: int | None) -> tuple[list[str], list[str]]:
    """Returns the names that ``--few`` keeps, and the names that it skips."""
    items: list[Any] = [Item(name) for name in names]
    skipped: list[Any] = []
    hook = SimpleNamespace(pytest_deselected=lambda items: skipped.extend(items))
    config: Any = SimpleNamespace(getoption={"few": few}.get, hook=hook)
    pytest_collection_modifyitems(config, items)
    return [item.nodeid for item in items], [item.nodeid for item in skipped]


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


def test_both_commands_name_every_folder_with_tests() -> None:
    (listed,) = re.findall(r"^FOLDERS .*tests/,([\w ]+)\)$", (ROOT / "Makefile").read_text(), re.M)
    folders = {path.relative_to(ROOT / "tests").parts[0] for path in TESTS}
    assert {*listed.split(), "speed"} == folders


@pytest.mark.parametrize(
    ("few", "kept"), [(None, range(6)), (2, [0, 5]), (3, [0, 2, 5]), (9, range(6))]
)
def test_few_keeps_evenly_spaced_parametrizations_of_each_function(
    few: int | None, kept: Iterable[int]
) -> None:
    names = [*(f"a.py::f[{i % 2}-{i // 2}]" for i in range(6)), "a.py::g", "b.py::f[x]"]
    found, skipped = selected(names, few)
    assert found == [*(names[i] for i in kept), *names[6:]]
    assert len(found) + len(skipped) == len(names)


def test_few_keeps_all_native_tests() -> None:
    names = [f"tests/{folder}/a.py::f[{i}]" for folder in ("native", "usage") for i in range(6)]
    found, _ = selected(names, 2)
    assert found == [*names[:6], names[6], names[11]]


def test_few_keeps_different_values_of_crossed_parameters() -> None:
    found, _ = selected([f"a.py::f[{slow}-{fast}]" for slow in "abc" for fast in "xy"], 3)
    slow, fast = ({name[at] for name in found} for at in (-4, -2))
    assert slow == set("abc") and fast == set("xy")
