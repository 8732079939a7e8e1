"""Measured data in a directory of the reader's, by the names that it has there. Nothing of it comes with Mycelia.

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
    """Raises LocalError when it is not there."""
    return _there(directory / TRACES[workload])


def internet_of(directory: Path) -> Path:
    """Raises LocalError when it is not there."""
    return _there(directory / INTERNET)


def _there(path: Path) -> Path:
    if not path.is_file():
        raise LocalError(f"{path.parent} has no {path.name}")
    return path
