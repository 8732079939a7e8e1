"""The doctor: its findings on this machine, its report of GPUs that are not here, and a crash of llama.cpp."""

import os
import socket
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from mycelia.node.commands.doctor import doctor
from mycelia.node.doctor import machine as checkup
from mycelia.node.doctor.machine import Report, examine, lines, with_outlook
from mycelia.node.doctor.network import Line, Seen, conclusions, look_out, port_mapping
from mycelia.node.engine.probe import probe as probe_file
from mycelia.node.engine.probe.probe import Finding, Library, Model, Problem, Question, probe
from mycelia.node.engine.sizing import Device
from mycelia.node.network.identity import new_identity
from mycelia.node.network.libp2p.network import open_network
from mycelia.node.network.mapping.mapper import KnownRouter
from mycelia.node.network.network import NetworkSettings
from mycelia.node.peer_id import peer_text
from mycelia.proto.wire.messages import Reach
from tests.node.engine.gguf_files import quick_model

GIB = 2**30
GPU = Device("CUDA0", "NVIDIA\nH200", "gpu", 139 * GIB, 130 * GIB)
LIBRARY = Library(llama_cpp="0.5.0", bindings="0.3.36", built_for=["CUDA", "CPU"], can_offload=True, devices=[GPU])
QUESTION = Question(slots=8, cells=0, host_bytes=8 * GIB)


def pretend(monkeypatch: pytest.MonkeyPatch, *findings: Finding) -> None:
    monkeypatch.setattr(checkup, "probe", lambda question, model: list(findings))


def test_a_machine_that_can_run_a_node(tmp_path: Path) -> None:
    done = CliRunner().invoke(doctor, ["--offline", "--json", "--data-dir", str(tmp_path / "not" / "yet")])
    assert done.exit_code == 0, done.output
    report = msgspec.json.decode(done.stdout, type=Report)
    assert report.ok and not report.problems
    assert report.llama_cpp is not None and "CPU" in report.llama_cpp.built_for
    processor = next(device for device in report.devices if device.kind == "cpu")
    assert 0 < processor.free_bytes < processor.total_bytes
    model = report.model
    assert model is not None and (model.name, model.reuse, model.layers) == ("smollm2", "prefix", 31)
    assert model.cells_bytes == model.cells * 23_040 and model.context_tokens == min(model.cells, 8192)
    assert report.packaged_model == model.path
    assert not (tmp_path / "not").exists(), "it only looks"


def test_the_report_for_people() -> None:
    done = CliRunner().invoke(doctor, ["--offline"])
    assert done.exit_code == 0
    for word in ("llama.cpp", "CPU (cpu)", "usable cores", "smollm2", "on the processor", "KV cache"):
        assert word in done.stdout
    assert "Examples:" in CliRunner().invoke(doctor, ["--help"]).stdout


def test_what_is_wrong_is_one_line_each_and_exit_code_1(tmp_path: Path) -> None:
    done = CliRunner().invoke(doctor, ["--offline", "--model", str(tmp_path / "no\nmodel.gguf")])
    assert done.exit_code == 1 and done.stderr.count("\n") == 1
    assert "No such file" in done.stderr and "llama.cpp" in done.stdout, "the rest is still told"
    (tmp_path / "file").touch()
    report = examine("smollm2", tmp_path / "file" / "inside")
    assert len(report.problems) == 1 and "--data-dir" in report.problems[0]
    (data,) = [line for line in lines(report) if line[4:].startswith("data")]
    assert data.startswith("!!") and "--data-dir" in data, "a line says ok, or what is wrong and what mends it"
    (model,) = [line for line in lines(examine("nonsense", tmp_path)) if line[4:].startswith("model")]
    assert model.startswith("!!") and "smollm2" in model
    assert examine("fake", tmp_path).ok, "no model has no file"


