"""Verify the sender of an incoming message, or use the results of a trusted server."""

from dataclasses import replace
from pathlib import Path

from mail import authentication
from mail.envelope.client import SmtpClientInfo
from mail.mime import trusted_results
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


async def read_and_verify_sender(
    environment: Environment,
    raw_message: bytes | Path,
    envelope_sender: str,
    client: SmtpClientInfo | None,
    *,
    from_forwarding_host: bool = False,
) -> tuple[bytes | Path, StorableMessage]:
    """Read a message, verify its sender and add our Authentication-Results.

    Returns the bytes with the new header field, and the parsed message. `client` is the SMTP
    client; None means a trusted server sent it by LMTP. Raises RejectedByDmarc if DMARC refuses it,
    unless it comes from a forwarding host: then the result has no effect.
    """
    options = environment.options
    if not _must_verify(options, client):
        trusted = client is None
        raw_message = await authentication.remove_own_results(
            options, raw_message, from_trusted_server=trusted
        )
        letter = await received_messages.parse_storable_message(raw_message)
        return raw_message, with_trusted_results(environment, letter) if trusted else letter
    found = await authentication.check_message(environment, raw_message, client, envelope_sender)
    refuses = found.policy_to_apply == "reject" and options.dmarc_on_failure == "reject"
    if refuses and not from_forwarding_host:
        raise RejectedByDmarc(found.dmarc.domain)
    whole, came = await authentication.replace_own_results_header(
        raw_message, found, options.hostname, options.authserv_ids
    )
    told = found.to_stored_json(options.hostname)
    if from_forwarding_host or options.dmarc_on_failure == "ignore":
        told["policy"] = "none"
    if client is not None and client.tls_description:
        told["tls"] = client.tls_description
    return whole, replace(
        await received_messages.parse_storable_message(whole),
        received_digest=came,
        verification=told,
    )


def _must_verify(options: Options, client: SmtpClientInfo | None) -> bool:
    """Return True if this server must verify messages of the client."""
    if client is not None and client.username is not None:
        return False
    return options.authentication_check == "all" or (
        options.authentication_check == "smtp" and client is not None
    )


def with_trusted_results(environment: Environment, message: StorableMessage) -> StorableMessage:
    """Return the message with the authentication results that our own mail server added.

    Use it only for mail from outside: a local sender can write any header.
    """
    options, facts = environment.options, message.facts
    domain = facts.from_[0].address.rpartition("@")[2] if facts.from_ else ""
    found = trusted_results(
        facts.authentication_results, options.authserv_ids, options.authserv_hops, domain
    )
    return replace(message, verification=found) if found else message
