"""One rule for comparing texts in searches: without accents, case and invisible characters.

`fold_text` exists three times with the same results: here, as a function of each SQLite
connection, and as a function of the PostgreSQL database (migrations/first_tables/postgresql.sql).
"""

import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain
from typing import Any

from sqlalchemy import String
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

FUNCTION_NAME = "fold_text"
PART_LENGTH = 65_536  # characters
# Soft hyphen, tatweel, joiners, direction marks, variation selectors, byte order mark
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u0640\u180e\u200c-\u200f\u202a-\u202e\u2060-\u206f\u20e3\ufe00-\ufe0f\ufeff]"
)
COLLATIONS = ("und-x-icu", "C.utf8", "C.UTF-8", "default")  # for lower(), the best first
DROP_FUNCTION = f"DROP FUNCTION {FUNCTION_NAME}(text)"


@cache
def dropped_characters() -> frozenset[str]:
    """Return the combining accents and invisible characters. Vowel signs are not among them."""
    codes = chain(range(0x80, 0x3400), range(0xA000, 0xAC00), range(0xF900, 0x1FC00))
    return frozenset(
        c for c in map(chr, codes) if unicodedata.combining(c) or _INVISIBLE.fullmatch(c)
    )


def character_ranges(characters: Sequence[str]) -> str:
    """Return sorted characters as ranges between the brackets of a regular expression."""
    code_points = set(characters)
    starts = [c for c in characters if chr(ord(c) - 1) not in code_points]
    range_ends = [c for c in characters if chr(ord(c) + 1) not in code_points]
    return "".join(f"{a}-{b}" for a, b in zip(starts, range_ends, strict=True))


def fold_text(text: str) -> str:
    """Return the text in NFKC, case folded, without accents and invisible characters."""
    if text.isascii():
        return text.lower()
    if len(text) > PART_LENGTH:
        return "".join(map(fold_text, _text_parts(text)))
    plain = unicodedata.normalize("NFKD", text).casefold()
    for character in dropped_characters().intersection(plain):  # a text has few different ones
        plain = plain.replace(character, "")
    return unicodedata.normalize("NFC", plain)


def _text_parts(text: str) -> Iterator[str]:
    """Cut a long text at spaces, since normalizing a text blocks all other threads."""
    start = 0
    while start < len(text):
        blank = text.rfind(" ", start, start + PART_LENGTH)
        end = blank + 1 if blank >= start else start + PART_LENGTH
        yield text[start:end]
        start = end


def add_fold_text_to_sqlite(connection: Any) -> None:
    """Make `fold_text` a function of this SQLite connection."""
    connection.create_function(FUNCTION_NAME, 1, _fold_sql_value, deterministic=True)


def _fold_sql_value(value: Any) -> str | None:
    return None if value is None else fold_text(str(value))


class FoldedText(FunctionElement[str]):
    """SQL: `fold_text` of a column, in the order of code points.

    It is many times faster than a call of the function, which texts in ASCII don't need.
    """

    type = String()
    name = "folded_text"
    inherit_cache = True


@compiles(FoldedText, "sqlite")
def _compile_for_sqlite(element: FoldedText, compiler: SQLCompiler, **options: Any) -> str:
    value = compiler.process(element.clauses, **options)
    is_ascii = f"length(CAST({value} AS BLOB)) = length({value})"
    return f"(CASE WHEN {is_ascii} THEN lower({value}) ELSE {FUNCTION_NAME}({value}) END)"


@compiles(FoldedText, "postgresql")
def _compile_for_postgres(element: FoldedText, compiler: SQLCompiler, **options: Any) -> str:
    value = compiler.process(element.clauses, **options)
    is_ascii = f"octet_length({value}) = length({value})"
    folded = f'lower({value} COLLATE "C")'
    return f'((CASE WHEN {is_ascii} THEN {folded} ELSE {FUNCTION_NAME}({value}) END) COLLATE "C")'


def create_fold_text_function_sql(collation: str) -> str:
    """Return the SQL that creates `fold_text` in PostgreSQL.

    PostgreSQL has no case folding before version 18. It uses lower(), and replaces the characters
    for which case folding differs. `collation` is one of COLLATIONS.
    """
    single: list[tuple[str, str]] = []
    lower = f'lower(normalize(value, NFKD) COLLATE "{collation}")'
    for code in chain(range(0x80, 0xD800), range(0xE000, sys.maxunicode + 1)):
        character = chr(code)
        if unicodedata.normalize("NFKD", character) != character:
            continue
        lowered, folded = character.lower(), character.casefold()
        if lowered == folded:
            continue
        if len(folded) > 1:
            lower = f"replace({lower}, '{lowered}', '{folded}')"
        else:
            single.append((lowered, folded))
    from_, lower_letters = ("".join(characters) for characters in zip(*single, strict=True))
    dropped = character_ranges(sorted(dropped_characters()))
    return (
        f"CREATE FUNCTION {FUNCTION_NAME}(value text) RETURNS text LANGUAGE sql IMMUTABLE"
        " PARALLEL SAFE RETURNS NULL ON NULL INPUT AS $$"
        " SELECT (CASE WHEN octet_length(value) = length(value)"
        f' THEN lower(value COLLATE "{collation}") ELSE normalize(regexp_replace('
        f"translate({lower}, '{from_}', '{lower_letters}'), '[{dropped}]', '', 'g'), NFC) END)"
        ' COLLATE "default" $$'
    )
