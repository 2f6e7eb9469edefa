"""Transports and TLS policies in the database, and DNS records of MX hosts on loopback."""

from typing import Any

from models.routing.tables import TlsPolicy, TlsPolicyLevel, Transport
from models.runtime.environment import Environment
from tests.support.mail_servers.smtp_and_dns_servers import FakeDnsServer


def make_mx_dns_server(domain: str, *mx_hosts: str, **options: Any) -> FakeDnsServer:
    """Make a DNS server with the MX hosts of a domain, from 127.0.0.1 on."""
    records = {(domain, "MX"): [f"{10 * (n + 1)} {name}." for n, name in enumerate(mx_hosts)]}
    for number, name in enumerate(mx_hosts, 1):
        records[name, "A"] = [f"127.0.0.{number}"]
    return FakeDnsServer(records | options.pop("records", {}), **options)


async def add_transport(
    environment: Environment, destination: str, next_hop: str, **values: Any
) -> None:
    """Store a transport."""
    row = Transport(
        id=environment.new_id(),
        destination=destination,
        next_hop=next_hop,
        created_at=environment.now(),
        **values,
    )
    async with environment.write_session() as session:
        session.add(row)


async def add_tls_policy(
    environment: Environment, destination: str, level: TlsPolicyLevel, parameters: str | None = None
) -> None:
    """Store a TLS policy."""
    row = TlsPolicy(
        id=environment.new_id(),
        destination=destination,
        level=level,
        parameters=parameters,
        created_at=environment.now(),
    )
    async with environment.write_session() as session:
        session.add(row)