def test_models_that_cannot_be_loaded(tmp_path: Path) -> None:
    whole = quick_model().read_bytes()
    layers = whole.index(b"block_count") + len("block_count") + 4
    cases = {
        "cut.gguf": (whole[: len(whole) // 2], "cannot load"),
        "junk.gguf": (b"GGUF" + b"\xff" * 999, "cannot load"),
        "layers.gguf": (whole[:layers] + b"\xff" * 4 + whole[layers + 4 :], "Aborted"),  # llama.cpp abort()s
    }
    for name, (data, words) in cases.items():
        (tmp_path / name).write_bytes(data)
        library, problem = probe(QUESTION, tmp_path / name)
        assert isinstance(library, Library) and isinstance(problem, Problem)
        assert words in problem.message and "\n" not in problem.message and "vendor/" not in problem.message


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("import no_such_library", "No module named 'no_such_library'): 'make setup'"),
        ("raise OSError('libvulkan.so.1: cannot open shared object file')", "install Vulkan's loader"),
        ("import os; print('a driver speaks', flush=True); os.abort()", "Aborted: no last words"),
        ("import time; time.sleep(600)", "said nothing"),
    ],
)
def test_a_library_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch, script: str, words: str) -> None:
    monkeypatch.setattr(probe_file, "PROBE_COMMAND", (sys.executable, "-c", script))
    monkeypatch.setattr(probe_file, "DEADLINE_S", 5.0)
    (problem,) = probe(QUESTION, None)
    assert isinstance(problem, Problem) and words in problem.message


def test_a_model_on_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = Model(
        description="llama 8B Q4_K",
        weight_bytes=5 * GIB,
        trained_tokens=131_072,
        keeps_states=False,
        layers=33,
        gpu_layers=33,
        offload="all 33 layers on CUDA0 (NVIDIA H200)",
        cells=65_536,
        cells_bytes=8 * GIB,
        cells_note="",
    )
    pretend(monkeypatch, LIBRARY, model)
    report = examine("smollm2", tmp_path)
    text = "\n".join(lines(report))
    assert report.ok and report.devices == [replace(GPU, description="NVIDIA\\nH200")]
    assert report.model is not None and report.model.context_tokens == 65_536
    for words in ("all 33 layers on CUDA0", "130.0 GiB of 139.0 GiB free", "65536 cells take 8.0 GiB", "GPU: yes"):
        assert words in text
    no_chats = msgspec.structs.replace(model, chat_problem="the model's chat template does not compile: why")
    pretend(monkeypatch, LIBRARY, no_chats)
    report = examine("smollm2", tmp_path)
    assert "no conversations: the model's chat template does not compile" in "\n".join(lines(report))
    assert report.ok
    recurrent = msgspec.structs.replace(model, keeps_states=True, trained_tokens=0)
    pretend(monkeypatch, LIBRARY, recurrent)
    report = examine("smollm2", tmp_path)
    assert report.model is not None and report.model.reuse == "checkpoints" and report.ok
    ranker = msgspec.structs.replace(model, kind="rerank", cells=0, cells_bytes=0)
    pretend(monkeypatch, LIBRARY, ranker)
    report = examine("smollm2", tmp_path)
    text = "\n".join(lines(report))
    assert report.ok and report.model is not None and report.model.reuse == "none"
    assert "smollm2: a reranking model, llama 8B Q4_K" in text and "KV cache" not in text


def test_hints_at_a_gpu_that_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    blind = msgspec.structs.replace(LIBRARY, devices=[], can_offload=False)
    pretend(monkeypatch, blind)
    assert "nvidia-smi" in examine("smollm2", tmp_path).hints[0]
    pretend(monkeypatch, msgspec.structs.replace(blind, built_for=["CPU"]))
    monkeypatch.setattr(checkup, "NVIDIA_DEVICE", Path(os.devnull))
    assert "CUDA=1" in examine("smollm2", tmp_path).hints[0]


def test_hints_at_a_gpu_for_vulkan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    blind = msgspec.structs.replace(LIBRARY, devices=[], can_offload=False, built_for=["CPU"])
    pretend(monkeypatch, blind)
    monkeypatch.setattr(checkup, "NVIDIA_DEVICE", tmp_path / "none")
    monkeypatch.setattr(checkup, "DRM_DEVICES", tmp_path)
    assert not examine("smollm2", tmp_path).hints
    vendor = tmp_path / "renderD128" / "device" / "vendor"
    vendor.parent.mkdir(parents=True)
    for number, words in (("0x1af4", ""), ("0x1002", "GPU of AMD"), ("0x8086", "GPU of Intel")):
        vendor.write_text(f"{number}\n")
        hints = examine("smollm2", tmp_path).hints
        assert bool(hints) == bool(words), "the GPU of a virtual machine is none for Vulkan"
        assert all(words in hint and "VULKAN=1" in hint for hint in hints)
    missing = {"Vulkan": "libvulkan.so.1: cannot open shared object file"}
    pretend(monkeypatch, msgspec.structs.replace(blind, built_for=["Vulkan", "CPU"], unusable=missing))
    report = examine("smollm2", tmp_path)
    [hint] = report.hints
    assert "built for Vulkan" in hint and "libvulkan1" in hint and report.ok


