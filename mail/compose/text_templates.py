"""Texts with placeholders such as {{name}}, for mail merge."""

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from models.errors import Invalid

NAMES = 1000  # of one message
VALUE = 64 << 10  # characters

_NAME = re.compile(r"[^{}\x00-\x1f\x7f]{1,128}")
_PLACE = re.compile(r"\{\{([^{}]{0,256})\}\}")


def checked(given: Mapping[str, Any], path: Sequence[str]) -> dict[str, str]:
    """Return the values as strings.

    Raises Invalid if a value is no string, number, boolean or null, or if a limit is exceeded.
    """
    if len(given) > NAMES:
        raise Invalid(f"at most {NAMES} values", constraint="max", path=path)
    return {name.strip(): _written(name, value, path) for name, value in given.items()}


def _written(name: str, value: Any, path: Sequence[str]) -> str:
    """Return the text that replaces a placeholder. Raises Invalid."""
    if not _NAME.fullmatch(name) or not name.strip():
        raise Invalid("a name has 1 to 128 characters, no braces", constraint="pattern", path=path)
    path = [*path, name]
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str | int | float):
        raise Invalid("a text, a number or a truth value", constraint="type", path=path)
    text = str(value)
    if len(text) > VALUE or "\0" in text:
        raise Invalid(f"at most {VALUE} characters, no NUL", constraint="max", path=path)
    return text


def filled(
    text: str | None, values: Mapping[str, str], path: str, *, most: int, of_html: bool = False
) -> str | None:
    """Replace the placeholders of a text once; values are not templates.

    With `escape_html` values are escaped. Raises Invalid for a placeholder without a value, and if
    the text becomes longer than `max_length` characters.
    """
    if not text or "{{" not in text:
        return text
    size = len(text)

    def value(place: re.Match[str]) -> str:
        nonlocal size
        name = place[1].strip()
        if name not in values:
            raise Invalid(
                f"there is no value of {name[:128]!r}", constraint="template", path=[path]
            )
        found = html.escape(values[name]) if of_html else values[name]
        size += len(found) - len(place[0])
        if size > most:
            raise Invalid(f"more than {most} bytes", constraint="max", path=[path])
        return found

    return _PLACE.sub(value, text)
