"""Writes the test vectors, ``python -m tests.proto.wire.make_vectors``, and the exchange at the end of
``proto/interoperability.md``. ``vectors/README.md`` explains them.

They are the protocol as other implementations see it. When one changes, the wire changed: run this on purpose, read the
difference, and say in the commit why it had to.
"""

import json
import struct
from pathlib import Path

import cbor2
import msgspec
from nacl.signing import SigningKey

from mycelia.proto.config import DigestConfig
from mycelia.proto.digests.digest import OwnDigest, pack_entries, pack_hashes, root_of, signed_payload
from mycelia.proto.kademlia.keys import model_key
from mycelia.proto.swarm.invitations import invitation_text
from mycelia.proto.swarm.keys import invitation_id_of, join_key_of, proof_key_of, proof_of, tagged_nonce
from mycelia.proto.swarm.roster import roster_payload
from mycelia.proto.wire.blocks import STRIDE, block_hashes, namespace_key, pack_tokens
from mycelia.proto.wire.codec import encode
from mycelia.proto.wire.messages import (
    Accepted,
    Announce,
    Contact,
    Delta,
    Failed,
    Generate,
    Head,
    Hello,
    Invitation,
    Message,
    Reconcile,
    Repair,
    RepairRequest,
    Route,
    Sampling,
    Text,
    Tokens,
)
from tests.proto.examples import EXAMPLES, VITALS
from tests.proto.swarm.swarms import SEED as SWARM_SEED
from tests.proto.swarm.swarms import SWARM, new_swarm
from tests.proto.wire.transcript import DOCUMENT, written

FOLDER = Path(__file__).parent / "vectors"
SEED = bytes(range(32))
"""Seed of the Ed25519 key that signs every head here."""
KEY = SigningKey(SEED)
OWNER = bytes.fromhex("002408011220") + bytes(KEY.verify_key)
NAMESPACE = namespace_key(bytes(32), "f16", b"")
START_MS = 1_800_000_000_000
NOTHING = RepairRequest(owner=OWNER, namespace=NAMESPACE, epoch=0, seq=0, count=0, root=bytes(16))

Json = dict[str, "Json"] | list["Json"] | str | int | float | bool | None


def plain(value: object) -> Json:
    """CBOR as JSON: keys as text, byte strings in CBOR's own notation, h'00ff'."""
    match value:
        case bytes():
            return f"h'{value.hex()}'"
        case dict():
            return {str(key): plain(item) for key, item in value.items()}
        case list():
            return [plain(item) for item in value]
        case bool() | int() | float() | str() | None:
            return value
    raise TypeError(type(value).__name__)


def sign(payload: bytes) -> bytes:
    return KEY.sign(payload).signature


def digest(epoch: int = START_MS) -> OwnDigest:
    return OwnDigest(OWNER, NAMESPACE, epoch, sign, DigestConfig())


def hashes(tokens: list[int]) -> list[int]:
    return list(block_hashes(NAMESPACE, tokens))


# --- valid messages ------------------------------------------------------------------------------------------------

MORE: list[Message] = [
    Hello(wire_version=1, agent="", served=()),
    Reconcile(versions=()),
    Tokens(position=0, tokens=pack_tokens([0, 1, 2**32 - 1]), text="é".encode()),
    Text(text=""),
    Route(
        chosen=OWNER,
        reason="",
        prompt_tokens=1,
        candidates=(),
        namespace=NAMESPACE,
        format="hermes+think",
        opened="<think>",
    ),
    Failed(code="no_peer", message="", retryable=True),
    Generate(
        request_id=bytes(16),
        namespace=NAMESPACE,
        prompt=pack_tokens([1]),
        sampling=Sampling(max_tokens=131_072, temperature=0.1, seed=2**32 - 1, top_p=1 / 3),
        promised_tokens=0,
        resumed_tokens=1,
    ),
]


def messages() -> Json:
    return [
        {"kind": type(message).__name__, "value": plain(cbor2.loads(encode(message))), "hex": encode(message).hex()}
        for message in (*EXAMPLES, *MORE)
    ]


# --- hashes, roots, signatures -------------------------------------------------------------------------------------


def block_hash_cases() -> Json:
    lists = [
        [],
        list(range(STRIDE - 1)),
        list(range(STRIDE)),
        list(range(2 * STRIDE + 1)),
        [2**32 - 1] * STRIDE,
    ]
    return [
        {"namespace": NAMESPACE.hex(), "tokens": [*tokens], "hashes": [f"{h:016x}" for h in hashes(tokens)]}
        for tokens in lists
    ]


