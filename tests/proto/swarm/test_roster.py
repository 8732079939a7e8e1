from msgspec.structs import replace

from mycelia.proto.swarm.keys import join_key_of, tagged_nonce
from mycelia.proto.swarm.roster import Adoption, Purpose, RosterView
from tests.proto.swarm.swarms import ADMIN, NOW, SECRET, key, new_swarm, peer, request, verify

ME = peer(1)


def joined() -> RosterView:
    swarm = new_swarm()
    swarm.invite(SECRET, 60, 1, NOW)
    swarm.join(request(SECRET, ME), ME, NOW)
    swarm.rotate(key(1))
    return RosterView(swarm.roster, ME, verify)


def test_the_nonce_says_what_a_connection_is_for() -> None:
    view, fresh = joined(), b"f" * 16
    assert view.opened_by(tagged_nonce(key(1), fresh)) == (key(1), Purpose.MEMBERS)
    assert view.opened_by(tagged_nonce(key(0), fresh)) == (key(0), Purpose.RENEWAL)
    assert view.opened_by(tagged_nonce(join_key_of(SECRET), fresh)) == (join_key_of(SECRET), Purpose.JOIN)
    assert view.opened_by(tagged_nonce(key(7), fresh)) == (key(1), Purpose.MEMBERS)


def test_another_swarms_roster_is_not_taken() -> None:
    view = joined()
    assert view.adopt(replace(view.roster, swarm=b"o" * 32, version=99)) is Adoption.WRONG
    assert view.adopt(replace(view.roster, version=99)) is Adoption.WRONG
    assert view.adopt(view.roster) is Adoption.OLD


def test_a_removed_member_trusts_nobody_any_more() -> None:
    swarm = new_swarm()
    swarm.invite(SECRET, 60, 1, NOW)
    swarm.join(request(SECRET, ME), ME, NOW)
    view = RosterView(swarm.roster, ME, verify)
    assert view.is_member(ADMIN)
    swarm.remove(ME, key(1))
    assert view.adopt(swarm.roster) is Adoption.REMOVED
    assert view.is_removed and not view.is_member(ADMIN)
