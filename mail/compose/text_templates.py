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
            f"at most {MAX_VALUES} values", constraint=ValidationConstraint.MAX, path=path
        )
    return {name.strip(): _value_text(name, value, path) for name, value in values.items()}


def _value_text(name: str, value: Any, path: Sequence[str]) -> str:
    """Return the text that replaces a placeholder. Raises InvalidInput."""
    if not _NAME.fullmatch(name) or not name.strip():
        raise InvalidInput(
            "a name has 1 to 128 characters, no braces",
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
            "a text, a number or a truth value", constraint=ValidationConstraint.TYPE, path=path
        )
    text = str(value)
    if len(text) > MAX_VALUE_LENGTH or "\0" in text:
        raise InvalidInput(
            f"at most {MAX_VALUE_LENGTH} characters, no NUL",
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

    def placeholder_value(place: re.Match[str]) -> str:
        nonlocal size
        name = place[1].strip()
        if name not in values:
            raise InvalidInput(
                f"there is no value of {name[:128]!r}",
                constraint=ValidationConstraint.TEMPLATE,
                path=[path],
            )
        found = html.escape(values[name]) if escape_html else values[name]
        size += len(found) - len(place[0])
        if size > max_length:
            raise InvalidInput(
                f"more than {max_length} bytes", constraint=ValidationConstraint.MAX, path=[path]
            )
        return found

    return _PLACEHOLDER.sub(placeholder_value, text)
