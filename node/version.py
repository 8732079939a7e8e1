"""The version of this program, read from the installed distribution, and the order of versions."""

import re
from importlib import metadata


def _installed() -> str:
    try:
        return metadata.version("mycelia")
    except metadata.PackageNotFoundError:
        return "0+source"


VERSION = _installed()
AGENT = f"mycelia/{VERSION}"
"""The name that a node gives itself to its peers."""

_VERSION = re.compile(r"([0-9]{1,4})\.([0-9]{1,4})\.([0-9]{1,4})(?:(\.dev|a|b|rc)([0-9]{1,4}))?")
_STAGES = (".dev", "a", "b", "rc", None)


def version_in(agent: str) -> str:
    """The version in the name that a peer gave itself; empty: it names none that this program could have. A peer can
    claim any."""
    program, _, version = agent.partition("/")
    return version if program == "mycelia" and _VERSION.fullmatch(version) else ""


def order_of(version: str) -> tuple[int, ...]:
    """The place of ``version`` among all: a newer one is larger. Empty, which is the least, for other texts."""
    found = _VERSION.fullmatch(version)
    if found is None:
        return ()
    *numbers, stage, count = found.groups()
    return (*map(int, numbers), _STAGES.index(stage), int(count or 0))
