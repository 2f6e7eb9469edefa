"""Building of MIME messages from the fields of a draft (RFC 5322, RFC 2045)."""

import base64
import binascii
import hashlib
import html as entities
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from email.policy import SMTP
from email.utils import format_datetime
from enum import StrEnum
from typing import Any

from mail import mime as messages
from mail.addresses.address_syntax import checked
from mail.compose import embedded_messages, text_parts
from mail.mime import header_encoding
from mail.mime.header_encoding import Named, needs_utf8
from models.errors import Invalid, Problems, check_limit

KIB, MIB = 1 << 10, 1 << 20
SUBJECT = 2 * KIB  # bytes, as all limits of sizes here
TEXT = MIB
HTML_WITH_IMAGES = 12 * MIB  # before images with data: URLs are extracted
NAME = 255
HEADER = 100 * KIB
HEADERS = 100  # header fields that the client adds
REFERENCES = 50  # ids
FILES = 250

# Fields that this module writes, and fields that only servers write.
OURS = frozenset(
    (
        *("from", "sender", "reply-to", "to", "cc", "bcc", "subject", "date", "message-id"),
        *("in-reply-to", "references", "mime-version", "x-priority", "importance"),
        *("received", "return-path", "delivered-to", "received-spf"),
        *("dkim-signature", "authentication-results"),
    )
)
OURS_BY_PREFIX = ("content-", "resent-", "arc-")

_POLICY = SMTP.clone(cte_type="7bit")  # so that any server accepts the message
_FTEXT = re.compile(r"[!-9;-~]+")
_CONTROLS = re.compile("[\x00-\x08\x0a-\x1f\x7f]")
_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,127}/[A-Za-z0-9!#$&^_.+-]{1,127}")
_CHARSET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+-]{0,39}")
_CID = re.compile(r"[!-;=?-~]{1,255}")
_ID = re.compile(r"<[!-;=?-~]{1,900}>")
_IMAGE = re.compile(r"<img\b(?:[^<>\"']|\"[^\"<]*\"|'[^'<]*')*+>", re.IGNORECASE)
_DATA = re.compile(
    r"\bsrc\s*=\s*([\"'])\s*data:(image/[a-z0-9.+-]{1,80});base64,([A-Za-z0-9+/=\s]++)\1",
    re.IGNORECASE,
)
_DATA_FILENAME = re.compile(r"\bdata-filename\s*=\s*(?:\"([^\"]*)\"|'([^']*)')", re.IGNORECASE)
_BCC = re.compile(
    rb"^(?:resent-)?bcc[ \t]*:[^\n]*+\n?(?:[ \t][^\n]*+\n?)*+", re.IGNORECASE | re.MULTILINE
)
_HEADER_END = re.compile(rb"^\r?\n", re.MULTILINE)


class Priority(StrEnum):
    """The priority that the sender gives a message."""

    HIGH = "HIGH"
    NORMAL = "NORMAL"
    LOW = "LOW"


