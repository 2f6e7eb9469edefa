"""The DNS records that a domain should have, and the check of the published ones.

MX (RFC 5321), SPF (RFC 7208), DMARC (RFC 7489) and TLS-RPT (RFC 8460) apply to every domain. DKIM
(RFC 6376), MTA-STS (RFC 8461), TLSA (RFC 7672) and service records (RFC 6186) need a key, a policy,
a certificate or a server. All domains share the address records of the server.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

import dns.reversename

from mail.addresses.address_syntax import ascii_domain
from mail.authentication import private_keys
from mail.domains import mta_sts_policy
from mail.domains.mta_sts_policy import HOST_PREFIX, MODE_OFF
from mail.domains.submission_servers import SubmissionServer, SubmissionTlsMode
from models.domains.dkim_keys import ALL_DOMAINS, DkimAlgorithm
from models.domains.dns_record_values import DnsRecordKind, DnsRecordPurpose

MAX_SHOWN_RECORDS = 10  # of one name
MAX_SHOWN_CHARACTERS = 1000  # of one record
STRICT_POLICIES = ("quarantine", "reject")
NOT_OFFERED = "This server does not offer the service."
NO_HOST_NAME = "Set MERGANSER_HOSTNAME to the name of this server."
NEEDED_WITH_IPV6 = "Only a server with a public IPv6 address needs it."
NEEDED_WITH_DNSSEC = "Only a domain that DNSSEC signs needs it (RFC 7672, section 2.1)."
NO_WEB_HOST = "Set MERGANSER_PUBLIC_URL to an https URL with port 443."
PASS_QUALIFIERS = ("+", "")  # of SPF mechanisms


class DnsState(StrEnum):
    """The result of comparing published DNS records with the advice."""

    OK = "OK"
    MISSING = "MISSING"
    MISMATCH = "MISMATCH"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True)
class RecordAdvice:
    """A DNS record that a domain should have."""

    type: DnsRecordKind
    name: str  # in ASCII, without the last dot
    value: str | None  # None: `instruction` says what to configure or publish
    purpose: DnsRecordPurpose
    check_published: Callable[[Sequence[str]], "RecordCheck"] | None = (
        None  # None: it is not checked
    )
    instruction: str | None = None
    optional_reason: str | None = None  # why mail works without the record; None: it is required


@dataclass(frozen=True, slots=True)
class RecordCheck:
    """The result of checking published records."""

    state: DnsState
    found: tuple[str, ...] = ()
    problem: str | None = None  # reason for UNKNOWN


@dataclass(frozen=True, slots=True)
class PublishedSigningKey:
    """A DKIM key with a record that should be published."""

    selector: str
    algorithm: DkimAlgorithm
    public_key: str  # the value of p=
    is_pending: bool = False


@dataclass(frozen=True, slots=True)
class DomainDnsFacts:
    """The facts of a domain that decide which records it needs."""

    domain: str
    hostname: str  # of this server
    is_backup_mx: bool = False  # this server is only a backup MX
    signing_keys: tuple[PublishedSigningKey, ...] = ()
    mta_sts_mode: str = MODE_OFF
    spki_sha256: str | None = None  # SHA-256 of the SMTP server's public key, in hexadecimal
    submission_servers: tuple[SubmissionServer, ...] = ()
    web_host: str = ""  # the host that serves HTTPS on port 443; empty: none


def advise_records(facts: DomainDnsFacts) -> list[RecordAdvice]:
    """All records that a domain should have, in the order of setting them up."""
    domain, host = ascii_domain(facts.domain), facts.hostname.lower()
    return [
        *_address_records(host),
        *_mail_records(facts, domain, host),
        *_service_records(facts, domain, host),
    ]


def _address_records(host: str) -> list[RecordAdvice]:
    """The address records of this server, without values: it doesn't know its public addresses."""
    if "." not in host:
        return [
            RecordAdvice(
                DnsRecordKind.A, host, None, DnsRecordPurpose.HOST_ADDRESS, instruction=NO_HOST_NAME
            )
        ]
    return [
        RecordAdvice(
            kind,
            host,
            None,
            DnsRecordPurpose.HOST_ADDRESS,
            partial(_record_check, is_right=True),
            f"Publish the public {protocol} address of the server.",
            optional_reason,
        )
        for kind, protocol, optional_reason in (
            (DnsRecordKind.A, "IPv4", None),
            (DnsRecordKind.AAAA, "IPv6", NEEDED_WITH_IPV6),
        )
    ]


