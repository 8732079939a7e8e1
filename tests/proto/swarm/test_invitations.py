import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycelia.proto.swarm.invitations import CLOCK_TOLERANCE_S, PREFIX, invitation_text, is_over, read_invitation
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import Contact, Invitation
from tests.proto.swarm.swarms import ADMIN, NOW, SECRET, SWARM

ADDRESS = bytes.fromhex("04cb007107061bcd")
INVITATION = Invitation(
    swarm=SWARM,
    secret=SECRET,
    name="home",
    expires=int(NOW),
    contacts=(Contact(peer=ADMIN, addresses=(ADDRESS,)),),
)
TEXT = invitation_text(INVITATION)

contacts = st.builds(
    lambda addresses: Contact(peer=ADMIN, addresses=tuple(addresses)), st.lists(st.binary(max_size=128), max_size=4)
)
invitations = st.builds(
    lambda secret, name, expires, contacts: Invitation(
        swarm=SWARM, secret=secret, name=name, expires=expires, contacts=tuple(contacts)
    ),
    st.binary(min_size=16, max_size=16),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=32),
    st.integers(0, 2**63 - 1),
    st.lists(contacts, max_size=4),
)


def problem(text: str) -> str:
    """What is wrong with a text; empty: nothing."""
    try:
        read_invitation(text)
    except LocalError as exc:
        return str(exc)
    return ""


@given(invitations)
def test_a_text_reads_as_what_was_written(invitation: Invitation) -> None:
    text = invitation_text(invitation)
    assert read_invitation(text) == invitation
    assert text.isalnum() and text == text.lower()


def test_case_blanks_and_line_breaks_do_not_matter() -> None:
    broken = "\n".join(TEXT[start : start + 20] for start in range(0, len(TEXT), 20))
    assert read_invitation(f"  {broken.upper()}\n") == INVITATION


def test_it_is_short_enough_to_be_scanned() -> None:
    assert len(TEXT) < 250


@given(st.integers(0, len(TEXT) - 1))
def test_every_cut_text_says_that_it_is_cut(length: int) -> None:
    with pytest.raises(LocalError, match="cut off" if length >= len(PREFIX) else "begin with mycelia1"):
        read_invitation(TEXT[:length])


@given(st.integers(len(PREFIX) + 5, len(TEXT) - 1), st.sampled_from("abcdefghijklmnopqrstuvwxyz234567"))
def test_a_wrong_letter_is_noticed(place: int, letter: str) -> None:
    wrong = TEXT[:place] + letter + TEXT[place + 1 :]
    if wrong == TEXT:
        return
    # (the last letter may have bits that only fill it up)
    assert "mistyped" in problem(wrong) or (place == len(TEXT) - 1 and read_invitation(wrong) == INVITATION)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "begin with mycelia1"),
        ("https://example.org", "begin with mycelia1"),
        (TEXT + "aaaaaaaa", "additional characters"),
        (TEXT[:30] + "1" + TEXT[31:], "no invitation has"),
        (PREFIX + "a" * 5_000, "too long"),
        (PREFIX + "é" * 40, "no invitation has"),
    ],
)
def test_other_texts_say_what_is_wrong(text: str, says: str) -> None:
    with pytest.raises(LocalError, match=says):
        read_invitation(text)


@given(st.text(max_size=400))
def test_any_text_is_an_invitation_or_a_local_error(text: str) -> None:
    for candidate in (text, PREFIX + text):
        assert "\n" not in problem(candidate)


def test_clocks_may_be_two_hours_apart() -> None:
    assert not is_over(INVITATION, NOW + CLOCK_TOLERANCE_S)
    assert is_over(INVITATION, NOW + CLOCK_TOLERANCE_S + 1)
