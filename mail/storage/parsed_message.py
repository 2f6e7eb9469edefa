"""A message taken apart for storing: what is known of it, and its bytes in pieces.

What is large is done in a process of its own, which leaves large pieces in files beside the
message: whatever its size, it takes little memory here and holds up nobody.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from mail import mime
from mail.mime import Facts
from mail.storage.blobs.compression import digest_of
from mail.storage.blobs.message_layout import Cut, Piece, pack

CUT = 1024  # encoded bytes; smaller attachments stay where they are


@dataclass(frozen=True, slots=True)
class Parted:
    """A message, and what it is made of."""

    facts: Facts
    size: int  # bytes
    digest: str  # SHA-256 of the whole, hex
    root: Piece  # what is left when large attachments are cut out
    pieces: Sequence[Piece]
    structure: bytes  # the MIME tree as it is stored


async def parted(source: bytes | Path) -> Parted:
    """Read a message, whatever it is, and take it apart.

    Where it is a file, large pieces lie in files beside it, as `pack` puts them: whoever removes
    it removes them.
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
    attached = {attachment.part for attachment in facts.attachments}
    return (
        Cut(part.body_start, part.body_end, part.encoding)
        for part, _ in mime.within(facts.structure)
        if part.section in attached and part.size > CUT
    )
