"""A small swarm under attack for a little while."""

from dataclasses import replace

import pytest

from mycelia.sim.strangers import Attack, Harm, Siege

ATTACK = Attack(num_nodes=3, degree=2)
SECONDS = 20.0


@pytest.fixture(scope="module")
def harm() -> Harm:
    return Siege(ATTACK).run(SECONDS)


def test_strangers_have_no_honest_node_banned_by_another(harm: Harm) -> None:
    assert harm.banned["honest"] == 0 and not harm.over_rates
    assert harm.most_per_s < 25.0


def test_digests_converge_while_strangers_attack(harm: Harm) -> None:
    assert harm.converged_s < 3 * ATTACK.config.reconcile_s


def test_strangers_make_honest_nodes_send_each_other_little(harm: Harm) -> None:
    peace = Siege(replace(ATTACK, num_strangers=0)).run(SECONDS)
    assert peace.banned.total() == 0
    assert harm.honest_bytes_per_s < peace.honest_bytes_per_s + 5_000
    assert harm.most_entries < ATTACK.config.max_entries / 4
    assert harm.num_answered > 0.9 * (harm.num_asked - 4 * ATTACK.num_strangers * ATTACK.num_nodes)
