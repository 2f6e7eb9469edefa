"""Comparisons of texts in SQL, the same on both databases; validation of texts and tags."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, String, exists, false, func, or_, select

from models.errors import InvalidInput
from models.store.text_folding import fold_text
from models.validation_constraints import ValidationConstraint

MAX_TAG_LENGTH = 128  # characters
MAX_TAGS = 100  # of one object
_NUL_OR_SURROGATE = re.compile("[\0\ud800-\udfff]")
MAX_PLAIN_OR = 50  # conditions
MAX_SEARCH_LENGTH = 1000  # characters: a much longer pattern takes the database seconds


def contains_text_sql(column: Any, part: str) -> ColumnElement[bool]:
    """SQL: `part` is in the text, compared without accents and case.

    A part of invisible characters alone is in no text. Raises InvalidInput if the part has more
    than 1,000 characters.
    """
    if len(part) > MAX_SEARCH_LENGTH:
        text = f"The search text has at most {MAX_SEARCH_LENGTH} characters."
        raise InvalidInput(text, constraint=ValidationConstraint.MAX, path=["filter"])
    folded = fold_text(part)
    if part and not folded:
        return false()
    return func.fold_text(column, type_=String).contains(folded, autoescape=True)


def equals_ignoring_case_sql(column: Any, text: str) -> ColumnElement[bool]:
    """SQL: the text is equal in any case. Accents count, since tags differ by them."""
    if text.isascii():
        return func.lower(column) == text.lower()
    condition: ColumnElement[bool] = column.regexp_match(
        f"^{''.join(map(_either_case_pattern, text))}$"
    )
    return condition


def any_holds_sql(conditions: Sequence[ColumnElement[bool]]) -> ColumnElement[bool]:
    """SQL: one of the conditions holds. SQLite limits the depth of an expression to 1,000.

    A plain OR of n conditions has the depth n. The halves of this one are in parentheses.
    """
    if len(conditions) <= MAX_PLAIN_OR:
        return or_(false(), *conditions)
    middle = len(conditions) // 2
    halves = conditions[:middle], conditions[middle:]
    return or_(*(any_holds_sql(half).self_group() for half in halves))


def any_item_fits_sql(
    dialect: str, column: Any, fits: Callable[[Any, str], Any], texts: Sequence[str]
) -> ColumnElement[bool]:
    """SQL: one of the texts in a column of JSON lists fits one of `texts`.

    `fits` compares an item with a text.
    """
    list_functions = {"sqlite": func.json_each, "postgresql": func.jsonb_array_elements_text}
    items = list_functions[dialect](column).table_valued("value")
    condition = any_holds_sql([fits(items.c.value, text.strip()) for text in texts])
    return exists(select(items.c.value).where(condition))


def validated_trimmed_text(text: str | None, *, max_length: int, path: Sequence[str]) -> str | None:
    """Return a text for people, trimmed; None if it is empty.

    Raises InvalidInput if it is too long or can't be stored.
    """
    text = (text or "").strip()
    if len(text) > max_length or _NUL_OR_SURROGATE.search(text):
        message = f"Must have at most {max_length} characters, without NUL and unpaired surrogates."
        raise InvalidInput(message, constraint=ValidationConstraint.LENGTH, path=path)
    return text or None


def validated_distinct_tags(tags: Sequence[str], *, path: Sequence[str]) -> list[str]:
    """Return tags in their first spelling, sorted, each once in any case. Raises InvalidInput."""
    if len(tags) > MAX_TAGS:
        raise InvalidInput(
            f"At most {MAX_TAGS} tags are allowed.", constraint=ValidationConstraint.MAX, path=path
        )
    for index, tag in enumerate(tags):
        if not 0 < len(tag.strip()) <= MAX_TAG_LENGTH or _NUL_OR_SURROGATE.search(tag):
            message = f"A tag has from 1 to {MAX_TAG_LENGTH} characters."
            raise InvalidInput(
                message, constraint=ValidationConstraint.LENGTH, path=path, index=index
            )
    spelling_by_tag = {tag.strip().casefold(): tag.strip() for tag in reversed(tags)}
    return sorted(spelling_by_tag.values())


def _either_case_pattern(character: str) -> str:
    """Return a regular expression for both cases of a letter."""
    cases = sorted(
        {form for form in (character, character.lower(), character.upper()) if len(form) == 1}
    )
    return f"[{''.join(cases)}]" if len(cases) > 1 else re.escape(character)
