"""The facts of a message that lists, threads and the text index need.

They are read in one pass when the message is delivered.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from mail.mime.address_lists import MailAddress, addresses
from mail.mime.authentication_results import Stamp, stamps
from mail.mime.byte_source import Source, cut
from mail.mime.encoded_words import collapsed, decode_words, unfolded
from mail.mime.header_fields import Field, date_of, fields, message_ids
from mail.mime.header_parameters import plain_filename
from mail.mime.mime_tree import Part, within
from mail.mime.parser import opened
from mail.mime.part_content import decoded, measured
from mail.mime.preview_text import preview
from mail.mime.spam_headers import Opinion, opinions
from mail.mime.text_bodies import body_text, is_body
from mail.mime.thread_references import base_subject, thread_keys

MOST_REFERENCES = 1000
MOST_SEARCH_BYTES = 256 << 10
LONGEST_SUBJECT = 2000
_LONGEST_LIST_ID = 255
_SEARCHED_ADDRESSES = 1000  # of each header

_ADDRESS_FIELDS = frozenset(("from", "sender", "reply-to", "to", "cc", "bcc"))
_IN_ANGLES = re.compile(r"<([^<>]*)>")
_HTTP = re.compile(r"https?://[^\s<>\"]+", re.IGNORECASE)
_ENVELOPED = (
    b"\x2a\x86\x48\x86\xf7\x0d\x01\x07\x03",
    b"\x2a\x86\x48\x86\xf7\x0d\x01\x09\x10\x01\x17",
)
_CMS_HEAD = 200  # encoded bytes that contain the content type of a CMS object


@dataclass(frozen=True, slots=True)
class Attached:
    """The facts of a part that is a file. Stored as JSON with these field names."""

    part: str  # section
    filename: str | None
    content_type: str
    disposition: str | None
    encoding: str
    related: bool  # inside multipart/related
    cid: str | None
    size: int  # decoded bytes
    hash: str  # SHA-256 of the decoded content, in hex


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts of a message. Text is decoded; it is "" if the field is missing."""

    subject: str
    base_subject: str
    from_: list[MailAddress]
    sender: list[MailAddress]
    reply_to: list[MailAddress]
    to: list[MailAddress]
    cc: list[MailAddress]
    bcc: list[MailAddress]
    date: datetime | None  # in UTC
    message_id: str | None  # in angle brackets, as in_reply_to and references
    in_reply_to: str | None
    references: list[str]
    thread_keys: list[str]  # the key of the Message-ID first
    list_id: str | None
    list_unsubscribe: str | None
    list_unsubscribe_url: str | None
    one_click: bool
    auto_submitted: bool  # not written by a person (RFC 3834)
    content_type: str
    content_params: dict[str, str]
    encrypted: bool
    preview: str
    attachments: list[Attached]
    attachment_count: int  # without related ones
    structure: Part
    header_size: int  # with the blank line after it
    search_text: str
    stamps: list[Stamp]  # not verified
    opinions: list[Opinion]  # not verified


@dataclass(frozen=True, slots=True)
class _Top:
    """The header of the message: address lists, and the last value of each other field."""

    people: dict[str, list[MailAddress]]
    values: dict[str, str]

    def text(self, name: str) -> str:
        """Return the unfolded value of a field, "" if there is none."""
        value = self.values.get(name)
        return unfolded(value) if value else ""


def facts(raw: bytes) -> Facts:
    """Return the facts of a message. Never raises, for any bytes."""
    structure, own = opened(raw)
    top = _top(own)
    subject = collapsed(decode_words(top.text("subject")))[:LONGEST_SUBJECT]
    base = base_subject(subject)
    message_id = next(iter(message_ids(top.text("message-id"))), None)
    in_reply_to = message_ids(top.text("in-reply-to"))
    references = message_ids(top.text("references"))[-MOST_REFERENCES:]
    ids = ([message_id] if message_id else []) + in_reply_to[:MOST_REFERENCES] + references[::-1]
    unsubscribe = collapsed(decode_words(top.text("list-unsubscribe")))
    url = _HTTP.search(unsubscribe)
    text = (body_text(raw, structure) or "").replace("\0", "")
    attachments = _attachments(raw, structure)
    return Facts(
        subject=subject,
        base_subject=base,
        from_=top.people.get("from", []),
        sender=top.people.get("sender", []),
        reply_to=top.people.get("reply-to", []),
        to=top.people.get("to", []),
        cc=top.people.get("cc", []),
        bcc=top.people.get("bcc", []),
        date=date_of(top.text("date")),
        message_id=message_id,
        in_reply_to=in_reply_to[0] if in_reply_to else None,
        references=references,
        thread_keys=thread_keys(ids, top.text("thread-index"), base),
        list_id=_list_id(top.text("list-id")),
        list_unsubscribe=unsubscribe or None,
        list_unsubscribe_url=url.group() if url else None,
        one_click=url is not None and _is_one_click(top),
        auto_submitted=_is_automatic(top),
        content_type=structure.content_type,
        content_params=structure.params,
        encrypted=_is_encrypted(raw, structure),
        preview=preview(text),
        attachments=attachments,
        attachment_count=sum(not each.related for each in attachments),
        structure=structure,
        header_size=structure.body_start,
        search_text=_search_text(subject, top, text, attachments),
        stamps=stamps(own),
        opinions=opinions(own),
    )


