"""The commands of ``mycelia``, one family a module. Heavy imports happen inside them, so that ``--help`` is quick."""
