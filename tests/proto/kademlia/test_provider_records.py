"""Provider records and the table of peers: what strangers make a node keep stays within bounds."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from mycelia.proto.kademlia.peer_buckets import BUCKET_SIZE, PER_SUBNET, PER_SUBNET_AND_BUCKET, PeerBuckets
from mycelia.proto.kademlia.provider_records import (
    EXPIRY_S,
    FRESH_S,
    MAX_PROVIDERS,
    MAX_RECORDS_PER_PEER,
    PER_LOCAL,
    Contact,
    ProviderRecords,
)
from mycelia.proto.kademlia.provider_records import (
    PER_SUBNET as PROVIDERS_PER_SUBNET,
)

MODEL = b"/mycelia/model/1"
HERE = "local 127.0.0.1"


def peer(number: int) -> bytes:
    return b"peer%08d" % number


def home(number: int) -> str:
    """A subnet of the open internet."""
    return f"8.{number // 256}.{number % 256}.0/24"


def records(limit: int = 1_000) -> ProviderRecords:
    return ProviderRecords(limit, random.Random(1))


def told(number: int) -> Contact:
    return Contact(peer(number), (b"address",))


def everybody(_: bytes) -> bool:
    return True


def nobody(_: bytes) -> bool:
    return False


def kept(store: ProviderRecords, key: bytes = MODEL, now: float = 0.0) -> set[bytes]:
    return {contact.peer for contact in store.providers(key, now)}


def test_a_hundred_records_of_one_subnet_leave_the_others() -> None:
    store = records()
    honest = [store.add(MODEL, told(number), home(number), everybody, 0.0) for number in range(3)]
    for number in range(100, 200):
        store.add(MODEL, told(number), home(200), everybody, 1.0)
        store.check_invariants()
    found = kept(store)
    assert all(honest) and {peer(number) for number in range(3)} <= found
    assert len(found) == 3 + PROVIDERS_PER_SUBNET


def test_a_swarm_on_one_machine_finds_itself() -> None:
    store = records()
    for number in range(40):
        store.add(MODEL, told(number), HERE, everybody, 0.0)
    assert len(kept(store)) == PER_LOCAL
    store.add(MODEL, told(100), home(1), everybody, 0.0)
    assert peer(100) in kept(store)


def test_the_providers_that_are_known_the_longest_stay_and_newcomers_are_found() -> None:
    store = records()
    for number in range(MAX_PROVIDERS):
        store.add(MODEL, told(number), home(number), everybody, float(number))
    for number in range(100, 1_000):
        assert store.add(MODEL, told(number), home(number), everybody, 100.0)
        assert peer(number) in kept(store, now=100.0)
        store.check_invariants()
    assert {peer(number) for number in range(MAX_PROVIDERS // 2)} <= kept(store, now=100.0)


def test_providers_that_are_gone_make_room() -> None:
    store = records()
    for number in range(MAX_PROVIDERS):
        store.add(MODEL, told(number), home(number), nobody, 0.0)
    for number in range(100, 1_000):
        store.add(MODEL, told(number), home(number), lambda one: one >= peer(100), FRESH_S + 1)
    assert not {peer(number) for number in range(MAX_PROVIDERS)} & kept(store, now=FRESH_S + 1)
    assert kept(store, now=FRESH_S + EXPIRY_S + 2) == set() and len(store) == 0


def test_keys_that_one_subnet_makes_up_push_out_nobody_elses() -> None:
    store = records(limit=1_000)
    for number in range(20):
        store.add(b"key%d" % number, told(number), home(number), everybody, 0.0)
    for number in range(5_000):
        store.add(b"made up %d" % number, told(1_000 + number % 60), home(500), everybody, 1.0)
    store.check_invariants()
    assert all(kept(store, b"key%d" % number) == {peer(number)} for number in range(20))
    assert len(store) <= 20 + 200, "a fifth of what was free"
    assert store.add(b"new", told(99), home(99), everybody, 2.0), "and there is room for others"


def test_a_peer_with_too_many_keys_loses_its_own() -> None:
    store = records(limit=1_000)
    for number in range(2 * MAX_RECORDS_PER_PEER):
        assert store.add(b"key%d" % number, told(1), HERE, everybody, float(number))
    assert len(store) == MAX_RECORDS_PER_PEER
    assert not kept(store, b"key0") and kept(store, b"key%d" % (2 * MAX_RECORDS_PER_PEER - 1))


def test_a_provider_that_moves_is_kept_once() -> None:
    store = records()
    store.add(MODEL, told(1), home(1), everybody, 0.0)
    store.add(MODEL, Contact(peer(1), (b"elsewhere",)), HERE, everybody, 1.0)
    store.check_invariants()
    assert store.providers(MODEL, 1.0) == [Contact(peer(1), (b"elsewhere",))]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 40), st.integers(0, 5), st.floats(0, 5_000)), max_size=150),
    st.integers(1, 60),
)
def test_records_keep_their_bounds(steps: list[tuple[int, int, int, float]], limit: int) -> None:
    store = ProviderRecords(limit, random.Random(len(steps)))
    now = 0.0
    for key, who, where, pause in steps:
        now += pause
        subnet = HERE if where == 0 else home(where)
        store.add(b"key%d" % key, told(who), subnet, lambda one: one < peer(20), now)
        store.providers(b"key%d" % (key + 1), now)
        store.check_invariants()
        assert len(store) <= limit


# --- the table of peers --------------------------------------------------------------------------------------------


def test_one_subnet_does_not_fill_the_table() -> None:
    table = PeerBuckets(peer(0))
    for number in range(1, 2_000):
        table.add(peer(number), home(1), everybody)
    table.check_invariants()
    assert len(table) <= PER_SUBNET
    for number in range(2_000, 4_000):
        table.add(peer(number), home(number), everybody)
    table.check_invariants()
    assert len(table) > 5 * BUCKET_SIZE


def test_a_swarm_on_one_machine_fills_the_table() -> None:
    table = PeerBuckets(peer(0))
    for number in range(1, 2_000):
        table.add(peer(number), HERE, everybody)
    assert len(table) > 5 * BUCKET_SIZE
    assert not table.add(peer(0), HERE, everybody)


def test_a_connected_peer_takes_the_place_of_one_that_is_gone() -> None:
    table = PeerBuckets(peer(0))
    there = {peer(number) for number in range(1, 5_000)}
    for one in sorted(there):
        table.add(one, HERE, there.__contains__)
    before = set(table.peers())
    assert not table.add(peer(9_999), HERE, everybody) or peer(9_999) in table
    for number in range(10_000, 10_100):
        table.add(peer(number), HERE, nobody)
    assert set(table.peers()) != before
    table.check_invariants()
    gone = table.peers()[0]
    table.remove(gone)
    table.remove(gone)
    assert gone not in table and table.entry(gone) is None


def test_the_nearest_come_first() -> None:
    table = PeerBuckets(peer(0))
    for number in range(1, 200):
        table.add(peer(number), HERE, everybody)
    for one in table.peers()[:10]:
        assert table.nearest(one, 3)[0] == one
    assert len(table.nearest(MODEL, 7)) == 7


def test_few_peers_of_a_subnet_are_in_a_bucket() -> None:
    table = PeerBuckets(peer(0))
    entered = [number for number in range(1, 200) if table.add(peer(number), home(1), everybody)]
    assert PER_SUBNET_AND_BUCKET <= len(entered) <= PER_SUBNET
