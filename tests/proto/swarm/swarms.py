"""A private swarm with real keys and a clock of its own, for tests."""

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from mycelia.proto.swarm.authority import Authority, Held, founded
from mycelia.proto.swarm.keys import invitation_id_of, proof_key_of, proof_of
from mycelia.proto.swarm.roster import PUBLIC_KEY_PREFIX
from mycelia.proto.wire.messages import Join, Member

NOW = 1_800_000_000.0
SEED = bytes(range(32))
SWARM = bytes(SigningKey(SEED).verify_key)
ADMIN = PUBLIC_KEY_PREFIX + b"k" * 32
SECRET = b"s" * 16


def peer(number: int) -> bytes:
    return PUBLIC_KEY_PREFIX + number.to_bytes(32, "big")


def sign(payload: bytes) -> bytes:
    return SigningKey(SEED).sign(payload).signature


def verify(owner: bytes, payload: bytes, signature: bytes) -> bool:
    try:
        VerifyKey(owner.removeprefix(PUBLIC_KEY_PREFIX)).verify(payload, signature)
    except (BadSignatureError, ValueError):
        return False
    return True


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def new_swarm(allowed: tuple[bytes, ...] = ()) -> Authority:
    admin = Member(peer=ADMIN, name="admin", since=int(NOW))
    return founded(SWARM, Held(SEED, allowed=allowed), sign, "home", admin, key(0), b"z" * 32, ())


def request(secret: bytes, joiner: bytes, swarm: bytes = SWARM, name: str = "laptop") -> Join:
    return Join(invitation_id=invitation_id_of(secret), proof=proof_of(proof_key_of(secret), swarm, joiner), name=name)