def reverse_record_advice(address: str, host: str) -> RecordAdvice:
    """The advice for the PTR record of an address of this server."""
    return RecordAdvice(
        DnsRecordKind.PTR,
        dns.reversename.from_address(address).to_text(omit_final_dot=True),
        f"{host}.",
        DnsRecordPurpose.REVERSE_DNS,
        partial(check_ptr, host=host),
    )


def _mail_records(facts: DomainDnsFacts, domain: str, host: str) -> list[RecordAdvice]:
    """The records for receiving and sending mail."""
    report_tag = f"rua=mailto:postmaster@{domain}"
    has_host_name = "." in host
    no_name_text = None if has_host_name else NO_HOST_NAME

    def check_mx_records(published: Sequence[str]) -> RecordCheck:
        return check_mx(published, host, is_backup_mx=facts.is_backup_mx)

    def check_spf_records(published: Sequence[str]) -> RecordCheck:
        return check_spf(published, domain, host)

    return [
        RecordAdvice(
            DnsRecordKind.MX,
            domain,
            f"{20 if facts.is_backup_mx else 10} {host}." if has_host_name else None,
            DnsRecordPurpose.MX,
            check_mx_records if has_host_name else None,
            no_name_text,
        ),
        RecordAdvice(
            DnsRecordKind.TXT,
            domain,
            f"v=spf1 mx a:{host} ~all" if has_host_name else None,
            DnsRecordPurpose.SPF,
            check_spf_records if has_host_name else None,
            no_name_text,
        ),
        *_dkim_records(facts, domain),
        RecordAdvice(
            DnsRecordKind.TXT,
            f"_dmarc.{domain}",
            f"v=DMARC1; p=quarantine; {report_tag}",
            DnsRecordPurpose.DMARC,
            check_dmarc,
        ),
        *_mta_sts_records(facts, domain, host if has_host_name else ""),
        RecordAdvice(
            DnsRecordKind.TXT,
            f"_smtp._tls.{domain}",
            f"v=TLSRPTv1; {report_tag}",
            DnsRecordPurpose.TLS_RPT,
            check_tlsrpt,
        ),
    ]


def _dkim_records(facts: DomainDnsFacts, domain: str) -> list[RecordAdvice]:
    return [dkim_record_advice(facts.domain, key) for key in facts.signing_keys] or [
        RecordAdvice(
            DnsRecordKind.TXT,
            f"dkim._domainkey.{domain}",
            None,
            DnsRecordPurpose.DKIM,
            instruction="Create a DKIM key for the domain.",
        )
    ]


def _mta_sts_records(facts: DomainDnsFacts, domain: str, host: str) -> list[RecordAdvice]:
    has_policy = bool(host) and facts.mta_sts_mode != MODE_OFF and not facts.is_backup_mx
    no_policy_text = None if has_policy else _missing_policy_text(facts, host)
    record = mta_sts_policy.record_value(host, facts.mta_sts_mode)

    return [
        RecordAdvice(
            DnsRecordKind.TXT,
            f"_mta-sts.{domain}",
            record if has_policy else None,
            DnsRecordPurpose.MTA_STS,
            (lambda found: check_mta_sts(found, record)) if has_policy else None,
            no_policy_text,
        ),
        RecordAdvice(
            DnsRecordKind.CNAME,
            f"{HOST_PREFIX}{domain}",
            f"{host}." if has_policy else None,
            DnsRecordPurpose.MTA_STS_HOST,
            partial(check_cname, host=host) if has_policy else None,
            no_policy_text,
        ),
    ]


def _missing_policy_text(facts: DomainDnsFacts, host: str) -> str:
    """Return what to configure before the domain can have an MTA-STS policy."""
    if facts.is_backup_mx:
        return "The primary server of the domain has the MTA-STS policy."
    if not host:
        return NO_HOST_NAME
    return "Set mtaSts.mode to testing or enforce."


def check_mta_sts(published: Sequence[str], record: str) -> RecordCheck:
    """Check the MTA-STS record: exactly one, with the id of the current policy."""
    records = [tags for text in published if (tags := _parse_tags(text)).get("v") == "STSv1"]
    return _record_check(
        published, is_right=[tags.get("id") for tags in records] == [_parse_tags(record)["id"]]
    )


