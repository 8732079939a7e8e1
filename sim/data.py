"""Measured data in a directory of the user's, under the names used there. Mycelia contains none of it.

- ``mooncake_conversation_trace.jsonl.gz``: Mooncake's conversation trace (Qin et al., arXiv 2407.00079).
- ``hotspot_mix_trace.jsonl.gz``: the same form, with a few very popular prefixes mixed in.
- ``mtbench101_dialogues.jsonl.gz``: MT-Bench-101's dialogues (Bai et al., arXiv 2402.14762).
- ``internet_rtt_242_cities.json.gz``: ``rtt_ms``, a square matrix of round trips between cities.
"""

from pathlib import Path

from mycelia.proto.wire.errors import LocalError
from mycelia.sim.sessions import GENERATORS
from mycelia.sim.traces import Recorded, read_dialogues, read_mooncake

TRACES = {"conversation": "mooncake_conversation_trace.jsonl.gz", "hotspot": "hotspot_mix_trace.jsonl.gz"}
DIALOGUES = {"dialogues": "mtbench101_dialogues.jsonl.gz"}
RECORDED = (*TRACES, *DIALOGUES)
"""Workloads that are files in such a directory."""
MOONCAKE = "mooncake"
"""``mooncake:FILE``: the workload that is a trace anywhere."""
INTERNET = "internet_rtt_242_cities.json.gz"


def recorded_of(workload: str, directory: Path | None) -> Recorded | None:
    """What a workload replays; None: it is made up. Raises LocalError for an unknown workload, and for a file that is
    missing or bad."""
    kind, _, path = workload.partition(":")
    if kind == MOONCAKE:
        if not path:
            raise LocalError(f"the workload {MOONCAKE} needs a file: {MOONCAKE}:FILE")
        return read_mooncake(Path(path))
    if workload in RECORDED:
        if directory is None:
            raise LocalError(f"the workload {workload} was recorded: it needs --data DIR")
        if workload in TRACES:
            return read_mooncake(_there(directory / TRACES[workload]))
        return read_dialogues(_there(directory / DIALOGUES[workload]))
    if workload not in GENERATORS:
        known = ", ".join((*GENERATORS, *RECORDED))
        raise LocalError(f"no workload {workload}; there are {known}, {MOONCAKE}:FILE")
    return None


def internet_of(directory: Path) -> Path:
    """The round trips between cities. Raises LocalError when they are missing."""
    return _there(directory / INTERNET)


def _there(path: Path) -> Path:
    if not path.is_file():
        raise LocalError(f"{path.parent} has no {path.name}")
    return path
