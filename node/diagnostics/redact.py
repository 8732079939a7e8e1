"""Takes secrets and addresses out of texts, so that they can be shown to strangers. Pure.

A value is replaced by the same word everywhere, so that a reader still sees which lines belong together.
"""

import ipaddress
import re
from collections.abc import Iterable

LEAST_CHARS = 6
"""Shorter values are no secrets, and occur in other words."""
_SECRETS = [
    (re.compile(r"mycelia1[a-z0-9]{16,}", re.IGNORECASE), "[invitation]"),
    (re.compile(r"\b(?:hf|sk)[_-][A-Za-z0-9_-]{16,}"), "[secret]"),
    (re.compile(r"""(sha256["']?\s*[=:]\s*["']?)[0-9a-f]{64}""", re.IGNORECASE), r"\1[secret]"),
    (re.compile(r"(://)[^/\s\"'@]+@"), r"\1[secret]@"),
    (re.compile(r"(https?://[^\s\"'?#]+\?)[^\s\"'#]+"), r"\1[secret]"),
    (re.compile(r"\b([A-Z0-9_]*(?:TOKEN|PASSWORD|SECRET|API_KEY)=)[^\s\"']+"), r"\1[secret]"),
    (re.compile(r"""(\basked_to_join [^\n]*?\bname=)(?:'[^'\n]*'|"[^"\n]*"|\S+)"""), r"\1[host]"),
    (re.compile(r"(/home/|/Users/)[^/\s\"',;:]+"), r"\1[user]"),
    (re.compile(r"(?<=bearer )[^\s\"',;]+", re.IGNORECASE), "[secret]"),
    (re.compile(r"(?m)^(\s*(?:sha256|key|keys|api_key|password|token|secret)\s*=\s*).*$"), r'\1"[secret]"'),
    (re.compile(r'("(?:api_key|password|token|secret)"\s*:\s*)"[^"]*"'), r'\1"[secret]"'),
]
_IP4 = re.compile(r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?![\d.])")
_IP6 = re.compile(r"(?<![0-9a-f:])(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]{0,4}(?![0-9a-f:])", re.IGNORECASE)
_NAME = re.compile(r"(?<=/dns/|dns4/|dns6/|addr/)[^/\s\"',\])]+")


class Redactor:
    """Has one memory for all texts of an archive."""

    def __init__(
        self, secrets: Iterable[str] = (), words: Iterable[tuple[str, str]] = (), texts: Iterable[str] = ()
    ) -> None:
        """secrets: values to take out wherever they stand. words: other values, each with its replacement, such as the
        home folder and ~. texts: what is in an address in one of them is a name in all."""
        pairs = [*((secret, "[secret]") for secret in secrets), *words]
        self._words = sorted(((a, b) for a, b in pairs if len(a) >= LEAST_CHARS), key=lambda pair: -len(pair[0]))
        self._known: dict[str, str] = {}
        names = sorted({name for text in texts for name in _NAME.findall(text) if "." in name}, key=len, reverse=True)
        self._names = re.compile(rf"(?<![\w.-])(?:{'|'.join(map(re.escape, names))})(?![\w-])") if names else None

    def text(self, text: str) -> str:
        for value, word in self._words:
            text = text.replace(value, word)
        for pattern, replacement in _SECRETS:
            text = pattern.sub(replacement, text)
        text = _NAME.sub(lambda found: self._named(found[0], "name"), text)
        if self._names is not None:
            text = self._names.sub(lambda found: self._named(found[0], "name"), text)
        return _IP6.sub(self._address, _IP4.sub(self._address, text))

    def _address(self, found: re.Match[str]) -> str:
        try:
            address = ipaddress.ip_address(found[0])
        except ValueError:
            return found[0]
        return self._named(str(address), "address") if address.is_global else found[0]

    def _named(self, value: str, kind: str) -> str:
        number = sum(word.startswith(f"[{kind}") for word in self._known.values()) + 1
        return self._known.setdefault(value, f"[{kind} {number}]")
