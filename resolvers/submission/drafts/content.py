"""Read the fields of a stored draft, so that a save can keep them."""

from mail import mime
from mail.compose import draft_validation
from mail.compose.message_draft import CustomHeader
from mail.compose.priority_header import priority_from_header_fields
from mail.mime import ByteSource, DecodedField, ParsedAddress, ParsedPart
from mail.mime.byte_source import read_range
from mail.mime.header_encoding import NamedAddress
from mail.storage.message_content import StoredMessage, read_all
from resolvers.submission.composition import MessageFields

_MIME_FIELDS = ("content-", "mime-version")  # beginnings of the names, in lower case


async def read_draft_fields(message: StoredMessage) -> MessageFields:
    """Read the header fields and bodies of a stored draft, without its attachments.

    Header fields that a client can't set are left out. `text` is None if the draft has only HTML.
    """
    return await message.run_on_source(
        lambda source: _fields_from_source(source, message.structure)
    )


async def read_mime_entity(message: StoredMessage) -> bytes:
    """Read the body of a draft, byte for byte, with its MIME header fields."""
    raw = await read_all(message.stream_raw())
    structure = message.structure
    fields = mime.decoded_fields(raw, structure)
    mime_fields = [field.raw for field in fields if field.name.lower().startswith(_MIME_FIELDS)]
    header = "".join(f"{line}\n" for line in mime_fields).replace("\n", "\r\n")
    return header.encode() + b"\r\n" + raw[structure.body_start :]


def _fields_from_source(source: ByteSource, structure: ParsedPart) -> MessageFields:
    header = read_range(source, structure.header_start, structure.body_start)
    addresses = mime.facts_from_message_bytes(header)
    fields = mime.decoded_fields(source, structure)
    body_types = {part.content_type for part in mime.shown_body_parts(structure)}
    has_html, has_text = "text/html" in body_types, bool(body_types - {"text/html"})
    from_ = _named_addresses(addresses.from_)
    return MessageFields(
        from_=from_[0] if from_ else None,
        to=_named_addresses(addresses.to),
        cc=_named_addresses(addresses.cc),
        bcc=_named_addresses(addresses.bcc),
        reply_to=_named_addresses(addresses.reply_to),
        subject=_last_value_or_empty(fields, "subject"),
        text=mime.body_text(source, structure) if has_text else None,
        html="<br>".join(mime.body_html_parts(source, structure)) if has_html else None,
        headers=[
            CustomHeader(field.name, field.value)
            for field in fields
            if draft_validation.is_valid_custom_header(field.name, field.value)
        ],
        priority=priority_from_header_fields(fields),
    )


def _named_addresses(addresses: list[ParsedAddress]) -> list[NamedAddress]:
    """Convert addresses of a header; entries without an address are left out.

    An address without a name gets the empty name, so that no identity gives it one.
    """
    return [
        NamedAddress(address.address, address.name or "")
        for address in addresses
        if address.address
    ]


def _last_value_or_empty(fields: list[DecodedField], name: str) -> str:
    """Return the value of the last field of this name in one line; "" if there is none."""
    values = [field.value for field in fields if field.name.lower() == name]
    return draft_validation.without_control_characters(values[-1]).strip() if values else ""
