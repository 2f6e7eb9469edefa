"""Check keys and values of settings, and apply stored values to the options."""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import orjson

from models import quantities
from models.errors import InvalidInput
from models.runtime.options import Options
from models.runtime.renamed_settings import RENAMED_KEYS, rename_message
from models.validation_constraints import ValidationConstraint
from resolvers.admin.setting_definitions import DEFINITIONS
from resolvers.admin.setting_types import (
    MAX_LIST_ITEMS,
    VALUE_PATH,
    SettingJson,
    SettingKind,
)

CUSTOM_PREFIX = "custom."  # prefix of the operators' own keys
CUSTOM_KEY_PATTERN = re.compile(r"custom(\.[A-Za-z0-9][A-Za-z0-9_-]*)+")
MAX_KEY_LENGTH = 128  # characters
MAX_CUSTOM_VALUE_BYTES = 4096  # as JSON


def validate_custom_scalar_or_list(value: object) -> SettingJson:
    """Return the value of a custom setting: text, number, boolean, or a list of these.

    Raises InvalidInput if it has another type or is too long.
    """
    items = value if isinstance(value, list) else [value]
    if len(items) > MAX_LIST_ITEMS:
        raise InvalidInput(
            f"A list has at most {MAX_LIST_ITEMS} items.",
            constraint=ValidationConstraint.MAX,
            path=VALUE_PATH,
        )
    if not all(map(_is_storable_scalar, items)):
        message = "A custom value is a string, number or boolean, or a list of these."
        raise InvalidInput(message, constraint=ValidationConstraint.TYPE, path=VALUE_PATH)
    if len(orjson.dumps(value)) > MAX_CUSTOM_VALUE_BYTES:
        raise InvalidInput(
            f"The value has at most {MAX_CUSTOM_VALUE_BYTES} bytes of JSON.",
            constraint=ValidationConstraint.MAX,
            path=VALUE_PATH,
        )
    return value


def _is_storable_scalar(value: object) -> bool:
    match value:
        case bool():
            return True
        case int():
            return abs(value) < quantities.INTEGER_LIMIT
        case float():
            return math.isfinite(value)
        case str():
            return "\0" not in value and not any(
                "\ud800" <= character <= "\udfff" for character in value
            )
        case _:
            return False


def validate_setting_key(
    key: str, *, path: tuple[str, ...] = ("key",), index: int | None = None
) -> str:
    """Return the key of a defined or custom setting.

    Raises InvalidInput if it is unknown; the message of a renamed key has its new name.
    """
    if key in DEFINITIONS or (len(key) <= MAX_KEY_LENGTH and CUSTOM_KEY_PATTERN.fullmatch(key)):
        return key
    message = (
        f"The setting does not exist. The key of a custom setting begins with `{CUSTOM_PREFIX}`."
    )
    if key in RENAMED_KEYS:
        message = rename_message(key)
    raise InvalidInput(message, constraint=ValidationConstraint.UNKNOWN, path=path, index=index)


def type_of_custom_value(value: SettingJson) -> SettingKind:
    """The type of a custom setting's value: BOOLEAN, NUMBER or LIST, and STRING for all others."""
    if isinstance(value, bool):
        return SettingKind.BOOLEAN
    if isinstance(value, int | float):
        return SettingKind.NUMBER
    return SettingKind.LIST if isinstance(value, list) else SettingKind.STRING


class StoredOptions(NamedTuple):
    """The options with the stored values, and the keys whose values can't be used."""

    options: Options
    unusable_keys: list[str]


def options_with_stored_values(
    initial_options: Options, values_by_key: Mapping[str, Any]
) -> StoredOptions:
    """Return the options with the stored values, and the keys of unusable values."""
    invalid_keys = []
    option_values: dict[str, Any] = {}
    for key, value in values_by_key.items():
        try:
            if not key.startswith(CUSTOM_PREFIX):
                option_values[DEFINITIONS[key].option] = DEFINITIONS[key].parse_value(value)
        except (KeyError, InvalidInput):
            invalid_keys.append(key)
    return StoredOptions(replace(initial_options, **option_values), invalid_keys)
