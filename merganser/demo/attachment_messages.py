"""Messages with files, as mail programs name and nest them."""

from dataclasses import replace

from merganser.demo import file_formats, html_pages, media, mime, text_messages
from merganser.demo.mime import File, Part
from merganser.demo.text_library import Desk, Note, gaps, plain

HANDBOOK, PHOTO, TERMS = "handbook", "photo", "terms"
_WORDS = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"


def shared(state: Desk) -> dict[str, File]:
    """Create the files that many messages share: 60 KB, 120 KB and 12 KB."""
    rng = state.rng
    rules = ["Oats, peas and sweetcorn are welcome; bread is not.", "Count twice, write once."]
    handbook = file_formats.pdf(rng, "Reedmere Pond Trust: the volunteer's handbook", rules, 245)
    terms = file_formats.pdf(rng, "Terms of business", ["Everything is as it should be."], 108)
    return {
        HANDBOOK: File("handbook.pdf", "application/pdf", handbook),
        PHOTO: File("pond-at-dawn.png", "image/png", media.pond(rng, 290, 210, 14)),
        TERMS: File("terms.pdf", "application/pdf", terms),
    }


def _with(state: Desk, message_text: Note, *those: File) -> Part:
    parts = (mime.attachment(each) for each in those)
    return mime.multipart("mixed", text_messages.quoted(state, message_text), *parts)


def _receipt(state: Desk, message_text: Note) -> File:
    rows = [row for row in plain(message_text).split("\n") if row]
    name = f"document-{state.rng.randint(1000, 99999)}.pdf"
    return File(
        name, "application/pdf", file_formats.pdf(state.rng, message_text.subject, rows, 20)
    )


def handbook(state: Desk, message_text: Note) -> Part:
    """Text and the handbook."""
    return _with(state, message_text, state.shared[HANDBOOK])


def photo(state: Desk, message_text: Note) -> Part:
    """Text and the photograph."""
    return _with(state, message_text, state.shared[PHOTO])


def receipt(state: Desk, message_text: Note) -> Part:
    """Text and page, with a document of its own and the usual terms."""
    both = text_messages.alternative(state, message_text)
    parts = (mime.attachment(each) for each in (_receipt(state, message_text), state.shared[TERMS]))
    return mime.multipart("mixed", both, *parts)


def alternative_handbook(state: Desk, message_text: Note) -> Part:
    """Text and page, and the handbook."""
    both = text_messages.alternative(state, message_text)
    return mime.multipart("mixed", both, mime.attachment(state.shared[HANDBOOK]))


def related_photo(state: Desk, message_text: Note) -> Part:
    """A page with its picture, and the photograph."""
    return mime.multipart(
        "mixed", text_messages.related(state, message_text), mime.attachment(state.shared[PHOTO])
    )


def four_levels(state: Desk, message_text: Note) -> Part:
    """Text, or a page with a picture; and the handbook."""
    inside = text_messages.alternative_related(state, message_text)
    return mime.multipart("mixed", inside, mime.attachment(state.shared[HANDBOOK]))


def jpeg(state: Desk, message_text: Note) -> Part:
    """Text and a small photograph of its own."""
    name = f"DSC_{state.rng.randint(0, 9999):04}.JPG"
    return _with(state, message_text, File(name, "image/jpeg", media.mosaic(state.rng)))


def zipped(state: Desk, message_text: Note) -> Part:
    """Text and an archive of three files."""
    members = {
        "readme.txt": plain(message_text).encode(),
        "pictures/pond.jpg": media.mosaic(state.rng),
        "pictures/badge.gif": media.badge(state.rng),
    }
    return _with(
        state, message_text, File("pictures.zip", "application/zip", file_formats.archive(members))
    )


def document(state: Desk, message_text: Note) -> Part:
    """Text and a word processor's file of the same words."""
    return _with(
        state,
        message_text,
        File("Letter.docx", _WORDS, file_formats.docx(list(message_text.paragraphs))),
    )


def open_document(state: Desk, message_text: Note) -> Part:
    """Text and an OpenDocument file."""
    kind = "application/vnd.oasis.opendocument.text"
    return _with(
        state,
        message_text,
        File("letter.odt", kind, file_formats.odt(list(message_text.paragraphs))),
    )


def table(state: Desk, message_text: Note) -> Part:
    """Text and an inline CSV table."""
    days = range(1, state.rng.randint(9, 25))
    counts = [
        f"2025-06-{day:02};{gaps(state)['place']};{state.rng.randint(3, 140)}" for day in days
    ]
    rows = ["date;place;ducks", *counts]
    part = mime.text("\n".join(rows) + "\n", "utf-8", "quoted-printable", "text/csv")
    shown = (*part.fields, 'Content-Disposition: inline; filename="count.csv"')
    return mime.multipart(
        "mixed", text_messages.as_is(state, message_text), replace(part, fields=shown)
    )


