"""The parts of an answer, in the order in which they come."""

from typing import NamedTuple


class Content(NamedTuple):
    """Text for the user."""

    text: str
    at: int
    """Where it begins in the answer's text, in characters."""


class Thought(NamedTuple):
    """Text that the model wrote for itself."""

    text: str


class WasThought(NamedTuple):
    """All content so far was a thought whose opening tag the model left out. A stream that has sent it as content can
    only send ``text``, the closing tag, as content, too."""

    text: str
    at: int


class CallBegun(NamedTuple):
    """The model calls a function."""

    name: str
    id: str
    """The id that the model gave to the call; empty: none."""


class CallArguments(NamedTuple):
    """The next part of the running call's arguments. All parts together are a JSON object."""

    json: str


class CallEnded(NamedTuple):
    """The running call is complete."""


class CallBroken(NamedTuple):
    """The running call stops in the middle, so it is none."""

    text: str
    """What the model wrote for it."""
    at: int


Piece = Content | Thought | WasThought | CallBegun | CallArguments | CallEnded | CallBroken
