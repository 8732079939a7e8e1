"""Links and names in the pages exist."""

import re
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from mycelia.node.reload.reloading import LIVE
from tests.pages.blocks import PAGES, ROOT

FOLDERS = "proto|node|sim|bench|tests|docs|scripts|examples|packaging"
MADE = "docs/api-reference.md"
"""What only the site has."""
BY_FILE_UNDER_TESTS = "security.md"
"""The page that, as it says itself, names tests by their file under ``tests/``."""


@cache
def files() -> list[Path]:
    """Those of FOLDERS, without what was installed or compiled there."""
    found = [file for folder in FOLDERS.split("|") for file in (ROOT / folder).rglob("*") if file.is_file()]
    return [file for file in found if not {"node_modules", "__pycache__"} & set(file.parts)]


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
def test_lists_and_tables_begin_after_an_empty_line(page: Path) -> None:
    """Otherwise the site shows them as text, unlike GitHub."""
    lines = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL).splitlines()
    tables = [lines[at - 2] for at, line in enumerate(lines) if at > 1 and re.fullmatch(r"\|[-:| ]+\|", line)]
    item = re.compile(r"([-*]|\d+\.) ")
    lists = [
        line
        for before, line in pairwise(lines)
        if item.match(line) and before.strip() and not before.startswith("  ") and not item.match(before)
    ]
    cut_off = [
        line
        for before, line, after in zip(lines, lines[1:], lines[2:], strict=False)
        if not before.strip() and line.startswith("|") and not re.fullmatch(r"\|[-:| ]+\|", after)
    ]
    assert [line for line in tables if line.strip()] + lists + cut_off == []


def test_every_page_is_in_the_sites_navigation() -> None:
    pages = [str(page.relative_to(ROOT)) for page in PAGES]
    _, _, navigation = (ROOT / "scripts" / "site" / "mkdocs.yml").read_text("utf-8").partition("\nnav:\n")
    assert sorted(re.findall(r"[\w/.-]+\.md$", navigation, re.MULTILINE)) == sorted([*pages, MADE])


def test_the_messages_of_the_troubleshooting_page_are_those_of_the_program() -> None:
    """Without the parts that differ; texts that Python joins are joined here."""
    files = [*(ROOT / "node").rglob("*.py"), *(ROOT / "scripts").glob("*")]
    source = "\n".join(file.read_text("utf-8") for file in files if file.is_file())
    source = re.sub(r"\"\s*\n\s*f?\"", "", source)
    page = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    told = [row.partition(" | ")[0] for row in page.splitlines() if re.match(r"\| `", row)]
    messages = [two or one for row in told for two, one in re.findall(r"``(.+?)``|`([^`]+)`", row)]
    assert len(messages) > 30
    parts = [part.strip(": ") for message in messages for part in message.split("…")]
    assert [part for part in parts if part not in source] == []


def test_the_page_on_upgrades_names_each_setting_that_a_running_node_takes_over() -> None:
    section = (ROOT / "docs" / "install.md").read_text().partition("## Changing settings while it runs")[2]
    named = section.partition("\n## ")[0].lower()
    assert [name for name in LIVE.values() if name not in named] == []


def test_pages_that_the_program_names_exist() -> None:
    """Also the places in them: a message that names a page leads to what the user needs."""
    texts = [
        file.read_text("utf-8", "ignore") for file in files() if file.suffix != ".md" and file.stat().st_size < 200_000
    ]
    named = {found for text in texts for found in re.findall(r"\b(docs/[\w/-]+\.md)(?:#([\w-]+))?", text)}
    assert len(named) > 5
    named = {(page, place) for page, place in named if page != MADE}
    assert [page for page, _ in named if not (ROOT / page).exists()] == []
    assert [(page, place) for page, place in named if place and place not in anchors(ROOT / page)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_are_named_exist(page: Path) -> None:
    named = re.findall(rf"`((?:{FOLDERS})/[\w./-]+)`", page.read_text("utf-8"))
    roots = (ROOT, ROOT / "tests") if page.name == BY_FILE_UNDER_TESTS else (ROOT,)
    assert [name for name in named if not any((root / name).exists() for root in roots)] == []
    modules = {file.name for file in files() if file.suffix == ".py"}
    assert set(re.findall(r"`(\w+\.py)`", page.read_text("utf-8"))) <= modules | {"setup.py"}


def test_every_decision_is_in_the_index() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = set(re.findall(r"^\| \[[^\]]+\]\(([\w-]+\.md)\)", (folder / "README.md").read_text("utf-8"), re.MULTILINE))
    assert listed == {page.name for page in folder.glob("*.md")} - {"README.md"}
