"""HTML bodies: sanitized for display, or converted to plain text."""

import html as entities
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import nh3

from mail.mime.html_content.css_declarations import keep_safe_declarations
from mail.mime.html_content.normalizer import HtmlTooDeepError, normalize_html
from mail.mime.html_content.tokenizer import tokenize, word_set

MAX_HTML_CHARACTERS = 2 << 20
_MAX_QUOTE_LEVELS = 10  # levels shown in plain text

_ALLOWED_LINK = re.compile(r"(?:https?|mailto|tel):", re.IGNORECASE)
_REMOTE_URL = re.compile(r"\s*(?:https?:)?//", re.IGNORECASE)
_DATA_IMAGE = re.compile(
    r"data:image/(?:png|gif|jpe?g|webp|bmp);base64,[A-Za-z0-9+/=\s]*", re.IGNORECASE
)
_BLOCK_TAGS = word_set(
    "address article aside blockquote center dd dir div dl dt fieldset figcaption figure footer"
    " form h1 h2 h3 h4 h5 h6 header hr li main nav ol p pre section table tbody tfoot thead tr"
    " ul"
)
_TAGS_WITH_BLANK_LINE = word_set("p h1 h2 h3 h4 h5 h6 blockquote pre ul ol table")

_LAYOUT_TAGS = frozenset(
    f"{slash}{name}" for name in (*_BLOCK_TAGS, "br", "td", "th") for slash in ("", "/")
)

_ALLOWED_TAGS = word_set(
    "a abbr acronym address article aside b bdi bdo big blockquote br caption center cite code col"
    " colgroup dd del details dfn dir div dl dt em figcaption figure font footer h1 h2 h3 h4 h5 h6"
    " header hr i img ins kbd li main mark nav ol p pre q rp rt ruby s samp section small span"
    " strike strong sub summary sup table tbody td tfoot th thead time tr tt u ul var wbr"
)
_GLOBAL_ATTRIBUTES = word_set("style title dir lang align valign width height bgcolor background")
_ALLOWED_ATTRIBUTES = {
    "*": set(_GLOBAL_ATTRIBUTES),
    "a": {"href", "name"},
    "img": {"src", "srcset", "alt", "border", "hspace", "vspace"},
    "font": {"color", "face", "size"},
    "table": {"border", "cellpadding", "cellspacing", "summary", "rules", "frame"},
    "td": {"colspan", "rowspan", "nowrap", "headers", "abbr"},
    "th": {"colspan", "rowspan", "nowrap", "headers", "abbr", "scope"},
    "col": {"span"},
    "colgroup": {"span"},
    "ol": {"start", "type", "reversed"},
    "ul": {"type"},
    "li": {"value", "type"},
    "hr": {"size", "noshade", "color"},
    "br": {"clear"},
    "blockquote": {"cite", "type"},
    "time": {"datetime"},
    "details": {"open"},
}


@dataclass(frozen=True, slots=True)
class SanitizedHtml:
    """HTML that is safe to show."""

    html: str
    blocked_images: int  # remote images that were removed
    too_complex: bool  # `html` is only the escaped text


@dataclass(slots=True)
class _AttributeFilter:
    """Decides which attributes are kept, and counts blocked images."""

    allow_remote_images: bool
    url_for_content_id: Callable[[str], str | None]
    blocked_images: int = 0

    def __call__(self, tag: str, name: str, value: str) -> str | None:
        """Return the value to keep, or None to remove the attribute."""
        if name == "style":
            style = keep_safe_declarations(value)
            self.blocked_images += 0 if self.allow_remote_images else style.remote_urls
            return style.text or None
        if name == "href":
            return value if _ALLOWED_LINK.match(value.strip()) else None
        if name in ("src", "background"):
            return self._allowed_image_url_or_none(value.strip())
        if name == "srcset":
            return self._allowed_srcset_or_none(value)
        return None if name == "cite" and not _ALLOWED_LINK.match(value.strip()) else value

    def _allowed_image_url_or_none(self, url: str) -> str | None:
        """Return the URL of an image, or None if it is not allowed."""
        if url[:4].lower() == "cid:":
            return self.url_for_content_id(url[4:].strip("<> "))
        if _REMOTE_URL.match(url):
            self.blocked_images += not self.allow_remote_images
            return url if self.allow_remote_images else None
        return url if _DATA_IMAGE.fullmatch(url) else None

    def _allowed_srcset_or_none(self, value: str) -> str | None:
        """Keep a srcset if all its URLs are remote and remote images are allowed."""
        choices = [choice.strip() for choice in value.split(",")]
        if not any(_REMOTE_URL.match(choice) for choice in choices):
            return None
        self.blocked_images += not self.allow_remote_images
        return value if self.allow_remote_images and all(map(_REMOTE_URL.match, choices)) else None


