"""Coding agents that need the two newer APIs: Codex (Responses) and Claude Code (Messages)."""

import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio

from mycelia.node.local_swarm.processes import LocalSwarm, end
from mycelia.node.serve.gateway import serve_gateway
from mycelia.node.serve.http.server import bind_api
from mycelia.proto.wire.messages import Ask, EntryFrame, Text
from tests.e2e.conftest import DEADLINE_S
from tests.node.serve.openai.test_api import BEGUN, ROUTE, ScriptedNode, answer

pytestmark = pytest.mark.interop

FOLDER = Path(__file__).parent / "agents"
CODEX = """\
model = "fake"
model_provider = "mycelia"
check_for_update_on_startup = false
[analytics]
enabled = false
[model_providers.mycelia]
name = "mycelia"
base_url = "{url}/v1"
wire_api = "responses"
"""


def agent(name: str) -> str:
    """The path of an agent's program."""
    path = FOLDER / "node_modules" / ".bin" / name
    if not path.exists():
        pytest.skip("not installed: make interop")
    return str(path)


async def run(*command: str, folder: Path, environment: dict[str, str], fails: bool = False) -> str:
    done = await trio.run_process(
        command,
        capture_stdout=True,
        stderr=subprocess.STDOUT,
        check=False,
        cwd=folder,
        env=os.environ | environment,
    )
    assert (done.returncode != 0) == fails, done.stdout.decode()[-2_000:]
    return done.stdout.decode()


class Model(ScriptedNode):
    """A node whose model runs a command with the agent's own tool, and then says what the tool told."""

    def __init__(self, never_ends: bool = False) -> None:
        super().__init__([])
        self._never_ends = never_ends
        self.asked_first = trio.Event()

    @asynccontextmanager
    async def ask(
        self, ask: Ask, deadline_s: float | None = None, client: bytes = b""
    ) -> AsyncIterator[AsyncIterator[EntryFrame]]:
        self._scripts = [self._script(ask)]
        async with super().ask(ask, deadline_s, client) as frames:
            self.asked_first.set()
            yield frames

    def _script(self, ask: Ask) -> list[EntryFrame]:
        if self._never_ends:
            return [ROUTE, BEGUN, Text(text="One moment")]
        results = [turn.content for turn in ask.messages if turn.role == "tool"]
        if results:
            return answer(f"It says: {results[-1]}")
        call = called(ask.tools)
        if call is None:  # (such as the question for a title)
            return answer("A title")
        frames = answer(f"<tool_call>{json.dumps(call)}</tool_call>")
        return [msgspec.structs.replace(ROUTE, format="hermes"), *frames[1:]]


def called(tools: str) -> dict[str, object] | None:
    """A call of the tool that runs commands, whatever the agent calls it and its parameters; None: it has none."""
    for tool in (one["function"] for one in json.loads(tools or "[]")):
        wanted = tool["parameters"].get("properties", {})
        name = next((name for name in ("command", "cmd") if name in wanted), None)
        if name is not None:
            is_list = wanted[name].get("type") == "array"
            arguments = {name: ["bash", "-c", COMMAND] if is_list else COMMAND}
            return {"name": tool["name"], "arguments": arguments | {"description": "Say something"}}
    return None


COMMAND, SAID = "echo $((6 * 7))-mycelia", "42-mycelia"


@asynccontextmanager
async def served(node: ScriptedNode) -> AsyncIterator[str]:
    """The URL of a gateway in front of ``node``."""
    listener = bind_api("127.0.0.1", 0)
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_gateway, node, listener)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        nursery.cancel_scope.cancel()


Command = tuple[Sequence[str], dict[str, str]]
"""A program with its arguments, and its environment."""


def codex(folder: Path, url: str, *options: str) -> Command:
    (folder / "config.toml").write_text(CODEX.format(url=url))
    command = [agent("codex"), "exec", "--skip-git-repo-check", "--sandbox", "danger-full-access", *options]
    return command, {"CODEX_HOME": str(folder)}


def claude(folder: Path, url: str, *options: str) -> Command:
    place = {"HOME": str(folder), "ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": "none"}
    names = ("ANTHROPIC_MODEL", "ANTHROPIC_SMALL_FAST_MODEL", "ANTHROPIC_DEFAULT_HAIKU_MODEL")
    place |= dict.fromkeys(names, "fake") | {"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"}
    return [agent("claude"), "-p", "--allowedTools", "Bash", *options], place


AGENTS = pytest.mark.parametrize("made", [codex, claude], ids=["codex", "claude"])


@AGENTS
async def test_an_agent_runs_what_the_model_calls_and_tells_it_the_result(
    made: Callable[..., Command], tmp_path: Path
) -> None:
    with trio.fail_after(4 * DEADLINE_S):
        async with served(node := Model()) as url:
            command, environment = made(tmp_path, url)
            told = await run(*command, "--", "Run it.", folder=tmp_path, environment=environment)
    results = [turn.content for ask in node.asked for turn in ask.messages if turn.role == "tool"]
    assert results and SAID in results[-1] and SAID in told


@AGENTS
async def test_an_agent_that_is_interrupted_cancels_its_request(made: Callable[..., Command], tmp_path: Path) -> None:
    with trio.fail_after(4 * DEADLINE_S):
        async with served(node := Model(never_ends=True)) as url, trio.open_nursery() as nursery:
            command, environment = made(tmp_path, url)
            started = partial(
                trio.run_process,
                [*command, "--", "Say hello."],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=False,
                cwd=tmp_path,
                env=os.environ | environment,
                start_new_session=True,
            )
            process: trio.Process = await nursery.start(started)
            try:
                await node.asked_first.wait()
                os.killpg(process.pid, signal.SIGINT)
                while node.num_running:
                    node.left = trio.Event()
                    await node.left.wait()
            finally:
                await end(process)


async def test_codex_works_over_responses(swarm: LocalSwarm, tmp_path: Path) -> None:
    with trio.fail_after(4 * DEADLINE_S):
        node = await swarm.start("asked", options=["--model", "fake"])
        url = (await node.wait_ready()).api_url
        command, place = codex(tmp_path, url)
        told = await run(*command, "Say hello.", folder=tmp_path, environment=place)
        assert "tokens used" in told and "ERROR" not in told
        refused = await run(*command, "--model", "gpt-9", "Say hello.", folder=tmp_path, fails=True, environment=place)
    assert "The model `gpt-9` does not exist" in refused


async def test_claude_code_works_over_messages(swarm: LocalSwarm, tmp_path: Path) -> None:
    with trio.fail_after(4 * DEADLINE_S):
        # (a token of the fake model is a byte, and the agent's first prompt has 77,000)
        node = await swarm.start("asked", options=["--model", "fake", "--cells", "1000000"])
        url = (await node.wait_ready()).api_url
        command, place = claude(tmp_path, url)
        place["CLAUDE_CODE_MAX_OUTPUT_TOKENS"] = "60"
        told = await run(*command, "--", "Say hello.", folder=tmp_path, environment=place)
        assert told.strip() and "API Error" not in told
        place["ANTHROPIC_MODEL"] = "gpt-9"
        other = await run(*command, "--", "Say hello.", folder=tmp_path, fails=True, environment=place)
    assert "There's an issue with the selected model (gpt-9)" in other
