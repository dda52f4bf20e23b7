"""Files for contributors agree with the versions, commands and report forms that they repeat."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from vae_fused._version import __version__

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"
CODE = {".py", ".h", ".cpp", ".cu", ".cuh"}


def pins(text: str) -> dict[str, str]:
    return dict(re.findall(r"([\w-]+)==([\w.]+)", text))


def test_pre_commit_has_the_checks_and_the_versions_of_make_lint() -> None:
    config = (ROOT / ".pre-commit-config.yaml").read_text()
    makefile = (ROOT / "Makefile").read_text()
    required = pins((ROOT / "requirements" / "lint.txt").read_text())
    # mypy runs in the environment of `make lint`, which has the required version.
    assert required.pop("mypy")
    assert pins(config) == required
    entries = re.findall(r"^ +entry: (.+)$", config, re.MULTILINE)
    environment = re.search(r"^VENV +\?= (\S+)$", makefile, re.MULTILINE)
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert environment and recipe
    commands = re.findall(r"\$\(BIN\)/(ruff \w+|[\w-]+)", recipe[1])
    assert len(commands) == len(entries) >= 4
    for command, entry in zip(sorted(commands), sorted(entries, key=entry_name), strict=True):
        assert entry_name(entry) == command
    assert f"{environment[1]}/bin/mypy" in entries


def entry_name(entry: str) -> str:
    found = re.search(r"(ruff \w+|[\w-]+)(?: -.*)?$", entry)
    assert found
    return found[1]


def test_the_workflow_runs_what_a_change_must_pass() -> None:
    workflow = WORKFLOW.read_text()
    commands = re.findall(r"^ +- run: (.+)$", workflow, re.MULTILINE)
    assert commands == ["make lint", ".ci/run"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_workflow_pins_actions_and_can_only_read() -> None:
    workflow = WORKFLOW.read_text()
    actions = re.findall(r"uses: (\S+)", workflow)
    assert len(actions) >= 2
    for action in actions:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action)
    permissions = re.findall(r"^ *permissions:\n((?: +.*\n)+)", workflow, re.MULTILINE)
    assert permissions == ["  contents: read\n"]
    assert workflow.count("persist-credentials: false") == workflow.count("actions/checkout@")


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("ISSUE_TEMPLATE/bug.yml", False),
        ("ISSUE_TEMPLATE/performance.yml", True),
        ("ISSUE_TEMPLATE/feature.yml", True),
        ("pull_request_template.md", True),
    ],
)
def test_a_form_requests_the_environment_and_the_numbers(name: str, numbers: bool) -> None:
    form = (ROOT / ".github" / name).read_text()
    assert "python -m vae_fused.env" in form
    if numbers:
        assert re.search(r"numbers before", form, re.IGNORECASE)
        assert re.search(r"numbers after|before and after", form, re.IGNORECASE)


def test_the_citation_has_the_version_and_the_license_of_the_package() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {__version__}\n" in citation
    project = (ROOT / "pyproject.toml").read_text()
    name = re.search(r'^license = "(.+)"$', project, re.MULTILINE)
    assert name
    assert f"\nlicense: {name[1]}\n" in citation


def test_the_code_has_the_names_of_the_glossary() -> None:
    page = (ROOT / "docs" / "style.md").read_text()
    table = re.search(r"^\| word \| meaning \| in code \|\n\|.*\n((?:\|.*\n)+)", page, re.MULTILINE)
    assert table
    columns = [row.split("|")[3] for row in table[1].splitlines()]
    names = [name for column in columns for name in re.findall(r"`([\w.]+)`", column)]
    files = [p for folder in ("csrc", "vae_fused") for p in (ROOT / folder).rglob("*.*")]
    words = {w for p in files if p.suffix in CODE for w in re.findall(r"\w+", p.read_text())}
    assert len(names) >= 15
    assert [name for name in names if not set(name.split(".")) <= words] == []
