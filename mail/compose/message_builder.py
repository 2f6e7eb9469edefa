"""Building of MIME messages from the fields of a draft (RFC 5322, RFC 2045)."""

import base64
import binascii
import hashlib
import html as entities
import re
from dataclasses import dataclass, field, replace
from email.policy import SMTP
from email.utils import format_datetime
from typing import Any

from mail import mime as messages
from mail.compose import embedded_messages, text_parts
from mail.compose.draft_validation import (
    collect_custom_header_problems,
    collect_valid_addresses_by_field,
    validate_single_line_text,
    validate_text_size_and_characters,
)
from mail.compose.message_draft import (
    CONTROL_CHARACTERS,
    MAX_FILES,
    MAX_HTML_WITH_IMAGES_BYTES,
    MAX_NAME_BYTES,
    MAX_REFERENCES,
    MAX_SUBJECT_BYTES,
    MAX_TEXT_BYTES,
    MessageDraft,
    OutgoingFile,
    Priority,
)
from mail.mime import header_encoding
from mail.mime.header_encoding import needs_smtputf8
from models.errors import ErrorCollector, InvalidInput, require_within_limit
from models.messages.mime_values import AttachmentDisposition
from models.validation_constraints import ValidationConstraint

_POLICY = SMTP.clone(cte_type="7bit")  # so that any server accepts the message
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


def validate_and_build_message(draft: MessageDraft, mime_entity: bytes | None = None) -> bytes:
    """Build a message with its Bcc field.

    It is ASCII, unless a local part is not ASCII. A `mime_entity` with its own header replaces
    text, HTML and files. Run large messages in a thread. Raises InvalidInput for all invalid
    fields.
    """
    problems = ErrorCollector()
    addresses_by_field = collect_valid_addresses_by_field(draft, problems)
    with problems.collecting():
        validate_single_line_text(draft.subject or "", ["subject"], MAX_SUBJECT_BYTES)
    collect_custom_header_problems(draft.headers, problems)
    body = _validate_and_collect_draft_body(draft, problems)
    problems.raise_collected()
    all_addresses = [person for address in addresses_by_field.values() for person in address]
    utf8 = any(needs_smtputf8(person.address) for person in all_addresses)
    lines = [
        header_encoding.address_field(key, address, utf8=utf8)
        for key, address in addresses_by_field.items()
        if address
    ]
    lines.append(header_encoding.unstructured_field("Subject", draft.subject or ""))
    lines.append(header_encoding.words_field("Date", format_datetime(draft.date).split(" ")))
    lines.append(header_encoding.words_field("Message-ID", [draft.message_id]))
    lines += _reply_and_priority_fields(draft)
    lines += [
        header_encoding.unstructured_field(header.name, header.value) for header in draft.headers
    ]
    mime = _build_mime_entity(body, draft.message_id) if mime_entity is None else mime_entity
    raw = b"".join(lines) + mime
    text = f"The message has at most {draft.most} bytes."
    require_within_limit(len(raw), draft.most, text, path=["attachments"])
    return raw


def without_bcc(raw: bytes) -> bytes:
    """Return a message without its Bcc and Resent-Bcc fields, folded or not."""
    end = _HEADER_END.search(raw)
    at = end.start() if end else len(raw)
    return _BCC.sub(b"", raw[:at]) + raw[at:]


def _reply_and_priority_fields(draft: MessageDraft) -> list[bytes]:
    """Return the In-Reply-To, References and priority fields."""
    lines = []
    if draft.in_reply_to and is_message_id(draft.in_reply_to):
        lines.append(header_encoding.words_field("In-Reply-To", [draft.in_reply_to]))
    if valid_references := [
        reference for reference in draft.references if is_message_id(reference)
    ]:
        # Keep the first message of the thread and the latest ones (RFC 5322, section 3.6.4).
        valid_references = (
            valid_references
            if len(valid_references) <= MAX_REFERENCES
            else [valid_references[0], *valid_references[1 - MAX_REFERENCES :]]
        )
        lines.append(header_encoding.words_field("References", valid_references))
    if draft.priority is not Priority.NORMAL:
        number = 1 if draft.priority is Priority.HIGH else 5
        lines.append(header_encoding.unstructured_field("X-Priority", str(number)))
        lines.append(header_encoding.unstructured_field("Importance", draft.priority.lower()))
    return lines


