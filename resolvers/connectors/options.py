"""Custom options of connectors: a closed list, with the value each one takes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from mail.text.bounded_regex import BoundedRegex
from models import quantities
from models.errors import InvalidInput
from models.validation_constraints import ValidationConstraint

INPUT_PATH = ("customOptions",)
MAX_OPTIONS = 50
MAX_PATTERN_LENGTH = 255  # characters


class OptionName(StrEnum):
    """The names of the custom options."""

    DRY_RUN = "DRY_RUN"
    INCLUDE = "INCLUDE"
    INCLUDE_PATTERN = "INCLUDE_PATTERN"
    EXCLUDE_PATTERN = "EXCLUDE_PATTERN"
    SUBSCRIBED = "SUBSCRIBED"
    MIN_AGE = "MIN_AGE"
    MIN_SIZE = "MIN_SIZE"
    MAX_SIZE = "MAX_SIZE"
    NO_FLAGS = "NO_FLAGS"
    IDLE = "IDLE"


OPTION_DESCRIPTIONS: Mapping[OptionName, str] = {
    OptionName.DRY_RUN: "Every run is a dry run. It stores and deletes nothing.",
    OptionName.INCLUDE: (
        "Fetches only remote mailboxes whose path contains a match of this regular expression of 1 "
        "to 200 characters, ignoring case."
    ),
    OptionName.INCLUDE_PATTERN: (
        "Fetches only remote mailboxes whose whole path matches one of these patterns of 1 to 255 "
        "characters, ignoring case. `*` matches any characters, also `/`; `?` matches one. Can be "
        "repeated."
    ),
    OptionName.EXCLUDE_PATTERN: (
        "Does not fetch remote mailboxes whose whole path matches one of these patterns of 1 to "
        "255 characters, ignoring case. `*` matches any characters, also `/`; `?` matches one. Can "
        "be repeated."
    ),
    OptionName.SUBSCRIBED: (
        "Fetches only INBOX and remote mailboxes that are subscribed on the remote server (IMAP)."
    ),
    OptionName.MIN_AGE: (
        "Fetches only messages that arrived on the remote server at least this ISO 8601 "
        "duration ago, such as P1D. No effect with POP3."
    ),
    OptionName.MIN_SIZE: "Fetches only messages of at least this size, in bytes or such as 1 MiB.",
    OptionName.MAX_SIZE: "Fetches only messages of at most this size, in bytes or such as 1 MiB.",
    OptionName.NO_FLAGS: "Ignores later changes of flags on the remote server (IMAP).",
    OptionName.IDLE: (
        "Waits for new messages in INBOX between two runs, and fetches them at once (IMAP). No "
        "effect without `interval`, or in a dry run."
    ),
}
REPEATABLE_OPTIONS = frozenset({OptionName.INCLUDE_PATTERN, OptionName.EXCLUDE_PATTERN})
IMAP_OPTIONS = frozenset({OptionName.IDLE, OptionName.SUBSCRIBED, OptionName.NO_FLAGS})


@dataclass(slots=True)
class ConnectorOptions:
    """The parsed custom options of a connector."""

    dry_run: bool = False
    include: BoundedRegex | None = None
    include_patterns: list[str] = field(default_factory=list)
    exclude_patterns: list[str] = field(default_factory=list)
    subscribed: bool = False
    min_age: float = 0.0  # seconds
    min_size: int = 0
    max_size: int | None = None
    no_flags: bool = False
    idle: bool = False


def parse_connector_options(stored_options: Sequence[Mapping[str, Any]]) -> ConnectorOptions:
    """Parse the stored options of a connector."""
    parsed = ConnectorOptions()
    for option in stored_options:
        name, value = OptionName(option["name"]), option.get("value") or ""
        value_parsed = VALUE_PARSERS[name](value)
        if name is OptionName.INCLUDE_PATTERN:
            parsed.include_patterns.append(value_parsed)
        elif name is OptionName.EXCLUDE_PATTERN:
            parsed.exclude_patterns.append(value_parsed)
        else:
            setattr(parsed, name.lower(), value_parsed)
    return parsed


def validate_connector_options(
    options: Sequence[Mapping[str, Any]], *, is_pop3: bool
) -> list[dict[str, str]]:
    """Return the options in stored form. Raises InvalidInput."""
    if len(options) > MAX_OPTIONS:
        raise InvalidInput(
            f"At most {MAX_OPTIONS} options are allowed.",
            constraint=ValidationConstraint.MAX,
            path=INPUT_PATH,
        )
    used_names: set[OptionName] = set()
    for index, option in enumerate(options):
        name = OptionName(option["name"])
        if name in used_names and name not in REPEATABLE_OPTIONS:
            raise InvalidInput(
                f"The option {name} is given twice.",
                constraint=ValidationConstraint.UNIQUE,
                path=INPUT_PATH,
                index=index,
            )
        used_names.add(name)
        if is_pop3 and name in IMAP_OPTIONS:
            raise InvalidInput(
                f"The option {name} requires IMAP.",
                constraint=ValidationConstraint.UNSUPPORTED,
                path=INPUT_PATH,
                index=index,
            )
        try:
            VALUE_PARSERS[name](option.get("value") or "")
        except ValueError as problem:
            text = f"{name}: {problem}"
            raise InvalidInput(
                text, constraint=ValidationConstraint.VALUE, path=INPUT_PATH, index=index
            ) from None
        except InvalidInput as problem:
            text = f"{name}: {problem.message}"
            raise InvalidInput(
                text, constraint=problem.constraint, path=INPUT_PATH, index=index
            ) from None
    return [
        {"name": OptionName(option["name"]), "value": option.get("value") or ""}
        for option in options
    ]


def _parse_bool(text: str) -> bool:
    if text.lower() not in ("", "true", "false"):
        raise ValueError("Must be true or false. Without a value, it is true.")
    return text.lower() != "false"


def _parse_pattern(text: str) -> str:
    if not 0 < len(text) <= MAX_PATTERN_LENGTH or not text.isprintable():
        raise ValueError(f"Must have from 1 to {MAX_PATTERN_LENGTH} characters.")
    return text


def _parse_age_seconds(text: str) -> float:
    seconds = quantities.parse_iso_duration(text).total_seconds()
    if seconds < 0:
        raise ValueError("Must be at least 0.")
    return seconds


VALUE_PARSERS: Mapping[OptionName, Callable[[str], Any]] = {
    OptionName.DRY_RUN: _parse_bool,
    OptionName.INCLUDE: lambda text: BoundedRegex(text, allow_slashes=False),
    OptionName.INCLUDE_PATTERN: _parse_pattern,
    OptionName.EXCLUDE_PATTERN: _parse_pattern,
    OptionName.SUBSCRIBED: _parse_bool,
    OptionName.MIN_AGE: _parse_age_seconds,
    OptionName.MIN_SIZE: quantities.parse_byte_count,
    OptionName.MAX_SIZE: quantities.parse_byte_count,
    OptionName.NO_FLAGS: _parse_bool,
    OptionName.IDLE: _parse_bool,
}
