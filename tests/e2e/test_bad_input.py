"""Mistakes of users: one clear line on stderr, the right exit code, never a traceback."""

import json
import os
import socket
from pathlib import Path

import pytest
import trio

from mycelia.node.engine.child.llama.models import find_gpus
from mycelia.node.engine.models import resolve_model
from mycelia.node.engine.sizing import Offload
from mycelia.node.local_swarm.processes import COMMAND, LocalSwarm
from tests.e2e.conftest import run_mycelia

pytestmark = pytest.mark.e2e

LISTEN = ("--listen", "/ip4/127.0.0.1/tcp/0", "--api-port", "0")


async def assert_fails(code: int, *arguments: str, says: list[str], stdin: bytes = b"") -> None:
    done = await run_mycelia(*arguments, stdin=stdin)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert done.returncode == code, done.stderr
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in says:
        assert word in lines[0]


async def test_an_unknown_model(tmp_path: Path) -> None:
    await assert_fails(
        1, "node", "--data-dir", str(tmp_path), "--model", "no-such-model", says=["no-such-model", "smollm2"]
    )


async def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"not a model at all")
    await assert_fails(1, "node", "--data-dir", str(tmp_path), "--model", str(path), says=["model.gguf"])


async def test_a_truncated_model(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(resolve_model("smollm2").read_bytes()[:1_000_000])
    await assert_fails(1, "node", "--data-dir", str(tmp_path), *LISTEN, "--model", str(path), says=["model.gguf"])


@pytest.mark.skipif(os.getuid() == 0, reason="root reads everything")
async def test_an_unreadable_model(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.touch(0o000)
    await assert_fails(1, "node", "--data-dir", str(tmp_path), "--model", str(path), says=["model.gguf"])


async def test_a_peer_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}"
        await assert_fails(
            1, "node", "--data-dir", str(tmp_path), "--listen", listen, "--api-port", "0", says=["in use", "--listen"]
        )


async def test_an_api_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        await assert_fails(
            1, "node", "--data-dir", str(tmp_path), *LISTEN[:2], "--api-port", port, says=[port, "--api-port"]
        )


@pytest.mark.parametrize("address", ["/ip4/127.0.0.1", "/ip4/300.1.2.3/tcp/4", "/ip4/127.0.0.1/tcp/4/p2p/nonsense"])
async def test_a_malformed_bootstrap_address(tmp_path: Path, address: str) -> None:
    await assert_fails(2, "node", "--data-dir", str(tmp_path), "--bootstrap", address, says=["--bootstrap"])


async def test_a_malformed_line_in_a_bootstrap_file(tmp_path: Path) -> None:
    path = tmp_path / "peers.txt"
    path.write_text("# nodes\n\nnot an address\n")
    await assert_fails(2, "ask", "--bootstrap", str(path), "hello", says=["line 3"])


async def test_a_bootstrap_file_that_is_not_there(tmp_path: Path) -> None:
    await assert_fails(2, "ask", "--bootstrap", str(tmp_path / "none"), "hello", says=["none", "No such file"])


async def test_a_malformed_listen_address(tmp_path: Path) -> None:
    await assert_fails(2, "node", "--data-dir", str(tmp_path), "--listen", "localhost:80", says=["multiaddr"])


async def test_what_peers_could_not_dial_and_a_policy_that_is_none(tmp_path: Path) -> None:
    node = ("node", "--data-dir", str(tmp_path))
    await assert_fails(2, *node, "--announce", "/ip4/1.2.3.4/tcp/0", says=["--announce", "port"])
    await assert_fails(2, *node, "--policy", "oracle", says=["--policy", "round_robin"])


async def test_a_data_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    await assert_fails(1, "node", "--data-dir", str(tmp_path / "file" / "inside"), says=["--data-dir"])


async def test_a_second_node_in_the_same_directory(swarm: LocalSwarm) -> None:
    node = await swarm.start("one", options=["--model", "fake"])
    await node.wait_ready()
    await assert_fails(1, "node", "--data-dir", str(node.data_dir), *LISTEN, says=["another node is running"])
    prompt = b"word " * 20_000
    await assert_fails(1, "ask", "--data-dir", str(node.data_dir), "-", stdin=prompt, says=["tokens", "context"])
    await assert_fails(1, "ask", "--data-dir", str(node.data_dir), "--model", "other", "hi", says=["other", "fake"])


async def test_an_empty_prompt() -> None:
    await assert_fails(2, "ask", "  ", says=["empty"])
    await assert_fails(2, "ask", "-", says=["empty"])


async def test_no_node_anywhere(tmp_path: Path) -> None:
    nobody = tmp_path / "peers.txt"
    nobody.write_text("# nobody\n")
    place = ("--data-dir", str(tmp_path))
    await assert_fails(1, "ask", *place, "--bootstrap", str(nobody), "hello", says=["mycelia node"])
    await assert_fails(1, "peers", *place, says=["no node is running", "mycelia node"])
    await assert_fails(1, "tree", *place, says=["no node is running"])


async def test_a_bootstrap_peer_that_is_down(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    address = f"/ip4/127.0.0.1/tcp/{port}/p2p/12D3KooWGC6TvWhfapngX6wvJHMYvKpDMXPb3ZnCZ6dMoaMtimQ5"
    await assert_fails(
        1, "ask", "--data-dir", str(tmp_path), "--bootstrap", address, "hello", says=["no node could be reached"]
    )


async def test_wrong_options() -> None:
    await assert_fails(2, "ask", "--max-tokens", "0", "hello", says=["--max-tokens", "--help"])
    for timeout in ("0", "-3", "nan", "1e9"):
        await assert_fails(2, "ask", "--timeout", timeout, "hello", says=["--timeout"])
    await assert_fails(2, "nonsense", says=["nonsense", "--help"])


async def test_gpu_options_that_cannot_be_meant() -> None:
    await assert_fails(2, "node", "--gpu-layers", "-1", says=["--gpu-layers"])
    await assert_fails(2, "node", "--main-gpu", "16", says=["--main-gpu"])
    for split in ("much", "1,,1", "1,-1", "0,0", "nan", ",".join(["1"] * 17)):
        await assert_fails(2, "node", "--tensor-split", split, says=["--tensor-split"])
    await assert_fails(2, "node", "--tensor-split", "1,1", "--main-gpu", "0", says=["--tensor-split", "--main-gpu"])


@pytest.mark.parametrize("options", [("--gpu-layers", "5"), ("--main-gpu", "0"), ("--tensor-split", "3,1")])
async def test_a_gpu_that_is_not_there(tmp_path: Path, options: tuple[str, ...]) -> None:
    if find_gpus(Offload()):
        pytest.skip("there is a GPU")
    await assert_fails(
        1, "node", "--data-dir", str(tmp_path), *LISTEN, *options, says=["GPU", "leave out the GPU options"]
    )


async def test_a_doctor_without_a_patient(tmp_path: Path) -> None:
    free_ports = ("--listen", "/ip4/127.0.0.1/tcp/0", "--api-port", "0")
    done = await run_mycelia("doctor", "--json", *free_ports, "--model", str(tmp_path / "none.gguf"))
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "none.gguf" in done.stderr
    report = json.loads(done.stdout)
    assert not report["ok"] and any(device["kind"] == "cpu" for device in report["devices"])


async def test_arguments_that_nothing_can_encode() -> None:
    no_utf8 = os.fsdecode(b"\xff\xfe")
    await assert_fails(2, "ask", no_utf8, says=["prompt", "UTF-8"])
    await assert_fails(2, "ask", "hello", "--system", no_utf8, says=["--system", "UTF-8"])
    await assert_fails(2, "ask", "hello", "--model", no_utf8, says=["--model", "UTF-8"])
    await assert_fails(2, "ask", "hello", "--model", "x" * 200, says=["--model"])
    await assert_fails(2, "ask", "hello", "--temperature", "nan", says=["--temperature"])


async def test_an_error_stays_one_line_whatever_is_in_it(tmp_path: Path) -> None:
    await assert_fails(1, "peers", "--data-dir", str(tmp_path / "a\nb\x1b[2J"), says=["a\\nb\\x1b[2J"])


async def test_output_that_nobody_takes(swarm: LocalSwarm) -> None:
    node = await swarm.start("one", options=["--model", "fake"])
    await node.wait_ready()
    place = ("--data-dir", str(node.data_dir))
    for command in (("ask", "hello", "--max-tokens", "3"), ("tree",), ("peers", "--json"), ("id",)):
        reader, writer = os.pipe()
        os.close(reader)
        done = await trio.run_process(
            [*COMMAND, *command, *place], stdout=writer, capture_stderr=True, stdin=b"", check=False
        )
        os.close(writer)
        assert (done.returncode, done.stderr) == (141, b"")
        full = os.open("/dev/full", os.O_WRONLY)
        done = await trio.run_process(
            [*COMMAND, *command, *place], stdout=full, capture_stderr=True, stdin=b"", check=False
        )
        os.close(full)
        assert (done.returncode, done.stderr) == (1, b"mycelia: cannot write the output: No space left on device\n")
