"""What the archive's command runs."""

import sys

from mycelia.node.cli import main

sys.argv[0] = "mycelia"
main()
