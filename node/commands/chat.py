"""``mycelia chat``: the command and its input. The conversation itself is in node/terminal/conversation.py."""

import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mycelia.node.commands.entering import entering_options
from mycelia.node.commands.options import (
    check_model,
    check_unicode,
    model_option,
    no_think_option,
    seed_option,
    system_option,
    temperature_option,
)
from mycelia.node.commands.running import console, run

if TYPE_CHECKING:
    from mycelia.node.terminal.conversation import Chat

_MAX_LINE_CHARS = 524_288
_QUOTES, _END = '"""', "\r\n"


@click.command(
    epilog="""\b
Examples:
  mycelia chat
  mycelia chat --system "You are a pirate." --temperature 0.7
  printf 'My name is Ada.\\nWhat is my name?\\n' | mycelia chat"""
)
@click.option(
    "--max-tokens", type=click.IntRange(1, 131_072), default=512, show_default=True, help="Most tokens of an answer."
)
@temperature_option
@seed_option
@system_option
@model_option
@no_think_option
@entering_options
def chat(
    max_tokens: int,
    temperature: float,
    seed: int,
    system: str,
    model: str,
    no_think: bool,
    invitation: str,
    swarm: str,
    public: bool,
    bootstrap: tuple[str, ...],
    swarm_key: Path | None,
    data_dir: Path | None,
) -> None:
    """Chat with the swarm, one line per turn, from the terminal or from standard input.

    A text of several lines begins and ends with three quotes. Ctrl-C stops the current answer or clears the line;
    Ctrl-D ends the chat. /help lists the chat commands.
    """
    from mycelia.node.client.ask import ask_swarm
    from mycelia.node.commands.entering import entering
    from mycelia.node.storage.data_dir import default_data_dir
    from mycelia.node.terminal.conversation import Chat
    from mycelia.node.views.frames import PUBLIC_SUFFIX
    from mycelia.proto.wire.messages import Sampling

    check_unicode("--system", system)
    check_unicode("--model", model)
    check_model(model)
    where = data_dir or default_data_dir()
    client, peers = entering(where, bootstrap, public, swarm, invitation, swarm_key)
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, seed=seed)
    talk = Chat(
        lambda ask: ask_swarm(ask, where, peers, client=client),
        console(stderr=True),
        sampling,
        model,
        system,
        hides_thoughts=no_think,
        suffix=PUBLIC_SUFFIX if public else "",
    )
    _chat(talk)


def _chat(talk: "Chat") -> None:
    """Take turns until the input ends. Each turn is a run of its own, so that Ctrl-C cancels only that turn."""
    is_terminal = sys.stdin is not None and sys.stdin.isatty()
    if is_terminal:
        with suppress(ImportError):
            import readline  # noqa: F401  (gives input() a history and line editing)
        talk.greet()
    while True:
        try:
            line = next_text(partial(_next_line, is_terminal))
        except KeyboardInterrupt:
            if not is_terminal:
                raise
            click.echo("\n(Ctrl-D or /quit ends the chat)", err=True)
            continue
        if line is None:
            return
        try:
            if not run(partial(talk.take, line)):
                return
        except KeyboardInterrupt:
            click.echo()
            if not is_terminal:
                raise


def next_text(next_line: Callable[[str], str | None]) -> str | None:
    """The next line of input, or the lines from one that begins with three quotes to one that ends with them; None at
    the end of the input. next_line: returns the next line, and shows a prompt on a terminal."""
    line = next_line("> ")
    if line is None or not line.lstrip().startswith(_QUOTES):
        return line
    text = line.lstrip()[len(_QUOTES) :].rstrip(_END)
    while not text.rstrip().endswith(_QUOTES):
        more = next_line("... ")
        if more is None:
            return text
        text = f"{text}\n{more.rstrip(_END)}"
        if len(text) > _MAX_LINE_CHARS:
            raise click.UsageError(f"a text has at most {_MAX_LINE_CHARS} characters")
    return text.rstrip()[: -len(_QUOTES)].strip()


def _next_line(is_terminal: bool, prompt: str) -> str | None:
    """The next line of input; None at its end."""
    try:
        if is_terminal:
            return input(prompt).encode("utf-8", "replace").decode()  # (other bytes would break the request)
        line = sys.stdin.readline(_MAX_LINE_CHARS) if sys.stdin is not None else ""
        line.encode()  # (bytes that are no text may have been read as lone surrogates)
    except EOFError:
        click.echo()
        return None
    except UnicodeError as exc:
        raise click.UsageError("standard input must be UTF-8 text") from exc
    return line or None
