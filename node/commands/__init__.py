"""The commands of ``mycelia``. Heavy imports happen inside them, so that ``--help`` is quick.

Shared by commands: ``options.py`` has common options and their checks; ``running.py`` runs a command and prints.
"""
