"""ENVELOPE, BODY and BODYSTRUCTURE of IMAP (RFC 9051, section 7.5.2), in ASCII."""

import binascii

import idna

from mail.mime.address_lists import ParsedAddress, parse_address_list
from mail.mime.byte_source import ByteSource, read_range
from mail.mime.encoded_words import collapse_whitespace, unfold_and_decode_utf8
from mail.mime.header_fields import parse_fields_with_lowercase_names
from mail.mime.mime_tree import ParsedPart, walk_parts

_NIL = "NIL"
_EMPTY_TEXT_PART = (
    '("text" "plain" NIL NIL NIL "7bit" 0 0)'  # a multipart without parts is not allowed
)


def imap_envelope(raw: bytes | ByteSource, part: ParsedPart) -> str:
    """Return the ENVELOPE of the message that begins with the header of the part."""
    own_fields = _fields_by_name(raw, part)
    people = {
        name: parse_address_list(own_fields.get(name, ""))
        for name in ("from", "sender", "reply-to", "to", "cc", "bcc")
    }
    for name in ("sender", "reply-to"):
        people[name] = people[name] or people["from"]
    lists = [_address_list(person) for person in people.values()]
    date, subject, answered, own_id = (
        _quoted_string(own_fields.get(name))
        for name in ("date", "subject", "in-reply-to", "message-id")
    )
    return f"({date} {subject} {' '.join(lists)} {answered} {own_id})"


def imap_bodystructure(
    raw: bytes | ByteSource, structure: ParsedPart, *, extended: bool = True
) -> str:
    """Return the BODYSTRUCTURE of a tree, or its BODY if not `extended`."""
    parameters: dict[str, str] = {}
    for part in reversed(list(walk_parts(structure))):
        inside = [parameters.pop(child.section) for child in part.parts]
        if part.content_type.startswith("multipart/"):
            parameters[part.section] = _multipart_structure(part, inside, extended=extended)
        else:
            parameters[part.section] = _leaf_structure(raw, part, inside, extended=extended)
    return parameters[structure.section]


def _multipart_structure(part: ParsedPart, child_structures: list[str], *, extended: bool) -> str:
    subtype = _quoted_string(part.content_type.partition("/")[2])
    extension_fields = (
        f" {_parameter_list(part.params)} {_disposition_structure(part)} NIL NIL"
        if extended
        else ""
    )
    return f"({''.join(child_structures) or _EMPTY_TEXT_PART} {subtype}{extension_fields})"


def _leaf_structure(
    raw: bytes | ByteSource, part: ParsedPart, child_structures: list[str], *, extended: bool
) -> str:
    own_fields = _fields_by_name(raw, part)
    kind, _, subtype = part.content_type.partition("/")
    if part.content_type in ("message/rfc822", "message/global") and not child_structures:
        kind, subtype = "application", "octet-stream"  # not parsed, so it has no envelope
    items = [
        _quoted_string(kind),
        _quoted_string(subtype),
        _parameter_list(part.params),
        _quoted_string(f"<{part.content_id}>" if part.content_id else None),
        _quoted_string(own_fields.get("content-description")),
        _quoted_string(part.encoding),
        str(part.size),
    ]
    if child_structures:
        items += [imap_envelope(raw, part.parts[0]), child_structures[0], str(part.lines or 0)]
    elif kind == "text":
        items.append(str(part.lines or 0))
    if extended:
        language, location = own_fields.get("content-language"), own_fields.get("content-location")
        items += [_quoted_string(own_fields.get("content-md5")), _disposition_structure(part)]
        items += [_quoted_string(language), _quoted_string(location)]
    return f"({' '.join(items)})"


def _fields_by_name(raw: bytes | ByteSource, part: ParsedPart) -> dict[str, str]:
    """Return the decoded fields of a header; of equal names the last one counts."""
    fields = parse_fields_with_lowercase_names(read_range(raw, part.header_start, part.body_start))
    return {name: collapse_whitespace(unfold_and_decode_utf8(value)) for name, value in fields}


def _address_list(addresses: list[ParsedAddress]) -> str:
    return f"({''.join(map(_address_structure, addresses))})" if addresses else _NIL


def _address_structure(mailbox: ParsedAddress) -> str:
    local, _, domain = mailbox.address.rpartition("@")
    if not local:
        local, domain = domain, ""
    name, host = _quoted_string(mailbox.name), _quoted_string(_ascii_domain(domain))
    return f"({name} NIL {_quoted_string(local)} {host})"


def _ascii_domain(domain: str) -> str:
    try:
        return domain if domain.isascii() else idna.encode(domain).decode("ascii")
    except (idna.IDNAError, UnicodeError):
        return domain


def _disposition_structure(part: ParsedPart) -> str:
    if part.disposition is None:
        return _NIL
    return f"({_quoted_string(part.disposition)} {_parameter_list(part.disposition_params)})"


def _parameter_list(params: dict[str, str]) -> str:
    if not params:
        return _NIL
    items = (f"{_quoted_string(name)} {_quoted_string(value)}" for name, value in params.items())
    return f"({' '.join(items)})"


def _quoted_string(value: str | None) -> str:
    """Return a quoted string or NIL. Text that is not ASCII becomes an encoded word."""
    if value is None:
        return _NIL
    if not value.isascii():
        body = binascii.b2a_base64(value.encode("utf-8", "replace"), newline=False)
        value = f"=?utf-8?b?{body.decode('ascii')}?="
    text = "".join(
        " " if character < " " or character == "\x7f" else character for character in value
    )
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
