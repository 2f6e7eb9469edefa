"""Messages of text: plain, HTML, alternatives, and inline pictures."""

import textwrap
from dataclasses import replace

from merganser.demo import html_pages, media, mime
from merganser.demo.mime import File, Part
from merganser.demo.text_library import Desk, Note, fitting, plain

_FLOWED_WIDTH = 66
_LONG = 240  # letters: in no charset more than the 998 octets that a line may have
_BASE64, _QUOTED = "base64", "quoted-printable"


def _text(message_text: Note, content: str, encoding: str = "", kind: str = "text/plain") -> Part:
    if not encoding and max(map(len, content.split("\n"))) > _LONG:
        encoding = _QUOTED
    return mime.text(content, fitting(content, message_text.charset), encoding, kind)


def _either(state: Desk) -> str:
    return state.rng.choice((_QUOTED, _QUOTED, _BASE64, ""))


def cid(state: Desk, name: str) -> str:
    """Create a Content-ID."""
    return f"{name}.{state.rng.getrandbits(40):010x}@merganser.example"


def as_is(_: Desk, message_text: Note) -> Part:
    """Plain text, 7bit if possible, otherwise 8bit."""
    return _text(message_text, plain(message_text))


def in_base64(_: Desk, message_text: Note) -> Part:
    """Text in base64."""
    return _text(message_text, plain(message_text), _BASE64)


def quoted(_: Desk, message_text: Note) -> Part:
    """Text in quoted-printable, in long lines."""
    return _text(message_text, plain(message_text, 900), _QUOTED)


def uuencoded(_: Desk, message_text: Note) -> Part:
    """Text with the transfer encoding x-uuencode."""
    return _text(message_text, plain(message_text), "x-uuencode")


def utf16(_: Desk, message_text: Note) -> Part:
    """Text in UTF-16, which has to be base64."""
    return mime.text(plain(message_text), "utf-16", _BASE64)


def utf7(_: Desk, message_text: Note) -> Part:
    """Text in UTF-7."""
    return mime.text(plain(message_text), "utf-7")


def flowed(state: Desk, message_text: Note) -> Part:
    """Text that flows (RFC 3676), every other time with DelSp."""
    delsp = state.rng.random() < 0.5  # noqa: PLR2004 (every other one)
    soft = "  \n" if delsp else " \n"
    rows: list[str] = []
    for paragraph in message_text.paragraphs:
        rows += [soft.join(textwrap.wrap(line, _FLOWED_WIDTH)) for line in paragraph.split("\n")]
        rows.append("")
    part = _text(message_text, "\n".join((*rows, message_text.quoted)).rstrip("\n") + "\n")
    more = ("format=flowed", "delsp=yes") if delsp else ("format=flowed",)
    return replace(part, parameters=(*part.parameters, *more))


def html_only(state: Desk, message_text: Note) -> Part:
    """An HTML page."""
    return _text(message_text, html_pages.simple(state, message_text), _either(state), "text/html")


def newsletter_only(state: Desk, message_text: Note) -> Part:
    """A newsletter with remote pictures."""
    page = html_pages.newsletter(state, message_text, ["http://example.com/head.png"])
    return _text(message_text, page, _QUOTED, "text/html")


def markdown_only(_: Desk, message_text: Note) -> Part:
    """Markdown, declared as such (RFC 7763)."""
    part = _text(message_text, html_pages.markdown(message_text), _QUOTED, "text/markdown")
    return replace(part, parameters=(*part.parameters, "variant=CommonMark"))


def uuencode_inline(state: Desk, message_text: Note) -> Part:
    """Text with an inline uuencoded file."""
    picture = mime.uuencode("badge.gif", media.badge(state.rng)).decode("ascii")
    return _text(message_text, f"{plain(message_text)}\n{picture}")


def empty(_: Desk, message_text: Note) -> Part:
    """A message with an empty body."""
    return Part("text/plain", parameters=(f"charset={message_text.charset}",))


def alternative(state: Desk, message_text: Note) -> Part:
    """Text and page."""
    page = _text(message_text, html_pages.simple(state, message_text), _either(state), "text/html")
    return mime.multipart(
        "alternative", _text(message_text, plain(message_text), _either(state)), page
    )


def alternative_letter(state: Desk, message_text: Note) -> Part:
    """Text and a newsletter with remote pictures."""
    page = html_pages.newsletter(state, message_text, ["http://example.com/head.png"])
    html = _text(message_text, page, _QUOTED, "text/html")
    return mime.multipart("alternative", _text(message_text, plain(message_text), _QUOTED), html)


def alternative_single(state: Desk, message_text: Note) -> Part:
    """An alternative multipart with one part."""
    return mime.multipart("alternative", html_only(state, message_text))


def alternative_markdown(state: Desk, message_text: Note) -> Part:
    """Text, Markdown and page."""
    middle = _text(message_text, html_pages.markdown(message_text), _QUOTED, "text/markdown")
    page = _text(message_text, html_pages.simple(state, message_text), _QUOTED, "text/html")
    return mime.multipart("alternative", as_is(state, message_text), middle, page)


def alternative_enriched(state: Desk, message_text: Note) -> Part:
    """Text and enriched text."""
    rich = _text(message_text, html_pages.enriched(message_text), _QUOTED, "text/enriched")
    return mime.multipart("alternative", as_is(state, message_text), rich)


