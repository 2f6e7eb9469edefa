"""Tokens of a script (RFC 5228, section 8.1)."""

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

from mail.sieve import limits
from mail.sieve.errors import ScriptProblem, SieveError
from mail.sieve.source_position import SCRIPT_START, SourcePosition

_MAX_NUMBER = (1 << 63) - 1
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
_INVALID_CHARACTER = re.compile("[\0\ud800-\udfff]")


class TokenType(Enum):
    """The type of a token."""

    NAME = auto()
    TAG = auto()
    NUMBER = auto()
    TEXT = auto()
    SIGN = auto()
    END = auto()


@dataclass(frozen=True, slots=True)
class SieveToken:
    """A token. Names and tags are in lower case; the text of a number is its value."""

    token_type: TokenType
    text: str
    position: SourcePosition


def tokenize(script: str | bytes) -> Iterator[SieveToken]:
    """Yield the tokens of a UTF-8 script; the last one is an END. Raises SieveError."""
    text = _decode_script(script)
    starts = [0, *(line_end.end() for line_end in re.finditer("\n", text))]

    def position_at(offset: int) -> SourcePosition:
        line = bisect_right(starts, offset)
        return SourcePosition(line, offset - starts[line - 1] + 1)

    odd = _INVALID_CHARACTER.search(text)
    if odd:
        raise syntax_error(
            position_at(odd.start()), "A string must not contain NUL or a surrogate."
        )
    at, end = 0, len(text)
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None:
            raise syntax_error(position_at(at), _invalid_token_problem(text, at))
        start, at = at, match.end()
        if match["lines"] is not None:
            last = _LAST_LINE.search(text, at)
            if last is None:
                raise syntax_error(
                    position_at(start),
                    "A multi-line string must end with a line that is a single dot.",
                )
            yield SieveToken(
                TokenType.TEXT, _STUFFED.sub(".", text[at : last.start()]), position_at(start)
            )
            at = last.end()
        elif match["space"] is None:
            yield _token_from_match(match, position_at(start))
    yield SieveToken(TokenType.END, "", position_at(end))


def syntax_error(position: SourcePosition, message: str) -> SieveError:
    """Return the error for a single problem."""
    return SieveError([ScriptProblem(*position, message)])


def _decode_script(script: str | bytes) -> str:
    raw = script if isinstance(script, bytes) else script.encode("utf-8", "surrogatepass")
    if len(raw) > limits.MAX_SCRIPT_BYTES:
        raise syntax_error(
            SCRIPT_START, f"A script can have at most {limits.MAX_SCRIPT_BYTES} bytes."
        )
    if isinstance(script, str):
        return script
    try:
        return raw.removeprefix(b"\xef\xbb\xbf").decode()
    except UnicodeDecodeError as problem:
        before = raw[: problem.start].decode().split("\n")
        raise syntax_error(
            SourcePosition(len(before), len(before[-1]) + 1), "A script must be in UTF-8."
        ) from problem


def _token_from_match(match: re.Match[str], position: SourcePosition) -> SieveToken:
    if match["name"] is not None:
        return SieveToken(TokenType.NAME, match["name"].lower(), position)
    if match["tag"] is not None:
        return SieveToken(TokenType.TAG, match["tag"].lower(), position)
    if match["quoted"] is not None:
        return SieveToken(TokenType.TEXT, _ESCAPE.sub(r"\1", match["quoted"]), position)
    if match["sign"] is not None:
        return SieveToken(TokenType.SIGN, match["sign"], position)
    digits = match["digits"].lstrip("0") or "0"
    value = _MAX_NUMBER + 1
    if len(digits) <= len(str(_MAX_NUMBER)):  # more would take long to read
        value = int(digits) * _QUANTIFIERS[match["quantifier"].lower()]
    if value > _MAX_NUMBER:
        raise syntax_error(position, "A number must be less than 2^63.")
    return SieveToken(TokenType.NUMBER, str(value), position)


def _invalid_token_problem(text: str, offset: int) -> str:
    if text.startswith("/*", offset):
        return "The comment is not closed."
    if text[offset] == '"':
        return "The string is not closed."
    if text[offset].isdecimal():
        return "A number must be digits, optionally followed by K, M or G."
    return f"Unexpected character {text[offset]!r}."
