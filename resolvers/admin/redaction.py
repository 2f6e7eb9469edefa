"""Redact changed values for logs: JSON values without secrets and of limited size."""

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from models.quantities import format_iso_duration

HIDDEN_VALUE = "(hidden)"  # replaces a secret that is set
SECRET_WORDS = frozenset(
    """
    code codes credential credentials digest hash hashed hashes otp passphrase pending pin proof
    seed seeds token tokens
    """.split()  # noqa: SIM905 - a list of lines would be a page long
)
SECRET_PHRASES = re.compile(r"passw(or)?d|secret|(private|public|signing|encryption) ?key")
HARMLESS_LAST_WORDS = frozenset(  # they make a name harmless: `tokenTtl`, `passwordChangedAt`
    "at count disabled enabled id ids life limit policy required ttl until version".split()  # noqa: SIM905
)
NAME_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
OWN_SECRETS = re.compile(
    r"mg[a-z]_[A-Za-z0-9_-]{40,}|\$(argon2|2[abxy]|[156y]|pbkdf2)[a-z0-9-]*\$\S+"
)
MAX_TEXT_LENGTH = 1000  # characters
MAX_ITEMS = 100  # items of a list, or members of an object
MAX_DEPTH = 8


def is_secret_name(name: str) -> bool:
    """True if a value with this name, in snake_case or camelCase, must not be logged."""
    name_parts = [part.lower() for part in NAME_WORDS.findall(name)]
    has_secret_word = SECRET_WORDS.intersection(name_parts) or SECRET_PHRASES.search(
        " ".join(name_parts)
    )
    return bool(has_secret_word) and name_parts[-1] not in HARMLESS_LAST_WORDS


def redact_secrets(values: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the values as JSON types, with secrets hidden and long values truncated.

    Whether a secret is set stays visible, and so do all booleans.
    """
    return None if values is None else _redact_members(values, 0)


def _redact_members(values: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    redacted = {}
    for name, value in list(values.items())[:MAX_ITEMS]:
        is_hidden = is_secret_name(str(name)) and not isinstance(value, bool | None)
        redacted[_redact_text(str(name))] = (
            (HIDDEN_VALUE if value else None) if is_hidden else _redact_value(value, depth)
        )
    return redacted


def _redact_value(value: Any, depth: int) -> Any:
    match value:
        case str():
            json_value: Any = _redact_text(value)
        case bool() | float() | None:
            json_value = value
        case int():
            json_value = value if abs(value) < 1 << 63 else str(value)
        case timedelta():
            json_value = format_iso_duration(value)
        case Mapping() | list() | tuple() | set() | frozenset() if depth >= MAX_DEPTH:
            json_value = "…"
        case Mapping():
            json_value = _redact_members(value, depth + 1)
        case list() | tuple() | set() | frozenset():
            json_value = [_redact_value(item, depth + 1) for item in list(value)[:MAX_ITEMS]]
        case bytes() | bytearray():
            json_value = f"{len(value)} bytes"
        case _:
            json_value = _redact_text(
                value.isoformat() if hasattr(value, "isoformat") else str(value)
            )
    return json_value


def _redact_text(text: str) -> str:
    """Return a storable text: no NUL or lone surrogate, no secret of Merganser, not too long."""
    cleaned = OWN_SECRETS.sub(HIDDEN_VALUE, text).replace("\0", "\N{REPLACEMENT CHARACTER}")
    cleaned = cleaned.encode(errors="replace").decode()
    return (
        cleaned
        if len(cleaned) <= MAX_TEXT_LENGTH
        else f"{cleaned[:MAX_TEXT_LENGTH]}… ({len(cleaned)} characters)"
    )
