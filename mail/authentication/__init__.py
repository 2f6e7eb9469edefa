"""Authentication of the sender of a message by SPF, DKIM, DMARC and ARC.

The results are stored with the message and written into its header. A message that is sent on is
sealed (`arc_seal`). No check refuses mail because DNS does not answer.
"""

import asyncio
import hashlib
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import idna

from mail.addresses.address_syntax import ascii_domain
from mail.authentication import arc, dkim, dmarc, results_removal, spf
from mail.authentication.arc_seal import make_arc_fields
from mail.authentication.dkim import THREAD_THRESHOLD, AuthResult, SignedMessage
from mail.authentication.dmarc import MAX_AUTHOR_DOMAINS
from mail.authentication.dns_queries import MessageDns
from mail.authentication.header_fields import (
    MAX_HEADER_SIZE,
    read_header_and_body_offset,
    split_header_and_body,
)
from mail.authentication.results import AuthenticationFindings
from mail.authentication.results_removal import remove_own_results
from mail.authentication.spf import SpfResult
from mail.envelope.client import SmtpClientInfo
from mail.mime import ParsedAddress, parse_address_list, trusted_results
from mail.mime.authentication_results import authentication_results_fields, method_result
from mail.mime.encoded_words import unfold_and_decode_utf8
from mail.mime.header_fields import RawField
from mail.mime.header_fields import parse_fields as parse_raw_fields
from models.observability import metrics
from models.runtime.environment import Environment

__all__ = [
    "AuthenticationFindings",
    "author_domains",
    "check_message",
    "make_arc_fields",
    "remove_own_results",
    "replace_own_results_header",
]

_DOMAIN_IN_TEXT = re.compile(r"@([^\s@<>()\[\]\",:;\\]+)")  # domains in text that is not an address
CHECKS = metrics.counter(
    "merganser_authentication",
    "Checks of who sent a message, by what they came to.",
    "method",
    "result",
)


async def check_message(
    environment: Environment,
    source: bytes | Path,
    client: SmtpClientInfo | None,
    envelope_sender: str,
) -> AuthenticationFindings:
    """Check a message with SPF, DKIM, DMARC and ARC, within some seconds. It never raises for DNS.

    If the client is unknown, the SPF result is taken from an Authentication-Results field of a
    trusted server.
    """
    options = environment.options
    near = isinstance(source, bytes) and len(source) < THREAD_THRESHOLD
    checked = _read_message(source) if near else await asyncio.to_thread(_read_message, source)
    message, authors = checked.message, checked.author_domains
    names = MessageDns(options.dns_resolver)
    now = int(environment.now().timestamp())
    # DMARC first, so that a sender can't use up the DNS limit before it is looked up
    policies = [await dmarc.find_policy_or_temperror(names, each) for each in authors]
    first = next(iter(authors), "")
    signatures, sender_may, chain = await asyncio.gather(
        dkim.verify_signatures(names, message, now, first),
        _check_spf_or_use_trusted_result(
            environment, names, client, (envelope_sender, checked.fields)
        ),
        arc.check_chain(names, message, now),
    )
    judged = [
        dmarc.evaluate(author, policy, sender_may, signatures)
        for author, policy in zip(authors, policies, strict=True)
    ]
    worst = dmarc.worst_result(judged)
    sealer = None
    if worst.result is AuthResult.FAIL:
        sealer = arc.trusted_sealer_seeing_dmarc_pass(
            chain, options.arc_trusted_domains, _dmarc_passed_per_arc_set(chain)
        )
    found = AuthenticationFindings(sender_may, signatures, worst, chain, sealer)
    _count_results(found)
    return found


@dataclass(frozen=True, slots=True)
class _CheckedMessage:
    """A message as the checks read it."""

    message: SignedMessage
    fields: list[RawField]
    author_domains: list[str]  # in From, as A-labels


