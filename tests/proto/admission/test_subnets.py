import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycelia.proto.admission.subnets import LOCAL, VIA, Places, is_local, subnet_of

NEAR, FAR = subnet_of("/ip4/127.0.0.1/tcp/1"), subnet_of("/ip4/8.8.8.8/tcp/1")


@pytest.mark.parametrize(
    ("text", "subnet"),
    [
        ("/ip4/8.8.8.8/tcp/1", "8.8.8.0/24"),
        ("/ip4/8.8.8.9/tcp/7", "8.8.8.0/24"),
        ("/ip6/2600:1f00:1:2:3::4/tcp/1", "2600:1f00:1::/48"),
        ("/ip6/2600:1f00:1:ffff::/tcp/9", "2600:1f00:1::/48"),
        ("/ip6/::ffff:8.8.8.8/tcp/1", "8.8.8.0/24"),
        ("/ip6/2002:808:808::1/tcp/1", "8.8.8.0/24"),
        ("/ip6/64:ff9b::808:808/tcp/1", "8.8.8.0/24"),
        ("/ip4/127.0.0.1/tcp/1", f"{LOCAL}127.0.0.1"),
        ("/ip4/10.0.0.9/tcp/1", f"{LOCAL}10.0.0.9"),
        ("/ip6/fe80::1/tcp/1", f"{LOCAL}fe80::/64"),
        ("/ip4/8.8.8.8/tcp/1/p2p/x/p2p-circuit", f"{VIA}8.8.8.0/24"),
        ("/ip4/10.0.0.9/tcp/1/p2p/x/p2p-circuit", f"{VIA}{LOCAL}10.0.0.9"),
        ("/dns4/example.org/tcp/1", ""),
        ("", ""),
    ],
)
def test_who_counts_as_one(text: str, subnet: str) -> None:
    assert subnet_of(text) == subnet
    assert is_local(subnet) == subnet.startswith(LOCAL)


@given(st.text(max_size=60))
def test_any_text_has_a_subnet_or_none(text: str) -> None:
    assert isinstance(subnet_of(text), str)


def fill(places: Places, subnet: str) -> int:
    num = 0
    while places.take(f"{subnet}{num}".encode(), subnet):
        num += 1
        places.check_invariants()
    return num


def test_a_subnet_gets_its_share_of_what_is_free_however_many_keys_it_has() -> None:
    places = Places(128, per_key=1)
    assert fill(places, FAR) == 26
    assert [fill(places, f"other {number}") for number in range(3)] == [21, 17, 13]
    assert places.has_room("one more")


def test_one_machine_may_hold_most_places_and_leaves_some_to_others() -> None:
    places = Places(128, per_key=1)
    assert fill(places, NEAR) == 96
    assert places.take(b"else", subnet_of("/ip4/127.0.0.2/tcp/1"))


def test_known_keys_have_places_kept_for_them_and_no_share() -> None:
    places = Places(8, per_key=1, num_kept=4)
    num = sum(fill(places, f"subnet {number}") for number in range(20))
    assert num == 4
    assert all(places.take(b"known %d" % number, FAR, is_known=True) for number in range(4))
    assert not places.take(b"known 9", FAR, is_known=True)


def test_a_key_has_a_bound_of_its_own() -> None:
    places = Places(128, per_key=2)
    assert [places.take(b"key", NEAR) for _ in range(3)] == [True, True, False]
    assert places.num_of(NEAR) == 2


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.booleans(), st.booleans()), max_size=80))
def test_the_books_fit_whatever_is_taken_and_given_back(steps: list[tuple[int, int, bool, bool]]) -> None:
    places = Places(10, per_key=3, num_kept=2)
    held: list[tuple[bytes, str]] = []
    for key, subnet, takes, is_known in steps:
        holder = (bytes([key]), f"subnet {subnet}")
        if takes:
            if places.take(*holder, is_known=is_known):
                held.append(holder)
        elif held:
            places.free(*held.pop())
        places.check_invariants()
        assert places.num_taken == len(held)
