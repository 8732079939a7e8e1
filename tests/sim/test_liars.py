"""The share of prompts that nodes get which claim everything, and what becomes of prompts that they do not answer."""

import pytest

from mycelia.sim.outcome import percentile
from mycelia.sim.scenario import Conduct, Scenario
from mycelia.sim.simulate import SwarmRun

LIAR, SEED = 10, 1
ALSO_BELOW = (Conduct.STALLS, Conduct.TRICKLES)
"""These are in ``make test`` in the second test only."""
SWARM = Scenario(
    num_peers=LIAR + 1, liars=1 / (LIAR + 1), rtt_s=0.05, rate=None, load=0.3, zipf=1.1, drain_s=120.0
)  # fmt: skip


def asked(conduct: Conduct, after_s: float, seed: int = SEED) -> tuple[SwarmRun, float]:
    """A run in which one dishonest node joins ten others that have answered for ``after_s``; and the share of the
    prompts of its second minute that were sent to it, also of those that others then answered."""
    scenario = Scenario(
        **{**vars(SWARM), "conduct": conduct, "liars_after_s": after_s, "warm_s": after_s + 60.0, "measured_s": 60.0}
    )
    run = SwarmRun(scenario, "mycelia", seed)
    run.start()
    run.ask()
    measured = [record for record in run.records if run.window.holds(record)]
    assert len(measured) > 300 and all(record.done_s for record in measured)
    return run, sum(LIAR in record.asked for record in measured) / len(measured)


@pytest.mark.parametrize(
    "conduct",
    [
        pytest.param(one, marks=pytest.mark.nightly if one in (Conduct.STALLS, Conduct.TRICKLES) else ())
        for one in Conduct
    ],
)
def test_a_new_liar_gets_a_tenth_of_the_prompts_at_most(conduct: Conduct) -> None:
    _, share = asked(conduct, 60.0)
    assert share <= 0.1, f"seed {SEED}"


@pytest.mark.parametrize("conduct", [Conduct.MUTE, Conduct.STALLS, Conduct.TRICKLES])
def test_what_a_liar_does_not_answer_is_soon_answered_elsewhere(conduct: Conduct) -> None:
    run, share = asked(conduct, 0.0)
    assert share <= 0.02, "it was found out in its first minute"
    done = [record for record in run.records if record.done_s]
    usual = sorted(record.done_s - record.submitted_s for record in done if LIAR not in record.asked)
    moved = sorted(record.done_s - record.submitted_s for record in done if LIAR in record.asked)
    assert moved and not any(record.served_by == LIAR for record in done if record.num_prompt and len(record.asked) > 1)
    assert percentile(moved, 0.5) <= 3 * percentile(usual, 0.9), f"seed {SEED}"
    assert moved[-1] < 30.0, "where it happens twice, and the answer is long"


def test_a_liar_that_is_there_from_the_first_moment_leaves_half_of_the_prompts_to_others() -> None:
    _, share = asked(Conduct.GARBAGE, 0.0)
    assert share <= 0.5, f"seed {SEED}"
