"""Ways out in the store, and names of servers on loopback."""

from typing import Any

from models.routing.tables import TlsPolicy, TlsPolicyLevel, Transport
from models.runtime.environment import Environment
from tests.support.mail_servers.smtp_and_dns_servers import Names


def exchanged(domain: str, *servers: str, **more: Any) -> Names:
    """A name server for a domain with these servers, the first on 127.0.0.1, the next on .2."""
    records = {(domain, "MX"): [f"{10 * (n + 1)} {name}." for n, name in enumerate(servers)]}
    for number, name in enumerate(servers, 1):
        records[name, "A"] = [f"127.0.0.{number}"]
    return Names(records | more.pop("records", {}), **more)


async def transport(world: Environment, destination: str, next_hop: str, **more: Any) -> None:
    """A transport in the store."""
    row = Transport(
        id=world.new_id(),
        destination=destination,
        next_hop=next_hop,
        created_at=world.now(),
        **more,
    )
    async with world.write_session() as session:
        session.add(row)


async def policy(
    world: Environment, destination: str, level: TlsPolicyLevel, parameters: str | None = None
) -> None:
    """A TLS policy in the store."""
    row = TlsPolicy(
        id=world.new_id(),
        destination=destination,
        policy=level,
        parameters=parameters,
        created_at=world.now(),
    )
    async with world.write_session() as session:
        session.add(row)
