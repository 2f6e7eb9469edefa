"""The facts of a message that lists, threads and the text index need.

They are read in one pass when the message is delivered.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from mail.mime.address_lists import ParsedAddress, parse_address_list
from mail.mime.authentication_results import (
    AuthenticationResultsField,
    authentication_results_fields,
)
from mail.mime.byte_source import ByteSource, read_range
from mail.mime.encoded_words import (
    collapse_whitespace,
    decode_encoded_words_and_drop_controls,
    unfold_and_decode_utf8,
)
from mail.mime.header_fields import (
    RawField,
    leading_keyword,
    parse_date_or_none,
    parse_fields_with_lowercase_names,
    parse_message_ids,
)
from mail.mime.header_parameters import safe_filename_or_none
from mail.mime.list_unsubscribe import (
    is_https,
    signers_of_one_click_fields,
    unsubscribe_web_urls,
)
from mail.mime.mime_tree import ParsedPart, walk_own_parts_with_parents
from mail.mime.parser import parse_structure_and_fields
from mail.mime.part_content import content_size_and_hash, decode_transfer_encoding
from mail.mime.preview_text import build_preview
from mail.mime.spam_headers import SpamHeaderField, spam_header_fields
from mail.mime.text_bodies import body_text, is_body_part
from mail.mime.thread_references import base_subject, thread_keys

MAX_REFERENCES = 1000
MAX_SEARCH_BYTES = 256 << 10
MAX_SUBJECT_LENGTH = 2000
_MAX_LIST_ID_LENGTH = 255
_MAX_SEARCHED_ADDRESSES = 1000  # of each header

_ADDRESS_FIELDS = frozenset(("from", "sender", "reply-to", "to", "cc", "bcc"))
_IN_ANGLES = re.compile(r"<([^<>]*)>")
_ENVELOPED_DATA_OIDS = (
    b"\x2a\x86\x48\x86\xf7\x0d\x01\x07\x03",
    b"\x2a\x86\x48\x86\xf7\x0d\x01\x09\x10\x01\x17",
)
_CMS_HEAD_BYTES = 200  # encoded bytes that contain the content type of a CMS object


@dataclass(frozen=True, slots=True)
class AttachmentFacts:
    """The facts of a part that is a file. Stored as JSON with these field names."""

    section: str
    filename: str | None
    content_type: str
    disposition: str | None
    encoding: str
    inline: bool  # inside multipart/related
    content_id: str | None
    size: int  # decoded bytes
    sha256: str  # SHA-256 of the decoded content, in hex


@dataclass(frozen=True, slots=True)
class MessageFacts:
    """The facts of a message. Text is decoded; it is "" if the field is missing."""

    subject: str
    base_subject: str
    from_: list[ParsedAddress]
    sender: list[ParsedAddress]
    reply_to: list[ParsedAddress]
    to: list[ParsedAddress]
    cc: list[ParsedAddress]
    bcc: list[ParsedAddress]
    date: datetime | None  # in UTC
    message_id: str | None  # in angle brackets, as in_reply_to and references
    in_reply_to: str | None
    references: list[str]
    thread_keys: list[str]  # the key of the Message-ID first
    list_id: str | None
    list_unsubscribe: str | None
    list_unsubscribe_url: str | None
    one_click: bool  # requested, with an https URL
    one_click_signers: list[list[str]]  # selector and domain of signatures, not verified
    auto_submitted: bool  # not written by a person (RFC 3834)
    content_type: str
    content_params: dict[str, str]
    encrypted: bool
    preview: str
    attachments: list[AttachmentFacts]
    attachment_count: int  # without inline ones
    structure: ParsedPart
    header_size: int  # with the blank line after it
    search_text: str
    authentication_results: list[AuthenticationResultsField]  # not verified
    spam_headers: list[SpamHeaderField]  # not verified


@dataclass(frozen=True, slots=True)
class _TopFields:
    """The header of the message: address lists, and the last value of each other field."""

    addresses: dict[str, list[ParsedAddress]]
    values: dict[str, str]

    def unfolded_value_or_empty(self, name: str) -> str:
        """Return the unfolded value of a field, "" if there is none."""
        value = self.values.get(name)
        return unfold_and_decode_utf8(value) if value else ""


def facts_from_message_bytes(raw: bytes) -> MessageFacts:
    """Return the facts of a message. Never raises, for any bytes."""
    structure, own_fields = parse_structure_and_fields(raw)
    top = _merge_top_header_fields(own_fields)
    subject = collapse_whitespace(
        decode_encoded_words_and_drop_controls(top.unfolded_value_or_empty("subject"))
    )[:MAX_SUBJECT_LENGTH]
    base = base_subject(subject)
    message_id = next(iter(parse_message_ids(top.unfolded_value_or_empty("message-id"))), None)
    in_reply_to = parse_message_ids(top.unfolded_value_or_empty("in-reply-to"))
    references = parse_message_ids(top.unfolded_value_or_empty("references"))[-MAX_REFERENCES:]
    ids = ([message_id] if message_id else []) + in_reply_to[:MAX_REFERENCES] + references[::-1]
    unsubscribe = collapse_whitespace(
        decode_encoded_words_and_drop_controls(top.unfolded_value_or_empty("list-unsubscribe"))
    )
    urls = unsubscribe_web_urls(unsubscribe)
    https_urls = list(filter(is_https, urls)) if _requests_one_click(top) else []
    text = (body_text(raw, structure) or "").replace("\0", "")
    attachments = _attachment_facts(raw, structure)
    return MessageFacts(
        subject=subject,
        base_subject=base,
        from_=top.addresses.get("from", []),
        sender=top.addresses.get("sender", []),
        reply_to=top.addresses.get("reply-to", []),
        to=top.addresses.get("to", []),
        cc=top.addresses.get("cc", []),
        bcc=top.addresses.get("bcc", []),
        date=parse_date_or_none(top.unfolded_value_or_empty("date")),
        message_id=message_id,
        in_reply_to=in_reply_to[0] if in_reply_to else None,
        references=references,
        thread_keys=thread_keys(ids, top.unfolded_value_or_empty("thread-index"), base),
        list_id=_parse_list_id(top.unfolded_value_or_empty("list-id")),
        list_unsubscribe=unsubscribe or None,
        list_unsubscribe_url=next(iter([*https_urls, *urls]), None),
        one_click=bool(https_urls),
        one_click_signers=signers_of_one_click_fields(own_fields) if https_urls else [],
        auto_submitted=_is_auto_submitted(top),
        content_type=structure.content_type,
        content_params=structure.params,
        encrypted=_is_encrypted(raw, structure),
        preview=build_preview(text),
        attachments=attachments,
        attachment_count=sum(not attachment.inline for attachment in attachments),
        structure=structure,
        header_size=structure.body_start,
        search_text=_search_text(subject, top, text, attachments),
        authentication_results=authentication_results_fields(own_fields),
        spam_headers=spam_header_fields(own_fields),
    )


def _merge_top_header_fields(header_fields: list[RawField]) -> _TopFields:
    """Group header fields: address fields are merged, of other fields the last one counts."""
    people: dict[str, list[ParsedAddress]] = {}
    values: dict[str, str] = {}
    for name, value in header_fields:
        if name not in _ADDRESS_FIELDS:
            values[name] = value
        elif addresses := parse_address_list(unfold_and_decode_utf8(value)):
            people.setdefault(name, []).extend(addresses)
    return _TopFields(people, values)


def _parse_list_id(value: str) -> str | None:
    match = _IN_ANGLES.search(value)
    return (match.group(1) if match else value).strip()[:_MAX_LIST_ID_LENGTH] or None


def _requests_one_click(top: _TopFields) -> bool:
    """True if List-Unsubscribe-Post asks for one-click unsubscription (RFC 8058)."""
    return (
        "list-unsubscribe=one-click" in top.unfolded_value_or_empty("list-unsubscribe-post").lower()
    )


def _is_auto_submitted(top: _TopFields) -> bool:
    keyword = leading_keyword(top.unfolded_value_or_empty("auto-submitted"))
    return keyword not in ("", "no")


def _is_encrypted(raw: bytes, structure: ParsedPart) -> bool:
    if structure.content_type == "multipart/encrypted":
        return True
    if structure.content_type not in ("application/pkcs7-mime", "application/x-pkcs7-mime"):
        return False
    kind = structure.params.get("smime-type", "").lower()
    if kind:
        return kind in ("enveloped-data", "authenveloped-data")
    head = read_range(
        raw, structure.body_start, min(structure.body_end, structure.body_start + _CMS_HEAD_BYTES)
    )
    head = decode_transfer_encoding(head, structure.encoding)
    return any(name in head for name in _ENVELOPED_DATA_OIDS)


def file_parts(structure: ParsedPart) -> Iterator[tuple[ParsedPart, tuple[ParsedPart, ...]]]:
    """Yield the parts that are files, each with its parents, outermost first."""
    for part, parents in walk_own_parts_with_parents(structure):
        is_multipart = part.content_type.startswith("multipart/")
        if not (
            (is_multipart and part.parts)
            or is_body_part(part)
            or _is_amp_alternative(part, parents)
        ):
            yield part, parents


def file_parts_outside_related(structure: ParsedPart) -> Iterator[ParsedPart]:
    """Yield the parts that are files and not in a multipart/related."""
    return (part for part, parents in file_parts(structure) if not _is_related(parents))


def _is_related(parents: tuple[ParsedPart, ...]) -> bool:
    return any(parent.content_type == "multipart/related" for parent in parents)


def _attachment_facts(raw: bytes | ByteSource, structure: ParsedPart) -> list[AttachmentFacts]:
    attachments: list[AttachmentFacts] = []
    for part, parents in file_parts(structure):
        size, digest = content_size_and_hash(raw, part)
        attachments.append(
            AttachmentFacts(
                section=part.section,
                filename=part.filename or _attached_message_filename_or_none(raw, part),
                content_type=part.content_type,
                disposition=part.disposition,
                encoding=part.encoding,
                inline=_is_related(parents),
                content_id=part.content_id,
                size=size,
                sha256=digest,
            )
        )
    return attachments


def _is_amp_alternative(part: ParsedPart, parents: tuple[ParsedPart, ...]) -> bool:
    """True for an AMP part of a multipart/alternative, which is never shown."""
    return part.content_type == "text/x-amp-html" and bool(
        parents and parents[-1].content_type == "multipart/alternative"
    )


def _attached_message_filename_or_none(raw: bytes | ByteSource, part: ParsedPart) -> str | None:
    """Return a file name from the subject of an attached message, else None."""
    if not part.parts:
        return None
    within_it = part.parts[0]
    own_fields = dict(
        parse_fields_with_lowercase_names(
            read_range(raw, within_it.header_start, within_it.body_start)
        )
    )
    subject = collapse_whitespace(
        decode_encoded_words_and_drop_controls(
            unfold_and_decode_utf8(own_fields.get("subject", ""))
        )
    )[:100]
    name = safe_filename_or_none(subject.replace("/", "_").replace("\\", "_"))
    return f"{name or 'message'}.eml"


def _search_text(
    subject: str, top: _TopFields, text: str, attachments: list[AttachmentFacts]
) -> str:
    """Return the text for the index: subject, addresses, file names and body, 256 KiB."""
    words = [subject]
    for people in top.addresses.values():
        words.extend(
            f"{person.name} {person.address}" if person.name else person.address
            for person in people[:_MAX_SEARCHED_ADDRESSES]
        )
    words.extend(attachment.filename for attachment in attachments if attachment.filename)
    words.append(text[:MAX_SEARCH_BYTES])
    joined = "\n".join(words)
    if len(joined) * 4 <= MAX_SEARCH_BYTES or joined.isascii():
        return joined[:MAX_SEARCH_BYTES]
    return joined.encode("utf-8", "replace")[:MAX_SEARCH_BYTES].decode("utf-8", "ignore")
