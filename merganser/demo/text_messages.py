"""Messages of text: plain, HTML, alternatives, and inline pictures."""

import textwrap
from dataclasses import replace

from merganser.demo import html_pages, media, mime
from merganser.demo.mime import DemoFile, DemoPart
from merganser.demo.text_library import GeneratorState, MessageText, charset_or_utf8, wrapped_text

_FLOWED_LINE_WIDTH = 66
_MAX_UNENCODED_LINE = 240  # characters: in no charset more than the 998 octets that a line may have
_BASE64, _QUOTED = "base64", "quoted-printable"


def _text_part(
    message_text: MessageText, content: str, encoding: str = "", content_type: str = "text/plain"
) -> DemoPart:
    if not encoding and max(map(len, content.split("\n"))) > _MAX_UNENCODED_LINE:
        encoding = _QUOTED
    return mime.text_part(
        content, charset_or_utf8(content, message_text.charset), encoding, content_type
    )


def _random_encoding(state: GeneratorState) -> str:
    return state.rng.choice((_QUOTED, _QUOTED, _BASE64, ""))


def new_content_id(state: GeneratorState, name: str) -> str:
    """Create a Content-ID."""
    return f"{name}.{state.rng.getrandbits(40):010x}@merganser.example"


def unencoded_text(_: GeneratorState, message_text: MessageText) -> DemoPart:
    """Plain text, 7bit if possible, otherwise 8bit."""
    return _text_part(message_text, wrapped_text(message_text))


