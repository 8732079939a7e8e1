from hypothesis import given
from hypothesis import strategies as st

from mycelia.proto.swarm.keys import (
    invitation_id_of,
    join_key_of,
    key_of_nonce,
    proof_key_of,
    proof_of,
    tagged_nonce,
)
from tests.proto.swarm.swarms import ADMIN, SECRET, SWARM, key, peer

KEYS = [key(number) for number in range(40)]


@given(st.sampled_from(KEYS), st.binary(min_size=16, max_size=16))
def test_a_nonce_tells_its_key_to_those_who_have_it(used: bytes, fresh: bytes) -> None:
    nonce = tagged_nonce(used, fresh)
    assert len(nonce) == 24
    assert key_of_nonce(nonce, KEYS) == used
    assert key_of_nonce(nonce, [one for one in KEYS if one != used]) is None


@given(st.binary(min_size=24, max_size=24))
def test_other_nonces_have_no_key(nonce: bytes) -> None:
    assert key_of_nonce(nonce, KEYS) is None


def test_what_follows_from_a_secret_differs() -> None:
    found = {join_key_of(SECRET), proof_key_of(SECRET), invitation_id_of(SECRET), SECRET}
    assert len(found) == 4
    assert join_key_of(b"t" * 16) not in found


def test_a_proof_is_for_one_peer_and_one_swarm() -> None:
    proofs = {
        proof_of(proof_key_of(SECRET), swarm, joiner) for swarm in (SWARM, b"o" * 32) for joiner in (ADMIN, peer(1))
    }
    assert len(proofs) == 4
