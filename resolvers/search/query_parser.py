"""The text form of a search, read: into the fields of a filter, as JSON has them."""

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
TOGETHER = frozenset({"query", "uids", "seqs"})  # fields that are valid or not beside others
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
    """A piece of the text: its kind, what it is, and where it begins, counted from 1."""

    kind: str
    text: str
    at: int


class QueryProblem(NamedTuple):
    """A term that is not understood, and where it begins, counted in characters from 1."""

    term: str  # "" = at the end something is missing
    position: int
    message: str
    token: str  # with which it begins

    def __str__(self) -> str:
        place = f"{self.token[:40]!r} at {self.position}" if self.token else "the end"
        return f"{place}: {self.message}"


@dataclass(frozen=True, slots=True)
class Found:
    """What the valid terms of a text say, and what is wrong with the others."""

    fields: dict[str, Any]
    problems: list[QueryProblem]
    is_void: bool = False  # no term is valid: nothing is found


# Raises Refused if no search can ask for these fields.
Check = Callable[[Fields], None]


def read(text: str, now: datetime, check: Check | None = None) -> Found:
    """Read a text. A term that is not understood, or that `check` refuses, is left out."""
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
    word = token.text.removeprefix("-")
    if token.kind == "word":
        lone_key = word.endswith(":") and is_key(word[:-1].lower())
        return lone_key or word in OPERATORS or word in CAPITALS or word in NOT_KEPT
    return token.kind == "minus" or (token.kind == "key" and is_key(word.lower()))


def understood(text: str, now: datetime, path: Sequence[str] = ("query",)) -> dict[str, Any]:
    """What the text says. Raises Invalid with the places if it has problems."""
    found = read(text, now)
    if found.problems:
        words = "; ".join(map(str, found.problems[:5]))
        raise Invalid(words, constraint="syntax", path=path)
    return found.fields


def _tokens(text: str) -> list[Token]:
    tokens = []
    for found in _TOKEN.finditer(text):
        kind = found.lastgroup
        if kind:
            tokens.append(Token(kind, found[kind], found.start(kind) + 1))
    return tokens


class _Stop(Exception):
    """The text is too long or too deep: nothing of it counts."""


@dataclass(slots=True)
class _Reader:
    """Reads tokens. Its methods return None for what is left out because of a problem."""

    text: str
    tokens: list[Token]
    now: datetime
    check: Check | None
    at: int = 0
    terms: int = 0
    problems: list[QueryProblem] = field(default_factory=list)

    def wrong(self, token: Token | None, why: str, end: int = 0) -> None:
        """Note a problem of the term from this token up to that of index `end`, or up to here."""
        if token is None:
            self.problems.append(QueryProblem("", len(self.text) + 1, why, ""))
            return
        last = max(token, self.tokens[(end or self.at or 1) - 1], key=lambda one: one.at)
        term = self.text[token.at - 1 : last.at - 1 + len(last.text)]
        self.problems.append(QueryProblem(term, token.at, why, token.text))

    def is_valid(self, fields: Fields) -> bool:
        """Check the fields of the whole text, which may be too many together."""
        try:
            if self.check:
                self.check(fields)
        except Refused as refusal:
            self.problems.append(QueryProblem(self.text, 1, refusal.message, self.text))
            return False
        return True

    def peek(self) -> Token | None:
        """The next token."""
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def alternatives(self, depth: int, *, listed: bool = False) -> dict[str, Any] | None:
        """Conditions with OR between, up to a closing bracket or the end."""
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
        """Conditions that must all hold."""
        made: dict[str, Any] = {}
        said: dict[str, tuple[Token, int]] = {}  # the token that said a field first, and its end
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
            said = {**dict.fromkeys(found or (), (token, self.at)), **said}
            _add(made, found or {})
        if not (kept or lost) and (depth or behind_or or self.peek()):
            self.wrong(self.peek(), "something is missing before it")
            return None
        dropped = self.drop_invalid(made, said)
        return None if (lost and not kept) or (dropped and not made) else made

    def drop_invalid(self, made: dict[str, Any], said: Mapping[str, tuple[Token, int]]) -> bool:
        """Drop the fields that are invalid as they stand together; whether there was one."""
        names = [
            name for name in sorted(TOGETHER & made.keys()) if self.refuses(made, name, *said[name])
        ]
        for name in names:
            del made[name]
        return bool(names)

    def refuses(self, made: Fields, name: str, token: Token, end: int) -> bool:
        """Whether this field is invalid as it stands in a group; a problem is noted then."""
        beside = {"mailbox": made["mailbox"]} if "mailbox" in made else {}
        try:
            if self.check:
                self.check({name: made[name], **beside})
        except Refused as refusal:
            self.wrong(token, refusal.message, end)
            return True
        return False

    def condition(self, depth: int) -> Fields | None:
        """One condition."""
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
        """What is inside a bracket that was opened; one that is not closed ends with the text."""
        found = self.alternatives(depth + 1)
        if (token := self.peek()) is None or token.kind != "close":
            self.wrong(opening, "a bracket that is not closed")
        else:
            self.at += 1
        return found

    def negated(self, found: Fields | None, token: Token) -> Fields | None:
        """None of these."""
        if found is None or any(
            self.refuses(found, name, token, self.at) for name in sorted(TOGETHER & found.keys())
        ):
            return None
        return {"not": dict(found)}

    def keyed(self, token: Token, depth: int) -> Fields | None:
        """What a key and its value say."""
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
        """The filters of a list, with commas between."""
        opening = self.tokens[self.at]
        self.at += 1
        found: list[dict[str, Any]] = []
        many = 0
        while (token := self.peek()) and token.kind != "close":
            if many:
                self.at += 1  # a comma: nothing else ends what is listed
            many += 1
            one = self.alternatives(depth + 1, listed=True)
            found += [] if one is None else [one]
        if self.peek() is None:
            self.wrong(opening, "a bracket that is not closed")
        else:
            self.at += 1
        return found if found or not many else None

    def value(self, key: Token) -> str | None:
        """The value of a key: quoted, or all up to the next blank."""
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
        """What a word says: a key of doveadm in capitals, or itself."""
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
        """What a word says that is looked for; a key without its value is a problem."""
        minus = token.text.startswith("-") and len(token.text) > 1
        bare = token.text.removeprefix("-") if minus else token.text
        if bare.endswith(":") and is_key(bare[:-1].lower()):
            self.wrong(token, MISSING)
            return None
        return self.negated({"query": bare}, token) if minus else {"query": bare}

    def capital(self, token: Token) -> Fields | None:
        """What a key of doveadm says with the words behind it."""
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
        """What NOT says of what follows."""
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
        """What a key says of its values, with problems noted."""
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
    """What stands between quotation marks."""
    return _ESCAPED.sub(r"\1", text[1:-1])


def _both(one: dict[str, Any] | None, other: dict[str, Any] | None) -> dict[str, Any] | None:
    """What one of two parts of a text says, or both."""
    if one is None or other is None:
        return one or other
    return {"and": [one, other]} if one and other else one or other


def _add(made: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Let these hold too: beside what is there, or, where that has the field, apart."""
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
