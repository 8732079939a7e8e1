"""A model whose chat template does not compile: the node starts, and serves all but conversations."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from mycelia.node.doctor.machine import examine, lines
from mycelia.proto.wire.errors import LocalError
from tests.node.engine.gguf_files import quick_model
from tests.node.engine.test_process import answer, chat, done, engine, request


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """The small model with another template of the same length."""
    data = quick_model().read_bytes()
    start = data.index(b"{% for message in messages %}")
    path = tmp_path / "broken.gguf"
    path.write_bytes(data[:start] + b"{% for message in message {%}" + data[start + 29 :])
    return path


async def test_a_template_that_does_not_compile_costs_conversations_alone(
    broken: Path,
) -> None:
    with capture_logs() as logged:
        await only_completes(broken)
    assert "no_conversations" in {event["event"] for event in logged}
    assert "but no conversations: the model's chat template does not compile" in "\n".join(
        lines(examine(str(broken), broken.parent))
    )


async def only_completes(broken: Path) -> None:
    async with engine(model=broken) as running:
        assert done(await answer(running, request([*await running.tokenize_text("Once upon a"), 5], 2)))
        with pytest.raises(LocalError, match=r"cannot chat, only complete texts.*does not compile"):
            await chat(running, "Hello.")
