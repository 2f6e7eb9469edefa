"""Shapes with files: what people attach, and how their programs name and nest it."""

from dataclasses import replace

from merganser.demo import file_formats, html_pages, media, mime, text_messages
from merganser.demo.mime import File, Part
from merganser.demo.text_library import Desk, Note, gaps, plain

HANDBOOK, PHOTO, TERMS = "handbook", "photo", "terms"
_WORDS = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"


def shared(desk: Desk) -> dict[str, File]:
    """Make the files that many letters have in common: 60 KB, 120 KB and 12 KB."""
    rng = desk.rng
    rules = ["Oats, peas and sweetcorn are welcome; bread is not.", "Count twice, write once."]
    handbook = file_formats.pdf(rng, "Reedmere Pond Trust: the volunteer's handbook", rules, 245)
    terms = file_formats.pdf(rng, "Terms of business", ["Everything is as it should be."], 108)
    return {
        HANDBOOK: File("handbook.pdf", "application/pdf", handbook),
        PHOTO: File("pond-at-dawn.png", "image/png", media.pond(rng, 290, 210, 14)),
        TERMS: File("terms.pdf", "application/pdf", terms),
    }


def _with(desk: Desk, note: Note, *those: File) -> Part:
    parts = (mime.attachment(each) for each in those)
    return mime.multipart("mixed", text_messages.quoted(desk, note), *parts)


def _receipt(desk: Desk, note: Note) -> File:
    rows = [row for row in plain(note).split("\n") if row]
    name = f"document-{desk.rng.randint(1000, 99999)}.pdf"
    return File(name, "application/pdf", file_formats.pdf(desk.rng, note.subject, rows, 20))


def handbook(desk: Desk, note: Note) -> Part:
    """Text and the handbook."""
    return _with(desk, note, desk.shared[HANDBOOK])


def photo(desk: Desk, note: Note) -> Part:
    """Text and the photograph."""
    return _with(desk, note, desk.shared[PHOTO])


def receipt(desk: Desk, note: Note) -> Part:
    """Text and page, with a document of its own and the usual terms."""
    both = text_messages.alternative(desk, note)
    parts = (mime.attachment(each) for each in (_receipt(desk, note), desk.shared[TERMS]))
    return mime.multipart("mixed", both, *parts)


def alternative_handbook(desk: Desk, note: Note) -> Part:
    """Text and page, and the handbook."""
    both = text_messages.alternative(desk, note)
    return mime.multipart("mixed", both, mime.attachment(desk.shared[HANDBOOK]))


def related_photo(desk: Desk, note: Note) -> Part:
    """A page with its picture, and the photograph."""
    return mime.multipart(
        "mixed", text_messages.related(desk, note), mime.attachment(desk.shared[PHOTO])
    )


def four_levels(desk: Desk, note: Note) -> Part:
    """Text, or a page with a picture; and the handbook."""
    inside = text_messages.alternative_related(desk, note)
    return mime.multipart("mixed", inside, mime.attachment(desk.shared[HANDBOOK]))


def jpeg(desk: Desk, note: Note) -> Part:
    """Text and a small photograph of its own."""
    name = f"DSC_{desk.rng.randint(0, 9999):04}.JPG"
    return _with(desk, note, File(name, "image/jpeg", media.mosaic(desk.rng)))


def zipped(desk: Desk, note: Note) -> Part:
    """Text and an archive of three files."""
    members = {
        "readme.txt": plain(note).encode(),
        "pictures/pond.jpg": media.mosaic(desk.rng),
        "pictures/badge.gif": media.badge(desk.rng),
    }
    return _with(desk, note, File("pictures.zip", "application/zip", file_formats.archive(members)))


def document(desk: Desk, note: Note) -> Part:
    """Text and a word processor's file of the same words."""
    return _with(desk, note, File("Letter.docx", _WORDS, file_formats.docx(list(note.paragraphs))))


def open_document(desk: Desk, note: Note) -> Part:
    """Text and an OpenDocument file."""
    kind = "application/vnd.oasis.opendocument.text"
    return _with(desk, note, File("letter.odt", kind, file_formats.odt(list(note.paragraphs))))


def table(desk: Desk, note: Note) -> Part:
    """Text and a table, shown where it stands."""
    days = range(1, desk.rng.randint(9, 25))
    counts = [f"2025-06-{day:02};{gaps(desk)['place']};{desk.rng.randint(3, 140)}" for day in days]
    rows = ["date;place;ducks", *counts]
    part = mime.text("\n".join(rows) + "\n", "utf-8", "quoted-printable", "text/csv")
    shown = (*part.fields, 'Content-Disposition: inline; filename="count.csv"')
    return mime.multipart("mixed", text_messages.as_is(desk, note), replace(part, fields=shown))


