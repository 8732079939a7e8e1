"""What the text of an answer means: thoughts, function calls and content. Pure: no I/O, no clock.

Each family of models writes thoughts and calls in its own form. ``families.py`` is the table of these forms and
``signs.py`` that of the marks of a model that writes one; ``choosing.py`` finds a model's row by them, and
``reader.py`` reads an answer, however its text is cut into pieces.
"""