def _read_message(source: bytes | Path) -> _CheckedMessage:
    """Read a message for the checks."""
    if isinstance(source, Path):
        message, (head, _) = SignedMessage.from_file(source), read_header_and_body_offset(source)
    else:
        message, (head, _) = SignedMessage.from_bytes(source), split_header_and_body(source)
    own = parse_raw_fields(head[:MAX_HEADER_SIZE])
    return _CheckedMessage(message, own, _author_domains(own))


async def _check_spf_or_use_trusted_result(
    environment: Environment,
    dns: MessageDns,
    client: SmtpClientInfo | None,
    sender_and_fields: tuple[str, Sequence[RawField]],
) -> SpfResult | None:
    """The SPF result of the client, or of the trusted server before this one; None if unknown.

    `sender_and_fields` are the envelope sender and the header fields.
    """
    sender, own = sender_and_fields
    if client is not None:
        here = client.ip_address is not None
        return (
            await spf.check_sender(dns, client.ip_address or "", client.helo_name, sender)
            if here
            else None
        )
    options = environment.options
    found = trusted_results(
        authentication_results_fields(own), options.authserv_ids, options.authserv_hops, ""
    )
    if found is None:
        return None
    passed = found["spf"]
    return (
        SpfResult(AuthResult.PASS, passed)
        if passed
        else SpfResult(AuthResult.NONE, reason="by the server before")
    )


def author_domains(header: bytes) -> list[str]:
    """The first domains in From of a header, as A-labels."""
    return _author_domains(parse_raw_fields(header))


def _author_domains(fields: Sequence[RawField]) -> list[str]:
    """The first domains in From, as A-labels."""
    found: dict[str, None] = {}
    for name, value in fields:
        if name == "from" and len(found) < MAX_AUTHOR_DOMAINS:
            for each in parse_address_list(unfold_and_decode_utf8(value)):
                for domain in _domains_of_author(each):
                    found[domain.lower()] = None
    return list(found)[:MAX_AUTHOR_DOMAINS]


def _domains_of_author(author: ParsedAddress) -> Iterator[str]:
    """Yield the domains of an author; of text that is not an address, all domains in it."""
    names = (
        [author.address.rpartition("@")[2]]
        if author.address
        else _DOMAIN_IN_TEXT.findall(author.name or "")
    )
    for name in names:
        with suppress(idna.IDNAError):
            if domain := ascii_domain(name.strip().rstrip(".")):
                yield domain


def _dmarc_passed_per_arc_set(arc_chain: arc.ArcChain) -> list[bool]:
    """For each ARC set, the oldest first, whether its results contain dmarc=pass."""
    found = []
    for arc_set in arc_chain.arc_sets:
        _, _, results = arc_set.results.value.decode("latin-1").partition(";")
        found.append(method_result(unfold_and_decode_utf8(results), "dmarc") == "pass")
    return found


def _count_results(results: AuthenticationFindings) -> None:
    CHECKS.add("spf", results.spf.result.value if results.spf else "unknown")
    CHECKS.add("dkim", next(iter(sorted(_dkim_results(results))), "none"))
    CHECKS.add("dmarc", results.dmarc.result.value)
    CHECKS.add("arc", results.arc.result.value)


def _dkim_results(findings: AuthenticationFindings) -> list[str]:
    """The DKIM results for the metric: only "pass" if one signature has passed."""
    results = [each.result.value for each in findings.dkim]
    return ["pass"] if "pass" in results else results


async def replace_own_results_header(
    source: bytes | Path,
    results: AuthenticationFindings,
    hostname: str,
    authserv_ids: Collection[str],
) -> tuple[bytes | Path, str]:
    """Put Authentication-Results before a message; also return the SHA-256 (hex) of the original.

    Removes results in the name of this host and of these authserv-ids. A file is rewritten in
    place.
    """
    top, names = (
        results.to_header_field(hostname),
        results_removal.comparable_names((hostname, *authserv_ids)),
    )
    if isinstance(source, bytes):
        return top + results_removal.remove_results(source, names), hashlib.sha256(
            source
        ).hexdigest()
    return source, await asyncio.to_thread(
        results_removal.rewrite_without_results_and_hash, source, top, names
    )
