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
from mail.addresses.address_syntax import validated_address
from mail.compose import embedded_messages, text_parts
from mail.mime import header_encoding
from mail.mime.header_encoding import NamedAddress, needs_smtputf8
from models.errors import ErrorCollector, InvalidInput, check_limit
from models.messages.mime_values import AttachmentDisposition
from models.validation_constraints import ValidationConstraint

KIB, MIB = 1 << 10, 1 << 20
MAX_SUBJECT_BYTES = 2 * KIB  # bytes, as all limits of sizes here
MAX_TEXT_BYTES = MIB
MAX_HTML_WITH_IMAGES_BYTES = 12 * MIB  # before images with data: URLs are extracted
MAX_NAME_BYTES = 255
MAX_HEADER_VALUE_BYTES = 100 * KIB
MAX_CUSTOM_HEADERS = 100  # header fields that the client adds
MAX_REFERENCES = 50  # ids
MAX_FILES = 250

# Fields that this module writes, and fields that only servers write.
RESERVED_FIELDS = frozenset(
    (
        *("from", "sender", "reply-to", "to", "cc", "bcc", "subject", "date", "message-id"),
        *("in-reply-to", "references", "mime-version", "x-priority", "importance"),
        *("received", "return-path", "delivered-to", "received-spf"),
        *("dkim-signature", "authentication-results"),
    )
)
RESERVED_PREFIXES = ("content-", "resent-", "arc-")

