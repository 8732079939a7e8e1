"""What commands show of a model's thoughts."""

from mycelia.node.client.thoughts import ThoughtSplitter
from mycelia.node.views.frames import AnsweredView, FailedView, FrameView, RouteView, TextView

ROUTE = RouteView("peer", "the only node", 3, [], format="hermes+think")
END = AnsweredView("peer", "stop", 3, 0, 4, 1, 0, 1, 1, 0)


def split(*frames: FrameView) -> list[FrameView]:
    splitter = ThoughtSplitter()
    return [part for frame in frames for part in splitter.split(frame)]


def test_thoughts_come_apart_from_the_text() -> None:
    frames = split(
        ROUTE, TextView("<think>H", tokens=[1]), TextView("m.</think>\nYes", tokens=[2, 3]), TextView("."), END
    )
    assert frames == [
        ROUTE,
        TextView("", tokens=[1], thought="H"),
        TextView("Yes", tokens=[2, 3], thought="m."),
        TextView("."),
        END,
    ]


def test_text_that_was_held_back_comes_before_the_end() -> None:
    failed = FailedView("internal", "lost", True)
    assert split(ROUTE, TextView("<th"), failed) == [ROUTE, TextView("<th"), failed]


def test_content_before_a_thought_stays_before_it() -> None:
    route = RouteView("peer", "the only node", 3, [], format="gemma4+gemma4")
    frames = split(route, TextView("A<|channel>thought\nHm.<channel|>B"), END)
    assert frames[1:-1] == [TextView("A"), TextView("B", thought="Hm.")]


def test_an_answer_that_moved_is_read_on() -> None:
    frames = split(ROUTE, TextView("<think>A"), ROUTE, TextView("B</think>C"), END)
    assert [frame for frame in frames if isinstance(frame, TextView)] == [
        TextView("", thought="A"),
        TextView("C", thought="B"),
    ]


def test_a_node_that_names_no_format_is_shown_as_it_is() -> None:
    route = RouteView("peer", "the only node", 3, [])
    assert split(route, TextView("<think> a ")) == [route, TextView("<think> a ")]