def test_what_is_wrong_outside_is_a_problem_with_its_cure(tmp_path: Path) -> None:
    report = with_outlook(
        examine("smollm2", tmp_path),
        [
            Line("clock", True, "right"),
            Line("reachable", False, "peers cannot connect\nto port 7117", "mycelia node --announce /ip4/..."),
        ],
    )
    assert not report.ok and report.problems == [
        "reachable: peers cannot connect\\nto port 7117; mycelia node --announce /ip4/..."
    ]
    told = lines(report)
    assert "ok  clock       right" in told
    assert "!!  reachable   peers cannot connect\\nto port 7117; mycelia node --announce /ip4/..." in told


async def test_the_ports_looked_at_are_those_that_a_node_would_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        listen = [f"/ip4/127.0.0.1/tcp/{port}", "/ip6/::1/tcp/0"]
        peers, more, api, *_ = await look_out(tmp_path, [], listen, port)
    assert not peers.ok and f"{port} cannot be used" in peers.says and "--listen" in peers.fix
    assert more.ok and not api.ok and "--api-port" in api.fix


async def test_why_a_bootstrap_address_leads_nowhere_is_said_with_the_fix(tmp_path: Path) -> None:
    peer = peer_text(new_identity().peer_id)
    async with open_network(NetworkSettings(new_identity(), ("/ip4/127.0.0.1/tcp/0",))) as other:
        address = other.addresses()[0].partition("/p2p/")[0]
        bootstrap = [f"/ip4/127.0.0.1/tcp/1/p2p/{peer}", f"{address}/p2p/{peer}", "/dnsaddr/list.invalid"]
        found = await look_out(tmp_path, bootstrap, ["/ip4/127.0.0.1/tcp/0"], 0)
    (local,) = [line for line in found if line.what == "local network"]
    assert local.ok
    says = {line.says: line.fix for line in found if line.what == "bootstrap" and not line.ok}
    assert "start it, or correct the port" in says["127.0.0.1 port 1: connection refused"]
    (old,) = [fix for text, fix in says.items() if "answers with another peer id: the address is old" in text]
    assert old == "replace it by the one that the node prints now"
    (name,) = [fix for text, fix in says.items() if text.startswith("list.invalid: ")]
    assert name


def seen(
    outcome: str, address: str = "/ip4/203.0.113.7/tcp/40000", skew_s: float = 0.0, by: str = "198.51.100.1"
) -> Seen:
    return Seen(Reach(address=address, time_ms=0, outcome=outcome), skew_s, by)


def seen_twice(outcome: str, address: str, by: str = "198.51.100.2") -> list[Seen]:
    """Two peers' reports."""
    return [seen(outcome), seen(outcome, address, by=by)]


SAME_PORT, OTHER_PORT = "/ip4/203.0.113.7/tcp/40000", "/ip4/203.0.113.7/tcp/40001"
FIX = "let TCP port 7117 through"


