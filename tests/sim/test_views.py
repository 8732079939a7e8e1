"""The oracles' view: what it says of waits comes true."""

import pytest

from mycelia.proto.routing.candidates import Candidate, Candidates
from mycelia.sim.node import peer_id
from mycelia.sim.prompts import Prompt
from mycelia.sim.scenario import Scenario
from mycelia.sim.simulate import SwarmRun
from mycelia.sim.views import TrueState

NEW = 1 << 30


def test_a_first_token_comes_when_the_oracle_expects_it() -> None:
    swarm = SwarmRun(Scenario(num_peers=3, rtt_s=0.0, rate=1.0), "oracle-soonest", 1)
    swarm.start()
    truth = TrueState(swarm.serving, 0)
    known = Candidates.of([Candidate(peer_id(number), 0, 0, is_local=number == 0) for number in range(3)])
    expected_s, records = [], []
    for number in range(40):
        tokens = (7,) * 640 + (NEW + number,) * 200
        prompt = Prompt(tokens, (NEW - number,) * (20 + 5 * number))
        soonest_s = float(truth.waits_s(known, len(tokens), ()).min())
        records.append(swarm.serving.submit(0, prompt))
        expected_s.append(soonest_s)
        swarm.world.run(swarm.world.now + 0.01)
    swarm.serving.run_until_over(records, swarm.world.now + 600.0)
    took_s = [record.first_token_s - record.submitted_s for record in records]
    assert max(took_s) > 4 * min(took_s), "many waited"
    # (the chain is not given, so the first waits are those of prompts that find nothing)
    assert took_s[0] == pytest.approx(expected_s[0], abs=0.01)
    later = [(took, expected) for took, expected in zip(took_s, expected_s, strict=True)]
    assert all(took <= expected + 0.01 for took, expected in later)
