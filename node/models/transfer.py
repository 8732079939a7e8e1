"""Fetches one file over HTTP, so that it is whole or absent however often the connection or the process ends.

The bytes go to a file beside the target, which its writer holds locked. After a cut the next request asks for the rest
only, also from a later process. The file gets its name once its size and its checksum are right and its bytes are on
the disk. huggingface_hub's own transfer does neither: it begins anew after an error, and does not check the content
(docs/decisions/model-files.md).
"""

import errno
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from urllib.parse import unquote, urlsplit

import httpx2

from mycelia.node.errors import PassingError, one_line
from mycelia.node.models.sizes import INCOMPLETE, size_text
from mycelia.proto.wire.errors import LocalError

PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Pauses before the next tries that follow each other without a single new byte; after the last one it ends."""
MAX_CUTS = 1_000
MAX_WAIT_S = 60.0
"""Maximum pause that a server can ask for."""
TIMEOUT = httpx2.Timeout(30.0, connect=15.0)
HEADER_BYTES = 32 << 20
"""More than the header of any known model: the vocabulary takes up to 15 MB."""
TOLD_BYTES = 2_000_000_000
"""An incomplete file of this size takes some seconds to read."""
_BLOCK_BYTES = 1 << 20
_MAGIC = b"GGUF"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TRY_LATER = (408, 425, 429, 500, 502, 503, 504)
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")


class Watch(Protocol):
    """Who is told about a download."""

    def say(self, line: str) -> None: ...

    def show(self, done: int, total: int) -> None:
        """Bytes that are here, and of the whole file."""


class RefusedError(LocalError):
    """The server wants a token, or another one."""

    def __init__(self, message: str, code: str = "") -> None:
        """code: a hub's word for the reason, such as GatedRepo."""
        super().__init__(message)
        self.code = code


class CutError(Exception):
    """The connection ended, or the server asks to try later."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = min(wait_s, MAX_WAIT_S)


@dataclass(frozen=True)
class Remote:
    """A file at a server."""

    url: str
    size: int
    etag: str = ""
    """What its content must be: a SHA-256 (64 digits) or git's hash of it (40 digits); empty: unknown."""
    headers: Mapping[str, str] = field(default_factory=dict)
    validator: str = ""
    """The HTTP header ETag or Last-Modified, so that the parts of two versions are not joined; empty: unknown."""
    key: str = ""
    """Distinguishes the incomplete files of different contents; empty: none may be continued later."""

    def hasher(self) -> Any:
        """What computes ``etag``, or None."""
        if len(self.etag) == 64:
            return hashlib.sha256()
        if len(self.etag) == 40:
            return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)
        return None


def incomplete_of(target: Path, remote: Remote) -> Path:
    return target.with_name(f"{target.name}.{remote.key or 'once'}{INCOMPLETE}")