def patch(desk: Desk, note: Note) -> Part:
    """Text and a patch, shown where it stands."""
    number = desk.rng.randint(10, 400)
    rows = (
        "diff --git a/calendar/zone.py b/calendar/zone.py",
        "--- a/calendar/zone.py",
        "+++ b/calendar/zone.py",
        f"@@ -{number},4 +{number},4 @@ def arrival(event):",
        '     """Return when to be there."""',
        "-    return event.start.replace(tzinfo=None)",
        f"+    return event.start - timedelta(minutes={desk.rng.randint(2, 20)})",
        " ",
        " ",
    )
    part = mime.text("\n".join(rows) + "\n", "us-ascii", kind="text/x-diff")
    shown = (f"Content-Disposition: inline; filename=zone-{number}.patch",)
    return mime.multipart("mixed", text_messages.as_is(desk, note), replace(part, fields=shown))


def log(desk: Desk, note: Note) -> Part:
    """Text with a log and a settings file."""
    rows = [
        f"12:{at:02}:07 INFO ducks={desk.rng.randint(1, 99)}"
        for at in range(desk.rng.randint(20, 60))
    ]
    text = File("server.log", "text/x-log", "\n".join(rows).encode() + b"\n")
    settings = f'{{"ducks": {desk.rng.randint(1, 99)}, "pond": "deep"}}\n'.encode()
    return _with(desk, note, text, File("settings.json", "application/json", settings))


def card(desk: Desk, note: Note) -> Part:
    """Text and the sender's card."""
    content = file_formats.vcard(note.sender.name, note.sender.address)
    return _with(desk, note, File("card.vcf", "text/vcard; charset=utf-8", content))


def sound(desk: Desk, note: Note) -> Part:
    """Text and a sound."""
    return _with(desk, note, File("quack.wav", "audio/x-wav", media.quack(desk.rng)))


def film(desk: Desk, note: Note) -> Part:
    """Text and a film."""
    return _with(desk, note, File("night.avi", "video/x-msvideo", media.film(desk.rng)))


def drawing(desk: Desk, note: Note) -> Part:
    """Text and a drawing for the browser."""
    return _with(desk, note, File("duck.svg", "image/svg+xml", file_formats.svg("#3d7ea6")))


def web_page(desk: Desk, note: Note) -> Part:
    """Text and a page that is a file."""
    page = html_pages.newsletter(desk, note, []).encode()
    return _with(desk, note, File("page.html", "text/html; charset=utf-8", page))


def nameless(desk: Desk, note: Note) -> Part:
    """Text and some bytes without a name."""
    content = mime.base64_lines(desk.rng.randbytes(desk.rng.randint(100, 3000)))
    fields = ("Content-Transfer-Encoding: base64", "Content-Disposition: attachment")
    unknown = Part("application/octet-stream", content, fields=fields)
    return mime.multipart("mixed", text_messages.as_is(desk, note), unknown)


def nothing(desk: Desk, note: Note) -> Part:
    """Text and a file without content."""
    return _with(desk, note, File("empty.txt", "application/octet-stream", b""))


def many(desk: Desk, note: Note) -> Part:
    """Text and a dozen small files."""
    those = [_receipt(desk, note) for _ in range(4)]
    those += [File(f"badge-{at}.gif", "image/gif", media.badge(desk.rng)) for at in range(5)]
    those += [File(f"note {at}.txt", "text/plain", f"Note {at}.\r\n".encode()) for at in range(3)]
    return _with(desk, note, *those)


def _named(desk: Desk, note: Note, name: str, names: tuple[str, tuple[str, ...]]) -> Part:
    part = mime.attachment(replace(desk.shared[PHOTO], name=name))
    kind, parameters = names
    shown = f"Content-Disposition: {'; '.join((kind, *parameters))}"
    part = replace(part, parameters=(), fields=(shown, *part.fields[1:]))
    return mime.multipart("mixed", text_messages.quoted(desk, note), part)


def foreign_name(desk: Desk, note: Note) -> Part:
    """Text and a photograph with a name in Greek and Japanese (RFC 2231)."""
    name = f"πάπια-鴨-{desk.rng.randint(1, 99)}.png"
    return _named(desk, note, name, ("attachment", (mime.parameter("filename", name),)))


def long_name(desk: Desk, note: Note) -> Part:
    """Text and a photograph whose name needs several pieces (RFC 2231 section 3)."""
    name = f"Überraschung am frühen Morgen, {note.sender.name} am großen Weiher, mit Enten.png"
    return _named(desk, note, name, ("attachment", mime.pieces("filename", name)))


