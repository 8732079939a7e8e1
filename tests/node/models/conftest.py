"""Models are kept in folders of the test, and come from a hub on loopback."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants

from mycelia.node.models import pull as pull_file
from mycelia.node.models import transfer
from tests.node.models.hub_server import Hub, model_bytes, serving

_URL = "/{repo_id}/resolve/{revision}/{filename}"


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which all caches and the configuration are."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def hub(folders: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one model; llama.cpp is not asked about what comes from it, and nothing pauses before a new try."""
    monkeypatch.setattr(pull_file, "probe", lambda question, path: [])
    monkeypatch.setattr(transfer, "PAUSES_S", (0.0,) * 5)
    hub = Hub({"tiny-Q4_K_M.gguf": model_bytes(1_000_000)})
    with serving(hub) as endpoint:
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + _URL)
        yield hub
        close_session()
