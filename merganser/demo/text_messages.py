"""Shapes that are made of text: plain, HTML, alternatives, and pictures within."""

import textwrap
from dataclasses import replace

from merganser.demo import html_pages, media, mime
from merganser.demo.mime import File, Part
from merganser.demo.text_library import Desk, Note, fitting, plain

_FLOWED_WIDTH = 66
_LONG = 240  # letters: in no charset more than the 998 octets that a line may have
_BASE64, _QUOTED = "base64", "quoted-printable"


def _text(note: Note, content: str, encoding: str = "", kind: str = "text/plain") -> Part:
    if not encoding and max(map(len, content.split("\n"))) > _LONG:
        encoding = _QUOTED
    return mime.text(content, fitting(content, note.charset), encoding, kind)


def _either(desk: Desk) -> str:
    return desk.rng.choice((_QUOTED, _QUOTED, _BASE64, ""))


def cid(desk: Desk, name: str) -> str:
    """Make a content id."""
    return f"{name}.{desk.rng.getrandbits(40):010x}@merganser.example"


def as_is(_: Desk, note: Note) -> Part:
    """7bit where the text allows it, else 8bit."""
    return _text(note, plain(note))


def in_base64(_: Desk, note: Note) -> Part:
    """Text in base64."""
    return _text(note, plain(note), _BASE64)


def quoted(_: Desk, note: Note) -> Part:
    """Text in quoted-printable, in long lines."""
    return _text(note, plain(note, 900), _QUOTED)


def uuencoded(_: Desk, note: Note) -> Part:
    """Text whose transfer encoding is the one from before MIME."""
    return _text(note, plain(note), "x-uuencode")


def utf16(_: Desk, note: Note) -> Part:
    """Text in UTF-16, which has to be base64."""
    return mime.text(plain(note), "utf-16", _BASE64)


def utf7(_: Desk, note: Note) -> Part:
    """Text in UTF-7."""
    return mime.text(plain(note), "utf-7")


def flowed(desk: Desk, note: Note) -> Part:
    """Text that flows (RFC 3676), every other time with DelSp."""
    delsp = desk.rng.random() < 0.5  # noqa: PLR2004 (every other one)
    soft = "  \n" if delsp else " \n"
    rows: list[str] = []
    for paragraph in note.paragraphs:
        rows += [soft.join(textwrap.wrap(line, _FLOWED_WIDTH)) for line in paragraph.split("\n")]
        rows.append("")
    part = _text(note, "\n".join((*rows, note.quoted)).rstrip("\n") + "\n")
    more = ("format=flowed", "delsp=yes") if delsp else ("format=flowed",)
    return replace(part, parameters=(*part.parameters, *more))


def html_only(desk: Desk, note: Note) -> Part:
    """A page and nothing else."""
    return _text(note, html_pages.simple(desk, note), _either(desk), "text/html")


def newsletter_only(desk: Desk, note: Note) -> Part:
    """A newsletter whose pictures all lie elsewhere."""
    page = html_pages.newsletter(desk, note, ["http://example.com/head.png"])
    return _text(note, page, _QUOTED, "text/html")


def markdown_only(_: Desk, note: Note) -> Part:
    """Markdown, declared as such (RFC 7763)."""
    part = _text(note, html_pages.markdown(note), _QUOTED, "text/markdown")
    return replace(part, parameters=(*part.parameters, "variant=CommonMark"))


def uuencode_inline(desk: Desk, note: Note) -> Part:
    """Text with a file in it, as in old times."""
    picture = mime.uuencode("badge.gif", media.badge(desk.rng)).decode("ascii")
    return _text(note, f"{plain(note)}\n{picture}")


def empty(_: Desk, note: Note) -> Part:
    """Nothing at all below the header."""
    return Part("text/plain", parameters=(f"charset={note.charset}",))


def alternative(desk: Desk, note: Note) -> Part:
    """Text and page."""
    page = _text(note, html_pages.simple(desk, note), _either(desk), "text/html")
    return mime.multipart("alternative", _text(note, plain(note), _either(desk)), page)


def alternative_letter(desk: Desk, note: Note) -> Part:
    """Text and a newsletter with remote pictures."""
    page = html_pages.newsletter(desk, note, ["http://example.com/head.png"])
    html = _text(note, page, _QUOTED, "text/html")
    return mime.multipart("alternative", _text(note, plain(note), _QUOTED), html)


def alternative_single(desk: Desk, note: Note) -> Part:
    """An alternative without a choice."""
    return mime.multipart("alternative", html_only(desk, note))


def alternative_markdown(desk: Desk, note: Note) -> Part:
    """Text, Markdown and page."""
    middle = _text(note, html_pages.markdown(note), _QUOTED, "text/markdown")
    page = _text(note, html_pages.simple(desk, note), _QUOTED, "text/html")
    return mime.multipart("alternative", as_is(desk, note), middle, page)


def alternative_enriched(desk: Desk, note: Note) -> Part:
    """Text and enriched text."""
    rich = _text(note, html_pages.enriched(note), _QUOTED, "text/enriched")
    return mime.multipart("alternative", as_is(desk, note), rich)