def _top(own: list[Field]) -> _Top:
    """Group header fields: address fields are merged, of other fields the last one counts."""
    people: dict[str, list[MailAddress]] = {}
    values: dict[str, str] = {}
    for name, value in own:
        if name not in _ADDRESS_FIELDS:
            values[name] = value
        elif found := addresses(unfolded(value)):
            people.setdefault(name, []).extend(found)
    return _Top(people, values)


def _list_id(value: str) -> str | None:
    found = _IN_ANGLES.search(value)
    return (found.group(1) if found else value).strip()[:_LONGEST_LIST_ID] or None


def _is_one_click(top: _Top) -> bool:
    """True if one request unsubscribes (RFC 8058)."""
    return "list-unsubscribe=one-click" in top.text("list-unsubscribe-post").lower()


def _is_automatic(top: _Top) -> bool:
    word = top.text("auto-submitted").partition(";")[0].partition("(")[0].strip().lower()
    return word not in ("", "no")


def _is_encrypted(raw: bytes, structure: Part) -> bool:
    if structure.content_type == "multipart/encrypted":
        return True
    if structure.content_type not in ("application/pkcs7-mime", "application/x-pkcs7-mime"):
        return False
    kind = structure.params.get("smime-type", "").lower()
    if kind:
        return kind in ("enveloped-data", "authenveloped-data")
    head = cut(raw, structure.body_start, min(structure.body_end, structure.body_start + _CMS_HEAD))
    head = decoded(head, structure.encoding)
    return any(name in head for name in _ENVELOPED)


def files(structure: Part) -> Iterator[tuple[Part, tuple[Part, ...]]]:
    """Yield the parts that are files, each with its parents, outermost first."""
    for part, parents in within(structure):
        is_multipart = part.content_type.startswith("multipart/")
        if not ((is_multipart and part.parts) or is_body(part) or _is_second_form(part, parents)):
            yield part, parents


def attached(structure: Part) -> Iterator[Part]:
    """Yield the parts that are files and not in a multipart/related."""
    return (part for part, parents in files(structure) if not _is_related(parents))


def _is_related(parents: tuple[Part, ...]) -> bool:
    return any(parent.content_type == "multipart/related" for parent in parents)


def _attachments(raw: bytes | Source, structure: Part) -> list[Attached]:
    found: list[Attached] = []
    for part, parents in files(structure):
        size, digest = measured(raw, part)
        found.append(
            Attached(
                part=part.section,
                filename=part.filename or _message_name(raw, part),
                content_type=part.content_type,
                disposition=part.disposition,
                encoding=part.encoding,
                related=_is_related(parents),
                cid=part.cid,
                size=size,
                hash=digest,
            )
        )
    return found


def _is_second_form(part: Part, parents: tuple[Part, ...]) -> bool:
    """True for an AMP part of a multipart/alternative, which is never shown."""
    return part.content_type == "text/x-amp-html" and bool(
        parents and parents[-1].content_type == "multipart/alternative"
    )


def _message_name(raw: bytes | Source, part: Part) -> str | None:
    """Return a file name from the subject of an attached message, else None."""
    if not part.parts:
        return None
    within_it = part.parts[0]
    own = dict(fields(cut(raw, within_it.header_start, within_it.body_start)))
    subject = collapsed(decode_words(unfolded(own.get("subject", ""))))[:100]
    name = plain_filename(subject.replace("/", "_").replace("\\", "_"))
    return f"{name or 'message'}.eml"


def _search_text(subject: str, top: _Top, text: str, attachments: list[Attached]) -> str:
    """Return the text for the index: subject, addresses, file names and body, 256 KiB."""
    words = [subject]
    for people in top.people.values():
        words.extend(
            f"{each.name} {each.address}" if each.name else each.address
            for each in people[:_SEARCHED_ADDRESSES]
        )
    words.extend(each.filename for each in attachments if each.filename)
    words.append(text[:MOST_SEARCH_BYTES])
    joined = "\n".join(words)
    if len(joined) * 4 <= MOST_SEARCH_BYTES or joined.isascii():
        return joined[:MOST_SEARCH_BYTES]
    return joined.encode("utf-8", "replace")[:MOST_SEARCH_BYTES].decode("utf-8", "ignore")
