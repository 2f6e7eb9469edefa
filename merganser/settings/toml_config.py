"""The settings file in TOML: keys are the names of settings in lower case, without MERGANSER_."""

import re
import tomllib
from typing import Any

VARIABLE_PREFIX = "MERGANSER_"
_ERROR_LINE = re.compile(r" \(at line (\d+), column \d+\)$")

TextOrTexts = str | tuple[str, ...]


class InvalidToml(Exception):
    """A line of TOML that can't be used. The text has no value of the file."""

    def __init__(self, line_number: int, reason: str) -> None:
        super().__init__(reason)
        self.line_number = line_number


def parse_toml(text: str) -> dict[str, tuple[TextOrTexts, int]]:
    """Parse TOML to the text and line number of each variable. Raises InvalidToml.

    Each value becomes the text that the variable would have, and a list a tuple of such texts.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        raise _syntax_error(text, str(problem)) from None
    except ValueError:  # Python's limit of digits
        raise InvalidToml(1, "a number has too many digits.") from None
    except RecursionError:
        raise InvalidToml(1, "lists or tables are nested too deeply.") from None
    values: dict[str, tuple[TextOrTexts, int]] = {}
    for key, value in table.items():
        line_number = _line_number_of_key(text, key)
        if key != key.lower() or key.startswith(VARIABLE_PREFIX.lower()):
            name = key.upper().removeprefix(VARIABLE_PREFIX).lower()
            raise InvalidToml(line_number, f"write the key {name} instead of {key}.")
        values[f"{VARIABLE_PREFIX}{key.upper()}"] = (
            _text_or_texts(value, line_number),
            line_number,
        )
    return values


def _syntax_error(text: str, message: str) -> InvalidToml:
    match = _ERROR_LINE.search(message)
    line_number = int(match[1]) if match else text.count("\n") + 1  # "at end of document"
    reason = _ERROR_LINE.sub("", message).removesuffix(" (at end of document)")
    return InvalidToml(line_number, f"this is no TOML: {reason}.")


def _line_number_of_key(text: str, key: str) -> int:
    """Return the first line that begins with a key or the table of this name; else 1."""
    beginning = re.compile(rf"""\s*\[*\s*["']?{re.escape(key)}["']?\s*[=.\]]""")
    lines = enumerate(text.split("\n"), 1)
    return next((number for number, line in lines if beginning.match(line)), 1)


def _text_or_texts(value: Any, line_number: int) -> TextOrTexts:
    if isinstance(value, list):
        return tuple(_scalar_text(item, line_number) for item in value)
    return _scalar_text(value, line_number)


def _scalar_text(value: Any, line_number: int) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int | float):
        return str(value)
    if not isinstance(value, str):
        raise InvalidToml(
            line_number, 'write a text such as "3 days", a number, true, false, or a list of these.'
        )
    if any(ord(character) < ord(" ") for character in value):
        raise InvalidToml(line_number, "the value has a control character.")
    return value