def namespace_cases() -> Json:
    cases = [(bytes(32), "f16", b""), (bytes(range(32)), "k=q8_0 v=q8_0", b"swarm"), (bytes(32), "f1", b"6")]
    return [
        {
            "model_digest": model.hex(),
            "kv_settings": settings,
            "salt": salt.hex(),
            "namespace": namespace_key(model, settings, salt).hex(),
        }
        for model, settings, salt in cases
    ]


def key_cases() -> Json:
    cases = [(bytes(16), ""), (NAMESPACE, ""), (NAMESPACE, "/0"), (NAMESPACE, "/0110100110010110")]
    return [
        {"namespace": namespace.hex(), "cell": cell, "key": model_key(namespace, cell).hex()}
        for namespace, cell in cases
    ]


def root_cases() -> Json:
    sets = [{}, {1: 0}, {2**64 - 1: 0, 0: 1, 256: 255}]
    return [
        {
            "entries": [[f"{key:016x}", entries[key]] for key in sorted(entries)],
            "packed": pack_entries(entries).hex(),
            "root": root_of(entries).hex(),
        }
        for entries in sets
    ]


def head_cases() -> Json:
    own = digest()
    own.store(1, hashes(list(range(STRIDE))))
    first = own.advance(START_MS / 1000).head
    largest = msgspec.structs.replace(first, epoch=2**63 - 1, seq=2**63 - 1, count=16_384, issued_at=2**63 - 1)
    largest = msgspec.structs.replace(largest, signature=sign(signed_payload(largest)))
    return [
        {
            "seed": SEED.hex(),
            "owner": OWNER.hex(),
            "head": plain(cbor2.loads(encode(Announce(head=head)))[1]),
            "payload": signed_payload(head).hex(),
            "signature": head.signature.hex(),
        }
        for head in (first, largest)
    ]


# --- a story -------------------------------------------------------------------------------------------------------


def exchange() -> Json:
    """One owner, one reader, every kind of digest message; after each, what the reader must hold."""
    steps: list[Json] = []
    prompts = [list(range(i, i + 2 * STRIDE)) for i in range(3)]
    own = digest()

    def step(what: str, message: Delta | Announce | Repair, now_ms: int, outcome: str = "applied") -> None:
        entries: list[Json] = [f"{key:016x}" for key in sorted(own.entries)]
        steps.append(
            {
                "what": what,
                "now_ms": now_ms,
                "hex": encode(message).hex(),
                "outcome": outcome,
                "version": [message.head.epoch, message.head.seq] if outcome == "applied" else None,
                "entries": entries if outcome == "applied" else None,
            }
        )

    def repair(what: str, request: RepairRequest, now_ms: int) -> None:
        answer = own.repair(request)
        assert answer is not None
        step(what, answer, now_ms)
        steps[-1]["answers"] = encode(request).hex()  # type: ignore[index,call-overload]

    def held() -> RepairRequest:
        head = own.head
        assert head is not None
        return msgspec.structs.replace(NOTHING, epoch=head.epoch, seq=head.seq, count=head.count, root=head.root)

    now = START_MS
    own.store(1, hashes(prompts[0]))
    step("the first delta, from nothing", own.advance(now / 1000), now)
    now += 10_000
    own.store(2, hashes(prompts[1]))
    own.evict(1)
    step("a delta that adds and removes", own.advance(now / 1000), now)
    now += 30_000
    step("a heartbeat", own.advance(now / 1000), now)
    known = held()
    now += 10_000
    own.store(3, hashes(prompts[2]))
    own.advance(now / 1000)  # (lost)
    own.evict(2)
    now += 10_000
    late = own.advance(now / 1000)
    step("a delta after one that was lost", late, now, "gap")
    repair("LOG: every key touched since what the reader holds", known, now)
    step("the same delta once more", late, now, "stale")
    known = held()
    now += 60_000
    own = digest(epoch=now)
    own.store(3, hashes(prompts[2]))
    step("a head alone, after a restart", Announce(head=own.advance(now / 1000).head), now)
    steps[-1]["what"] += ": the set is the one held"  # type: ignore[index,operator,call-overload]
    now += 10_000
    own = digest(epoch=now)
    own.store(3, hashes(prompts[2]))
    own.advance(now / 1000)
    repair("SAME: asked after another restart, with the root held", known, now)
    now += 10_000
    own = digest(epoch=now)
    own.store(4, hashes(prompts[0]))
    step("a head alone of another set", Announce(head=own.advance(now / 1000).head), now, "gap")
    repair("SNAPSHOT: everything", msgspec.structs.replace(NOTHING), now)
    return {"owner": OWNER.hex(), "namespace": NAMESPACE.hex(), "steps": steps}


