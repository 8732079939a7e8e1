"""How one model writes: its forms of calls, and its thoughts."""

import re
from dataclasses import dataclass

from mycelia.node.formats.forms import Form, names_in


@dataclass(frozen=True)
class Thoughts:
    """How a family writes thoughts, and the marks around its content."""

    opens: tuple[str, ...] = ()
    closes: tuple[str, ...] = ()
    anywhere: bool = False
    """Thoughts may come after content; otherwise only where an answer begins, or after a call."""
    ends_at_call: bool = False
    """A call ends a thought without its closing mark."""
    dropped: tuple[str, ...] = ()
    """Marks around content, which are no part of it."""
    answer: str = ""
    """The mark after which an answer without calls has its content, in formats that always have one ("{...}" in it is
    any text); empty: the closing mark of the thought."""
    turn: str = ""
    """A mark with which prompts end, and which belongs to the patterns of this format."""


@dataclass(frozen=True)
class Format:
    """How one model writes."""

    name: str
    forms: tuple[Form, ...]
    thoughts: Thoughts

    def token_texts(self) -> set[str]:
        """Texts that may be single control tokens of the model."""
        thoughts = self.thoughts
        marks = {*thoughts.opens, *thoughts.closes, *thoughts.dropped, thoughts.turn, *names_in(self.forms)}
        return {token for mark in marks for token in _TOKEN.findall(mark)} | _MORE_TOKENS

    def opened_by(self, prompt_end: str) -> str:
        """The mark at the end of a prompt with which the answer has already begun; empty: none."""
        prompt_end = prompt_end.rstrip()
        marks = [mark for mark in (*self.thoughts.opens, self.thoughts.turn) if mark]
        return next((mark for mark in marks if prompt_end.endswith(mark.rstrip())), "")

    def left_open(self, text: str) -> str:
        """The opening mark of a thought that begins in ``text``, the first part of an answer, and does not end in it;
        empty: none."""
        thoughts = self.thoughts
        place, mark = max(((text.rfind(mark), mark) for mark in thoughts.opens), default=(-1, ""))
        return mark if place >= 0 and not any(close in text[place:] for close in thoughts.closes) else ""

    def thought_before_grammar(self, opened: str) -> tuple[str, str]:
        """(opening mark, closing mark) of a thought that comes before what a grammar describes. Empty opening: the
        answer begins in it; both empty: no thought comes. opened: see ``opened_by``."""
        thoughts = self.thoughts
        if thoughts.answer:
            return "", thoughts.answer
        if not thoughts.opens:
            return "", ""
        return "" if opened in thoughts.opens else thoughts.opens[0], thoughts.closes[0]


_TOKEN = re.compile(r"<\|[^<>]*\|>|<｜[^<>]*｜>|</?[\w:|]+>|<\|[\w]+>|<[\w]+\|>|\[/?[A-Z_]+\]|<\|\"\|>")

_MORE_TOKENS = {"<|constrain|>", '<|"|>', "｜DSML｜", "]<]minimax[>["}
