"""HTML bodies: sanitized for display, or converted to plain text."""

import html as entities
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import nh3

from mail.mime.html_content.css_declarations import safe_style
from mail.mime.html_content.normalizer import TooDeep, canonical
from mail.mime.html_content.tokenizer import names, tokens

MOST_CHARACTERS = 2 << 20
_MOST_QUOTES = 10  # levels shown in plain text

_LINK = re.compile(r"(?:https?|mailto|tel):", re.IGNORECASE)
_REMOTE = re.compile(r"\s*(?:https?:)?//", re.IGNORECASE)
_PICTURE = re.compile(
    r"data:image/(?:png|gif|jpe?g|webp|bmp);base64,[A-Za-z0-9+/=\s]*", re.IGNORECASE
)
_BLOCKS = names(
    "address article aside blockquote center dd dir div dl dt fieldset figcaption figure footer"
    " form h1 h2 h3 h4 h5 h6 header hr li main nav ol p pre section table tbody tfoot thead tr"
    " ul"
)
_SPACED = names("p h1 h2 h3 h4 h5 h6 blockquote pre ul ol table")

_LAID_OUT = frozenset(
    f"{slash}{name}" for name in (*_BLOCKS, "br", "td", "th") for slash in ("", "/")
)

_TAGS = names(
    "a abbr acronym address article aside b bdi bdo big blockquote br caption center cite code col"
    " colgroup dd del details dfn dir div dl dt em figcaption figure font footer h1 h2 h3 h4 h5 h6"
    " header hr i img ins kbd li main mark nav ol p pre q rp rt ruby s samp section small span"
    " strike strong sub summary sup table tbody td tfoot th thead time tr tt u ul var wbr"
)
_EVERYWHERE = names("style title dir lang align valign width height bgcolor background")
_ATTRIBUTES = {
    "*": set(_EVERYWHERE),
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
class Safe:
    """HTML that is safe to show."""

    html: str
    blocked: int  # remote images that were removed
    too_complex: bool  # `html` is only the escaped text


@dataclass(slots=True)
class _Filter:
    """Decides which attributes are kept, and counts blocked images."""

    remote_images: bool
    cid_url: Callable[[str], str | None]
    blocked: int = 0

    def __call__(self, tag: str, name: str, value: str) -> str | None:
        """Return the value to keep, or None to remove the attribute."""
        if name == "style":
            style = safe_style(value)
            self.blocked += 0 if self.remote_images else style.urls
            return style.text or None
        if name == "href":
            return value if _LINK.match(value.strip()) else None
        if name in ("src", "background"):
            return self._picture(value.strip())
        if name == "srcset":
            return self._choices(value)
        return None if name == "cite" and not _LINK.match(value.strip()) else value

    def _picture(self, url: str) -> str | None:
        """Return the URL of an image, or None if it is not allowed."""
        if url[:4].lower() == "cid:":
            return self.cid_url(url[4:].strip("<> "))
        if _REMOTE.match(url):
            self.blocked += not self.remote_images
            return url if self.remote_images else None
        return url if _PICTURE.fullmatch(url) else None

    def _choices(self, value: str) -> str | None:
        """Keep a srcset if all its URLs are remote and remote images are allowed."""
        choices = [choice.strip() for choice in value.split(",")]
        if not any(_REMOTE.match(choice) for choice in choices):
            return None
        self.blocked += not self.remote_images
        return value if self.remote_images and all(map(_REMOTE.match, choices)) else None


def sanitize(html: str, *, remote_images: bool, cid_url: Callable[[str], str | None]) -> Safe:
    """Sanitize HTML. Links open a new window and send no referrer.

    `url_for_content_id` returns the URL of an image of the message, None to remove the image.
    Beyond a depth of 500 or 2 MiB only the escaped text is left: parsers take quadratic time for
    deep trees.
    """
    if len(html) > MOST_CHARACTERS:
        return _text_only(html)
    try:
        tidy = canonical(html, _TAGS)
    except TooDeep:
        return _text_only(html)
    decide = _Filter(remote_images, cid_url)
    return Safe(_CLEANERS.clean(tidy, decide), decide.blocked, too_complex=False)


class _Cleaners(threading.local):
    """nh3's cleaner, one per thread, because its set-up costs as much as one cleaning."""

    def __init__(self) -> None:
        self._decide: _Filter | None = None
        self._cleaner = nh3.Cleaner(
            tags=set(_TAGS),
            attributes=_ATTRIBUTES,
            attribute_filter=self._attribute,
            url_schemes={"http", "https", "mailto", "tel", "cid", "data"},
            link_rel="noopener noreferrer",
            set_tag_attribute_values={"a": {"target": "_blank"}},
        )

    def clean(self, html: str, decide: _Filter) -> str:
        """Return the HTML with allowed tags; `attribute_filter` decides on each attribute."""
        self._decide = decide
        try:
            return self._cleaner.clean(html)
        finally:
            self._decide = None

    def _attribute(self, tag: str, name: str, value: str) -> str | None:
        return None if self._decide is None else self._decide(tag, name, value)


_CLEANERS = _Cleaners()


def html_to_text(html: str) -> str:
    """Convert HTML to plain text: blocks become lines, quotes get "> ".

    Only the first 2 Mi characters are read.
    """
    page = _Page()
    for text, name, _ in tokens(html[:MOST_CHARACTERS]):
        if text:
            page.line.append(text)
        if name in _LAID_OUT:
            _lay_out(page, name)
    page.flush()
    return _joined_lines(page.lines)


@dataclass(slots=True)
class _Page:
    """The finished lines of plain text, and the open line."""

    lines: list[str] = field(default_factory=list)
    line: list[str] = field(default_factory=list)
    quotes: int = 0
    is_pre: bool = False

    def flush(self) -> None:
        """End the open line, unless it is empty."""
        if not self.line:
            return
        text = "".join(self.line)
        self.line.clear()
        if not self.is_pre:
            text = " ".join(text.split())
        if "&" in text:
            text = entities.unescape(text)
        text = text.replace("\xa0", " ")
        prefix = "> " * min(self.quotes, _MOST_QUOTES)
        if self.is_pre:
            self.lines.extend(prefix + each.rstrip() for each in text.split("\n"))
        elif text := text.strip():
            self.lines.append(prefix + text)


def _lay_out(page: _Page, name: str) -> None:
    """Apply the line break, quote level or list mark of a tag."""
    bare = name.removeprefix("/")
    if bare in ("td", "th"):
        page.line.append(" ")
    else:
        page.flush()
        if bare in _SPACED:
            page.lines.append("")
        if bare == "blockquote":
            page.quotes = max(0, page.quotes + (-1 if name[0] == "/" else 1))
        elif bare == "pre":
            page.is_pre = name[0] != "/"
        elif name == "li":
            page.line.append("- ")


def _joined_lines(lines: list[str]) -> str:
    """Join lines, with at most one empty line between two others."""
    out: list[str] = []
    for line in lines:
        if line.strip() or (out and out[-1]):
            out.append(line)
    return "\n".join(out).strip("\n")


def _text_only(html: str) -> Safe:
    """Return the escaped text of HTML that is too complex to sanitize."""
    text = entities.escape(html_to_text(html), quote=False)
    return Safe(f'<div style="white-space:pre-wrap">{text}</div>', 0, too_complex=True)
