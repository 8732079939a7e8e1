"""Clients that people use, each tried by a program of its own in ``python`` and ``clients`` against one node: chat,
streams, tools with nested types, structured output, errors and cancelled requests."""

import json
import os
import shutil
from pathlib import Path

import pytest
import trio

from mycelia.node.local_swarm.processes import LocalSwarm
from tests.e2e.conftest import DEADLINE_S, becomes_idle

pytestmark = pytest.mark.interop

HERE = Path(__file__).parent
PYTHONS = HERE.parents[1] / ".venv" / "clients"
PYTHON_CLIENTS = [
    line.split()[0] for line in (HERE / "python" / "clients.txt").read_text().splitlines() if not line.startswith("#")
]
JS_CLIENTS = ["openai_sdk", "langchain", "vercel"]
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "LANGCHAIN_TRACING_V2": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}
"""No client looks for anything but the node."""


async def all_ok(swarm: LocalSwarm, home: Path, *command: str | Path) -> None:
    with trio.fail_after(5 * DEADLINE_S):
        node = await swarm.start("asked", options=["--threads", "2"])
        url = (await node.wait_ready()).api_url
        done = await trio.run_process(
            [*command, url, "smollm2"],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env=os.environ | QUIET | {"HOME": str(home)},
        )
        assert done.returncode == 0, done.stderr.decode()[-2_000:]
        told = json.loads(done.stdout.splitlines()[-1])
        assert set(told.values()) == {"ok"}, told
        await becomes_idle(node)


@pytest.mark.parametrize("name", PYTHON_CLIENTS)
async def test_python(name: str, swarm: LocalSwarm, tmp_path: Path) -> None:
    python = PYTHONS / name / "bin" / "python"
    if not python.exists():
        pytest.skip("not installed: make interop")
    await all_ok(swarm, tmp_path, python, HERE / "python" / f"{name}.py")


@pytest.mark.parametrize("name", JS_CLIENTS)
async def test_javascript(name: str, swarm: LocalSwarm, tmp_path: Path) -> None:
    if not (HERE / "clients" / "node_modules").is_dir():
        pytest.skip("not installed: make interop")
    await all_ok(swarm, tmp_path, str(shutil.which("node")), HERE / "clients" / f"{name}.js")
