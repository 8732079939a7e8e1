"""How the text of an answer is shown: thoughts dimmed, on a terminal only."""

import sys

import pytest

from mycelia.node.terminal.answer_text import AnswerText
from mycelia.node.views.frames import TextView

ANSWER = [TextView("", thought="Hm"), TextView("", thought="."), TextView("Yes"), TextView(".\x1b[2J")]
DIM, PLAIN = "\x1b[2m", "\x1b[0m"


def test_an_answer_that_is_nothing_but_a_thought_is_explained() -> None:
    text = AnswerText(hides_thoughts=True)
    assert not text.note("length")
    text.show(ANSWER[0])
    assert "--max-tokens" in text.note("length") and not text.note("stop")
    text.show(ANSWER[2])
    assert not text.note("length")


@pytest.mark.parametrize(
    ("is_terminal", "hides", "shown"),
    [
        (True, False, f"{DIM}Hm{PLAIN}{DIM}.{PLAIN}\n\nYes.[2J"),
        (True, True, "Yes.[2J"),
        (False, False, "Yes."),
        (False, True, "Yes."),
    ],
)
def test_thoughts_are_dimmed_on_a_terminal_and_nowhere_else(
    is_terminal: bool, hides: bool, shown: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    text = AnswerText(hides)
    for part in ANSWER:
        text.show(part)
    written = capsys.readouterr().out
    assert written == shown, repr(written)
