"""The prefix ladder: what is provided and how fast, when a request waits, and that records are only hints."""

import random
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from mycelia.proto.cells.cells import address_of
from mycelia.proto.cells.ladder import MAX_PROVIDERS, RUNGS, Lookups, Publisher, ladder_key, rungs_of
from mycelia.proto.config import CellConfig, LadderConfig, OverlayConfig
from mycelia.proto.effects import Connect, Disconnect, Dispatch, FindProviders, Provide
from mycelia.proto.events import Connected, Disconnected, ProvidersFound, RequestCancelled, RequestSubmitted, TimerFired
from mycelia.proto.wire.blocks import STRIDE, block_hashes
from mycelia.proto.wire.messages import Sampling
from tests.profiles import examples
from tests.proto.playbook import NAMESPACE, World, peer_id

CONFIG = LadderConfig()
ME, OTHER = b"me", b"other"
CHAIN = block_hashes(NAMESPACE, [1] * 5_000)
REQUEST = b"r" * 16


def keys_of(chain: Sequence[int]) -> tuple[bytes, ...]:
    return tuple(ladder_key(NAMESPACE, block) for _, block in rungs_of(chain))


def lookups(**changes: float) -> Lookups:
    return Lookups(ME, LadderConfig(**changes), random.Random(1))  # type: ignore[arg-type]


def test_the_rungs_of_a_prompt() -> None:
    assert [depth for depth, _ in rungs_of(CHAIN)] == [4_096, 1_024, 256]
    assert rungs_of(CHAIN)[-1][1] == block_hashes(NAMESPACE, [1] * 256)[-1]
    assert rungs_of(CHAIN[:3]) == []
    assert len(set(keys_of(CHAIN))) == 3 and ladder_key(b"x" * 16, CHAIN[0]) != ladder_key(NAMESPACE, CHAIN[0])
    assert all(depth % STRIDE == 0 for depth in RUNGS)


def test_each_key_is_provided_once_an_interval_and_the_most_valuable_first() -> None:
    publisher = Publisher(LadderConfig(ladder_keys=3, republish_s=30.0))
    wanted = [5, 6, 5, 7, 8]
    assert publisher.pause_s == 10
    assert [publisher.next_block(wanted, 10.0 * n) for n in range(3)] == [5, 6, 7]
    assert publisher.next_block([9, *wanted], 25.0) == 9, "what is new goes before what is due"
    assert publisher.next_block([9, *wanted], 29.0) is None, "and pushes the last one out"
    assert publisher.next_block([9, *wanted], 30.0) == 5
    assert publisher.next_block([], 99.0) is None


@settings(max_examples=examples(50), deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), max_size=8), min_size=1, max_size=60))
def test_no_key_is_provided_twice_within_its_interval(steps: list[list[int]]) -> None:
    publisher = Publisher(LadderConfig(ladder_keys=4, republish_s=40.0))
    provided: dict[int, float] = {}
    for number, wanted in enumerate(steps):
        now = number * publisher.pause_s
        block = publisher.next_block(wanted, now)
        provided = {b: at for b, at in provided.items() if b in wanted[:8]}
        if block is not None:
            assert block in wanted
            provided[block] = now


def test_only_what_may_pay_is_looked_up() -> None:
    for num_tokens, best, deeper in (
        (2_047, 0, 0),
        (5_000, 2_500, 0),
        (5_000, 2_499, 1),
        (5_000, 0, 3),
        (5_000, 256, 2),
    ):
        keys = lookups().begin(REQUEST, NAMESPACE, CHAIN, num_tokens, best, 0.0)
        assert keys == keys_of(CHAIN)[:deeper], (num_tokens, best)


def test_a_request_waits_for_a_share_of_what_it_could_save() -> None:
    wait_s = lookups().wait_s
    assert wait_s(4_000, 0, 0) == CONFIG.lookup_wait_s
    assert wait_s(4_000, 2_000, 1_000) == 0.5
    assert wait_s(4_000, 0, 100) == CONFIG.max_lookup_wait_s


