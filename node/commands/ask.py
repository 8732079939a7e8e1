"""``mycelia ask``: one prompt, and its answer as it comes."""

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from mycelia.node.commands.options import (
    bootstrap_option,
    check_model,
    check_unicode,
    data_dir_option,
    json_option,
    swarm_key_option,
)
from mycelia.node.commands.running import console, run

if TYPE_CHECKING:
    from mycelia.node.client.light import LightClient
    from mycelia.proto.wire.messages import Ask

_LEAST_AGAIN_S = 0.2
"""Between two tries of ``--wait``: no node's word makes this program knock more often."""


@click.command(
    epilog="""\b
Examples:
  mycelia ask "Why is the sky blue?"
  cat notes.txt | mycelia ask - --system "Summarise in three lines." --max-tokens 200
  mycelia ask "Hello" --json
  mycelia ask "Name a fish." --temperature 0.8 --seed 7 --stop "." --json-schema fish.json
  mycelia ask "Hello" --bootstrap /ip4/198.51.100.7/tcp/7117/p2p/12D3KooW..."""
)
@click.argument("prompt")
@click.option("--max-tokens", type=click.IntRange(1, 131_072), default=256, show_default=True)
@click.option("--temperature", type=click.FloatRange(0, 100), default=0.0, show_default=True, help="0 is greedy.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@click.option("--top-k", type=click.IntRange(0), default=40, show_default=True, help="0 keeps all.")
@click.option("--top-p", type=click.FloatRange(0, 1), default=0.95, show_default=True, help="1 keeps all.")
@click.option("--min-p", type=click.FloatRange(0, 1), default=0.05, show_default=True, help="0 keeps all.")
@click.option("--repeat-penalty", type=click.FloatRange(0.1, 10), default=1.0, show_default=True, help="1 is off.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text. Repeatable.")
@click.option("--logprobs", type=click.IntRange(0, 20), default=0, help="Alternatives a token, with --json.")
@click.option("--grammar", type=click.File(), metavar="FILE", help="Answer in this GBNF grammar.")
@click.option("--json-schema", type=click.File(), metavar="FILE", help="Answer in JSON that fits this schema.")
@click.option("--timeout", type=float, metavar="SECONDS", help="Give up, and cancel, when the answer takes longer.")
@click.option(
    "--wait",
    is_flag=True,
    help="While all nodes are busy, ask again when they say, and while none can be reached, until --timeout.",
)
@click.option(
    "--cache-salt",
    default="",
    metavar="TEXT",
    help="Share what is computed of the prompt only with requests of the same TEXT; 'public': with everybody. "
    " [default: with the same client, and with others what two households had asked]",
)
@click.option("--system", default="", help="System message.")
@click.option("--model", default="", help="Ask for this model.  [default: what the entry node serves]")
@click.option("--explain", is_flag=True, help="Show the candidates, their match and cost, and why one was chosen.")
@bootstrap_option
@swarm_key_option
@data_dir_option
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
    timeout: float | None,
    wait: bool,
    cache_salt: str,
    system: str,
    model: str,
    explain: bool,
    bootstrap: tuple[str, ...],
    swarm_key: Path | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Ask PROMPT (- reads standard input) and print the answer as it comes.

    Uses the node that runs here, if there is one, else joins as a light client through the bootstrap peers. The node
    that serves a prompt sees it. When the node here dies meanwhile, the answer goes on at a bootstrap peer or a node
    that it knew, which then sees prompt and answer, also where only the node here had seen them.
    """
    import secrets

    from mycelia.node.commands.checks import read_bootstrap, read_swarm_key
    from mycelia.node.storage.data_dir import default_data_dir
    from mycelia.node.views import MAX_TIMEOUT_S
    from mycelia.proto.wire.codec import check_sampling
    from mycelia.proto.wire.errors import LocalError
    from mycelia.proto.wire.messages import MAX_SALT_CHARS, Ask, ChatMessage, Sampling

    if grammar is not None and json_schema is not None:
        raise click.UsageError("give --grammar or --json-schema, not both")
    if timeout is not None and not 0 < timeout <= MAX_TIMEOUT_S:  # (not a FloatRange: that takes NaN)
        raise click.UsageError(f"--timeout must be more than 0 and at most {MAX_TIMEOUT_S:.0f} seconds")
    check_model(model)
    if len(cache_salt) > MAX_SALT_CHARS:
        raise click.UsageError(f"--cache-salt has {len(cache_salt)} characters, at most {MAX_SALT_CHARS} are allowed")
    given = {"--cache-salt": cache_salt, "--model": model, "--system": system, "the prompt": prompt}
    for name, value in (given | {"--stop": "".join(stop)}).items():
        check_unicode(name, value)
    text = _read_prompt(prompt)
    turns = [ChatMessage(role="system", content=system)] if system else []
    turns.append(ChatMessage(role="user", content=text))
    request = Ask(
        request_id=secrets.token_bytes(16),
        model=model,
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
            grammar=_read_rules(grammar or json_schema),
            grammar_kind="json_schema" if json_schema else "gbnf",
        ),
        cache_salt=cache_salt,
    )
    try:
        check_sampling(request.sampling)
    except LocalError as exc:
        field, _, problem = str(exc).partition(":")
        raise click.UsageError(f"--{field.replace('_', '-')}:{problem}") from exc
    peers, key = read_bootstrap(bootstrap), read_swarm_key(swarm_key)
    where = data_dir or default_data_dir()
    run(lambda: _ask(request, where, peers, key, timeout, wait=wait, explain=explain, as_json=as_json))


def _read_prompt(prompt: str) -> str:
    from mycelia.proto.wire.messages import MAX_CHAT_BYTES

    if prompt == "-":
        data = b"" if sys.stdin is None else sys.stdin.buffer.read(MAX_CHAT_BYTES + 1)
        if len(data) > MAX_CHAT_BYTES:
            raise click.UsageError(f"the prompt is over {MAX_CHAT_BYTES} bytes; shorten it")
        try:
            prompt = data.decode()
        except UnicodeDecodeError as exc:
            raise click.UsageError(f"the prompt on standard input is not UTF-8: {exc}") from exc
    if not prompt.strip():
        raise click.UsageError("the prompt is empty")
    return prompt


def _read_rules(file: TextIO | None) -> str:
    """A grammar or schema file. Longer than any that is allowed is enough to refuse it."""
    from mycelia.proto.wire.messages import MAX_GRAMMAR_CHARS

    try:
        return file.read(MAX_GRAMMAR_CHARS + 1) if file is not None else ""
    except UnicodeDecodeError as exc:
        raise click.UsageError(f"the grammar is not UTF-8: {exc}") from exc


async def _ask(
    request: "Ask",
    data_dir: Path,
    bootstrap: tuple[str, ...],
    swarm_key: bytes,
    timeout_s: float | None,
    *,
    wait: bool,
    explain: bool,
    as_json: bool,
) -> None:
    """wait: ask again for as long as all nodes are busy or none can be reached, and ``timeout_s`` is not over."""
    import trio

    from mycelia.node.client.light import UNREACHED_AGAIN_S, LightClient, NoEntryError

    client = LightClient(swarm_key=swarm_key)
    due_at = math.inf if timeout_s is None else trio.current_time() + timeout_s
    is_told = False
    while True:
        left_s = None if timeout_s is None else max(due_at - trio.current_time(), 0.001)
        try:
            again_s = await _ask_once(
                request, data_dir, bootstrap, left_s, client, wait=wait, explain=explain, as_json=as_json
            )
        except NoEntryError as exc:
            if not wait or trio.current_time() + UNREACHED_AGAIN_S >= due_at:
                raise
            if not is_told:
                click.echo(f"mycelia: {exc}; trying again, Ctrl-C ends it", err=True)
            is_told, again_s = True, UNREACHED_AGAIN_S
        if again_s is None:
            return
        await trio.sleep(max(again_s, _LEAST_AGAIN_S))


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
) -> float | None:
    """None: it was answered. Else, if ``wait``, the seconds after which to ask again. Raises LocalError."""
    import msgspec

    from mycelia.node.client.ask import ask_swarm
    from mycelia.node.terminal.tables import failure_text, printable, show_answered, show_route
    from mycelia.node.views import AnsweredView, FailedView, RouteView, TextView
    from mycelia.proto.wire.errors import LocalError

    errors = console(stderr=True)
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    wrote_text = False
    async with ask_swarm(request, data_dir, bootstrap, timeout_s, client) as frames:
        async for frame in frames:
            if wait and not wrote_text and isinstance(frame, FailedView) and frame.retry_after_s:
                if timeout_s is None or frame.retry_after_s < timeout_s:
                    return frame.retry_after_s
            if as_json:
                click.echo(msgspec.json.encode(frame))
            if isinstance(frame, FailedView):
                if wrote_text and not as_json:
                    click.echo()
                raise LocalError(failure_text(frame))
            if isinstance(frame, AnsweredView):
                if not as_json:
                    click.echo()
                    if explain or errors.is_terminal:
                        show_answered(errors, frame, request.request_id.hex() if explain else "")
                return None
            wrote_text = wrote_text or isinstance(frame, TextView)
            if as_json:
                continue
            if isinstance(frame, TextView):
                click.echo(printable(frame.text) if is_terminal else frame.text, nl=False)
            elif isinstance(frame, RouteView) and explain:
                show_route(errors, frame)
    raise LocalError("the answer ended before it was finished; ask again")
