"""Verify the sender of an incoming message, or use the results of a trusted server."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from mail import authentication
from mail.envelope.client import SmtpClientInfo
from mail.mime import results_of_trusted_servers_or_none
from mail.storage import received_messages
from mail.storage.storable_message import StorableMessage
from models.errors import RequestError
from models.runtime.environment import Environment
from models.runtime.options import Options


class RejectedByDmarc(RequestError):
    """The DMARC policy of the From domain refuses the message."""

    def __init__(self, from_domain: str) -> None:
        super().__init__(f"rejected per DMARC policy for {from_domain}")
        self.from_domain = from_domain


class VerifiedMessage(NamedTuple):
    """A message with our Authentication-Results, as bytes and parsed."""

    raw_message: bytes | Path
    parsed_message: StorableMessage


async def verify_sender_and_add_authentication_results(
    environment: Environment,
    raw_message: bytes | Path,
    envelope_sender: str,
    client: SmtpClientInfo | None,
    *,
    from_forwarding_host: bool = False,
) -> VerifiedMessage:
    """Read a message, verify its sender and add our Authentication-Results.

    Returns the bytes with the new header field, and the parsed message. `client` is the SMTP
    client; None means a trusted server sent it by LMTP. Raises RejectedByDmarc if DMARC refuses it,
    unless it comes from a forwarding host: then the result has no effect.
    """
    options = environment.options
    if not _needs_spf_dkim_dmarc_check(options, client):
        trusted = client is None
        raw_message = await authentication.remove_own_results(
            options, raw_message, from_trusted_server=trusted
        )
        message = await received_messages.parse_storable_message(raw_message)
        return VerifiedMessage(
            raw_message,
            with_trusted_authentication_results(environment, message) if trusted else message,
        )
    findings = await authentication.check_spf_dkim_dmarc_and_arc(
        environment, raw_message, client, envelope_sender
    )
    refuses = findings.policy_to_apply == "reject" and options.dmarc_on_failure == "reject"
    if refuses and not from_forwarding_host:
        raise RejectedByDmarc(findings.dmarc.domain)
    rewritten_message, removed_results = await authentication.rewrite_own_results_and_hash_original(
        raw_message, findings, options.hostname, options.authserv_ids
    )
    stored_json = findings.to_stored_json(options.hostname)
    if from_forwarding_host or options.dmarc_on_failure == "ignore":
        stored_json["policy"] = "none"
    if client is not None and client.tls_description:
        stored_json["tls"] = client.tls_description
    return VerifiedMessage(
        rewritten_message,
        replace(
            await received_messages.parse_storable_message(rewritten_message),
            received_digest=removed_results,
            authentication=stored_json,
        ),
    )


def _needs_spf_dkim_dmarc_check(options: Options, client: SmtpClientInfo | None) -> bool:
    """Return True if this server must verify messages of the client."""
    if client is not None and client.username is not None:
        return False
    return options.authentication_check == "all" or (
        options.authentication_check == "smtp" and client is not None
    )


def with_trusted_authentication_results(
    environment: Environment, message: StorableMessage
) -> StorableMessage:
    """Return the message with the authentication results that our own mail server added.

    Use it only for mail from outside: a local sender can write any header.
    """
    options, facts = environment.options, message.facts
    domain = facts.from_[0].address.rpartition("@")[2] if facts.from_ else ""
    results = results_of_trusted_servers_or_none(
        facts.authentication_results, options.authserv_ids, options.authserv_hops, domain
    )
    return replace(message, authentication=results) if results else message
