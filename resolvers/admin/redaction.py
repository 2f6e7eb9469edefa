"""Redact changed values for logs: JSON values without secrets and of limited size."""

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from models.quantities import long

HIDDEN = "(hidden)"  # replaces a secret that is set
SECRETS = frozenset(
    """
    code codes credential credentials digest hash hashed hashes otp passphrase pending pin proof
    seed seeds token tokens
    """.split()  # noqa: SIM905 - a list of lines would be a page long
)
PARTS = re.compile(r"passw(or)?d|secret|(private|public|signing|encryption) ?key")
HARMLESS = frozenset(  # they make a name harmless: `tokenTtl`, `passwordChangedAt`
    "at count disabled enabled id ids life limit policy required ttl until version".split()  # noqa: SIM905
)
WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
OURS = re.compile(r"mg[a-z]_[A-Za-z0-9_-]{40,}|\$(argon2|2[abxy]|[156y]|pbkdf2)[a-z0-9-]*\$\S+")
LONGEST = 1000  # characters
MOST = 100  # items of a list, or members of an object
DEEPEST = 8


def is_secret(name: str) -> bool:
    """True if a value with this name, in snake_case or camelCase, must not be logged."""
    words = [word.lower() for word in WORDS.findall(name)]
    named = SECRETS.intersection(words) or PARTS.search(" ".join(words))
    return bool(named) and words[-1] not in HARMLESS


def without_secrets(facts: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the values as JSON types, with secrets hidden and long values truncated.

    Whether a secret is set stays visible, and so do all booleans.
    """
    return None if facts is None else _members(facts, 0)


def _members(facts: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    shown = {}
    for name, value in list(facts.items())[:MOST]:
        secret = is_secret(str(name)) and not isinstance(value, bool | None)
        shown[_text(str(name))] = (HIDDEN if value else None) if secret else _plain(value, depth)
    return shown


def _plain(value: Any, depth: int) -> Any:
    match value:
        case str():
            plain: Any = _text(value)
        case bool() | float() | None:
            plain = value
        case int():
            plain = value if abs(value) < 1 << 63 else str(value)
        case timedelta():
            plain = long(value)
        case Mapping() | list() | tuple() | set() | frozenset() if depth >= DEEPEST:
            plain = "…"
        case Mapping():
            plain = _members(value, depth + 1)
        case list() | tuple() | set() | frozenset():
            plain = [_plain(each, depth + 1) for each in list(value)[:MOST]]
        case bytes() | bytearray():
            plain = f"{len(value)} bytes"
        case _:
            plain = _text(value.isoformat() if hasattr(value, "isoformat") else str(value))
    return plain


def _text(text: str) -> str:
    """Return a storable text: no NUL or lone surrogate, no secret of Merganser, not too long."""
    clean = OURS.sub(HIDDEN, text).replace("\0", "\N{REPLACEMENT CHARACTER}")
    clean = clean.encode(errors="replace").decode()
    return clean if len(clean) <= LONGEST else f"{clean[:LONGEST]}… ({len(clean)} characters)"
