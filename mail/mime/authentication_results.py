"""What mail servers found out about a message, as they wrote it on top (RFC 8601).

Anybody can write such a field. Ours are those above the Received field with which the border
of our house took the message in: a sender reaches no place above that one. Below it nobody can
tell them from forged ones, whatever name they bear.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mail.mime.encoded_words import unfolded
from mail.mime.header_fields import Field

MOST = 10  # fields that are read
LONGEST = 8 << 10  # characters of one
VERDICTS = ("pass", "fail", "none")

_NAME = "authentication-results"
_DOMAIN = re.compile(r"[^\s@<>\"'(),;:\\/]{1,253}")
_IN_QUOTES = re.compile(r"[\s;=()]")


@dataclass(frozen=True, slots=True)
class Stamp:
    """A field Authentication-Results, and how many Received fields stand above and below it."""

    above: int
    below: int
    text: str


@dataclass(frozen=True, slots=True)
class _Result:
    """What one method came to."""

    method: str
    result: str
    properties: dict[str, str]


def stamps(own: Sequence[Field]) -> list[Stamp]:
    """The stamps of a message, of its own fields, topmost first."""
    total = sum(name == "received" for name, _ in own)
    found: list[Stamp] = []
    above = 0
    for name, value in own:
        above += name == "received"
        if name == _NAME and len(found) < MOST:
            found.append(Stamp(above, total - above, unfolded(value[:LONGEST]).strip()))
    return found


def believed(
    found: Sequence[Stamp], ids: Collection[str], hops: int, domain: str
) -> dict[str, Any] | None:
    """What the stamps say that bear one of these names and stand above the border.

    The border is the Received field number `hops` from the top; where a message has none,
    nothing is believed. Of several signatures that of the sender's `domain`, or of one above
    it, counts first. None where there is no statement.
    """
    names = {each.casefold() for each in ids}
    ours = [each for each in found if each.above < hops <= each.above + each.below]
    read = [(each.text, *_read(each.text)) for each in ours]
    mine = [(text, results) for text, name, results in read if name.casefold() in names]
    if not mine:
        return None
    results = [result for _, several in mine for result in several]
    signers = list(_passed(results, "dkim", "header.d", "header.i"))
    return {
        "spf": next(_passed(results, "spf", "smtp.mailfrom", "smtp.helo"), None),
        "dkim": _signer(signers, domain.casefold()),
        "dmarc": _verdict(results, "dmarc"),
        "arc": _verdict(results, "arc"),
        "results": "\n".join(text for text, _ in mine),
    }


def server(text: str) -> str:
    """The name of who wrote a field, given unfolded; "" where it says none."""
    return _read(text[:LONGEST])[0]


def says(text: str, method: str) -> str | None:
    """What a method came to by a field, given unfolded; None where it does not say."""
    _, results = _read(text[:LONGEST])
    return next((each.result for each in results if each.method == method), None)


def _read(text: str) -> tuple[str, list[_Result]]:
    """The name of who wrote a stamp, and what it says."""
    first, *rest = _bare(text).split(";")
    results = []
    for statement in rest:
        words = re.sub(r"\s*=\s*", "=", statement.strip()).split()
        pairs = [word.partition("=") for word in words if "=" in word]
        if pairs:
            (method, _, result), *more = pairs
            properties = {name.lower(): value for name, _, value in reversed(more)}
            results.append(_Result(method.partition("/")[0].lower(), result.lower(), properties))
    return next(iter(first.split()), ""), results


def _bare(text: str) -> str:
    """The text without comments and quotes; what was quoted divides nothing any more."""
    out: list[str] = []
    depth, quoted, at = 0, "", 0
    while at < len(text):
        character = text[at]
        at += 1
        if character == "\\" and (depth or quoted):
            quoted += text[at : at + 1] if quoted else ""
            at += 1
        elif depth:
            depth += (character == "(") - (character == ")")
        elif quoted:
            if character == '"':
                out.append(_IN_QUOTES.sub("_", quoted[1:]))
                quoted = ""
            else:
                quoted += character
        elif character == "(":
            depth = 1
            out.append(" ")
        elif character == '"':
            quoted = character
        else:
            out.append(character)
    return "".join(out)


def _passed(results: Sequence[_Result], method: str, name: str, other: str) -> Iterator[str]:
    """The domains that a method has passed: in the property of this name, or in the other."""
    for each in results:
        if each.method == method and each.result == "pass":
            given = each.properties.get(name) or each.properties.get(other, "")
            if domain := _domain(given):
                yield domain


def _signer(domains: Sequence[str], sender: str) -> str | None:
    over = [domain for domain in domains if f".{sender}".endswith(f".{domain}")]
    return next(iter([*over, *domains]), None)


def _domain(given: str) -> str | None:
    domain = given.rpartition("@")[2].rstrip(".").lower()
    return domain if _DOMAIN.fullmatch(domain) else None


def _verdict(results: Sequence[_Result], method: str) -> str | None:
    said = next((each.result for each in results if each.method == method), None)
    return said if said in VERDICTS else None
