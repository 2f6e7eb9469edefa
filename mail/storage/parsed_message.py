"""Parsing of messages for storage: their facts, their layout and their blobs.

A helper process parses large messages and leaves large blobs in files beside the message, so that
this process needs little memory and isn't blocked.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from mail import mime
from mail.mime import MessageFacts
from mail.storage.blobs.compression import content_digest
from mail.storage.blobs.message_layout import EncodedBody, NewBlob, split_message

MIN_BLOB_SIZE = 1024  # encoded bytes; smaller attachments stay in the layout


@dataclass(frozen=True, slots=True)
class ParsedMessage:
    """The facts of a message, and its bytes split into a layout and blobs."""

    facts: MessageFacts
    size: int  # bytes
    digest: str  # SHA-256 of the whole, hex
    layout_blob: NewBlob  # the message without its large attachments
    part_blobs: Sequence[NewBlob]
    structure_json: bytes  # the MIME tree as JSON


async def parse_message(source: bytes | Path) -> ParsedMessage:
    """Parse a message and split it into layout and blobs, in a helper process if it is large.

    Large blobs of a file are left in files beside it, as `split_message` does. The code that
    removes the file must remove them too.
    """
    return await mime.run_by_message_size(_parse_source, source)


def _parse_source(source: bytes | Path) -> ParsedMessage:
    raw, base_path = (source, None) if isinstance(source, bytes) else (source.read_bytes(), source)
    facts = mime.facts_from_message_bytes(raw)
    packed = split_message(raw, list(_large_attachment_bodies(facts)), base_path)
    root = NewBlob(content_digest(packed.layout_bytes), packed.layout_bytes)
    structure = orjson.dumps(mime.json_rows_from_tree(facts.structure))
    return ParsedMessage(facts, len(raw), content_digest(raw), root, packed.blobs, structure)


def _large_attachment_bodies(facts: MessageFacts) -> Iterator[EncodedBody]:
    """The encoded bodies of large attachments."""
    attached = {attachment.section for attachment in facts.attachments}
    return (
        EncodedBody(part.body_start, part.body_end, part.encoding)
        for part, _ in mime.walk_own_parts_with_parents(facts.structure)
        if part.section in attached and part.size > MIN_BLOB_SIZE
    )
