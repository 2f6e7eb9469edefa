"""The words of messages and of search queries, for both database dialects.

A word is a run of letters and digits, without accents and case; each emoji is a word. Chinese,
Japanese, Thai, Lao, Khmer and Burmese have no spaces between words, and Korean joins particles to
words: a run of their letters is indexed as its pairs and its last letter, and searched as its
pairs.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, pairwise
from typing import NamedTuple

from mail.text.run_lengths import has_longer_run
from models.search.text_index import USER_WORD_END, user_token
from models.store.text_folding import character_ranges, dropped_characters, fold_text

MAX_WORD_LENGTH = 64  # letters of a word
MAX_ORDERED_WORDS = 16_000  # words with their positions: PostgreSQL counts 16,383
LAST_POSITION = 16_383  # PostgreSQL's position of all later words
NON_ASCII_BYTE_RATIO = 1.3  # bytes per character of a text that is mostly not ASCII
MAX_POSITIONS_PER_LEXEME = 255  # positions of one word that a tsvector keeps
MAX_UNORDERED_BYTES = 512 * 1024  # of distinct words: a tsvector has at most 1 MB

_WORD = re.compile(r"[^\W_]+")
_BLANKS = {code: " " for code in range(0x80) if not chr(code).isalnum()}
# The same for UTF-8 bytes, in lower case; bytes that are not ASCII stay.
_LOWER = bytes(ord(_BLANKS.get(code, chr(code).lower())) for code in range(0x80))
_BLANKED = _LOWER + bytes(range(0x80, 0x100))
_PART_SEPARATOR = " \n"
_POSITIONS = [str(word_position) for word_position in range(1, MAX_ORDERED_WORDS + 1)]
_HAS_MARKS_OR_SYMBOLS = re.compile("[\u0483-\u1dff\u20d0-\u2bff\ua000-\uabff\U00010000-\U0001fbff]")
_BEYOND = r"(?![\x00-\x7f])"
_OTHER = r"(?![\x00-/:-@\[-`{-\x7f])"  # skips ASCII separators quickly
_UNDIVIDED = re.compile(
    "[\u0e00-\u0eff\u1000-\u11ff\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff"
    "\U00020000-\U0003ffff]+"
)
_QUERY_TERM = re.compile(r'(-?)(?:"([^"]*)"?|([^\s"]+))')


@dataclass(frozen=True, slots=True)
class SearchTerm:
    """Adjacent words; the last can be a prefix. Negated: they must not occur."""

    words: tuple[str, ...]
    is_prefix: bool = False
    is_negated: bool = False


@dataclass(frozen=True, slots=True)
class AllOf:
    """All parts match."""

    parts: tuple["SearchExpression", ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """At least one part matches."""

    parts: tuple["SearchExpression", ...]


SearchExpression = SearchTerm | AllOf | AnyOf


class MessageWords(NamedTuple):
    """The words of a message: the first 16,000 in order, and the other distinct ones."""

    ordered: Sequence[str]
    unordered: Collection[str]


@cache
def _non_ascii_word_pattern() -> re.Pattern[str]:
    r"""Return the pattern of words with vowel signs and of emoji, which `\w` leaves out."""
    dropped = dropped_characters()
    mark_ranges, symbols = [], []
    for code in chain(range(0x80, 0x3400), range(0xA000, 0xAC00), range(0xF900, 0x1FC00)):
        character = chr(code)
        kind = unicodedata.category(character)
        if character in dropped:
            continue
        if kind[0] == "M":
            mark_ranges.append(character)
        elif kind == "So" and (0x2100 <= code < 0x2C00 or code >= 0x1F000):  # noqa: PLR2004
            symbols.append(character)
    mark_class, symbol = map(character_ranges, (mark_ranges, symbols))
    return re.compile(
        rf"{_OTHER}(?:[^\W_]+|[{mark_class}])(?:{_BEYOND}[{mark_class}]+[^\W_]*)*|[{symbol}]"
    )


def _query_runs(text: str) -> Iterator[list[str]]:
    """Yield the words of a text; an undivided run as its pairs and its last letter."""
    if text.isascii():  # only the case is folded
        for run in _WORD.findall(text.lower()):
            yield [run[:MAX_WORD_LENGTH]]
        return
    yield from _runs_of_folded(fold_text(text))


def _runs_of_folded(text: str) -> Iterator[list[str]]:
    """Yield the words of a folded text; an undivided run as its pairs and its last letter."""
    for run in (_non_ascii_word_pattern() if _HAS_MARKS_OR_SYMBOLS.search(text) else _WORD).findall(
        text
    ):
        if run.isascii():
            yield [run[:MAX_WORD_LENGTH]]
            continue
        at = 0
        for undivided in _UNDIVIDED.finditer(run):
            if undivided.start() > at:
                yield [run[at : undivided.start()][:MAX_WORD_LENGTH]]
            undivided_text = undivided.group()
            yield [*(a + b for a, b in pairwise(undivided_text)), undivided_text[-1]]
            at = undivided.end()
        if at < len(run):
            yield [run[at:][:MAX_WORD_LENGTH]]


def split_words(text: str) -> list[str]:
    """Return the words of a text in order, in the form that the index stores."""
    if text.isascii():  # str methods need a tenth of the time
        plain = text.lower().translate(_BLANKS)
        return (
            _truncate_words(plain.split())
            if has_longer_run(plain, " ", MAX_WORD_LENGTH)
            else plain.split()
        )
    # Only parts that are not ASCII are folded and split by patterns, unless they are most of it.
    raw = text.encode(errors="surrogatepass")
    if len(raw) > NON_ASCII_BYTE_RATIO * len(text):
        return _truncate_words(list(chain.from_iterable(_words_by_part(fold_text(text)))))
    words = raw.translate(_BLANKED).decode(errors="surrogatepass").split()
    foreign = [nth for nth, part in enumerate(words) if not part.isascii()]
    if not foreign:
        return _truncate_words(words)
    # a space before the newline, since `fold_text` splits long texts at spaces
    plain = fold_text(_PART_SEPARATOR.join([words[nth] for nth in foreign]))
    return _truncate_words(_replace_at(words, foreign, _words_by_part(plain)))


def _words_by_part(folded_text: str) -> Iterator[Sequence[str]]:
    """Yield the words of each part of a folded text."""
    parts = folded_text.split(_PART_SEPARATOR)
    if _UNDIVIDED.search(folded_text):
        return (list(chain.from_iterable(_runs_of_folded(part))) for part in parts)
    pattern = _non_ascii_word_pattern() if _HAS_MARKS_OR_SYMBOLS.search(folded_text) else _WORD
    return ((part,) if part.isalnum() else pattern.findall(part) for part in parts)


def _replace_at(
    original_words: Sequence[str], indexes: Sequence[int], replacements: Iterable[Sequence[str]]
) -> list[str]:
    """Return the words, with those at the indexes replaced by other words."""
    chunks, at = list[str](), 0
    for index, replacement in zip(indexes, replacements, strict=True):
        chunks += original_words[at:index]
        chunks += replacement
        at = index + 1
    return chunks + list(original_words[at:])


def _truncate_words(words: list[str]) -> list[str]:
    if words and len(max(words, key=len)) > MAX_WORD_LENGTH:
        return [word[:MAX_WORD_LENGTH] for word in words]
    return words


def message_words(text: str) -> MessageWords:
    """Return the words of a message's text, within the limits of the index."""
    words = split_words(text)
    first = words[:MAX_ORDERED_WORDS]
    if len(words) == len(first):
        return MessageWords(first, ())
    ordered_words = set(first)
    remaining_bytes = MAX_UNORDERED_BYTES - sum(len(word.encode()) for word in ordered_words)
    others: dict[str, None] = {}
    for word in words[MAX_ORDERED_WORDS:]:
        if word not in ordered_words and word not in others:
            remaining_bytes -= len(word.encode())
            if remaining_bytes < 0:
                break
            others[word] = None
    return MessageWords(first, others)


