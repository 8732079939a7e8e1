"""``python -m mycelia.node`` is the command ``mycelia``."""

from mycelia.node.cli import main

main()
