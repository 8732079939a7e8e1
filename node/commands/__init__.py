"""The commands of ``mycelia``, one family a module. Heavy imports happen inside them, so that ``--help`` is quick.

What they share: ``options.py``, options and their checks; ``running.py``, how a command runs and prints.
"""