def index_values(dialect: str, user_id: int, words: MessageWords) -> dict[str, str]:
    """Return the index columns `owner` and `words` of a message."""
    listed = _fts5_words(words) if dialect == "sqlite" else _tsvector(user_id, words)
    return {"owner": user_token(user_id), "words": listed}


def _fts5_words(words: MessageWords) -> str:
    """Return the words for FTS5. A separator keeps unordered words from being adjacent."""
    return " ".join([*words.ordered, *(f"{USER_WORD_END} {word}" for word in words.unordered)])


def _tsvector(user_id: int, words: MessageWords) -> str:
    """Return the words as a tsvector.

    A word with too many positions continues as a lexeme with a number after it.
    """
    positions_by_word: defaultdict[str, list[str]] = defaultdict(list)
    for word, word_position in zip(words.ordered, _POSITIONS, strict=False):
        positions_by_word[word].append(word_position)
    lexemes = [f"'{user_token(user_id)}'"]
    for word, at in positions_by_word.items():
        for start in range(0, len(at), MAX_POSITIONS_PER_LEXEME):
            name = f"{word}_{start // MAX_POSITIONS_PER_LEXEME}" if start else word
            lexemes.append(f"'{name}':{','.join(at[start : start + MAX_POSITIONS_PER_LEXEME])}")
    lexemes += [f"'{word}':{LAST_POSITION}" for word in words.unordered]
    return " ".join(lexemes)


