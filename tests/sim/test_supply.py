"""Swarms whose nodes choose their models: what is answered, how often nodes move, and what liars change."""

from dataclasses import replace

from mycelia.sim.supply import SupplyScenario, simulate_supply

SMALL = SupplyScenario(nodes=16, days=0.75, load=0.4)
SEED = SMALL.seed


def test_what_is_lacking_is_soon_served_with_few_moves() -> None:
    """The most wanted model changes at the end of the first day."""
    chosen = simulate_supply(replace(SMALL, demand="jumping", days=1.5))
    fixed = simulate_supply(replace(SMALL, demand="jumping", days=1.5, rule="fixed"))
    assert chosen.share >= fixed.share + 0.02, f"seed {SEED}"
    for begin in (18, 30):
        assert sum(chosen.hours[begin : begin + 6]) / 6 >= 0.95, f"seed {SEED}: {chosen.hours}"
    assert chosen.moves_per_node_day <= 1.0, f"seed {SEED}"


def test_nodes_do_not_all_jump_to_one_model() -> None:
    chosen = simulate_supply(replace(SMALL, demand="daily", days=0.5))
    greedy = simulate_supply(replace(SMALL, demand="daily", days=0.5, rule="greedy"))
    assert chosen.most_at_once <= SMALL.nodes / 4 < SMALL.nodes / 2 < greedy.most_at_once, f"seed {SEED}"
    assert chosen.moves_per_node_day < greedy.moves_per_node_day / 4, f"seed {SEED}"


def test_a_subnet_of_liars_changes_nothing_that_counts() -> None:
    honest = simulate_supply(replace(SMALL, demand="steady"))
    lied = simulate_supply(replace(SMALL, demand="steady", liars=1))
    assert lied.share >= honest.share - 0.02, f"seed {SEED}"
    assert lied.moves_per_node_day <= honest.moves_per_node_day + 0.3, f"seed {SEED}"


def test_equal_scenarios_have_equal_outcomes() -> None:
    short = replace(SMALL, days=0.2)
    assert simulate_supply(short) == simulate_supply(short)
