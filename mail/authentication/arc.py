"""ARC (RFC 8617): the check of the chain of a message, and the bytes that its seals sign.

Each server that sends a message on adds an ARC set of three fields with its number: the results
that it found, a signature of the message, and a seal of all sets up to its own.
"""

import asyncio
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from mail.authentication import dkim
from mail.authentication.dkim import (
    ALGORITHMS,
    RESULT_BY_KEY_ERROR,
    AuthResult,
    MessageSignature,
    SignedMessage,
    decode_base64,
)
from mail.authentication.dns_queries import DnsLimitExceeded, DnsUnavailable, MessageDns
from mail.authentication.header_fields import (
    CanonicalField,
    MalformedInput,
    parse_tags,
    required_ascii_tag,
    without_signature,
)
from mail.authentication.public_keys import KeyNotFound, WeakKey, find_key, is_domain

MAX_SETS = 50  # ARC sets of a message (RFC 8617, section 4.2.1)
RESULTS_FIELD, SIGNATURE_FIELD, SEAL_FIELD = ARC_FIELDS = (
    "arc-authentication-results",
    "arc-message-signature",
    "arc-seal",
)

_INSTANCE = re.compile(rb"[ \t\r\n]*i[ \t\r\n]*=[ \t\r\n]*([0-9]{1,3})[ \t\r\n]*;")


@dataclass(frozen=True, slots=True)
class ArcSet:
    """The three ARC fields of one server."""

    results: CanonicalField
    signature: CanonicalField
    seal: CanonicalField


@dataclass(frozen=True, slots=True)
class ArcChain:
    """The result of an ARC chain: none, pass or fail; temperror if DNS did not answer."""

    result: AuthResult = AuthResult.NONE
    arc_sets: Sequence[ArcSet] = ()  # the oldest first
    sealer_domains: Sequence[str] = ()  # only of a chain that has passed
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _ParsedSeal:
    """The tags of an ARC-Seal field."""

    field: CanonicalField
    domain: str
    selector: str
    algorithm: str
    signature: bytes
    chain_status: str  # cv=: the result of the chain before this seal


def parse_arc_sets(message: SignedMessage) -> list[ArcSet]:
    """The ARC sets of a message, the oldest first. Raises MalformedInput if they form no chain."""
    fields_by_instance: dict[str, dict[int, CanonicalField]] = {name: {} for name in ARC_FIELDS}
    for field in message.fields:
        if field.name in fields_by_instance:
            match = _INSTANCE.match(field.value)
            number = int(match[1]) if match else _instance_number(field)
            if number in fields_by_instance[field.name]:
                raise MalformedInput("duplicate ARC field")
            fields_by_instance[field.name][number] = field
    set_count = len(fields_by_instance[SEAL_FIELD])
    if set_count > MAX_SETS:
        raise MalformedInput(f"more than {MAX_SETS} ARC sets")
    if any(
        sorted(numbered_fields) != list(range(1, set_count + 1))
        for numbered_fields in fields_by_instance.values()
    ):
        raise MalformedInput("missing ARC field")
    return [
        ArcSet(
            fields_by_instance[RESULTS_FIELD][at],
            fields_by_instance[SIGNATURE_FIELD][at],
            fields_by_instance[SEAL_FIELD][at],
        )
        for at in range(1, set_count + 1)
    ]


def _instance_number(arc_field: CanonicalField) -> int:
    """The instance number of a field in which i= is not the first tag. Raises MalformedInput."""
    number = parse_tags(arc_field.value).get("i", "")
    if not number.isdecimal() or not number.isascii() or len(number) > len(str(MAX_SETS)):
        raise MalformedInput("invalid instance number in i=")
    return int(number)


