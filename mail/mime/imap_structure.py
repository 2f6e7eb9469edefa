"""ENVELOPE, BODY and BODYSTRUCTURE of IMAP (RFC 9051, section 7.5.2), in ASCII."""

import binascii

import idna

from mail.mime.address_lists import MailAddress, addresses
from mail.mime.byte_source import Source, cut
from mail.mime.encoded_words import collapsed, unfolded
from mail.mime.header_fields import fields
from mail.mime.mime_tree import Part, walk

_NIL = "NIL"
_EMPTY_TEXT = '("text" "plain" NIL NIL NIL "7bit" 0 0)'  # a multipart without parts is not allowed


def envelope_imap(raw: bytes | Source, part: Part) -> str:
    """Return the ENVELOPE of the message that begins with the header of the part."""
    own = _own_fields(raw, part)
    people = {
        name: addresses(own.get(name, ""))
        for name in ("from", "sender", "reply-to", "to", "cc", "bcc")
    }
    for name in ("sender", "reply-to"):
        people[name] = people[name] or people["from"]
    lists = [_people(found) for found in people.values()]
    date, subject, answered, own_id = (
        _string(own.get(name)) for name in ("date", "subject", "in-reply-to", "message-id")
    )
    return f"({date} {subject} {' '.join(lists)} {answered} {own_id})"


def bodystructure(raw: bytes | Source, structure: Part, *, extended: bool = True) -> str:
    """Return the BODYSTRUCTURE of a tree, or its BODY if not `extended`."""
    written: dict[str, str] = {}
    for part in reversed(list(walk(structure))):
        inside = [written.pop(child.section) for child in part.parts]
        if part.content_type.startswith("multipart/"):
            written[part.section] = _multipart(part, inside, extended=extended)
        else:
            written[part.section] = _single(raw, part, inside, extended=extended)
    return written[structure.section]


def _multipart(part: Part, inside: list[str], *, extended: bool) -> str:
    subtype = _string(part.content_type.partition("/")[2])
    more = f" {_parameters(part.params)} {_disposition(part)} NIL NIL" if extended else ""
    return f"({''.join(inside) or _EMPTY_TEXT} {subtype}{more})"


def _single(raw: bytes | Source, part: Part, inside: list[str], *, extended: bool) -> str:
    own = _own_fields(raw, part)
    kind, _, subtype = part.content_type.partition("/")
    if part.content_type in ("message/rfc822", "message/global") and not inside:
        kind, subtype = "application", "octet-stream"  # not parsed, so it has no envelope
    items = [
        _string(kind),
        _string(subtype),
        _parameters(part.params),
        _string(f"<{part.cid}>" if part.cid else None),
        _string(own.get("content-description")),
        _string(part.encoding),
        str(part.size),
    ]
    if inside:
        items += [envelope_imap(raw, part.parts[0]), inside[0], str(part.lines or 0)]
    elif kind == "text":
        items.append(str(part.lines or 0))
    if extended:
        language, location = own.get("content-language"), own.get("content-location")
        items += [_string(own.get("content-md5")), _disposition(part)]
        items += [_string(language), _string(location)]
    return f"({' '.join(items)})"


def _own_fields(raw: bytes | Source, part: Part) -> dict[str, str]:
    """Return the decoded fields of a header; of equal names the last one counts."""
    found = fields(cut(raw, part.header_start, part.body_start))
    return {name: collapsed(unfolded(value)) for name, value in found}


def _people(found: list[MailAddress]) -> str:
    return f"({''.join(map(_person, found))})" if found else _NIL


def _person(person: MailAddress) -> str:
    local, _, domain = person.address.rpartition("@")
    if not local:
        local, domain = domain, ""
    name, host = _string(person.name), _string(_ascii(domain))
    return f"({name} NIL {_string(local)} {host})"


def _ascii(domain: str) -> str:
    try:
        return domain if domain.isascii() else idna.encode(domain).decode("ascii")
    except (idna.IDNAError, UnicodeError):
        return domain


def _disposition(part: Part) -> str:
    if part.disposition is None:
        return _NIL
    return f"({_string(part.disposition)} {_parameters(part.disposition_params)})"


def _parameters(params: dict[str, str]) -> str:
    if not params:
        return _NIL
    items = (f"{_string(name)} {_string(value)}" for name, value in params.items())
    return f"({' '.join(items)})"


def _string(value: str | None) -> str:
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
