"""The file by which macOS's launchd runs a node of the logged-in user. Not tried on a Mac."""

import plistlib
from collections.abc import Mapping, Sequence

LABEL = "mycelia.node"


def agent_text(command: Sequence[str], environment: Mapping[str, str], stop_s: int) -> bytes:
    """The property list. stop_s: time between the request to stop and the kill."""
    return plistlib.dumps(
        {
            "Label": LABEL,
            "ProgramArguments": list(command),
            "EnvironmentVariables": dict(environment),
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},
            "ThrottleInterval": 10,
            "ExitTimeOut": stop_s,
            "ProcessType": "Background",
            "LowPriorityIO": True,
            # (the node keeps a log of its own, which rotates)
            "StandardOutPath": "/dev/null",
            "StandardErrorPath": "/dev/null",
        }
    )
