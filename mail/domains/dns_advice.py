"""What DNS should say of a domain, and whether what it says will do.

MX (RFC 5321), SPF (RFC 7208), DMARC (RFC 7489) and TLS-RPT (RFC 8460) can be said of every
domain; DKIM (RFC 6376), MTA-STS (RFC 8461), TLSA (RFC 7672) and the services that programs look
for (RFC 6186) only where there is a key, a policy, a certificate or a server.
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

UNSET = "not configured: "  # begins the value of what there is nothing for yet
FOUND = 10  # records shown of one name
SHOWN = 1000  # characters of a record
STRICT = ("quarantine", "reject")
PASSES = ("+", "")  # qualifiers of a mechanism that lets mail in


class DnsState(StrEnum):
    """How what DNS says compares with what it should."""

    OK = "OK"
    MISSING = "MISSING"
    DIFFERENT = "DIFFERENT"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True)
class Advice:
    """A record that should be there."""

    type: str
    name: str  # in ASCII, without the last dot
    value: str
    purpose: str
    judge: Callable[[Sequence[str]], "Judged"] | None = None  # None: there is nothing to ask for


@dataclass(frozen=True, slots=True)
class Judged:
    """What was found of a record, and what that is worth."""

    state: DnsState
    found: tuple[str, ...] = ()
    problem: str | None = None  # why it is not known


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key that signs, or waits for its record to be seen."""

    selector: str
    algorithm: DkimAlgorithm
    public: str  # as p= has it
    waits: bool = False


@dataclass(frozen=True, slots=True)
class Ours:
    """What of a domain decides about its records."""

    domain: str
    hostname: str  # of this machine
    backup: bool = False  # only relays
    keys: tuple[SigningKey, ...] = ()
    mta_sts: str = OFF
    spki: str | None = None  # SHA-256 of the public key that its server of mail shows, in hex


def advise(ours: Ours) -> list[Advice]:
    """All records that should be there, in the order in which one sets them up."""
    domain, host = ascii_domain(ours.domain), ours.hostname.lower()
    return [*_sending(ours, domain, host), *_services(ours.spki, domain, host)]


def _sending(ours: Ours, domain: str, host: str) -> list[Advice]:
    postmaster = f"rua=mailto:postmaster@{domain}"
    named = "." in host
    nameless = f"{UNSET}this machine has no name, set MERGANSER_HOSTNAME"

    def mx(found: Sequence[str]) -> Judged:
        return judged_mx(found, host, backup=ours.backup)

    def spf(found: Sequence[str]) -> Judged:
        return judged_spf(found, domain, host)

    return [
        Advice(
            "MX",
            domain,
            f"{20 if ours.backup else 10} {host}." if named else nameless,
            "Mail for the domain comes here",
            mx if named else None,
        ),
        Advice(
            "TXT",
            domain,
            f"v=spf1 mx a:{host} ~all" if named else nameless,
            "SPF: which servers send mail of the domain",
            spf if named else None,
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

    def served(found: Sequence[str]) -> Judged:
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
            served if there else None,
        ),
    ]


def judged_sts(found: Sequence[str], record: str) -> Judged:
    """One record of the policy there is: with another id the old one is remembered."""
    records = [tags for text in found if (tags := _tags(text)).get("v") == "STSv1"]
    return _judged(found, right=[tags.get("id") for tags in records] == [_tags(record)["id"]])


def dkim_advice(domain: str, key: SigningKey) -> Advice:
    """The record of a key; one for all domains stands in each, so its name has none."""
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
    nothing = f"{UNSET}this server does not offer it yet"
    dane = spki if "." in host else None  # who has no name is looked up by none
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
    """Servers as "10 mx.example.org.": ours must be among the best, for a backup among them."""
    servers = []
    for text in found:
        preference, _, name = text.partition(" ")
        servers.append((int(preference), name.rstrip(".").lower()))
    ours = [preference for preference, name in servers if name == host]
    best = min((preference for preference, _ in servers), default=0)
    right = bool(ours) and (backup or min(ours) == best)
    return _judged(found, right=right)


def judged_spf(found: Sequence[str], domain: str, host: str) -> Judged:
    """One record, with a mechanism that lets our mail in. Other texts of the name are not ours."""
    records = [text for text in found if re.match(r"v=spf1( |$)", text, re.IGNORECASE)]
    ours = {"mx", f"mx:{domain}", f"a:{host}"}
    terms = [term.lower().rstrip(".") for text in records for term in text.split()[1:]]
    right = any(
        term[: -len(name)] in PASSES for name in ours for term in terms if term.endswith(name)
    )
    return _judged(records, right=right and len(records) == 1)


def judged_dmarc(found: Sequence[str]) -> Judged:
    """One record, whose policy is as strict as ours or stricter, for all mail."""
    records = [tags for text in found if (tags := _tags(text)).get("v") == "DMARC1"]
    right = len(records) == 1 and records[0].get("p", "").lower() in STRICT
    return _judged(found, right=right and records[0].get("pct", "100") == "100")


def judged_dkim(found: Sequence[str], public: str) -> Judged:
    """One record, with this key, that lets mail be signed; an empty p= has revoked it."""
    right = len(found) == 1 and private_keys.is_record(found[0], public)
    return _judged(found, right=right)


def judged_tlsrpt(found: Sequence[str]) -> Judged:
    """One record that names somebody who reads the reports."""
    records = [tags for text in found if (tags := _tags(text)).get("v") == "TLSRPTv1"]
    return _judged(found, right=len(records) == 1 and bool(records[0].get("rua")))


def judged_tlsa(found: Sequence[str], *, spki: str) -> Judged:
    """One of them names the public key that is shown (RFC 7672, section 3.1).

    What names an authority may be right, too: its certificate is not looked into.
    """
    records = [text.lower().split() for text in found]
    if any(record[:3] == ["3", "1", "1"] and "".join(record[3:]) == spki for record in records):
        return _judged(found, right=True)
    if any(record[:1] == ["2"] for record in records):
        shown = tuple(text[:SHOWN] for text in found[:FOUND])
        return Judged(DnsState.UNKNOWN, shown, "it names an authority, and no key of ours")
    return _judged(found, right=False)


def _tags(text: str) -> dict[str, str]:
    """The tags of a record such as "v=DMARC1; p=none", names in lower case."""
    pairs = (part.partition("=") for part in text.split(";"))
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def _judged(found: Sequence[str], *, right: bool) -> Judged:
    if not found:
        return Judged(DnsState.MISSING)
    state = DnsState.OK if right else DnsState.DIFFERENT
    return Judged(state, tuple(text[:SHOWN] for text in found[:FOUND]))
