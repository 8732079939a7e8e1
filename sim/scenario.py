"""The settings of a simulator run: the swarm, its prompts and the duration."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from mycelia.sim.setting import setting
from mycelia.sim.traces import Recorded

DEGREE = 32
"""Connections that a node dials for, as in node/network."""
MAX_ENTRIES = 50
TRICKLE_S = 25.0


class Conduct(StrEnum):
    """The handling of prompts by a dishonest node."""

    COMPUTES = "computes"
    """It answers them, on a machine like others: the first token comes later than claimed."""
    GARBAGE = "garbage"
    """It answers at once, without a model."""
    MUTE = "mute"
    """It reports a start, and sends nothing more."""
    STALLS = "stalls"
    """It sends two tokens at once, and nothing more."""
    TRICKLES = "trickles"
    """It sends a token at once, and one more each ``TRICKLE_S``."""

    def plan(self, num_tokens: int) -> list[tuple[float, int]]:
        """(seconds, tokens sent by then) of an answer of ``num_tokens`` that it does not compute."""
        match self:
            case Conduct.GARBAGE:
                return [(0.0, num_tokens)]
            case Conduct.STALLS:
                return [(0.0, min(2, num_tokens))]
            case Conduct.TRICKLES:
                return [(number * TRICKLE_S, number + 1) for number in range(num_tokens)]
            case _:
                return []


class Comparison(StrEnum):
    """What is compared, see ``mechanisms.py``."""

    EQUAL = "equal"
    """Rules, with the same mechanisms for each."""
    SYSTEMS = "systems"
    """Whole systems as they are."""


@dataclass(frozen=True)
class Scenario:
    workload: str = setting(
        "mmlu",
        "What clients ask: mmlu, multi-turn, tools (short answers, tools between), agents (8,000 to 60,000 tokens),"
        " no-sharing, or mooncake:FILE, a trace in Mooncake's form; with --data also conversation, hotspot and"
        " dialogues.",
        metavar="NAME",
    )
    """A name in ``sessions.GENERATORS``, or the name of ``recorded``."""
    recorded: Recorded | None = None
    """What the workload replays; None: it is made up."""
    zipf: float = setting(1.0, "Skew of the popularity of shared prefixes: Zipf's exponent.", least=0, most=3)
    rate: float | None = 8.0
    """Prompts a second in the whole swarm; None: as recorded. Not used with ``load``."""
    load: float | None = setting(
        None,
        "Prompts per second / what the machines could answer with perfect caches and balance; instead of --rate.",
        above=0,
        metavar="SHARE",
    )
    num_peers: int = setting(30, "Number of simulated nodes.", "--peers", least=1, most=10_000)
    num_entries: int | None = setting(
        None, "Number of nodes where prompts enter.  [default: all honest, at most 50]", "--entries", least=1
    )
    connections: int = setting(
        DEGREE, "Connections that a node dials for; prompts go to nodes it is connected with.", least=1, most=10_000
    )
    rtt_s: float | None = None
    """Round trip between any two nodes; None: from ``rtt_file``, or the modelled internet without one."""
    rtt_file: Path | None = None
    loss: float = setting(0.0, "Share of messages that each hop loses.", least=0, most=0.9)
    digest_age_s: float | None = setting(
        None, "Time between a node's digests.  [default: as nodes do]", "--digest-age", least=0, metavar="SECONDS"
    )
    load_age_s: float | None = setting(
        None,
        "Time between a node's reports of its load.  [default: as nodes do]",
        "--load-age",
        least=0,
        metavar="SECONDS",
    )
    churn_s: float | None = setting(
        None,
        "Median session of nodes where no prompts enter; volunteers' is about 120.  [default: no node leaves]",
        "--churn",
        above=0,
        metavar="MINUTES",
        scale=60.0,
    )
    liars: float = setting(
        0.0,
        "Share of nodes that claim to hold everything and to be idle and fast; no prompts enter there.",
        least=0,
        below=1,
        metavar="SHARE",
    )
    conduct: Conduct = Conduct.COMPUTES
    """How dishonest nodes handle prompts."""
    liars_after_s: float = 0.0
    """Time from the first prompts until dishonest nodes join."""
    burst_s: float | None = setting(
        None,
        "Sessions begin only during every other period of this length, and then twice as often.  [default: evenly]",
        "--bursts",
        above=0,
        metavar="SECONDS",
    )
    unevenness: float = setting(10.0, "Prefill rate of the fastest machine / of the slowest.", least=1, most=1_000)
    cache_share: float = setting(1.0, "Sizes of caches / the usual ones.", "--caches", above=0, most=100)
    wrong_rates: float = setting(
        1.0, "Each node reports a prefill rate that is this many times too high or too low, by lot.", least=1, most=100
    )
    warm_s: float = setting(60.0, "Virtual seconds before the measured time.", "--warmup", least=0)
    """Prompts come at half the rate then, unless a trace gives their times."""
    measured_s: float = setting(240.0, "Virtual seconds that are measured.", "--seconds", least=1)
    tail_s: float = 0.0
    """How long prompts go on to come after the measured time."""
    comparison: Comparison = setting(
        Comparison.EQUAL,
        "equal: every rule has Mycelia's hand-backs, moves, load subscriptions, bounded queues, luck and"
        " staying conversations; systems: each system as it is.",
        choices=tuple(Comparison),
    )
    without: tuple[str, ...] = setting(
        (),
        "Mechanism that no rule has. Repeatable.",
        choices=("hand_backs", "moves", "subscriptions", "bounds", "luck", "keeps"),
    )
    drain_s: float = setting(
        600.0,
        "Virtual time for the last answers, and for clients to come again; a prompt without a first token by then"
        " counts with the time it has waited.",
        "--drain",
        least=0,
        metavar="SECONDS",
    )

    @property
    def num_liars(self) -> int:
        return round(self.liars * self.num_peers)

    @property
    def entries(self) -> int:
        """Number of nodes where prompts enter."""
        return min(self.num_peers - self.num_liars, self.num_entries or MAX_ENTRIES)