async def check_chain(dns: MessageDns, message: SignedMessage, now: int) -> ArcChain:
    """Check the ARC chain of a message (RFC 8617, section 5.2). It never raises."""
    if not message.is_well_formed:
        return ArcChain(AuthResult.FAIL, reason="malformed message header")
    if not any(field.name in ARC_FIELDS for field in message.fields):
        return ArcChain()
    try:
        arc_sets = parse_arc_sets(message)
        seals = [_parse_seal(arc_set.seal) for arc_set in arc_sets]
        signature = _parse_message_signature(arc_sets[-1].signature)
    except MalformedInput as problem:
        return ArcChain(AuthResult.FAIL, reason=str(problem))
    statuses = [seal.chain_status for seal in seals]
    if statuses != ["none", *["pass"] * (len(statuses) - 1)]:
        return ArcChain(AuthResult.FAIL, arc_sets, reason="invalid cv= of an ARC-Seal")
    await message.compute_body_hashes([signature.body_form])
    proven = [
        dkim.verify_signature(dns, message, signature, now),
        *(_check_seal(dns, arc_sets, at, seal) for at, seal in enumerate(seals)),
    ]
    seal_results = await asyncio.gather(*proven)
    for result, why in ((arc_set.result, arc_set.reason) for arc_set in seal_results):
        if result is not AuthResult.PASS:
            failure = AuthResult.TEMPERROR if result is AuthResult.TEMPERROR else AuthResult.FAIL
            return ArcChain(failure, arc_sets, reason=why)
    return ArcChain(AuthResult.PASS, arc_sets, [seal.domain for seal in seals])


def _parse_message_signature(arc_field: CanonicalField) -> MessageSignature:
    signature = dkim.parse_signature(arc_field, parse_tags(arc_field.value))
    if SEAL_FIELD in signature.signed_fields:
        raise MalformedInput("ARC-Message-Signature signs ARC-Seal")
    return signature


def _parse_seal(arc_field: CanonicalField) -> _ParsedSeal:
    tags = parse_tags(arc_field.value)
    domain, selector = required_ascii_tag(tags, "d").lower(), required_ascii_tag(tags, "s")
    if "h" in tags or not (is_domain(domain) and is_domain(selector)):
        raise MalformedInput("invalid ARC-Seal")
    proof = decode_base64(required_ascii_tag(tags, "b"))
    algorithm = tags.get("a", "").lower()
    return _ParsedSeal(arc_field, domain, selector, algorithm, proof, tags.get("cv", "").lower())


async def _check_seal(
    dns: MessageDns, arc_sets: Sequence[ArcSet], index: int, seal: _ParsedSeal
) -> dkim.DkimResult:
    """Check the seal of the ARC set at `index`. It never raises."""

    def seal_result(result: AuthResult, why: str = "") -> dkim.DkimResult:
        return dkim.DkimResult(result, seal.domain, seal.selector, reason=why)

    if seal.algorithm not in ALGORITHMS:
        return seal_result(AuthResult.POLICY, "unsupported signature algorithm")
    try:
        key = await find_key(dns, seal.selector, seal.domain)
    except (KeyNotFound, WeakKey, DnsLimitExceeded, DnsUnavailable) as problem:
        return seal_result(RESULT_BY_KEY_ERROR[type(problem)], str(problem))
    digest = hashlib.sha256(sealed_bytes(arc_sets[: index + 1])).digest()
    proven = key.is_valid_signature(seal.algorithm, seal.signature, digest)
    return (
        seal_result(AuthResult.PASS)
        if proven
        else seal_result(AuthResult.FAIL, "ARC-Seal did not verify")
    )


def sealed_bytes(arc_sets: Sequence[ArcSet]) -> bytes:
    """The bytes that the seal of the last ARC set signs (RFC 8617, section 5.1.1)."""
    older = [
        arc_field.relaxed_form
        for link in arc_sets[:-1]
        for arc_field in (link.results, link.signature, link.seal)
    ]
    last = arc_sets[-1]
    seal_without_signature = without_signature(last.seal).relaxed_form.removesuffix(b"\r\n")
    return b"".join(
        [*older, last.results.relaxed_form, last.signature.relaxed_form, seal_without_signature]
    )


def find_trusted_sealer_of_dmarc_pass(
    arc_chain: ArcChain, trusted_domains: Sequence[str], dmarc_passed: Sequence[bool]
) -> str | None:
    """The trusted server that has seen DMARC pass, or None.

    All servers that have sealed the message after it must be trusted too. `dmarc_passed` tells of
    each ARC set, the oldest first, whether its results contain dmarc=pass.
    """
    if arc_chain.result is not AuthResult.PASS:
        return None
    names = {name.lower() for name in trusted_domains}
    for at in reversed(range(len(arc_chain.sealer_domains))):
        if arc_chain.sealer_domains[at] not in names:
            return None
        if dmarc_passed[at]:
            return arc_chain.sealer_domains[at]
    return None
