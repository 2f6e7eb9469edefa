"""The header fields that a delivery puts before a message, and the label of its address.

Each recipient gets fields of its own before the same bytes: `Return-Path` (RFC 5321, section 4.4),
`Delivered-To`, and `X-Original-Rcpt`, the address of RCPT TO. The blobs of the parts are stored
once for all recipients; only the small layout is stored for each.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import idna

from mail.envelope.local_recipient import Recipient
from mail.mime.header_encoding import on_wire, unstructured
from mail.storage.header_prepend import before, first, remade
from mail.storage.message_insert import Letter
from mail.storage.received_messages import read
from models.users.tables import DelimiterAction

_ODD = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_SUBJECT = re.compile(rb"(?im)^subject[ \t]*:[^\n]*\n(?:[ \t][^\n]*\n)*")


async def stamped(
    source: bytes | Path, letter: Letter, to: Recipient, sender: str, made: ExitStack
) -> Letter:
    """The message, which was read from `source`, with the delivery headers of a recipient.

    A repeated delivery is recognized by `received_digest`. New files are registered with
    `temporary_files`.
    """
    prefix = fields(to, sender)
    letter = replace(letter, came=letter.came or letter.digest)
    if not (to.label and to.delimiter_action is DelimiterAction.SUBJECT):
        return await before(source, letter, prefix, made)
    end = letter.facts.structure.body_start
    head = prefix + _labelled(await first(source, end), letter, to.label)
    fresh = await read(await remade(source, head, end, made))
    return replace(fresh, came=letter.came, verification=letter.verification, scan=letter.scan)


def fields(to: Recipient, sender: str) -> bytes:
    """The header fields Return-Path, Delivered-To and X-Original-Rcpt of a recipient."""
    lines = {
        "Return-Path": f"<{sender}>",
        "Delivered-To": _wired(to.instead or to.address),
        "X-Original-Rcpt": _wired(to.original or to.address),
    }
    text = "".join(f"{name}: {_ODD.sub('', value)}\r\n" for name, value in lines.items())
    return text.encode()


def _wired(address: str) -> str:
    """The address with an A-label domain; unchanged if it has none."""
    try:
        return on_wire(address)
    except idna.IDNAError:
        return address


def _labelled(header: bytes, letter: Letter, label: str) -> bytes:
    """The header with the label before the text of its subject."""
    text = _ODD.sub("", f"[{label}] {letter.facts.subject}")
    return b"".join(_with(header, unstructured("Subject", text)))


def _with(header: bytes, subject: bytes) -> Iterator[bytes]:
    """Yield the header with the new subject field in the place of the old, or before all fields."""
    kept, reached, found = list[bytes](), 0, False
    for each in _SUBJECT.finditer(header):
        kept += [header[reached : each.start()], b"" if found else subject]
        reached, found = each.end(), True
    yield b"" if found else subject
    yield from kept
    yield header[reached:]