def sanitize_html(
    html: str, *, allow_remote_images: bool, url_for_content_id: Callable[[str], str | None]
) -> SanitizedHtml:
    """Sanitize HTML. Links open a new window and send no referrer.

    `url_for_content_id` returns the URL of an image of the message, None to remove the image.
    Beyond a depth of 500 or 2 MiB only the escaped text is left: parsers take quadratic time for
    deep trees.
    """
    if len(html) > MAX_HTML_CHARACTERS:
        return _escaped_text_only(html)
    try:
        tidy = normalize_html(html, _ALLOWED_TAGS)
    except HtmlTooDeepError:
        return _escaped_text_only(html)
    decide = _AttributeFilter(allow_remote_images, url_for_content_id)
    return SanitizedHtml(_CLEANER.clean(tidy, decide), decide.blocked_images, too_complex=False)


class _ThreadCleaner(threading.local):
    """nh3's cleaner, one per thread, because its set-up costs as much as one cleaning."""

    def __init__(self) -> None:
        self._filter: _AttributeFilter | None = None
        self._cleaner = nh3.Cleaner(
            tags=set(_ALLOWED_TAGS),
            attributes=_ALLOWED_ATTRIBUTES,
            attribute_filter=self._filter_attribute,
            url_schemes={"http", "https", "mailto", "tel", "cid", "data"},
            link_rel="noopener noreferrer",
            set_tag_attribute_values={"a": {"target": "_blank"}},
        )

    def clean(self, html: str, attribute_filter: _AttributeFilter) -> str:
        """Return the HTML with allowed tags; `attribute_filter` decides on each attribute."""
        self._filter = attribute_filter
        try:
            return self._cleaner.clean(html)
        finally:
            self._filter = None

    def _filter_attribute(self, tag: str, name: str, value: str) -> str | None:
        return None if self._filter is None else self._filter(tag, name, value)


_CLEANER = _ThreadCleaner()


def html_to_text(html: str) -> str:
    """Convert HTML to plain text: blocks become lines, quotes get "> ".

    Only the first 2 Mi characters are read.
    """
    page = _TextWriter()
    for text, name, _ in tokenize(html[:MAX_HTML_CHARACTERS]):
        if text:
            page.line_parts.append(text)
        if name in _LAYOUT_TAGS:
            _apply_layout_tag(page, name)
    page.end_line()
    return _join_lines_collapsing_blank_ones(page.lines)


@dataclass(slots=True)
class _TextWriter:
    """The finished lines of plain text, and the open line."""

    lines: list[str] = field(default_factory=list)
    line_parts: list[str] = field(default_factory=list)
    quote_level: int = 0
    is_preformatted: bool = False

    def end_line(self) -> None:
        """End the open line, unless it is empty."""
        if not self.line_parts:
            return
        text = "".join(self.line_parts)
        self.line_parts.clear()
        if not self.is_preformatted:
            text = " ".join(text.split())
        if "&" in text:
            text = entities.unescape(text.replace("&lt;", "<"))  # one by one, many take seconds
        text = text.replace("\xa0", " ")
        prefix = "> " * min(self.quote_level, _MAX_QUOTE_LEVELS)
        if self.is_preformatted:
            self.lines.extend(prefix + paragraph.rstrip() for paragraph in text.split("\n"))
        elif text := text.strip():
            self.lines.append(prefix + text)


def _apply_layout_tag(writer: _TextWriter, tag: str) -> None:
    """Apply the line break, quote level or list mark of a tag."""
    bare = tag.removeprefix("/")
    if bare in ("td", "th"):
        writer.line_parts.append(" ")
    else:
        writer.end_line()
        if bare in _TAGS_WITH_BLANK_LINE:
            writer.lines.append("")
        if bare == "blockquote":
            writer.quote_level = max(0, writer.quote_level + (-1 if tag[0] == "/" else 1))
        elif bare == "pre":
            writer.is_preformatted = tag[0] != "/"
        elif tag == "li":
            writer.line_parts.append("- ")


def _join_lines_collapsing_blank_ones(lines: list[str]) -> str:
    """Join lines, with at most one empty line between two others."""
    out: list[str] = []
    for line in lines:
        if line.strip() or (out and out[-1]):
            out.append(line)
    return "\n".join(out).strip("\n")


def _escaped_text_only(html: str) -> SanitizedHtml:
    """Return the escaped text of HTML that is too complex to sanitize."""
    text = entities.escape(html_to_text(html), quote=False)
    return SanitizedHtml(f'<div style="white-space:pre-wrap">{text}</div>', 0, too_complex=True)
