"""Parsing of messages for storage: their facts, their layout and their blobs.

A helper process parses large messages and leaves large blobs in files beside the message, so that
this process needs little memory and isn't blocked.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from mail import mime
from mail.mime import Facts
from mail.storage.blobs.compression import digest_of
from mail.storage.blobs.message_layout import Cut, Piece, pack

CUT = 1024  # encoded bytes; smaller attachments stay in the layout


@dataclass(frozen=True, slots=True)
class Parted:
    """The facts of a message, and its bytes split into a layout and blobs."""

    facts: Facts
    size: int  # bytes
    digest: str  # SHA-256 of the whole, hex
    root: Piece  # the message without its large attachments
    pieces: Sequence[Piece]
    structure: bytes  # the MIME tree as JSON


async def parted(source: bytes | Path) -> Parted:
    """Parse a message and split it into layout and blobs, in a helper process if it is large.

    Large blobs of a file are left in files beside it, as `split_message` does. The code that
    removes the file must remove them too.
    """
    return await mime.worked(_parted, source)


def _parted(source: bytes | Path) -> Parted:
    raw, beside = (source, None) if isinstance(source, bytes) else (source.read_bytes(), source)
    facts = mime.facts(raw)
    packed = pack(raw, list(_cuts(facts)), beside)
    root = Piece(digest_of(packed.skeleton), packed.skeleton)
    structure = orjson.dumps(mime.part_json(facts.structure))
    return Parted(facts, len(raw), digest_of(raw), root, packed.pieces, structure)


def _cuts(facts: Facts) -> Iterator[Cut]:
    """The encoded bodies of large attachments."""
    attached = {attachment.part for attachment in facts.attachments}
    return (
        Cut(part.body_start, part.body_end, part.encoding)
        for part, _ in mime.within(facts.structure)
        if part.section in attached and part.size > CUT
    )
