"""What the archive's command runs."""

import sys

from mycelia.node.__main__ import main

sys.argv[0] = "mycelia"
main()
