"""Messages from far.example, delivered with SPF, DKIM and DMARC checks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from graph.types import global_ids
from mail.delivery import pipeline
from mail.envelope.client import SmtpClientInfo
from mail.recipients import recipient_routes
from models.runtime.environment import CommittedOptions, Environment
from tests.conftest import GraphQLClient
from tests.support.mail_servers.dns_zone_server import DnsZoneServer

FAR_SENDER = "carol@far.example"
FAR_PEER = SmtpClientInfo("192.0.2.1", "mx.far.example")
VERIFICATION_QUERY = """query ($id: ID!) { message(by: {id: $id}) { rawSource mailbox { specialUse }
  verification { tls { cipher version } spf dkim dmarc arc authenticationResults } } }"""


def use_dns_zone(environment: Environment, zone: DnsZoneServer, **changes: Any) -> None:
    """Let the server resolve names in this zone, with these options."""
    resolver = f"127.0.0.1:{zone.port}"
    options = replace(
        environment.options, dns_resolver=resolver, hostname="mx.example.org", **changes
    )
    environment.use_options_unless_outdated(
        CommittedOptions(options, environment.options_position + 1)
    )


async def deliver_from_peer(
    client: GraphQLClient,
    raw: bytes | Path,
    peer: SmtpClientInfo | None = FAR_PEER,
    sender: str = FAR_SENDER,
) -> str:
    """Deliver a message as a listener does and return its id."""
    mail = await pipeline.read_and_verify_incoming(client.environment, raw, sender, peer)
    recipient = await recipient_routes.accept_recipient(client.environment, client.address, sender)
    (outcome,) = await pipeline.deliver(client.environment, mail, [recipient])
    if isinstance(outcome, BaseException):
        raise outcome
    return global_ids.encode("Message", outcome.message_id)  # type: ignore[attr-defined]


async def message_verification(client: GraphQLClient, message_id: str) -> dict[str, Any]:
    """The verification of a message, its source and the special use of its mailbox."""
    message = (await client(VERIFICATION_QUERY, id=message_id))["message"]
    return {**message["verification"], "rawSource": message["rawSource"], **message["mailbox"]}
