"""The definition of a setting, its types, and the checks of its values."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any

from mail.addresses.address_syntax import LABEL_DELIMITERS, normalize_and_validate_domain
from models import quantities
from models.errors import InvalidInput
from models.logs.levels import parse_levels
from models.queue.rate_values import RATE_PATTERN
from models.runtime.options import Options
from models.validation_constraints import ValidationConstraint

CONTACT_PATTERN = re.compile(r"([!-?A-~]{1,64}@[A-Za-z0-9.-]{1,250})?")
WORD_BOUNDARY = re.compile(r"\.|(?=[A-Z])")  # in keys such as deletedMessages.retention
MAX_LIST_ITEMS = 100
VALUE_PATH = ("value",)
DAY = timedelta(days=1)


class SettingKind(StrEnum):
    """The kind of a setting, which decides how its value is written in JSON."""

    STRING = "STRING"
    NUMBER = "NUMBER"
    BOOLEAN = "BOOLEAN"
    DURATION = "DURATION"  # ISO 8601, such as P30D
    SIZE = "SIZE"  # bytes; also taken as text such as "3 GiB"
    LIST = "LIST"


SettingJson = Any  # JSON: a text, a number, a switch, null, or a list of these


@dataclass(frozen=True, slots=True)
class SettingDefinition:
    """A setting that sets the option of the same name.

    `parse` and `json_from_options` convert between both.
    """

    key: str
    type: SettingKind
    name: str
    description: str
    minimum: Any = None
    maximum: Any = None
    nullable: bool = False
    convert: Callable[[Any], Any] | None = None  # after the conversion from JSON by type
    restart_required: bool = False

    @property
    def option(self) -> str:
        """The field in models/runtime/options.py: `queue_lifetime` for `queue.lifetime`."""
        return WORD_BOUNDARY.sub("_", self.key).lower()

    def parse_value(self, value: object) -> Any:
        """Return the option value of a JSON value.

        Raises InvalidInput with the broken rule if the value is not allowed.
        """
        if value is None and self.nullable:
            return None
        try:
            parsed = PARSERS[self.type](value)
        except ValueError as problem:
            raise InvalidInput(
                f"{self.key}: {problem}", constraint=ValidationConstraint.TYPE, path=VALUE_PATH
            ) from None
        if self.minimum is not None and parsed < self.minimum:
            message = f"{self.key} must be at least {json_from_value(self.minimum)}."
            raise InvalidInput(message, constraint=ValidationConstraint.MIN, path=VALUE_PATH)
        if self.maximum is not None and parsed > self.maximum:
            message = f"{self.key} must be at most {json_from_value(self.maximum)}."
            raise InvalidInput(message, constraint=ValidationConstraint.MAX, path=VALUE_PATH)
        return self.convert(parsed) if self.convert else parsed

    def json_from_options(self, options: Options) -> SettingJson:
        """Return the current value of the option as JSON."""
        return json_from_value(getattr(options, self.option))


def json_from_value(value: Any) -> SettingJson:
    """Return the value of an option as JSON."""
    if isinstance(value, tuple):
        return [json_from_value(item) for item in value]
    return quantities.format_iso_duration(value) if isinstance(value, timedelta) else value


def _parse_string(value: object) -> str:
    if isinstance(value, str):
        return value
    raise ValueError("The value must be a string.")


def _parse_boolean(value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError("The value must be true or false.")


def _parse_list(value: object) -> list[Any]:
    if isinstance(value, list) and len(value) <= MAX_LIST_ITEMS:
        return value
    raise ValueError(f"The value must be a list of at most {MAX_LIST_ITEMS} items.")


PARSERS: Mapping[SettingKind, Callable[[object], Any]] = {
    SettingKind.STRING: _parse_string,
    SettingKind.BOOLEAN: _parse_boolean,
    SettingKind.NUMBER: quantities.parse_integer,
    SettingKind.SIZE: quantities.parse_byte_count,
    SettingKind.DURATION: quantities.parse_iso_duration,
    SettingKind.LIST: _parse_list,
}


def convert_domain(value: str) -> str:
    """Return the domain in normal form. Raises InvalidInput if it is none."""
    return normalize_and_validate_domain(value, path="value")


def validate_contact_or_empty(value: str) -> str:
    """Return an e-mail address or "". Raises InvalidInput otherwise."""
    if not CONTACT_PATTERN.fullmatch(value):
        raise InvalidInput(
            "Must be an email address or an empty string.",
            constraint=ValidationConstraint.PATTERN,
            path=VALUE_PATH,
        )
    return value


def validated_delimiters(value: str) -> str:
    """Return the subaddress delimiters, each once. Raises InvalidInput if one is not allowed."""
    if not set(value) <= set(LABEL_DELIMITERS):
        raise InvalidInput(
            f"Only these characters are allowed: {' '.join(LABEL_DELIMITERS)}",
            constraint=ValidationConstraint.PATTERN,
            path=VALUE_PATH,
        )
    return "".join(dict.fromkeys(value))


def validate_log_levels(value: str) -> str:
    """Return levels of the log store. Raises InvalidInput if one is no level or component."""
    try:
        parse_levels(value)
    except ValueError as problem:
        raise InvalidInput(
            f"`logs.levels`: {problem}", constraint=ValidationConstraint.PATTERN, path=VALUE_PATH
        ) from None
    return value


def validate_rate_or_empty(value: str) -> str:
    """Return a rate such as 100/HOUR or "". Raises InvalidInput otherwise."""
    if value and not RATE_PATTERN.fullmatch(value):
        raise InvalidInput(
            "Must be a rate such as 100/HOUR, or an empty string.",
            constraint=ValidationConstraint.PATTERN,
            path=VALUE_PATH,
        )
    return value


def validator_of_choices(*choices: str) -> Callable[[str], str]:
    """Return a function that returns one of the choices, and else raises InvalidInput."""

    def validate_choice(value: str) -> str:
        if value not in choices:
            raise InvalidInput(
                f"Must be one of {', '.join(choices)}.",
                constraint=ValidationConstraint.PATTERN,
                path=VALUE_PATH,
                allowed_values=choices,
            )
        return value

    return validate_choice


def validate_whole_days(value: timedelta) -> timedelta:
    """Return a duration of whole days. Raises InvalidInput otherwise."""
    if value % DAY:
        raise InvalidInput(
            "The duration must be a number of whole days.",
            constraint=ValidationConstraint.PATTERN,
            path=VALUE_PATH,
        )
    return value


def validate_and_convert_retry_delays(value: list[Any]) -> tuple[timedelta, ...]:
    """Return the retry delays of the queue. Raises InvalidInput if one is out of range."""
    try:
        durations = tuple(map(quantities.parse_iso_duration, value))
    except ValueError as problem:
        raise InvalidInput(
            f"`queue.retryDelays`: {problem}", constraint=ValidationConstraint.TYPE, path=VALUE_PATH
        ) from None
    if not durations or not all(
        timedelta(seconds=1) <= duration <= 7 * DAY for duration in durations
    ):
        message = "`queue.retryDelays` must have at least one duration, each from PT1S to P7D."
        raise InvalidInput(message, constraint=ValidationConstraint.RANGE, path=VALUE_PATH)
    return durations
