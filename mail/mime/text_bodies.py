"""The bodies of a message: its text, and its HTML as sent."""

from dataclasses import dataclass
from html import escape

from mail.mime.byte_source import Source
from mail.mime.html_content.sanitizer import html_to_text
from mail.mime.mime_tree import Part, within
from mail.mime.part_content import text_of

_SHOWN = frozenset(("text/plain", "text/html", "text/rfc822-headers", "message/delivery-status"))


@dataclass(frozen=True, slots=True)
class _Body:
    """A part that is shown."""

    part: Part
    is_html: bool
    is_alternative: bool  # another form of it is there as well


def is_body(part: Part) -> bool:
    """Tell whether a leaf is shown as the message's text, and no attachment.

    A multipart in which no boundary was found is shown too: its text is all there is.
    """
    if part.disposition not in (None, "inline"):
        return False
    return part.content_type in _SHOWN or (
        part.content_type.startswith("multipart/") and not part.parts and not part.truncated
    )


def body_text(raw: bytes | Source, structure: Part) -> str | None:
    """Give the text of a message, made from its HTML where it has none; None without a body."""
    bodies = _bodies(structure)
    chosen = [body for body in bodies if not (body.is_html and body.is_alternative)] or bodies
    if not chosen:
        return None
    return "\n".join(_as_text(raw, body) for body in chosen)


def body_html(raw: bytes | Source, structure: Part) -> list[str]:
    """Give the HTML of a message, as sent and not yet safe, one for each part that is shown."""
    bodies = _bodies(structure)
    chosen = [body for body in bodies if body.is_html or not body.is_alternative] or bodies
    return [_as_html(raw, body) for body in chosen]


def text_to_html(text: str) -> str:
    """Make paragraphs of plain text, escaped."""
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
