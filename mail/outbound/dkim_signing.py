"""Signatures of our domains on what leaves: over the bytes as they go over the wire, at one place.

They are made anew for each attempt, so that it is always with a key in force. With the same keys
they are the same, since their time is that of the submission.
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
ROOM = 2000  # bytes of the signatures of a large message, kept for its other domains


async def signed(world: World, job: Job, letter: Letter) -> Letter:
    """The letter with signatures on top, by keys of its author's domain; as it is without any.

    What was not written here is not signed: others may claim to be of our domains. Call it last:
    of what is changed behind it the signature is broken.
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
    keys = await signing_keys.signers(world, author) if author else []
    if world.options.dkim_host:
        more = await signing_keys.of_host(world)
        keys += [each for each in more if each.domain != author]
    return keys


async def _fields(world: World, job: Job, letter: Letter, keys: Sequence[Signer]) -> bytes:
    now = int(job.created_at.timestamp())
    if not isinstance(letter.data, Flow):
        return await over(await dkim.Message.whole(letter.data), keys, now)
    names = tuple((each.domain, each.selector, each.key.public()) for each in keys)
    which = "dkim", job.submission_id, letter.data.size, names
    known: bytes | None = world.shelf.get(which)
    if known is None:
        head, _ = halves(letter.data.head)
        body = await _hash(letter.data, letter.data.head.find(b"\r\n\r\n"))
        known = await over(dkim.Message.hashed(head, body), keys, now)
        world.shelf.put(which, known, ROOM)
    return known


async def _hash(flow: Flow, end: int) -> bytes:
    """SHA-256 of the body in the relaxed form; the header ends at this byte of the first piece."""
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
    data = letter.data
    if not isinstance(data, Flow):
        return replace(letter, data=fields + data)
    return replace(
        letter,
        data=Flow(len(fields) + data.size, fields + data.head, partial(_behind, fields, data)),
    )


async def _behind(fields: bytes, flow: Flow) -> AsyncGenerator[bytes]:
    async with aclosing(flow.steps()) as pieces:
        async for piece in pieces:
            yield fields + piece
            fields = b""
