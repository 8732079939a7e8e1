"""The text of an answer on standard output, with the model's thoughts dimmed."""

import sys

import click

from mycelia.node.terminal.tables import printable
from mycelia.node.views.frames import TextView


class AnswerText:
    """Prints one answer. Thoughts are shown on a terminal only: a program that reads the output wants the answer."""

    def __init__(self, hides_thoughts: bool, is_safe: bool = False) -> None:
        """is_safe: replace control characters also where the output is no terminal."""
        self._is_terminal = sys.stdout is not None and sys.stdout.isatty()
        self._shows_thoughts = self._is_terminal and not hides_thoughts
        self._is_safe = is_safe or self._is_terminal
        self._is_in_thought = self._has_thought = self._has_text = False

    def note(self, finish_reason: str) -> str:
        """What to say at the end of the answer; empty: nothing."""
        if finish_reason == "length" and self._has_thought and not self._has_text:
            return "the answer ended inside the model's thought: allow more tokens with --max-tokens"
        return ""

    def show(self, text: TextView) -> None:
        self._has_thought = self._has_thought or bool(text.thought)
        self._has_text = self._has_text or bool(text.text.strip())
        if text.thought and self._shows_thoughts:
            click.echo(click.style(printable(text.thought), dim=True), nl=False)
            self._is_in_thought = True
        if text.text:
            if self._is_in_thought:
                click.echo("\n")
                self._is_in_thought = False
            click.echo(printable(text.text) if self._is_safe else text.text, nl=False)
