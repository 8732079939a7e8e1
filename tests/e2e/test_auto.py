"""``mycelia node --auto`` with real downloads, from a hub on loopback, and real engines of tiny models."""

import sys
from pathlib import Path

import httpx
import pytest
import trio

from mycelia.node.local_swarm.processes import LocalSwarm
from mycelia.node.models.catalogue import load_catalogue
from tests.e2e.conftest import DEADLINE_S
from tests.node.engine.child.tiny_models import write_model
from tests.node.models.hub_server import REPO, Hub, serving

pytestmark = pytest.mark.e2e

_LAUNCH = """
from mycelia.node.cli import main
from mycelia.proto.supply import chooser
chooser.LISTEN_S, chooser.INTERVAL_S = (0.1, 0.2), 1.5
main()
"""
HASTY = (sys.executable, "-P", "-c", _LAUNCH, "--isolated")
"""``mycelia``, whose nodes decide after a second instead of an hour."""
SIZES = {"a": 2, "b": 1}
"""Model at the hub -> its size in the catalogue, in MB: without any demand the largest one is chosen."""
_ENTRY = """
["{name}"]
source = "hf:{repo}:{file}"
parameters = "1M"
size_mb = {size_mb}
cell_bytes = 1000
context = 4096
licence = "MIT"
about = "a test"
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub with two models, the only ones of the catalogue that fit any machine."""
    for name in ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    rows = [_ENTRY.format(name=name, repo=REPO, file="x.gguf", size_mb=10_000_000) for name in load_catalogue()]
    rows += [_ENTRY.format(name=f"tiny-{n}", repo=REPO, file=f"{n}.gguf", size_mb=size) for n, size in SIZES.items()]
    own = tmp_path / "XDG_CONFIG_HOME" / "mycelia" / "catalogue.toml"
    own.parent.mkdir(parents=True)
    own.write_text("".join(rows))
    files = {name: write_model(tmp_path / name, "lfm2", seed=size) for name, size in SIZES.items()}
    return Hub({f"{name}.gguf": path.read_bytes() for name, path in files.items()})


async def test_a_node_fetches_what_is_asked_for_and_moves_on_when_that_changes(
    swarm: LocalSwarm, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    with trio.fail_after(2 * DEADLINE_S), serving(hub) as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        sizes = ["--memory", "2", "--cells", "1024", "--slots", "1", "--ram-tier", "0"]
        node = await swarm.start("one", options=["--auto", "--model", "fake", *sizes], command=HASTY)
        info = await node.wait_ready()
        async with httpx.AsyncClient(base_url=info.api_url, trust_env=False, timeout=DEADLINE_S) as http:

            async def asked(model: str) -> httpx.Response:
                return await http.post("/v1/completions", json={"model": model, "prompt": "Hi", "max_tokens": 4})

            await node.wait_event(lambda event: event.get("event") == "serving" and event["model"] == "a")
            answered = await asked("tiny-a")
            assert answered.status_code == 200 and answered.json()["usage"]["completion_tokens"] > 0

            missing = [await asked("tiny-b") for _ in range(8)]
            assert missing[0].status_code == 404
            await node.wait_event(lambda event: event.get("event") == "serving" and event["model"] == "b")
            await node.wait_event(lambda event: event.get("event") == "withdrawn" and event["model"] == "a")
            assert (await asked("tiny-b")).status_code == 200 and (await asked("tiny-a")).status_code == 404
            state = (await http.get("/api/state")).json()
            assert [row["model"] for row in state["served"]] == ["fake", "b"]
            assert "serves tiny-b" in state["auto"] and "lack an answer" in state["auto"]
        assert hub.sent == sum(map(len, hub.files.values())), "each file is fetched once"
