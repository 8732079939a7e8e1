"""The commands that the pages show, as they stand there, with a node of the fake model.

Environment variables give a node its ports and its model, so that the commands need no other options. Only names that
stand for something, as ``qwen3-4b`` or an address do, are replaced.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from mycelia.node.local_swarm.processes import LocalNode, follow
from mycelia.node.storage.rundir import find_running
from tests.e2e.conftest import DEADLINE_S
from tests.node.serve.http.test_tls import make_certificate
from tests.pages.blocks import PAGES, commands
from tests.pages.table import ASKED, STARTED, rule_of

pytestmark = pytest.mark.e2e

COMMAND = (sys.executable, "-P", "-m", "mycelia.node")
PROMPT = "Why do cats purr?\n"
FIRST = ("config init", "key add", "config reload", "ask", "trace")
"""What later commands need comes first."""
LAST = ("pause", "leave")


def shown(how: object) -> list[str]:
    """The commands of the pages with that rule, each once."""
    texts = dict.fromkeys(
        one.text for page in PAGES for one in commands(page) if (rule_of(one.text) or ("", 0))[1] is how
    )
    return sorted(texts, key=_rank)


def _rank(text: str) -> int:
    words = text.removeprefix("mycelia ")
    for place, name in enumerate((*FIRST, "", *LAST)):
        if name and words.startswith(name):
            return place
    return len(FIRST)


class Shell:
    """A user's home folder, and the commands in it."""

    def __init__(self, home: Path, **variables: str) -> None:
        self.home = home
        self.data_dir = home / "data"
        nobody = home / "nobody.txt"
        nobody.touch()
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MYCELIA_", "XDG_"))}
        self.environment = inherited | {
            "HOME": str(home),
            "MYCELIA_DATA_DIR": str(self.data_dir),
            "MYCELIA_BOOTSTRAP": str(nobody),
            "MYCELIA_NODE_MODEL": "fake",
            "MYCELIA_NODE_API_PORT": "0",
            "MYCELIA_NODE_LISTEN": "/ip4/127.0.0.1/tcp/0",
            "MYCELIA_NODE_MDNS": "false",
            "MYCELIA_NODE_NO_PORT_MAPPING": "true",
            **variables,
        }

    async def run(self, text: str) -> str:
        """What a command prints. It must succeed. What is after a pipe runs in a real shell."""
        first, pipe, rest = text.partition(" | ")
        first, _, file = first.partition(" < ")
        stdin = (self.home / file).read_bytes() if file else b"Hello\n"
        program, *words = shlex.split(first)
        if program != "mycelia":
            return await self._sh(text)
        done = await self._process([*COMMAND, *words], stdin)
        return await self._sh(rest, done) if pipe else done.decode()

    async def _sh(self, text: str, stdin: bytes = b"") -> str:
        return (await self._process(["sh", "-ec", text], stdin)).decode()

    async def _process(self, command: list[str], stdin: bytes) -> bytes:
        done = await trio.run_process(
            command,
            stdin=stdin,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            cwd=self.home,
            env=self.environment,
        )
        assert done.returncode == 0, f"{command}: {done.stderr.decode()}"
        return bytes(done.stdout)

    async def start(self, nursery: trio.Nursery, text: str) -> LocalNode:
        """A node, as it runs in a terminal."""
        self.data_dir.mkdir(exist_ok=True)
        process = await trio.lowlevel.open_process(
            [*COMMAND, *shlex.split(text)[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=self.home,
            env=self.environment,
        )
        node = LocalNode(text, self.data_dir, process)
        nursery.start_soon(_follow, node)
        await node.wait_ready()
        return node


async def _follow(node: LocalNode) -> None:
    try:
        await follow(node)
    finally:
        if node.process.returncode is None:
            node.process.kill()


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def needs(*programs: str) -> None:
    if missing := [program for program in programs if shutil.which(program) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")


async def test_commands_beside_a_node_succeed(tmp_path: Path) -> None:
    needs("curl", "jq", "openssl")
    shell = Shell(tmp_path, MYCELIA_NODE_MODEL="fake fake-rerank")
    (shell.home / "prompt.txt").write_text(PROMPT)
    texts = shown(ASKED)
    assert len(texts) > 30
    with trio.fail_after(2 * DEADLINE_S):
        async with trio.open_nursery() as nursery:
            node = await shell.start(nursery, "mycelia node")
            key, url = "", (await node.wait_ready()).api_url
            exports = ""
            for text in texts:
                if text.startswith("export "):
                    exports = text.replace("http://127.0.0.1:7118", url) + "; "
                    continue
                if text == "mycelia trace 3f2a9c41":
                    (row, *_) = json.loads(await shell.run("mycelia trace --json"))
                    text = f"mycelia trace {row['id'][:8]}"
                if text.startswith("curl "):
                    header = f" -fsS -H 'Authorization: Bearer {key}'"
                    text = text.replace("smollm2", "fake").replace("bge-reranker-v2-m3", "fake-rerank")
                    text = exports + text.replace("http://127.0.0.1:7118", url) + header
                told = await shell.run(text)
                if text.startswith("mycelia key add"):
                    key = told.strip().splitlines()[-1]
                elif text.startswith(("mycelia ask", "mycelia chat", "mycelia trace", "export")):
                    assert told.strip(), text
            assert await node.process.wait() == 0, "mycelia leave"
    swarm_key = (shell.home / "swarm.key").read_text()
    assert swarm_key.startswith("/key/swarm/psk/1.0.0/\n/base16/\n") and len(swarm_key.split()[-1]) == 64


async def test_nodes_of_the_pages_serve_until_ctrl_c(shell: Shell, tmp_path: Path) -> None:
    """All at once: each takes most of its time to start."""
    certificate, private = make_certificate(tmp_path)
    texts = shown(STARTED)
    assert len(texts) > 8
    with trio.fail_after(2 * DEADLINE_S):
        async with trio.open_nursery() as nursery:
            first = await shell.start(nursery, texts.pop(texts.index("mycelia node")))
            address = await first.address()
            nodes = [first]
            for number, text in enumerate(texts):
                home = tmp_path / f"home-{number}"
                home.mkdir()
                shutil.copy(certificate, home / "fullchain.pem")
                shutil.copy(private, home / "privkey.pem")
                other = Shell(home, MYCELIA_API_KEY="0123456789abcdef0123456789abcdef")
                for word, real in (
                    ("/ip4/203.0.113.7/tcp/7117/p2p/12D3KooW...", address),
                    ("./model.gguf", "fake"),
                    ("qwen3-4b", "fake"),
                    (
                        "--model smollm2 --model ./coder.gguf --model ./large.gguf",
                        "--model fake --model fake-a --model fake-b",
                    ),
                    ("~", str(home)),
                ):
                    text = text.replace(word, real)
                nodes.append(await other.start(nursery, text))
                assert find_running(other.data_dir) is not None
            for node in nodes:
                node.process.send_signal(signal.SIGINT)
            for node in nodes:
                assert await node.process.wait() == 0, node.name
