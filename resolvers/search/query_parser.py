"""Parse the search syntax into filter fields, in their JSON form."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from models.errors import Invalid, Refused
from resolvers.search.query_keys import CAPITALS, LISTS, NOT_KEPT, Fields, Unclear, is_key, value_of

LONGEST = 4096  # characters
DEPTH = 8  # of brackets
TERMS = 250
TOGETHER = frozenset({"query", "uids", "seqs"})  # fields whose validity depends on other fields
OPERATORS = frozenset({"AND", "OR", "NOT"})
UNCLOSED = "a quotation mark that is not closed"
MISSING = "its value is missing"

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<open>\() | (?P<close>\)) |
        (?P<key>-?[A-Za-z][A-Za-z-]*):(?=\S) |
        (?P<quote>-?"(?:[^"\\]|\\.)*") |
        (?P<minus>-)(?=\() |
        (?P<odd>-?".*) |
        (?P<word>[^\s()"]+)
    )""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


class Token(NamedTuple):
    """A token of a search text: its kind, its text and its position, counted from 1."""

    kind: str
    text: str
    at: int


class QueryProblem(NamedTuple):
    """An invalid term of a search text and its position, counted in characters from 1."""

    term: str  # empty if something is missing at the end
    position: int
    message: str
    token: str  # the first token of the term

    def __str__(self) -> str:
        place = f"{self.token[:40]!r} at {self.position}" if self.token else "the end"
        return f"{place}: {self.message}"


@dataclass(frozen=True, slots=True)
class Found:
    """The filter fields of the valid terms of a search text, and the problems of the others."""

    fields: dict[str, Any]
    problems: list[QueryProblem]
    is_void: bool = False  # no term is valid: the search matches nothing


# Raises Refused if no search can ask for these fields.
Check = Callable[[Fields], None]


def read(text: str, now: datetime, check: Check | None = None) -> Found:
    """Parse a search text. Invalid terms, and terms that `validate` refuses, are left out.

    Each of them is listed in `problems`. Raises no error.
    """
    if len(text) > LONGEST:
        message = f"a search has at most {LONGEST} characters"
        return Found({}, [QueryProblem(text, 1, message, text)], is_void=True)
    reader = _Reader(text, _tokens(text), now, check)
    try:
        fields = reader.alternatives(0)
        while reader.at < len(reader.tokens):
            reader.wrong(reader.tokens[reader.at], "there is no bracket that it closes")
            reader.at += 1
            if reader.peek():
                fields = _both(fields, reader.alternatives(0))
    except _Stop:
        fields = None
    if fields and check and not reader.is_valid(fields):
        fields = None
    problems = sorted(reader.problems, key=lambda one: one.position)
    return Found(fields or {}, problems, is_void=fields is None)


def has_only_words(text: str) -> bool:
    """True if a text has words and phrases only: no known key, no operator.

    Brackets without these change nothing, and an unknown key is a word.
    """
    return not any(map(_has_meaning, _tokens(text)))


def _has_meaning(token: Token) -> bool:
    """True if a token is a known key, an operator or a key of doveadm."""
    word = token.text.removeprefix("-")
    if token.kind == "word":
        lone_key = word.endswith(":") and is_key(word[:-1].lower())
        return lone_key or word in OPERATORS or word in CAPITALS or word in NOT_KEPT
    return token.kind == "minus" or (token.kind == "key" and is_key(word.lower()))


def understood(text: str, now: datetime, path: Sequence[str] = ("query",)) -> dict[str, Any]:
    """Parse a search text. Raises Invalid with the positions if it has problems."""
    found = read(text, now)
    if found.problems:
        words = "; ".join(map(str, found.problems[:5]))
        raise Invalid(words, constraint="syntax", path=path)
    return found.fields


def _tokens(text: str) -> list[Token]:
    """Split a search text into tokens."""
    tokens = []
    for found in _TOKEN.finditer(text):
        kind = found.lastgroup
        if kind:
            tokens.append(Token(kind, found[kind], found.start(kind) + 1))
    return tokens


class _Stop(Exception):
    """The text is too long or nested too deeply: all of it is invalid."""


@dataclass(slots=True)
class _Reader:
    """Parser of tokens.

    Its methods return None for a term that is left out because of a problem.
    """

    text: str
    tokens: list[Token]
    now: datetime
    check: Check | None
    at: int = 0
    terms: int = 0
    problems: list[QueryProblem] = field(default_factory=list)

    def wrong(self, token: Token | None, why: str, end: int = 0) -> None:
        """Add a problem.

        The term reaches from `token` to the token before `end_index`, or to the current one.
        """
        if token is None:
            self.problems.append(QueryProblem("", len(self.text) + 1, why, ""))
            return
        last = max(token, self.tokens[(end or self.at or 1) - 1], key=lambda one: one.at)
        term = self.text[token.at - 1 : last.at - 1 + len(last.text)]
        self.problems.append(QueryProblem(term, token.at, why, token.text))

    def is_valid(self, fields: Fields) -> bool:
        """Check all fields of the text together.

        If they are refused, add a problem and return False.
        """
        try:
            if self.check:
                self.check(fields)
        except Refused as refusal:
            self.problems.append(QueryProblem(self.text, 1, refusal.message, self.text))
            return False
        return True

    def peek(self) -> Token | None:
        """Return the next token; None at the end."""
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def alternatives(self, depth: int, *, listed: bool = False) -> dict[str, Any] | None:
        """Parse conditions separated by OR, up to a closing bracket or the end."""
        if depth > DEPTH:
            self.wrong(self.peek(), f"brackets go {DEPTH} levels deep")
            raise _Stop
        read_ = [self.conditions(depth, listed=listed)]
        while (token := self.peek()) and token.kind == "word" and token.text == "OR":
            self.at += 1
            read_.append(self.conditions(depth, listed=listed, behind_or=True))
        found = [one for one in read_ if one is not None]
        return {"or": found} if len(found) > 1 else found[0] if found else None

    def conditions(
        self, depth: int, *, listed: bool, behind_or: bool = False
    ) -> dict[str, Any] | None:
        """Parse conditions joined by AND, up to OR, a closing bracket or the end."""
        made: dict[str, Any] = {}
        origins: dict[str, tuple[Token, int]] = {}  # first token and end index of each field
        kept = lost = 0
        while token := self.peek():
            if token.kind == "close" or (token.kind == "word" and token.text == "OR"):
                break
            if listed and token.kind == "word" and token.text == ",":
                break
            if token.kind == "word" and token.text == "AND":
                self.at += 1
                continue
            self.terms += 1
            if self.terms > TERMS:
                self.wrong(token, f"a search has at most {TERMS} terms")
                raise _Stop
            found = self.condition(depth)
            lost += found is None
            kept += found is not None
            origins = {**dict.fromkeys(found or (), (token, self.at)), **origins}
            _add(made, found or {})
        if not (kept or lost) and (depth or behind_or or self.peek()):
            self.wrong(self.peek(), "something is missing before it")
            return None
        dropped = self.drop_invalid(made, origins)
        return None if (lost and not kept) or (dropped and not made) else made

    def drop_invalid(self, made: dict[str, Any], said: Mapping[str, tuple[Token, int]]) -> bool:
        """Delete the fields that are invalid in combination, and return True if there was one."""
        names = [
            name for name in sorted(TOGETHER & made.keys()) if self.refuses(made, name, *said[name])
        ]
        for name in names:
            del made[name]
        return bool(names)

    def refuses(self, made: Fields, name: str, token: Token, end: int) -> bool:
        """True if a field is invalid in its group. A problem is added then."""
        beside = {"mailbox": made["mailbox"]} if "mailbox" in made else {}
        try:
            if self.check:
                self.check({name: made[name], **beside})
        except Refused as refusal:
            self.wrong(token, refusal.message, end)
            return True
        return False

    def condition(self, depth: int) -> Fields | None:
        """Parse one condition."""
        token = self.tokens[self.at]
        self.at += 1
        match token.kind:
            case "open":
                found = self.bracket(token, depth)
                return found if found is None or set(found) == {"or"} else {"and": [found]}
            case "minus":
                self.at += 1
                return self.negated(self.bracket(token, depth), token)
            case "key":
                return self.keyed(token, depth)
            case "quote":
                minus = token.text.startswith("-")
                phrase = unquoted(token.text.removeprefix("-")).replace('"', " ")
                words = {"query": f'"{phrase}"'}
                return self.negated(words, token) if minus else words
            case "word":
                return self.word(token, depth)
        self.wrong(token, UNCLOSED)
        return None

    def bracket(self, opening: Token, depth: int) -> dict[str, Any] | None:
        """Parse the content of an open bracket. An unclosed bracket ends with the text."""
        found = self.alternatives(depth + 1)
        if (token := self.peek()) is None or token.kind != "close":
            self.wrong(opening, "a bracket that is not closed")
        else:
            self.at += 1
        return found

    def negated(self, found: Fields | None, token: Token) -> Fields | None:
        """Return the negation of fields; None if they are invalid."""
        if found is None or any(
            self.refuses(found, name, token, self.at) for name in sorted(TOGETHER & found.keys())
        ):
            return None
        return {"not": dict(found)}

    def keyed(self, token: Token, depth: int) -> Fields | None:
        """Parse a key and its value."""
        minus, key = token.text.startswith("-"), token.text.removeprefix("-").lower()
        value = self.tokens[self.at]
        found: Fields | None
        if value.kind == "open" and key in ("and", "or"):
            parts = self.listed(depth)
            found = None if parts is None else {key: parts}
        elif value.kind == "open" and key == "mailboxes":
            parts = self.listed(depth)
            boxes = [one["mailbox"] for one in parts or () if "mailbox" in one]
            found = None if parts is None else {"mailboxes": boxes}
        else:
            given = self.value(token)
            found = None if given is None else self.said(token, key, given)
        return self.negated(found, token) if minus and found else found

    def listed(self, depth: int) -> list[dict[str, Any]] | None:
        """Parse a list of filters in brackets, separated by commas."""
        opening = self.tokens[self.at]
        self.at += 1
        found: list[dict[str, Any]] = []
        many = 0
        while (token := self.peek()) and token.kind != "close":
            if many:
                self.at += 1  # a comma: only a comma ends a list item
            many += 1
            one = self.alternatives(depth + 1, listed=True)
            found += [] if one is None else [one]
        if self.peek() is None:
            self.wrong(opening, "a bracket that is not closed")
        else:
            self.at += 1
        return found if found or not many else None

    def value(self, key: Token) -> str | None:
        """Parse the value of a key: a quoted text, or all characters up to the next blank."""
        start = self.at
        parts: list[str] = []
        while (token := self.peek()) and (
            self.at == start or token.at == self.tokens[self.at - 1].at + len(parts[-1])
        ):
            if token.kind == "odd" and not parts:
                self.at += 1
                self.wrong(key, UNCLOSED)
                return None
            if token.kind in ("open", "close", "minus", "odd"):
                break
            self.at += 1
            if token.kind == "quote" and self.at == start + 1 and token.text[0] == '"':
                return unquoted(token.text)
            parts.append(token.text + (":" if token.kind == "key" else ""))
        if not parts:
            self.wrong(key, MISSING)
            return None
        return "".join(parts)

    def word(self, token: Token, depth: int) -> Fields | None:
        """Parse a word: an operator, a key of doveadm in capitals, or a plain word."""
        text = token.text
        if text == "AND":
            return {}
        if text == "NOT":
            return self.none(token, depth)
        if text in NOT_KEPT:
            self.wrong(token, f"{NOT_KEPT[text]} is not known here")
            return None
        return self.capital(token) if text in CAPITALS else self.plain_word(token)

    def plain_word(self, token: Token) -> Fields | None:
        """Parse a word to search for. A key without a value is a problem."""
        minus = token.text.startswith("-") and len(token.text) > 1
        bare = token.text.removeprefix("-") if minus else token.text
        if bare.endswith(":") and is_key(bare[:-1].lower()):
            self.wrong(token, MISSING)
            return None
        return self.negated({"query": bare}, token) if minus else {"query": bare}

    def capital(self, token: Token) -> Fields | None:
        """Parse a key of doveadm and its values."""
        given = []
        for _ in range(CAPITALS[token.text].words):
            if (following := self.peek()) is None:
                self.wrong(token, MISSING)
                return None
            value = self.value(following if following.kind != "open" else token)
            if value is None:
                return None
            given.append(value)
        return self.said(token, token.text, *given)

    def none(self, token: Token, depth: int) -> Fields | None:
        """Parse the operand of NOT, and return its negation."""
        if (following := self.peek()) is None:
            self.wrong(token, "it says not what")
            return None
        if depth >= DEPTH:
            self.wrong(token, f"brackets go {DEPTH} levels deep")
            raise _Stop
        if following.kind == "open":
            self.at += 1
            return self.negated(self.bracket(following, depth), token)
        return self.negated(self.condition(depth + 1), token)

    def said(self, token: Token, key: str, *given: str) -> Fields | None:
        """Return the fields of a key and its values; None, with a problem, if they are invalid."""
        try:
            if key in CAPITALS:
                found: Fields | None = CAPITALS[key].says(*given, self.now)
            else:
                found = value_of(key, given[0], self.now)
        except Unclear as problem:
            self.wrong(token, f"it takes {problem}")
            return None
        if found is None:
            self.wrong(token, "there is no such key; put quotation marks around words")
            return None
        alone = found.keys() - TOGETHER
        refused = any(self.refuses(found, name, token, self.at) for name in sorted(alone))
        return None if refused else found


def unquoted(text: str) -> str:
    """Return the text between quotation marks, with escapes resolved."""
    return _ESCAPED.sub(r"\1", text[1:-1])


def _both(one: dict[str, Any] | None, other: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the conjunction of two parts of a text, each of which can be missing."""
    if one is None or other is None:
        return one or other
    return {"and": [one, other]} if one and other else one or other


def _add(made: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Add fields to a conjunction. A field that is set already goes into `and`."""
    for name, value in more.items():
        if name not in made:
            made[name] = value
        elif name == "query":
            made[name] = f"{made[name]} {value}"
        elif name in ("and", *LISTS.values()):
            made[name] = [*made[name], *value]
        elif name == "attachment" and not set(made[name]) & set(value) and value and made[name]:
            made[name] = {**made[name], **value}
        else:
            made["and"] = [*made.get("and", []), {name: value}]
