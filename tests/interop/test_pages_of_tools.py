"""The pages of tools, ``docs/tools``: what they show is run as it stands there, against a node. Only the node's address
and, for programs that need a large model, the model's name are other ones."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from mycelia.node.local_swarm.processes import LocalSwarm
from tests.e2e.conftest import DEADLINE_S
from tests.interop.test_clients import HERE, PYTHONS, QUIET
from tests.pages.blocks import ROOT, Block, blocks

pytestmark = pytest.mark.interop

PAGES = {page.stem: page for page in (ROOT / "docs" / "tools").glob("*.md")}
AGENTS = {
    "aider": "--yes-always --no-git --analytics-disable --no-check-update --no-show-model-warnings"
    " --no-show-release-notes --map-tokens=0 --no-stream --message 'Say hello.'",
    "codex": "exec --skip-git-repo-check 'Say hello.'",
    "claude-code": "-p 'Say hello.'",
    "llm": "",
}
"""Page -> what is added to its last command, so that the program asks once and ends."""
SDKS = sorted(PAGES.keys() - AGENTS.keys() - {"curl"})
"""(the commands of the other page are in tests/e2e/test_commands_of_pages.py)"""


async def run(command: list[str], home: Path, **variables: str) -> str:
    await trio.Path(home).mkdir(exist_ok=True)
    done = await trio.run_process(
        command,
        stdin=b"",
        capture_stdout=True,
        stderr=subprocess.STDOUT,
        check=False,
        cwd=HERE / "clients" if command[0].endswith("node") else home,
        env=os.environ | QUIET | {"HOME": str(home)} | variables,
    )
    assert done.returncode == 0, done.stdout.decode()[-2_000:]
    return done.stdout.decode()


def program_of(page: str, block: Block) -> list[str]:
    """The command that runs a block of Python or JavaScript."""
    if block.language == "js":
        if not (HERE / "clients" / "node_modules").is_dir():
            pytest.skip("not installed: make interop")
        return [str(shutil.which("node")), "--input-type=module", "--eval"]
    names = (f"{page.replace('-', '_')}_client", f"{page.replace('-', '_')}_sdk")
    found = [PYTHONS / name / "bin" / "python" for name in names if (PYTHONS / name).is_dir()]
    if not found:
        pytest.skip("not installed: make interop")
    return [str(found[0]), "-c"]


@pytest.mark.parametrize("name", SDKS)
async def test_a_client_prints_what_its_page_asks_for(name: str, swarm: LocalSwarm, tmp_path: Path) -> None:
    shown = [block for block in blocks(PAGES[name]) if block.language in ("python", "js")]
    assert shown
    with trio.fail_after(4 * DEADLINE_S):
        node = await swarm.start("asked", options=["--threads", "2"])
        url = (await node.wait_ready()).api_url
        for block in shown:
            text = block.text.replace("http://127.0.0.1:7118", url)
            assert (await run([*program_of(name, block), text], tmp_path / "home")).strip()


@pytest.mark.parametrize("name", AGENTS)
async def test_an_agent_does_what_its_page_shows(name: str, swarm: LocalSwarm, tmp_path: Path) -> None:
    home = tmp_path / "home"
    folders = [HERE / "agents" / "node_modules" / ".bin", PYTHONS / f"{name}_client" / "bin"]
    if not any(folder.is_dir() for folder in folders):
        pytest.skip("not installed: make interop")
    path = os.pathsep.join(map(str, [*folders, Path(sys.executable).parent, os.environ["PATH"]]))
    with trio.fail_after(4 * DEADLINE_S):
        # (a token of the fake model is a byte, and an agent's first prompt has 77,000)
        node = await swarm.start("asked", options=["--model", "fake", "--cells", "1000000"])
        url = (await node.wait_ready()).api_url
        commands = []
        for block in blocks(PAGES[name]):
            text = re.sub("qwen3-4b|smollm2", "fake", block.text.replace("http://127.0.0.1:7118", url))
            if block.language == "sh":
                commands.append(text)
            elif file := re.match(r"# ~/(\S+)\n", text):
                (home / file[1]).parent.mkdir(parents=True)
                (home / file[1]).write_text(text)
        script = "\n".join(commands) + f" {AGENTS[name]}"
        told = await run(
            ["sh", "-ec", script],
            home,
            PATH=path,
            CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1",
            CLAUDE_CODE_MAX_OUTPUT_TOKENS="60",
        )
    # (each program's word for a failed request; aider also says so of its list of prices, which it does not find)
    assert told.strip() and not any(word in told for word in ("API Error", "ERROR", "litellm."))
