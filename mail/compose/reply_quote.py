"""Quotes of the original message in replies and forwarded messages, as text and HTML."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from html import escape
from textwrap import wrap

from mail.mime import html_from_text, html_to_text
from mail.mime.header_encoding import NamedAddress

QUOTE_LINE_LENGTH = 76  # characters of a quoted line (RFC 3676, section 4.2: at most 78)
MAX_ORIGINAL_LENGTH = 256 << 10  # characters; of a longer original only the beginning is quoted
TRUNCATION_MARK = "[...]"

_DEPTH = re.compile(r"(?:>[ ]?)*")
_SIGNATURE = re.compile(r"^-- $", re.MULTILINE)  # RFC 3676, section 4.3


@dataclass(frozen=True, slots=True)
class OriginalMessage:
    """The message that is quoted. `html` is sanitized; its images have cid: URLs."""

    text: str
    html: str | None
    subject: str
    date: datetime | None
    from_: Sequence[NamedAddress]
    to: Sequence[NamedAddress]
    cc: Sequence[NamedAddress]


@dataclass(frozen=True, slots=True)
class QuotedMessage:
    """The quote as text and as HTML. The HTML is complete without the text."""

    text: str
    html: str


def reply_quote(original: OriginalMessage) -> QuotedMessage:
    """Return the quote for a reply: the attribution, and each line after a `>`."""
    attribution = _attribution_line(original)
    text = "\n".join(
        [
            attribution,
            *_quote_lines(_without_signature(_normalize_and_truncate_original(original.text))),
        ]
    )
    inner = original.html or html_from_text(_normalize_and_truncate_original(original.text))
    # mail programs can hide a blockquote of this type
    block = '<blockquote type="cite" style="margin:0 0 0 .8ex;border-left:1px solid #ccc;'
    block += f'padding-left:1ex">{inner}</blockquote>'
    return QuotedMessage(text, f"<div>{escape(attribution)}</div>{block}")


def forwarded_quote(original: OriginalMessage) -> QuotedMessage:
    """Return the quote for a forwarded message: header fields and body, without quote marks.

    The text is normalized, and truncated if it is long. HTML is unchanged.
    """
    lines = [
        ("From", _formatted_addresses(original.from_)),
        ("Date", _formatted_date(original.date)),
        ("Subject", _single_line(original.subject)),
        ("To", _formatted_addresses(original.to)),
        ("Cc", _formatted_addresses(original.cc)),
    ]
    header_lines = [(key, value) for key, value in lines if value]
    head = "---------- Forwarded message ----------"
    text = [
        head,
        *(f"{key}: {value}" for key, value in header_lines),
        "",
        _normalize_and_truncate_original(original.text),
    ]
    header_html = "<br>".join(f"<b>{key}:</b> {escape(value)}" for key, value in header_lines)
    inner = original.html or html_from_text(_normalize_and_truncate_original(original.text))
    return QuotedMessage(
        "\n".join(text), f"<div>{head}<br>{header_html}</div><br><div>{inner}</div>"
    )


def combine_with_quote(
    text: str | None, html: str | None, quote: QuotedMessage, *, quote_above: bool
) -> tuple[str, str | None]:
    """Return text and HTML of a message together with the quote below or above.

    If only HTML is given, the text is made of it and of the quote's text.
    """
    own_text = text if text is not None else html_to_text(html) if html is not None else ""
    parts = [quote.text, own_text] if quote_above else [own_text, quote.text]
    full_text = "\n\n".join(part.rstrip("\n") for part in parts if part.strip()) + "\n"
    if html is None:
        return full_text, None
    page = f"{quote.html}<br>{html}" if quote_above else _append_to_body(html, f"<br>{quote.html}")
    return full_text, page


def _append_to_body(html: str, addition: str) -> str:
    """Insert HTML at the end of the body element."""
    at = html.lower().rfind("</body")
    return html + addition if at < 0 else html[:at] + addition + html[at:]


def _attribution_line(original: OriginalMessage) -> str:
    """Return the line that says who wrote the original and when."""
    author = _formatted_addresses(original.from_[:1]) or "somebody"
    when = f"On {_formatted_date(original.date)}, " if original.date else ""
    return f"{when}{author} wrote:"


def _formatted_date(date: datetime | None) -> str:
    return format_datetime(date.astimezone(UTC)) if date else ""


def _formatted_addresses(addresses: Sequence[NamedAddress]) -> str:
    return ", ".join(
        f"{name} <{address.address}>"
        if (name := _single_line(address.name or ""))
        else address.address
        for address in addresses
    )


def _single_line(text: str) -> str:
    """Replace line ends and runs of white space by one space."""
    return " ".join(text.split())


def _normalize_and_truncate_original(text: str) -> str:
    """Normalize the line ends and cut a long original."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
    return (
        text
        if len(text) <= MAX_ORIGINAL_LENGTH
        else f"{text[:MAX_ORIGINAL_LENGTH]}\n{TRUNCATION_MARK}"
    )


def _without_signature(text: str) -> str:
    """Remove the signature of the original (RFC 3676, section 4.3)."""
    signatures = list(_SIGNATURE.finditer(text))
    return text[: signatures[-1].start()] if signatures else text


def _quote_lines(text: str) -> list[str]:
    """Return the lines one quote level deeper. Long lines are wrapped at their level."""
    quoted_lines = []
    for line in text.rstrip().split("\n"):
        depth_match = _DEPTH.match(line)
        depth = depth_match[0].count(">") if depth_match else 0
        prefix = ">" * (depth + 1)
        bare = line[depth_match.end() :].rstrip() if depth_match and depth else line.rstrip()
        if len(prefix) + 1 + len(bare) <= QUOTE_LINE_LENGTH + 2:
            quoted_lines.append(f"{prefix} {bare}" if bare else prefix)
            continue
        width = max(QUOTE_LINE_LENGTH - len(prefix) - 1, 20)
        parts = wrap(bare, width, break_long_words=False, break_on_hyphens=False)
        quoted_lines += [f"{prefix} {part}" for part in parts]
    return quoted_lines
