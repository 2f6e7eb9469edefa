"""Authentication-Results fields of a received message (RFC 8601).

Anybody can write such a field. Only the fields above the Received field of our border server are
trusted: a sender cannot insert fields there. Fields below it may be forged, with any authserv-id.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mail.mime.encoded_words import unfolded
from mail.mime.header_fields import Field

MOST = 10  # Authentication-Results fields that are read
LONGEST = 8 << 10  # characters that are read of one field
VERDICTS = ("pass", "fail", "none")

_NAME = "authentication-results"
_DOMAIN = re.compile(r"[^\s@<>\"'(),;:\\/]{1,253}")
_IN_QUOTES = re.compile(r"[\s;=()]")


@dataclass(frozen=True, slots=True)
class Stamp:
    """An Authentication-Results field with the number of Received fields above and below."""

    above: int
    below: int
    text: str


@dataclass(frozen=True, slots=True)
class _Result:
    """The result of one authentication method, with its properties."""

    method: str
    result: str
    properties: dict[str, str]


def stamps(own: Sequence[Field]) -> list[Stamp]:
    """Return the first 10 Authentication-Results fields of a message, topmost first."""
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
    """Return the SPF, DKIM, DMARC and ARC results that trusted servers wrote.

    A field is trusted if its authserv-id is one of `authserv_ids` and it is above the Received
    field number `border_hop` from the top. Of several DKIM signatures, one of `sender_domain` or of
    a parent domain counts first. Returns None if there is no trusted field.
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
    """Return the authserv-id of an unfolded field, "" if it has none."""
    return _read(text[:LONGEST])[0]


def says(text: str, method: str) -> str | None:
    """Return the result of a method in an unfolded field, None if it has none."""
    _, results = _read(text[:LONGEST])
    return next((each.result for each in results if each.method == method), None)


def _read(text: str) -> tuple[str, list[_Result]]:
    """Return the authserv-id and the method results of a field."""
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
    """Remove comments and quotes; separators inside of quotes become "_"."""
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
    """Yield the domain of each passed result of a method, read from the named property."""
    for each in results:
        if each.method == method and each.result == "pass":
            given = each.properties.get(name) or each.properties.get(other, "")
            if domain := _domain(given):
                yield domain


def _signer(domains: Sequence[str], sender: str) -> str | None:
    """Return the first domain that is, or is above, the sender's; else the first domain."""
    over = [domain for domain in domains if f".{sender}".endswith(f".{domain}")]
    return next(iter([*over, *domains]), None)


def _domain(given: str) -> str | None:
    """Return the domain of an address or domain in lower case, None if it is invalid."""
    domain = given.rpartition("@")[2].rstrip(".").lower()
    return domain if _DOMAIN.fullmatch(domain) else None


def _verdict(results: Sequence[_Result], method: str) -> str | None:
    """Return the first result of a method if it is pass, fail or none; else None."""
    said = next((each.result for each in results if each.method == method), None)
    return said if said in VERDICTS else None