def test_lookups_are_bounded_and_not_repeated() -> None:
    many = [block_hashes(NAMESPACE, [n] * 4_096) for n in range(40)]
    at_once = lookups()
    began = [at_once.begin(b"%d" % n, NAMESPACE, chain, 4_096, 0, 0.0) for n, chain in enumerate(many)]
    assert sum(map(bool, began)) == len(at_once) == CONFIG.max_lookups
    paced = lookups()
    num_begun = 0
    for n in range(40):
        num_begun += bool(paced.begin(b"%d" % n, NAMESPACE, many[n], 4_096, 0, n / 2))
        paced.end(b"%d" % n)
    assert num_begun <= CONFIG.lookups_burst + CONFIG.lookups_per_s * 20
    again = lookups()
    assert again.begin(b"1", NAMESPACE, CHAIN, 5_000, 0, 0.0)
    assert not again.begin(b"2", NAMESPACE, CHAIN, 5_000, 0, 59.0)
    assert again.begin(b"3", NAMESPACE, CHAIN, 5_000, 0, 60.0)


def test_the_deepest_rung_that_anybody_provides_counts() -> None:
    found = lookups()
    deep, middle, low = found.begin(REQUEST, NAMESPACE, CHAIN, 5_000, 0, 0.0)
    assert not found.found(REQUEST, low, [b"low"])
    assert not found.found(REQUEST, low, [b"again"]) and not found.found(b"unknown", low, [])
    assert not found.found(REQUEST, middle, [ME, b"holder", b"holder"])
    assert found.found(REQUEST, deep, [])
    assert found.end(REQUEST) == [b"holder"] and found.end(REQUEST) == [] and len(found) == 0


def test_shallower_rungs_are_not_waited_for() -> None:
    found = lookups()
    deep, _, low = found.begin(REQUEST, NAMESPACE, CHAIN, 5_000, 0, 0.0)
    assert not found.found(REQUEST, low, [b"low"])
    assert found.found(REQUEST, deep, [b"deep"]) and found.end(REQUEST) == [b"deep"]


@settings(max_examples=examples(50), deadline=None)
@given(st.data())
def test_whatever_the_dht_says_little_is_dialled(data: st.DataObject) -> None:
    found = lookups()
    for number in range(data.draw(st.integers(1, 30))):
        chain = block_hashes(NAMESPACE, [number] * 5_000)
        keys = found.begin(b"%d" % number, NAMESPACE, chain, 5_000, 0, number * 10.0)
        for key in data.draw(st.lists(st.sampled_from([*keys, b"made up"]), max_size=6)):
            liars = data.draw(st.lists(st.binary(min_size=2, max_size=3), max_size=3 * MAX_PROVIDERS))
            if found.found(b"%d" % number, key, liars):
                dials = found.end(b"%d" % number)
                assert len(dials) <= CONFIG.max_dials and ME not in dials
                for peer in dials:
                    found.may_dial(peer, lambda peer: False)
        found.check_invariants()


# --- through the overlay -------------------------------------------------------------------------------------------

SMALL = OverlayConfig(
    cells=CellConfig(max_cell_nodes=8, min_cell_nodes=3, min_cell_peers=1),
    ladder=LadderConfig(min_prompt_tokens=1_024),  # (the nodes here have a context of 2,048)
)
PROMPT = [7] * 2_000


def split_world() -> World:
    world = World(12, seed=3, config=SMALL)
    world.advance(330)
    return world


def submit(world: World, me: bytes, prompt: list[int] = PROMPT) -> list[object]:
    return list(world.handle(me, RequestSubmitted(REQUEST, NAMESPACE, prompt, Sampling(max_tokens=4))))


def the_lookup(world: World, me: bytes) -> FindProviders:
    (effect,) = [effect for effect in submit(world, me) if isinstance(effect, FindProviders)]
    return effect


def fire_lookup_timer(world: World, me: bytes) -> list[object]:
    (timer,) = [timer for timer in world.nodes[me].timers if timer.kind == "lookup"]
    world.now = max(world.now, world.nodes[me].timers.pop(timer))
    return list(world.handle(me, TimerFired(timer)))


def test_one_cell_provides_nothing_and_looks_up_nothing() -> None:
    world = World(3)
    world.advance(20)
    me = peer_id(0)
    world.store(me, 1, PROMPT)
    world.advance(200)
    assert not world.nodes[me].take(Provide)
    assert any(isinstance(effect, Dispatch) for effect in submit(world, peer_id(1)))


def test_a_node_in_a_cell_provides_its_rungs_at_a_pace() -> None:
    world = split_world()
    world.check_every = 50
    me = peer_id(0)
    world.store(me, 1, PROMPT)
    world.advance(600)
    provided = [effect.key for effect in world.nodes[me].take(Provide) if isinstance(effect, Provide)]
    assert provided == list(keys_of(block_hashes(NAMESPACE, PROMPT))), "once in this time, deepest first"