def dkim_record_advice(domain: str, signing_key: PublishedSigningKey) -> RecordAdvice:
    """The advice for the record of a DKIM key. For a key of all domains the name is relative."""
    name = f"{signing_key.selector}._domainkey"
    return RecordAdvice(
        DnsRecordKind.TXT,
        name if domain == ALL_DOMAINS else f"{name}.{ascii_domain(domain)}",
        private_keys.dns_record(signing_key.algorithm, signing_key.public_key),
        DnsRecordPurpose.DKIM_PENDING if signing_key.is_pending else DnsRecordPurpose.DKIM,
        lambda found: check_dkim(found, signing_key.public_key),
    )


def _service_records(facts: DomainDnsFacts, domain: str, host: str) -> list[RecordAdvice]:
    """The TLSA record, and the records that mail programs look up."""
    # without a host name there is no TLSA name
    tlsa_digest = facts.spki_sha256 if "." in host else None
    return [
        RecordAdvice(
            DnsRecordKind.TLSA,
            f"_25._tcp.{host}",
            f"3 1 1 {tlsa_digest}" if tlsa_digest else None,
            DnsRecordPurpose.DANE,
            partial(check_tlsa, spki_sha256=tlsa_digest) if tlsa_digest else None,
            None if tlsa_digest else "Add a TLS certificate for the name of this server.",
            NEEDED_WITH_DNSSEC,
        ),
        *_configuration_records(facts, domain),
        RecordAdvice(
            DnsRecordKind.SRV,
            f"_imaps._tcp.{domain}",
            None,
            DnsRecordPurpose.IMAPS,
            instruction=NOT_OFFERED,
        ),
        _submissions_record(facts, domain),
    ]


def _configuration_records(facts: DomainDnsFacts, domain: str) -> list[RecordAdvice]:
    """The records by which mail programs find their settings."""
    name_by_purpose = {
        DnsRecordPurpose.AUTOCONFIG: (DnsRecordKind.CNAME, f"autoconfig.{domain}"),
        DnsRecordPurpose.AUTODISCOVER: (DnsRecordKind.SRV, f"_autodiscover._tcp.{domain}"),
    }
    if facts.is_backup_mx or not facts.submission_servers or not facts.web_host:
        is_offered = facts.submission_servers and not facts.is_backup_mx
        reason = NO_WEB_HOST if is_offered else NOT_OFFERED
        return [
            RecordAdvice(kind, name, None, purpose, instruction=reason)
            for purpose, (kind, name) in name_by_purpose.items()
        ]
    web_host = facts.web_host.lower()
    return [
        RecordAdvice(
            kind,
            name,
            f"{web_host}." if kind is DnsRecordKind.CNAME else f"0 0 443 {web_host}.",
            purpose,
            partial(check_cname, host=web_host)
            if kind is DnsRecordKind.CNAME
            else partial(check_srv, host=web_host, port=443),
        )
        for purpose, (kind, name) in name_by_purpose.items()
    ]


def _submissions_record(facts: DomainDnsFacts, domain: str) -> RecordAdvice:
    """The record of the submission server with implicit TLS (RFC 8314)."""
    name = f"_submissions._tcp.{domain}"
    for server in () if facts.is_backup_mx else facts.submission_servers:
        if server.tls_mode is SubmissionTlsMode.IMPLICIT:
            return RecordAdvice(
                DnsRecordKind.SRV,
                name,
                f"0 1 {server.port} {server.host.lower()}.",
                DnsRecordPurpose.SUBMISSIONS,
                partial(check_srv, host=server.host.lower(), port=server.port),
            )
    return RecordAdvice(
        DnsRecordKind.SRV,
        name,
        None,
        DnsRecordPurpose.SUBMISSIONS,
        instruction=NOT_OFFERED,
    )


def check_cname(published: Sequence[str], *, host: str) -> RecordCheck:
    """Check a CNAME record: exactly this host."""
    return _record_check(
        published, is_right=[text.rstrip(".").lower() for text in published] == [host]
    )


def check_ptr(published: Sequence[str], *, host: str) -> RecordCheck:
    """Check PTR records: one must have this host."""
    return _record_check(
        published, is_right=host in [text.rstrip(".").lower() for text in published]
    )


def check_srv(published: Sequence[str], *, host: str, port: int) -> RecordCheck:
    """Check SRV records like "0 1 465 mx.example.org.": one must have this host and port."""
    targets = [text.rstrip(".").lower().split()[2:] for text in published]
    return _record_check(published, is_right=[str(port), host] in targets)


