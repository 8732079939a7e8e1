"""Which peers are asked."""

from collections import Counter

from mycelia.node.queries.questions import drawn, spread


def test_peers_of_as_many_subnets_as_possible_are_asked() -> None:
    peers = [bytes([0, number]) for number in range(50)] + [b"a", b"b"]
    for num in (2, 3, 16):
        asked = drawn(peers, num, lambda peer: str(peer[0]))
        subnets = Counter(peer[0] for peer in asked)
        assert len(asked) == len(set(asked)) == num and len(subnets) == min(num, 3)
    assert sorted(drawn(peers, 100, lambda peer: str(peer[0]))) == sorted(peers) and drawn([], 3, str) == []
    assert len({drawn(peers, 1, lambda peer: "")[0] for _ in range(100)}) > 10, "at random"


def test_a_given_order_is_kept_where_subnets_allow() -> None:
    peers = [b"a1", b"a2", b"b1", b"a3", b"c1", b"b2"]
    assert spread(peers, lambda peer: peer[:1].decode()) == [b"a1", b"b1", b"c1", b"a2", b"b2", b"a3"]
