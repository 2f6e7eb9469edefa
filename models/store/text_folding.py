"""One rule for comparing texts in searches: without accents, case and invisible characters.

A text is decomposed (Unicode NFKD) and case folded. Then combining accents and invisible
characters are dropped, and the letters of `_PLAIN_LETTERS`, which have no decomposition, are
replaced. `fold_text` exists three times with the same results: here, as a function of each SQLite
connection, and as a function of the PostgreSQL database. After a change of the rule, a migration
must call `recreate_fold_text_function` and fold again what is stored folded.
"""

import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain
from typing import Any

from sqlalchemy import Connection, String, text
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

FUNCTION_NAME = "fold_text"
PART_LENGTH = 65_536  # characters
BLOCK_SIZE = 256  # characters
# Soft hyphen, tatweel, joiners, direction marks, variation selectors, byte order mark
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u0640\u180e\u200c-\u200f\u202a-\u202e\u2060-\u206f\u20e3\ufe00-\ufe0f\ufeff]"
)
# Latin letters that Unicode doesn't decompose. Case folding replaces ß by ss.
_PLAIN_LETTERS = {
    character: plain
    for plain, letters in {
        "ae": "æ", "b": "ƀ", "d": "đð", "g": "ǥ", "h": "ħ", "i": "ıɨ", "j": "ɉ", "l": "łƚ",
        "n": "ŋ", "o": "øɵ", "oe": "œ", "r": "ɍ", "t": "ŧ", "th": "þ", "u": "ʉ", "y": "ɏ",
        "z": "ƶ",
    }.items()
    for character in letters
}  # fmt: skip
COLLATIONS = ("und-x-icu", "C.utf8", "C.UTF-8", "default")  # for lower(), the best first


@cache
def dropped_characters() -> frozenset[str]:
    """Return the combining accents and invisible characters. Vowel signs are not among them."""
    codes = chain(range(0x80, 0x3400), range(0xA000, 0xAC00), range(0xF900, 0x1FC00))
    return frozenset(
        c for c in map(chr, codes) if unicodedata.combining(c) or _INVISIBLE.fullmatch(c)
    )


@cache
def _replacements() -> dict[str, str]:
    """Return the replacements of single characters in a decomposed and case folded text."""
    return _PLAIN_LETTERS | dict.fromkeys(dropped_characters(), "")


@cache
def _replaced_characters() -> frozenset[str]:
    return frozenset(_replacements())


def character_ranges(characters: Sequence[str]) -> str:
    """Return sorted characters as ranges between the brackets of a regular expression."""
    code_points = set(characters)
    starts = [c for c in characters if chr(ord(c) - 1) not in code_points]
    range_ends = [c for c in characters if chr(ord(c) + 1) not in code_points]
    return "".join(f"{a}-{b}" for a, b in zip(starts, range_ends, strict=True))


def fold_text(text: str) -> str:
    """Return the text in NFKC, case folded, without accents and invisible characters.

    Letters such as ø and æ, which have no decomposition, become Latin letters without accents.
    """
    if text.isascii():
        return text.lower()
    if len(text) > PART_LENGTH:
        return "".join(map(fold_text, _text_parts(text)))
    plain = unicodedata.normalize("NFKD", text).casefold()
    for character in _replaced_characters().intersection(plain):  # a text has few different ones
        plain = plain.replace(character, _replacements()[character])
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


class AsciiLower(FunctionElement[str]):
    """SQL: a text with its ASCII letters in lower case."""

    type = String()
    name = "ascii_lower"
    inherit_cache = True


@compiles(AsciiLower, "sqlite")
def _compile_ascii_lower(element: AsciiLower, compiler: SQLCompiler, **options: Any) -> str:
    return f"lower({compiler.process(element.clauses, **options)})"  # changes ASCII only


@compiles(AsciiLower, "postgresql")
def _compile_ascii_lower_for_postgres(
    element: AsciiLower, compiler: SQLCompiler, **options: Any
) -> str:
    return f'lower({compiler.process(element.clauses, **options)} COLLATE "C")'


@cache
def _lowered_and_folded_characters() -> list[tuple[str, str]]:
    """Return lower case and case folding of each decomposed character for which they differ.

    Whole blocks are compared first: comparing each character would take three times as long.
    """
    pairs = []
    for start in range(0, sys.maxunicode + 1, BLOCK_SIZE):
        block = "".join(map(chr, range(start, start + BLOCK_SIZE)))
        if block.lower() == block.casefold():
            continue
        for character in block:
            lowered, folded = character.lower(), character.casefold()
            if lowered != folded and unicodedata.is_normalized("NFKD", character):
                pairs.append((lowered, folded))
    return pairs


def create_fold_text_function_sql(collation: str) -> str:
    """Return the SQL that creates `fold_text` in PostgreSQL.

    PostgreSQL has no case folding before version 18. It uses lower(), and replaces the characters
    for which case folding differs. `collation` is one of COLLATIONS.
    """
    single: list[tuple[str, str]] = []
    lower = f'lower(normalize(value, NFKD) COLLATE "{collation}")'
    for lowered, folded in _lowered_and_folded_characters():
        if len(folded) > 1:
            lower = f"replace({lower}, '{lowered}', '{folded}')"
        else:
            single.append((lowered, folded))
    for character, plain in _PLAIN_LETTERS.items():
        if len(plain) > 1:
            lower = f"replace({lower}, '{character}', '{plain}')"
        else:
            single.append((character, plain))
    from_, lower_letters = ("".join(characters) for characters in zip(*single, strict=True))
    dropped = character_ranges(sorted(dropped_characters()))
    return (
        f"CREATE OR REPLACE FUNCTION {FUNCTION_NAME}(value text) RETURNS text LANGUAGE sql"
        " IMMUTABLE PARALLEL SAFE RETURNS NULL ON NULL INPUT AS $$"
        " SELECT (CASE WHEN octet_length(value) = length(value)"
        f' THEN lower(value COLLATE "{collation}") ELSE normalize(regexp_replace('
        f"translate({lower}, '{from_}', '{lower_letters}'), '[{dropped}]', '', 'g'), NFC) END)"
        ' COLLATE "default" $$'
    )


def recreate_fold_text_function(connection: Connection) -> None:
    """Create `fold_text` in PostgreSQL, or replace it, with the first known collation."""
    usable = "collencoding IN (-1, pg_char_to_encoding(getdatabaseencoding()))"
    query = text(f"SELECT collname FROM pg_collation WHERE {usable}")  # noqa: S608
    names = set(connection.execute(query).scalars())
    collation = next(name for name in COLLATIONS if name in names)
    connection.exec_driver_sql(create_fold_text_function_sql(collation))
