"""Check the reverse DNS of the host name: other servers refuse mail from addresses without it."""

import asyncio
from ipaddress import ip_address

import dns.reversename

from mail.addresses.address_syntax import ascii_domain
from mail.network.dns_resolver import query_dns_records_or_none
from merganser.doctor.findings import CheckName, Finding, action_finding, hint_finding, ok_finding
from merganser.settings.settings import PREFIX, Settings

NETWORK_TIMEOUT = 3.0  # seconds
RESERVED_TOP_LEVEL_DOMAINS = ("example", "test", "invalid", "localhost")  # RFC 6761


async def check_reverse_dns(settings: Settings) -> list[Finding]:
    """Check that each public address of the host name has a PTR record with the host name.

    Nothing is checked without a host name, or if another server sends the mail.
    """
    name = settings.hostname
    is_reserved = name.rpartition(".")[2] in RESERVED_TOP_LEVEL_DOMAINS
    if is_reserved or settings.next_hop is not None:
        return []
    findings = await asyncio.gather(
        *(
            _check_address(settings, address)
            for address in await _load_addresses(settings, ascii_domain(name))
            if ip_address(address).is_global
        )
    )
    return [finding for address_findings in findings for finding in address_findings]


async def _load_addresses(settings: Settings, name: str) -> list[str]:
    """Load the IPv4 and IPv6 addresses of a name. Empty if it has none, or DNS is silent."""
    answers = await asyncio.gather(
        *(
            query_dns_records_or_none(settings.dns_resolver, name, kind, NETWORK_TIMEOUT)
            for kind in ("A", "AAAA")
        )
    )
    return [str(record.address) for answer in answers for record in answer or []]


async def _check_address(settings: Settings, address: str) -> list[Finding]:
    reverse_name = dns.reversename.from_address(address).to_text(omit_final_dot=True)
    records = await query_dns_records_or_none(
        settings.dns_resolver, reverse_name, "PTR", NETWORK_TIMEOUT
    )
    advice = f"ask the owner of the network for a PTR record of {address} with {settings.hostname}"
    if records is None:
        return hint_finding(
            CheckName.REVERSE_DNS,
            f"no response for {address}",
            "run the check again when a name server is reachable",
        )
    names = [str(record.target).rstrip(".").lower() for record in records]
    if not names:
        return action_finding(CheckName.REVERSE_DNS, f"{address} has no PTR record", advice)
    if ascii_domain(settings.hostname).lower() in names:
        return ok_finding(CheckName.REVERSE_DNS, f"{address} has the name {settings.hostname}")
    for name in names:
        if address in await _load_addresses(settings, name):
            return hint_finding(
                CheckName.REVERSE_DNS,
                f"{address} has the name {name}, and not {settings.hostname}",
                f"set {PREFIX}HOSTNAME to {name}, or {advice}",
            )
    return action_finding(
        CheckName.REVERSE_DNS,
        f"{address} has the name {names[0]}, which doesn't lead back to it",
        advice,
    )
