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
from typing import NamedTuple

import idna

from mail.addresses.address_syntax import ascii_domain
from mail.authentication import arc, dkim, dmarc, results_removal, spf
from mail.authentication.arc_seal import make_arc_fields_or_empty
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
from mail.mime import ParsedAddress, parse_address_list, results_of_trusted_servers_or_none
from mail.mime.authentication_results import authentication_results_fields, method_result_or_none
from mail.mime.encoded_words import unfold_and_decode_utf8
from mail.mime.header_fields import RawField
from mail.mime.header_fields import parse_fields_with_lowercase_names as parse_raw_fields
from models.observability import metrics
from models.runtime.environment import Environment

__all__ = [
    "AuthenticationFindings",
    "author_domains",
    "check_spf_dkim_dmarc_and_arc",
    "make_arc_fields_or_empty",
    "remove_own_results",
    "rewrite_own_results_and_hash_original",
]

_DOMAIN_IN_TEXT = re.compile(r"@([^\s@<>()\[\]\",:;\\]+)")  # domains in text that is not an address
CHECKS = metrics.counter(
    "merganser_authentication",
    "Results of SPF, DKIM, DMARC and ARC.",
    "method",
    "result",
)


async def check_spf_dkim_dmarc_and_arc(
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
    in_memory = isinstance(source, bytes) and len(source) < THREAD_THRESHOLD
    checked = _read_message(source) if in_memory else await asyncio.to_thread(_read_message, source)
    message, authors = checked.message, checked.author_domains
    names = MessageDns(options.dns_resolver)
    now = int(environment.now().timestamp())
    # DMARC first, so that a sender can't use up the DNS limit before it is looked up
    policies = [await dmarc.find_policy_or_temperror(names, author) for author in authors]
    first = next(iter(authors), "")
    signatures, sender_may, chain = await asyncio.gather(
        dkim.verify_signatures(names, message, now, first),
        _check_spf_or_use_trusted_result(
            environment, names, client, (envelope_sender, checked.fields)
        ),
        arc.check_chain(names, message, now),
    )
    dmarc_results = [
        dmarc.evaluate_dmarc(author, policy, sender_may, signatures)
        for author, policy in zip(authors, policies, strict=True)
    ]
    worst = dmarc.worst_dmarc_result_or_permerror(dmarc_results)
    sealer = None
    if worst.result is AuthResult.FAIL:
        sealer = arc.find_trusted_sealer_of_dmarc_pass(
            chain, options.arc_trusted_domains, _dmarc_passed_per_arc_set(chain)
        )
    findings = AuthenticationFindings(sender_may, signatures, worst, chain, sealer)
    _count_results(findings)
    return findings


@dataclass(frozen=True, slots=True)
class _MessageToCheck:
    """A message as the checks read it."""

    message: SignedMessage
    fields: list[RawField]
    author_domains: list[str]  # in From, as A-labels


def _read_message(source: bytes | Path) -> _MessageToCheck:
    """Read a message for the checks."""
    if isinstance(source, Path):
        message, (head, _) = SignedMessage.from_file(source), read_header_and_body_offset(source)
    else:
        message, (head, _) = SignedMessage.from_bytes(source), split_header_and_body(source)
    own_fields = parse_raw_fields(head[:MAX_HEADER_SIZE])
    return _MessageToCheck(message, own_fields, _author_domains(own_fields))


async def _check_spf_or_use_trusted_result(
    environment: Environment,
    dns: MessageDns,
    client: SmtpClientInfo | None,
    sender_and_fields: tuple[str, Sequence[RawField]],
) -> SpfResult | None:
    """The SPF result of the client, or of the trusted server before this one; None if unknown.

    `sender_and_fields` are the envelope sender and the header fields.
    """
    sender, own_fields = sender_and_fields
    if client is not None:
        is_known_client = client.ip_address is not None
        return (
            await spf.check_sender(dns, client.ip_address or "", client.helo_name, sender)
            if is_known_client
            else None
        )
    options = environment.options
    results = results_of_trusted_servers_or_none(
        authentication_results_fields(own_fields), options.authserv_ids, options.authserv_hops, ""
    )
    if results is None:
        return None
    passed = results["spf"]
    return (
        SpfResult(AuthResult.PASS, passed)
        if passed
        else SpfResult(AuthResult.NONE, reason="checked by an earlier server")
    )


def author_domains(header: bytes) -> list[str]:
    """The first domains in From of a header, as A-labels."""
    return _author_domains(parse_raw_fields(header))


def _author_domains(fields: Sequence[RawField]) -> list[str]:
    """The first domains in From, as A-labels."""
    domains: dict[str, None] = {}
    for name, value in fields:
        if name == "from" and len(domains) < MAX_AUTHOR_DOMAINS:
            for address in parse_address_list(unfold_and_decode_utf8(value)):
                for domain in _domains_of_author(address):
                    domains[domain.lower()] = None
    return list(domains)[:MAX_AUTHOR_DOMAINS]


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
    passed_domains = []
    for arc_set in arc_chain.arc_sets:
        _, _, results = arc_set.results.value.decode("latin-1").partition(";")
        passed_domains.append(
            method_result_or_none(unfold_and_decode_utf8(results), "dmarc") == "pass"
        )
    return passed_domains


def _count_results(results: AuthenticationFindings) -> None:
    CHECKS.add("spf", results.spf.result.value if results.spf else "unknown")
    CHECKS.add("dkim", next(iter(sorted(_dkim_results(results))), "none"))
    CHECKS.add("dmarc", results.dmarc.result.value)
    CHECKS.add("arc", results.arc.result.value)


def _dkim_results(findings: AuthenticationFindings) -> list[str]:
    """The DKIM results for the metric: only "pass" if one signature has passed."""
    results = [dkim_result.result.value for dkim_result in findings.dkim]
    return ["pass"] if "pass" in results else results


class MessageWithResults(NamedTuple):
    """A message with Authentication-Results, and the SHA-256 (hex) of the original."""

    source: bytes | Path
    original_sha256: str


async def rewrite_own_results_and_hash_original(
    source: bytes | Path,
    results: AuthenticationFindings,
    hostname: str,
    authserv_ids: Collection[str],
) -> MessageWithResults:
    """Put Authentication-Results before a message; also return the SHA-256 (hex) of the original.

    Removes results in the name of this host and of these authserv-ids. A file is rewritten in
    place.
    """
    top = results.to_header_field(hostname)
    names = results_removal.comparable_names((hostname, *authserv_ids))
    if isinstance(source, bytes):
        return MessageWithResults(
            top + results_removal.remove_authentication_results_of_servers(source, names),
            hashlib.sha256(source).hexdigest(),
        )
    return MessageWithResults(
        source,
        await asyncio.to_thread(
            results_removal.rewrite_without_results_and_hash_original, source, top, names
        ),
    )