# --- what must be refused ------------------------------------------------------------------------------------------


def _altered(index: int, **changes: object) -> bytes:
    """Example ``index`` as a map with other values under some keys, in the deterministic encoding."""
    value = cbor2.loads(encode(EXAMPLES[index]))
    return cbor2.dumps({**value, **{int(key[1:]): item for key, item in changes.items()}}, canonical=True)


def invalid_messages() -> Json:
    accepted = encode(Accepted(cached_tokens=5, vitals=VITALS))
    sampling = cbor2.loads(encode(EXAMPLES[7]))[4]
    deep: object = 0
    for _ in range(9):
        deep = [deep]
    cases: list[tuple[str, bytes]] = [
        ("nothing at all", b""),
        ("no map", b"\x05"),
        ("the end is missing", accepted[:-1]),
        ("a byte after the end", accepted + b"\x00"),
        ("a kind that does not exist", b"\xa1\x00\x18\x63"),
        ("no kind", b"\xa1\x01\x05"),
        ("a map of indefinite length", b"\xbf\x00\x09\x01\x05\xff"),
        ("a key twice", b"\xa3\x00\x09\x01\x05\x01\x05"),
        ("keys out of order", b"\xa2\x01\x05\x00\x09"),
        ("an integer longer than need be", b"\xa2\x00\x09\x01\x18\x05"),
        ("a length longer than need be", b"\xb8\x02\x00\x09\x01\x05"),
        ("a tag", b"\xa2\x00\x09\x01\xc1\x05"),
        ("a bignum", b"\xa2\x00\x09\x01\xc2\x41\x05"),
        ("a field is missing", b"\xa1\x00\x09"),
        ("a field too many", b"\xa3\x00\x09\x01\x05\x02\x00"),
        ("a negative number", b"\xa2\x00\x09\x01\x20"),
        ("a number over its bound", b"\xa2\x00\x09\x01\x1a\x80\x00\x00\x00"),
        ("a boolean for a number", b"\xa2\x00\x09\x01\xf5"),
        ("a float for an integer", b"\xa2\x00\x09\x01\xf9\x3c\x00"),
        ("null for a number", b"\xa2\x00\x09\x01\xf6"),
        ("bytes for text", _altered(0, k2=b"a")),
        ("text that is no UTF-8", encode(Text(text="ab")).replace(b"ab", b"\xff\xfe")),
        ("text of a lone surrogate", encode(Text(text="abc")).replace(b"abc", b"\xed\xa0\x80")),
        ("a text key", b"\xa2\x00\x09\x611\x05"),
        ("a claimed length that is not there", b"\xa2\x00\x0f\x01\x7a\x01\x00\x00\x00a"),
        ("an array of four billion items, claimed", b"\xa2\x00\x05\x01\x9a\xff\xff\xff\xff"),
        ("deeper than any message", cbor2.dumps({0: 5, 1: deep}, canonical=True)),
        ("an integer for a float", _altered(7, k4={**sampling, 2: 1})),
        (
            "a float longer than need be",
            encode(EXAMPLES[13]).replace(b"\xf9\x43\x00", b"\xfb" + struct.pack(">d", 3.5)),
        ),
        ("not a number", _altered(7, k4={**sampling, 5: float("nan")})),
        ("a probability over 1", _altered(7, k4={**sampling, 5: 1.5})),
        ("no token", _altered(7, k3=b"")),
        ("a namespace of 15 bytes", _altered(1, k1=bytes(15))),
        ("a peer id of 65 bytes", _altered(2, k1=bytes(65))),
        ("a reason that does not exist", _altered(10, k1="stopped")),
        ("a repair mode that does not exist", _altered(3, k2=3)),
        ("33 tokens with logprobs", _altered(14, k2=cbor2.loads(encode(EXAMPLES[14]))[2][:1] * 33)),
    ]
    return [{"reason": reason, "hex": data.hex()} for reason, data in cases]


