"""``ARCHITECTURE.md`` is a map: its tree is that of the folders, and the files it names exist."""

import re
import subprocess
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
DEEP = ("node/engine", "node/network", "node/serve")
"""Folders shown with all their subfolders; others have two levels."""


def told_folders() -> set[str]:
    """The folders of the tree in the page, with their parents by indentation."""
    tree = TEXT[TEXT.index("## The house") : TEXT.index("`tests/test_architecture.py`")]
    told, parents = set[str](), dict[int, str]()
    for indent, name in re.findall(r"^ {4}( *)([\w.]+)/ ", tree, re.MULTILINE):
        depth = len(indent) // 2
        parents[depth] = f"{parents[depth - 1]}/{name}" if depth else name
        told.add(parents[depth])
    return told


def folders() -> set[str]:
    """Folders that git knows, or would know after ``git add``, as deep as the tree goes; without hidden ones."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    parts = [PurePosixPath(file).parts[:-1] for file in listed.stdout.splitlines() if (ROOT / file).is_file()]
    depths = [3 if "/".join(part[:2]) in DEEP else 2 for part in parts]
    found = {"/".join(part[:level]) for part, most in zip(parts, depths, strict=True) for level in range(1, most + 1)}
    return {folder for folder in found if folder and not folder.startswith(".")}


def test_the_tree_is_that_of_the_folders() -> None:
    assert told_folders() == folders()


def test_the_files_that_are_named_exist() -> None:
    named = set(re.findall(r"`((?:proto|node|sim|bench|tests|docs)/[\w./]+)`", TEXT))
    assert len(named) > 30
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
