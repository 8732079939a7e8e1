"""``mycelia ask``: send one prompt and print its answer as it arrives."""

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from mycelia.node.commands.entering import entering_options
from mycelia.node.commands.options import (
    check_model,
    check_unicode,
    json_option,
    model_option,
    no_think_option,
    seed_option,
    system_option,
    temperature_option,
)
from mycelia.node.commands.running import console, run
from mycelia.proto.wire import defaults

if TYPE_CHECKING:
    from mycelia.node.client.light import LightClient
    from mycelia.proto.wire.messages import Ask

_LEAST_AGAIN_S = 0.2
"""Shortest time between two tries of ``--wait``, whatever a node answers."""


@click.command(
    epilog="""\b
Examples:
  mycelia ask "Why is the sky blue?"
  cat notes.txt | mycelia ask - --system "Summarise in three lines." --max-tokens 200
  mycelia ask "Hello" --json
  mycelia ask "Name a fish." --temperature 0.8 --seed 7 --stop "." --json-schema fish.json
  mycelia ask "Hello" --bootstrap /ip4/198.51.100.7/tcp/7117/p2p/12D3KooW...
  mycelia ask "Hello" --invite mycelia1...                   a private swarm, without a node here"""
)
@click.argument("prompt")
@click.option(
    "--max-tokens",
    type=click.IntRange(1, 131_072),
    default=256,
    show_default=True,
    help="Most tokens of the answer.",
)
@temperature_option
@seed_option
@click.option(
    "--top-k",
    type=click.IntRange(0),
    default=defaults.TOP_K,
    show_default=True,
    help="Sample from the K likeliest tokens; 0: all.",
)
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1),
    default=defaults.TOP_P,
    show_default=True,
    help="Sample from the likeliest tokens with this probability together; 1: all.",
)
@click.option(
    "--min-p",
    type=click.FloatRange(0, 1),
    default=defaults.MIN_P,
    show_default=True,
    help="Sample from tokens with at least this share of the likeliest one's probability; 0: all.",
)
@click.option(
    "--repeat-penalty",
    type=click.FloatRange(0.1, 10),
    default=defaults.REPEAT_PENALTY,
    show_default=True,
    help="Penalty for repeated tokens; 1: none.",
)
@click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text. Repeatable.")
@click.option(
    "--logprobs",
    type=click.IntRange(0, 20),
    default=0,
    show_default=True,
    help="Number of alternatives to show for each token, with --json.",
)
@click.option("--grammar", type=click.File(), metavar="FILE", help="GBNF grammar that the answer must follow.")
@click.option("--json-schema", type=click.File(), metavar="FILE", help="JSON schema that the answer must follow.")
@click.option("--regex", metavar="REGEX", help="Regular expression that the whole answer must match.")
@click.option(
    "--lark", type=click.File(), metavar="FILE", help="Lark grammar (llguidance's) that the answer must follow."
)
@click.option(
    "--timeout", type=float, metavar="SECONDS", help="Most time for the answer; after it the request is cancelled."
)
@click.option(
    "--wait",
    is_flag=True,
    help="Ask again, until --timeout, while all nodes are busy or no node can be reached.",
)
@click.option(
    "--cache-salt",
    default="",
    metavar="TEXT",
    help="Share cached prefixes of the prompt only with requests of the same TEXT; 'public' shares them with all."
    "  [default: with the same client, and, once two networks have sent a prefix, with all]",
)
@system_option
@model_option
@no_think_option
@click.option("--explain", is_flag=True, help="Show all candidate nodes with their costs, and why one was chosen.")
@entering_options
@json_option
def ask(
    prompt: str,
    max_tokens: int,
    temperature: float,
    seed: int,
    top_k: int,
    top_p: float,
    min_p: float,
    repeat_penalty: float,
    stop: tuple[str, ...],
    logprobs: int,
    grammar: TextIO | None,
    json_schema: TextIO | None,
    regex: str | None,
    lark: TextIO | None,
    timeout: float | None,
    wait: bool,
    cache_salt: str,
    system: str,
    model: str,
    no_think: bool,
    explain: bool,
    invitation: str,
    swarm: str,
    public: bool,
    bootstrap: tuple[str, ...],
    swarm_key: Path | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Send PROMPT to the swarm (- reads standard input) and print the answer as it arrives.

    The prompt enters at the local node, if one is running.

    Without a local node it enters at a bootstrap peer or at a node of the local network. On a machine in a private
    swarm it enters at a member, unless you give --public or --bootstrap.

    The node that serves a prompt can read it. If the local node stops before the answer is finished, the answer
    continues at a bootstrap peer or at another node that the local node knew. That node can then read the prompt and
    the answer, even if only the local node had read them before.
    """
    import secrets

    from mycelia.node.commands.entering import entering
    from mycelia.node.schemas.places import closed_text
    from mycelia.node.storage.data_dir import default_data_dir
    from mycelia.node.views.frames import MAX_TIMEOUT_S, PUBLIC_SUFFIX
    from mycelia.proto.wire.codec import check_sampling
    from mycelia.proto.wire.errors import LocalError
    from mycelia.proto.wire.messages import MAX_SALT_CHARS, Ask, ChatMessage, Sampling

    rules = {"gbnf": grammar, "json_schema": json_schema, "lark": lark, "regex": regex}
    forms = {kind: _read_rules(rule) for kind, rule in rules.items() if rule is not None}
    if "json_schema" in forms:
        forms["json_schema"] = closed_text(forms["json_schema"])
    if len(forms) > 1:
        raise click.UsageError("give one of --grammar, --json-schema, --regex and --lark")
    if timeout is not None and not 0 < timeout <= MAX_TIMEOUT_S:  # (a FloatRange would accept NaN)
        raise click.UsageError(f"--timeout must be more than 0 and at most {MAX_TIMEOUT_S:.0f} seconds")
    if logprobs and not as_json:
        raise click.UsageError("--logprobs shows nothing without --json")
    check_model(model)
    if len(cache_salt) > MAX_SALT_CHARS:
        raise click.UsageError(f"--cache-salt must have at most {MAX_SALT_CHARS} characters, not {len(cache_salt)}")
    given = {"--cache-salt": cache_salt, "--model": model, "--system": system, "the prompt": prompt}
    for name, value in (given | {"--stop": "".join(stop)}).items():
        check_unicode(name, value)
    text = _read_prompt(prompt)
    turns = [ChatMessage(role="system", content=system)] if system else []
    turns.append(ChatMessage(role="user", content=text))
    request = Ask(
        request_id=secrets.token_bytes(16),
        model=model + PUBLIC_SUFFIX * public,
        messages=tuple(turns),
        sampling=Sampling(
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repeat_penalty=repeat_penalty,
            stop=stop,
            logprobs=logprobs,
            grammar=next(iter(forms.values()), ""),
            grammar_kind=next(iter(forms), "gbnf"),
        ),
        cache_salt=cache_salt,
    )
    try:
        check_sampling(request.sampling)
    except LocalError as exc:
        field, _, problem = str(exc).partition(":")
        raise click.UsageError(f"--{field.replace('_', '-')}:{problem}") from exc
    where = data_dir or default_data_dir()
    client, peers = entering(where, bootstrap, public, swarm, invitation, swarm_key)
    run(
        lambda: _ask(
            request, where, peers, client, timeout, wait=wait, explain=explain, as_json=as_json, no_think=no_think
        )
    )


def _read_prompt(prompt: str) -> str:
    from mycelia.proto.wire.messages import MAX_CHAT_BYTES

    if prompt == "-":
        data = b"" if sys.stdin is None else sys.stdin.buffer.read(MAX_CHAT_BYTES + 1)
        if len(data) > MAX_CHAT_BYTES:
            raise click.UsageError(f"the prompt has more than {MAX_CHAT_BYTES} bytes; shorten it")
        try:
            prompt = data.decode()
        except UnicodeDecodeError as exc:
            raise click.UsageError(f"the prompt on standard input is not UTF-8: {exc}") from exc
    if not prompt.strip():
        raise click.UsageError("the prompt is empty")
    return prompt


def _read_rules(file: TextIO | str) -> str:
    """The text, or that of a grammar or schema file, at most one character more than allowed: enough to refuse it."""
    from mycelia.proto.wire.messages import MAX_GRAMMAR_CHARS

    try:
        return file if isinstance(file, str) else file.read(MAX_GRAMMAR_CHARS + 1)
    except UnicodeDecodeError as exc:
        raise click.UsageError(f"the grammar or schema is not UTF-8: {exc}") from exc


async def _ask(
    request: "Ask",
    data_dir: Path,
    bootstrap: tuple[str, ...],
    client: "LightClient",
    timeout_s: float | None,
    *,
    wait: bool,
    explain: bool,
    as_json: bool,
    no_think: bool = False,
) -> None:
    """Ask and print the answer. wait: ask again until ``timeout_s`` while all nodes are busy or none can be reached."""
    import trio

    from mycelia.node.client.light import UNREACHED_AGAIN_S, NoEntryError

    due_at = math.inf if timeout_s is None else trio.current_time() + timeout_s
    is_reported = False
    while True:
        left_s = None if timeout_s is None else max(due_at - trio.current_time(), 0.001)
        try:
            again_s = await _ask_once(
                request,
                data_dir,
                bootstrap,
                left_s,
                client,
                wait=wait,
                explain=explain,
                as_json=as_json,
                no_think=no_think,
            )
        except NoEntryError as exc:
            if not wait or trio.current_time() + UNREACHED_AGAIN_S >= due_at:
                raise
            if not is_reported:
                click.echo(f"mycelia: {exc}; trying again until Ctrl-C", err=True)
            is_reported, again_s = True, UNREACHED_AGAIN_S
        if again_s is None:
            return
        await trio.sleep(max(again_s, _LEAST_AGAIN_S))


def _trace_command(request: "Ask", data_dir: Path) -> str:
    """The command that shows the request's steps; empty if it did not enter at a node of this machine."""
    import shlex

    from mycelia.node.storage.data_dir import default_data_dir
    from mycelia.node.storage.rundir import find_running

    if find_running(data_dir) is None:
        return ""
    place = "" if data_dir == default_data_dir() else f" --data-dir {shlex.quote(str(data_dir))}"
    return f"mycelia trace {request.request_id.hex()[:8]}{place}"


async def _ask_once(
    request: "Ask",
    data_dir: Path,
    bootstrap: tuple[str, ...],
    timeout_s: float | None,
    client: "LightClient",
    *,
    wait: bool,
    explain: bool,
    as_json: bool,
    no_think: bool,
) -> float | None:
    """Ask once and print the answer. Returns None when it is complete.

    With ``wait``, busy nodes make it return the seconds after which to ask again. Raises LocalError on failure.
    """
    import msgspec

    from mycelia.node.client.ask import ask_swarm
    from mycelia.node.terminal.answer_text import AnswerText
    from mycelia.node.terminal.tables import failure_text, show_answered, show_route
    from mycelia.node.views.frames import AnsweredView, FailedView, RouteView, TextView
    from mycelia.proto.wire.errors import LocalError

    errors = console(stderr=True)
    shown, wrote_text = AnswerText(no_think), False
    async with ask_swarm(request, data_dir, bootstrap, timeout_s, client) as frames:
        async for frame in frames:
            if wait and not wrote_text and isinstance(frame, FailedView) and frame.retry_after_s:
                if timeout_s is None or frame.retry_after_s < timeout_s:
                    return frame.retry_after_s
            if isinstance(frame, TextView) and as_json and no_think and frame.thought:
                frame = msgspec.structs.replace(frame, thought="")
            if as_json:
                click.echo(msgspec.json.encode(frame))
            if isinstance(frame, FailedView):
                if wrote_text and not as_json:
                    click.echo()
                raise LocalError(failure_text(frame))
            if isinstance(frame, AnsweredView):
                if not as_json:
                    click.echo()
                    if note := shown.note(frame.finish_reason):
                        click.echo(f"mycelia: {note}", err=True)
                    if explain or errors.is_terminal:
                        show_answered(errors, frame, _trace_command(request, data_dir) if explain else "")
                return None
            wrote_text = wrote_text or isinstance(frame, TextView)
            if as_json:
                continue
            if isinstance(frame, TextView):
                shown.show(frame)
            elif isinstance(frame, RouteView) and explain:
                show_route(errors, frame)
    raise LocalError("the answer stopped before it was finished; ask again")