def invalid_digests() -> Json:
    """Well-formed messages that a reader with the exchange's first delta must refuse."""
    own = digest()
    own.store(1, hashes(list(range(2 * STRIDE))))
    first = own.advance(START_MS / 1000)
    own.store(2, hashes(list(range(1, 1 + STRIDE))))
    delta = own.advance(START_MS / 1000 + 10)
    assert isinstance(delta, Delta)
    whole = own.repair(NOTHING)
    assert whole is not None
    entry = delta.upserts

    def head(**changes: object) -> Head:
        return msgspec.structs.replace(delta.head, **changes)

    def resigned(**changes: object) -> Head:
        changed = head(**changes)
        return msgspec.structs.replace(changed, signature=sign(signed_payload(changed)))

    later = START_MS + 3_600_000 + 60_000
    cases: list[tuple[str, Delta | Announce | Repair]] = [
        ("wrong_signature", Announce(head=head(signature=bytes(64)))),
        ("wrong_signature", msgspec.structs.replace(delta, head=head(issued_at=delta.head.issued_at + 1))),
        ("wrong_delta", msgspec.structs.replace(delta, upserts=entry[:-1] + b"\x01")),
        ("wrong_delta", msgspec.structs.replace(delta, removes=pack_hashes([int.from_bytes(entry[:8], "big")]))),
        ("malformed", msgspec.structs.replace(delta, upserts=entry + entry)),
        ("malformed", msgspec.structs.replace(delta, upserts=entry[:-1])),
        ("wrong_snapshot", msgspec.structs.replace(whole, upserts=whole.upserts[:-9])),
        ("equivocation", Announce(head=resigned(seq=1))),
        ("future", Announce(head=resigned(epoch=later))),
        ("future", Announce(head=resigned(issued_at=later))),
        ("expired", Announce(head=resigned(issued_at=START_MS - 3_600_000))),
        ("replayed", first),
        ("wrong_namespace", Announce(head=resigned(namespace=bytes(16)))),
    ]
    return {
        "owner": OWNER.hex(),
        "namespace": NAMESPACE.hex(),
        "now_ms": START_MS + 10_000,
        "held": encode(first).hex(),
        "cases": [{"refusal": refusal, "hex": encode(message).hex()} for refusal, message in cases],
    }


# --- private swarms ------------------------------------------------------------------------------------------------


def swarm_cases() -> Json:
    secret, joiner, fresh = bytes(range(16)), OWNER, bytes(range(16, 32))
    swarm = new_swarm()
    contacts = (Contact(peer=OWNER, addresses=(bytes.fromhex("04cb007107061bcd"),)),)
    invitation = Invitation(swarm=SWARM, secret=secret, name="home", expires=1_800_000_000, contacts=contacts)
    return {
        "invitation": {"message": encode(invitation).hex(), "text": invitation_text(invitation)},
        "secret": {
            "secret": secret.hex(),
            "key": join_key_of(secret).hex(),
            "id": invitation_id_of(secret).hex(),
            "proof_key": proof_key_of(secret).hex(),
        },
        "proof": {
            "swarm": SWARM.hex(),
            "joiner": joiner.hex(),
            "proof": proof_of(proof_key_of(secret), SWARM, joiner).hex(),
        },
        "nonce": {
            "key": swarm.roster.key.hex(),
            "fresh": fresh.hex(),
            "nonce": tagged_nonce(swarm.roster.key, fresh).hex(),
        },
        "roster": {
            "seed": SWARM_SEED.hex(),
            "message": encode(swarm.roster).hex(),
            "signed": roster_payload(swarm.roster).hex(),
        },
    }


def generate() -> dict[str, Json]:
    """File name -> contents."""
    return {
        "messages.json": messages(),
        "hashes.json": {"namespaces": namespace_cases(), "blocks": block_hash_cases(), "keys": key_cases()},
        "digests.json": {"roots": root_cases(), "heads": head_cases(), "exchange": exchange()},
        "swarms.json": swarm_cases(),
        "invalid.json": {"messages": invalid_messages(), "digests": invalid_digests()},
    }


def text_of(contents: Json) -> str:
    """One case per line, so that a difference shows which one changed."""

    def lines(value: Json, indent: str, depth: int) -> str:
        if depth == 0 or not isinstance(value, dict | list) or not value:
            return json.dumps(value, ensure_ascii=False)
        inner = indent + "  "
        if isinstance(value, list):
            return "[\n" + ",\n".join(inner + lines(v, inner, 0) for v in value) + f"\n{indent}]"
        return (
            "{\n"
            + ",\n".join(f"{inner}{json.dumps(k)}: {lines(v, inner, depth - 1)}" for k, v in value.items())
            + f"\n{indent}}}"
        )

    return lines(contents, "", 3) + "\n"


def main() -> None:
    for name, contents in generate().items():
        (FOLDER / name).write_text(text_of(contents), "utf-8")
    DOCUMENT.write_text(written(DOCUMENT.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
