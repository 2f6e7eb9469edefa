"""The text form of a search, read: into the fields of a filter, as JSON has them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from models.errors import Invalid
from resolvers.searchkeys import CAPITALS, LISTS, NOT_KEPT, Fields, Unclear, value_of

LONGEST = 4096  # characters
DEPTH = 8  # of brackets
TERMS = 250

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<open>\() | (?P<close>\)) |
        (?P<key>-?[A-Za-z][A-Za-z-]*):(?=\S) |
        (?P<quote>-?"(?:[^"\\]|\\.)*") |
        (?P<minus>-)(?=\() |
        (?P<word>[^\s()"]+) |
        (?P<odd>\S)
    )""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


class Token(NamedTuple):
    """A piece of the text: its kind, what it is, and where it begins, counted from 1."""

    kind: str
    text: str
    at: int


@dataclass(frozen=True, slots=True)
class Found:
    """What a text says, and what of it could not be understood."""

    fields: dict[str, Any]
    problems: list[str]


def read(text: str, now: datetime) -> Found:
    """What the text says; never raises."""
    if len(text) > LONGEST:
        return Found({}, [f"a search has at most {LONGEST} characters"])
    reader = _Reader(_tokens(text), now)
    try:
        fields = reader.alternatives(0)
        if reader.at < len(reader.tokens):
            reader.wrong(reader.tokens[reader.at], "there is no bracket that it closes")
    except _Stop:
        fields = {}
    return Found(fields, reader.problems)


def understood(text: str, now: datetime) -> dict[str, Any]:
    """What the text says; Invalid where not all of it is understood, with the places."""
    found = read(text, now)
    if found.problems:
        raise Invalid("; ".join(found.problems[:5]), constraint="syntax", path=["query"])
    return found.fields


def _tokens(text: str) -> list[Token]:
    tokens = []
    for found in _TOKEN.finditer(text):
        kind = found.lastgroup
        if kind:
            tokens.append(Token(kind, found[kind], found.start(kind) + 1))
    return tokens


class _Stop(Exception):
    """What follows cannot be understood."""


@dataclass(slots=True)
class _Reader:
    tokens: list[Token]
    now: datetime
    at: int = 0
    terms: int = 0
    problems: list[str] = field(default_factory=list)

    def wrong(self, token: Token | None, why: str) -> None:
        """Note a problem and where it is."""
        place = f"{token.text[:40]!r} at {token.at}" if token else "the end"
        self.problems.append(f"{place}: {why}")

    def peek(self) -> Token | None:
        """The next token."""
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def alternatives(self, depth: int, *, listed: bool = False) -> dict[str, Any]:
        """Conditions with OR between, up to a closing bracket or the end."""
        if depth > DEPTH:
            self.wrong(self.peek(), f"brackets go {DEPTH} levels deep")
            raise _Stop
        found = [self.conditions(depth, listed=listed)]
        while (token := self.peek()) and token.kind == "word" and token.text == "OR":
            self.at += 1
            found.append(self.conditions(depth, listed=listed))
        return found[0] if len(found) == 1 else {"or": found}

    def conditions(self, depth: int, *, listed: bool) -> dict[str, Any]:
        """Conditions that must all hold."""
        made: dict[str, Any] = {}
        empty = True
        while token := self.peek():
            if token.kind == "close" or (token.kind == "word" and token.text == "OR"):
                break
            if listed and token.kind == "word" and token.text == ",":
                break
            empty = False
            self.terms += 1
            if self.terms > TERMS:
                self.wrong(token, f"a search has at most {TERMS} terms")
                raise _Stop
            _add(made, self.condition(depth))
        if empty and (depth or self.at):
            self.wrong(self.peek(), "something is missing before it")
        return made

    def condition(self, depth: int) -> Fields:
        """One condition."""
        token = self.tokens[self.at]
        self.at += 1
        match token.kind:
            case "open":
                found = self.bracket(token, depth)
                return found if set(found) == {"or"} else {"and": [found]}
            case "minus":
                self.at += 1
                return {"not": self.bracket(token, depth)}
            case "key":
                return self.keyed(token, depth)
            case "quote":
                minus = token.text.startswith("-")
                phrase = unquoted(token.text.removeprefix("-")).replace('"', " ")
                return _negated({"query": f'"{phrase}"'}, negated=minus)
            case "word":
                return self.word(token, depth)
        self.wrong(token, "a quotation mark that is not closed")
        raise _Stop

    def bracket(self, opening: Token, depth: int) -> dict[str, Any]:
        """What is inside a bracket that was opened."""
        found = self.alternatives(depth + 1)
        if (token := self.peek()) is None or token.kind != "close":
            self.wrong(opening, "a bracket that is not closed")
            raise _Stop
        self.at += 1
        return found

    def keyed(self, token: Token, depth: int) -> Fields:
        """What a key and its value say."""
        minus, key = token.text.startswith("-"), token.text.removeprefix("-").lower()
        value = self.tokens[self.at]
        if value.kind == "open" and key in ("and", "or"):
            return _negated({key: self.listed(depth)}, negated=minus)
        if value.kind == "open" and key == "mailboxes":
            boxes = [one["mailbox"] for one in self.listed(depth) if "mailbox" in one]
            return _negated({"mailboxes": boxes}, negated=minus)
        return _negated(self.said(token, key, self.value(token)), negated=minus)

    def listed(self, depth: int) -> list[dict[str, Any]]:
        """The filters of a list, with commas between."""
        opening = self.tokens[self.at]
        self.at += 1
        found: list[dict[str, Any]] = []
        while (token := self.peek()) and token.kind != "close":
            if found:
                self.at += 1  # a comma: nothing else ends what is listed
            found.append(self.alternatives(depth + 1, listed=True))
        if self.peek() is None:
            self.wrong(opening, "a bracket that is not closed")
            raise _Stop
        self.at += 1
        return found

    def value(self, key: Token) -> str:
        """The value of a key: quoted, or all up to the next blank."""
        start = self.at
        parts: list[str] = []
        while (token := self.peek()) and (
            self.at == start or token.at == self.tokens[self.at - 1].at + len(parts[-1])
        ):
            if token.kind in ("open", "close", "minus", "odd"):
                break
            self.at += 1
            if token.kind == "quote" and self.at == start + 1 and token.text[0] == '"':
                return unquoted(token.text)
            parts.append(token.text + (":" if token.kind == "key" else ""))
        if not parts:
            self.wrong(key, "its value is missing")
            raise _Stop
        return "".join(parts)

    def word(self, token: Token, depth: int) -> Fields:
        """What a word says: a key of doveadm in capitals, or itself."""
        text = token.text
        if text == "AND":
            return {}
        if text == "NOT":
            if self.peek() is None:
                self.wrong(token, "it says not what")
                raise _Stop
            if depth >= DEPTH:
                self.wrong(token, f"brackets go {DEPTH} levels deep")
                raise _Stop
            if (opening := self.tokens[self.at]).kind == "open":
                self.at += 1
                return {"not": self.bracket(opening, depth)}
            return {"not": dict(self.condition(depth + 1))}
        if text in NOT_KEPT:
            self.wrong(token, f"{NOT_KEPT[text]} is not known here")
            return {}
        if text not in CAPITALS:
            minus = text.startswith("-") and len(text) > 1
            return _negated({"query": text.removeprefix("-") if minus else text}, negated=minus)
        given = []
        for _ in range(CAPITALS[text].words):
            if self.peek() is None:
                self.wrong(token, "its value is missing")
                raise _Stop
            following = self.tokens[self.at]
            given.append(self.value(following if following.kind != "open" else token))
        return self.said(token, text, *given)

    def said(self, token: Token, key: str, *given: str) -> Fields:
        """What a key says of its values, with problems noted."""
        try:
            if key in CAPITALS:
                return CAPITALS[key].says(*given, self.now)
            found = value_of(key, given[0], self.now)
        except Unclear as problem:
            self.wrong(token, f"it takes {problem}")
            return {}
        if found is None:
            self.wrong(token, "there is no such key; put quotation marks around words")
            return {}
        return found


def unquoted(text: str) -> str:
    """What stands between quotation marks."""
    return _ESCAPED.sub(r"\1", text[1:-1])


def _negated(found: Fields, *, negated: bool) -> Fields:
    return {"not": dict(found)} if negated and found else found


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