def patch(state: Desk, message_text: Note) -> Part:
    """Text and an inline patch."""
    number = state.rng.randint(10, 400)
    rows = (
        "diff --git a/calendar/zone.py b/calendar/zone.py",
        "--- a/calendar/zone.py",
        "+++ b/calendar/zone.py",
        f"@@ -{number},4 +{number},4 @@ def arrival(event):",
        '     """Return when to be there."""',
        "-    return event.start.replace(tzinfo=None)",
        f"+    return event.start - timedelta(minutes={state.rng.randint(2, 20)})",
        " ",
        " ",
    )
    part = mime.text("\n".join(rows) + "\n", "us-ascii", kind="text/x-diff")
    shown = (f"Content-Disposition: inline; filename=zone-{number}.patch",)
    return mime.multipart(
        "mixed", text_messages.as_is(state, message_text), replace(part, fields=shown)
    )


def log(state: Desk, message_text: Note) -> Part:
    """Text with a log and a settings file."""
    rows = [
        f"12:{at:02}:07 INFO ducks={state.rng.randint(1, 99)}"
        for at in range(state.rng.randint(20, 60))
    ]
    text = File("server.log", "text/x-log", "\n".join(rows).encode() + b"\n")
    settings = f'{{"ducks": {state.rng.randint(1, 99)}, "pond": "deep"}}\n'.encode()
    return _with(state, message_text, text, File("settings.json", "application/json", settings))


def card(state: Desk, message_text: Note) -> Part:
    """Text and the sender's card."""
    content = file_formats.vcard(message_text.sender.name, message_text.sender.address)
    return _with(state, message_text, File("card.vcf", "text/vcard; charset=utf-8", content))


def sound(state: Desk, message_text: Note) -> Part:
    """Text and a sound."""
    return _with(state, message_text, File("quack.wav", "audio/x-wav", media.quack(state.rng)))


def film(state: Desk, message_text: Note) -> Part:
    """Text and a film."""
    return _with(state, message_text, File("night.avi", "video/x-msvideo", media.film(state.rng)))


def drawing(state: Desk, message_text: Note) -> Part:
    """Text and a drawing for the browser."""
    return _with(
        state, message_text, File("duck.svg", "image/svg+xml", file_formats.svg("#3d7ea6"))
    )


def web_page(state: Desk, message_text: Note) -> Part:
    """Text and a page that is a file."""
    page = html_pages.newsletter(state, message_text, []).encode()
    return _with(state, message_text, File("page.html", "text/html; charset=utf-8", page))


def nameless(state: Desk, message_text: Note) -> Part:
    """Text and some bytes without a name."""
    content = mime.base64_lines(state.rng.randbytes(state.rng.randint(100, 3000)))
    fields = ("Content-Transfer-Encoding: base64", "Content-Disposition: attachment")
    unknown = Part("application/octet-stream", content, fields=fields)
    return mime.multipart("mixed", text_messages.as_is(state, message_text), unknown)


def nothing(state: Desk, message_text: Note) -> Part:
    """Text and a file without content."""
    return _with(state, message_text, File("empty.txt", "application/octet-stream", b""))


def many(state: Desk, message_text: Note) -> Part:
    """Text and a dozen small files."""
    those = [_receipt(state, message_text) for _ in range(4)]
    those += [File(f"badge-{at}.gif", "image/gif", media.badge(state.rng)) for at in range(5)]
    those += [File(f"note {at}.txt", "text/plain", f"Note {at}.\r\n".encode()) for at in range(3)]
    return _with(state, message_text, *those)


def _named(state: Desk, message_text: Note, name: str, names: tuple[str, tuple[str, ...]]) -> Part:
    part = mime.attachment(replace(state.shared[PHOTO], name=name))
    kind, parameters = names
    shown = f"Content-Disposition: {'; '.join((kind, *parameters))}"
    part = replace(part, parameters=(), fields=(shown, *part.fields[1:]))
    return mime.multipart("mixed", text_messages.quoted(state, message_text), part)


def foreign_name(state: Desk, message_text: Note) -> Part:
    """Text and a photograph with a name in Greek and Japanese (RFC 2231)."""
    name = f"πάπια-鴨-{state.rng.randint(1, 99)}.png"
    return _named(state, message_text, name, ("attachment", (mime.parameter("filename", name),)))


def long_name(state: Desk, message_text: Note) -> Part:
    """Text and a photograph whose name needs several pieces (RFC 2231 section 3)."""
    name = (
        f"Überraschung am frühen Morgen, {message_text.sender.name} am großen Weiher, mit Enten.png"
    )
    return _named(state, message_text, name, ("attachment", mime.pieces("filename", name)))


