"""The words of messages and of search queries, for both database dialects.

A word is a run of letters and digits, without accents and case; each emoji is a word. Chinese,
Japanese, Thai, Lao, Khmer and Burmese have no spaces between words: a run of their letters is
indexed as its pairs and its last letter, and searched as its pairs.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, pairwise
from typing import NamedTuple

from mail.text.run_lengths import longer
from models.search.text_index import APART, owner
from models.store.text_folding import character_ranges, dropped_characters, fold_text

LONGEST = 64  # letters of a word
MOST = 16_000  # words with their positions: PostgreSQL counts 16,383
LAST = 16_383  # PostgreSQL's position of all later words
MOSTLY = 1.3  # bytes per character of a text that is mostly not ASCII
EACH = 255  # positions of one word that a tsvector keeps
BYTES = 512 * 1024  # of distinct words: a tsvector has at most 1 MB

_PLAIN = re.compile(r"[^\W_]+")
_BLANKS = {code: " " for code in range(0x80) if not chr(code).isalnum()}
# The same for UTF-8 bytes, in lower case; bytes that are not ASCII stay.
_LOWER = bytes(ord(_BLANKS.get(code, chr(code).lower())) for code in range(0x80))
_BLANKED = _LOWER + bytes(range(0x80, 0x100))
_BETWEEN = " \n"
_PLACES = [str(place) for place in range(1, MOST + 1)]
_MIXED = re.compile("[\u0483-\u1dff\u20d0-\u2bff\ua000-\uabff\U00010000-\U0001fbff]")
_BEYOND = r"(?![\x00-\x7f])"
_OTHER = r"(?![\x00-/:-@\[-`{-\x7f])"  # skips ASCII separators quickly
_UNDIVIDED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+"
)
_TERM = re.compile(r'(-?)(?:"([^"]*)"?|([^\s"]+))')


@dataclass(frozen=True, slots=True)
class Term:
    """Adjacent words; the last can be a prefix. Negated: they must not occur."""

    words: tuple[str, ...]
    prefix: bool = False
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Every:
    """All parts match."""

    parts: tuple["Sought", ...]


@dataclass(frozen=True, slots=True)
class Some:
    """At least one part matches."""

    parts: tuple["Sought", ...]


Sought = Term | Every | Some


class Words(NamedTuple):
    """The words of a message: the first 16,000 in order, and the other distinct ones."""

    first: Sequence[str]
    others: Collection[str]


@cache
def _beyond_ascii() -> re.Pattern[str]:
    r"""Return the pattern of words with vowel signs and of emoji, which `\w` leaves out."""
    dropped = dropped_characters()
    marks, symbols = [], []
    for code in chain(range(0x80, 0x3400), range(0xA000, 0xAC00), range(0xF900, 0x1FC00)):
        letter = chr(code)
        kind = unicodedata.category(letter)
        if letter in dropped:
            continue
        if kind[0] == "M":
            marks.append(letter)
        elif kind == "So" and (0x2100 <= code < 0x2C00 or code >= 0x1F000):  # noqa: PLR2004
            symbols.append(letter)
    mark, symbol = map(character_ranges, (marks, symbols))
    return re.compile(rf"{_OTHER}(?:[^\W_]+|[{mark}])(?:{_BEYOND}[{mark}]+[^\W_]*)*|[{symbol}]")


def _runs(text: str) -> Iterator[list[str]]:
    """Yield the words of a text; an undivided run as its pairs and its last letter."""
    if text.isascii():  # only the case is folded
        for run in _PLAIN.findall(text.lower()):
            yield [run[:LONGEST]]
        return
    yield from _runs_of(fold_text(text))


def _runs_of(text: str) -> Iterator[list[str]]:
    """Yield the words of a folded text; an undivided run as its pairs and its last letter."""
    for run in (_beyond_ascii() if _MIXED.search(text) else _PLAIN).findall(text):
        if run.isascii():
            yield [run[:LONGEST]]
            continue
        at = 0
        for undivided in _UNDIVIDED.finditer(run):
            if undivided.start() > at:
                yield [run[at : undivided.start()][:LONGEST]]
            letters = undivided.group()
            yield [*(a + b for a, b in pairwise(letters)), letters[-1]]
            at = undivided.end()
        if at < len(run):
            yield [run[at:][:LONGEST]]


def words(text: str) -> list[str]:
    """Return the words of a text in order, in the form that the index stores."""
    if text.isascii():  # str methods need a tenth of the time
        plain = text.lower().translate(_BLANKS)
        return _cut(plain.split()) if longer(plain, " ", LONGEST) else plain.split()
    # Only parts that are not ASCII are folded and split by patterns, unless they are most of it.
    raw = text.encode(errors="surrogatepass")
    if len(raw) > MOSTLY * len(text):
        return _cut(list(chain.from_iterable(_divided(fold_text(text)))))
    found = raw.translate(_BLANKED).decode(errors="surrogatepass").split()
    foreign = [nth for nth, part in enumerate(found) if not part.isascii()]
    if not foreign:
        return _cut(found)
    # a space before the newline, since `fold_text` splits long texts at spaces
    plain = fold_text(_BETWEEN.join([found[nth] for nth in foreign]))
    return _cut(_put_in(found, foreign, _divided(plain)))


def _divided(plain: str) -> Iterator[Sequence[str]]:
    """Yield the words of each part of a folded text."""
    parts = plain.split(_BETWEEN)
    if _UNDIVIDED.search(plain):
        return (list(chain.from_iterable(_runs_of(part))) for part in parts)
    pattern = _beyond_ascii() if _MIXED.search(plain) else _PLAIN
    return ((part,) if part.isalnum() else pattern.findall(part) for part in parts)


def _put_in(
    found: Sequence[str], places: Sequence[int], words: Iterable[Sequence[str]]
) -> list[str]:
    """Return the words, with those at the indexes replaced by other words."""
    made, at = list[str](), 0
    for place, some in zip(places, words, strict=True):
        made += found[at:place]
        made += some
        at = place + 1
    return made + list(found[at:])


def _cut(found: list[str]) -> list[str]:
    if found and len(max(found, key=len)) > LONGEST:
        return [word[:LONGEST] for word in found]
    return found


def words_of(text: str) -> Words:
    """Return the words of a message's text, within the limits of the index."""
    found = words(text)
    first = found[:MOST]
    if len(found) == len(first):
        return Words(first, ())
    known = set(first)
    room = BYTES - sum(len(word.encode()) for word in known)
    others: dict[str, None] = {}
    for word in found[MOST:]:
        if word not in known and word not in others:
            room -= len(word.encode())
            if room < 0:
                break
            others[word] = None
    return Words(first, others)


