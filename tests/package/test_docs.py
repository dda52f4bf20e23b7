"""Checks the links between documentation pages, and the length of the performance pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PERFORMANCE = ROOT / "docs" / "performance"


def anchors(page: Path) -> set[str]:
    """Returns the anchors that GitHub generates for a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    broken = []
    for link in links:
        if link.startswith(("http", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_pages_about_performance_are_short_and_all_decisions_are_listed() -> None:
    overview = PERFORMANCE / "README.md"
    decisions = sorted((PERFORMANCE / "decisions").iterdir())
    assert len(overview.read_text(encoding="utf-8").splitlines()) <= 150
    too_long = [d for d in decisions if len(d.read_text(encoding="utf-8").splitlines()) > 60]
    assert not too_long
    assert [d.name[:4] for d in decisions] == [f"{i + 1:04}" for i in range(len(decisions))]
    listed = re.findall(r"\(decisions/(\d{4}-[\w-]+\.md)\)", overview.read_text(encoding="utf-8"))
    assert {d.name for d in decisions} == set(listed)
