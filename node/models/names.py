"""What the name of a model means, before anything is looked for.

Besides packaged models, paths and names of the catalogue there are two kinds of sources: a repository on a hub that
speaks Hugging Face's protocol, spelled as Ollama and llama-server spell it, and a URL.
"""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote, urlsplit

from mycelia.proto.wire.errors import LocalError

MAX_CHARS = 2_048
MAIN = "main"
"""The revision of a repository when a name gives none."""
LATEST = ":latest"
"""What Ollama writes behind a name that gives no quantisation."""
_PREFIXES = ("hf:", "hf.co/", "huggingface.co/")
_HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_BARE = re.compile(rf"{_REPO.pattern}(?::[\w.-]+)?")
"""``OWNER/REPO[:QUANT]``, as ``llama-server -hf`` takes it."""
_SHA256 = re.compile(r"sha256=([0-9a-f]{64})")
_FORM = "write hf:OWNER/REPO or hf:OWNER/REPO:QUANT, such as hf:Qwen/Qwen3-8B-GGUF:Q4_K_M"


@dataclass(frozen=True)
class HubModel:
    """A model in a repository."""

    repo: str
    """OWNER/REPO."""
    wanted: str = ""
    """A quantisation such as Q4_K_M, or the path of a file in the repository; empty: the usual quantisation."""
    revision: str = MAIN

    def __post_init__(self) -> None:
        for path in (self.wanted, self.revision):
            if path.startswith("/") or ".." in path.split("/") or "\\" in path or not path.isprintable():
                raise LocalError(f"{path!r} can be no part of {self.repo}: {_FORM}")
        if not self.revision:
            raise LocalError(f"{self} has no revision: {_FORM}")

    @property
    def wants_file(self) -> bool:
        return self.wanted.lower().endswith(".gguf")

    def __str__(self) -> str:
        return f"hf:{self.repo}{f':{self.wanted}' if self.wanted else ''}"


@dataclass(frozen=True)
class WebModel:
    """A model at a URL."""

    url: str
    """Without a fragment."""
    sha256: str = ""
    """The file's SHA-256 in hexadecimal digits; empty: unknown."""

    @property
    def file(self) -> str:
        """The name of the file to write."""
        name = re.sub(r"[^\w.-]+", "-", unquote(PurePosixPath(urlsplit(self.url).path).name)).lstrip(".-")[:128]
        return name if name.endswith(".gguf") else f"{name or 'model'}.gguf"

    def url_of(self, file: str) -> str:
        """The URL of another file in the same folder."""
        parts = urlsplit(self.url)
        return parts._replace(path=f"{parts.path.rpartition('/')[0]}/{quote(file)}").geturl()

    def __str__(self) -> str:
        return self.url


def read_name(name: str) -> HubModel | WebModel | None:
    """The source that ``name`` spells; None: it spells none, so it is a path or a registered name. Raises LocalError
    for a source that cannot exist."""
    begins = name.lower()
    if begins.startswith(("http://", "https://", *_PREFIXES)) and (len(name) > MAX_CHARS or not name.isprintable()):
        raise LocalError(f"the name of a model to fetch has at most {MAX_CHARS} characters, all printable")
    if begins.startswith(("http://", "https://")):
        return _read_url(name)
    for prefix in _PREFIXES:
        if begins.startswith(prefix):
            return _read_hub(name, name[len(prefix) :].lstrip("/"))
    if _BARE.fullmatch(name) and not name.lower().endswith(".gguf") and not Path(name).exists():
        return _read_hub(name, name)
    return None


def _read_hub(name: str, rest: str) -> HubModel:
    """rest: OWNER/REPO, and then nothing, ``:WANTED``, a file's path, or what the hub's own links have."""
    found = _REPO.match(rest)
    if found is None:
        raise LocalError(f"{name!r} names no repository: {_FORM}")
    repo, more = found[0], rest[found.end() :]
    linked = re.fullmatch(r"/(?:resolve|blob|raw|tree)/([^/]+)(?:/(.+))?", more)
    if linked is not None:
        return HubModel(repo, unquote(linked[2] or ""), unquote(linked[1]))
    if more.startswith("@"):
        raise LocalError(
            f"{name!r} names a revision: give the link to its file, such as https://hf.co/{repo}/blob/REVISION/FILE.gguf"
        )
    if more[:1] not in ("", ":", "/"):
        raise LocalError(f"{name!r} names no repository: {_FORM}")
    return HubModel(repo, "" if more.lower() == LATEST else more[1:])


def _read_url(name: str) -> HubModel | WebModel:
    try:
        parts = urlsplit(name)
        host, _ = parts.hostname, parts.port  # (the port is read for its check)
    except ValueError as exc:
        raise LocalError(f"{name!r} is no URL: {exc}") from exc
    if not host:
        raise LocalError(f"{name!r} is no URL: it has no host")
    if host in _HUB_HOSTS:
        return _read_hub(name, parts.path.strip("/"))
    told = _SHA256.fullmatch(parts.fragment.lower())
    if parts.fragment and told is None:
        raise LocalError(f"after the # of a model's URL comes sha256= and 64 hexadecimal digits, its checksum: {name}")
    return WebModel(parts._replace(fragment="").geturl(), told[1] if told else "")
