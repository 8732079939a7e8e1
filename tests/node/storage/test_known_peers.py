"""The nodes that a node remembers over restarts."""

import math
from dataclasses import replace
from pathlib import Path

from mycelia.node.network.identity import Identity
from mycelia.node.peer_id import peer_text
from mycelia.node.storage.known_peers import (
    MAX_ADDRESSES,
    MAX_ENTRIES,
    MAX_KNOWN,
    MAX_OF_A_LOCAL_ADDRESS,
    MAX_OF_A_SUBNET,
    PEERS_FILE,
    STABLE_S,
    KnownPeer,
    KnownPeers,
    entries_known,
)

NOW = 1_800_000_000.0
DAY_S = 86_400.0
NAMESPACE = b"n" * 16


def peer(number: int) -> bytes:
    return Identity(number.to_bytes(32, "big")).peer_id


def address(number: int) -> str:
    return f"/ip4/192.0.2.{number % 250 + 1}/tcp/{7_000 + number}"


def met(known: KnownPeers, number: int, connected_s: float = 3_600.0, now: float = NOW) -> None:
    known.note(peer(number), [address(number)], [NAMESPACE], connected_s, now)


def a_known(number: int) -> KnownPeer:
    return KnownPeer(peer(number), (address(number),), (NAMESPACE,), 60.0, NOW)


def test_who_stayed_for_a_while_and_can_be_dialled_is_remembered() -> None:
    known = KnownPeers()
    met(known, 1)
    met(known, 2, connected_s=STABLE_S - 0.1)
    known.note(peer(3), [], [NAMESPACE], 60.0, NOW)
    for bad in ("/ip4/192.0.2.1/udp/1", "/unix/x", address(3) + "/p2p/" + peer_text(peer(3)), "/dns4/" + "x" * 200):
        known.note(peer(3), [bad], [NAMESPACE], 60.0, NOW)
    assert [one.peer for one in known.rows(NOW)] == [peer(1)]
    assert known.full_addresses() == [f"{address(1)}/p2p/{peer_text(peer(1))}"]
    known.forget(peer(1))
    assert not len(known)


def test_a_peers_addresses_are_bounded() -> None:
    known = KnownPeers()
    known.note(peer(1), [address(number) for number in range(100)], [bytes([n] * 16) for n in range(100)], 60.0, NOW)
    (one,) = known.rows(NOW)
    assert one.addresses == tuple(address(number) for number in range(MAX_ADDRESSES)) and len(one.namespaces) == 16


def test_a_crowd_of_newcomers_pushes_nobody_out_who_was_there_for_long() -> None:
    known = KnownPeers()
    for number in range(8):
        met(known, number, connected_s=DAY_S)
    for number in range(100, 100 + 10 * MAX_KNOWN):
        met(known, number, connected_s=60.0)
    rows = known.rows(NOW)
    assert len(rows) == MAX_KNOWN and {one.peer for one in rows[:8]} == {peer(number) for number in range(8)}


def test_the_keys_of_one_network_push_out_nobody_of_another() -> None:
    """Each key announces addresses of other networks, which a peer can choose freely."""
    known = KnownPeers()
    for number in range(8):
        known.note(peer(number), [address(number)], [NAMESPACE], 60.0, NOW, f"/ip4/1.1.{number}.1/tcp/7117")
    for number in range(100, 100 + 2 * MAX_KNOWN):
        told, remote = f"/ip4/8.{number}.8.8/tcp/7117", f"/ip4/9.9.9.{number % 250}/tcp/{number}"
        known.note(peer(number), [told], [], 3_600.0 + number, NOW, remote)
    known = KnownPeers(known.rows(NOW), NOW)
    rows = known.rows(NOW)
    assert {one.peer for one in rows if one.subnet != "9.9.9.0/24"} == {peer(number) for number in range(8)}
    last = 100 + 2 * MAX_KNOWN
    kept = [peer(number) for number in range(last - 1, last - 1 - MAX_OF_A_SUBNET, -1)]
    assert [one.peer for one in rows[:MAX_OF_A_SUBNET]] == kept, "those of the longest connections"
    assert len(rows) == 8 + MAX_OF_A_SUBNET