def test_a_request_waits_until_nothing_was_found() -> None:
    world = split_world()
    me = peer_id(0)
    lookup = the_lookup(world, me)
    assert not world.nodes[me].take(Dispatch)
    for key in lookup.keys:
        assert not world.nodes[me].take(Dispatch)
        world.handle(me, ProvidersFound(REQUEST, key, []))
    assert len(world.nodes[me].take(Dispatch)) == 1
    fire_lookup_timer(world, me)
    assert not world.nodes[me].take(Dispatch), "only once"


def test_a_request_waits_no_longer_than_its_time_and_late_results_serve_the_next() -> None:
    world = split_world()
    me = peer_id(0)
    began = world.now
    lookup = the_lookup(world, me)
    fire_lookup_timer(world, me)
    assert world.now - began <= CONFIG.lookup_wait_s and len(world.nodes[me].take(Dispatch)) == 1
    for key in lookup.keys:
        world.handle(me, ProvidersFound(REQUEST, key, [b"far away"]))
    assert world.nodes[me].take(Connect) == [Connect(b"far away")]
    assert not world.nodes[me].take(Dispatch)


def test_a_lookup_that_is_never_answered_ends() -> None:
    world = split_world()
    me = peer_id(0)
    the_lookup(world, me)
    fire_lookup_timer(world, me)
    fire_lookup_timer(world, me)
    assert not world.nodes[me].overlay.ladder.is_looking(REQUEST)
    assert not [timer for timer in world.nodes[me].timers if timer.kind == "lookup"]


def test_a_client_that_leaves_while_its_request_waits() -> None:
    world = split_world()
    me = peer_id(0)
    lookup = the_lookup(world, me)
    assert world.handle(me, RequestCancelled(REQUEST)) == []
    for key in lookup.keys:
        world.handle(me, ProvidersFound(REQUEST, key, []))
    fire_lookup_timer(world, me)
    assert not world.nodes[me].take(Dispatch)


def test_the_digest_of_who_was_found_ends_the_wait() -> None:
    """An unconnected node of another cell holds the prompt: it is found, dialled, sends its hello, and serves."""
    world = split_world()
    me = peer_id(0)
    cell = world.nodes[me].overlay.cell(NAMESPACE)
    assert cell is not None
    holder = next(peer for peer in sorted(world.nodes) if not cell.holds(address_of(NAMESPACE, peer)))
    for one, other in ((me, holder), (holder, me)):
        world.handle(one, Disconnected(other))
    world.store(holder, 1, PROMPT)
    world.advance(1)
    world.nodes[me].overlay.estimates.forget(holder, world.now)
    world.advance(40)  # (its next head is newer than what was forgotten, and no gossip brings it here)
    lookup = the_lookup(world, me)
    for key in lookup.keys:
        world.handle(me, ProvidersFound(REQUEST, key, [holder]))
    assert world.nodes[me].take(Connect) == [Connect(holder)]
    assert not world.nodes[me].take(Dispatch)
    for one, other in ((me, holder), (holder, me)):
        world.handle(one, Connected(other, ""))
    world.deliver_all()
    (dispatch,) = world.nodes[me].take(Dispatch)
    assert isinstance(dispatch, Dispatch) and dispatch.peer == holder
    assert dispatch.decision.matched_tokens == len(PROMPT) // STRIDE * STRIDE


def test_connections_for_lookups_make_room_for_each_other() -> None:
    world = split_world()
    me = peer_id(0)
    closed = []
    for number in range(CONFIG.ladder_peers * 2):
        world.now += 10
        prompt = [number] * 3_000
        request_id = number.to_bytes(16, "big")
        effects = world.handle(me, RequestSubmitted(request_id, NAMESPACE, prompt, Sampling(max_tokens=4)))
        (lookup,) = [effect for effect in effects if isinstance(effect, FindProviders)]
        for key in lookup.keys:
            world.handle(me, ProvidersFound(request_id, key, [b"found %d" % number]))
        closed += [effect.peer for effect in world.nodes[me].take(Disconnect) if isinstance(effect, Disconnect)]
    assert closed == [b"found %d" % number for number in range(CONFIG.ladder_peers)]


def test_a_connection_over_which_an_answer_comes_is_not_closed_for_another() -> None:
    found = lookups(ladder_peers=2)
    assert found.may_dial(b"a", lambda peer: False) == (True, None)
    assert found.may_dial(b"b", lambda peer: False) == (True, None)
    assert found.may_dial(b"c", lambda peer: peer == b"a") == (True, b"b")
    assert found.may_dial(b"d", lambda peer: True) == (False, None)
    assert found.may_dial(b"a", lambda peer: True) == (True, None)
    found.check_invariants()
