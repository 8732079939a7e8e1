"""The search for model files."""

import sys
from hashlib import sha256
from pathlib import Path

import pytest

from mycelia.node.engine import models
from mycelia.node.engine.models import PackagedModel, model_name, resolve_model
from mycelia.proto.wire.errors import LocalError


def test_the_packaged_model_is_found() -> None:
    assert resolve_model("smollm2").suffix == ".gguf"
    assert model_name("smollm2") == "smollm2" and model_name("/a/b.Q4.gguf") == "b.Q4"


def test_a_path_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUFrest")
    assert resolve_model(str(path)) == path


@pytest.mark.parametrize(
    ("name", "text"),
    [("smollm3", "unknown model"), ("/no/such.gguf", "No such file"), ("/", "directory"), (".", "directory")],
)
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


def packaged_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: bytes) -> Path:
    """Register a model ``parted`` in two packages; returns the path of the joined file."""
    for module, data in (("parted_model", b"GG"), ("parted_model_rest", b"UF!")):
        (tmp_path / module).mkdir()
        (tmp_path / module / "__init__.py").write_text("raise ImportError('packages of models are not imported')")
        (tmp_path / module / "part").write_bytes(data)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    parts = (("parted_model", "part"), ("parted_model_rest", "part"))
    model = PackagedModel("parted-model", "whole.gguf", parts, sha256(expected).hexdigest())
    monkeypatch.setitem(models.PACKAGED_MODELS, "parted", model)
    return tmp_path / "parted_model" / "whole.gguf"


def test_a_model_in_parts_is_put_together_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = packaged_in_parts(tmp_path, monkeypatch, b"GGUF!")
    assert resolve_model("parted") == whole and whole.read_bytes() == b"GGUF!"
    (tmp_path / "parted_model_rest" / "part").unlink()
    assert resolve_model("parted") == whole
    assert {path.name for path in whole.parent.iterdir()} == {"__init__.py", "part", "whole.gguf"}


def test_parts_of_something_else_are_refused_and_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = packaged_in_parts(tmp_path, monkeypatch, b"GGUF?")
    with pytest.raises(LocalError, match="not those"):
        resolve_model("parted")
    assert {path.name for path in whole.parent.iterdir()} == {"__init__.py", "part"}
    (tmp_path / "parted_model_rest" / "part").unlink()
    with pytest.raises(LocalError, match="put the model 'parted' together"):
        resolve_model("parted")


def test_a_packaged_model_that_is_not_installed_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.PACKAGED_MODELS, "absent", PackagedModel("no-such-package", "x.gguf"))
    with pytest.raises(LocalError, match="comes with the package no-such-package: install that"):
        resolve_model("absent")
