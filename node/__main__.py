"""The command ``mycelia``, also as ``python -m mycelia.node``: Ctrl-C ends it quietly while it still imports."""

import os
import signal
from types import FrameType


def main() -> None:
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # (in the background of a script it is ignored)
        signal.signal(signal.SIGINT, _end)
    from mycelia.node.cli import main as run

    signal.signal(signal.SIGINT, before)
    run()


def _end(number: int, frame: FrameType | None) -> None:
    """Exit at once, with the code that shells give an interrupted command. An exception could be caught on its way
    through other packages, and nothing has begun that would have to end properly."""
    os._exit(128 + number)


if __name__ == "__main__":
    main()