def worded_name(state: Desk, message_text: Note) -> Part:
    """Text and a photograph whose name is an encoded word, which RFC 2047 forbids and many do."""
    name = f"Eiskönigin {state.rng.randint(1, 99)}.png"
    word = mime.words(name, "utf-8", "b")
    return _named(state, message_text, name, ("inline", (f'filename="{word}"',)))


def two_texts(state: Desk, message_text: Note) -> Part:
    """Text, a photograph, and more text below it."""
    after = mime.text(f"That was {gaps(state)['place']}, as promised.\n", "us-ascii")
    shown = mime.attachment(state.shared[PHOTO], "inline")
    return mime.multipart("mixed", text_messages.as_is(state, message_text), shown, after)


def page_in_three(state: Desk, message_text: Note) -> Part:
    """Text, or a page that is cut in two by a document."""
    first = text_messages.html_only(state, message_text)
    last = mime.text("<html><body><p>And so on.</p></body></html>\n", "us-ascii", kind="text/html")
    cut = mime.multipart(
        "mixed", first, mime.attachment(_receipt(state, message_text), "inline"), last
    )
    return mime.multipart("alternative", text_messages.quoted(state, message_text), cut)


def single(state: Desk, message_text: Note) -> Part:
    """A mixed multipart with one part."""
    return mime.multipart("mixed", text_messages.as_is(state, message_text))


def mixed_in_mixed(state: Desk, message_text: Note) -> Part:
    """A mixed multipart with a file inside another one with a file."""
    return mime.multipart(
        "mixed", jpeg(state, message_text), mime.attachment(_receipt(state, message_text))
    )


def commented(state: Desk, message_text: Note) -> Part:
    """Text and a drawing, with words before the first boundary and after the last one."""
    before = "This is a multi-part message in MIME format.\n"
    after = "Whoever reads this has a very honest mail program.\n"
    return replace(drawing(state, message_text), preamble=before, epilogue=after)


def only_document(state: Desk, _: Note) -> Part:
    """The handbook without text."""
    return mime.attachment(state.shared[HANDBOOK])


def only_picture(state: Desk, _: Note) -> Part:
    """A photograph without text."""
    return mime.attachment(state.shared[PHOTO], "inline")


def voice(state: Desk, message_text: Note) -> Part:
    """A voice message (RFC 3801)."""
    spoken = mime.attachment(File("message.wav", "audio/x-wav", media.quack(state.rng)), "inline")
    return mime.multipart("voice-message", text_messages.as_is(state, message_text), spoken)


def parallel(state: Desk, message_text: Note) -> Part:
    """Text, picture and sound in a parallel multipart (RFC 2046 section 5.1.6)."""
    picture = File("badge.gif", "image/gif", media.badge(state.rng))
    heard = File("quack.wav", "audio/x-wav", media.quack(state.rng))
    parts = (mime.attachment(each, "inline") for each in (picture, heard))
    return mime.multipart("parallel", text_messages.as_is(state, message_text), *parts)


def two_forks(state: Desk, message_text: Note) -> Part:
    """Text and a file in two halves (RFC 1740)."""
    head = mime.base64_lines(b"\0\5\x16\x07\0\2\0\0" + bytes(16) + b"\0\0")
    fields = ("Content-Transfer-Encoding: base64",)
    fork = Part("application/applefile", head, parameters=('name="duck.gif"',), fields=fields)
    picture = mime.attachment(File("duck.gif", "image/gif", media.badge(state.rng)))
    whole = mime.multipart("appledouble", fork, picture)
    return mime.multipart("mixed", text_messages.as_is(state, message_text), whole)


def winmail(state: Desk, message_text: Note) -> Part:
    """Text and a TNEF file (winmail.dat)."""
    inside = file_formats.winmail(message_text.subject, "duck.gif", media.badge(state.rng))
    return _with(state, message_text, File("winmail.dat", "application/ms-tnef", inside))


def form(state: Desk, message_text: Note) -> Part:
    """The data of a web form (RFC 7578)."""
    said = replace(
        text_messages.as_is(state, message_text),
        fields=('Content-Disposition: form-data; name="text"',),
    )
    who = mime.text(message_text.sender.address, "us-ascii")
    who = replace(who, fields=('Content-Disposition: form-data; name="from"',))
    return mime.multipart("form-data", who, said)


def footer(state: Desk, message_text: Note) -> Part:
    """Text with the footer of a mailing list as a second part."""
    words = (
        "_______________________________________________\n"
        "Python-users mailing list -- python-users@lists.example.org\n"
        "To leave: python-users-leave@lists.example.org\n"
    )
    return mime.multipart(
        "mixed", text_messages.as_is(state, message_text), mime.text(words, "us-ascii")
    )
