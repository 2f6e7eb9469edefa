"""The DNS records that a domain should have, and the check of the published ones.

MX (RFC 5321), SPF (RFC 7208), DMARC (RFC 7489) and TLS-RPT (RFC 8460) apply to every domain. DKIM
(RFC 6376), MTA-STS (RFC 8461), TLSA (RFC 7672) and service records (RFC 6186) need a key, a policy,
a certificate or a server.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from mail.addresses.address_syntax import ascii_domain
from mail.authentication import private_keys
from mail.domains import mta_sts_policy
from mail.domains.mta_sts_policy import BEFORE, OFF
from models.domains.dkim_keys import ALL, DkimAlgorithm

UNSET = "not configured: "  # prefix of a value that needs configuration first
FOUND = 10  # of one name
SHOWN = 1000  # of one record
STRICT = ("quarantine", "reject")
PASSES = ("+", "")  # of SPF mechanisms


class DnsState(StrEnum):
    """The result of comparing published DNS records with the advice."""

    OK = "OK"
    MISSING = "MISSING"
    DIFFERENT = "DIFFERENT"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True)
class Advice:
    """A DNS record that a domain should have."""

    type: str
    name: str  # in ASCII, without the last dot
    value: str
    purpose: str
    judge: Callable[[Sequence[str]], "Judged"] | None = None  # None: it is not checked


@dataclass(frozen=True, slots=True)
class Judged:
    """The result of checking published records."""

    state: DnsState
    found: tuple[str, ...] = ()
    problem: str | None = None  # reason for UNKNOWN


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A DKIM key with a record that should be published."""

    selector: str
    algorithm: DkimAlgorithm
    public: str  # the value of p=
    waits: bool = False


@dataclass(frozen=True, slots=True)
class Ours:
    """The facts of a domain that decide which records it needs."""

    domain: str
    hostname: str  # of this server
    backup: bool = False  # this server is only a backup MX
    keys: tuple[SigningKey, ...] = ()
    mta_sts: str = OFF
    spki: str | None = None  # SHA-256 of the SMTP server's public key, in hexadecimal


def advise(ours: Ours) -> list[Advice]:
    """All records that a domain should have, in the order of setting them up."""
    domain, host = ascii_domain(ours.domain), ours.hostname.lower()
    return [*_sending(ours, domain, host), *_services(ours.spki, domain, host)]


def _sending(ours: Ours, domain: str, host: str) -> list[Advice]:
    """The records for receiving and sending mail."""
    postmaster = f"rua=mailto:postmaster@{domain}"
    named = "." in host
    nameless = f"{UNSET}this machine has no name, set MERGANSER_HOSTNAME"

    def check_mx_records(found: Sequence[str]) -> Judged:
        return judged_mx(found, host, backup=ours.backup)

    def check_spf_records(found: Sequence[str]) -> Judged:
        return judged_spf(found, domain, host)

    return [
        Advice(
            "MX",
            domain,
            f"{20 if ours.backup else 10} {host}." if named else nameless,
            "Mail for the domain comes here",
            check_mx_records if named else None,
        ),
        Advice(
            "TXT",
            domain,
            f"v=spf1 mx a:{host} ~all" if named else nameless,
            "SPF: which servers send mail of the domain",
            check_spf_records if named else None,
        ),
        *_dkim(ours, domain),
        Advice(
            "TXT",
            f"_dmarc.{domain}",
            f"v=DMARC1; p=quarantine; {postmaster}",
            "DMARC: what others do with mail that only claims to be from the domain",
            judged_dmarc,
        ),
        *_mta_sts(ours, domain, host if named else ""),
        Advice(
            "TXT",
            f"_smtp._tls.{domain}",
            f"v=TLSRPTv1; {postmaster}",
            "TLS-RPT: where reports of failed encryption go",
            judged_tlsrpt,
        ),
    ]


def _dkim(ours: Ours, domain: str) -> list[Advice]:
    return [dkim_advice(ours.domain, key) for key in ours.keys] or [
        Advice(
            "TXT",
            f"dkim._domainkey.{domain}",
            f"{UNSET}the domain has no key yet",
            "DKIM: the key that mail of the domain is signed with",
        )
    ]


def _mta_sts(ours: Ours, domain: str, host: str) -> list[Advice]:
    there = bool(host) and ours.mta_sts != OFF and not ours.backup
    nothing = f"{UNSET}there is no policy yet"
    record = mta_sts_policy.record(host, ours.mta_sts)

    def check_cname(found: Sequence[str]) -> Judged:
        return _judged(found, right=[text.rstrip(".").lower() for text in found] == [host])

    return [
        Advice(
            "TXT",
            f"_mta-sts.{domain}",
            record if there else nothing,
            "MTA-STS: that the domain has a policy for encryption",
            (lambda found: judged_sts(found, record)) if there else None,
        ),
        Advice(
            "CNAME",
            f"{BEFORE}{domain}",
            f"{host}." if there else nothing,
            "MTA-STS: the host that serves the policy",
            check_cname if there else None,
        ),
    ]


