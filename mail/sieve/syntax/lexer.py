"""Tokens of a script (RFC 5228, section 8.1)."""

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

from mail.sieve import limits
from mail.sieve.errors import Problem, SieveError
from mail.sieve.source_position import START, Place

_MOST = (1 << 63) - 1
_QUANTIFIERS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_TOKEN = re.compile(
    r"(?P<space>[ \t\r\n]++|\#[^\r\n]*+|/\*(?:[^*]|\*(?!/))*+\*/)"
    r"|text:[ \t]*+(?:\#[^\r\n]*+)?(?P<lines>\r?\n)"
    r"|(?P<name>[a-z_][a-z0-9_]*+)"
    r"|:(?P<tag>[a-z_][a-z0-9_]*+)"
    r"|(?P<digits>[0-9]++)(?P<quantifier>[kmg]?)(?![a-z0-9_])"
    r"|\"(?P<quoted>(?:[^\"\\]|\\.)*+)\""
    r"|(?P<sign>[\[\](){},;])",
    re.IGNORECASE | re.DOTALL | re.ASCII,
)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_LAST_LINE = re.compile(r"^\.\r?(?:\n|\Z)", re.MULTILINE)
_STUFFED = re.compile(r"^\.\.", re.MULTILINE)
_ODD = re.compile("[\0\ud800-\udfff]")


class Kind(Enum):
    """The type of a token."""

    NAME = auto()
    TAG = auto()
    NUMBER = auto()
    TEXT = auto()
    SIGN = auto()
    END = auto()


@dataclass(frozen=True, slots=True)
class Token:
    """A token. Names and tags are in lower case; the text of a number is its value."""

    kind: Kind
    text: str
    place: Place


def tokens(script: str | bytes) -> Iterator[Token]:
    """Yield the tokens of a UTF-8 script; the last one is an END. Raises SieveError."""
    text = _decoded(script)
    starts = [0, *(found.end() for found in re.finditer("\n", text))]

    def place(at: int) -> Place:
        line = bisect_right(starts, at)
        return Place(line, at - starts[line - 1] + 1)

    odd = _ODD.search(text)
    if odd:
        raise wrong(place(odd.start()), "no text holds a NUL or half a character")
    at, end = 0, len(text)
    while at < end:
        found = _TOKEN.match(text, at)
        if found is None:
            raise wrong(place(at), _unread(text, at))
        start, at = at, found.end()
        if found["lines"] is not None:
            last = _LAST_LINE.search(text, at)
            if last is None:
                raise wrong(place(start), "text: has no line with a dot alone at its end")
            yield Token(Kind.TEXT, _STUFFED.sub(".", text[at : last.start()]), place(start))
            at = last.end()
        elif found["space"] is None:
            yield _token(found, place(start))
    yield Token(Kind.END, "", place(end))


def wrong(place: Place, message: str) -> SieveError:
    """Return the error for a single problem."""
    return SieveError([Problem(*place, message)])


def _decoded(script: str | bytes) -> str:
    raw = script if isinstance(script, bytes) else script.encode("utf-8", "surrogatepass")
    if len(raw) > limits.SCRIPT:
        raise wrong(START, f"a script has at most {limits.SCRIPT} bytes")
    if isinstance(script, str):
        return script
    try:
        return raw.removeprefix(b"\xef\xbb\xbf").decode()
    except UnicodeDecodeError as problem:
        before = raw[: problem.start].decode().split("\n")
        raise wrong(Place(len(before), len(before[-1]) + 1), "a script is in UTF-8") from problem


def _token(found: re.Match[str], place: Place) -> Token:
    if found["name"] is not None:
        return Token(Kind.NAME, found["name"].lower(), place)
    if found["tag"] is not None:
        return Token(Kind.TAG, found["tag"].lower(), place)
    if found["quoted"] is not None:
        return Token(Kind.TEXT, _ESCAPE.sub(r"\1", found["quoted"]), place)
    if found["sign"] is not None:
        return Token(Kind.SIGN, found["sign"], place)
    digits = found["digits"].lstrip("0") or "0"
    value = _MOST + 1
    if len(digits) <= len(str(_MOST)):  # more would take long to read
        value = int(digits) * _QUANTIFIERS[found["quantifier"].lower()]
    if value > _MOST:
        raise wrong(place, "a number is less than 2 to the 63")
    return Token(Kind.NUMBER, str(value), place)


def _unread(text: str, at: int) -> str:
    if text.startswith("/*", at):
        return "a comment has no end"
    if text[at] == '"':
        return "a string has no end"
    if text[at].isdecimal():
        return "a number has digits, then K, M or G or nothing"
    return f"{text[at]!r} begins nothing"