def alternative_amp(state: Desk, message_text: Note) -> Part:
    """Text, AMP and page, in the order that AMP asks for."""
    live = mime.text(html_pages.amp(message_text), "utf-8", _BASE64, "text/x-amp-html")
    page = _text(message_text, html_pages.newsletter(state, message_text, []), _QUOTED, "text/html")
    return mime.multipart(
        "alternative", _text(message_text, plain(message_text), _QUOTED), live, page
    )


def languages(state: Desk, message_text: Note) -> Part:
    """The same text in two languages (RFC 8255)."""
    first = mime.text("Please choose a language.\r\n", "us-ascii")
    mine = as_is(state, message_text)
    mine = replace(mine, fields=(*mine.fields, f"Content-Language: {message_text.language}"))
    other = mime.text(f"{message_text.subject}\n\nquack quack, quack!\n", "utf-8", _QUOTED)
    other = replace(other, fields=(*other.fields, "Content-Language: x-duck"))
    return mime.multipart("multilingual", first, mine, other)


def _logo(state: Desk) -> tuple[File, str]:
    return File("badge.gif", "image/gif", media.badge(state.rng)), cid(state, "badge")


def related(state: Desk, message_text: Note) -> Part:
    """A page and its picture, by content id."""
    logo, name = _logo(state)
    page = html_pages.pictured(state, message_text, [f"cid:{name}"])
    html = _text(message_text, page, _QUOTED, "text/html")
    return mime.multipart(
        "related", html, mime.attachment(logo, "inline", name), parameters=('type="text/html"',)
    )


def alternative_related(state: Desk, message_text: Note) -> Part:
    """Text, or a page with a picture."""
    return mime.multipart(
        "alternative",
        _text(message_text, plain(message_text), _QUOTED),
        related(state, message_text),
    )


def related_alternative(state: Desk, message_text: Note) -> Part:
    """A related multipart around both alternatives, with a picture of one of them."""
    logo, name = _logo(state)
    html = _text(
        message_text,
        html_pages.pictured(state, message_text, [f"cid:{name}"]),
        _either(state),
        "text/html",
    )
    both = mime.multipart("alternative", as_is(state, message_text), html)
    kind = ('type="multipart/alternative"',)
    return mime.multipart("related", both, mime.attachment(logo, "inline", name), parameters=kind)


def related_letter(state: Desk, message_text: Note) -> Part:
    """A newsletter with a picture of its own, a photograph, and remote ones."""
    photo = File("head.jpg", "image/jpeg", media.mosaic(state.rng))
    logo, name = _logo(state)
    head = cid(state, "head")
    page = html_pages.newsletter(state, message_text, [f"cid:{head}", f"cid:{name}"])
    html = _text(message_text, page, _QUOTED, "text/html")
    inside = (mime.attachment(photo, "inline", head), mime.attachment(logo, "inline", name))
    whole = mime.multipart("related", html, *inside)
    return mime.multipart("alternative", _text(message_text, plain(message_text), _BASE64), whole)


def related_many(state: Desk, message_text: Note) -> Part:
    """An album: a page of seven pictures."""
    names = [cid(state, f"p{at}") for at in range(7)]
    photos = []
    for number, name in enumerate(names, state.rng.randint(1, 999)):
        photo = File(f"IMG_{number:04}.png", "image/png", media.pond(state.rng, 40, 30))
        photos.append(mime.attachment(photo, "inline", name))
    page = html_pages.pictured(state, message_text, [f"cid:{name}" for name in names])
    return mime.multipart("related", _text(message_text, page, _QUOTED, "text/html"), *photos)


def related_start(state: Desk, message_text: Note) -> Part:
    """A page that comes after its picture, named by `start` (RFC 2387)."""
    logo, name = _logo(state)
    first = cid(state, "page")
    html = _text(
        message_text,
        html_pages.pictured(state, message_text, [f"cid:{name}"]),
        _QUOTED,
        "text/html",
    )
    html = replace(html, fields=(*html.fields, f"Content-ID: <{first}>"))
    named = ('type="text/html"', f'start="<{first}>"')
    return mime.multipart("related", mime.attachment(logo, "inline", name), html, parameters=named)


def related_location(state: Desk, message_text: Note) -> Part:
    """A page and its picture, by Content-Location (RFC 2557)."""
    place = f"http://example.com/duck/{state.rng.randint(1, 9999)}.gif"
    logo = mime.attachment(_logo(state)[0], "inline")
    logo = replace(logo, fields=(*logo.fields, f"Content-Location: {place}"))
    page = _text(
        message_text, html_pages.pictured(state, message_text, [place]), _QUOTED, "text/html"
    )
    return mime.multipart("related", page, logo)


def clearsigned(state: Desk, message_text: Note) -> Part:
    """Text with an OpenPGP signature around it."""
    body = plain(message_text)
    seal = "".join(f"{state.rng.getrandbits(252):063x}\n" for _ in range(2))
    start = "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n"
    end = f"-----BEGIN PGP SIGNATURE-----\n\n{seal}-----END PGP SIGNATURE-----\n"
    return _text(message_text, f"{start}{body}\n{end}")
