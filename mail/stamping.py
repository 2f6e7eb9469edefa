"""What a delivery puts before a message: the end of its way, and the label of its address.

Each recipient has fields of the own before the same bytes: `Return-Path` (RFC 5321, section 4.4),
`Delivered-To`, and `X-Original-Rcpt`, the address that was asked for. What was cut out of the
message is the same for all, and kept once; only what is left, which is small, is stored for each.
"""

import asyncio
import hashlib
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import idna
import orjson

from mail import messages
from mail.addresses import Recipient
from mail.blobs.codec import digest_of
from mail.blobs.pack import Filed, Piece, prefixed
from mail.delivery import SMALL, Letter, read
from mail.fields import on_wire, unstructured
from mail.messages import Part
from models.users import DelimiterAction

STEP = 1 << 20  # bytes
_ODD = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_FIELD = re.compile(rb"[!-9;-~]+[ \t]*:")
_SUBJECT = re.compile(rb"(?im)^subject[ \t]*:[^\n]*\n(?:[ \t][^\n]*\n)*")


async def stamped(source: bytes | Path, letter: Letter, to: Recipient, sender: str) -> Letter:
    """The letter, which was read from `source`, as this recipient gets it.

    A repeat of its delivery is known by what came.
    """
    prefix = fields(to, sender)
    came = letter.came or letter.digest
    subject = bool(to.label) and to.delimiter_action is DelimiterAction.SUBJECT
    if subject or letter.facts.structure.truncated or not await _begins(source):
        raw = source if isinstance(source, bytes) else await asyncio.to_thread(source.read_bytes)
        raw = _labelled(raw, letter, to.label) if subject else raw
        made = await read(prefix + raw)
        return replace(made, came=came, verification=letter.verification)
    if isinstance(source, bytes) and len(source) < SMALL:
        digest = digest_of(prefix + source)
    else:
        digest = await asyncio.to_thread(_digest, prefix, source)
    return _behind(replace(letter, came=came, digest=digest), prefix)


def fields(to: Recipient, sender: str) -> bytes:
    """The fields that stand before the message of a recipient."""
    lines = {
        "Return-Path": f"<{sender}>",
        "Delivered-To": _wired(to.instead or to.address),
        "X-Original-Rcpt": _wired(to.original or to.address),
    }
    text = "".join(f"{name}: {_ODD.sub('', value)}\r\n" for name, value in lines.items())
    return text.encode()


def _wired(address: str) -> str:
    try:
        return on_wire(address)
    except idna.IDNAError:
        return address


async def _begins(source: bytes | Path) -> bool:
    """Whether the message begins with a field: one that is folded would become a part of ours."""
    if isinstance(source, Path):
        return bool(_FIELD.match(await asyncio.to_thread(_head, source)))
    return bool(_FIELD.match(source))


def _head(source: Path) -> bytes:
    with source.open("rb") as file:
        return file.read(1000)


def _digest(prefix: bytes, source: bytes | Path) -> str:
    found = hashlib.sha256(prefix)
    if isinstance(source, bytes):
        found.update(source)
    else:
        with source.open("rb") as file:
            while step := file.read(STEP):
                found.update(step)
    return found.hexdigest()


def _behind(letter: Letter, prefix: bytes) -> Letter:
    """The letter with these bytes before it: nothing is read again, and its places move."""
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
        structure=orjson.dumps(messages.part_json(structure)),
        keeping={},
    )


def _moved(root: Part, more: int) -> Part:
    """The tree with its places behind so many bytes; the header of the whole begins before."""
    done: dict[int, Part] = {}
    for part in reversed(list(messages.walk(root))):  # children before their parents
        done[id(part)] = replace(
            part,
            header_start=0 if part is root else part.header_start + more,
            body_start=part.body_start + more,
            body_end=part.body_end + more,
            parts=tuple(done[id(child)] for child in part.parts),
        )
    return done[id(root)]


def _labelled(raw: bytes, letter: Letter, label: str) -> bytes:
    """The message with the label before its subject."""
    end = letter.facts.structure.body_start
    text = _ODD.sub("", f"[{label}] {letter.facts.subject}")
    return b"".join(_with(raw[:end], unstructured("Subject", text))) + raw[end:]


def _with(header: bytes, subject: bytes) -> Iterator[bytes]:
    """The header with this subject for the one it has: in its place, or before all others."""
    kept, reached, found = list[bytes](), 0, False
    for each in _SUBJECT.finditer(header):
        kept += [header[reached : each.start()], b"" if found else subject]
        reached, found = each.end(), True
    yield b"" if found else subject
    yield from kept
    yield header[reached:]