def parse_query(query: str) -> list[SearchTerm]:
    """Parse a query: words, "phrases", prefixes such as begin*, and -excluded words."""
    terms = []
    for minus, phrase, word in _QUERY_TERM.findall(query):
        term = term_from_text_or_none(phrase or word, is_prefix=not phrase and word.endswith("*"))
        if term:
            terms.append(SearchTerm(term.words, term.is_prefix, bool(minus)))
    return terms


def term_from_text_or_none(text: str, *, is_prefix: bool = False) -> SearchTerm | None:
    """Return the term of adjacent words, None if the text has no words."""
    runs = list(_query_runs(text))
    if not runs:
        return None
    last = runs[-1]
    if _UNDIVIDED.fullmatch(last[-1]):  # a longer run contains the same pairs
        is_prefix = len(last) == 1
        runs[-1] = last[:-1] or last
    return SearchTerm(tuple(chain.from_iterable(runs)), is_prefix)


def index_query(dialect: str, user_ids: Iterable[int], expression: SearchExpression) -> str:
    """Return the query in the language of the index, limited to the mail of these users."""
    if dialect == "sqlite":
        owner_terms = " OR ".join(f'"{user_token(key)}"' for key in user_ids)
        return f"({owner_terms}) AND {_fts5_query(expression, f'({owner_terms})')}"
    owner_terms = " | ".join(f"'{user_token(key)}'" for key in user_ids)
    return f"({owner_terms}) & {_tsquery(expression)}"


def _fts5_query(expression: SearchExpression, owners: str) -> str:
    match expression:
        case SearchTerm():
            phrase = f'"{" ".join(expression.words)}"'
            if expression.is_prefix:  # limited to `words`, since it could be a prefix of an owner
                phrase = f"words:{phrase}*"
            return f"({owners} NOT {phrase})" if expression.is_negated else phrase
        case AllOf():
            return f"({' AND '.join(_fts5_query(part, owners) for part in expression.parts)})"
        case AnyOf():
            return f"({' OR '.join(_fts5_query(part, owners) for part in expression.parts)})"


def _tsquery(expression: SearchExpression) -> str:
    match expression:
        case SearchTerm(words=(word,)):
            text = f"'{word}'{':*' if expression.is_prefix else ''}"
            return f"!{text}" if expression.is_negated else text
        case SearchTerm():
            lexemes = [f"('{word}' | '{word}_':*)" for word in expression.words]
            if expression.is_prefix:
                lexemes[-1] = f"'{expression.words[-1]}':*"
            return f"{'!' if expression.is_negated else ''}({' <-> '.join(lexemes)})"
        case AllOf():
            return f"({' & '.join(map(_tsquery, expression.parts))})"
        case AnyOf():
            return f"({' | '.join(map(_tsquery, expression.parts))})"


class WordPositions:
    """The positions of the words of a message, for searches before it is indexed."""

    __slots__ = ("_positions",)

    def __init__(self, words: MessageWords) -> None:
        self._positions: Mapping[str, list[int]] = {
            word: [] for word in (*words.ordered, *words.unordered)
        }
        for word_position, word in enumerate(words.ordered):
            self._positions[word].append(word_position)

    def matches(self, expression: SearchExpression) -> bool:
        """True if the message matches, by the same rules as the index."""
        match expression:
            case SearchTerm():
                return self._has_term(expression) is not expression.is_negated
            case AllOf():
                return all(map(self.matches, expression.parts))
            case AnyOf():
                return any(map(self.matches, expression.parts))

    def _has_term(self, term: SearchTerm) -> bool:
        *begin, last = term.words
        last_words = (
            [w for w in self._positions if w.startswith(last)] if term.is_prefix else [last]
        )
        if not begin:
            return any(word in self._positions for word in last_words)
        matching_ids: set[int] | None = None
        for nth, word in enumerate(begin):
            at = {word_position - nth for word_position in self._positions.get(word, ())}
            matching_ids = at if matching_ids is None else matching_ids & at
        rest = {
            word_position - len(begin)
            for word in last_words
            for word_position in self._positions.get(word, ())
        }
        return bool(rest.intersection(matching_ids or ()))


def terms_in_text(text: str, terms: Sequence[SearchTerm]) -> list[SearchTerm]:
    """Return the terms that occur in a text.

    Most texts are not split: a substring search rules them out.
    """
    folded_text = fold_text(text)
    likely = [term for term in terms if all(word in folded_text for word in term.words)]
    if not likely:
        return []
    word_positions = WordPositions(message_words(text))
    return [term for term in likely if word_positions.matches(term)]
