"""A running node takes over a changed configuration: HTTP keys, names, certificate. The rest waits for its restart."""

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import trio
from cryptography import x509

from mycelia.node import log as node_log
from mycelia.node.cli import cli
from mycelia.node.guest.limits import GuestLimits, Hours
from mycelia.node.reload.reloading import LiveParts, Reloader
from mycelia.node.serve.api_keys import LOCAL, ApiKey, Limits, digest_of, unnamed
from mycelia.node.serve.gateway import Access, Gateway
from mycelia.node.serve.http.server import bind_api, serve_http
from mycelia.node.serve.http.tls import Tls, load_tls
from mycelia.node.settings import NodeSettings
from mycelia.node.telemetry.usage import OTHER, UsageMeter, Use
from mycelia.proto.wire.errors import LocalError
from tests.node.serve.http.test_tls import make_certificate
from tests.node.serve.openai.test_api import KEY, OTHER_KEY, ScriptedNode, answer, chat

DEADLINE_S = 30.0
OWN_KEY = "local" * 5
SETTINGS = NodeSettings(Path("data"), "fake", (), (), (), b"", "", 0)


class Served:
    """A gateway over HTTP whose settings a test changes."""

    def __init__(self, settings: NodeSettings) -> None:
        self.wanted = settings
        """What the configuration says now."""
        self.aliases: dict[str, str] = {}
        self.runs: list[tuple[NodeSettings, str]] = []
        self.limits: list[GuestLimits] = []
        self.error = ""
        self.reloader = Reloader(settings, self._read)
        self.usage = UsageMeter()
        self.node = ScriptedNode(answer("Hi"))
        self.http = httpx.AsyncClient()

    def _read(self) -> NodeSettings:
        if self.error:
            raise LocalError(self.error)
        return self.wanted

    def _set_aliases(self, aliases: dict[str, str]) -> None:
        self.aliases = aliases

    def parts(self, gateway: Gateway, context: ssl.SSLContext | None = None) -> LiveParts:
        def write_run(settings: NodeSettings, key: str) -> None:
            self.runs.append((settings, key))

        return LiveParts(gateway, self.usage, context, OWN_KEY, self._set_aliases, self.limits.append, write_run)

    async def ask(self, key: str = "") -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return await self.http.post("/v1/chat/completions", json=chat(), headers=headers)

    async def reload(self, key: str = "") -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return await self.http.post("/api/reload", headers=headers)


@asynccontextmanager
async def served(settings: NodeSettings = SETTINGS) -> AsyncIterator[Served]:
    one = Served(settings)
    gateway = Gateway(Access(), None, one.usage)
    gateway.open(one.node, one.reloader.reload)
    one.reloader.follow(one.parts(gateway))
    listener = bind_api("127.0.0.1", 0)
    port = listener.getsockname()[1]
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as one.http:

            async def serve(task_status: trio.TaskStatus[None]) -> None:
                await serve_http(gateway, listener, task_status=task_status)

            await nursery.start(serve)
            yield one
            nursery.cancel_scope.cancel()


def key(name: str, text: str, **limits: int) -> ApiKey:
    return ApiKey(name, digest_of(text.encode()), Limits(**limits))


async def test_keys_come_and_go_without_a_restart() -> None:
    async with served() as one:
        assert (await one.ask()).status_code == 200
        one.wanted = replace(SETTINGS, api_keys=(key("alice", KEY),))
        told = await one.reload()
        assert told.status_code == 200 and told.json() == {"changed": ["key"], "needs_restart": []}
        assert (await one.ask()).status_code == 401 and (await one.ask(KEY)).status_code == 200
        assert one.runs[-1][1] == OWN_KEY  # (so that commands on this machine go on)
        assert (await one.reload(KEY)).status_code == 403  # (a client of others changes nothing here)
        one.wanted = replace(SETTINGS, api_keys=(key("bob", OTHER_KEY),))
        assert (await one.reload(OWN_KEY)).status_code == 200
        assert (await one.ask(KEY)).status_code == 401 and (await one.ask(OTHER_KEY)).status_code == 200
        one.wanted = SETTINGS
        assert (await one.reload(OWN_KEY)).status_code == 200
        assert (await one.ask()).status_code == 200 and one.runs[-1][1] == ""


async def test_the_owners_hours_change_without_a_restart() -> None:
    async with served() as one:
        one.wanted = replace(SETTINGS, hours=(Hours(0, 60),), is_polite=True, month_bytes=5, memory_gib=1.0)
        told = (await one.reload()).json()
        assert told == {"changed": ["data_per_month", "hours", "polite"], "needs_restart": ["memory"]}
        assert one.limits == [GuestLimits(5, (Hours(0, 60),), is_polite=True)]


async def test_usage_is_counted_under_the_names_of_today() -> None:
    usage = UsageMeter(keys=[alice := key("alice", KEY)])
    usage.add(alice.client, Use("fake"))
    usage.set_keys([bob := key("bob", OTHER_KEY)])
    for client in (alice.client, bob.client, b""):  # (alice's last request ends after the key was removed)
        usage.add(client, Use("fake"))
    rows = {row.key: row.requests for row in await usage.since(1)}
    assert rows == {"alice": 1, OTHER: 1, "bob": 1, LOCAL: 1}