def indexed(dialect: str, user_id: int, found: Words) -> dict[str, str]:
    """Return the index columns `owner` and `words` of a message."""
    listed = _fts5_words(found) if dialect == "sqlite" else _tsvector(user_id, found)
    return {"owner": owner(user_id), "words": listed}


def _fts5_words(found: Words) -> str:
    """Return the words for FTS5. A separator keeps unordered words from being adjacent."""
    return " ".join([*found.first, *(f"{APART} {word}" for word in found.others)])


def _tsvector(user_id: int, found: Words) -> str:
    """Return the words as a tsvector.

    A word with too many positions continues as a lexeme with a number after it.
    """
    places: defaultdict[str, list[str]] = defaultdict(list)
    for word, place in zip(found.first, _PLACES, strict=False):
        places[word].append(place)
    lexemes = [f"'{owner(user_id)}'"]
    for word, at in places.items():
        for start in range(0, len(at), EACH):
            name = f"{word}_{start // EACH}" if start else word
            lexemes.append(f"'{name}':{','.join(at[start : start + EACH])}")
    lexemes += [f"'{word}':{LAST}" for word in found.others]
    return " ".join(lexemes)


def terms(query: str) -> list[Term]:
    """Parse a query: words, "phrases", prefixes such as begin*, and -excluded words."""
    found = []
    for minus, phrase, word in _TERM.findall(query):
        term = term_of(phrase or word, begun=not phrase and word.endswith("*"))
        if term:
            found.append(Term(term.words, term.prefix, bool(minus)))
    return found


