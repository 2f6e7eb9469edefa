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

from mail.envelope.local_recipient import LocalRecipient
from mail.mime.header_encoding import ascii_address_or_same, unstructured_field
from mail.storage.header_prepend import (
    copy_with_new_beginning,
    prepend_header_fields_to_message,
    read_beginning,
)
from mail.storage.received_messages import parse_storable_message
from mail.storage.storable_message import StorableMessage
from models.users.tables import SubaddressAction

_UNSAFE_CHARACTER = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_SUBJECT_FIELD = re.compile(rb"(?im)^subject[ \t]*:[^\n]*\n(?:[ \t][^\n]*\n)*")


async def add_delivery_headers_and_subject_label(
    source: bytes | Path,
    message: StorableMessage,
    recipient: LocalRecipient,
    sender: str,
    temporary_files: ExitStack,
) -> StorableMessage:
    """The message, which was read from `source`, with the delivery headers of a recipient.

    A repeated delivery is recognized by `received_digest`. New files are registered with
    `temporary_files`.
    """
    prefix = delivery_header_fields(recipient, sender)
    message = replace(message, received_digest=message.received_digest or message.digest)
    if not (recipient.label and recipient.subaddress_action is SubaddressAction.SUBJECT):
        return await prepend_header_fields_to_message(source, message, prefix, temporary_files)
    end = message.facts.structure.body_start
    head = prefix + _label_subject(await read_beginning(source, end), message, recipient.label)
    fresh = await parse_storable_message(
        await copy_with_new_beginning(source, head, end, temporary_files)
    )
    return replace(
        fresh,
        received_digest=message.received_digest,
        authentication=message.authentication,
        scan=message.scan,
    )


def delivery_header_fields(recipient: LocalRecipient, sender: str) -> bytes:
    """The header fields Return-Path, Delivered-To and X-Original-Rcpt of a recipient."""
    lines = {
        "Return-Path": f"<{sender}>",
        "Delivered-To": ascii_address_or_same(recipient.receiving_address),
        "X-Original-Rcpt": ascii_address_or_same(recipient.original_address or recipient.address),
    }
    text = "".join(
        f"{name}: {_UNSAFE_CHARACTER.sub('', value)}\r\n" for name, value in lines.items()
    )
    return text.encode()


def _label_subject(header: bytes, message: StorableMessage, label: str) -> bytes:
    """The header with the label before the text of its subject."""
    text = _UNSAFE_CHARACTER.sub("", f"[{label}] {message.facts.subject}")
    return b"".join(_replace_or_prepend_subject(header, unstructured_field("Subject", text)))


def _replace_or_prepend_subject(header: bytes, subject_field: bytes) -> Iterator[bytes]:
    """Yield the header with the new subject field in the place of the old, or before all fields."""
    kept_fields, reached, has_subject = list[bytes](), 0, False
    for match in _SUBJECT_FIELD.finditer(header):
        kept_fields += [header[reached : match.start()], b"" if has_subject else subject_field]
        reached, has_subject = match.end(), True
    yield b"" if has_subject else subject_field
    yield from kept_fields
    yield header[reached:]
