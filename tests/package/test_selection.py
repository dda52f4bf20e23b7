"""`make test` skips the tests that need packages which only `make test-all` installs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TESTS = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if path != Path(__file__)]


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