def term_of(text: str, *, begun: bool = False) -> Term | None:
    """Return the term of adjacent words, None if the text has no words."""
    runs = list(_runs(text))
    if not runs:
        return None
    last = runs[-1]
    if _UNDIVIDED.fullmatch(last[-1]):  # a longer run contains the same pairs
        begun = len(last) == 1
        runs[-1] = last[:-1] or last
    return Term(tuple(chain.from_iterable(runs)), begun)


def written(dialect: str, owners: Iterable[int], sought: Sought) -> str:
    """Return the query in the language of the index, limited to the mail of these users."""
    if dialect == "sqlite":
        whose = " OR ".join(f'"{owner(key)}"' for key in owners)
        return f"({whose}) AND {_fts5(sought, f'({whose})')}"
    whose = " | ".join(f"'{owner(key)}'" for key in owners)
    return f"({whose}) & {_tsquery(sought)}"


def _fts5(sought: Sought, all_: str) -> str:
    match sought:
        case Term():
            phrase = f'"{" ".join(sought.words)}"'
            if sought.prefix:  # limited to `words`, since it could be a prefix of an owner
                phrase = f"words:{phrase}*"
            return f"({all_} NOT {phrase})" if sought.negated else phrase
        case Every():
            return f"({' AND '.join(_fts5(part, all_) for part in sought.parts)})"
        case Some():
            return f"({' OR '.join(_fts5(part, all_) for part in sought.parts)})"


def _tsquery(sought: Sought) -> str:
    match sought:
        case Term(words=(word,)):
            text = f"'{word}'{':*' if sought.prefix else ''}"
            return f"!{text}" if sought.negated else text
        case Term():
            lexemes = [f"('{word}' | '{word}_':*)" for word in sought.words]
            if sought.prefix:
                lexemes[-1] = f"'{sought.words[-1]}':*"
            return f"{'!' if sought.negated else ''}({' <-> '.join(lexemes)})"
        case Every():
            return f"({' & '.join(map(_tsquery, sought.parts))})"
        case Some():
            return f"({' | '.join(map(_tsquery, sought.parts))})"


class Places:
    """The positions of the words of a message, for searches before it is indexed."""

    __slots__ = ("_at",)

    def __init__(self, found: Words) -> None:
        self._at: Mapping[str, list[int]] = {word: [] for word in (*found.first, *found.others)}
        for place, word in enumerate(found.first):
            self._at[word].append(place)

    def holds(self, sought: Sought) -> bool:
        """True if the message matches, by the same rules as the index."""
        match sought:
            case Term():
                return self._has(sought) is not sought.negated
            case Every():
                return all(map(self.holds, sought.parts))
            case Some():
                return any(map(self.holds, sought.parts))

    def _has(self, term: Term) -> bool:
        *begin, last = term.words
        ends = [w for w in self._at if w.startswith(last)] if term.prefix else [last]
        if not begin:
            return any(word in self._at for word in ends)
        found: set[int] | None = None
        for nth, word in enumerate(begin):
            at = {place - nth for place in self._at.get(word, ())}
            found = at if found is None else found & at
        rest = {place - len(begin) for word in ends for place in self._at.get(word, ())}
        return bool(rest.intersection(found or ()))


def standing(text: str, wanted: Sequence[Term]) -> list[Term]:
    """Return the terms that occur in a text.

    Most texts are not split: a substring search rules them out.
    """
    plain = fold_text(text)
    likely = [term for term in wanted if all(word in plain for word in term.words)]
    if not likely:
        return []
    places = Places(words_of(text))
    return [term for term in likely if places.holds(term)]
