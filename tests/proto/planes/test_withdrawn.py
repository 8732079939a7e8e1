"""A node that serves a model no more, and then again: what its peers and its own memory make of it."""

from mycelia.proto.effects import Publish
from mycelia.proto.events import CacheChanged, ModelServed, ModelWithdrawn, VitalsChanged
from mycelia.proto.wire.messages import Hello
from tests.proto.playbook import IDLE, NAMESPACE, World, peer_id

ONE, OTHER = peer_id(0), peer_id(1)
TOKENS = list(range(200))


def served(world: World, by: bytes) -> list[str]:
    """What ``by`` believes that the other node serves."""
    return [one.model for view in world.nodes[by].overlay.peers(world.now) for one in view.served]


def test_peers_hear_that_a_model_is_withdrawn_and_forget_its_digest() -> None:
    world = World(2)
    world.deliver_all()
    world.store(ONE, 1, TOKENS)
    world.advance(10)
    overlay = world.nodes[OTHER].overlay
    assert served(world, OTHER) == ["model"] and overlay.estimates.entries(ONE, NAMESPACE)
    effects = world.handle(ONE, ModelWithdrawn(NAMESPACE))
    assert not any(isinstance(effect, Publish) for effect in effects)
    world.deliver_all()
    assert served(world, OTHER) == [] and served(world, ONE) == ["model"]
    assert world.nodes[ONE].overlay.vitals(NAMESPACE) is None
    assert world.nodes[ONE].overlay.own_digest(NAMESPACE) is None
    # What an engine may still report changes nothing.
    assert world.handle(ONE, CacheChanged(NAMESPACE, [(2, TOKENS)], [])) == []
    assert world.handle(ONE, VitalsChanged(NAMESPACE, IDLE)) == []
    assert world.handle(ONE, ModelWithdrawn(NAMESPACE)) == []
    world.advance(600)
    assert not overlay.estimates.live(NAMESPACE)


def test_a_model_that_is_served_again_continues_its_versions() -> None:
    world = World(2)
    world.deliver_all()
    world.store(ONE, 1, TOKENS)
    world.advance(10)
    before = world.nodes[ONE].own_digest.head
    assert before is not None
    for _ in range(3):
        world.handle(ONE, ModelWithdrawn(NAMESPACE))
        world.advance(30)
        effects = world.handle(ONE, ModelServed(NAMESPACE, "model", 2048, IDLE, before.epoch))
        assert any(isinstance(getattr(effect, "message", None), Hello) for effect in effects)
        world.deliver_all()
        world.store(ONE, 1, TOKENS[:100])
        world.advance(60)
        after = world.nodes[ONE].own_digest.head
        assert after is not None and (after.epoch, after.seq) > (before.epoch, before.seq)
        overlay = world.nodes[OTHER].overlay
        assert len(overlay.estimates.entries(ONE, NAMESPACE)) == after.count and not overlay.refusals
        before = after
