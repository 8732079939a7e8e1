"""The admin's decisions, and a state machine that plays invitations, joins, removals and rotations at random."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mycelia.proto.swarm.authority import Authority
from mycelia.proto.swarm.keys import join_key_of
from mycelia.proto.swarm.roster import Adoption, Purpose, RosterView, is_signed
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import MAX_INVITATIONS, MAX_MEMBERS, MAX_OLD_KEYS, JoinRefused, Member, Roster
from tests.profiles import examples
from tests.proto.swarm.swarms import ADMIN, NOW, SECRET, key, new_swarm, peer, request, verify

JOINER, OTHER = peer(1), peer(2)
HOUR_S = 3_600


def refusal(answer: Roster | JoinRefused) -> str:
    return answer.reason if isinstance(answer, JoinRefused) else "member"


def test_an_invited_peer_becomes_a_member() -> None:
    swarm = new_swarm()
    swarm.invite(SECRET, HOUR_S, 1, NOW)
    answer = swarm.join(request(SECRET, JOINER), JOINER, NOW + 1)
    assert isinstance(answer, Roster) and is_signed(answer, verify)
    assert answer.members[-1] == Member(peer=JOINER, name="laptop", since=int(NOW) + 1)
    assert answer.version == 3


def test_an_invitation_is_used_up() -> None:
    swarm = new_swarm()
    swarm.invite(SECRET, HOUR_S, 2, NOW)
    asked = [refusal(swarm.join(request(SECRET, one), one, NOW)) for one in (peer(1), peer(2), peer(3))]
    assert asked == ["member", "member", "used"]


def test_joining_twice_takes_no_second_use() -> None:
    swarm = new_swarm()
    swarm.invite(SECRET, HOUR_S, 1, NOW)
    first = swarm.join(request(SECRET, JOINER), JOINER, NOW)
    assert swarm.join(request(SECRET, JOINER), JOINER, NOW + 2 * HOUR_S) == first
    assert len(swarm.roster.members) == 2


@pytest.mark.parametrize(("after_s", "outcome"), [(-2 * HOUR_S, "member"), (HOUR_S, "member"), (HOUR_S + 1, "expired")])
def test_only_the_admins_clock_counts(after_s: float, outcome: str) -> None:
    swarm = new_swarm()
    swarm.invite(SECRET, HOUR_S, 1, NOW)
    assert refusal(swarm.join(request(SECRET, JOINER), JOINER, NOW + after_s)) == outcome


def test_a_revoked_invitation_admits_nobody() -> None:
    swarm = new_swarm()
    issued = swarm.invite(SECRET, HOUR_S, 1, NOW)
    swarm.revoke(issued.invitation_id)
    assert refusal(swarm.join(request(SECRET, JOINER), JOINER, NOW)) == "revoked"
    with pytest.raises(LocalError, match="no invitation"):
        swarm.revoke(b"x" * 8)


def test_a_proof_of_another_peer_or_swarm_is_not_known() -> None:
    swarm = new_swarm()
    swarm.invite(SECRET, HOUR_S, 1, NOW)
    assert refusal(swarm.join(request(SECRET, JOINER), OTHER, NOW)) == "unknown"
    assert refusal(swarm.join(request(SECRET, JOINER, b"o" * 32), JOINER, NOW)) == "unknown"
    assert refusal(swarm.join(request(b"t" * 16, JOINER), JOINER, NOW)) == "unknown"


def test_only_listed_peers_join_if_there_is_a_list() -> None:
    swarm = new_swarm(allowed=(OTHER,))
    swarm.invite(SECRET, HOUR_S, 2, NOW)
    assert refusal(swarm.join(request(SECRET, JOINER), JOINER, NOW)) == "not_allowed"
    assert refusal(swarm.join(request(SECRET, OTHER), OTHER, NOW)) == "member"
    swarm.allow(JOINER)
    assert refusal(swarm.join(request(SECRET, JOINER), JOINER, NOW)) == "member"


def test_a_removed_member_is_out_and_does_not_come_back() -> None:
    swarm = new_swarm()
    swarm.invite(SECRET, HOUR_S, 5, NOW)
    swarm.join(request(SECRET, JOINER), JOINER, NOW)
    swarm.remove(JOINER, key(1))
    assert [member.peer for member in swarm.roster.members] == [ADMIN]
    assert (swarm.roster.key, swarm.roster.old_keys, swarm.roster.epoch) == (key(1), (key(0),), 2)
    assert refusal(swarm.join(request(SECRET, JOINER), JOINER, NOW)) == "removed"
    with pytest.raises(LocalError, match="no member"):
        swarm.remove(JOINER, key(2))
    swarm.allow(JOINER)
    assert refusal(swarm.join(request(SECRET, JOINER), JOINER, NOW)) == "member"
    with pytest.raises(LocalError, match="keeps the swarm"):
        swarm.remove(ADMIN, key(2))


def test_a_few_old_keys_are_kept() -> None:
    swarm = new_swarm()
    for number in range(1, 10):
        swarm.rotate(key(number))
    assert swarm.roster.old_keys == tuple(key(number) for number in range(8, 8 - MAX_OLD_KEYS, -1))


def test_closed_invitations_make_room_and_open_ones_do_not() -> None:
    swarm = new_swarm()
    for number in range(MAX_INVITATIONS):
        swarm.invite(number.to_bytes(16, "big"), HOUR_S if number else 60, 1, NOW)
    with pytest.raises(LocalError, match="are open"):
        swarm.invite(SECRET, HOUR_S, 1, NOW)
    swarm.invite(SECRET, HOUR_S, 1, NOW + 61)
    assert refusal(swarm.join(request(bytes(16), JOINER), JOINER, NOW + 61)) == "unknown"
    swarm.check_invariants()


def test_a_full_swarm_says_so() -> None:
    swarm = new_swarm()
    swarm.invite(SECRET, HOUR_S, MAX_MEMBERS, NOW)
    for number in range(1, MAX_MEMBERS):
        swarm.join(request(SECRET, peer(number)), peer(number), NOW)
    last = peer(MAX_MEMBERS)
    assert refusal(swarm.join(request(SECRET, last), last, NOW)) == "full"


class Swarms(RuleBasedStateMachine):
    """The admin and two members, which hear of rosters late or never. Few peers and secrets, so that they meet."""

    def __init__(self) -> None:
        super().__init__()
        self.swarm: Authority = new_swarm()
        self.now = NOW
        self.num_keys = 0
        self.num_admitted: dict[bytes, int] = {}
        self.uses: dict[bytes, int] = {}
        self.views: dict[bytes, RosterView] = {ADMIN: RosterView(self.swarm.roster, ADMIN, verify)}

    @rule(secret=st.sampled_from([b"a" * 16, b"b" * 16]), uses=st.integers(1, 3), lifetime_s=st.integers(60, 600))
    def invite(self, secret: bytes, uses: int, lifetime_s: int) -> None:
        if secret not in self.uses:
            self.uses[secret] = uses
            issued = self.swarm.invite(secret, lifetime_s, uses, self.now)
            assert issued.join_key == join_key_of(secret)

    @rule(secret=st.sampled_from([b"a" * 16, b"b" * 16]), number=st.integers(1, 4))
    def join(self, secret: bytes, number: int) -> None:
        before = {member.peer for member in self.swarm.roster.members}
        answer = self.swarm.join(request(secret, peer(number)), peer(number), self.now)
        if isinstance(answer, Roster) and peer(number) not in before:
            self.num_admitted[secret] = self.num_admitted.get(secret, 0) + 1
            self.views[peer(number)] = RosterView(answer, peer(number), verify)

    @rule(number=st.integers(1, 4))
    def remove(self, number: int) -> None:
        if any(member.peer == peer(number) for member in self.swarm.roster.members):
            self.num_keys += 1
            self.swarm.remove(peer(number), key(self.num_keys))

    @rule()
    def rotate(self) -> None:
        self.num_keys += 1
        self.swarm.rotate(key(self.num_keys))

    @rule(seconds=st.integers(-300, 300))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @rule(number=st.integers(0, 4))
    def hear(self, number: int) -> None:
        who = peer(number) if number else ADMIN
        view = self.views.get(who)
        if view is None:
            return
        is_in = any(member.peer == who for member in self.swarm.roster.members)
        outcome = view.adopt(self.swarm.roster)
        assert outcome in (Adoption.NEW, Adoption.OLD) if is_in else outcome is Adoption.REMOVED
        if is_in:
            assert view.roster == self.swarm.roster
            assert view.opened_by(bytes(24)) == (self.swarm.roster.key, Purpose.MEMBERS)

    @rule(number=st.integers(1, 4))
    def hear_a_forged_one(self, number: int) -> None:
        from msgspec.structs import replace

        view = self.views[ADMIN]
        before = view.roster
        forged = replace(before, version=before.version + 1, members=(*before.members, before.members[0]))
        assert view.adopt(forged) is Adoption.WRONG and view.roster is before

    @invariant()
    def holds(self) -> None:
        self.swarm.check_invariants()
        for view in self.views.values():
            view.check_invariants()
        for secret, count in self.num_admitted.items():
            assert count <= self.uses[secret]


TestSwarms = Swarms.TestCase
TestSwarms.settings = settings(max_examples=examples(30), stateful_step_count=30)