async def test_a_key_keeps_what_it_has_used_when_others_change() -> None:
    alice = key("alice", KEY, requests_per_minute=1)
    async with served(replace(SETTINGS, api_keys=(alice,))) as one:
        one.reloader.reload()
        assert (await one.ask(KEY)).status_code == 200
        one.wanted = replace(SETTINGS, api_keys=(alice, unnamed(OTHER_KEY)))
        assert (await one.reload(OWN_KEY)).status_code == 200
        assert (await one.ask(KEY)).status_code == 429
        one.wanted = replace(SETTINGS, api_keys=(key("alice", KEY, requests_per_minute=600),))
        assert (await one.reload(OWN_KEY)).status_code == 200


async def test_a_wrong_configuration_changes_nothing() -> None:
    async with served(replace(SETTINGS, api_keys=(key("alice", KEY),))) as one:
        one.reloader.reload()
        one.error = "mycelia.toml is not TOML"
        refused = await one.reload(OWN_KEY)
        assert refused.status_code == 422 and refused.json()["message"] == one.error
        assert (await one.ask(KEY)).status_code == 200


async def test_what_needs_a_restart_is_named_and_stays() -> None:
    async with served() as one:
        one.wanted = replace(
            SETTINGS, threads=2, ram_tier_mib=1, journal=False, aliases=(("gpt", "fake"),), drain_s=1.0
        )
        told = (await one.reload()).json()
        assert told == {"changed": ["alias", "drain"], "needs_restart": ["no_journal", "ram_tier", "threads"]}
        assert one.aliases == {"gpt": "fake"} and one.reloader.settings.drain_s == 1.0
        assert one.reloader.settings.threads is None
        assert (await one.reload()).json() == {"changed": [], "needs_restart": ["no_journal", "ram_tier", "threads"]}


async def test_a_node_that_starts_says_so() -> None:
    with pytest.raises(LocalError, match="starting"):
        Reloader(SETTINGS, lambda: SETTINGS).reload()


def served_name(context: ssl.SSLContext) -> str:
    """The name in the certificate that a new connection gets."""
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.check_hostname, client_context.verify_mode = False, ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client, server = client_context.wrap_bio(incoming, outgoing), Tls(context)
    while not server.is_ready:
        with suppress(ssl.SSLWantReadError):
            client.do_handshake()
        server.received(outgoing.read())
        incoming.write(server.to_send())
    certificate = client.getpeercert(binary_form=True)
    assert certificate is not None
    return x509.load_der_x509_certificate(certificate).subject.rfc4514_string()


def test_a_renewed_certificate_is_taken_over_and_a_wrong_one_is_not(tmp_path: Path) -> None:
    cert, private = make_certificate(tmp_path)
    settings = replace(SETTINGS, tls_cert=cert, tls_key=private)
    context = load_tls(cert, private)
    one = Served(settings)
    one.reloader.follow(one.parts(Gateway(), context))

    assert one.reloader.reload().changed == []
    other, other_private = make_certificate(tmp_path, "other.example")
    cert.write_bytes(other.read_bytes())
    with pytest.raises(LocalError, match="not that of the certificate"):
        one.reloader.reload()
    assert served_name(context) == "CN=node.example"
    private.write_bytes(other_private.read_bytes())
    assert one.reloader.reload().changed == ["tls_cert"]
    assert served_name(context) == "CN=other.example"
    assert one.reloader.reload().changed == []
    one.wanted = replace(settings, tls_cert=None, tls_key=None)
    assert one.reloader.reload().needs_restart == ["tls_cert", "tls_key"]
    assert one.reloader.settings.tls_cert == cert


# --- reading it again -----------------------------------------------------------------------------------------------


Started = tuple[NodeSettings, Callable[[], NodeSettings]]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Started]:
    """Runs ``mycelia --config FILE node ...`` up to where the node would start; what is given to it."""
    for name in ("MYCELIA_CONFIG", "MYCELIA_API_KEY", "MYCELIA_NODE_DRAIN"):
        monkeypatch.delenv(name, raising=False)
    given: list[Started] = []
    monkeypatch.setattr(trio, "run", lambda _, *arguments: given.append(arguments))
    monkeypatch.setattr(node_log, "configure", lambda level: None)

    def started(*options: str) -> Started:
        arguments = ["--config", str(tmp_path / "mycelia.toml"), "node", "--data-dir", str(tmp_path), *options]
        cli.main(arguments, standalone_mode=False)
        return given[-1]

    return started


def test_the_file_is_read_again_and_the_command_line_stays(tmp_path: Path, start: Callable[..., Started]) -> None:
    file = tmp_path / "mycelia.toml"
    file.write_text("[node]\ndrain = 5.0\nthreads = 2\ncors = ['https://one.example']\n")
    first, read = start("--threads", "3")
    assert (first.drain_s, first.threads, first.cors_origins) == (5.0, 3, ("https://one.example",))
    file.write_text("[node]\ndrain = 6.0\nthreads = 4\n")
    assert read() == replace(first, drain_s=6.0, cors_origins=())


@pytest.mark.parametrize(
    "text", ["[node]\ndrian = 1\n", "[node", "[node]\ncors = ['no origin']\n", "[node]\ndrain = -1\n"]
)
def test_mistakes_are_told_in_one_line(tmp_path: Path, start: Callable[..., Started], text: str) -> None:
    file = tmp_path / "mycelia.toml"
    file.write_text("")
    _, read = start()
    file.write_text(text)
    with pytest.raises(LocalError, match=r"mycelia\.toml|--cors"):
        read()
