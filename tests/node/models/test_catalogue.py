"""The catalogue: that of the program, and mistakes in one's own."""

from pathlib import Path

import pytest

from mycelia.node.models.catalogue import load_catalogue, one_name, read_catalogue, served_as
from mycelia.node.models.held import list_models
from mycelia.proto.wire.errors import LocalError

GOOD = """
[mine]
source = "hf:a/b:Q4_0"
parameters = "1B"
size_mb = 600
cell_bytes = 1000
context = 4096
licence = "MIT"
about = "mine"
"""
WRONG = {
    "[mine": "is not TOML",
    GOOD.replace("600", '"600"'): r"\[mine\] Expected `int`",
    GOOD.replace("600", "0"): r"\[mine\] Expected `int` >= 1",
    GOOD.replace("hf:a/b:Q4_0", "smollm2"): r"\[mine\] its source 'smollm2'",
    GOOD.replace("hf:a/b:Q4_0", "hf:a"): "names no repository",
    GOOD.replace("[mine]", '["Mine!"]'): "cannot be the name",
    GOOD.replace("[mine]", "[fake]"): "cannot be the name",
    GOOD + "colour = 1": "unknown field `colour`",
    GOOD + 'kind = "picture"': "kind",
    GOOD.replace('licence = "MIT"', ""): "missing required field `licence`",
    "mine = 3": r"\[mine\] Expected `object`",
}


def test_the_catalogue_of_the_program(folders: Path) -> None:
    catalogue = load_catalogue()
    sizes = [entry.size_mb for entry in catalogue.values() if entry.kind == "text"]
    assert len(catalogue) >= 12 and sizes == sorted(sizes) and sizes[0] < 200 and sizes[-1] > 18_000
    assert {entry.licence for entry in catalogue.values()} <= {"Apache-2.0", "MIT"}
    assert {entry.kind for entry in catalogue.values()} == {"text", "embedding", "rerank"}
    entry = catalogue["qwen3-4b"]
    assert str(entry.model) == "hf:Qwen/Qwen3-4B-GGUF:Q4_K_M" and len(entry.model.revision) == 40
    assert 4.1e9 > entry.memory_bytes(8192) > entry.size_bytes + 1.2e9


def test_swarms_know_models_by_their_files(folders: Path) -> None:
    served = {name: entry.served for name, entry in load_catalogue().items()}
    assert served["qwen3-4b"] == "Qwen3-4B-Q4_K_M" and served["smollm3-3b"] == "SmolLM3-Q4_K_M"
    (other,) = read_catalogue("own.toml", GOOD.replace("b:Q4_0", "b-GGUF:some/B-00001-of-00002.gguf")).values()
    assert other.served == "B"
    models = ["small", "qwen3-4b-q4_k_m", "Qwen3-8B"]
    assert served_as("Qwen3-4B", lambda: models) == "qwen3-4b-q4_k_m" and served_as("small", lambda: models) == "small"
    assert [served_as(name, lambda: models) for name in ("qwen3-8b", "", "none")] == ["qwen3-8b", "", "none"]


@pytest.mark.parametrize("text", WRONG)
def test_a_mistake_is_one_line_that_names_the_file(text: str) -> None:
    with pytest.raises(LocalError, match=WRONG[text]) as caught:
        read_catalogue("own.toml", text)
    assert str(caught.value).startswith("own.toml") and "\n" not in str(caught.value)


def test_names_follow_the_users_own_file_while_the_program_runs(folders: Path) -> None:
    own = folders / "XDG_CONFIG_HOME" / "mycelia" / "catalogue.toml"
    own.parent.mkdir(parents=True)
    own.write_text("[mine")
    assert served_as("mine", lambda: ["Mine-Q4_0"]) == "mine" and one_name("Qwen3-4B-Q4_K_M") == "qwen3-4b"
    own.write_text(GOOD + 'file = "Mine-Q4_0"')
    assert served_as("mine", lambda: ["Mine-Q4_0"]) == "Mine-Q4_0" and one_name("mine-q4_0") == "mine"
    own.unlink()
    assert served_as("mine", lambda: ["Mine-Q4_0"]) == "mine" and one_name("mine-q4_0") == "mine-q4_0"


def test_ones_own_models_come_on_top(folders: Path) -> None:
    own = folders / "XDG_CONFIG_HOME" / "mycelia" / "catalogue.toml"
    own.parent.mkdir(parents=True)
    own.write_text(GOOD + GOOD.replace("mine", "qwen3-4b"))
    catalogue = load_catalogue()
    assert catalogue["mine"].size_mb == catalogue["qwen3-4b"].size_mb == 600 and "qwen3-8b" in catalogue
    own.write_bytes(b"\xff")
    with pytest.raises(LocalError, match="is not UTF-8"):
        load_catalogue()
    assert [one.name for one in list_models() if one.source != "package"] == [], "lists need no catalogue"
