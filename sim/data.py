"""Measured data in a directory of the user's, under the names used there. Mycelia contains none of it.

- ``mooncake_conversation_trace.jsonl.gz``: Mooncake's conversation trace (Qin et al., arXiv 2407.00079).
- ``hotspot_mix_trace.jsonl.gz``: the same form, with a few very popular prefixes mixed in.
- ``internet_rtt_242_cities.json.gz``: ``rtt_ms``, a square matrix of round trips between cities.
"""

from pathlib import Path

from mycelia.proto.wire.errors import LocalError

TRACES = {"conversation": "mooncake_conversation_trace.jsonl.gz", "hotspot": "hotspot_mix_trace.jsonl.gz"}
"""Workload -> file."""
INTERNET = "internet_rtt_242_cities.json.gz"


def trace_of(directory: Path, workload: str) -> Path:
    """The trace of a workload. Raises LocalError when it is missing."""
    return _there(directory / TRACES[workload])


def internet_of(directory: Path) -> Path:
    """The round trips between cities. Raises LocalError when they are missing."""
    return _there(directory / INTERNET)


def _there(path: Path) -> Path:
    if not path.is_file():
        raise LocalError(f"{path.parent} has no {path.name}")
    return path