def worded_name(desk: Desk, note: Note) -> Part:
    """Text and a photograph whose name is an encoded word, which RFC 2047 forbids and many do."""
    name = f"Eiskönigin {desk.rng.randint(1, 99)}.png"
    word = mime.words(name, "utf-8", "b")
    return _named(desk, note, name, ("inline", (f'filename="{word}"',)))


def two_texts(desk: Desk, note: Note) -> Part:
    """Text, a photograph, and more text below it."""
    after = mime.text(f"That was {gaps(desk)['place']}, as promised.\n", "us-ascii")
    shown = mime.attachment(desk.shared[PHOTO], "inline")
    return mime.multipart("mixed", text_messages.as_is(desk, note), shown, after)


def page_in_three(desk: Desk, note: Note) -> Part:
    """Text, or a page that is cut in two by a document."""
    first = text_messages.html_only(desk, note)
    last = mime.text("<html><body><p>And so on.</p></body></html>\n", "us-ascii", kind="text/html")
    cut = mime.multipart("mixed", first, mime.attachment(_receipt(desk, note), "inline"), last)
    return mime.multipart("alternative", text_messages.quoted(desk, note), cut)


def single(desk: Desk, note: Note) -> Part:
    """Mixed, with nothing to mix."""
    return mime.multipart("mixed", text_messages.as_is(desk, note))


def mixed_in_mixed(desk: Desk, note: Note) -> Part:
    """A letter with a file, and another file put around it on the way."""
    return mime.multipart("mixed", jpeg(desk, note), mime.attachment(_receipt(desk, note)))


def commented(desk: Desk, note: Note) -> Part:
    """Text and a drawing, with words before the first boundary and after the last one."""
    before = "This is a multi-part message in MIME format.\n"
    after = "Whoever reads this has a very honest mail program.\n"
    return replace(drawing(desk, note), preamble=before, epilogue=after)


def only_document(desk: Desk, _: Note) -> Part:
    """The handbook and no word about it."""
    return mime.attachment(desk.shared[HANDBOOK])


def only_picture(desk: Desk, _: Note) -> Part:
    """A photograph and no word about it."""
    return mime.attachment(desk.shared[PHOTO], "inline")


def voice(desk: Desk, note: Note) -> Part:
    """A voice message (RFC 3801)."""
    spoken = mime.attachment(File("message.wav", "audio/x-wav", media.quack(desk.rng)), "inline")
    return mime.multipart("voice-message", text_messages.as_is(desk, note), spoken)


def parallel(desk: Desk, note: Note) -> Part:
    """Text, picture and sound, to be had at the same time (RFC 2046 section 5.1.6)."""
    picture = File("badge.gif", "image/gif", media.badge(desk.rng))
    heard = File("quack.wav", "audio/x-wav", media.quack(desk.rng))
    parts = (mime.attachment(each, "inline") for each in (picture, heard))
    return mime.multipart("parallel", text_messages.as_is(desk, note), *parts)


def two_forks(desk: Desk, note: Note) -> Part:
    """Text and a file in two halves (RFC 1740)."""
    head = mime.base64_lines(b"\0\5\x16\x07\0\2\0\0" + bytes(16) + b"\0\0")
    fields = ("Content-Transfer-Encoding: base64",)
    fork = Part("application/applefile", head, parameters=('name="duck.gif"',), fields=fields)
    picture = mime.attachment(File("duck.gif", "image/gif", media.badge(desk.rng)))
    whole = mime.multipart("appledouble", fork, picture)
    return mime.multipart("mixed", text_messages.as_is(desk, note), whole)


def winmail(desk: Desk, note: Note) -> Part:
    """Text and the file that nobody can open."""
    inside = file_formats.winmail(note.subject, "duck.gif", media.badge(desk.rng))
    return _with(desk, note, File("winmail.dat", "application/ms-tnef", inside))


def form(desk: Desk, note: Note) -> Part:
    """What somebody wrote into a form on the web (RFC 7578)."""
    said = replace(
        text_messages.as_is(desk, note), fields=('Content-Disposition: form-data; name="text"',)
    )
    who = mime.text(note.sender.address, "us-ascii")
    who = replace(who, fields=('Content-Disposition: form-data; name="from"',))
    return mime.multipart("form-data", who, said)


def footer(desk: Desk, note: Note) -> Part:
    """Text with the list's words put below it as a part."""
    words = (
        "_______________________________________________\n"
        "Python-users mailing list -- python-users@lists.example.org\n"
        "To leave: python-users-leave@lists.example.org\n"
    )
    return mime.multipart("mixed", text_messages.as_is(desk, note), mime.text(words, "us-ascii"))
