"""Two regular expressions of h11 that take the square of a line's length, as ones that take its length.

A header whose value is blanks and then a wrong byte, or such an extension of a chunk, blocked a node for 11 s with
64 kB and without a key. h11 tries each way to share the blanks between two parts of its expression. Those here match
the same lines. h11 has no other place to change them; a test shows that they are in use.
"""

import re

from h11 import _readers

_TOKEN = rb"[-!#$%&'*+.^_`|~0-9a-zA-Z]+"
_WORD = rb"[^\x00\s]+"

_HEADER = rb"(?P<field_name>%b):[ \t]*+(?P<field_value>(?:%b(?:[ \t]+%b)*)?)[ \t]*" % (_TOKEN, _WORD, _WORD)
_CHUNK_HEADER = rb"(?P<chunk_size>[0-9A-Fa-f]{1,20})(?:(?P<chunk_ext>;.*)|[ \t]*)\r\n"


def apply() -> None:
    """May be called several times."""
    _readers.header_field_re = re.compile(_HEADER)
    _readers.chunk_header_re = re.compile(_CHUNK_HEADER)
