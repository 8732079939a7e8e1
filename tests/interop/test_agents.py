"""Coding agents that need the two newer APIs: Codex (Responses) and Claude Code (Messages)."""

import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from mycelia.node.local_swarm.processes import LocalSwarm, open_local_swarm
from tests.e2e.conftest import DEADLINE_S

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


@pytest.fixture
async def swarm(tmp_path: Path) -> AsyncIterator[LocalSwarm]:
    async with open_local_swarm(tmp_path) as local_swarm:
        yield local_swarm


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


async def test_codex_works_over_responses(swarm: LocalSwarm, tmp_path: Path) -> None:
    codex = agent("codex")
    with trio.fail_after(4 * DEADLINE_S):
        node = await swarm.start("asked", options=["--model", "fake"])
        url = (await node.wait_ready()).api_url
        (tmp_path / "config.toml").write_text(CODEX.format(url=url))
        place = {"CODEX_HOME": str(tmp_path)}
        told = await run(codex, "exec", "--skip-git-repo-check", "Say hello.", folder=tmp_path, environment=place)
        assert "tokens used" in told and "ERROR" not in told
        command = (codex, "exec", "--skip-git-repo-check", "--model", "gpt-9", "Say hello.")
        refused = await run(*command, folder=tmp_path, fails=True, environment=place)
    assert "The model `gpt-9` does not exist" in refused


async def test_claude_code_works_over_messages(swarm: LocalSwarm, tmp_path: Path) -> None:
    claude = agent("claude")
    names = ("ANTHROPIC_MODEL", "ANTHROPIC_SMALL_FAST_MODEL", "ANTHROPIC_DEFAULT_HAIKU_MODEL")
    with trio.fail_after(4 * DEADLINE_S):
        # (a token of the fake model is a byte, and the agent's first prompt has 77,000)
        node = await swarm.start("asked", options=["--model", "fake", "--cells", "1000000"])
        url = (await node.wait_ready()).api_url
        place = {"HOME": str(tmp_path), "ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": "none"}
        place |= dict.fromkeys(names, "fake") | {"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"}
        place |= {"CLAUDE_CODE_MAX_OUTPUT_TOKENS": "60"}
        told = await run(claude, "-p", "Say hello.", folder=tmp_path, environment=place)
        assert told.strip() and "API Error" not in told
        other_model = place | {"ANTHROPIC_MODEL": "gpt-9"}
        other = await run(claude, "-p", "Say hello.", folder=tmp_path, fails=True, environment=other_model)
    assert "There's an issue with the selected model (gpt-9)" in other
