"""The MX hosts of a domain (RFC 5321, section 5; RFC 7505), and the next hops of mail."""

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import dns.exception
import dns.flags
import dns.resolver
import idna
from dns.asyncresolver import Resolver

from mail.addresses.address_syntax import ascii_domain
from mail.network.dns_resolver import cached_resolver
from mail.network.outbound_http import is_private_address
from mail.routing.certificate_checks import HOST_NAME_REQUIRED, CertificateRequirement
from models.errors import InvalidInput
from models.runtime.environment import Environment
from models.validation_constraints import ValidationConstraint

SMTP_PORT = 25
SMTPS_PORT = 465
MAX_HOSTS = 10  # attempted for one domain
MAX_ADDRESSES = 4  # attempted for one host


class TlsLevel(StrEnum):
    """The TLS level of a connection."""

    OPPORTUNISTIC = "OPPORTUNISTIC"  # if the server offers it, with any certificate
    ENCRYPTED = "ENCRYPTED"  # always, with any certificate
    REQUIRED = "REQUIRED"  # always, with a checked certificate
    WRAPPED = "WRAPPED"  # implicit TLS, with a checked certificate
    NEVER = "NEVER"


class Unroutable(Exception):
    """There is no host for a recipient. The code is 4xx if a retry can succeed, else 5xx."""

    def __init__(self, reply_code: int, reply_text: str) -> None:
        super().__init__(reply_text)
        self.reply_code = reply_code
        self.reply_text = reply_text


@dataclass(frozen=True, slots=True)
class NextHop:
    """A host to connect to, with its TLS requirement and login."""

    name: str  # the name in its certificate
    port: int
    address: str  # IP address, or the name
    tls_level: TlsLevel = TlsLevel.OPPORTUNISTIC
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    is_relay: bool = False  # it forwards the mail, so its 250 means RELAYED, not DELIVERED
    certificate_requirement: CertificateRequirement = (
        HOST_NAME_REQUIRED  # used if the TLS level checks certificates
    )


@dataclass(frozen=True, slots=True)
class OutboundSettings:
    """The settings of outgoing mail: a common next hop or none, DNS, ports and trust."""

    next_hop: NextHop | None = None
    make_resolver: Callable[[], Resolver] = Resolver  # the default reads /etc/resolv.conf
    mx_port: int = SMTP_PORT  # of MX hosts
    # instead of the system's authorities
    trusted_context: ssl.SSLContext | None = field(default=None, repr=False)
    trusts_dnssec: bool = False  # believe the AD flag of the resolver
    mta_sts_port: int = 443  # of the HTTPS servers with MTA-STS policies
    allows_private_sts_hosts: bool = False  # fetch MTA-STS policies from private networks too


@dataclass(frozen=True, slots=True)
class DnsAnswer:
    """The DNS records of a name."""

    records: list[Any]
    is_signed: bool  # a trusted resolver set the AD flag
    canonical_name: str  # after all CNAMEs
    problem: Unroutable | None = None  # the lookup of more records failed


@dataclass(frozen=True, slots=True)
class MxHost:
    """An MX host of a domain with its addresses."""

    name: str
    addresses: list[str]
    is_signed: bool  # by DNSSEC, from the domain to the addresses
    canonical_name: str  # after all CNAMEs
    preference: int | None = None  # None: the domain has no MX record


def parse_next_hop(url: str) -> NextHop:
    """Parse "host:port", smtp://user:password@host:port or smtps://…; ?tls=never|required.

    Raises InvalidInput.
    """
    parts = urlsplit(url if "://" in url else f"smtp://{url}")
    try:
        port, name = parts.port, parts.hostname
    except ValueError:
        port, name = None, None
    level_by_query = {"": None, "tls=never": TlsLevel.NEVER, "tls=required": TlsLevel.REQUIRED}
    if parts.scheme not in ("smtp", "smtps") or not name or parts.query not in level_by_query:
        raise InvalidInput(
            "Must be host:port, or a URL with smtp:// or smtps://",
            constraint=ValidationConstraint.URL,
            path=["nextHop"],
        )
    is_smtps = parts.scheme == "smtps"
    # A password is sent only over TLS, unless the operator allows plain text.
    default_level = TlsLevel.REQUIRED if parts.username else TlsLevel.OPPORTUNISTIC
    return NextHop(
        name,
        port or (SMTPS_PORT if is_smtps else SMTP_PORT),
        name,
        TlsLevel.WRAPPED if is_smtps else level_by_query[parts.query] or default_level,
        unquote(parts.username) if parts.username else None,
        unquote(parts.password or "") if parts.username else None,
        is_relay=True,
    )