def base64_text(_: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text in base64."""
    return _text_part(message_text, wrapped_text(message_text), _BASE64)


def quoted_printable_text(_: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text in quoted-printable, in long lines."""
    return _text_part(message_text, wrapped_text(message_text, 900), _QUOTED)


def uuencoded_text(_: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text with the transfer encoding x-uuencode."""
    return _text_part(message_text, wrapped_text(message_text), "x-uuencode")


def utf16_text(_: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text in UTF-16, which has to be base64."""
    return mime.text_part(wrapped_text(message_text), "utf-16", _BASE64)


def utf7_text(_: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text in UTF-7."""
    return mime.text_part(wrapped_text(message_text), "utf-7")


def flowed_text(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text that flows (RFC 3676), every other time with DelSp."""
    delsp = state.rng.random() < 0.5  # noqa: PLR2004 (every other one)
    soft = "  \n" if delsp else " \n"
    rows: list[str] = []
    for paragraph in message_text.paragraphs:
        rows += [
            soft.join(textwrap.wrap(line, _FLOWED_LINE_WIDTH)) for line in paragraph.split("\n")
        ]
        rows.append("")
    part = _text_part(
        message_text, "\n".join((*rows, message_text.quoted_text)).rstrip("\n") + "\n"
    )
    parameters = ("format=flowed", "delsp=yes") if delsp else ("format=flowed",)
    return replace(part, parameters=(*part.parameters, *parameters))


def html_only(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """An HTML page."""
    return _text_part(
        message_text,
        html_pages.simple_page(state, message_text),
        _random_encoding(state),
        "text/html",
    )


def newsletter_only(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """A newsletter with remote pictures."""
    page = html_pages.newsletter_page(state, message_text, ["http://example.com/head.png"])
    return _text_part(message_text, page, _QUOTED, "text/html")


def markdown_only(_: GeneratorState, message_text: MessageText) -> DemoPart:
    """Markdown, declared as such (RFC 7763)."""
    part = _text_part(
        message_text, html_pages.markdown_text(message_text), _QUOTED, "text/markdown"
    )
    return replace(part, parameters=(*part.parameters, "variant=CommonMark"))


def text_with_inline_uuencode(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text with an inline uuencoded file."""
    picture = mime.uuencode("badge.gif", media.draw_badge_gif(state.rng)).decode("ascii")
    return _text_part(message_text, f"{wrapped_text(message_text)}\n{picture}")


def empty_body(_: GeneratorState, message_text: MessageText) -> DemoPart:
    """A message with an empty body."""
    return DemoPart("text/plain", parameters=(f"charset={message_text.charset}",))


def text_and_html(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text and page."""
    page = _text_part(
        message_text,
        html_pages.simple_page(state, message_text),
        _random_encoding(state),
        "text/html",
    )
    return mime.multipart_part(
        "alternative",
        _text_part(message_text, wrapped_text(message_text), _random_encoding(state)),
        page,
    )


def text_and_newsletter(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text and a newsletter with remote pictures."""
    page = html_pages.newsletter_page(state, message_text, ["http://example.com/head.png"])
    html = _text_part(message_text, page, _QUOTED, "text/html")
    return mime.multipart_part(
        "alternative", _text_part(message_text, wrapped_text(message_text), _QUOTED), html
    )


def alternative_with_one_part(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """An alternative multipart with one part."""
    return mime.multipart_part("alternative", html_only(state, message_text))


def text_markdown_and_html(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text, Markdown and page."""
    middle = _text_part(
        message_text, html_pages.markdown_text(message_text), _QUOTED, "text/markdown"
    )
    page = _text_part(
        message_text, html_pages.simple_page(state, message_text), _QUOTED, "text/html"
    )
    return mime.multipart_part("alternative", unencoded_text(state, message_text), middle, page)


def text_and_enriched(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text and enriched text."""
    rich = _text_part(
        message_text, html_pages.enriched_text(message_text), _QUOTED, "text/enriched"
    )
    return mime.multipart_part("alternative", unencoded_text(state, message_text), rich)


def text_amp_and_html(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text, AMP and page, in the order that AMP asks for."""
    live = mime.text_part(html_pages.amp_page(message_text), "utf-8", _BASE64, "text/x-amp-html")
    page = _text_part(
        message_text, html_pages.newsletter_page(state, message_text, []), _QUOTED, "text/html"
    )
    return mime.multipart_part(
        "alternative", _text_part(message_text, wrapped_text(message_text), _QUOTED), live, page
    )


def multilingual(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """The same text in two languages (RFC 8255)."""
    first = mime.text_part("Please choose a language.\r\n", "us-ascii")
    own_part = unencoded_text(state, message_text)
    own_part = replace(
        own_part, fields=(*own_part.fields, f"Content-Language: {message_text.language}")
    )
    other = mime.text_part(f"{message_text.subject}\n\nquack quack, quack!\n", "utf-8", _QUOTED)
    other = replace(other, fields=(*other.fields, "Content-Language: x-duck"))
    return mime.multipart_part("multilingual", first, own_part, other)


def _badge_with_content_id(state: GeneratorState) -> tuple[DemoFile, str]:
    return DemoFile("badge.gif", "image/gif", media.draw_badge_gif(state.rng)), new_content_id(
        state, "badge"
    )


def html_with_picture(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """A page and its picture, by content id."""
    logo, name = _badge_with_content_id(state)
    page = html_pages.page_with_pictures(state, message_text, [f"cid:{name}"])
    html = _text_part(message_text, page, _QUOTED, "text/html")
    return mime.multipart_part(
        "related",
        html,
        mime.attachment_part(logo, "inline", name),
        parameters=('type="text/html"',),
    )


def text_and_html_with_picture(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text, or a page with a picture."""
    return mime.multipart_part(
        "alternative",
        _text_part(message_text, wrapped_text(message_text), _QUOTED),
        html_with_picture(state, message_text),
    )


def alternative_in_related(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """A related multipart around both alternatives, with a picture of one of them."""
    logo, name = _badge_with_content_id(state)
    html = _text_part(
        message_text,
        html_pages.page_with_pictures(state, message_text, [f"cid:{name}"]),
        _random_encoding(state),
        "text/html",
    )
    alternative = mime.multipart_part("alternative", unencoded_text(state, message_text), html)
    kind = ('type="multipart/alternative"',)
    return mime.multipart_part(
        "related", alternative, mime.attachment_part(logo, "inline", name), parameters=kind
    )


def newsletter_with_pictures(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """A newsletter with a picture of its own, a photograph, and remote ones."""
    photo = DemoFile("head.jpg", "image/jpeg", media.draw_mosaic_jpeg(state.rng))
    logo, name = _badge_with_content_id(state)
    head = new_content_id(state, "head")
    page = html_pages.newsletter_page(state, message_text, [f"cid:{head}", f"cid:{name}"])
    html = _text_part(message_text, page, _QUOTED, "text/html")
    inside = (
        mime.attachment_part(photo, "inline", head),
        mime.attachment_part(logo, "inline", name),
    )
    body_part = mime.multipart_part("related", html, *inside)
    return mime.multipart_part(
        "alternative", _text_part(message_text, wrapped_text(message_text), _BASE64), body_part
    )


def html_with_seven_pictures(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """An album: a page of seven pictures."""
    names = [new_content_id(state, f"p{at}") for at in range(7)]
    photos = []
    for number, name in enumerate(names, state.rng.randint(1, 999)):
        photo = DemoFile(
            f"IMG_{number:04}.png", "image/png", media.draw_pond_png(state.rng, 40, 30)
        )
        photos.append(mime.attachment_part(photo, "inline", name))
    page = html_pages.page_with_pictures(state, message_text, [f"cid:{name}" for name in names])
    return mime.multipart_part(
        "related", _text_part(message_text, page, _QUOTED, "text/html"), *photos
    )


def related_with_start(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """A page that comes after its picture, named by `start` (RFC 2387)."""
    logo, name = _badge_with_content_id(state)
    first = new_content_id(state, "page")
    html = _text_part(
        message_text,
        html_pages.page_with_pictures(state, message_text, [f"cid:{name}"]),
        _QUOTED,
        "text/html",
    )
    html = replace(html, fields=(*html.fields, f"Content-ID: <{first}>"))
    parameters = ('type="text/html"', f'start="<{first}>"')
    return mime.multipart_part(
        "related", mime.attachment_part(logo, "inline", name), html, parameters=parameters
    )


def related_with_location(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """A page and its picture, by Content-Location (RFC 2557)."""
    location = f"http://example.com/duck/{state.rng.randint(1, 9999)}.gif"
    logo = mime.attachment_part(_badge_with_content_id(state)[0], "inline")
    logo = replace(logo, fields=(*logo.fields, f"Content-Location: {location}"))
    page = _text_part(
        message_text,
        html_pages.page_with_pictures(state, message_text, [location]),
        _QUOTED,
        "text/html",
    )
    return mime.multipart_part("related", page, logo)


def clearsigned_text(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text with an OpenPGP signature around it."""
    body = wrapped_text(message_text)
    seal = "".join(f"{state.rng.getrandbits(252):063x}\n" for _ in range(2))
    start = "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n"
    end = f"-----BEGIN PGP SIGNATURE-----\n\n{seal}-----END PGP SIGNATURE-----\n"
    return _text_part(message_text, f"{start}{body}\n{end}")
