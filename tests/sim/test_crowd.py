"""The prediction for a swarm that meets and loses some of its nodes."""

from mycelia.proto.config import DigestConfig
from mycelia.sim.crowd import STEP_S, meet_and_part

SHARES = (0.5, 1.0)


def test_nodes_meet_and_forget_the_killed_ones() -> None:
    starts = [number * 0.5 for number in range(12)]
    crowd = meet_and_part(starts, [10, 11], SHARES, 0.001, rest_s=60.0, seed=1)
    assert crowd == meet_and_part(starts, [10, 11], SHARES, 0.001, rest_s=60.0, seed=1)
    assert 0 < crowd.known_s[0.5] <= crowd.known_s[1.0] <= DigestConfig().reconcile_s
    assert crowd.connections == 11 and crowd.received_per_s > 0
    assert crowd.connected_s == crowd.live_s == 0.0  # (all nodes were connected with them)
    longest_s = DigestConfig().evict_s + DigestConfig().heartbeat_s
    assert DigestConfig().evict_s - DigestConfig().heartbeat_s * 1.2 - STEP_S <= crowd.kept_s <= longest_s