_POLICY = SMTP.clone(cte_type="7bit")  # so that any server accepts the message
_FTEXT = re.compile(r"[!-9;-~]+")
_CONTROLS = re.compile("[\x00-\x08\x0a-\x1f\x7f]")
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,127}/[A-Za-z0-9!#$&^_.+-]{1,127}")
_CHARSET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+-]{0,39}")
_CONTENT_ID = re.compile(r"[!-;=?-~]{1,255}")
_MESSAGE_ID = re.compile(r"<[!-;=?-~]{1,900}>")
_IMAGE_TAG = re.compile(r"<img\b(?:[^<>\"']|\"[^\"<]*\"|'[^'<]*')*+>", re.IGNORECASE)
_DATA_URL_SOURCE = re.compile(
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


@dataclass(frozen=True, slots=True)
class OutgoingFile:
    """A file to attach. With a `content_id` it is an image of the HTML, if there is HTML."""

    content: bytes
    filename: str | None = None
    content_type: str | None = None
    content_id: str | None = None  # without angle brackets
    disposition: AttachmentDisposition | None = None
    charset: str | None = None  # of a text file
    is_message: bool = False  # attach unchanged as message/rfc822


@dataclass(frozen=True, slots=True)
class CustomHeader:
    """A header field that the client adds."""

    key: str
    value: str


@dataclass(frozen=True, slots=True)
class MessageDraft:
    """The fields of a message to build. If `text` is missing, it is made of `html`."""

    from_: NamedAddress
    date: datetime
    message_id: str  # with angle brackets
    sender: NamedAddress | None = None
    reply_to: Sequence[NamedAddress] = ()
    to: Sequence[NamedAddress] = ()
    cc: Sequence[NamedAddress] = ()
    bcc: Sequence[NamedAddress] = ()
    subject: str | None = None
    text: str | None = None
    html: str | None = None
    headers: Sequence[CustomHeader] = ()
    attachments: Sequence[OutgoingFile] = ()
    in_reply_to: str | None = None
    references: Sequence[str] = ()
    priority: Priority = Priority.NORMAL
    most: int = 64 * MIB  # bytes of the attachments, and of the message


@dataclass(slots=True)
class _DraftBody:
    """Text, HTML, images of the HTML, and other files."""

    text: str
    html: str | None
    images: list[OutgoingFile] = field(default_factory=list)
    files: list[OutgoingFile] = field(default_factory=list)


def is_message_id(text: str | None) -> bool:
    """True if the text is a valid Message-ID with angle brackets."""
    return bool(text and _MESSAGE_ID.fullmatch(text))


def new_message_id(random_bytes: bytes, domain: str) -> str:
    """Return a new Message-ID of random bytes and a domain."""
    return f"<{random_bytes.hex()}@{header_encoding.with_ascii_domain(f'@{domain}')[1:]}>"


def build_message(draft: MessageDraft, mime_entity: bytes | None = None) -> bytes:
    """Build a message with its Bcc field.

    It is ASCII, unless a local part is not ASCII. A `mime_entity` with its own header replaces
    text, HTML and files. Run large messages in a thread. Raises InvalidInput for all invalid
    fields.
    """
    problems = ErrorCollector()
    addresses_by_field = _validated_addresses(draft, problems)
    with problems.collecting():
        validate_line(draft.subject or "", ["subject"], MAX_SUBJECT_BYTES)
    _check_custom_headers(draft.headers, problems)
    body = _build_body(draft, problems)
    problems.raise_collected()
    all_addresses = [person for found in addresses_by_field.values() for person in found]
    utf8 = any(needs_smtputf8(person.address) for person in all_addresses)
    lines = [
        header_encoding.address_field(key, found, utf8=utf8)
        for key, found in addresses_by_field.items()
        if found
    ]
    lines.append(header_encoding.unstructured_field("Subject", draft.subject or ""))
    lines.append(header_encoding.words_field("Date", format_datetime(draft.date).split(" ")))
    lines.append(header_encoding.words_field("Message-ID", [draft.message_id]))
    lines += _generated_fields(draft)
    lines += [
        header_encoding.unstructured_field(header.key, header.value) for header in draft.headers
    ]
    mime = _build_entity(body, draft.message_id) if mime_entity is None else mime_entity
    raw = b"".join(lines) + mime
    text = f"the message has more than {draft.most} bytes"
    check_limit(len(raw), draft.most, text, path=["attachments"])
    return raw


def without_bcc(raw: bytes) -> bytes:
    """Return a message without its Bcc and Resent-Bcc fields, folded or not."""
    end = _HEADER_END.search(raw)
    at = end.start() if end else len(raw)
    return _BCC.sub(b"", raw[:at]) + raw[at:]


def _validated_addresses(
    draft: MessageDraft, problems: ErrorCollector
) -> dict[str, list[NamedAddress]]:
    """Return the valid addresses of each address field; problems are collected."""
    addresses_by_field = {
        "From": [draft.from_],
        "Sender": [draft.sender] if draft.sender else [],
        "Reply-To": draft.reply_to,
        "To": draft.to,
        "Cc": draft.cc,
        "Bcc": draft.bcc,
    }
    found: dict[str, list[NamedAddress]] = {}
    for key, people in addresses_by_field.items():
        path = "replyTo" if key == "Reply-To" else key.lower()
        is_single = key in {"From", "Sender"}
        with problems.collecting():
            found[key] = [
                _validated_address(person, path, None if is_single else nth)
                for nth, person in enumerate(people)
            ]
    return found


def _validated_address(
    named_address: NamedAddress, path: str, index: int | None = None
) -> NamedAddress:
    name = validate_line(named_address.name or "", [path], MAX_NAME_BYTES)
    return NamedAddress(validate_address(named_address.address, path, index), name or None)


def validate_address(text: str, path: str, index: int | None = None) -> str:
    """Return the address unchanged, if it is valid.

    Raises InvalidInput with `path` and `index` if the address is invalid.
    """
    try:
        return validated_address(text, path=path)
    except InvalidInput as wrong:
        raise InvalidInput(
            wrong.message, constraint=wrong.constraint, path=[path], index=index
        ) from wrong


def validate_text(text: str, path: Sequence[str], max_bytes: int) -> str:
    """Return the text, unless it is invalid.

    Raises InvalidInput if it has more than `max_bytes` bytes, a NUL or a lone surrogate.
    """
    try:
        size = len(text.encode())
    except UnicodeEncodeError as half:
        raise InvalidInput(
            "half a character", constraint=ValidationConstraint.UNICODE, path=path
        ) from half
    if size > max_bytes:
        raise InvalidInput(
            f"more than {max_bytes} bytes", constraint=ValidationConstraint.MAX, path=path
        )
    if "\0" in text:
        raise InvalidInput("text has no NUL", constraint=ValidationConstraint.PATTERN, path=path)
    return text


def validate_line(text: str, path: Sequence[str], max_bytes: int) -> str:
    """Return the text, unless it is invalid or has more than one line.

    Raises InvalidInput as `validate_text` does, and for control characters.
    """
    if _CONTROLS.search(text):
        raise InvalidInput(
            "a line has no control characters", constraint=ValidationConstraint.PATTERN, path=path
        )
    return validate_text(text, path, max_bytes)


def _generated_fields(draft: MessageDraft) -> list[bytes]:
    """Return the In-Reply-To, References and priority fields."""
    lines = []
    if draft.in_reply_to and is_message_id(draft.in_reply_to):
        lines.append(header_encoding.words_field("In-Reply-To", [draft.in_reply_to]))
    if known := [each for each in draft.references if is_message_id(each)]:
        # Keep the first message of the thread and the latest ones (RFC 5322, section 3.6.4).
        known = known if len(known) <= MAX_REFERENCES else [known[0], *known[1 - MAX_REFERENCES :]]
        lines.append(header_encoding.words_field("References", known))
    if draft.priority is not Priority.NORMAL:
        number = 1 if draft.priority is Priority.HIGH else 5
        lines.append(header_encoding.unstructured_field("X-Priority", str(number)))
        lines.append(header_encoding.unstructured_field("Importance", draft.priority.lower()))
    return lines


def _check_custom_headers(headers: Sequence[CustomHeader], problems: ErrorCollector) -> None:
    """Collect the problems of the header fields that the client adds."""
    with problems.collecting():
        if len(headers) > MAX_CUSTOM_HEADERS:
            raise InvalidInput(
                f"more than {MAX_CUSTOM_HEADERS} fields",
                constraint=ValidationConstraint.MAX,
                path=["headers"],
            )
        for nth, header in enumerate(headers):
            with problems.collecting():
                _check_field_name(header.key, _header_path(nth, "key"))
            with problems.collecting():
                validate_line(header.value, _header_path(nth, "value"), MAX_HEADER_VALUE_BYTES)


def is_valid_custom_header(key: str, value: str) -> bool:
    """True if a client can add a header field with this name and value."""
    try:
        _check_field_name(key, [])
        validate_line(value, [], MAX_HEADER_VALUE_BYTES)
    except InvalidInput:
        return False
    return True


def without_control_characters(text: str) -> str:
    """Return the text without the characters that a line can't have."""
    return _CONTROLS.sub("", text)


def _check_field_name(key: str, path: Sequence[str]) -> None:
    """Raises InvalidInput if a header field name is invalid or reserved."""
    if len(key) > MAX_NAME_BYTES or not _FTEXT.fullmatch(key):
        raise InvalidInput(
            "not the name of a header field", constraint=ValidationConstraint.PATTERN, path=path
        )
    if key.lower() in RESERVED_FIELDS or key.lower().startswith(RESERVED_PREFIXES):
        raise InvalidInput(
            f"{key} is not yours to write", constraint=ValidationConstraint.RESERVED, path=path
        )


def _header_path(index: int, name: str) -> list[str]:
    return ["headers", str(index), name]


def _build_body(draft: MessageDraft, problems: ErrorCollector) -> _DraftBody:
    """Validate text, HTML and files, and return them. Problems are collected."""
    body = _DraftBody("", None)
    with problems.collecting():
        body.text = validate_text(draft.text or "", ["text"], MAX_TEXT_BYTES)
    with problems.collecting():
        if draft.html is not None:
            body.html = validate_text(draft.html, ["html"], MAX_HTML_WITH_IMAGES_BYTES)
            body.html, body.images = _extract_data_images(body.html, draft.message_id)
            validate_text(body.html, ["html"], MAX_TEXT_BYTES)
            if draft.text is None:
                body.text = messages.html_to_text(body.html)
    with problems.collecting():
        size = sum(len(attachment.content) for attachment in draft.attachments)
        check_limit(size, draft.most, f"more than {draft.most} bytes", path=["attachments"])
    with problems.collecting():
        if len(draft.attachments) > MAX_FILES:
            raise InvalidInput(
                f"more than {MAX_FILES} files",
                constraint=ValidationConstraint.MAX,
                path=["attachments"],
            )
    for nth, attachment in enumerate(draft.attachments):
        _check_attachment(attachment, nth, problems)
        related = (
            attachment.content_id
            and body.html
            and attachment.disposition is not AttachmentDisposition.ATTACHMENT
        )
        (body.images if related else body.files).append(attachment)
    return body


def _check_attachment(attachment: OutgoingFile, index: int, problems: ErrorCollector) -> None:
    name, kind, content_id = (
        attachment.filename or "",
        attachment.content_type,
        attachment.content_id,
    )
    long = len(name) > MAX_NAME_BYTES or _CONTROLS.search(name) or "\t" in name
    for field_, wrong, text in (
        ("contentType", kind is not None and not _MEDIA_TYPE.fullmatch(kind), "not a media type"),
        (
            "contentId",
            content_id is not None and not _CONTENT_ID.fullmatch(content_id),
            "not a Content-ID",
        ),
        ("filename", long, "a file name is one line of at most 255 characters"),
    ):
        with problems.collecting():
            if wrong:
                path = ["attachments", str(index), field_]
                raise InvalidInput(
                    text, constraint=ValidationConstraint.PATTERN, path=path, index=index
                )
    with problems.collecting():
        validate_text(name, ["attachments"], 4 * MAX_NAME_BYTES)


def sanitize_attachment(attachment: OutgoingFile) -> OutgoingFile:
    """Return an attachment of a received message with only valid name, type, id and charset."""
    kind, content_id, charset = (
        attachment.content_type or "",
        attachment.content_id,
        attachment.charset,
    )
    return replace(
        attachment,
        filename=_clean_filename(attachment.filename or ""),
        content_type=kind if _MEDIA_TYPE.fullmatch(kind) else None,
        content_id=content_id if content_id and _CONTENT_ID.fullmatch(content_id) else None,
        charset=charset if kind.startswith("text/") and _CHARSET.fullmatch(charset or "") else None,
    )


def _extract_data_images(html: str, message_id: str) -> tuple[str, list[OutgoingFile]]:
    """Replace the data: URLs of images by cid: URLs, and return HTML and images."""
    found: dict[str, OutgoingFile] = {}
    host = message_id.rpartition("@")[2].rstrip(">")

    def replace_source(tag: re.Match[str]) -> str:
        source = _DATA_URL_SOURCE.search(tag.group())
        if not source:
            return tag.group()
        quote, kind, text = source.groups()
        try:
            content = base64.b64decode("".join(text.split()), validate=True)
        except binascii.Error:
            return tag.group()  # invalid base64, which no browser shows
        digest = hashlib.sha256(message_id.encode() + content).hexdigest()[:32]
        content_id = f"{digest}@{host}"
        found.setdefault(
            content_id, OutgoingFile(content, _data_filename(tag.group()), kind.lower(), content_id)
        )
        before, after = tag.group()[: source.start()], tag.group()[source.end() :]
        return f"{before}src={quote}cid:{content_id}{quote}{after}"

    return _IMAGE_TAG.sub(replace_source, html), list(found.values())


def _data_filename(image_tag: str) -> str | None:
    """Return the data-filename attribute of an image tag, None if it has none."""
    found = _DATA_FILENAME.search(image_tag)
    return _clean_filename(
        entities.unescape(found.group(1) or found.group(2) or "") if found else ""
    )


def _clean_filename(name: str) -> str | None:
    """Remove control characters from a file name and cut it to 255 characters."""
    return _CONTROLS.sub("", name).replace("\t", " ")[:MAX_NAME_BYTES] or None


def _build_entity(body: _DraftBody, message_id: str) -> bytes:
    """Build the MIME tree with its MIME header fields."""
    if body.html is None and not body.files:
        return text_parts.text_entity(body.text)
    message, messages_by_marker = (
        text_parts.text_part(body.text, "plain", _POLICY),
        list[tuple[bytes, bytes]](),
    )
    if body.html is not None:
        html = text_parts.text_part(body.html, "html", _POLICY)
        message.make_alternative()
        message.attach(html)
        for image in body.images:
            html.add_related(
                image.content,
                **_attachment_parameters(image, AttachmentDisposition.INLINE),
            )
    for nth, file in enumerate(body.files):
        plain = embedded_messages.seven_bit_message(file.content) if file.is_message else None
        if plain is None:
            message.add_attachment(
                file.content,
                **_attachment_parameters(file, AttachmentDisposition.ATTACHMENT),
            )
            continue
        marker = hashlib.sha256(f"{message_id} {nth}".encode()).hexdigest()
        messages_by_marker.append((marker.encode(), plain))
        message.add_attachment(marker, filename=file.filename, disposition="attachment", cte="7bit")
    return embedded_messages.replace_marked_parts_by_messages(
        message.as_bytes(policy=_POLICY), messages_by_marker
    )


def _attachment_parameters(
    attachment: OutgoingFile, default_disposition: AttachmentDisposition
) -> dict[str, Any]:
    """Return the keyword arguments for `EmailMessage.add_attachment`."""
    kind = (attachment.content_type or "application/octet-stream").lower()
    main, _, sub = kind.partition("/")
    if main in ("multipart", "message"):
        main, sub = "application", "octet-stream"  # they can't be base64 (RFC 2045, section 6.4)
    return {
        "maintype": main,
        "subtype": sub,
        "cte": "base64",
        "params": {"charset": attachment.charset} if attachment.charset else None,
        "disposition": (attachment.disposition or default_disposition).value.lower(),
        "filename": attachment.filename,
        "cid": f"<{attachment.content_id}>" if attachment.content_id else None,
    }