def check_mx(published: Sequence[str], host: str, *, is_backup_mx: bool) -> RecordCheck:
    """Check MX records like "10 mx.example.org.".

    This server must have the best preference. For a backup MX, any preference is right.
    """
    mx_hosts = []
    for text in published:
        preference, _, name = text.partition(" ")
        mx_hosts.append((int(preference), name.rstrip(".").lower()))
    own_preferences = [preference for preference, name in mx_hosts if name == host]
    best_preference = min((preference for preference, _ in mx_hosts), default=0)
    is_right = bool(own_preferences) and (is_backup_mx or min(own_preferences) == best_preference)
    return _record_check(published, is_right=is_right)


def check_spf(published: Sequence[str], domain: str, host: str) -> RecordCheck:
    """Check the SPF record: exactly one, with a mechanism that passes mail of this server."""
    records = [text for text in published if re.match(r"v=spf1( |$)", text, re.IGNORECASE)]
    own_mechanisms = {"mx", f"mx:{domain}", f"a:{host}"}
    terms = [term.lower().rstrip(".") for text in records for term in text.split()[1:]]
    is_right = any(
        term[: -len(name)] in PASS_QUALIFIERS
        for name in own_mechanisms
        for term in terms
        if term.endswith(name)
    )
    return _record_check(records, is_right=is_right and len(records) == 1)


def check_dmarc(published: Sequence[str]) -> RecordCheck:
    """Check the DMARC record: exactly one, with quarantine or reject for all mail."""
    records = [tags for text in published if (tags := _parse_tags(text)).get("v") == "DMARC1"]
    is_right = len(records) == 1 and records[0].get("p", "").lower() in STRICT_POLICIES
    return _record_check(published, is_right=is_right and records[0].get("pct", "100") == "100")


def check_dkim(published: Sequence[str], public_key: str) -> RecordCheck:
    """Check the DKIM record: exactly one, with this key. An empty p= means that it is revoked."""
    is_right = len(published) == 1 and private_keys.is_record_of_key(published[0], public_key)
    return _record_check(published, is_right=is_right)


def check_tlsrpt(published: Sequence[str]) -> RecordCheck:
    """Check the TLS-RPT record: exactly one, with an address for reports."""
    records = [tags for text in published if (tags := _parse_tags(text)).get("v") == "TLSRPTv1"]
    return _record_check(published, is_right=len(records) == 1 and bool(records[0].get("rua")))


def check_tlsa(published: Sequence[str], *, spki_sha256: str) -> RecordCheck:
    """Check the TLSA records: one must be `3 1 1` with this hash of the public key (RFC 7672).

    `spki_sha256` is in lower-case hex. Without such a record, the result is UNKNOWN if one has
    usage 2 (a certificate authority), since the chain is not checked, or usage 3 in another form
    than `3 1 1`, which is not compared; otherwise MISMATCH or MISSING.
    """
    records = [text.lower().split() for text in published]
    if any(
        record[:3] == ["3", "1", "1"] and "".join(record[3:]) == spki_sha256 for record in records
    ):
        return _record_check(published, is_right=True)
    uncompared_problems = [
        problem for record in records if (problem := _uncompared_tlsa_problem_or_none(record))
    ]
    if uncompared_problems:
        shown_records = tuple(text[:MAX_SHOWN_CHARACTERS] for text in published[:MAX_SHOWN_RECORDS])
        return RecordCheck(DnsState.UNKNOWN, shown_records, uncompared_problems[0])
    return _record_check(published, is_right=False)


def _uncompared_tlsa_problem_or_none(record: Sequence[str]) -> str | None:
    """Return why a TLSA record can't be compared with the key; None if it can be."""
    if record[:1] == ["2"]:
        return "The TLSA record names a certificate authority, and no key of this server."
    is_other_form = record[1:3] != ["1", "1"] and record[1:2] in (["0"], ["1"])
    if record[:1] == ["3"] and is_other_form and record[2:3] in (["0"], ["1"], ["2"]):
        return "Only TLSA records of the form `3 1 1` are compared with the key of this server."
    return None


def _parse_tags(record_text: str) -> dict[str, str]:
    """The tags of a record such as "v=DMARC1; p=none", with names in lower case."""
    pairs = (part.partition("=") for part in record_text.split(";"))
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def _record_check(published: Sequence[str], *, is_right: bool) -> RecordCheck:
    """The check result: MISSING without records, else OK or MISMATCH."""
    if not published:
        return RecordCheck(DnsState.MISSING)
    state = DnsState.OK if is_right else DnsState.MISMATCH
    return RecordCheck(
        state, tuple(text[:MAX_SHOWN_CHARACTERS] for text in published[:MAX_SHOWN_RECORDS])
    )
