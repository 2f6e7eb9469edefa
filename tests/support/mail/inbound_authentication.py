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
  receivedTls { cipher version }
  authentication { spf { result domain } dkim { result domain } dmarc { result } arc { result }
    header } } }"""
KNOWN_VERDICTS = ("pass", "fail", "none")


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
    (outcome,) = await pipeline.deliver_to_accepted_recipients(
        client.environment, mail, [recipient]
    )
    if isinstance(outcome, BaseException):
        raise outcome
    return global_ids.encode("Message", outcome.message_id)  # type: ignore[attr-defined]


async def message_verification(client: GraphQLClient, message_id: str) -> dict[str, Any]:
    """The authentication of a message, its TLS, its source and the special use of its mailbox.

    SPF and DKIM are the domain that passed; DMARC and ARC are pass, fail, none or None.
    """
    message = (await client(VERIFICATION_QUERY, id=message_id))["message"]
    authentication = message["authentication"]
    domains = {
        method: (authentication[method] or {}).get("domain") if passed else None
        for method in ("spf", "dkim")
        for passed in [(authentication[method] or {}).get("result") == "PASS"]
    }
    verdicts = {
        method: (authentication[method] or {}).get("result", "").lower()
        for method in ("dmarc", "arc")
    }
    known = {name: word if word in KNOWN_VERDICTS else None for name, word in verdicts.items()}
    return {
        **domains,
        **known,
        "tls": message["receivedTls"],
        "authenticationResults": authentication["header"],
        "rawSource": message["rawSource"],
        **message["mailbox"],
    }
