"""Clients in JavaScript, and the agents that need the two newer APIs: Codex (Responses) and Claude Code (Messages)."""

import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from mycelia.node.local_swarm.processes import LocalSwarm, open_local_swarm
from tests.e2e.conftest import DEADLINE_S

pytestmark = pytest.mark.interop

FOLDER = Path(__file__).parent / "clients"
AGENTS = "@openai/codex@0.171.0 @anthropic-ai/claude-code@2.1.197"
CODEX = """\
model = "fake"
model_provider = "mycelia"
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
    """The path of an agent's program. Skips the test if it is not installed: the two have 600 MB."""
    found = shutil.which(name) or shutil.which(name, path=str(FOLDER / "node_modules" / ".bin"))
    if found is None:
        pytest.skip(f"{name} is not installed: npm install --prefix {FOLDER} --no-save {AGENTS}")
    return found


async def run(*command: str, folder: Path, **environment: str) -> str:
    done = await trio.run_process(
        command,
        capture_stdout=True,
        stderr=subprocess.STDOUT,
        check=False,
        cwd=folder,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stdout.decode()[-2_000:]
    return done.stdout.decode()


@pytest.mark.skipif(not (FOLDER / "node_modules" / "ai").is_dir(), reason="not installed: make interop")
async def test_vercels_ai_sdk_with_its_default_providers_and_openais_sdk(swarm: LocalSwarm) -> None:
    with trio.fail_after(4 * DEADLINE_S):
        node = await swarm.start("asked", options=["--threads", "2"])
        url = (await node.wait_ready()).api_url
        told = json.loads((await run("node", "clients.js", url, folder=FOLDER)).splitlines()[-1])
    for name in ("responses", "messages"):
        assert told[name]["whole"] and told[name]["text"]
        ((function, given),) = told[name]["calls"]
        assert function == "weather" and given.keys() == {"place"}
        assert told[name]["object"].keys() == {"name", "home"} and told[name]["object"]["home"].keys() == {"city"}
    assert told["openai"]["text"] and told["openai"]["error"] == "404 model_not_found"
    assert told["openai"]["kinds"][0] == "response.created"
    assert told["openai"]["kinds"][-1] in ("response.completed", "response.incomplete")


async def test_codex_works_over_responses(swarm: LocalSwarm, tmp_path: Path) -> None:
    codex = agent("codex")
    with trio.fail_after(4 * DEADLINE_S):
        node = await swarm.start("asked", options=["--model", "fake"])
        url = (await node.wait_ready()).api_url
        (tmp_path / "config.toml").write_text(CODEX.format(url=url))
        place = {"CODEX_HOME": str(tmp_path)}
        told = await run(codex, "exec", "--skip-git-repo-check", "Say hello.", folder=tmp_path, **place)
    assert "tokens used" in told and "ERROR" not in told


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
        told = await run(claude, "-p", "Say hello.", folder=tmp_path, **place)
    assert told.strip() and "API Error" not in told
