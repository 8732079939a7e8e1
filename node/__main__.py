"""``python -m node`` is the command ``mycelia``."""

from node.cli import main

main()
