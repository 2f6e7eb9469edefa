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
from mail.mime import Part
from mail.storage.blobs.compression import digest_of
from mail.storage.blobs.message_layout import Filed, Piece, prefixed
from mail.storage.message_insert import Letter
from mail.storage.received_messages import SMALL, read

STEP = 1 << 20  # bytes
_FIELD = re.compile(rb"[!-9;-~]+[ \t]*:")


async def before(source: bytes | Path, letter: Letter, prefix: bytes, made: ExitStack) -> Letter:
    """The message, which was read from `source`, with these header fields before it.

    Its verification and scan results stay; its digest changes. New files are registered with
    `temporary_files`.
    """
    if letter.facts.structure.truncated or not await _begins(source):
        fresh = await read(await remade(source, prefix, 0, made))
        return replace(fresh, came=letter.came, verification=letter.verification, scan=letter.scan)
    if isinstance(source, bytes) and len(source) < SMALL:
        digest = digest_of(prefix + source)
    else:
        digest = await asyncio.to_thread(_digest, prefix, source)
    return _behind(replace(letter, digest=digest), prefix)


async def remade(source: bytes | Path, head: bytes, start: int, made: ExitStack) -> bytes | Path:
    """The message with `head` in the place of its first `old_size` bytes.

    The copy of a file is a file beside it, which is removed with `temporary_files`.
    """
    if isinstance(source, bytes):
        return head + source[start:]
    path = made.enter_context(beside(source))
    await asyncio.to_thread(_copy, source, path, head, start)
    return path


async def first(source: bytes | Path, many: int) -> bytes:
    """The first bytes of a message."""
    if isinstance(source, bytes):
        return source[:many]
    return await asyncio.to_thread(_first, source, many)


@contextmanager
def beside(source: Path) -> Generator[Path]:
    """Create a file beside `source` with a name that begins with its name; remove it at the end.

    Files with names that begin with the new name are removed too. The code that removes
    `source` after a crash removes all of them.
    """
    handle, name = tempfile.mkstemp(dir=source.parent, prefix=f"{source.name}.")
    os.close(handle)
    place = Path(name)
    try:
        yield place
    finally:
        for each in (place, *place.parent.glob(f"{place.name}.*")):
            each.unlink(missing_ok=True)


def _copy(source: Path, path: Path, head: bytes, start: int) -> None:
    with (
        source.open("rb") as file,
        path.open("r+b") as out,
    ):  # must exist: a removed file means the delivery was given up
        out.write(head)
        file.seek(start)
        shutil.copyfileobj(file, out, STEP)


async def _begins(source: bytes | Path) -> bool:
    """True if the message begins with a field. A folded line would become a part of our field."""
    return bool(_FIELD.match(source if isinstance(source, bytes) else await first(source, 1000)))


def _first(source: Path, many: int) -> bytes:
    with source.open("rb", buffering=0) as file:
        return file.read(many)


def _digest(prefix: bytes, source: bytes | Path) -> str:
    found = hashlib.sha256(prefix)
    if isinstance(source, bytes):
        found.update(source)
    else:
        with source.open("rb", buffering=0) as file:
            while step := file.read(STEP):
                found.update(step)
    return found.hexdigest()


def _behind(letter: Letter, prefix: bytes) -> Letter:
    """The message with `prefix` before it. Nothing is parsed again; its offsets move."""
    more, facts = len(prefix), letter.facts
    structure = _moved(facts.structure, more)
    root = letter.root.content
    if isinstance(root, Filed):
        raise TypeError("a skeleton lies in memory")
    skeleton = prefixed(root, prefix)
    return replace(
        letter,
        facts=replace(facts, structure=structure, header_size=facts.header_size + more),
        size=letter.size + more,
        root=Piece(digest_of(skeleton), skeleton),
        structure=orjson.dumps(mime.part_json(structure)),
        keeping={},
    )


def _moved(root: Part, more: int) -> Part:
    """The MIME tree with its offsets moved by `shift`; the header of the root still begins at 0."""
    done: dict[int, Part] = {}
    for part in reversed(list(mime.walk(root))):  # children before their parents
        done[id(part)] = replace(
            part,
            header_start=0 if part is root else part.header_start + more,
            body_start=part.body_start + more,
            body_end=part.body_end + more,
            parts=tuple(done[id(child)] for child in part.parts),
        )
    return done[id(root)]
