"""Texts in SQL: what is in them, whatever its case, alike on both stores."""

import re
from typing import Any

from sqlalchemy import ColumnElement, func

from models.errors import Invalid

LONGEST = 1000  # characters: the store reads a pattern for seconds that is much longer


def within(column: Any, part: str) -> ColumnElement[bool]:
    """Whether `part` is in the text. SQLite knows the case of ASCII only: we spell it out.

    Raises Invalid where the part has more than 1000 characters.
    """
    if len(part) > LONGEST:
        text = f"what is looked for has at most {LONGEST} characters"
        raise Invalid(text, constraint="max", path=["filter"])
    if part.isascii():
        return func.lower(column).contains(part.lower(), autoescape=True)
    found: ColumnElement[bool] = column.regexp_match("".join(map(_either, part)))
    return found


def _either(letter: str) -> str:
    cases = sorted({form for form in (letter, letter.lower(), letter.upper()) if len(form) == 1})
    return f"[{''.join(cases)}]" if len(cases) > 1 else re.escape(letter)
