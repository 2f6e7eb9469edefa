"""Verify the sender of an incoming message, or use the results of a trusted server."""

from dataclasses import replace
from pathlib import Path

from mail import authentication
from mail.envelope.client import Client
from mail.mime import believed
from mail.storage import received_messages
from mail.storage.message_insert import Letter
from models.errors import Refused
from models.runtime.environment import World
from models.runtime.options import Options


class Forged(Refused):
    """The DMARC policy of the From domain refuses the message."""


async def received(
    world: World,
    source: bytes | Path,
    sender: str,
    client: Client | None,
    *,
    forwarded: bool = False,
) -> tuple[bytes | Path, Letter]:
    """Read a message, verify its sender and add our Authentication-Results.

    Returns the bytes with the new header field, and the parsed message. `client` is the SMTP
    client; None means a trusted server sent it by LMTP. Raises RejectedByDmarc if DMARC refuses it,
    unless it comes from a forwarding host: then the result has no effect.
    """
    options = world.options
    if not _checks(options, client):
        trusted = client is None
        source = await authentication.without_own_results(
            options, source, from_trusted_server=trusted
        )
        letter = await received_messages.read(source)
        return source, verified(world, letter) if trusted else letter
    found = await authentication.checked(world, source, client, sender)
    refuses = found.wanted == "reject" and options.dmarc_policy == "reject"
    if refuses and not forwarded:
        raise Forged("DMARC of the domain in From refuses it")
    whole, came = await authentication.stamped(
        source, found, options.hostname, options.authserv_ids
    )
    told = found.verification(options.hostname)
    if forwarded or options.dmarc_policy == "ignore":
        told["policy"] = "none"
    if client is not None and client.tls:
        told["tls"] = client.tls
    return whole, replace(await received_messages.read(whole), came=came, verification=told)


def _checks(options: Options, client: Client | None) -> bool:
    """Return True if this server must verify messages of the client."""
    if client is not None and client.authenticated is not None:
        return False
    return options.authentication_check == "all" or (
        options.authentication_check == "smtp" and client is not None
    )


def verified(world: World, letter: Letter) -> Letter:
    """Return the message with the authentication results that our own mail server added.

    Use it only for mail from outside: a local sender can write any header.
    """
    options, facts = world.options, letter.facts
    domain = facts.from_[0].address.rpartition("@")[2] if facts.from_ else ""
    found = believed(facts.stamps, options.authserv_ids, options.authserv_hops, domain)
    return replace(letter, verification=found) if found else letter
