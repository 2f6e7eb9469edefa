"""Comparisons of texts in SQL, the same on both databases; validation of texts and tags."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, String, exists, false, func, or_, select

from models.errors import Invalid
from models.store.text_folding import fold_text

LABEL = 128  # characters
LABELS = 100  # of one object
_ODD = re.compile("[\0\ud800-\udfff]")
LONGEST = 1000  # characters: a much longer pattern takes the database seconds


def within(column: Any, part: str) -> ColumnElement[bool]:
    """SQL: `part` is in the text, compared without accents and case.

    A part of invisible characters alone is in no text. Raises Invalid if the part has more than
    1,000 characters.
    """
    if len(part) > LONGEST:
        text = f"what is looked for has at most {LONGEST} characters"
        raise Invalid(text, constraint="max", path=["filter"])
    asked = fold_text(part)
    if part and not asked:
        return false()
    return func.fold_text(column, type_=String).contains(asked, autoescape=True)


def same(column: Any, text: str) -> ColumnElement[bool]:
    """SQL: the text is equal in any case. Accents count, since tags differ by them."""
    if text.isascii():
        return func.lower(column) == text.lower()
    found: ColumnElement[bool] = column.regexp_match(f"^{''.join(map(_either, text))}$")
    return found


def holding(
    dialect: str, column: Any, fits: Callable[[Any, str], Any], texts: Sequence[str]
) -> ColumnElement[bool]:
    """SQL: one of the texts in a column of JSON lists fits one of `texts`.

    `fits` compares an item with a text.
    """
    taken = {"sqlite": func.json_each, "postgresql": func.jsonb_array_elements_text}
    each = taken[dialect](column).table_valued("value")
    alike = or_(*(fits(each.c.value, text.strip()) for text in texts))
    return exists(select(each.c.value).where(alike))


def checked(text: str | None, *, most: int, path: Sequence[str]) -> str | None:
    """Return a text for people, trimmed; None if it is empty.

    Raises Invalid if it is too long or can't be stored.
    """
    text = (text or "").strip()
    if len(text) > most or _ODD.search(text):
        words = f"at most {most} characters, and none that no store takes"
        raise Invalid(words, constraint="length", path=path)
    return text or None


def labels(tags: Sequence[str], *, path: Sequence[str]) -> list[str]:
    """Return tags in their first spelling, sorted, each once in any case. Raises Invalid."""
    if len(tags) > LABELS:
        raise Invalid(f"at most {LABELS} tags", constraint="max", path=path)
    for index, tag in enumerate(tags):
        if not 0 < len(tag.strip()) <= LABEL or _ODD.search(tag):
            words = f"a tag has 1 to {LABEL} characters"
            raise Invalid(words, constraint="length", path=path, index=index)
    spelled = {tag.strip().casefold(): tag.strip() for tag in reversed(tags)}
    return sorted(spelled.values())


def _either(letter: str) -> str:
    """Return a regular expression for both cases of a letter."""
    cases = sorted({form for form in (letter, letter.lower(), letter.upper()) if len(form) == 1})
    return f"[{''.join(cases)}]" if len(cases) > 1 else re.escape(letter)