def _validate_and_collect_draft_body(draft: MessageDraft, problems: ErrorCollector) -> _DraftBody:
    """Validate text, HTML and files, and return them. Problems are collected."""
    body = _DraftBody("", None)
    with problems.collecting():
        body.text = validate_text_size_and_characters(draft.text or "", ["text"], MAX_TEXT_BYTES)
    with problems.collecting():
        if draft.html is not None:
            body.html = validate_text_size_and_characters(
                draft.html, ["html"], MAX_HTML_WITH_IMAGES_BYTES
            )
            body.html, body.images = _extract_data_images(body.html, draft.message_id)
            validate_text_size_and_characters(body.html, ["html"], MAX_TEXT_BYTES)
            if draft.text is None:
                body.text = messages.html_to_text(body.html)
    with problems.collecting():
        size = sum(len(attachment.content) for attachment in draft.attachments)
        require_within_limit(
            size, draft.most, f"The message has at most {draft.most} bytes.", path=["attachments"]
        )
    with problems.collecting():
        if len(draft.attachments) > MAX_FILES:
            raise InvalidInput(
                f"A message has at most {MAX_FILES} attachments.",
                constraint=ValidationConstraint.MAX,
                path=["attachments"],
            )
    for nth, attachment in enumerate(draft.attachments):
        _collect_attachment_problems(attachment, nth, problems)
        related = (
            attachment.content_id
            and body.html
            and attachment.disposition is not AttachmentDisposition.ATTACHMENT
        )
        (body.images if related else body.files).append(attachment)
    return body


def _collect_attachment_problems(
    attachment: OutgoingFile, index: int, problems: ErrorCollector
) -> None:
    name = attachment.filename or ""
    kind = attachment.content_type
    content_id = attachment.content_id
    long = len(name) > MAX_NAME_BYTES or CONTROL_CHARACTERS.search(name) or "\t" in name
    for field_, wrong, text in (
        (
            "contentType",
            kind is not None and not _MEDIA_TYPE.fullmatch(kind),
            "Must be a media type, such as text/plain.",
        ),
        (
            "contentId",
            content_id is not None and not _CONTENT_ID.fullmatch(content_id),
            "Must be a Content-ID.",
        ),
        ("filename", long, "A file name must be one line of at most 255 characters."),
    ):
        with problems.collecting():
            if wrong:
                path = ["attachments", str(index), field_]
                raise InvalidInput(
                    text, constraint=ValidationConstraint.PATTERN, path=path, index=index
                )
    with problems.collecting():
        validate_text_size_and_characters(name, ["attachments"], 4 * MAX_NAME_BYTES)


def sanitize_attachment(attachment: OutgoingFile) -> OutgoingFile:
    """Return an attachment of a received message with only valid name, type, id and charset."""
    kind = attachment.content_type or ""
    content_id = attachment.content_id
    charset = attachment.charset
    return replace(
        attachment,
        filename=_clean_filename(attachment.filename or ""),
        content_type=kind if _MEDIA_TYPE.fullmatch(kind) else None,
        content_id=content_id if content_id and _CONTENT_ID.fullmatch(content_id) else None,
        charset=charset if kind.startswith("text/") and _CHARSET.fullmatch(charset or "") else None,
    )


def _extract_data_images(html: str, message_id: str) -> tuple[str, list[OutgoingFile]]:
    """Replace the data: URLs of images by cid: URLs, and return HTML and images."""
    images_by_url: dict[str, OutgoingFile] = {}
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
        images_by_url.setdefault(
            content_id, OutgoingFile(content, _data_filename(tag.group()), kind.lower(), content_id)
        )
        before, after = tag.group()[: source.start()], tag.group()[source.end() :]
        return f"{before}src={quote}cid:{content_id}{quote}{after}"

    return _IMAGE_TAG.sub(replace_source, html), list(images_by_url.values())


def _data_filename(image_tag: str) -> str | None:
    """Return the data-filename attribute of an image tag, None if it has none."""
    match = _DATA_FILENAME.search(image_tag)
    return _clean_filename(
        entities.unescape(match.group(1) or match.group(2) or "") if match else ""
    )


def _clean_filename(name: str) -> str | None:
    """Remove control characters from a file name and cut it to 255 characters."""
    return CONTROL_CHARACTERS.sub("", name).replace("\t", " ")[:MAX_NAME_BYTES] or None


def _build_mime_entity(body: _DraftBody, marker_seed: str) -> bytes:
    """Build the MIME tree with its MIME header fields.

    `marker_seed` makes the placeholders for attached messages unique.
    """
    if body.html is None and not body.files:
        return text_parts.text_entity(body.text)
    message = text_parts.text_part(body.text, "plain", _POLICY)
    messages_by_marker = list[tuple[bytes, bytes]]()
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
        plain = (
            embedded_messages.seven_bit_form_if_possible(file.content) if file.is_message else None
        )
        if plain is None:
            message.add_attachment(
                file.content,
                **_attachment_parameters(file, AttachmentDisposition.ATTACHMENT),
            )
            continue
        marker = hashlib.sha256(f"{marker_seed} {nth}".encode()).hexdigest()
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
