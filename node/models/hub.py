"""What a hub says about a repository: through huggingface_hub, so that its tokens (HF_TOKEN, ``hf auth login``),
mirrors (HF_ENDPOINT) and offline mode (HF_HUB_OFFLINE) count here, too."""

from dataclasses import dataclass
from urllib.parse import quote, urlsplit

import httpx2
from huggingface_hub import HfApi, constants, get_session, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from mycelia.node.errors import PassingError, one_line
from mycelia.node.models.choose import RepoFile
from mycelia.node.models.names import HubModel
from mycelia.node.models.transfer import Remote
from mycelia.node.version import VERSION
from mycelia.proto.wire.errors import LocalError

LOOK_UP_S = 20.0
MAX_LISTED = 10_000
_ETAG_DIGITS = (40, 64)
_HEX = frozenset("0123456789abcdef")


class OfflineError(PassingError):
    """The hub cannot be asked."""

    def __init__(self, model: HubModel, reason: str) -> None:
        self.in_short = f"cannot ask {host()} for {model}: {one_line(reason).strip(' .')[:160]}"
        """Without what to do."""
        super().__init__(
            f"{self.in_short}. Fetch its GGUF file on another machine, copy it here and give its path; or set"
            " HF_ENDPOINT to a mirror"
        )


@dataclass(frozen=True)
class Listing:
    """The files of a repository at one commit."""

    commit: str
    files: list[RepoFile]
    is_gated: bool = False
    """Whether one has to accept terms first."""


def client() -> httpx2.Client:
    """huggingface_hub's client, with the user's proxies. Nobody closes it."""
    return get_session()


def look_up(model: HubModel) -> Listing:
    """Ask the hub for the files. Raises OfflineError, or LocalError that says what to do."""
    api = HfApi(endpoint=constants.ENDPOINT, library_name="mycelia", library_version=VERSION)
    try:
        info = api.model_info(model.repo, revision=model.revision, files_metadata=True, timeout=LOOK_UP_S)
        files = [
            RepoFile(str(one.rfilename), int(one.size or 0), str(one.lfs.sha256 if one.lfs else one.blob_id))
            for one in (info.siblings or [])[:MAX_LISTED]
        ]
        commit = str(info.sha)
    except GatedRepoError as exc:
        raise gated(model.repo) from exc
    except RevisionNotFoundError as exc:
        raise LocalError(f"{model.repo} at {host()} has no revision {model.revision}") from exc
    except RepositoryNotFoundError as exc:
        raise LocalError(
            f"there is no model {model.repo} at {host()}, or it is private: then log in with 'hf auth login' or set"
            " HF_TOKEN"
        ) from exc
    except HfHubHTTPError as exc:
        status = exc.response.status_code if exc.response is not None else "no status"
        raise OfflineError(model, f"it answers with {status}") from exc
    except (OfflineModeIsEnabled, httpx2.HTTPError, httpx2.InvalidURL) as exc:
        raise OfflineError(model, reason_of(exc)) from exc
    except (ValueError, OverflowError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise OfflineError(model, "its answer is not that of a hub; a network may want a sign-in") from exc
    if not 40 <= len(commit) <= 64 or not set(commit) <= _HEX:
        raise LocalError(f"{host()} does not say which revision of {model.repo} it has")
    return Listing(commit, [file for file in files if _is_sound(file)], bool(info.gated))


def remote_of(model: HubModel, commit: str, file: RepoFile) -> Remote:
    """Where the hub has a file."""
    url = f"{constants.ENDPOINT}/{model.repo}/resolve/{commit}/{quote(file.path)}"
    headers = {"User-Agent": f"mycelia/{VERSION}"}
    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    return Remote(url, file.size, file.etag, headers, key="mycelia")


def gated(repo: str) -> LocalError:
    return LocalError(
        f"{repo} is gated: its authors want you to accept its terms. Do that at {constants.ENDPOINT}/{repo}, then log"
        " in with 'hf auth login' or set HF_TOKEN, and run the same command again"
    )


def reason_of(exc: Exception) -> str:
    """Why a server could not be asked."""
    return "HF_HUB_OFFLINE is set" if isinstance(exc, OfflineModeIsEnabled) else str(exc) or type(exc).__name__


def host() -> str:
    return urlsplit(constants.ENDPOINT).netloc or constants.ENDPOINT


def _is_sound(file: RepoFile) -> bool:
    """Whether the file can be stored: its path stays in the folder, and its etag is a hash."""
    parts = file.path.split("/")
    return (
        all(part not in ("", ".", "..") for part in parts)
        and file.path.isprintable()
        and file.size > 0
        and len(file.etag) in _ETAG_DIGITS
        and set(file.etag) <= _HEX
    )