def outbound_settings_from_options(environment: Environment) -> OutboundSettings:
    """The settings of outgoing mail from the current options."""
    options = environment.options
    hop = options.next_hop
    return OutboundSettings(
        parse_next_hop(hop.get_secret_value()) if hop else None,
        partial(cached_resolver, options.dns_resolver, trusts_dnssec=options.dnssec_trusted),
        trusts_dnssec=options.dnssec_trusted,
    )


async def resolve_mx_hosts(
    environment: Environment,
    outbound_settings: OutboundSettings,
    domain: str,
    route_log: list[str],
    *,
    allow_private: bool,
) -> list[MxHost]:
    """The MX hosts of a domain, best first; hosts of one preference in random order.

    Private addresses are left out and logged unless `allow_private`: a domain owner could otherwise
    direct connections into the internal network.

    Raises Unroutable with 5xx if the domain does not exist, accepts no mail or has no reachable
    host, and with 4xx if DNS does not answer.
    """
    if domain.startswith("["):
        raise Unroutable(550, "5.1.2 Address literals are not supported")
    try:
        name = ascii_domain(domain)
    except idna.IDNAError:
        raise Unroutable(550, "5.1.2 Bad destination domain syntax") from None
    mx_names, is_signed = await _query_usable_mx_names(environment, outbound_settings, name)
    answers = await asyncio.gather(
        *(_query_addresses(outbound_settings, exchanger) for _, exchanger in mx_names[:MAX_HOSTS]),
        return_exceptions=True,
    )
    mx_hosts: list[MxHost] = []
    problem: Unroutable | None = None
    for (preference, mx_name), answer in zip(mx_names, answers, strict=False):
        if isinstance(answer, Unroutable):
            problem = _temporary_or_newer_problem(problem, answer)
        elif isinstance(answer, BaseException):
            raise answer
        elif allowed := _allowed_addresses(mx_name, answer, route_log, allow_private=allow_private):
            is_host_signed = is_signed and answer.is_signed
            mx_hosts.append(
                MxHost(
                    mx_name,
                    allowed[:MAX_ADDRESSES],
                    is_host_signed,
                    answer.canonical_name,
                    preference,
                )
            )
        else:
            private_only = Unroutable(550, f"5.4.4 {mx_name} has only private IP addresses")
            problem = _temporary_or_newer_problem(problem, answer.problem or private_only)
    if not mx_hosts:
        raise problem or Unroutable(550, f"5.4.4 No MX host of {name} has an IP address")
    return mx_hosts


def _temporary_or_newer_problem(
    first_problem: Unroutable | None, new_problem: Unroutable
) -> Unroutable:
    """The temporary problem of the two, so that an unanswered query does not cause a bounce."""
    if first_problem is None or first_problem.reply_code >= 500:  # noqa: PLR2004
        return new_problem
    return first_problem


def _allowed_addresses(
    name: str, answer: DnsAnswer, route_log: list[str], *, allow_private: bool
) -> list[str]:
    """The addresses of a host that connections are allowed to."""
    excluded = (
        []
        if allow_private
        else [address for address in answer.records if is_private_address(address)]
    )
    route_log += [
        f"{name} ({address}): skipped, private network and "
        "MERGANSER_MX_ALLOW_PRIVATE_NETWORKS is off"
        for address in excluded
    ]
    return [address for address in answer.records if address not in excluded]


class _UsableMxNames(NamedTuple):
    """The MX hosts of a domain, the best first, and whether DNSSEC signs them."""

    preferences_and_names: list[tuple[int | None, str]]
    is_signed: bool


