"""Validation of keys, values and times to live of key-value entries."""

import re
from collections.abc import Sequence
from datetime import datetime, timedelta

from models import quantities
from models.errors import InvalidInput, LimitReached
from models.quantities import describe_duration
from models.validation_constraints import ValidationConstraint
from resolvers.context import Context

MAX_KEY_BYTES = 1024  # not exceeded by the setting, since an index holds the key twice
MIN_TTL, MAX_TTL = timedelta(seconds=1), timedelta(days=3650)
# U+10FFFF ends prefix ranges
_CONTROL_CHARACTERS = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\U0010ffff]")
_NOT_STORABLE = re.compile("[\0\ud800-\udfff]")  # not supported by every database


def require_known_store(ctx: Context, store: str, *, path: Sequence[str] = ("store",)) -> None:
    """Raise InvalidInput if there is no key-value store with this name."""
    if store not in ctx.environment.options.key_value_stores:
        raise InvalidInput(
            "There is no key-value store with this name.",
            constraint=ValidationConstraint.UNKNOWN,
            path=path,
            allowed_values=ctx.environment.options.key_value_stores,
        )


def validate_key_value_key(key: str) -> str:
    """Return the key. Keys are compared character by character.

    Raises InvalidInput if the key is too long, or has control characters or empty levels.
    """
    require_plain_text_within_limit(key, "key", path=["key"])
    if not all(key.split("/")):
        raise InvalidInput(
            "A key can't begin or end with a slash, or contain two slashes in a row.",
            constraint=ValidationConstraint.PATTERN,
            path=["key"],
        )
    return key


def require_plain_text_within_limit(text: str, noun: str, *, path: Sequence[str]) -> None:
    """Raise InvalidInput if a text has control characters or more than MAX_KEY_BYTES bytes."""
    if _CONTROL_CHARACTERS.search(text):
        raise InvalidInput(
            f"A {noun} can't contain control characters.",
            constraint=ValidationConstraint.PATTERN,
            path=path,
        )
    if len(text.encode()) > MAX_KEY_BYTES:
        raise InvalidInput(
            f"A {noun} has at most {MAX_KEY_BYTES} bytes.",
            constraint=ValidationConstraint.MAX,
            path=path,
        )


def require_key_within_limits(ctx: Context, key: str) -> None:
    """Raise LimitReached if a new key is longer or deeper than the settings allow."""
    options = ctx.environment.options
    for unit, used, limit in (
        ("bytes", len(key.encode()), options.key_value_max_key_size),
        ("levels", key.count("/") + 1, options.key_value_max_key_levels),
    ):
        if used > limit:
            message = f"A key has at most {limit} {unit}."
            raise LimitReached(message, limit=limit, used=used, path=["key"])


def require_storable_value(ctx: Context, value: str) -> None:
    """Raise InvalidInput if a value can't be stored, LimitReached if it is too large."""
    if _NOT_STORABLE.search(value):
        message = "A value can't contain NUL or unpaired surrogates."
        raise InvalidInput(message, constraint=ValidationConstraint.PATTERN, path=["value"])
    if (used := len(value.encode())) > (limit := ctx.environment.options.key_value_max_value_size):
        message_of_limit = f"A value has at most {limit} bytes."
        raise LimitReached(message_of_limit, limit=limit, used=used, path=["value"])


def validated_expiry_time(ctx: Context, ttl: timedelta | None) -> datetime | None:
    """Return when an entry with this time to live expires; None: never. Raises InvalidInput."""
    if ttl is None:
        return None
    if ttl < MIN_TTL:
        raise InvalidInput(
            f"The time must be at least {describe_duration(MIN_TTL)}.",
            constraint=ValidationConstraint.MIN,
            path=["ttl"],
        )
    if ttl > MAX_TTL:
        raise InvalidInput(
            f"The time must be at most {describe_duration(MAX_TTL)}.",
            constraint=ValidationConstraint.MAX,
            path=["ttl"],
        )
    return ctx.environment.now() + ttl


def parse_whole_number(value: str) -> int:
    """Return a stored value as an integer. Raises InvalidInput if it is none below 2^53."""
    try:
        return quantities.parse_integer(value)
    except ValueError as problem:
        message = "The stored value is not an integer below 2^53."
        raise InvalidInput(
            message, constraint=ValidationConstraint.NUMBER, path=["key"]
        ) from problem
