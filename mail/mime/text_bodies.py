"""The bodies of a message as text and as HTML."""

from dataclasses import dataclass
from html import escape

from mail.mime.byte_source import ByteSource
from mail.mime.html_content.sanitizer import html_to_text
from mail.mime.mime_tree import ParsedPart, walk_own_parts_with_parents
from mail.mime.part_content import part_text

_SHOWN_TYPES = frozenset(
    ("text/plain", "text/html", "text/rfc822-headers", "message/delivery-status")
)


@dataclass(frozen=True, slots=True)
class _BodyPart:
    """A part that is shown as the body."""

    part: ParsedPart
    is_html: bool
    is_alternative: bool  # a part of a multipart/alternative


def is_body_part(part: ParsedPart) -> bool:
    """True if a part without subparts is shown as text of the message, not as an attachment.

    This includes a multipart that has no subparts because its boundary is missing.
    """
    if part.disposition not in (None, "inline"):
        return False
    return part.content_type in _SHOWN_TYPES or (
        part.content_type.startswith("multipart/") and not part.parts and not part.truncated
    )


def body_text(raw: bytes | ByteSource, structure: ParsedPart) -> str | None:
    """Return the text of a message, converted from HTML if needed; None without a body."""
    bodies = _body_parts(structure)
    chosen_bodies = [
        body for body in bodies if not (body.is_html and body.is_alternative)
    ] or bodies
    if not chosen_bodies:
        return None
    return "\n".join(_body_part_text(raw, body) for body in chosen_bodies)


def body_html_parts(raw: bytes | ByteSource, structure: ParsedPart) -> list[str]:
    """Return the HTML of a message as sent, not sanitized, one string per shown part."""
    bodies = _body_parts(structure)
    chosen_bodies = [body for body in bodies if body.is_html or not body.is_alternative] or bodies
    return [_body_part_html(raw, body) for body in chosen_bodies]


def shown_body_parts(structure: ParsedPart) -> list[ParsedPart]:
    """Return the leaves that are shown as the body, with all alternatives."""
    return [body.part for body in _body_parts(structure)]


def html_from_text(text: str) -> str:
    """Return plain text as escaped HTML paragraphs."""
    paragraphs = (paragraph.strip("\n") for paragraph in escape(text, quote=False).split("\n\n"))
    return "\n".join(
        f"<p>{paragraph.replace(chr(10), '<br/>' + chr(10))}</p>"
        for paragraph in paragraphs
        if paragraph.strip()
    )


def _body_parts(structure: ParsedPart) -> list[_BodyPart]:
    return [
        _BodyPart(part, part.content_type == "text/html", _is_alternative(parents))
        for part, parents in walk_own_parts_with_parents(structure)
        if not part.parts and is_body_part(part)
    ]


def _is_alternative(parents: tuple[ParsedPart, ...]) -> bool:
    return any(parent.content_type == "multipart/alternative" for parent in parents)


def _body_part_text(raw: bytes | ByteSource, body: _BodyPart) -> str:
    text = part_text(raw, body.part)
    return html_to_text(text) if body.is_html else text


def _body_part_html(raw: bytes | ByteSource, body: _BodyPart) -> str:
    text = part_text(raw, body.part)
    return text if body.is_html else html_from_text(text)
