"""Messages with a new beginning. Large ones are not parsed again, and never whole in memory."""

import asyncio
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import orjson

from mail import mime
from mail.mime import ParsedPart
from mail.storage.blobs.compression import content_digest
from mail.storage.blobs.message_layout import ContentFile, NewBlob, prepend_to_layout
from mail.storage.received_messages import THREAD_THRESHOLD, parse_storable_message
from mail.storage.storable_message import StorableMessage

COPY_CHUNK_SIZE = 1 << 20  # bytes
_HEADER_FIELD = re.compile(rb"[!-9;-~]+[ \t]*:")


async def prepend_header_fields_to_message(
    source: bytes | Path, message: StorableMessage, prefix: bytes, temporary_files: ExitStack
) -> StorableMessage:
    """The message, which was read from `source`, with these header fields before it.

    Its authentication and scan results stay; its digest changes. New files are registered with
    `temporary_files`.
    """
    if message.facts.structure.truncated or not await _begins_with_field(source):
        fresh = await parse_storable_message(
            await copy_with_new_beginning(source, prefix, 0, temporary_files)
        )
        return replace(
            fresh,
            received_digest=message.received_digest,
            authentication=message.authentication,
            scan=message.scan,
        )
    if isinstance(source, bytes) and len(source) < THREAD_THRESHOLD:
        digest = content_digest(prefix + source)
    else:
        digest = await asyncio.to_thread(_digest_with_prefix, prefix, source)
    return _prepend_without_parsing(replace(message, digest=digest), prefix)


async def copy_with_new_beginning(
    source: bytes | Path, head: bytes, old_size: int, temporary_files: ExitStack
) -> bytes | Path:
    """The message with `head` in the place of its first `old_size` bytes.

    The copy of a file is a file beside it, which is removed with `temporary_files`.
    """
    if isinstance(source, bytes):
        return head + source[old_size:]
    path = temporary_files.enter_context(temporary_file_beside(source))
    await asyncio.to_thread(_write_with_new_beginning, source, path, head, old_size)
    return path


async def read_beginning(source: bytes | Path, byte_count: int) -> bytes:
    """The first bytes of a message."""
    if isinstance(source, bytes):
        return source[:byte_count]
    return await asyncio.to_thread(_read_file_beginning, source, byte_count)


@contextmanager
def temporary_file_beside(source: Path) -> Generator[Path]:
    """Create a file beside `source` with a name that begins with its name; remove it at the end.

    Files with names that begin with the new name are removed too. The code that removes
    `source` after a crash removes all of them.
    """
    handle, name = tempfile.mkstemp(dir=source.parent, prefix=f"{source.name}.")
    os.close(handle)
    base_path = Path(name)
    try:
        yield base_path
    finally:
        for path in (base_path, *base_path.parent.glob(f"{base_path.name}.*")):
            path.unlink(missing_ok=True)


def _write_with_new_beginning(source: Path, path: Path, head: bytes, old_size: int) -> None:
    with (
        source.open("rb") as file,
        path.open("r+b") as out,
    ):  # must exist: a removed file means the delivery was given up
        out.write(head)
        file.seek(old_size)
        shutil.copyfileobj(file, out, COPY_CHUNK_SIZE)


async def _begins_with_field(source: bytes | Path) -> bool:
    """True if the message begins with a field. A folded line would become a part of our field."""
    return bool(
        _HEADER_FIELD.match(
            source if isinstance(source, bytes) else await read_beginning(source, 1000)
        )
    )


def _read_file_beginning(source: Path, byte_count: int) -> bytes:
    with source.open("rb", buffering=0) as file:
        return file.read(byte_count)


def _digest_with_prefix(prefix: bytes, source: bytes | Path) -> str:
    digest = hashlib.sha256(prefix)
    if isinstance(source, bytes):
        digest.update(source)
    else:
        with source.open("rb", buffering=0) as file:
            while step := file.read(COPY_CHUNK_SIZE):
                digest.update(step)
    return digest.hexdigest()


def _prepend_without_parsing(message: StorableMessage, prefix: bytes) -> StorableMessage:
    """The message with `prefix` before it. Nothing is parsed again; its offsets move."""
    prefix_size, facts = len(prefix), message.facts
    structure = _shift_parts(facts.structure, prefix_size)
    root = message.layout_blob.content
    if isinstance(root, ContentFile):
        raise TypeError("a skeleton lies in memory")
    skeleton = prepend_to_layout(root, prefix)
    return replace(
        message,
        facts=replace(facts, structure=structure, header_size=facts.header_size + prefix_size),
        size=message.size + prefix_size,
        layout_blob=NewBlob(content_digest(skeleton), skeleton),
        structure_json=orjson.dumps(mime.json_rows_from_tree(structure)),
        stored_blobs_by_tenant={},
    )


def _shift_parts(root: ParsedPart, shift: int) -> ParsedPart:
    """The MIME tree with its offsets moved by `shift`; the header of the root still begins at 0."""
    shifted_parts: dict[int, ParsedPart] = {}
    for part in reversed(list(mime.walk_parts(root))):  # children before their parents
        shifted_parts[id(part)] = replace(
            part,
            header_start=0 if part is root else part.header_start + shift,
            body_start=part.body_start + shift,
            body_end=part.body_end + shift,
            parts=tuple(shifted_parts[id(child)] for child in part.parts),
        )
    return shifted_parts[id(root)]