def test_a_swarm_on_one_machine_is_remembered() -> None:
    known = KnownPeers()
    for number in range(2 * MAX_KNOWN):
        known.note(peer(number), [address(number)], [], 60.0, NOW, f"/ip4/127.0.0.1/tcp/{20_000 + number}")
    assert len(known) == MAX_OF_A_LOCAL_ADDRESS


def test_peers_of_earlier_files_are_of_the_network_of_their_first_address() -> None:
    found = KnownPeers([replace(a_known(n), addresses=(f"/ip4/9.9.9.{n}/tcp/7117",)) for n in range(1, 60)], NOW)
    assert len(found) == MAX_OF_A_SUBNET


def test_who_is_gone_for_good_makes_room() -> None:
    known = KnownPeers()
    for number in range(MAX_KNOWN):
        met(known, number, connected_s=DAY_S)
    later = NOW + 30 * DAY_S
    for number in range(100, 110):
        met(known, number, connected_s=60.0, now=later)
    assert {one.peer for one in known.rows(later)[:10]} == {peer(number) for number in range(100, 110)}


def test_a_short_connection_does_not_undo_a_long_one() -> None:
    known = KnownPeers()
    met(known, 1, connected_s=DAY_S)
    met(known, 1, connected_s=60.0, now=NOW + DAY_S)
    (one,) = known.rows(NOW)
    assert one.connected_s == DAY_S / 2 and one.seen_at == NOW + DAY_S


def test_it_is_the_same_after_a_restart() -> None:
    known = KnownPeers()
    for number in range(20):
        met(known, number, connected_s=60.0 + number)
    assert KnownPeers(known.rows(NOW), NOW + 60.0).rows(NOW) == known.rows(NOW)


def test_what_cannot_be_meant_is_left_out() -> None:
    good = a_known(1)
    bad = [
        replace(good, peer=b""),
        replace(good, peer=b"x" * 38),
        replace(good, connected_s=math.nan),
        replace(good, seen_at=math.nan),
        replace(good, seen_at=math.inf),
        replace(good, addresses=()),
        replace(good, addresses=("nonsense", "\0" * 100)),
    ]
    assert not len(KnownPeers(bad, NOW))
    odd = [replace(good, connected_s=-5.0), replace(good, peer=peer(2), connected_s=1e300, seen_at=NOW + 1e9)]
    rows = KnownPeers(odd, NOW).rows(NOW)
    assert [(one.peer, one.seen_at) for one in rows] == [(peer(2), NOW), (peer(1), NOW)]
    assert rows[0].connected_s == 365 * DAY_S and rows[1].connected_s == 0.0
    assert len(KnownPeers([a_known(number) for number in range(1, 200)], NOW)) == MAX_KNOWN


def test_a_clock_that_was_wrong_forgets_nobody() -> None:
    known = KnownPeers([a_known(1)], NOW + 10_000 * DAY_S)
    assert len(known) == 1 and known.full_addresses()


def test_a_command_finds_the_nodes_of_the_same_model_first(tmp_path: Path) -> None:
    assert entries_known(tmp_path, b"", NOW) == []
    others = [replace(a_known(number), connected_s=DAY_S, namespaces=(b"o" * 16,)) for number in range(50, 60)]
    PEERS_FILE.save(tmp_path, [*others, *(a_known(number) for number in range(20))])
    mine = entries_known(tmp_path, NAMESPACE, NOW)
    assert len(mine) == MAX_ENTRIES and all("/p2p/" in one for one in mine)
    assert not any(peer_text(one.peer) in "".join(mine) for one in others)
    assert len(entries_known(tmp_path, b"", NOW)) == MAX_ENTRIES
    (tmp_path / PEERS_FILE.name).write_bytes(b"damaged")
    assert entries_known(tmp_path, NAMESPACE, NOW) == []
    assert (tmp_path / PEERS_FILE.name).read_bytes() == b"damaged", "only the node itself sets files aside"