class Disposition(StrEnum):
    """The Content-Disposition of an attachment (RFC 2183)."""

    ATTACHMENT = "attachment"
    INLINE = "inline"


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file to attach. With a `cid` it is an image of the HTML, if there is HTML."""

    content: bytes
    filename: str | None = None
    content_type: str | None = None
    cid: str | None = None  # without angle brackets
    disposition: Disposition | None = None
    charset: str | None = None  # of a text file
    whole: bool = False  # attach unchanged as message/rfc822


@dataclass(frozen=True, slots=True)
class HeaderLine:
    """A header field that the client adds."""

    key: str
    value: str


@dataclass(frozen=True, slots=True)
class Draft:
    """The fields of a message to build. If `text` is missing, it is made of `html`."""

    from_: Named
    date: datetime
    message_id: str  # with angle brackets
    sender: Named | None = None
    reply_to: Sequence[Named] = ()
    to: Sequence[Named] = ()
    cc: Sequence[Named] = ()
    bcc: Sequence[Named] = ()
    subject: str | None = None
    text: str | None = None
    html: str | None = None
    headers: Sequence[HeaderLine] = ()
    attachments: Sequence[Attachment] = ()
    in_reply_to: str | None = None
    references: Sequence[str] = ()
    priority: Priority = Priority.NORMAL
    most: int = 64 * MIB  # bytes of the attachments, and of the message


@dataclass(slots=True)
class _Body:
    """Text, HTML, images of the HTML, and other files."""

    text: str
    html: str | None
    images: list[Attachment] = field(default_factory=list)
    files: list[Attachment] = field(default_factory=list)


def is_id(text: str | None) -> bool:
    """True if the text is a valid Message-ID with angle brackets."""
    return bool(text and _ID.fullmatch(text))


def message_id(random: bytes, domain: str) -> str:
    """Return a new Message-ID of random bytes and a domain."""
    return f"<{random.hex()}@{header_encoding.on_wire(f'@{domain}')[1:]}>"


def build(draft: Draft, entity: bytes | None = None) -> bytes:
    """Build a message with its Bcc field.

    It is ASCII, unless a local part is not ASCII. A `mime_entity` with its own header replaces
    text, HTML and files. Run large messages in a thread. Raises Invalid for all invalid fields.
    """
    problems = Problems()
    people = _checked_people(draft, problems)
    with problems.caught():
        line_of(draft.subject or "", ["subject"], SUBJECT)
    _check_own(draft.headers, problems)
    body = _body(draft, problems)
    problems.settle()
    everybody = [person for found in people.values() for person in found]
    utf8 = any(needs_utf8(person.address) for person in everybody)
    lines = [
        header_encoding.addressed(key, found, utf8=utf8) for key, found in people.items() if found
    ]
    lines.append(header_encoding.unstructured("Subject", draft.subject or ""))
    lines.append(header_encoding.listed("Date", format_datetime(draft.date).split(" ")))
    lines.append(header_encoding.listed("Message-ID", [draft.message_id]))
    lines += _ours(draft)
    lines += [header_encoding.unstructured(header.key, header.value) for header in draft.headers]
    mime = _mime(body, draft.message_id) if entity is None else entity
    raw = b"".join(lines) + mime
    text = f"the message has more than {draft.most} bytes"
    check_limit(len(raw), draft.most, text, path=["attachments"])
    return raw


def without_bcc(raw: bytes) -> bytes:
    """Return a message without its Bcc and Resent-Bcc fields, folded or not."""
    end = _HEADER_END.search(raw)
    at = end.start() if end else len(raw)
    return _BCC.sub(b"", raw[:at]) + raw[at:]


def _checked_people(draft: Draft, problems: Problems) -> dict[str, list[Named]]:
    """Return the valid addresses of each address field; problems are collected."""
    given = {
        "From": [draft.from_],
        "Sender": [draft.sender] if draft.sender else [],
        "Reply-To": draft.reply_to,
        "To": draft.to,
        "Cc": draft.cc,
        "Bcc": draft.bcc,
    }
    found: dict[str, list[Named]] = {}
    for key, people in given.items():
        path = "replyTo" if key == "Reply-To" else key.lower()
        one = key in {"From", "Sender"}
        with problems.caught():
            found[key] = [
                _person(person, path, None if one else nth) for nth, person in enumerate(people)
            ]
    return found


def _person(person: Named, path: str, index: int | None = None) -> Named:
    name = line_of(person.name or "", [path], NAME)
    return Named(address(person.address, path, index), name or None)


def address(text: str, path: str, index: int | None = None) -> str:
    """Return the address unchanged, if it is valid.

    Raises Invalid with `path` and `index` if the address is invalid.
    """
    try:
        return checked(text, path=path)
    except Invalid as wrong:
        raise Invalid(
            wrong.message, constraint=wrong.constraint, path=[path], index=index
        ) from wrong


def text_of(text: str, path: Sequence[str], most: int) -> str:
    """Return the text, unless it is invalid.

    Raises Invalid if it has more than `max_bytes` bytes, a NUL or a lone surrogate.
    """
    try:
        size = len(text.encode())
    except UnicodeEncodeError as half:
        raise Invalid("half a character", constraint="unicode", path=path) from half
    if size > most:
        raise Invalid(f"more than {most} bytes", constraint="max", path=path)
    if "\0" in text:
        raise Invalid("text has no NUL", constraint="pattern", path=path)
    return text


def line_of(text: str, path: Sequence[str], most: int) -> str:
    """Return the text, unless it is invalid or has more than one line.

    Raises Invalid as `validate_text` does, and for control characters.
    """
    if _CONTROLS.search(text):
        raise Invalid("a line has no control characters", constraint="pattern", path=path)
    return text_of(text, path, most)


def _ours(draft: Draft) -> list[bytes]:
    """Return the In-Reply-To, References and priority fields."""
    lines = []
    if draft.in_reply_to and is_id(draft.in_reply_to):
        lines.append(header_encoding.listed("In-Reply-To", [draft.in_reply_to]))
    if known := [each for each in draft.references if is_id(each)]:
        # Keep the first message of the thread and the latest ones (RFC 5322, section 3.6.4).
        known = known if len(known) <= REFERENCES else [known[0], *known[1 - REFERENCES :]]
        lines.append(header_encoding.listed("References", known))
    if draft.priority is not Priority.NORMAL:
        number = 1 if draft.priority is Priority.HIGH else 5
        lines.append(header_encoding.unstructured("X-Priority", str(number)))
        lines.append(header_encoding.unstructured("Importance", draft.priority.lower()))
    return lines


def _check_own(headers: Sequence[HeaderLine], problems: Problems) -> None:
    """Collect the problems of the header fields that the client adds."""
    with problems.caught():
        if len(headers) > HEADERS:
            raise Invalid(f"more than {HEADERS} fields", constraint="max", path=["headers"])
        for nth, header in enumerate(headers):
            with problems.caught():
                _check_key(header.key, _at(nth, "key"))
            with problems.caught():
                line_of(header.value, _at(nth, "value"), HEADER)


def _check_key(key: str, path: Sequence[str]) -> None:
    """Raises Invalid if a header field name is invalid or reserved."""
    if len(key) > NAME or not _FTEXT.fullmatch(key):
        raise Invalid("not the name of a header field", constraint="pattern", path=path)
    if key.lower() in OURS or key.lower().startswith(OURS_BY_PREFIX):
        raise Invalid(f"{key} is not yours to write", constraint="reserved", path=path)


def _at(nth: int, name: str) -> list[str]:
    return ["headers", str(nth), name]


def _body(draft: Draft, problems: Problems) -> _Body:
    """Validate text, HTML and files, and return them. Problems are collected."""
    body = _Body("", None)
    with problems.caught():
        body.text = text_of(draft.text or "", ["text"], TEXT)
    with problems.caught():
        if draft.html is not None:
            body.html = text_of(draft.html, ["html"], HTML_WITH_IMAGES)
            body.html, body.images = _images_out(body.html, draft.message_id)
            text_of(body.html, ["html"], TEXT)
            if draft.text is None:
                body.text = messages.html_to_text(body.html)
    with problems.caught():
        size = sum(len(attachment.content) for attachment in draft.attachments)
        check_limit(size, draft.most, f"more than {draft.most} bytes", path=["attachments"])
    with problems.caught():
        if len(draft.attachments) > FILES:
            raise Invalid(f"more than {FILES} files", constraint="max", path=["attachments"])
    for nth, attachment in enumerate(draft.attachments):
        _check(attachment, nth, problems)
        related = (
            attachment.cid and body.html and attachment.disposition is not Disposition.ATTACHMENT
        )
        (body.images if related else body.files).append(attachment)
    return body


def _check(attachment: Attachment, nth: int, problems: Problems) -> None:
    name, kind, cid = attachment.filename or "", attachment.content_type, attachment.cid
    long = len(name) > NAME or _CONTROLS.search(name) or "\t" in name
    for field_, wrong, text in (
        ("contentType", kind is not None and not _TYPE.fullmatch(kind), "not a media type"),
        ("cid", cid is not None and not _CID.fullmatch(cid), "not a Content-ID"),
        ("filename", long, "a file name is one line of at most 255 characters"),
    ):
        with problems.caught():
            if wrong:
                path = ["attachments", str(nth), field_]
                raise Invalid(text, constraint="pattern", path=path, index=nth)
    with problems.caught():
        text_of(name, ["attachments"], 4 * NAME)


def fitting(attachment: Attachment) -> Attachment:
    """Return an attachment of a received message with only valid name, type, id and charset."""
    kind, cid, charset = attachment.content_type or "", attachment.cid, attachment.charset
    return replace(
        attachment,
        filename=_plain_name(attachment.filename or ""),
        content_type=kind if _TYPE.fullmatch(kind) else None,
        cid=cid if cid and _CID.fullmatch(cid) else None,
        charset=charset if kind.startswith("text/") and _CHARSET.fullmatch(charset or "") else None,
    )


def _images_out(html: str, seed: str) -> tuple[str, list[Attachment]]:
    """Replace the data: URLs of images by cid: URLs, and return HTML and images."""
    found: dict[str, Attachment] = {}
    host = seed.rpartition("@")[2].rstrip(">")

    def taken(tag: re.Match[str]) -> str:
        source = _DATA.search(tag.group())
        if not source:
            return tag.group()
        quote, kind, text = source.groups()
        try:
            content = base64.b64decode("".join(text.split()), validate=True)
        except binascii.Error:
            return tag.group()  # invalid base64, which no browser shows
        digest = hashlib.sha256(seed.encode() + content).hexdigest()[:32]
        cid = f"{digest}@{host}"
        found.setdefault(cid, Attachment(content, _named(tag.group()), kind.lower(), cid))
        before, after = tag.group()[: source.start()], tag.group()[source.end() :]
        return f"{before}src={quote}cid:{cid}{quote}{after}"

    return _IMAGE.sub(taken, html), list(found.values())


def _named(tag: str) -> str | None:
    """Return the data-filename attribute of an image tag, None if it has none."""
    found = _DATA_FILENAME.search(tag)
    return _plain_name(entities.unescape(found.group(1) or found.group(2) or "") if found else "")


def _plain_name(name: str) -> str | None:
    """Remove control characters from a file name and cut it to 255 characters."""
    return _CONTROLS.sub("", name).replace("\t", " ")[:NAME] or None


def _mime(body: _Body, seed: str) -> bytes:
    """Build the MIME tree with its MIME header fields."""
    if body.html is None and not body.files:
        return text_parts.entity(body.text)
    message, wholes = text_parts.part(body.text, "plain", _POLICY), list[tuple[bytes, bytes]]()
    if body.html is not None:
        html = text_parts.part(body.html, "html", _POLICY)
        message.make_alternative()
        message.attach(html)
        for image in body.images:
            html.add_related(*_typed(image), **_described(image, Disposition.INLINE))
    for nth, file in enumerate(body.files):
        plain = embedded_messages.plain(file.content) if file.whole else None
        if plain is None:
            message.add_attachment(*_typed(file), **_described(file, Disposition.ATTACHMENT))
            continue
        mark = hashlib.sha256(f"{seed} {nth}".encode()).hexdigest()
        wholes.append((mark.encode(), plain))
        message.add_attachment(mark, filename=file.filename, disposition="attachment", cte="7bit")
    return embedded_messages.filled(message.as_bytes(policy=_POLICY), wholes)


def _typed(attachment: Attachment) -> tuple[bytes, str, str]:
    """Return the content, main type and subtype for `EmailMessage.add_attachment`."""
    kind = (attachment.content_type or "application/octet-stream").lower()
    main, _, sub = kind.partition("/")
    if main in ("multipart", "message"):
        main, sub = "application", "octet-stream"  # they can't be base64 (RFC 2045, section 6.4)
    return attachment.content, main, sub


def _described(attachment: Attachment, usual: Disposition) -> dict[str, Any]:
    """Return the keyword arguments for `EmailMessage.add_attachment`."""
    return {
        "cte": "base64",
        "params": {"charset": attachment.charset} if attachment.charset else None,
        "disposition": (attachment.disposition or usual).value,
        "filename": attachment.filename,
        "cid": f"<{attachment.cid}>" if attachment.cid else None,
    }
