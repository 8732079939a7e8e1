"""What other people's nodes say is shown, not obeyed."""

import io

from rich.console import Console

from node.cli import _console
from node.show import printable, show_answered, show_peers, tokens_per_s
from node.views import AnsweredView, PeerRow

ROW = PeerRow(
    peer="12D3KooWexample",
    address="/ip4/127.0.0.1/tcp/1",
    models=["[/nonsense]\x1b]0;title\x07[red]model"],
    digest="live",
    digest_blocks=0,
    active_requests=0,
    waiting_requests=0,
    prefill_rate=0,
    round_trip_ms=None,
    connected_s=1.0,
)
NOTHING = AnsweredView("peer", "stop", 5, 0, 0, 0, 0, 0, 0, 0)


def captured(console: Console) -> io.StringIO:
    console.file = io.StringIO()
    console.width = 200
    return console.file


def test_a_models_name_is_neither_markup_nor_an_escape_sequence() -> None:
    console = _console()
    output = captured(console)
    show_peers(console, [ROW])
    assert "[/nonsense]]0;title[red]model" in output.getvalue()
    assert "\x1b" not in output.getvalue()


def test_control_characters_are_left_out() -> None:
    assert printable("a\x1b[2Jb\x07\x9bc\r\nd\tü") == "a[2Jbc\nd\tü"


def test_an_answer_without_tokens_has_no_negative_rate() -> None:
    assert tokens_per_s(NOTHING) == 0
    console = _console()
    output = captured(console)
    show_answered(console, NOTHING)
    assert "0.0 tokens/s" in output.getvalue()