def alternative_amp(desk: Desk, note: Note) -> Part:
    """Text, AMP and page, in the order that AMP asks for."""
    live = mime.text(html_pages.amp(note), "utf-8", _BASE64, "text/x-amp-html")
    page = _text(note, html_pages.newsletter(desk, note, []), _QUOTED, "text/html")
    return mime.multipart("alternative", _text(note, plain(note), _QUOTED), live, page)


def languages(desk: Desk, note: Note) -> Part:
    """The same in two languages (RFC 8255)."""
    first = mime.text("Please choose a language.\r\n", "us-ascii")
    mine = as_is(desk, note)
    mine = replace(mine, fields=(*mine.fields, f"Content-Language: {note.language}"))
    other = mime.text(f"{note.subject}\n\nquack quack, quack!\n", "utf-8", _QUOTED)
    other = replace(other, fields=(*other.fields, "Content-Language: x-duck"))
    return mime.multipart("multilingual", first, mine, other)


def _logo(desk: Desk) -> tuple[File, str]:
    return File("badge.gif", "image/gif", media.badge(desk.rng)), cid(desk, "badge")


def related(desk: Desk, note: Note) -> Part:
    """A page and its picture, by content id."""
    logo, name = _logo(desk)
    page = html_pages.pictured(desk, note, [f"cid:{name}"])
    html = _text(note, page, _QUOTED, "text/html")
    return mime.multipart(
        "related", html, mime.attachment(logo, "inline", name), parameters=('type="text/html"',)
    )


def alternative_related(desk: Desk, note: Note) -> Part:
    """Text, or a page with a picture."""
    return mime.multipart("alternative", _text(note, plain(note), _QUOTED), related(desk, note))


def related_alternative(desk: Desk, note: Note) -> Part:
    """A picture for one of two alternatives, put around both of them."""
    logo, name = _logo(desk)
    html = _text(note, html_pages.pictured(desk, note, [f"cid:{name}"]), _either(desk), "text/html")
    both = mime.multipart("alternative", as_is(desk, note), html)
    kind = ('type="multipart/alternative"',)
    return mime.multipart("related", both, mime.attachment(logo, "inline", name), parameters=kind)


def related_letter(desk: Desk, note: Note) -> Part:
    """A newsletter with a picture of its own, a photograph, and remote ones."""
    photo = File("head.jpg", "image/jpeg", media.mosaic(desk.rng))
    logo, name = _logo(desk)
    head = cid(desk, "head")
    page = html_pages.newsletter(desk, note, [f"cid:{head}", f"cid:{name}"])
    html = _text(note, page, _QUOTED, "text/html")
    inside = (mime.attachment(photo, "inline", head), mime.attachment(logo, "inline", name))
    whole = mime.multipart("related", html, *inside)
    return mime.multipart("alternative", _text(note, plain(note), _BASE64), whole)


def related_many(desk: Desk, note: Note) -> Part:
    """An album: a page of seven pictures."""
    names = [cid(desk, f"p{at}") for at in range(7)]
    photos = []
    for number, name in enumerate(names, desk.rng.randint(1, 999)):
        photo = File(f"IMG_{number:04}.png", "image/png", media.pond(desk.rng, 40, 30))
        photos.append(mime.attachment(photo, "inline", name))
    page = html_pages.pictured(desk, note, [f"cid:{name}" for name in names])
    return mime.multipart("related", _text(note, page, _QUOTED, "text/html"), *photos)


def related_start(desk: Desk, note: Note) -> Part:
    """A page that comes after its picture, named by `start` (RFC 2387)."""
    logo, name = _logo(desk)
    first = cid(desk, "page")
    html = _text(note, html_pages.pictured(desk, note, [f"cid:{name}"]), _QUOTED, "text/html")
    html = replace(html, fields=(*html.fields, f"Content-ID: <{first}>"))
    named = ('type="text/html"', f'start="<{first}>"')
    return mime.multipart("related", mime.attachment(logo, "inline", name), html, parameters=named)


def related_location(desk: Desk, note: Note) -> Part:
    """A page and its picture, by Content-Location (RFC 2557)."""
    place = f"http://example.com/duck/{desk.rng.randint(1, 9999)}.gif"
    logo = mime.attachment(_logo(desk)[0], "inline")
    logo = replace(logo, fields=(*logo.fields, f"Content-Location: {place}"))
    page = _text(note, html_pages.pictured(desk, note, [place]), _QUOTED, "text/html")
    return mime.multipart("related", page, logo)


def clearsigned(desk: Desk, note: Note) -> Part:
    """Text with an OpenPGP signature around it."""
    body = plain(note)
    seal = "".join(f"{desk.rng.getrandbits(252):063x}\n" for _ in range(2))
    start = "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n"
    end = f"-----BEGIN PGP SIGNATURE-----\n\n{seal}-----END PGP SIGNATURE-----\n"
    return _text(note, f"{start}{body}\n{end}")
