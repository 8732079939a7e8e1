"""What names of models mean."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycelia.node.models.choose import RepoFile, choose_files
from mycelia.node.models.find import MissingError, find_model, source_of, web_paths
from mycelia.node.models.names import HubModel, WebModel, read_name
from mycelia.proto.wire.errors import LocalError

SHA = "ab" * 32
_URLS = st.text("abc./:@%2e[]?#=&\x00é ", max_size=40).map("https://".__add__)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("hf:Qwen/Qwen3-8B-GGUF", HubModel("Qwen/Qwen3-8B-GGUF")),
        ("hf:Qwen/Qwen3-8B-GGUF:q4_k_m", HubModel("Qwen/Qwen3-8B-GGUF", "q4_k_m")),
        ("HF.co/Qwen/Qwen3-8B-GGUF:Q8_0", HubModel("Qwen/Qwen3-8B-GGUF", "Q8_0")),
        ("huggingface.co/a/b", HubModel("a/b")),
        ("hf.co/a/b:latest", HubModel("a/b")),
        ("hf:a/b:sub/x-00001-of-00002.gguf", HubModel("a/b", "sub/x-00001-of-00002.gguf")),
        ("hf:a/b/x.gguf", HubModel("a/b", "x.gguf")),
        ("ggml-org/gemma-3-1b-it-GGUF:Q4_K_M", HubModel("ggml-org/gemma-3-1b-it-GGUF", "Q4_K_M")),
        ("https://huggingface.co/a/b/resolve/main/x%20y.gguf?download=true", HubModel("a/b", "x y.gguf")),
        ("https://hf.co/a/b/blob/v1/x.gguf", HubModel("a/b", "x.gguf", "v1")),
        ("https://huggingface.co/a/b/tree/main", HubModel("a/b")),
        ("https://huggingface.co/a/b", HubModel("a/b")),
        (f"http://h:8/d/m.gguf?k=v#sha256={SHA}", WebModel("http://h:8/d/m.gguf?k=v", SHA)),
        ("https://example.org/m.gguf", WebModel("https://example.org/m.gguf")),
        ("smollm2", None),
        ("/models/a/b.gguf", None),
        ("models/b.gguf", None),
        ("./owner/repo", None),
    ],
)
def test_spellings(name: str, meant: HubModel | WebModel | None) -> None:
    assert read_name(name) == meant


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("hf:", "names no repository"),
        ("hf:Qwen3", "names no repository"),
        ("hf:a/b c", "names no repository"),
        ("hf:a/b@v1", "names a revision: give the link"),
        ("hf:../b", "names no repository"),
        ("hf:a/b:../../etc/x.gguf", "can be no part of a/b"),
        ("hf:a/b:/etc/x.gguf", "can be no part of a/b"),
        ("https://hf.co/a/b/blob/..%2F..%2Fx/y.gguf", "can be no part of a/b"),
        ("https://", "is no URL"),
        ("http://[::1", "is no URL"),
        ("https://example.org/m.gguf#md5=1", "sha256="),
        ("hf:a/b\n", "printable"),
        ("https://example.org/" + "x" * 3000, "at most"),
    ],
)
def test_spellings_of_nothing(name: str, says: str) -> None:
    with pytest.raises(LocalError, match=says) as caught:
        read_name(name)
    assert "\n" not in str(caught.value)


@given(st.one_of(st.text(max_size=40), st.text("hf:/.@a%2#?=&\\\x00\n", max_size=30).map("hf:a/b".__add__), _URLS))
def test_any_text_is_a_source_a_path_or_refused(name: str) -> None:
    try:
        found = read_name(name)
    except LocalError:
        return
    if isinstance(found, HubModel):
        assert ".." not in (*found.wanted.split("/"), *found.revision.split("/")) and not found.wanted.startswith("/")
    elif isinstance(found, WebModel):
        assert found.file.endswith(".gguf") and "/" not in found.file and not found.file.startswith(".")


def test_a_path_that_looks_like_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "repo").mkdir(parents=True)
    assert read_name("owner/repo") is None and read_name("owner/other") == HubModel("owner/other")


def file(path: str, size: int = 1) -> RepoFile:
    return RepoFile(path, size, "a" * 64)


REPO_FILES = [
    *map(file, ("README.md", "mmproj-F16.gguf", "m-Q8_0.gguf", "m-UD-Q4_K_M.gguf", "m-Q4_K_M.gguf", "imatrix.gguf")),
    *(file(f"BF16/m-BF16-0000{part}-of-00002.gguf") for part in (2, 1)),
    file("m-Q6_K-00001-of-00002.gguf"),
]


@pytest.mark.parametrize(
    ("wanted", "paths"),
    [
        ("", ["m-Q4_K_M.gguf"]),
        ("q8_0", ["m-Q8_0.gguf"]),
        ("UD-Q4_K_M", ["m-UD-Q4_K_M.gguf"]),
        ("BF16", ["BF16/m-BF16-00001-of-00002.gguf", "BF16/m-BF16-00002-of-00002.gguf"]),
        ("BF16/m-BF16-00002-of-00002.gguf", ["BF16/m-BF16-00001-of-00002.gguf", "BF16/m-BF16-00002-of-00002.gguf"]),
    ],
)
def test_files_of_a_repository(wanted: str, paths: list[str]) -> None:
    assert [one.path for one in choose_files(HubModel("a/b", wanted), REPO_FILES)] == paths


@pytest.mark.parametrize(
    ("wanted", "files", "says"),
    [
        ("Q5_0", REPO_FILES, "has no Q5_0; it has BF16/m-BF16-00001-of-00002.gguf, m-Q4_K_M.gguf"),
        ("Q6_K", REPO_FILES, "has no Q6_K"),
        ("x.gguf", REPO_FILES, "has no file x.gguf"),
        (
            "",
            [file("model.safetensors")],
            "no GGUF file: look for a repository of the same model whose name ends in -GGUF",
        ),
        ("", [file("a.gguf"), file("b.gguf")], "several models: add :QUANT or :FILE"),
    ],
)
def test_files_that_a_repository_lacks(wanted: str, files: list[RepoFile], says: str) -> None:
    with pytest.raises(LocalError, match=says):
        choose_files(HubModel("a/b", wanted), files)


def test_one_file_needs_no_choice() -> None:
    assert [one.path for one in choose_files(HubModel("a/b"), [file("some.gguf")])] == ["some.gguf"]


def test_what_is_not_here_names_the_command(folders: Path) -> None:
    for name in ("hf:a/b:Q4_0", "https://example.org/m.gguf", "qwen3-4b", "Qwen3-4B"):
        with pytest.raises(MissingError, match=f"fetch it with 'mycelia model pull {name}'"):
            find_model(name)
    with pytest.raises(LocalError, match=r"unknown model 'qwen3-5b' \(did you mean .*qwen3-4b"):
        source_of("qwen3-5b")
    with pytest.raises(LocalError, match="unknown model ''"):
        source_of("")
    assert find_model("smollm2").suffix == ".gguf"


def test_parts_of_a_url_lie_in_one_folder(folders: Path) -> None:
    url = "https://example.org/a/m-0000{}-of-00002.gguf?k=v"
    paths = web_paths(WebModel(url.format(2)))
    assert paths == web_paths(WebModel(url.format(1))) and [path.name[:7] for path in paths] == ["m-00001", "m-00002"]
    assert web_paths(WebModel(url.format(1), SHA))[0].parent != paths[0].parent
    assert WebModel("https://example.org/%2e%2e%2fx").file == "x.gguf"
