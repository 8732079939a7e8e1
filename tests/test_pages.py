"""Links and names in the pages exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "proto").glob("*.md")])
FOLDERS = "proto|node|sim|bench|tests|docs|scripts|examples|packaging"
BY_FILE_UNDER_TESTS = "security.md"
"""The page that, as it says itself, names tests by their file under ``tests/``."""


def anchors(page: Path) -> set[str]:
    """The places in a page that links can lead to, as GitHub names them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", page.read_text("utf-8"))
    targets = [(page.parent / file if file else page, place) for file, place in links]
    assert [str(file) for file, _ in targets if not file.exists()] == []
    assert [(str(file), place) for file, place in targets if place and place not in anchors(file)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_are_named_exist(page: Path) -> None:
    named = re.findall(rf"`((?:{FOLDERS})/[\w./-]+)`", page.read_text("utf-8"))
    roots = (ROOT, ROOT / "tests") if page.name == BY_FILE_UNDER_TESTS else (ROOT,)
    assert [name for name in named if not any((root / name).exists() for root in roots)] == []
    modules = {file.name for folder in FOLDERS.split("|") for file in (ROOT / folder).rglob("*.py")}
    assert set(re.findall(r"`(\w+\.py)`", page.read_text("utf-8"))) <= modules | {"setup.py"}


def test_every_decision_is_in_the_index() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = set(re.findall(r"^\| \[[^\]]+\]\(([\w-]+\.md)\)", (folder / "README.md").read_text("utf-8"), re.MULTILINE))
    assert listed == {page.name for page in folder.glob("*.md")} - {"README.md"}