async def _query_usable_mx_names(
    environment: Environment, outbound_settings: OutboundSettings, name: str
) -> _UsableMxNames:
    """(preference, name) of the MX hosts, best first, and True if that is signed by DNSSEC."""
    answer = await query_dns_or_raise_unroutable(outbound_settings, name, "MX")
    if not answer.records:
        # RFC 5321, section 5.1: the domain itself is the MX host
        return _UsableMxNames([(None, name)], answer.is_signed)
    mx_names: list[tuple[int, str]] = []
    for preference, same_preference in groupby(
        sorted(answer.records, key=_mx_preference), key=_mx_preference
    ):
        exchange_names = {
            mx_name.exchange.to_text(omit_final_dot=True).lower() for mx_name in same_preference
        }
        shuffled = sorted(exchange_names, key=lambda _: environment.random_bytes(4))
        mx_names += [(preference, mx_name) for mx_name in shuffled]
    if {mx_name for _, mx_name in mx_names} <= {"", ".", "@"}:
        raise Unroutable(556, f"5.1.10 Domain {name} does not accept mail (nullMX)")
    own_name = environment.options.hostname.lower()
    known_names = [mx_name for _, mx_name in mx_names]
    if own_name in known_names:
        own_preference = mx_names[known_names.index(own_name)][0]
        # hosts of lower priority would send it back to this server
        mx_names = [mx_name for mx_name in mx_names if mx_name[0] < own_preference]
        if not mx_names:
            raise Unroutable(550, f"5.4.6 Mail for {name} loops back to this server")
    usable_names = [
        (preference, mx_name) for preference, mx_name in mx_names if mx_name not in ("", ".", "@")
    ]
    return _UsableMxNames([*usable_names], answer.is_signed)


def _mx_preference(record: Any) -> int:
    return int(record.preference)


async def _query_addresses(outbound_settings: OutboundSettings, name: str) -> DnsAnswer:
    """Query the A and AAAA records of a host, and return its IPv4, then its IPv6 addresses.

    IPv4 comes first, since more hosts can reach it. If one query fails and the other finds
    addresses, the answer has these and the failure in `problem`. Raises Unroutable if there is no
    address.
    """
    addresses: list[str] = []
    is_signed, canonical_name = True, name
    last_problem: Unroutable | None = None
    for kind in ("A", "AAAA"):
        try:
            answer = await query_dns_or_raise_unroutable(outbound_settings, name, kind)
        except Unroutable as problem:
            last_problem = problem
            continue
        addresses += [str(record.address) for record in answer.records]
        is_signed = is_signed and answer.is_signed
        canonical_name = answer.canonical_name if answer.records else canonical_name
    if not addresses:
        raise last_problem or Unroutable(550, f"5.4.4 {name} has no IP address")
    return DnsAnswer(addresses, is_signed, canonical_name, last_problem)


async def resolve_host(outbound_settings: OutboundSettings, name: str) -> DnsAnswer:
    """The addresses of a host that is no MX host, with its DNSSEC status. Raises Unroutable."""
    return await _query_addresses(outbound_settings, name)


async def query_dns_or_raise_unroutable(
    outbound_settings: OutboundSettings, name: str, record_type: str
) -> DnsAnswer:
    """Query DNS. The answer is empty if the name has no records of this type.

    Raises Unroutable with 550 if the name does not exist, and with 451 if DNS does not answer.
    """
    try:
        answer = await outbound_settings.make_resolver().resolve(
            f"{name}.", record_type, raise_on_no_answer=False
        )
    except dns.resolver.NXDOMAIN:
        raise Unroutable(550, f"5.1.2 Domain {name} not found") from None
    except dns.exception.SyntaxError:
        raise Unroutable(550, "5.1.2 Bad destination domain syntax") from None
    except (dns.exception.DNSException, OSError) as problem:
        error_name = type(problem).__name__
        raise Unroutable(451, f"4.4.3 DNS lookup of {name} failed: {error_name}") from problem
    is_signed = outbound_settings.trusts_dnssec and bool(answer.response.flags & dns.flags.AD)
    canonical_name = answer.canonical_name.to_text(omit_final_dot=True).lower()
    return DnsAnswer(list(answer.rrset or ()), is_signed, canonical_name)
