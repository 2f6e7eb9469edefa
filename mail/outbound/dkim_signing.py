"""DKIM signatures on outgoing messages, over the bytes that are sent.

They are made for each attempt, so they always use a current key. Their time is that of the
submission, so the same key gives the same signature.
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial

from mail.authentication import authors, dkim, signing_keys
from mail.authentication.body_canonicalization import Relaxed
from mail.authentication.dkim_signature import over
from mail.authentication.header_fields import HEAD_MAX, halves
from mail.authentication.private_keys import Signer
from mail.envelope.delivery_jobs import Job
from mail.outbound.wire_format import Flow, Letter
from models.observability import metrics
from models.runtime.environment import World

SIGNED = metrics.counter(
    "merganser_dkim_signed",
    "Messages written here that left: signed; unsigned, the domain of the author has no key; "
    "header, it cannot be read.",
    "outcome",
)
ROOM = 2000  # estimated size of cached signatures of a large message


async def signed(world: World, job: Job, letter: Letter) -> Letter:
    """Add DKIM signatures with the keys of the author's domain and of the host.

    Returns the message unchanged if it was not submitted here, there is no key, or its header can't
    be read. Later changes of the message would break the signatures.
    """
    if not job.ours:
        return letter
    head, _ = halves(letter.head)
    author = next(iter(authors(head[:HEAD_MAX])), None)
    keys = await _keys(world, author)
    if not keys:
        SIGNED.add("unsigned")
        return letter
    fields = await _fields(world, job, letter, keys)
    SIGNED.add("signed" if fields else "header")
    return _topped(letter, fields) if fields else letter


async def _keys(world: World, author: str | None) -> Sequence[Signer]:
    """Load the signers of the author's domain, and those of the host if that is enabled."""
    keys = await signing_keys.signers(world, author) if author else []
    if world.options.dkim_host:
        more = await signing_keys.of_host(world)
        keys += [signer for signer in more if signer.domain != author]
    return keys


async def _fields(world: World, job: Job, letter: Letter, keys: Sequence[Signer]) -> bytes:
    """The DKIM-Signature fields of a message. Those of a streamed message are cached."""
    now = int(job.created_at.timestamp())
    if not isinstance(letter.data, Flow):
        return await over(await dkim.Message.whole(letter.data), keys, now)
    names = tuple((signer.domain, signer.selector, signer.key.public()) for signer in keys)
    which = "dkim", job.submission_id, letter.data.size, names
    known: bytes | None = world.shelf.get(which)
    if known is None:
        head, _ = halves(letter.data.head)
        body = await _hash(letter.data, letter.data.head.find(b"\r\n\r\n"))
        known = await over(dkim.Message.hashed(head, body), keys, now)
        world.shelf.put(which, known, ROOM)
    return known


async def _hash(flow: Flow, end: int) -> bytes:
    """SHA-256 of the body in relaxed canonicalization.

    `header_end` is the position of the empty line in the first piece, or negative.
    """
    made, form, start = hashlib.sha256(), Relaxed(), end + 4 if end >= 0 else None

    def take(piece: bytes) -> None:
        for part in form.more(piece):
            made.update(part)

    async with aclosing(flow.steps()) as pieces:
        async for piece in pieces:
            if start is not None:
                await asyncio.to_thread(take, piece[start:])
                start = 0
    for part in form.end():
        made.update(part)
    return made.digest()


def _topped(letter: Letter, fields: bytes) -> Letter:
    """A copy of the message with these header fields on top."""
    data = letter.data
    if not isinstance(data, Flow):
        return replace(letter, data=fields + data)
    return replace(
        letter,
        data=Flow(len(fields) + data.size, fields + data.head, partial(_behind, fields, data)),
    )


async def _behind(fields: bytes, flow: Flow) -> AsyncGenerator[bytes]:
    """Stream the fields together with the first piece, then the other pieces."""
    async with aclosing(flow.steps()) as pieces:
        async for piece in pieces:
            yield fields + piece
            fields = b""