@pytest.mark.parametrize(
    ("told", "what", "ok", "says"),
    [
        ([seen("open"), seen("closed")], "reachable", True, "7117 of 203.0.113.7"),
        ([seen("closed")], "reachable", False, f"7117 of 203.0.113.7 {FIX}"),
        ([seen("closed", "/ip6/2001:db8::1/tcp/4")], "reachable", False, f"7117 of 2001:db8::1 {FIX}"),
        ([seen("untried")], "reachable", True, "unknown"),
        ([], "reachable", True, "unknown"),
        ([], "NAT", True, "unknown"),
        ([seen("open", "/ip4/127.0.0.1/tcp/1"), seen("closed")], "reachable", False, FIX),
        ([seen("open")], "NAT", True, "address translation to 203.0.113.7; two bootstrap peers"),
        ([seen("open", "/ip4/127.0.0.1/tcp/1")], "NAT", True, "none: this machine has the address 127.0.0.1"),
        (
            [seen("open", "/ip4/127.0.0.1/tcp/1", by="10.0.0.1"), seen("open")],
            "NAT",
            True,
            "translation to 203.0.113.7",
        ),
        (seen_twice("closed", SAME_PORT), "NAT", True, "cone: 2 peers see 203.0.113.7 port 40000"),
        (seen_twice("closed", OTHER_PORT), "NAT", False, "symmetric: different peers see 203.0.113.7 port 40000, 203"),
        (seen_twice("closed", OTHER_PORT), "NAT", False, FIX),
        (seen_twice("open", OTHER_PORT), "NAT", True, "symmetric"),
        (seen_twice("open", "/ip4/203.0.113.8/tcp/40000"), "NAT", True, "symmetric"),
        (seen_twice("open", OTHER_PORT, by="198.51.100.1"), "NAT", True, "address translation"),
        (seen_twice("open", "/ip4/203.0.113.7/tcp/²"), "NAT", True, "203.0.113.7 port 0"),
        ([seen("open")], "relay", True, "none is in use"),
        ([seen("closed")], "relay", True, "none is in use: a node here would be reached through a peer"),
        ([seen("open", "nonsense\x1b[2J")], "NAT", True, "unknown"),
        ([seen("open", skew_s=-90.0)], "clock", False, "90 s ahead of peers' timedatectl"),
        ([seen("open", skew_s=7200.0)], "clock", False, "7200 s behind"),
        ([seen("open", skew_s=7200.0), seen("open"), seen("open")], "clock", True, "3 peers"),
    ],
)
def test_how_peers_see_the_machine(told: list[Seen], what: str, ok: bool, says: str) -> None:
    line = next(line for line in conclusions(told, 7117) if line.what == what)
    assert line.ok == ok and says in f"{line.says} {line.fix}"


def test_a_port_that_the_router_would_forward_is_no_problem() -> None:
    closed = [seen("closed", "/ip4/45.10.1.7/tcp/40000")]
    by_what = {line.what: line for line in conclusions(closed, 7117, can_map=True)}
    assert all(line.ok for line in by_what.values()) and "a node here asks" in by_what["reachable"].says
    running = {line.what: line for line in conclusions(closed, 7117, ["/ip4/192.168.1.5/tcp/7117/p2p/x"], can_map=True)}
    assert not running["reachable"].ok, "the node has asked in vain"


def test_what_routers_forward() -> None:
    assert "no router" in port_mapping([]).says
    found = [KnownRouter("192.168.1.1", "UPnP", "45.10.1.7"), KnownRouter("10.0.0.1", "NAT-PMP", "100.64.0.2\x1b[2J")]
    says = port_mapping([*found, KnownRouter("10.0.0.2", "PCP", "")]).says
    assert "192.168.1.1 forwards ports on request, by UPnP; its own address is 45.10.1.7;" in says
    assert "100.64.0.2\\x1b[2J, which is private: a second router" in says and says.endswith("by PCP")


def test_each_address_family_has_its_line() -> None:
    lines = conclusions([seen("open"), seen("closed", "/ip6/2001:db8::1/tcp/4")], 7117)
    assert [(line.ok, line.says) for line in lines if line.what == "reachable"] == [
        (False, "peers cannot connect to port 7117 of 2001:db8::1"),
        (True, "peers can connect to port 7117 of 203.0.113.7"),
    ]


def test_a_node_that_is_reached_through_a_relay() -> None:
    circuit = "/ip4/198.51.100.1/tcp/7117/p2p/12D3KooWRelay/p2p-circuit/p2p/12D3KooWMe"
    told = seen_twice("closed", OTHER_PORT)
    with_relay = {line.what: line for line in conclusions(told, 7117, [circuit, "/ip4/192.168.1.5/tcp/7117/p2p/x"])}
    assert all(line.ok for line in with_relay.values())
    assert with_relay["relay"].says == "in use: peers reach this node through 12D3KooWRelay"
    assert "through the relay" in with_relay["reachable"].says and FIX in with_relay["reachable"].says
    without = {line.what: line for line in conclusions(told, 7117, ["/ip4/192.168.1.5/tcp/7117/p2p/x"])}
    assert not without["reachable"].ok and "no connected peer" in without["relay"].says