def judged_sts(found: Sequence[str], record: str) -> Judged:
    """Check the MTA-STS record: exactly one, with the id of the current policy."""
    records = [tags for text in found if (tags := _tags(text)).get("v") == "STSv1"]
    return _judged(found, right=[tags.get("id") for tags in records] == [_tags(record)["id"]])


def dkim_advice(domain: str, key: SigningKey) -> Advice:
    """The advice for the record of a DKIM key. For a key of all domains the name is relative."""
    name = f"{key.selector}._domainkey"
    signed = "will be signed" if key.waits else "is signed"
    return Advice(
        "TXT",
        name if domain == ALL else f"{name}.{ascii_domain(domain)}",
        private_keys.record(key.algorithm, key.public),
        f"DKIM: the key that mail of the domain {signed} with",
        lambda found: judged_dkim(found, key.public),
    )


def _services(spki: str | None, domain: str, host: str) -> list[Advice]:
    """The TLSA record, and the records that mail programs look up."""
    nothing = f"{UNSET}this server does not offer it yet"
    dane = spki if "." in host else None  # without a host name there is no TLSA name
    return [
        Advice(
            "TLSA",
            f"_25._tcp.{host}",
            f"3 1 1 {dane}" if dane else f"{UNSET}there is no certificate yet",
            "DANE: the certificate of the server that takes mail",
            partial(judged_tlsa, spki=dane) if dane else None,
        ),
        Advice("CNAME", f"autoconfig.{domain}", nothing, "Settings for Thunderbird and its kind"),
        Advice("SRV", f"_autodiscover._tcp.{domain}", nothing, "Settings for Outlook and its kind"),
        Advice("SRV", f"_imaps._tcp.{domain}", nothing, "Where programs read mail"),
        Advice("SRV", f"_submissions._tcp.{domain}", nothing, "Where programs send mail"),
    ]


def judged_mx(found: Sequence[str], host: str, *, backup: bool) -> Judged:
    """Check MX records like "10 mx.example.org.".

    This server must have the best preference. For a backup MX, any preference is right.
    """
    servers = []
    for text in found:
        preference, _, name = text.partition(" ")
        servers.append((int(preference), name.rstrip(".").lower()))
    ours = [preference for preference, name in servers if name == host]
    best = min((preference for preference, _ in servers), default=0)
    right = bool(ours) and (backup or min(ours) == best)
    return _judged(found, right=right)


def judged_spf(found: Sequence[str], domain: str, host: str) -> Judged:
    """Check the SPF record: exactly one, with a mechanism that passes mail of this server."""
    records = [text for text in found if re.match(r"v=spf1( |$)", text, re.IGNORECASE)]
    ours = {"mx", f"mx:{domain}", f"a:{host}"}
    terms = [term.lower().rstrip(".") for text in records for term in text.split()[1:]]
    right = any(
        term[: -len(name)] in PASSES for name in ours for term in terms if term.endswith(name)
    )
    return _judged(records, right=right and len(records) == 1)


def judged_dmarc(found: Sequence[str]) -> Judged:
    """Check the DMARC record: exactly one, with quarantine or reject for all mail."""
    records = [tags for text in found if (tags := _tags(text)).get("v") == "DMARC1"]
    right = len(records) == 1 and records[0].get("p", "").lower() in STRICT
    return _judged(found, right=right and records[0].get("pct", "100") == "100")


def judged_dkim(found: Sequence[str], public: str) -> Judged:
    """Check the DKIM record: exactly one, with this key. An empty p= means that it is revoked."""
    right = len(found) == 1 and private_keys.is_record(found[0], public)
    return _judged(found, right=right)


def judged_tlsrpt(found: Sequence[str]) -> Judged:
    """Check the TLS-RPT record: exactly one, with an address for reports."""
    records = [tags for text in found if (tags := _tags(text)).get("v") == "TLSRPTv1"]
    return _judged(found, right=len(records) == 1 and bool(records[0].get("rua")))


def judged_tlsa(found: Sequence[str], *, spki: str) -> Judged:
    """Check the TLSA records: one must match the public key (RFC 7672, section 3.1).

    The result for records of an authority only is UNKNOWN, since its certificate is not checked.
    """
    records = [text.lower().split() for text in found]
    if any(record[:3] == ["3", "1", "1"] and "".join(record[3:]) == spki for record in records):
        return _judged(found, right=True)
    if any(record[:1] == ["2"] for record in records):
        shown = tuple(text[:SHOWN] for text in found[:FOUND])
        return Judged(DnsState.UNKNOWN, shown, "it names an authority, and no key of ours")
    return _judged(found, right=False)


def _tags(text: str) -> dict[str, str]:
    """The tags of a record such as "v=DMARC1; p=none", with names in lower case."""
    pairs = (part.partition("=") for part in text.split(";"))
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def _judged(found: Sequence[str], *, right: bool) -> Judged:
    """The check result: MISSING without records, else OK or DIFFERENT."""
    if not found:
        return Judged(DnsState.MISSING)
    state = DnsState.OK if right else DnsState.DIFFERENT
    return Judged(state, tuple(text[:SHOWN] for text in found[:FOUND]))
