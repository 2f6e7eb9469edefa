"""Texts in SQL: parts of texts, compared alike on both stores."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, String, exists, false, func, or_, select

from models.errors import Invalid
from models.store.text_folding import fold_text

LABEL = 128  # characters of a tag
LABELS = 100  # of one thing
_ODD = re.compile("[\0\ud800-\udfff]")  # what no store takes
LONGEST = 1000  # characters: the store reads a pattern for seconds that is much longer


def within(column: Any, part: str) -> ColumnElement[bool]:
    """Return SQL: `part` is in the text, compared without accents and case.

    A part of invisible characters alone is in no text. Raises Invalid if the part has more
    than 1,000 characters.
    """
    if len(part) > LONGEST:
        text = f"what is looked for has at most {LONGEST} characters"
        raise Invalid(text, constraint="max", path=["filter"])
    asked = fold_text(part)
    if part and not asked:
        return false()
    return func.fold_text(column, type_=String).contains(asked, autoescape=True)


def same(column: Any, text: str) -> ColumnElement[bool]:
    """Return SQL: the text is this one in any case. Accents count: tags differ by them."""
    if text.isascii():
        return func.lower(column) == text.lower()
    found: ColumnElement[bool] = column.regexp_match(f"^{''.join(map(_either, text))}$")
    return found


def holding(
    dialect: str, column: Any, fits: Callable[[Any, str], Any], texts: Sequence[str]
) -> ColumnElement[bool]:
    """Whether one of the texts in a column of lists fits one of these."""
    taken = {"sqlite": func.json_each, "postgresql": func.jsonb_array_elements_text}
    each = taken[dialect](column).table_valued("value")
    alike = or_(*(fits(each.c.value, text.strip()) for text in texts))
    return exists(select(each.c.value).where(alike))


def checked(text: str | None, *, most: int, path: Sequence[str]) -> str | None:
    """A text for people, trimmed; None where nothing is left, Invalid where it cannot be kept."""
    text = (text or "").strip()
    if len(text) > most or _ODD.search(text):
        words = f"at most {most} characters, and none that no store takes"
        raise Invalid(words, constraint="length", path=path)
    return text or None


def labels(tags: Sequence[str], *, path: Sequence[str]) -> list[str]:
    """Labels in their first spelling, sorted, each once in any case."""
    if len(tags) > LABELS:
        raise Invalid(f"at most {LABELS} tags", constraint="max", path=path)
    for index, tag in enumerate(tags):
        if not 0 < len(tag.strip()) <= LABEL or _ODD.search(tag):
            words = f"a tag has 1 to {LABEL} characters"
            raise Invalid(words, constraint="length", path=path, index=index)
    spelled = {tag.strip().casefold(): tag.strip() for tag in reversed(tags)}
    return sorted(spelled.values())


def _either(letter: str) -> str:
    cases = sorted({form for form in (letter, letter.lower(), letter.upper()) if len(form) == 1})
    return f"[{''.join(cases)}]" if len(cases) > 1 else re.escape(letter)
