"""Authentication-Results fields of a received message (RFC 8601).

Anybody can write such a field. Only the fields above the Received field of our border server are
trusted: a sender cannot insert fields there. Fields below it may be forged, with any authserv-id.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mail.mime.encoded_words import unfold_and_decode_utf8
from mail.mime.header_fields import RawField
from models.messages.authentication import AuthenticationResultCode

MAX_FIELDS = 10  # Authentication-Results fields that are read
MAX_FIELD_LENGTH = 8 << 10  # characters that are read of one field
VERDICTS = ("pass", "fail", "none")

_NAME = "authentication-results"
_DOMAIN_PROPERTIES = {
    "spf": ("smtp.mailfrom", "smtp.helo"),
    "dkim": ("header.d", "header.i"),
    "dmarc": ("header.from",),
    "arc": (),
}
_DOMAIN = re.compile(r"[^\s@<>\"'(),;:\\/]{1,253}")
_BEFORE_QUOTED, _AFTER_QUOTED = "=;./ \t", "=;./@ \t"  # no space is needed beside these
_IN_QUOTES = re.compile(r"[\s;=()]")


@dataclass(frozen=True, slots=True)
class AuthenticationResultsField:
    """An Authentication-Results field with the number of Received fields above and below."""

    received_above: int
    received_below: int
    text: str


@dataclass(frozen=True, slots=True)
class _MethodResult:
    """The result of one authentication method, with its properties."""

    method: str
    result: str
    properties: dict[str, str]


def authentication_results_fields(
    header_fields: Sequence[RawField],
) -> list[AuthenticationResultsField]:
    """Return the first 10 Authentication-Results fields of a message, topmost first."""
    total = sum(name == "received" for name, _ in header_fields)
    results_fields: list[AuthenticationResultsField] = []
    above = 0
    for name, value in header_fields:
        above += name == "received"
        if name == _NAME and len(results_fields) < MAX_FIELDS:
            results_fields.append(
                AuthenticationResultsField(
                    above, total - above, unfold_and_decode_utf8(value[:MAX_FIELD_LENGTH]).strip()
                )
            )
    return results_fields


def results_of_trusted_servers_or_none(
    results_fields: Sequence[AuthenticationResultsField],
    authserv_ids: Collection[str],
    border_hop: int,
    sender_domain: str,
) -> dict[str, Any] | None:
    """Return the SPF, DKIM, DMARC and ARC results that trusted servers wrote.

    A field is trusted if its authserv-id is one of `authserv_ids` and it is above the Received
    field number `border_hop` from the top. Of several DKIM signatures, one of `sender_domain` or of
    a parent domain counts first. Returns None if there is no trusted field.
    """
    trusted_names = {authserv_id.casefold() for authserv_id in authserv_ids}
    fields_above_border = [
        field
        for field in results_fields
        if field.received_above < border_hop <= field.received_above + field.received_below
    ]
    parsed_fields = [
        (field.text, *_authserv_id_and_method_results(field.text)) for field in fields_above_border
    ]
    trusted_fields = [
        (text, results) for text, name, results in parsed_fields if name.casefold() in trusted_names
    ]
    if not trusted_fields:
        return None
    results = [result for _, several in trusted_fields for result in several]
    signers = list(_passed_domains(results, "dkim", "header.d", "header.i"))
    return {
        "spf": next(_passed_domains(results, "spf", "smtp.mailfrom", "smtp.helo"), None),
        "dkim": _preferred_signing_domain(signers, sender_domain.casefold()),
        "dmarc": _method_verdict(results, "dmarc"),
        "arc": _method_verdict(results, "arc"),
        "results": "\n".join(text for text, _ in trusted_fields),
    }


def authserv_id_or_empty(text: str) -> str:
    """Return the authserv-id of an unfolded field, "" if it has none."""
    return _authserv_id_and_method_results(text[:MAX_FIELD_LENGTH])[0]


def method_result_or_none(text: str, method: str) -> str | None:
    """Return the result of a method in an unfolded field, None if it has none."""
    _, results = _authserv_id_and_method_results(text[:MAX_FIELD_LENGTH])
    return next((result.result for result in results if result.method == method), None)


@dataclass(frozen=True, slots=True)
class MethodVerdict:
    """The result of one method as a client needs it. Texts are None if the field lacks them."""

    result: AuthenticationResultCode
    domain: str | None = None
    selector: str | None = None
    reason: str | None = None


def method_verdict_or_none(
    fields_text: str, method: str, preferred_domain: str | None = None
) -> MethodVerdict | None:
    """Return the result of a method in unfolded fields, one a line; None if they have none.

    Of several results one that passed for `preferred_domain` counts, else the first that passed,
    else the first.
    """
    verdicts = _verdicts_of_fields(fields_text, method)
    passed = [verdict for verdict in verdicts if verdict.result is AuthenticationResultCode.PASS]
    preferred = [result for result in passed if result.domain == preferred_domain]
    return next(iter([*preferred, *passed, *verdicts]), None)


def passed_domains(fields_text: str, method: str) -> list[str]:
    """Return the domains that a method passed for in unfolded fields, one a line."""
    return [
        verdict.domain
        for verdict in _verdicts_of_fields(fields_text, method)
        if verdict.result is AuthenticationResultCode.PASS and verdict.domain
    ]


def has_valid_signature(fields_text: str, signers: Sequence[Sequence[str]] | None) -> bool:
    """True if a signer has a DKIM signature with the result "pass".

    `fields_text` has unfolded Authentication-Results fields, one per line. A signer is a selector
    and a domain; a result without selector is valid for each selector. None means any signer.
    """
    return any(
        signers is None
        or any(
            domain == verdict.domain and verdict.selector in (None, selector)
            for selector, domain in signers
        )
        for verdict in _verdicts_of_fields(fields_text, "dkim")
        if verdict.result is AuthenticationResultCode.PASS
    )


def _verdicts_of_fields(fields_text: str, method: str) -> list[MethodVerdict]:
    return [
        verdict
        for text in fields_text.split("\n")  # a comment can have other line separators of Unicode
        for verdict in _method_verdicts(text[:MAX_FIELD_LENGTH], method)
    ]


def _method_verdicts(text: str, method: str) -> Iterator[MethodVerdict]:
    """Yield the results of a method in one field. Results with unknown words are left out."""
    _, parsed_results = _authserv_id_and_method_results(text)
    results = [result for result in parsed_results if result.method == method]
    comments = re.findall(rf"(?i)(?:^|;)\s*{method}\s*=\s*\w+\s*(\([^()]*\))?", text)
    has_comments = len(comments) == len(results)  # else a comment can't be told from a value
    for nth, result in enumerate(results):
        code = AuthenticationResultCode.__members__.get(result.result.upper())
        if code is None:
            continue
        domain_values = (result.properties.get(name) for name in _DOMAIN_PROPERTIES[method])
        domain = next(
            (found for value in domain_values if value and (found := _valid_domain(value))), None
        )
        comment = comments[nth].strip("()").strip() if has_comments else ""
        reason = result.properties.get("reason") or comment or None
        yield MethodVerdict(code, domain, result.properties.get("header.s"), reason)


def _authserv_id_and_method_results(text: str) -> tuple[str, list[_MethodResult]]:
    """Return the authserv-id and the method results of a field."""
    first, *rest = _without_comments_and_quotes(text).split(";")
    results = []
    for statement in rest:
        words = "=".join(map(str.strip, statement.split("="))).split()
        pairs = [word.partition("=") for word in words if "=" in word]
        if pairs:
            (method, _, result), *method_pairs = pairs
            properties = {name.lower(): value for name, _, value in reversed(method_pairs)}
            results.append(
                _MethodResult(method.partition("/")[0].lower(), result.lower(), properties)
            )
    return next(iter(first.split()), ""), results


def _without_comments_and_quotes(text: str) -> str:
    """Remove comments and quotes; separators inside of quotes become "_".

    A space stays in the place of a comment, and between a quoted string and an atom beside it.
    """
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
                if at < len(text) and text[at] not in _AFTER_QUOTED:
                    out.append(" ")
            else:
                quoted += character
        elif character == "(":
            depth = 1
            out.append(" ")
        elif character == '"':
            quoted = character
            if out and out[-1][-1:] not in _BEFORE_QUOTED:
                out.append(" ")
        else:
            out.append(character)
    return "".join(out)


def _passed_domains(
    results: Sequence[_MethodResult], method: str, property_name: str, fallback_property: str
) -> Iterator[str]:
    """Yield the domain of each passed result of a method, read from the named property."""
    for result in results:
        if result.method == method and result.result == "pass":
            given = result.properties.get(property_name) or result.properties.get(
                fallback_property, ""
            )
            if domain := _valid_domain(given):
                yield domain


def _preferred_signing_domain(signing_domains: Sequence[str], sender_domain: str) -> str | None:
    """Return the first domain that is, or is above, the sender's; else the first domain."""
    over = [domain for domain in signing_domains if f".{sender_domain}".endswith(f".{domain}")]
    return next(iter([*over, *signing_domains]), None)


def _valid_domain(address: str) -> str | None:
    """Return the domain of an address or domain in lower case, None if it is invalid."""
    domain = address.rpartition("@")[2].rstrip(".").lower()
    return domain if _DOMAIN.fullmatch(domain) else None


def _method_verdict(results: Sequence[_MethodResult], method: str) -> str | None:
    """Return the first result of a method if it is pass, fail or none; else None."""
    result_word = next((result.result for result in results if result.method == method), None)
    return result_word if result_word in VERDICTS else None
