"""Downloads that are cut off, refused, damaged or too large: whole or absent, and a clear line."""

import errno
import random
import resource
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants, hf_hub_download

from mycelia.node.engine.models import resolve_model
from mycelia.node.engine.probe.probe import Finding, Problem, probe
from mycelia.node.models import pull as pull_file
from mycelia.node.models import transfer
from mycelia.node.models.find import find_model, web_folder
from mycelia.node.models.held import remove_model
from mycelia.node.models.hub_cache import cache_of
from mycelia.node.models.pull import check_fits, obtain, pull
from mycelia.proto.wire.errors import LocalError
from tests.node.engine.gguf_files import header, text_field
from tests.node.models.hub_server import COMMIT, REPO, Hub, model_bytes, sha256

NAME, FILE = f"hf:{REPO}", "tiny-Q4_K_M.gguf"


class Said:
    """A watch that remembers, and may act as Ctrl-C after so many bytes."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.lines: list[str] = []
        self.shown: list[tuple[int, int]] = []
        self._stop_after = stop_after

    def say(self, line: str) -> None:
        self.lines.append(line)

    def show(self, done: int, total: int) -> None:
        self.shown.append((done, total))
        if self._stop_after is not None and done >= self._stop_after:
            raise KeyboardInterrupt


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}


def assert_nothing_half(folder: Path, hub: Hub) -> None:
    """Whatever has a final name has the whole content."""
    whole = set(hub.files.values())
    for path in folder.rglob("*"):
        if path.is_file() and (path.name in map(sha256, whole) or path.suffix == ".gguf"):
            assert path.read_bytes() in whole, path


def fails(name: str, says: str, watch: Said | None = None) -> str:
    with pytest.raises(LocalError, match=says) as caught:
        pull(name, watch or Said())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_model_is_fetched_once_and_other_programs_find_it(hub: Hub, folders: Path) -> None:
    said = Said()
    path = pull(NAME, said)
    assert path.read_bytes() == hub.files[FILE] and path.name == FILE
    assert said.lines[0].startswith(f"{NAME}: 1.0 MB; to ") and "are free" in said.lines[0]
    assert said.shown[-1] == (1_000_000, 1_000_000) and hub.sent == 1_000_000
    assert find_model(NAME) == path == pull(NAME, Said()) and hub.sent == 1_000_000
    assert hf_hub_download(REPO, FILE, local_files_only=True, cache_dir=constants.HF_HUB_CACHE) == str(path)


def test_what_another_program_fetched_is_found(hub: Hub, folders: Path) -> None:
    there = hf_hub_download(REPO, FILE, cache_dir=constants.HF_HUB_CACHE, endpoint=hub.endpoint)
    sent = hub.sent
    assert find_model(NAME) == find_model(f"{NAME}:Q4_K_M") == Path(there)
    assert pull(NAME, Said()) == Path(there) and hub.sent == sent


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_five_cuts_at_random_places(hub: Hub, folders: Path, seed: int) -> None:
    rng, data = random.Random(seed), model_bytes(8_000_000)
    hub.files = {FILE: data}
    hub.cuts = [(rng.randrange(1_000_000), False) for _ in range(5)]
    assert pull(NAME, Said()).read_bytes() == data
    assert not hub.cuts and hub.sent <= 1.05 * len(data)


def test_five_interrupted_processes(hub: Hub, folders: Path) -> None:
    for tenth in (1, 3, 5, 7, 9):
        with pytest.raises(KeyboardInterrupt):
            pull(NAME, Said(stop_after=tenth * 100_000))
        assert_nothing_half(folders, hub)
        with pytest.raises(LocalError, match="is not on this machine"):
            find_model(NAME)
    said = Said()
    assert pull(NAME, said).read_bytes() == hub.files[FILE]
    assert "of it here already" in said.lines[0] and said.shown[0][0] >= 900_000
    assert files_in(folders / "hub") == {sha256(hub.files[FILE]), "main"}


def test_connections_that_are_reset_and_servers_that_are_busy(hub: Hub, folders: Path) -> None:
    hub.cuts = [(300_000, True), (0, True), (0, False), (1, True)]
    hub.statuses = [503, 429, 500]
    assert pull(NAME, Said()).read_bytes() == hub.files[FILE]


def test_a_server_that_never_goes_on(hub: Hub, folders: Path) -> None:
    hub.cuts = [(500_000, False), *[(0, False)] * 50]
    said = fails(NAME, "was cut off: ")
    assert "500 kB of 1.0 MB are here, and the same command goes on from there" in said
    hub.cuts = []
    assert pull(NAME, Said()).read_bytes() == hub.files[FILE] and hub.sent == 1_000_000


def test_the_pause_a_busy_server_asks_for_is_bounded() -> None:
    assert transfer.CutError("busy", 1e9).wait_s == transfer.MAX_WAIT_S


def test_a_server_without_ranges(hub: Hub, folders: Path) -> None:
    hub.knows_ranges, hub.cuts = False, [(600_000, False)]
    assert pull(NAME, Said()).read_bytes() == hub.files[FILE] and hub.sent == 1_600_000


def test_a_wrong_checksum(hub: Hub, folders: Path) -> None:
    hub.wrong = model_bytes(1_000_000, seed=2)
    assert "they are removed" in fails(NAME, "do not have the checksum")
    assert not files_in(folders / "hub") and not list((folders / "hub").rglob("*.gguf"))


def test_a_small_file_has_gits_checksum(hub: Hub, folders: Path) -> None:
    hub.is_small, hub.wrong = True, model_bytes(1_000_000, seed=2)
    fails(NAME, "do not have the checksum")
    hub.wrong = b""
    path = pull(NAME, Said())
    assert path.read_bytes() == hub.files[FILE] and len(path.resolve().name) == 40


def test_a_file_system_without_links(hub: Hub, folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    path = pull(NAME, Said())
    assert path.read_bytes() == hub.files[FILE] and not path.is_symlink()
    assert find_model(NAME) == path == pull(NAME, Said()) and hub.sent == 1_000_000
    assert remove_model(NAME) == 1_000_000 and not path.exists()


def test_reading_what_is_here_is_told_if_it_takes_long(
    hub: Hub, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "TOLD_BYTES", 400_000)
    with pytest.raises(KeyboardInterrupt):
        pull(NAME, Said(stop_after=500_000))
    said = Said()
    pull(NAME, said)
    assert said.lines[1].startswith("reading the ") and said.lines[1].endswith(" that are here, for the checksum")


def test_damage_in_an_earlier_part_is_mended(hub: Hub, folders: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        pull(NAME, Said(stop_after=500_000))
    (partial,) = (folders / "hub").rglob("*.incomplete")
    partial.write_bytes(partial.read_bytes()[:-1000] + bytes(1000))
    said = Said()
    assert pull(NAME, said).read_bytes() == hub.files[FILE]
    assert any("damaged, so it is fetched anew" in line for line in said.lines)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (b"<!DOCTYPE html><title>no</title>" + bytes(999_968), "sends a web page instead of the model"),
        (bytes(1_000_000), "is no GGUF file"),
        (model_bytes(500_000), "sends 500000 bytes, and 1000000 bytes were announced"),
        (model_bytes(2_000_000), "sends 2000000 bytes, and 1000000 bytes were announced"),
    ],
)
def test_other_bytes_in_the_place_of_a_model(hub: Hub, folders: Path, wrong: bytes, says: str) -> None:
    hub.wrong = wrong
    fails(NAME, says)
    assert not list((folders / "hub").rglob("*.gguf")) and sum(map(len, hub.files.values())) == 1_000_000


def test_a_sign_in_page_keeps_what_is_here(hub: Hub, folders: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        pull(NAME, Said(stop_after=500_000))
    hub.on_request = lambda path: setattr(hub, "is_sign_in", path.startswith("/owner"))
    fails(NAME, "sends a web page instead of the model")
    hub.on_request, hub.is_sign_in = None, False
    said = Said()
    assert pull(NAME, said).read_bytes() == hub.files[FILE] and said.shown[0][0] >= 500_000


def test_a_network_that_wants_a_sign_in_first(hub: Hub, folders: Path) -> None:
    hub.is_sign_in = True
    assert "HF_ENDPOINT" in fails(NAME, "cannot ask .* a network may want a sign-in")


def test_without_a_network_the_manual_way_is_told(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    assert "copy it here and give its path" in fails(NAME, "cannot ask 127.0.0.1:1 for hf:owner/tiny-GGUF")
    fails("http://127.0.0.1:1/m.gguf", "cannot fetch .* give its path")


def test_without_a_network_the_model_that_is_here_is_taken(
    hub: Hub, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pull(NAME, Said())
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    said = Said()
    assert pull(NAME, said) == path and "may not be the newest" in said.lines[0]
    assert "another machine" not in said.lines[0]


def test_offline_by_the_users_own_wish(hub: Hub, folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in (NAME, f"{hub.endpoint}/web/{FILE}"):
        fails(name, "HF_HUB_OFFLINE is set[.;]")


def test_gated_and_missing_repositories(hub: Hub, folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.gated = True
    assert "HF_TOKEN" in fails(NAME, rf"{REPO} is gated: .* Do that at {hub.endpoint}/{REPO}")
    monkeypatch.setenv("HF_TOKEN", "good")
    assert pull(NAME, Said()).read_bytes() == hub.files[FILE]
    tokens = {token for path, token in hub.requests if path.startswith("/cdn")}
    assert tokens == {""}, "the hub's storage is another origin, which gets no token"
    assert "or it is private" in fails("hf:owner/none", "there is no model owner/none at 127.0.0.1")
    fails(f"https://huggingface.co/{REPO}/blob/v9/{FILE}", "has no revision v9")


def test_a_repository_without_models(hub: Hub, folders: Path) -> None:
    hub.files = {"model.safetensors": b"x" * 1000}
    fails(NAME, "has no GGUF file: look for a repository")


def test_a_new_version_of_a_repository(hub: Hub, folders: Path) -> None:
    old = pull(NAME, Said())
    hub.files, hub.commit = {FILE: model_bytes(900_000, seed=5)}, "f" * 40
    assert find_model(NAME) == old, "what is here is used without asking"
    new = pull(NAME, Said())
    assert new != old and find_model(NAME) == new and new.read_bytes() == hub.files[FILE] != old.read_bytes()


def test_hostile_listings(hub: Hub, folders: Path) -> None:
    hub.files = {"../../evil.gguf": b"GGUF" * 9, "/etc/evil.gguf": b"GGUF" * 9, "a//evil.gguf": b"GGUF" * 9}
    fails(NAME, "has no GGUF file")
    hub.commit = "../../../x"
    fails(f"hf:{REPO}", "does not say which revision|has no revision")
    assert not list(folders.rglob("*evil*"))


@pytest.mark.parametrize(
    "listing",
    [
        b"[]",
        b"null",
        b"{}",
        b'{"siblings": 3}',
        b'{"id": 1, "sha": 2, "siblings": [{"rfilename": 5, "size": "x"}]}',
        b'{"id": "a/b", "sha": "%s", "siblings": [{"rfilename": null, "lfs": {}}]}' % COMMIT.encode(),
        b'{"id": "a/b", "sha": "%s", "siblings": [{"rfilename": "a.gguf", "size": -1, "blobId": [1]}]}'
        % COMMIT.encode(),
        b'{"id": "a/b", "sha": "%s", "siblings": [{"rfilename": "a.gguf", "size": Infinity}]}' % COMMIT.encode(),
        b'{"id": "a/b", "sha": ["x"], "siblings": []}',
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_listings_that_are_none(hub: Hub, folders: Path, listing: bytes) -> None:
    hub.listing = listing
    fails(NAME, "is not that of a hub|does not say which revision|has no GGUF file")
    assert not (folders / "hub").exists()


def test_a_listing_in_an_encoding_that_it_does_not_have(hub: Hub, folders: Path) -> None:
    hub.listing_headers = {"Content-Encoding": "gzip"}
    fails(NAME, "cannot ask 127.0.0.1.*decompressing")


def test_models_in_parts(hub: Hub, folders: Path) -> None:
    names = [f"q4/tiny-Q4_K_M-0000{part}-of-00003.gguf" for part in (1, 2, 3)]
    hub.files = {name: model_bytes(400_000, seed) for seed, name in enumerate(names)}
    hub.cuts = [(100_000, False), (350_000, True)]
    said = Said()
    path = pull(NAME, said)
    assert path == find_model(NAME) and path.name.endswith("-00001-of-00003.gguf")
    assert [path.with_name(Path(name).name).read_bytes() for name in names] == list(hub.files.values())
    assert "1.2 MB in 3 files" in said.lines[0]
    assert [done for done, _ in said.shown] == sorted(done for done, _ in said.shown)
    cache_of(REPO).remove(cache_of(REPO).files(hub.commit)[1:2])
    with pytest.raises(LocalError, match="is not on this machine"):
        find_model(NAME)
    before = hub.sent
    assert pull(NAME, Said()) == path and hub.sent - before == 400_000


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_disk_that_is_full_at_each_tenth(hub: Hub, folders: Path) -> None:
    for tenth in range(10):
        with files_of_at_most(tenth * 100_000 + 7):
            fails(NAME, r"the disk of .* is full: .* are there; free .* more")
        assert_nothing_half(folders, hub)
        with pytest.raises(LocalError, match="is not on this machine"):
            find_model(NAME)
    assert pull(NAME, Said()).read_bytes() == hub.files[FILE]


def test_the_room_on_the_disk_is_checked_before(hub: Hub, folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=2_000_000))
    assert "HF_HOME" in fails(NAME, r"no room for hf:owner/tiny-GGUF: 1\.0 MB are missing, and 2\.0 MB are free")
    assert hub.sent == 0


def test_a_folder_that_cannot_be_written(hub: Hub, folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folders / "file").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folders / "file" / "hub"))
    fails(NAME, "cannot write to .*HF_HOME")


def test_two_at_once_fetch_it_once(hub: Hub, folders: Path) -> None:
    hub.files = {FILE: model_bytes(5_000_000)}
    saids, paths = [Said(), Said(), Said()], []
    threads = [threading.Thread(target=lambda said=said: paths.append(pull(NAME, said))) for said in saids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(set(paths)) == 1 and len(paths) == 3 and hub.sent == 5_000_000
    assert paths[0].read_bytes() == hub.files[FILE]
    assert list((folders / "hub").rglob("*.incomplete")) == []


# --- plain URLs -------------------------------------------------------------------------------------------------------


def test_a_url_is_continued_if_its_version_is_the_same(hub: Hub, folders: Path) -> None:
    hub.etag, url = "v1", f"{hub.endpoint}/web/{FILE}"
    with pytest.raises(KeyboardInterrupt):
        pull(url, Said(stop_after=600_000))
    said = Said()
    path = pull(url, said)
    assert path.read_bytes() == hub.files[FILE] and said.shown[0][0] >= 600_000
    assert find_model(url) == path and files_in(web_folder()) == {FILE, "url.txt"}
    said = Said()
    assert pull(url, said) == path and "is here already" in said.lines[0]


def test_parts_of_two_versions_are_not_joined(hub: Hub, folders: Path) -> None:
    hub.etag, url = "v1", f"{hub.endpoint}/web/{FILE}"
    with pytest.raises(KeyboardInterrupt):
        pull(url, Said(stop_after=600_000))
    hub.etag, hub.files = "v2", {FILE: model_bytes(1_000_000, seed=9)}
    assert pull(url, Said()).read_bytes() == hub.files[FILE]
    assert files_in(web_folder()) == {FILE, "url.txt"}
    # A server that does not tell its versions is asked for all of it.
    hub.etag, other = "", f"{hub.endpoint}/web/other.gguf"
    hub.files = {"other.gguf": model_bytes(1_000_000, seed=10)}
    with pytest.raises(KeyboardInterrupt):
        pull(other, Said(stop_after=600_000))
    hub.files = {"other.gguf": model_bytes(1_000_000, seed=11)}
    assert pull(other, Said()).read_bytes() == hub.files["other.gguf"]


def test_the_checksum_in_a_url(hub: Hub, folders: Path) -> None:
    url = f"{hub.endpoint}/web/{FILE}#sha256="
    fails(url + "0" * 64, "do not have the checksum")
    assert files_in(web_folder()) == {"url.txt"}
    assert pull(url + sha256(hub.files[FILE]), Said()).read_bytes() == hub.files[FILE]


def test_urls_of_something_else(hub: Hub, folders: Path) -> None:
    fails(f"{hub.endpoint}/web/none.gguf", "there is no file .* \\(404\\)")
    hub.statuses = [403]
    fails(f"{hub.endpoint}/web/{FILE}", "refuses access \\(403\\)")
    hub.statuses = [503]
    fails(f"{hub.endpoint}/web/{FILE}", "the server answers 503")
    hub.is_sign_in = True
    fails(f"{hub.endpoint}/web/{FILE}", "sends a web page")
    hub.is_sign_in, hub.wrong = False, b"<html>"
    fails(f"{hub.endpoint}/web/{FILE}", "sends a web page")
    assert find_model_fails(f"{hub.endpoint}/web/{FILE}")


def find_model_fails(name: str) -> bool:
    with pytest.raises(LocalError):
        find_model(name)
    return True


# --- what llama.cpp says ----------------------------------------------------------------------------------------------


def test_an_architecture_that_llama_cpp_does_not_know(hub: Hub, folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = header(0, [text_field("general.architecture", "martian")])
    monkeypatch.setattr(pull_file, "probe", probe)
    monkeypatch.setattr(transfer, "HEADER_BYTES", 200_000)
    monkeypatch.setattr(pull_file, "HEADER_BYTES", 200_000)
    hub.files = {FILE: unknown + bytes(2_000_000)}
    hub.cuts = [(1_000_000, False)]
    assert "martian" in fails(NAME, "unknown model architecture: 'martian'.*a newer version of Mycelia may know it")
    assert hub.sent <= 1_000_000, "most of it is not fetched"
    assert not files_in(folders / "hub")


def test_half_a_model_from_a_url_is_not_kept(hub: Hub, folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = resolve_model("smollm2").read_bytes()
    monkeypatch.setattr(pull_file, "probe", probe)
    hub.files = {FILE: whole[:8_000_000]}
    url = f"{hub.endpoint}/web/{FILE}"
    fails(url, "is damaged or cut, and is removed again: .*corrupted or incomplete")
    assert files_in(web_folder()) == {"url.txt"} and find_model_fails(url)


def test_what_llama_cpp_cannot_load_is_told(hub: Hub, folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    findings: list[Finding] = [Problem("cannot serve it: it is not a decoder-only text model")]
    monkeypatch.setattr(pull_file, "probe", lambda question, path: findings)
    fails(NAME, r"not a decoder-only text model. The file is kept \(1\.0 MB\); 'mycelia model rm' removes it")


def test_a_model_larger_than_memory_is_not_fetched_to_be_served(
    hub: Hub, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull_file, "available_memory_bytes", lambda: 900_000)
    monkeypatch.setattr(pull_file, "free_gpu_bytes", lambda: 0)
    with pytest.raises(LocalError, match=r"takes 1\.0 MB of memory, and 900 kB are free here: choose a smaller one"):
        obtain(NAME, Said())
    assert hub.sent == 0
    monkeypatch.setattr(pull_file, "available_memory_bytes", lambda: 1_000_001)
    said = Said()
    assert obtain(NAME, said) == find_model(NAME) and said.lines[1].startswith(f"{NAME}: 1.0 MB; to ")
    monkeypatch.setattr(pull_file, "available_memory_bytes", lambda: None)
    check_fits(NAME, 10**15)
