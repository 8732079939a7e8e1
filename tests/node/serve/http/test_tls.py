"""HTTPS: a client with TLS is served as one without, and what is no TLS is told so. Wrong files are named."""

import datetime as dt
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from OpenSSL import SSL
from starlette.types import ASGIApp, Receive, Scope, Send

from mycelia.node.serve.http.places import admit
from mycelia.node.serve.http.server import bind_api, serve_http
from mycelia.node.serve.http.tls import Tls, TlsError, load_tls
from mycelia.proto.wire.errors import LocalError
from tests.node.serve.http.serving import body_of, request, rest_of

DEADLINE_S = 30.0


def make_certificate(folder: Path, name: str = "node.example") -> tuple[Path, Path]:
    """The files of a certificate for ``name``, signed with its own key, and of the key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = folder / f"{name}.crt", folder / f"{name}.key"
    cert_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return cert_file, key_file


@asynccontextmanager
async def served(app: ASGIApp, context: ssl.SSLContext) -> AsyncIterator[int]:
    """The port of ``app`` behind TLS."""
    listener = bind_api("127.0.0.1", 0)
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:

            async def serve(task_status: trio.TaskStatus[None]) -> None:
                await serve_http(app, listener, context=context, task_status=task_status)

            await nursery.start(serve)
            yield listener.getsockname()[1]
            nursery.cancel_scope.cancel()


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    admit(scope, b"")
    body = await body_of(receive)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-scheme", scope["scheme"].encode())]})
    for at in range(0, len(body), 100_000):
        await send({"type": "http.response.body", "body": body[at : at + 100_000], "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def trusting(cert: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(cert))
    context.check_hostname = False
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_requests_are_answered_through_tls(tmp_path: Path, version: ssl.TLSVersion) -> None:
    cert, key = make_certificate(tmp_path)
    trusted = trusting(cert)
    trusted.maximum_version = trusted.minimum_version = version
    async with served(echo, load_tls(cert, key)) as port:
        url = f"https://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=url, verify=trusted, trust_env=False, timeout=DEADLINE_S) as http:
            for body in (b"", b"short", b"long " * 1_000_000):
                answered = await http.post("/", content=body)
                assert answered.content == body and answered.headers["x-scheme"] == "https"


async def test_pieces_of_one_byte_and_requests_behind_each_other(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path)
    client_side = trusting(cert).wrap_bio(incoming := ssl.MemoryBIO(), outgoing := ssl.MemoryBIO())
    async with served(echo, load_tls(cert, key)) as port, await trio.open_tcp_stream("127.0.0.1", port) as stream:

        async def exchange() -> None:
            for byte in outgoing.read():
                await stream.send_all(bytes([byte]))

        while True:
            try:
                client_side.do_handshake()
                break
            except ssl.SSLWantReadError:
                await exchange()
                incoming.write(bytes(await stream.receive_some()))
        client_side.write(request("POST", "/", b"one") + request("POST", "/", b"two", Connection="close"))
        await exchange()
        async for data in stream:
            incoming.write(bytes(data))
        seen = b""
        while piece := client_side.read(65_536):  # (an end that is cut off would raise)
            seen += piece
    assert seen.count(b" 200 ") == 2 and b"one" in seen and b"two" in seen


async def test_a_client_without_tls_is_told_to_use_https(tmp_path: Path) -> None:
    tls = load_tls(*make_certificate(tmp_path))
    async with served(echo, tls) as port, await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(request("GET", "/"))
        seen = await rest_of(stream)
    assert seen.startswith(b"HTTP/1.1 400 ") and b"https://" in seen


@pytest.mark.parametrize("data", [b"\x16", b"\x16\x03\x01\x00\x05hello", b"\x16" * 20_000, b"\x16\x03\x03\xff\xff"])
async def test_a_broken_handshake_ends_one_connection(tmp_path: Path, data: bytes) -> None:
    cert, key = make_certificate(tmp_path)
    async with served(echo, load_tls(cert, key)) as port:
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(data)
            await stream.send_eof()
            await rest_of(stream)
        url = f"https://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=url, verify=trusting(cert), trust_env=False) as http:
            assert (await http.post("/", content=b"x")).status_code == 200


async def test_a_client_that_does_not_trust_the_certificate_disturbs_nobody(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path)
    async with served(echo, load_tls(cert, key)) as port:
        url = f"https://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
            with pytest.raises(httpx.ConnectError):
                await http.get("/")
        async with httpx.AsyncClient(base_url=url, verify=trusting(cert), trust_env=False) as http:
            assert (await http.post("/", content=b"x")).status_code == 200


def test_wrong_files_are_named_with_what_is_wrong(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path)
    _, other_key = make_certificate(tmp_path, "other")
    both, empty, locked = tmp_path / "both", tmp_path / "empty", tmp_path / "locked"
    both.write_bytes(cert.read_bytes() + key.read_bytes())
    empty.write_bytes(b"")
    broken = tmp_path / "broken"
    broken.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    secret = serialization.load_pem_private_key(key.read_bytes(), None)
    locked.write_bytes(
        secret.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"password"),
        )
    )
    assert load_tls(both, None) and load_tls(cert, key)
    for wrong, says in (
        ((tmp_path / "none", key), "No such file"),
        ((tmp_path, key), "Is a directory"),
        ((empty, key), "has no certificate"),
        ((cert, cert), "has no private key"),
        ((key, key), "has no certificate"),
        ((cert, None), "--tls-key"),
        ((cert, other_key), "is not that of the certificate"),
        ((cert, locked), "needs a password"),
        ((broken, key), "cannot use"),
    ):
        with pytest.raises(LocalError, match=says):
            load_tls(*wrong)


async def test_the_handshake_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mycelia.node.serve.http.http1.HEAD_DEADLINE_S", 0.05)
    monkeypatch.setattr("mycelia.node.serve.http.client_socket.LINGER_S", 0.05)
    tls = load_tls(*make_certificate(tmp_path))
    async with served(echo, tls) as port, await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(b"\x16\x03\x01")
        assert await rest_of(stream) == b""


def test_bytes_that_are_no_tls_raise_one_kind_of_error(tmp_path: Path) -> None:
    context = load_tls(*make_certificate(tmp_path))
    for data in (b"\x16" + bytes(100), b"\x15\x03\x03\x00\x02\x02\x28", b"\x80\x2e\x01\x00\x02"):
        with pytest.raises(TlsError):
            Tls(context).received(data)


def test_a_client_that_begins_another_handshake_loses_its_connection(tmp_path: Path) -> None:
    """Each refusal would be kept until something is sent: all that a client without a key sends, nearly as long."""
    server = Tls(load_tls(*make_certificate(tmp_path)))
    context = SSL.Context(SSL.TLSv1_2_METHOD)
    client = SSL.Connection(context, None)
    client.set_connect_state()

    def handshake() -> bytes:
        with suppress(SSL.WantReadError):
            client.do_handshake()
        return client.bio_read(65_536)

    while not server.is_ready:
        assert server.received(handshake()) == b""
        client.bio_write(server.to_send())
    with suppress(SSL.WantReadError):
        client.do_handshake()
    client.send(b"GET")
    assert server.received(client.bio_read(65_536)) == b"GET"
    assert client.renegotiate()
    with pytest.raises(TlsError):
        server.received(handshake())
