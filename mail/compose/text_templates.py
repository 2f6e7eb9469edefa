"""Texts with placeholders such as {{name}}, for mail merge."""

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from models.errors import InvalidInput
from models.validation_constraints import ValidationConstraint

MAX_VALUES = 1000  # of one message
MAX_VALUE_LENGTH = 64 << 10  # characters

_NAME = re.compile(r"[^{}\x00-\x1f\x7f]{1,128}")
_PLACEHOLDER = re.compile(r"\{\{([^{}]{0,256})\}\}")


def validated_value_texts(values: Mapping[str, Any], path: Sequence[str]) -> dict[str, str]:
    """Return the values as strings.

    Raises InvalidInput if a value is no string, number, boolean or null, or if a limit is exceeded.
    """
    if len(values) > MAX_VALUES:
        raise InvalidInput(
            f"A template has at most {MAX_VALUES} values.",
            constraint=ValidationConstraint.MAX,
            path=path,
        )
    return {
        name.strip(): _text_of_valid_placeholder(name, value, path)
        for name, value in values.items()
    }


def _text_of_valid_placeholder(name: str, value: Any, path: Sequence[str]) -> str:
    """Return the text that replaces a placeholder. Raises InvalidInput."""
    if not _NAME.fullmatch(name) or not name.strip():
        raise InvalidInput(
            "A name must have from 1 to 128 characters, without braces.",
            constraint=ValidationConstraint.PATTERN,
            path=path,
        )
    path = [*path, name]
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str | int | float):
        raise InvalidInput(
            "A value must be a string, a number or a boolean.",
            constraint=ValidationConstraint.TYPE,
            path=path,
        )
    text = str(value)
    if len(text) > MAX_VALUE_LENGTH or "\0" in text:
        raise InvalidInput(
            f"A value has at most {MAX_VALUE_LENGTH} characters, without NUL.",
            constraint=ValidationConstraint.MAX,
            path=path,
        )
    return text


def fill_placeholders(
    text: str | None,
    values: Mapping[str, str],
    path: str,
    *,
    max_length: int,
    escape_html: bool = False,
) -> str | None:
    """Replace the placeholders of a text once; values are not templates.

    With `escape_html` values are escaped. Raises InvalidInput for a placeholder without a value,
    and if the text becomes longer than `max_length` characters.
    """
    if not text or "{{" not in text:
        return text
    size = len(text)

    def placeholder_value(placeholder: re.Match[str]) -> str:
        nonlocal size
        name = placeholder[1].strip()
        if name not in values:
            raise InvalidInput(
                f"The value {name[:128]!r} is missing.",
                constraint=ValidationConstraint.TEMPLATE,
                path=[path],
            )
        text = html.escape(values[name]) if escape_html else values[name]
        size += len(text) - len(placeholder[0])
        if size > max_length:
            raise InvalidInput(
                f"The text has at most {max_length} bytes.",
                constraint=ValidationConstraint.MAX,
                path=[path],
            )
        return text

    return _PLACEHOLDER.sub(placeholder_value, text)
