"""A changed configuration at a running node: what it takes over at once, and what waits for its next start.

The settings are read as at a start, and nothing changes if that fails. Options of the command line stay as they were
given. The node takes over what concerns its HTTP and its end (``LIVE``); everything else decides what is opened at the
start: ports, engine, swarm.
"""

from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from typing import TYPE_CHECKING

import structlog

from mycelia.node.guest.limits import GuestLimits
from mycelia.node.serve.api_keys import ApiKey, local_key
from mycelia.node.serve.gateway import Access, Gateway
from mycelia.node.serve.http.tls import load_tls
from mycelia.node.settings import NodeSettings
from mycelia.node.telemetry.usage import UsageMeter
from mycelia.node.views.state import ReloadView
from mycelia.proto.wire.errors import LocalError

if TYPE_CHECKING:
    import ssl

log = structlog.get_logger()

LIVE = {
    "api_keys": "key",
    "cors_origins": "cors",
    "allowed_hosts": "allow_host",
    "aliases": "alias",
    "drain_s": "drain",
    "hours": "hours",
    "is_polite": "polite",
    "month_bytes": "data_per_month",
    "tls_cert": "tls_cert",
    "tls_key": "tls_key",
}
"""Setting that a running node takes over -> its key in the configuration."""
_KEYS = {
    "ram_tier_mib": "ram_tier",
    "memory_gib": "memory",
    "gpu_memory_bytes": "gpu_memory",
    "bytes_per_s": "bandwidth",
    "disk_tier_gib": "disk_tier",
    "port_mapping": "no_port_mapping",
    "journal": "no_journal",
}
"""The same for other settings whose keys have other names."""


class Reloader:
    """The settings of a node and, once it runs, of its parts. One caller at a time: no method waits."""

    def __init__(self, settings: NodeSettings, read: Callable[[], NodeSettings] | None = None) -> None:
        """settings: those of the start. read: the settings as the configuration has them now; raises LocalError. None:
        they cannot be read again."""
        self.settings = settings
        """Those in force."""
        self._read = read
        self._parts: LiveParts | None = None

    def follow(self, parts: "LiveParts") -> None:
        """``parts`` take over what changes from now on. Mutates."""
        parts.start(self.settings)
        self._parts = parts

    def reload(self) -> ReloadView:
        """Read the settings and take over those in ``LIVE``. Raises LocalError, and then nothing has changed."""
        if self._read is None or self._parts is None:
            raise LocalError("this node cannot read its configuration again now: it is starting, or has none")
        wanted = self._read()
        names = [field.name for field in fields(NodeSettings)]
        differing = [name for name in names if getattr(wanted, name) != getattr(self.settings, name)]
        if (wanted.tls_cert is None) != (self.settings.tls_cert is None):
            live = LIVE.keys() - {"tls_cert", "tls_key"}  # (clients would have to use another URL)
        else:
            live = set(LIVE)
        after = replace(self.settings, **{name: getattr(wanted, name) for name in live})
        is_new_cert = self._parts.take(after)
        self.settings = after
        changed = {LIVE[name] for name in differing if name in live} | ({"tls_cert"} if is_new_cert else set())
        waiting = {_KEYS.get(name, name) for name in differing if name not in live}
        view = ReloadView(sorted(changed), sorted(waiting))
        log.info("config_reloaded", changed=view.changed, needs_restart=view.needs_restart)
        return view

    def reload_or_log(self) -> None:
        """``reload`` when nobody waits for the result."""
        try:
            self.reload()
        except LocalError as exc:
            log.warning("config_not_reloaded", reason=str(exc))


class LiveParts:
    """The parts of a running node that take over changed settings."""

    def __init__(
        self,
        gateway: Gateway,
        usage: UsageMeter,
        context: "ssl.SSLContext | None",
        own_key: str,
        set_aliases: Callable[[dict[str, str]], None],
        set_limits: Callable[[GuestLimits], None],
        write_run: Callable[[NodeSettings, str], None],
    ) -> None:
        """context: of the HTTP's TLS; None: there is none. own_key: that of the commands on this machine while the node
        has keys. write_run: tells these commands the settings and the key that they need; empty: none."""
        self._gateway = gateway
        self._usage = usage
        self._set_limits = set_limits
        self._context = context
        self._own_key = own_key
        self._set_aliases = set_aliases
        self._write_run = write_run
        self._cert: tuple[bytes, ...] = ()

    def start(self, settings: NodeSettings) -> None:
        """Take over the settings of the start, as far as the parts were not made of them. Mutates."""
        self._cert = _content(settings)
        self._write_run(settings, self._own_key if settings.api_keys else "")

    def take(self, settings: NodeSettings) -> bool:
        """Take over ``settings``. Returns whether the HTTP has another certificate now. Raises LocalError before
        anything has changed. Mutates."""
        is_new_cert = self._load_cert(settings)
        keys = keys_with_own(settings.api_keys, self._own_key)
        self._usage.set_keys(keys)
        self._gateway.set_access(Access(keys, settings.cors_origins, settings.allowed_hosts))
        self._set_aliases(dict(settings.aliases))
        self._set_limits(settings.guest)
        self._write_run(settings, self._own_key if keys else "")
        return is_new_cert

    def _load_cert(self, settings: NodeSettings) -> bool:
        """Connections that are open keep theirs. Raises LocalError."""
        content = _content(settings)
        if self._context is None or settings.tls_cert is None or content == self._cert:
            return False
        load_tls(settings.tls_cert, settings.tls_key)  # (a mistake must not reach the context in use)
        load_tls(settings.tls_cert, settings.tls_key, self._context)
        self._cert = content
        return True


def _content(settings: NodeSettings) -> tuple[bytes, ...]:
    """The bytes of the certificate and its key. Raises LocalError."""
    paths = [path for path in (settings.tls_cert, settings.tls_key) if path]
    try:
        return tuple(path.read_bytes() for path in paths)
    except OSError as exc:
        raise LocalError(f"cannot read {exc.filename}: {exc.strerror}") from exc


def keys_with_own(keys: Iterable[ApiKey], own_key: str) -> tuple[ApiKey, ...]:
    """``keys`` and that of the commands on this machine, which no limit concerns; empty: no key is needed."""
    given = tuple(keys)
    return (*given, local_key(own_key)) if given else ()
