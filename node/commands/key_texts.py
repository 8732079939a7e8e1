"""API keys with names and limits: the texts of the option --key, and the sections [keys.NAME] of the configuration.

A text is a name, then the key's file or hash, then limits: ``alice,file=alice.key,requests_per_minute=60``.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from mycelia.node.serve.api_keys import LOCAL, MAX_KEYS, MIN_KEY_CHARS, ApiKey, Limits, digest_of
from mycelia.node.settings import UsageError

SECTION = "keys"
MAX_NAME_CHARS = 64
MAX_KEY_FILE_BYTES = 4_096
MAX_LIMIT = 2**53
SOURCES = ("sha256", "file")
LIMITS = tuple(Limits.__dataclass_fields__)
EXAMPLE = "alice,file=alice.key,requests_per_minute=60"
_NAME = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_NAME_CHARS}}}")
_HASH = re.compile(r"[0-9a-fA-F]{64}")


def check_key_name(name: str) -> str:
    """Raises UsageError."""
    if not _NAME.fullmatch(name) or name == LOCAL or name.startswith("key-"):
        raise UsageError(
            f"{name!r} cannot be the name of a key: use at most {MAX_NAME_CHARS} letters, digits, - and _, but not"
            f" '{LOCAL}' or 'key-...', which are the node's own names"
        )
    return name


def read_keys(texts: Iterable[str]) -> list[ApiKey]:
    """The keys of these texts. Raises UsageError that names the key and the mistake."""
    keys: dict[str, ApiKey] = {}
    for text in texts:
        key = _read_key(text)
        if key.name in keys:
            raise UsageError(f"there are two API keys with the name {key.name}")
        if same := next((one.name for one in keys.values() if one.digest == key.digest), None):
            raise UsageError(f"{same} and {key.name} are the same API key")
        keys[key.name] = key
    if len(keys) > MAX_KEYS:
        raise UsageError(f"{len(keys)} API keys are more than {MAX_KEYS}")
    return list(keys.values())


def check_key(text: str, where: str) -> None:
    """Raises UsageError for a text that is no key."""
    if len(text) < MIN_KEY_CHARS or not text.isascii() or not text.isprintable():
        raise UsageError(
            f"{where}: an API key must be {MIN_KEY_CHARS} or more ASCII characters; 'mycelia key add NAME' makes one"
        )


def texts_of_section(section: object, folder: Path) -> list[str]:
    """The texts for the sections [keys.NAME] of a file in ``folder``. Raises UsageError."""
    if not isinstance(section, dict):
        raise UsageError(f"{SECTION} is a group of sections: write [{SECTION}.NAME] on a line of its own")
    texts = []
    for name, table in section.items():
        where = f"{SECTION}.{name}"
        if not isinstance(table, dict):
            raise UsageError(f"{where} must be a section: write [{where}] on a line of its own")
        parts = [check_key_name(name)]
        for field, value in table.items():
            _check_field(where, field)
            kind = str if field in SOURCES else int
            if not isinstance(value, kind) or isinstance(value, bool):
                raise UsageError(f"{where}.{field} must be {'a text in quotes' if kind is str else 'a whole number'}")
            text = str(folder / Path(str(value)).expanduser()) if field == "file" else str(value)
            if "," in text:
                raise UsageError(f"{where}.{field} must have no comma")
            parts.append(f"{field}={text}")
        texts.append(",".join(parts))
    return texts


def section_of(name: str, digest: bytes, limits: Limits) -> str:
    """The text of a section [keys.NAME]."""
    lines = [f"[{SECTION}.{name}]", f'sha256 = "{digest.hex()}"']
    given: Mapping[str, int | None] = vars(limits)
    lines += [f"{field} = {value}" for field, value in given.items() if value is not None]
    return "\n".join(lines) + "\n"


def _read_key(text: str) -> ApiKey:
    name, *parts = text.split(",")
    where = f"API key {check_key_name(name)}"
    fields = dict(part.partition("=")[::2] for part in parts)
    for field in fields:
        _check_field(where, field)
    sources = [field for field in SOURCES if field in fields]
    if len(sources) != 1:
        raise UsageError(f"{where} needs its file or its hash, as in {EXAMPLE}")
    limits: dict[str, int] = {}
    for field in LIMITS:
        if field in fields:
            try:
                limits[field] = msgspec.convert(fields[field], int, strict=False)
            except msgspec.ValidationError:
                limits[field] = 0
            if not 1 <= limits[field] <= MAX_LIMIT:
                raise UsageError(f"{where}: {field} must be a whole number from 1 on, not {fields[field]!r}")
    return ApiKey(name, _digest(where, fields), Limits(**limits))


def _digest(where: str, fields: Mapping[str, str]) -> bytes:
    if "sha256" in fields:
        if not _HASH.fullmatch(fields["sha256"]):
            raise UsageError(f"{where}: sha256 must be 64 hexadecimal digits, as 'printf %s KEY | sha256sum' prints")
        return bytes.fromhex(fields["sha256"])
    path = Path(fields["file"])
    try:
        with path.open("rb") as file:
            key = file.read(MAX_KEY_FILE_BYTES).decode().strip()
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "not a text file"
        raise UsageError(f"{where}: {path}: {reason}") from exc
    check_key(key, f"{where}: {path}")
    return digest_of(key.encode())


def _check_field(where: str, field: str) -> None:
    if field not in (*SOURCES, *LIMITS):
        raise UsageError(f"{where} has no setting {field!r}; it has {', '.join((*SOURCES, *LIMITS))}")
