"""Finding model files."""

from pathlib import Path

import pytest

from node.engine.models import model_name, resolve_model
from proto.errors import LocalError


def test_the_packaged_model_is_found() -> None:
    assert resolve_model("smollm2").suffix == ".gguf"
    assert model_name("smollm2") == "smollm2" and model_name("/a/b.Q4.gguf") == "b.Q4"


def test_a_path_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUFrest")
    assert resolve_model(str(path)) == path


@pytest.mark.parametrize(("name", "text"), [("smollm3", "unknown model"), ("/no/such.gguf", "No such file")])
def test_what_is_missing_is_said(name: str, text: str) -> None:
    with pytest.raises(LocalError, match=text):
        resolve_model(name)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.gguf"
    path.write_text("hello")
    with pytest.raises(LocalError, match="not a GGUF file"):
        resolve_model(str(path))
    with pytest.raises(LocalError, match="Is a directory"):
        resolve_model(str(tmp_path))
