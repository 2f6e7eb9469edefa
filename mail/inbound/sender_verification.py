"""Who sent a message: what we have found out, or the server that hands it over to us."""

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
    """The domain of From wants what it has not sent to be refused, and so do we."""


async def received(
    world: World,
    source: bytes | Path,
    sender: str,
    client: Client | None,
    *,
    forwarded: bool = False,
) -> tuple[bytes | Path, Letter]:
    """A message that came from outside, read, with what is known of its sender.

    `client` handed it in by SMTP; None: a neighbour did by LMTP. Where we check it ourselves the
    message has the results on top. Forged where its domain and we refuse it, unless a forwarding
    host has `forwarded` it: then nothing is made of what was found.
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
    """Whether it is our part to check what came this way."""
    if client is not None and client.authenticated is not None:
        return False
    return options.authentication_check == "all" or (
        options.authentication_check == "smtp" and client is not None
    )


def verified(world: World, letter: Letter) -> Letter:
    """A letter that came from outside, with what our own mail server found out about it.

    For no other: whoever sends from here writes the header of the message.
    """
    options, facts = world.options, letter.facts
    domain = facts.from_[0].address.rpartition("@")[2] if facts.from_ else ""
    found = believed(facts.stamps, options.authserv_ids, options.authserv_hops, domain)
    return replace(letter, verification=found) if found else letter