def fetch_file(
    client: httpx2.Client,
    remote: Remote,
    target: Path,
    watch: Watch,
    *,
    check_header: Callable[[Path], None] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Fetch ``target``, unless it is there or another process fetches it meanwhile. Blocks.

    check_header: called once with the incomplete file when it has at least ``HEADER_BYTES``, and may raise LocalError,
    which gives up the file. Raises LocalError in one line; RefusedError if the server refuses the token.
    """
    partial = incomplete_of(target, remote)
    name = unquote(urlsplit(remote.url).path.rpartition("/")[2])
    with _only_writer(partial, target, name, watch) as file:
        if file is None:
            return
        fetch = _Fetch(client, remote, file, partial, watch, sleep, check_header)
        if not fetch.is_whole():
            watch.say(f"{name}: the bytes of an earlier try are damaged, so it is fetched anew")
            fetch.is_whole()
        with _writing(partial):
            os.fsync(file.fileno())
            os.replace(partial, target)


@contextmanager
def _only_writer(partial: Path, target: Path, name: str, watch: Watch) -> Iterator[BinaryIO | None]:
    """The incomplete file, locked; None if ``target`` is there. Waits for another process that writes it. name: the
    file's name for people."""
    while not target.exists():
        with _writing(partial):
            descriptor = os.open(partial, os.O_RDWR | os.O_CREAT, 0o666)
        with open(descriptor, "r+b", buffering=0) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                watch.say(f"another process is fetching {name}: waiting for it")
                fcntl.flock(file, fcntl.LOCK_EX)
            if _is_named(file, partial):
                yield file
                return
    yield None


def _is_named(file: BinaryIO, path: Path) -> bool:
    """Whether ``path`` is still the name of ``file``: its writer renames or removes it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise LocalError(f"cannot write {path}: {exc.strerror or exc}") from exc


class _Fetch:
    def __init__(
        self,
        client: httpx2.Client,
        remote: Remote,
        file: BinaryIO,
        partial: Path,
        watch: Watch,
        sleep: Callable[[float], None],
        check_header: Callable[[Path], None] | None,
    ) -> None:
        self._client = client
        self._remote = remote
        self._file = file
        self._partial = partial
        self._watch = watch
        self._sleep = sleep
        self._check_header = check_header if remote.size > 2 * HEADER_BYTES else None
        self._hasher: Any = None
        self._done = 0
        self._is_continued = False
        self._continue_earlier()

    def is_whole(self) -> bool:
        """Fetch what is missing. False: the content is damaged, began in an earlier process, and is now removed: call
        it again. Raises LocalError, also for damage without such a beginning."""
        self._receive_all()
        if self._remote.size < len(_MAGIC):
            raise self._no_model(b"")
        if self._hasher is None or self._hasher.hexdigest() == self._remote.etag:
            return True
        if self._is_continued:
            self._begin_anew()
            self._is_continued = False
            return False
        self._partial.unlink(missing_ok=True)
        raise LocalError(
            f"the bytes from {_place(self._remote.url)} do not have the checksum {self._remote.etag[:12]}... that they"
            " should have; they are removed. Try again later, or from another mirror"
        )

    # --- the incomplete file --------------------------------------------------------------------------------------

    def _continue_earlier(self) -> None:
        self._hasher = self._remote.hasher()
        size = self._file.seek(0, os.SEEK_END)
        head = os.pread(self._file.fileno(), len(_MAGIC), 0)
        if not self._remote.key or size > self._remote.size or not _MAGIC.startswith(head):
            self._begin_anew()
            return
        self._done, self._is_continued = size, size > 0
        if self._hasher is not None and size:
            self._watch.show(size, self._remote.size)
            if size >= TOLD_BYTES:
                self._watch.say(f"reading the {size_text(size)} that are here, for the checksum")
            self._file.seek(0)
            while block := self._file.read(_BLOCK_BYTES):
                self._hasher.update(block)

    def _begin_anew(self) -> None:
        self._file.truncate(0)
        self._file.seek(0)
        self._done, self._hasher = 0, self._remote.hasher()

    def _write(self, chunk: bytes) -> None:
        if self._done + len(chunk) > self._remote.size:
            raise LocalError(f"{_place(self._remote.url)} sends more bytes than it has announced; try again")
        rest = memoryview(chunk)
        while rest:
            try:
                written = self._file.write(rest)
            except OSError as exc:
                raise self._full(exc) from exc
            if self._hasher is not None:
                self._hasher.update(rest[:written])
            self._done += written
            rest = rest[written:]

    def _full(self, exc: OSError) -> LocalError:
        if exc.errno not in _FULL:
            return LocalError(f"cannot write {self._partial}: {exc.strerror or exc}")
        done, missing = size_text(self._done), size_text(self._remote.size - self._done)
        return LocalError(
            f"the disk of {self._partial.parent} is full: {done} are there; free {missing} more and run the same"
            " command again, which goes on from here"
        )

    # --- the connection -------------------------------------------------------------------------------------------

    def _receive_all(self) -> None:
        num_cuts = num_futile = 0
        while self._done < self._remote.size:
            before = self._done
            try:
                self._receive()
            except CutError as cut:
                num_futile = 0 if self._done > before else num_futile + 1
                num_cuts += 1
                if num_futile == len(PAUSES_S) or num_cuts == MAX_CUTS:
                    raise self._given_up(str(cut)) from cut
                self._sleep(max(PAUSES_S[num_futile], cut.wait_s))

    def _given_up(self, reason: str) -> PassingError:
        done, size = size_text(self._done), size_text(self._remote.size)
        more = f"; {done} of {size} are here, and the same command goes on from there" if self._done else ""
        return PassingError(f"the download from {_place(self._remote.url)} was cut off: {one_line(reason)[:200]}{more}")

    def _receive(self) -> None:
        """Ask for what is missing and write what comes. Raises CutError unless all comes."""
        headers = {**self._remote.headers, "Accept-Encoding": "identity"}
        if self._done:
            headers["Range"] = f"bytes={self._done}-"
            if self._remote.validator:
                headers["If-Range"] = self._remote.validator
        try:
            with self._client.stream("GET", self._remote.url, headers=headers, timeout=TIMEOUT) as response:
                self._check_response(response)
                for chunk in response.iter_raw():
                    before = self._done
                    self._write(chunk)
                    self._check_beginning(before)
                    self._watch.show(self._done, self._remote.size)
        except (httpx2.TransportError, httpx2.StreamError) as exc:
            raise CutError(str(exc) or type(exc).__name__) from exc
        except (httpx2.HTTPError, httpx2.InvalidURL) as exc:
            raise LocalError(f"cannot fetch {_place(self._remote.url)}: {one_line(str(exc))[:200]}") from exc
        if self._done < self._remote.size:
            raise CutError("the server ended the connection")

    def _check_response(self, response: httpx2.Response) -> None:
        check_status(response, self._remote.url)
        place = _place(self._remote.url)
        if response.headers.get("Content-Type", "").lower().startswith("text/html"):
            raise no_file(place)
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise LocalError(f"{place} sends the file compressed, which was not asked for; take another mirror")
        if response.status_code == 206:
            found = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if found is None or (int(found[1]), int(found[2])) != (self._done, self._remote.size):
                raise LocalError(f"{place} sends other bytes than those asked for: the file was changed; try again")
        elif response.headers.get("Content-Length", str(self._remote.size)) != str(self._remote.size):
            told = f"{self._remote.size} bytes were announced"
            raise LocalError(f"{place} sends {response.headers['Content-Length']} bytes, and {told}; try again later")
        elif self._done and "Content-Length" not in response.headers:
            raise CutError("the server does not send the rest of the file")
        elif self._done:  # (it knows no ranges, or the file was changed)
            self._begin_anew()
            self._is_continued = False

    def _check_beginning(self, before: int) -> None:
        """before: bytes that were here before the last ones."""
        if before < len(_MAGIC) <= self._done:
            head = os.pread(self._file.fileno(), 16, 0)
            if not head.startswith(_MAGIC):
                raise self._no_model(head)
        if self._check_header is not None and before < HEADER_BYTES <= self._done:
            try:
                self._check_header(self._partial)
            except LocalError:
                self._partial.unlink(missing_ok=True)
                raise

    def _no_model(self, head: bytes) -> LocalError:
        self._partial.unlink(missing_ok=True)
        place = _place(self._remote.url)
        if head.lstrip()[:1] == b"<":
            return no_file(place)
        return LocalError(f"{place} is no GGUF file, the form of models that llama.cpp reads; nothing is kept of it")


def no_file(place: str) -> LocalError:
    return LocalError(
        f"{place} sends a web page instead of the model: open it in a browser, which shows whether this network or the"
        " site wants you to sign in first"
    )


def check_status(response: httpx2.Response, url: str) -> None:
    """Raises RefusedError, LocalError or CutError for a response without the file."""
    status, place = response.status_code, _place(url)
    if status in (200, 206):
        return
    if status in (401, 403):
        code = response.headers.get("X-Error-Code", "")
        raise RefusedError(f"{place} refuses access ({status}): {_reason(response)}", code)
    if status in (404, 410):
        raise LocalError(f"there is no file {place} ({status})")
    if status in _TRY_LATER:
        wait = response.headers.get("Retry-After", "")
        raise CutError(f"the server answers {status}", float(wait) if wait.isascii() and wait.isdigit() else 0.0)
    raise LocalError(f"{place} answers with status {status}")


def _reason(response: httpx2.Response) -> str:
    told = response.headers.get("X-Error-Message") or response.reason_phrase or "no reason is given"
    return one_line(told)[:200]


def _place(url: str) -> str:
    """A URL for people: without a query, which may have a signature in it."""
    return one_line(url.partition("?")[0])[:200]
