"""The blocks of code in the pages, and the commands in them.

A block is fenced, or indented by four spaces after an empty line. An indented block has no language; it is one of
commands if its first line begins with a program of ``PROGRAMS``.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "proto").glob("*.md")])
SYSTEMS = frozenset(
    {"make", "python", "python3", "pip", "pipx", "uv", "sh", "sudo", "docker", "git", "export", "umask"}
)
PROGRAMS = SYSTEMS | {"mycelia", "curl", "lm_eval", "llm", "aider", "codex", "claude"}
INLINE = re.compile(r"`((?:\.venv/bin/)?(?:mycelia|make)(?: [^`]*)?)`")


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    """The line of the page at which the code begins, from 1."""
    language: str
    """``sh`` for commands; empty: not known."""
    text: str


@dataclass(frozen=True)
class Command:
    page: Path
    line: int
    text: str
    """Without a comment, and without the folder of the program."""

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def words(self) -> list[str]:
        """The words of its first program, as a shell splits them."""
        return shlex.split(re.split(r" [|<>] ", self.text)[0])


def blocks(page: Path) -> Iterator[Block]:
    fence, first, lines = "", 0, list[str]()
    before = ""
    for number, line in enumerate([*page.read_text("utf-8").splitlines(), "the end"], 1):
        if fence or line.startswith("```"):
            if fence and line.startswith("```"):
                yield Block(page, first, fence, "\n".join(lines))
                fence, lines = "", []
            elif fence:
                lines.append(line)
            else:
                fence, first, lines = line.removeprefix("```").strip() or "text", number + 1, []
        elif line.startswith("    ") and (lines or not before.strip()):
            first = first if lines else number
            lines.append(line.removeprefix("    "))
        elif lines and line.strip():
            text = "\n".join(lines).rstrip()
            yield Block(page, first, "sh" if _program(text.splitlines()[0]) in PROGRAMS else "", text)
            lines = []
        elif lines:
            lines.append("")
        before = line


def commands(page: Path) -> Iterator[Command]:
    """The commands in the page's blocks. A line that ends with a backslash goes on in the next one; in a block that
    shows what a terminal shows, commands are after ``$``."""
    for block in blocks(page):
        if block.language == "sh":
            yield from _commands_of(block)
        elif block.text.startswith("$ "):
            yield Command(page, block.line, _plain(block.text.splitlines()[0].removeprefix("$ ")))


def _commands_of(block: Block) -> Iterator[Command]:
    text, first = "", block.line
    for number, line in enumerate(block.text.splitlines(), block.line):
        first = first if text else number
        text += line.removesuffix("\\")
        assert not line.endswith("\\") or text.count("'") % 2 == 0, f"{block.page}:{number}: a backslash inside quotes"
        if not line.endswith("\\"):
            if plain := _plain(text):
                yield Command(block.page, first, plain)
            text = ""


def mentions(page: Path) -> Iterator[Command]:
    """The commands of mycelia and make in the page's text."""
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        for text in INLINE.findall(line):
            yield Command(page, number, _plain(text))


def _program(line: str) -> str:
    """The first word of a command without its folder and without variables before it."""
    words = [word for word in line.split() if not re.match(r"[A-Z_]+=", word)]
    return words[0].rpartition("/")[2] if words else ("export" if line else "")


def _plain(text: str) -> str:
    """A command without its comment, and without extra spaces between words that are not quoted."""
    text = re.sub(r"(^|\s)#.*$", "", text)  # (no command here has a # in quotes)
    text = re.sub(r"(^| )(?:\.venv|venv)/bin/", r"\1", text)
    return re.sub(r"(?<=\S) {2,}", " ", text).strip()
