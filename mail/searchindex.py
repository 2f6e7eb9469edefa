"""The words of a message and of a search, for both indexes alike.

A word is a run of letters and digits, without accents and case. Chinese, Japanese and Thai
do not divide words: a run of those is indexed, and searched, as its pairs of letters.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from models.searchindex import owner

LONGEST = 64  # letters of a word
MOST = 16_000  # words of a message: PostgreSQL counts 16,383 positions
TERMS = 32  # of a search

_WORD = re.compile(r"[^\W_]+")
_UNDIVIDED = re.compile("[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+")
_TERM = re.compile(r'(-?)(?:"([^"]*)"?|([^\s"]+))')


@dataclass(frozen=True, slots=True)
class Term:
    """Words in a row, the last perhaps only begun; or that they must not be there."""

    words: tuple[str, ...]
    prefix: bool = False
    negated: bool = False


def words(text: str) -> Iterator[str]:
    """The words of a text, in order."""
    if text.isascii():  # nothing to fold but case, nothing undivided
        for run in _WORD.findall(text.lower()):
            yield run[:LONGEST]
        return
    for run in _WORD.findall(_folded(text)):
        at = 0
        for undivided in _UNDIVIDED.finditer(run):
            if undivided.start() > at:
                yield run[at : undivided.start()][:LONGEST]
            yield from _pairs(undivided.group())
            at = undivided.end()
        if at < len(run):
            yield run[at:][:LONGEST]


def _folded(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text).casefold()
    kept = "".join(letter for letter in plain if not unicodedata.combining(letter))
    return unicodedata.normalize("NFC", kept)


def _pairs(run: str) -> Iterator[str]:
    if len(run) == 1:
        yield run
    for first, second in pairwise(run):
        yield first + second


def indexed(dialect: str, user_id: int, text: str) -> dict[str, str]:
    """What the index takes of a message of this user: its `owner` and `words`."""
    listed = [word for word, _ in zip(words(text), range(MOST), strict=False)]
    if dialect == "sqlite":
        return {"owner": owner(user_id), "words": " ".join(listed)}
    places: defaultdict[str, list[str]] = defaultdict(list)
    for place, word in enumerate(listed, 1):
        if len(places[word]) < 255:  # noqa: PLR2004 - what a tsvector keeps of one word
            places[word].append(str(place))
    lexemes = [f"'{owner(user_id)}'", *(f"'{w}':{','.join(at)}" for w, at in places.items())]
    return {"owner": owner(user_id), "words": " ".join(lexemes)}


def terms(query: str) -> list[Term]:
    """What a person asks for: words, "phrases", begun* words, and -none of these."""
    found = []
    for minus, phrase, word in _TERM.findall(query):
        text = phrase or word
        parts = tuple(words(text))
        if parts:
            found.append(Term(parts, not phrase and text.endswith("*"), bool(minus)))
    return found[:TERMS]


def written(dialect: str, user_id: int, asked: list[Term]) -> str:
    """The search in the language of the index, over the mail of this user alone."""
    if dialect == "sqlite":
        plain = [f"owner:{owner(user_id)}", *(_fts5(term) for term in asked if not term.negated)]
        text = " AND ".join(plain)
        for term in asked:
            text = f"({text}) NOT {_fts5(term)}" if term.negated else text
        return text
    return " & ".join([f"'{owner(user_id)}'", *(_tsquery(term) for term in asked)])


def _fts5(term: Term) -> str:
    return f'words:"{" ".join(term.words)}"{"*" if term.prefix else ""}'


def _tsquery(term: Term) -> str:
    lexemes = [f"'{word}'" for word in term.words]
    lexemes[-1] += ":*" if term.prefix else ""
    return ("!" if term.negated else "") + f"({' <-> '.join(lexemes)})"


def pattern(term: Term) -> str:
    """The term as a regular expression, for Python and PostgreSQL: for texts as they are."""
    parts = [""]
    for word in term.words:
        before = parts[-1]
        undivided = _UNDIVIDED.fullmatch(word)
        if before and undivided and before[-1] == word[0] and _UNDIVIDED.fullmatch(before):
            parts[-1] += word[1:]
        else:
            parts.append(word)
    runs = parts[1:]
    text = r"(\W|_)+".join("".join(map(_letter, _units(run))) for run in runs)
    start = "" if _UNDIVIDED.fullmatch(runs[0]) else r"(^|\W|_)"
    end = "" if term.prefix or _UNDIVIDED.fullmatch(runs[-1]) else r"($|\W|_)"
    return start + text + end


def _units(run: str) -> list[str]:
    return re.findall("ss|.", run)


def _letter(unit: str) -> str:
    if unit == "ss":
        return f"({_letter('s') * 2}|[ßẞ])"
    forms = "".join(sorted({unit, unit.upper()[:1], *_forms().get(unit, "")}))
    return f"[{forms}][\u0300-\u036f]*"


@cache
def _forms() -> Mapping[str, str]:
    """The letters that are folded to each letter."""
    forms: defaultdict[str, str] = defaultdict(str)
    for letter in map(chr, (*range(0x80, 0x2200), *range(0xFF00, 0xFFF0))):
        folded = _folded(letter)
        if len(folded) == 1 and folded != letter and letter.isalnum():
            forms[folded] += letter
    return forms
