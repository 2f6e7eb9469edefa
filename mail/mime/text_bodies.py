"""The bodies of a message as text and as HTML."""

from dataclasses import dataclass
from html import escape

from mail.mime.byte_source import Source
from mail.mime.html_content.sanitizer import html_to_text
from mail.mime.mime_tree import Part, within
from mail.mime.part_content import text_of

_SHOWN = frozenset(("text/plain", "text/html", "text/rfc822-headers", "message/delivery-status"))


@dataclass(frozen=True, slots=True)
class _Body:
    """A part that is shown as the body."""

    part: Part
    is_html: bool
    is_alternative: bool  # a part of a multipart/alternative


def is_body(part: Part) -> bool:
    """True if a leaf is shown as the text of the message and not as an attachment.

    A multipart without any boundary is shown too, as its text is all there is.
    """
    if part.disposition not in (None, "inline"):
        return False
    return part.content_type in _SHOWN or (
        part.content_type.startswith("multipart/") and not part.parts and not part.truncated
    )


def body_text(raw: bytes | Source, structure: Part) -> str | None:
    """Return the text of a message, converted from HTML if needed; None without a body."""
    bodies = _bodies(structure)
    chosen = [body for body in bodies if not (body.is_html and body.is_alternative)] or bodies
    if not chosen:
        return None
    return "\n".join(_as_text(raw, body) for body in chosen)


def body_html(raw: bytes | Source, structure: Part) -> list[str]:
    """Return the HTML of a message as sent, not sanitized, one string per shown part."""
    bodies = _bodies(structure)
    chosen = [body for body in bodies if body.is_html or not body.is_alternative] or bodies
    return [_as_html(raw, body) for body in chosen]


def text_to_html(text: str) -> str:
    """Return plain text as escaped HTML paragraphs."""
    paragraphs = (each.strip("\n") for each in escape(text, quote=False).split("\n\n"))
    return "\n".join(
        f"<p>{each.replace(chr(10), '<br/>' + chr(10))}</p>" for each in paragraphs if each.strip()
    )


def _bodies(structure: Part) -> list[_Body]:
    return [
        _Body(part, part.content_type == "text/html", _is_alternative(parents))
        for part, parents in within(structure)
        if not part.parts and is_body(part)
    ]


def _is_alternative(parents: tuple[Part, ...]) -> bool:
    return any(parent.content_type == "multipart/alternative" for parent in parents)


def _as_text(raw: bytes | Source, body: _Body) -> str:
    text = text_of(raw, body.part)
    return html_to_text(text) if body.is_html else text


def _as_html(raw: bytes | Source, body: _Body) -> str:
    text = text_of(raw, body.part)
    return text if body.is_html else text_to_html(text)
