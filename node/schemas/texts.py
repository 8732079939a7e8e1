"""Formats and patterns of texts that llguidance does not have, or has wrong, said with patterns that it has.

A pattern here has the format's texts or fewer, so an answer always fits. A format that says nothing about a text that
can be checked, such as ``password``, constrains nothing, and so do those of OpenAPI for numbers with a fraction.
"""

import re
from typing import Any

from mycelia.node.schemas.document import not_enforced

_DAY = (
    r"(?:\d\d(?:[2468][048]|[13579][26]|0[48])|(?:[02468][048]|[13579][26])00)-02-29"
    r"|\d{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|02-(?:0[1-9]|1\d|2[0-8]))"
)
_HOUR = r"(?:[01]\d|2[0-3]):[0-5]\d"
_TIME = rf"{_HOUR}:[0-5]\d(?:\.\d{{1,9}})?(?:Z|[+-]{_HOUR})"
_ATEXT = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]"
_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_DURATION_TIME = r"(?:\d+H(?:\d+M(?:\d+S)?)?|\d+M(?:\d+S)?|\d+S)"
_DURATION_DATE = r"(?:\d+D|\d+M(?:\d+D)?|\d+Y(?:\d+M(?:\d+D)?)?)"

PATTERNS = {
    "base64": r"^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$",
    "base64url": r"^(?:[A-Za-z0-9_-]{4})*(?:[A-Za-z0-9_-]{2}|[A-Za-z0-9_-]{3})?$",
    "cidrv4": rf"^{_OCTET}(?:\.{_OCTET}){{3}}/(?:[0-9]|[12]\d|3[0-2])$",
    "cuid": r"^c[0-9a-z]{24}$",
    "cuid2": r"^[a-z][0-9a-z]{23}$",
    "date": f"^(?:{_DAY})$",
    "date-time": f"^(?:{_DAY})T{_TIME}$",
    "duration": rf"^P(?:\d+W|{_DURATION_DATE}(?:T{_DURATION_TIME})?|T{_DURATION_TIME})$",
    "e164": r"^\+[1-9]\d{6,14}$",
    "email": (
        rf"^(?:{_ATEXT}{{1,64}}|{_ATEXT}{{1,31}}\.{_ATEXT}{{1,31}}|{_ATEXT}{{1,20}}(?:\.{_ATEXT}{{1,20}}){{2}})"
        r"@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,3}[A-Za-z]{2,24}$"
    ),
    "json-pointer": r"^(?:/(?:[^/~]|~[01])*)*$",
    "nanoid": r"^[a-zA-Z0-9_-]{21}$",
    "time": f"^{_TIME}$",
    "ulid": r"^[0-7][0-9A-HJKMNP-TV-Z]{25}$",
    "uuid": r"^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$",
}
_UUID = r"^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-%s[0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}$"
PATTERNS |= {f"uuid{number}": _UUID % number for number in range(1, 9)}
PATTERNS |= {
    "byte": PATTERNS["base64"],
    "idn-email": PATTERNS["email"],
    "ipv4network": PATTERNS["cidrv4"],
    "ipv4interface": PATTERNS["cidrv4"],
}
NARROWER = {
    "idn-hostname": "hostname",
    "ipvanyaddress": "ipv4",
    "iri": "uri",
    "iri-reference": "uri",
    "multi-host-uri": "uri",
    "uri-reference": "uri",
    "url": "uri",
}
"""Formats by another one with some of their texts."""
ANY_TEXT = frozenset(
    {
        *("binary", "code", "directory-path", "file-path", "html", "json-string", "markdown", "multiline", "new-path"),
        "password",
        *("path", "text", "textarea"),
        *("decimal", "double", "float", "number"),
    }
)
_BITS = (8, 16, 32, 64)
LARGEST_INTEGER = 10**18
"""llguidance has no larger bounds."""
_INTEGERS = {
    f"int{bits}": (max(-(2 ** (bits - 1)), -LARGEST_INTEGER), min(2 ** (bits - 1) - 1, LARGEST_INTEGER))
    for bits in _BITS
}
_INTEGERS |= {f"uint{bits}": (0, min(2**bits - 1, LARGEST_INTEGER)) for bits in _BITS}


def of_format(name: Any) -> dict[str, Any] | None:
    """The schema of a format in other words; None: llguidance knows it, or nobody does."""
    if name in PATTERNS:
        return {"pattern": PATTERNS[name]}
    if name in NARROWER:
        return {"format": NARROWER[name]}
    if name in _INTEGERS:
        least, most = _INTEGERS[name]
        return {"minimum": least, "maximum": most}
    return {} if name in ANY_TEXT else None


# --- patterns ---------------------------------------------------------------------------------------------------------

_KNOWN = {
    # zod: e-mail addresses and durations
    (
        r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"
    ): r"^(?:[A-Za-z0-9_'+\-]+\.)*[A-Za-z0-9_'+\-]*[A-Za-z0-9_+\-]@(?:[A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$",
    (r"^P(?:(\d+W)|(?!.*W)(?=\d|T\d)(\d+Y)?(\d+M)?(\d+D)?(T(?=\d)(\d+H)?(\d+M)?(\d+([.,]\d+)?S)?)?)$"): PATTERNS[
        "duration"
    ],
}
_DECIMAL = re.compile(r"\^\(\?!\^\[-\+\.\]\*\$\)\[\+-\]\?0\*\\d(?:\*|\{0,([1-9]\d{0,3})\})(.*)", re.DOTALL)
"""pydantic's pattern of decimal numbers, whose look-ahead says that there must be a digit."""
_LENGTH = re.compile(r"\^\(\?=\.\{(\d{1,6}),(\d{0,6})\}\$\)(.*)", re.DOTALL)
_NOT_ENFORCED = {
    "with look-around": re.compile(r"\(\?<?[=!]"),
    "with references to groups": re.compile(r"\\[1-9]|\\k<|\(\?P="),
    "with word boundaries": re.compile(r"\\[bB]"),
}


def of_pattern(pattern: Any) -> dict[str, Any]:
    """A schema of texts that fit ``pattern``: all, or those with a digit before the point. Raises SchemaError for what
    llguidance does not have."""
    if not isinstance(pattern, str):
        return {"pattern": pattern}
    schema: dict[str, Any] = {"pattern": _KNOWN.get(pattern, pattern)}
    if found := _DECIMAL.fullmatch(pattern):
        most, rest = found.groups()
        schema["pattern"] = rf"^[+-]?0*\d{f'{{1,{most}}}' if most else '+'}{rest}"
    elif found := _LENGTH.fullmatch(pattern):
        least, longest, rest = found.groups()
        schema = {"pattern": f"^{rest}", "minLength": int(least)} | ({"maxLength": int(longest)} if longest else {})
    plain = schema["pattern"].replace(r"\\", "")
    for why, expression in _NOT_ENFORCED.items():
        if expression.search(plain):
            raise not_enforced("pattern", why)
    return schema
