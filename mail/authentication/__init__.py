"""Authentication of the sender of a message by SPF, DKIM, DMARC and ARC.

The results are stored with the message and written into its header. A message that is sent on is
sealed (`arc_seal`). No check refuses mail because DNS does not answer.
"""

import asyncio
import hashlib
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import idna

from mail.addresses.address_syntax import ascii_domain
from mail.authentication import arc, dkim, dmarc, results_removal, spf
from mail.authentication.arc_seal import sealed
from mail.authentication.dkim import SMALL, Message, Result
from mail.authentication.dmarc import AUTHORS
from mail.authentication.dns_queries import Names
from mail.authentication.header_fields import HEAD_MAX, beginning, halves
from mail.authentication.results import Findings
from mail.authentication.results_removal import without_own_results
from mail.authentication.spf import Spf
from mail.envelope.client import Client
from mail.mime import MailAddress, addresses, believed
from mail.mime.authentication_results import says, stamps
from mail.mime.encoded_words import unfolded
from mail.mime.header_fields import Field
from mail.mime.header_fields import fields as listed
from models.observability import metrics
from models.runtime.environment import World

__all__ = ["Findings", "authors", "checked", "sealed", "stamped", "without_own_results"]

_NAMED = re.compile(r"@([^\s@<>()\[\]\",:;\\]+)")  # domains in text that is not an address
CHECKS = metrics.counter(
    "merganser_authentication",
    "Checks of who sent a message, by what they came to.",
    "method",
    "result",
)


async def checked(
    world: World, source: bytes | Path, client: Client | None, sender: str
) -> Findings:
    """Check a message with SPF, DKIM, DMARC and ARC, within some seconds. It never raises for DNS.

    If the client is unknown, the SPF result is taken from an Authentication-Results field of a
    trusted server.
    """
    options = world.options
    near = isinstance(source, bytes) and len(source) < SMALL
    message, own, authors = _opened(source) if near else await asyncio.to_thread(_opened, source)
    names = Names(options.dns_resolver)
    now = int(world.now().timestamp())
    # DMARC first, so that a sender can't use up the DNS limit before it is looked up
    policies = [await dmarc.published(names, each) for each in authors]
    first = next(iter(authors), "")
    signatures, sender_may, chain = await asyncio.gather(
        dkim.verified(names, message, now, first),
        _spf(world, names, client, (sender, own)),
        arc.chain(names, message, now),
    )
    judged = [
        dmarc.judged(author, policy, sender_may, signatures)
        for author, policy in zip(authors, policies, strict=True)
    ]
    worst = dmarc.worst(judged)
    sealer = None
    if worst.result is Result.FAIL:
        sealer = arc.vouched(chain, options.arc_trusted, _passed(chain))
    found = Findings(sender_may, signatures, worst, chain, sealer)
    _count(found)
    return found


def _opened(source: bytes | Path) -> tuple[Message, list[Field], list[str]]:
    """Read the message for its signatures, its header fields, and the domains in From."""
    if isinstance(source, Path):
        message, (head, _) = Message.filed(source), beginning(source)
    else:
        message, (head, _) = Message.of(source), halves(source)
    own = listed(head[:HEAD_MAX])
    return message, own, _authors(own)


async def _spf(
    world: World, names: Names, client: Client | None, said: tuple[str, Sequence[Field]]
) -> Spf | None:
    """The SPF result of the client, or of the trusted server before this one; None if unknown.

    `sender_and_fields` are the envelope sender and the header fields.
    """
    sender, own = said
    if client is not None:
        here = client.ip is not None
        return await spf.checked(names, client.ip or "", client.helo, sender) if here else None
    options = world.options
    found = believed(stamps(own), options.authserv_ids, options.authserv_hops, "")
    if found is None:
        return None
    passed = found["spf"]
    return Spf(Result.PASS, passed) if passed else Spf(Result.NONE, why="by the server before")


def authors(head: bytes) -> list[str]:
    """The first domains in From of a header, as A-labels."""
    return _authors(listed(head))


def _authors(own: Sequence[Field]) -> list[str]:
    """The first domains in From, as A-labels."""
    found: dict[str, None] = {}
    for name, value in own:
        if name == "from" and len(found) < AUTHORS:
            for each in addresses(unfolded(value)):
                for domain in _domains(each):
                    found[domain.lower()] = None
    return list(found)[:AUTHORS]


def _domains(author: MailAddress) -> Iterator[str]:
    """Yield the domains of an author; of text that is not an address, all domains in it."""
    names = (
        [author.address.rpartition("@")[2]] if author.address else _NAMED.findall(author.name or "")
    )
    for name in names:
        with suppress(idna.IDNAError):
            if domain := ascii_domain(name.strip().rstrip(".")):
                yield domain


def _passed(chain: arc.Chain) -> dict[int, bool]:
    """For each link of the ARC chain, whether its results contain dmarc=pass."""
    found = {}
    for at, link in enumerate(chain.links):
        _, _, results = link.results.value.decode("latin-1").partition(";")
        found[at] = says(unfolded(results), "dmarc") == "pass"
    return found


def _count(found: Findings) -> None:
    CHECKS.add("spf", found.spf.result.value if found.spf else "unknown")
    CHECKS.add("dkim", next(iter(sorted(_ranked(found))), "none"))
    CHECKS.add("dmarc", found.dmarc.result.value)
    CHECKS.add("arc", found.arc.result.value)


def _ranked(found: Findings) -> list[str]:
    """The DKIM results for the metric: only "pass" if one signature has passed."""
    results = [each.result.value for each in found.dkim]
    return ["pass"] if "pass" in results else results


async def stamped(
    source: bytes | Path, found: Findings, host: str, ids: Collection[str]
) -> tuple[bytes | Path, str]:
    """Put Authentication-Results before a message; also return the SHA-256 (hex) of the original.

    Removes results in the name of this host and of these authserv-ids. A file is rewritten in
    place.
    """
    top, names = found.header(host), results_removal.comparable((host, *ids))
    if isinstance(source, bytes):
        return top + results_removal.stripped(source, names), hashlib.sha256(source).hexdigest()
    return source, await asyncio.to_thread(results_removal.rewritten, source, top, names)
