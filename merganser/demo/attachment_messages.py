"""Messages with files, as mail programs name and nest them."""

from dataclasses import replace

from merganser.demo import file_formats, html_pages, media, mime, text_messages
from merganser.demo.mime import DemoFile, DemoPart
from merganser.demo.text_library import (
    GeneratorState,
    MessageText,
    random_words_by_placeholder,
    wrapped_text,
)

HANDBOOK, PHOTO, TERMS = "handbook", "photo", "terms"
_WORDS = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"


def create_shared_files(state: GeneratorState) -> dict[str, DemoFile]:
    """Create the files that many messages share: 60 KB, 120 KB and 12 KB."""
    rng = state.rng
    rules = ["Oats, peas and sweetcorn are welcome; bread is not.", "Count twice, write once."]
    handbook = file_formats.create_pdf(
        rng, "Reedmere Pond Trust: the volunteer's handbook", rules, 245
    )
    terms = file_formats.create_pdf(
        rng, "Terms of business", ["Everything is as it should be."], 108
    )
    return {
        HANDBOOK: DemoFile("handbook.pdf", "application/pdf", handbook),
        PHOTO: DemoFile("pond-at-dawn.png", "image/png", media.draw_pond_png(rng, 290, 210, 14)),
        TERMS: DemoFile("terms.pdf", "application/pdf", terms),
    }


def _text_with_files(
    state: GeneratorState, message_text: MessageText, *attachments: DemoFile
) -> DemoPart:
    parts = (mime.attachment_part(attachment) for attachment in attachments)
    return mime.multipart_part(
        "mixed", text_messages.quoted_printable_text(state, message_text), *parts
    )


def _receipt_file(state: GeneratorState, message_text: MessageText) -> DemoFile:
    rows = [row for row in wrapped_text(message_text).split("\n") if row]
    name = f"document-{state.rng.randint(1000, 99999)}.pdf"
    return DemoFile(
        name, "application/pdf", file_formats.create_pdf(state.rng, message_text.subject, rows, 20)
    )


def text_with_handbook(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text and the handbook."""
    return _text_with_files(state, message_text, state.shared_files[HANDBOOK])


def text_with_photo(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text and the photograph."""
    return _text_with_files(state, message_text, state.shared_files[PHOTO])


def alternative_with_receipt(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text and page, with a document of its own and the usual terms."""
    text_and_html = text_messages.text_and_html(state, message_text)
    parts = (
        mime.attachment_part(part)
        for part in (_receipt_file(state, message_text), state.shared_files[TERMS])
    )
    return mime.multipart_part("mixed", text_and_html, *parts)


def alternative_with_handbook(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text and page, and the handbook."""
    text_and_html = text_messages.text_and_html(state, message_text)
    return mime.multipart_part(
        "mixed", text_and_html, mime.attachment_part(state.shared_files[HANDBOOK])
    )


def html_with_picture_and_photo(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """A page with its picture, and the photograph."""
    return mime.multipart_part(
        "mixed",
        text_messages.html_with_picture(state, message_text),
        mime.attachment_part(state.shared_files[PHOTO]),
    )


def four_levels_with_handbook(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text, or a page with a picture; and the handbook."""
    inside = text_messages.text_and_html_with_picture(state, message_text)
    return mime.multipart_part("mixed", inside, mime.attachment_part(state.shared_files[HANDBOOK]))


def text_with_jpeg(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text and a small photograph of its own."""
    name = f"DSC_{state.rng.randint(0, 9999):04}.JPG"
    return _text_with_files(
        state, message_text, DemoFile(name, "image/jpeg", media.draw_mosaic_jpeg(state.rng))
    )


def text_with_zip(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text and an archive of three files."""
    members = {
        "readme.txt": wrapped_text(message_text).encode(),
        "pictures/pond.jpg": media.draw_mosaic_jpeg(state.rng),
        "pictures/badge.gif": media.draw_badge_gif(state.rng),
    }
    return _text_with_files(
        state,
        message_text,
        DemoFile("pictures.zip", "application/zip", file_formats.create_zip(members)),
    )


def text_with_docx(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text and a word processor's file of the same words."""
    return _text_with_files(
        state,
        message_text,
        DemoFile("Letter.docx", _WORDS, file_formats.create_docx(list(message_text.paragraphs))),
    )


def text_with_odt(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text and an OpenDocument file."""
    kind = "application/vnd.oasis.opendocument.text"
    return _text_with_files(
        state,
        message_text,
        DemoFile("letter.odt", kind, file_formats.create_odt(list(message_text.paragraphs))),
    )


def text_with_inline_csv(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text and an inline CSV table."""
    days = range(1, state.rng.randint(9, 25))
    places = {day: random_words_by_placeholder(state)["place"] for day in days}
    counts = [f"2025-06-{day:02};{places[day]};{state.rng.randint(3, 140)}" for day in days]
    rows = ["date;place;ducks", *counts]
    part = mime.text_part("\n".join(rows) + "\n", "utf-8", "quoted-printable", "text/csv")
    fields = (*part.fields, 'Content-Disposition: inline; filename="count.csv"')
    return mime.multipart_part(
        "mixed", text_messages.unencoded_text(state, message_text), replace(part, fields=fields)
    )


def text_with_inline_patch(state: GeneratorState, message_text: MessageText) -> DemoPart:
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
    part = mime.text_part("\n".join(rows) + "\n", "us-ascii", content_type="text/x-diff")
    fields = (f"Content-Disposition: inline; filename=zone-{number}.patch",)
    return mime.multipart_part(
        "mixed", text_messages.unencoded_text(state, message_text), replace(part, fields=fields)
    )


def text_with_log_files(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text with a log and a settings file."""
    rows = [
        f"12:{at:02}:07 INFO ducks={state.rng.randint(1, 99)}"
        for at in range(state.rng.randint(20, 60))
    ]
    text = DemoFile("server.log", "text/x-log", "\n".join(rows).encode() + b"\n")
    settings = f'{{"ducks": {state.rng.randint(1, 99)}, "pond": "deep"}}\n'.encode()
    return _text_with_files(
        state, message_text, text, DemoFile("settings.json", "application/json", settings)
    )


def text_with_vcard(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text and the sender's card."""
    content = file_formats.create_vcard(message_text.sender.name, message_text.sender.address)
    return _text_with_files(
        state, message_text, DemoFile("card.vcf", "text/vcard; charset=utf-8", content)
    )


def text_with_wav(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text and a sound."""
    return _text_with_files(
        state,
        message_text,
        DemoFile("quack.wav", "audio/x-wav", media.synthesize_quack_wav(state.rng)),
    )


def text_with_avi(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text and a film."""
    return _text_with_files(
        state,
        message_text,
        DemoFile("night.avi", "video/x-msvideo", media.draw_film_avi(state.rng)),
    )


def text_with_svg(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text and a drawing for the browser."""
    return _text_with_files(
        state, message_text, DemoFile("duck.svg", "image/svg+xml", file_formats.duck_svg("#3d7ea6"))
    )


def text_with_html_file(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text and a page that is a file."""
    page = html_pages.newsletter_page(state, message_text, []).encode()
    return _text_with_files(
        state, message_text, DemoFile("page.html", "text/html; charset=utf-8", page)
    )


def text_with_unnamed_file(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text and some bytes without a name."""
    content = mime.base64_lines(state.rng.randbytes(state.rng.randint(100, 3000)))
    fields = ("Content-Transfer-Encoding: base64", "Content-Disposition: attachment")
    unknown = DemoPart("application/octet-stream", content, fields=fields)
    return mime.multipart_part("mixed", text_messages.unencoded_text(state, message_text), unknown)


def text_with_empty_file(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text and a file without content."""
    return _text_with_files(
        state, message_text, DemoFile("empty.txt", "application/octet-stream", b"")
    )


def text_with_many_files(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text and a dozen small files."""
    receipts = [_receipt_file(state, message_text) for _ in range(4)]
    receipts += [
        DemoFile(f"badge-{at}.gif", "image/gif", media.draw_badge_gif(state.rng)) for at in range(5)
    ]
    receipts += [
        DemoFile(f"note {at}.txt", "text/plain", f"Note {at}.\r\n".encode()) for at in range(3)
    ]
    return _text_with_files(state, message_text, *receipts)


def _photo_with_disposition(
    state: GeneratorState,
    message_text: MessageText,
    name: str,
    disposition: tuple[str, tuple[str, ...]],
) -> DemoPart:
    part = mime.attachment_part(replace(state.shared_files[PHOTO], name=name))
    kind, parameters = disposition
    field_text = f"Content-Disposition: {'; '.join((kind, *parameters))}"
    part = replace(part, parameters=(), fields=(field_text, *part.fields[1:]))
    return mime.multipart_part(
        "mixed", text_messages.quoted_printable_text(state, message_text), part
    )


def photo_with_foreign_file_name(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text and a photograph with a name in Greek and Japanese (RFC 2231)."""
    name = f"πάπια-鴨-{state.rng.randint(1, 99)}.png"
    return _photo_with_disposition(
        state, message_text, name, ("attachment", (mime.encode_parameter("filename", name),))
    )


def photo_with_long_file_name(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text and a photograph whose name needs several pieces (RFC 2231 section 3)."""
    name = (
        f"Überraschung am frühen Morgen, {message_text.sender.name} am großen Weiher, mit Enten.png"
    )
    return _photo_with_disposition(
        state, message_text, name, ("attachment", mime.encode_parameter_in_pieces("filename", name))
    )


def photo_with_encoded_word_name(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text and a photograph whose name is an encoded word, which RFC 2047 forbids and many do."""
    name = f"Eiskönigin {state.rng.randint(1, 99)}.png"
    encoded_name = mime.encode_words_unless_ascii(name, "utf-8", "b")
    return _photo_with_disposition(
        state, message_text, name, ("inline", (f'filename="{encoded_name}"',))
    )


def photo_between_texts(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text, a photograph, and more text below it."""
    after = mime.text_part(
        f"That was {random_words_by_placeholder(state)['place']}, as promised.\n", "us-ascii"
    )
    photo = mime.attachment_part(state.shared_files[PHOTO], "inline")
    return mime.multipart_part(
        "mixed", text_messages.unencoded_text(state, message_text), photo, after
    )


def html_around_document(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text, or a page that is cut in two by a document."""
    first = text_messages.html_only(state, message_text)
    last = mime.text_part(
        "<html><body><p>And so on.</p></body></html>\n", "us-ascii", content_type="text/html"
    )
    mixed_part = mime.multipart_part(
        "mixed", first, mime.attachment_part(_receipt_file(state, message_text), "inline"), last
    )
    return mime.multipart_part(
        "alternative", text_messages.quoted_printable_text(state, message_text), mixed_part
    )


def mixed_with_one_part(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """A mixed multipart with one part."""
    return mime.multipart_part("mixed", text_messages.unencoded_text(state, message_text))


def mixed_in_mixed(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """A mixed multipart with a file inside another one with a file."""
    return mime.multipart_part(
        "mixed",
        text_with_jpeg(state, message_text),
        mime.attachment_part(_receipt_file(state, message_text)),
    )


def multipart_with_preamble(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text and a drawing, with words before the first boundary and after the last one."""
    before = "This is a multi-part message in MIME format.\n"
    after = "Whoever reads this has a very honest mail program.\n"
    return replace(text_with_svg(state, message_text), preamble=before, epilogue=after)


def document_only(state: GeneratorState, _: MessageText) -> DemoPart:
    """The handbook without text."""
    return mime.attachment_part(state.shared_files[HANDBOOK])


def picture_only(state: GeneratorState, _: MessageText) -> DemoPart:
    """A photograph without text."""
    return mime.attachment_part(state.shared_files[PHOTO], "inline")


def voice_message(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """A voice message (RFC 3801)."""
    spoken = mime.attachment_part(
        DemoFile("message.wav", "audio/x-wav", media.synthesize_quack_wav(state.rng)), "inline"
    )
    return mime.multipart_part(
        "voice-message", text_messages.unencoded_text(state, message_text), spoken
    )


def parallel_parts(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text, picture and sound in a parallel multipart (RFC 2046 section 5.1.6)."""
    picture = DemoFile("badge.gif", "image/gif", media.draw_badge_gif(state.rng))
    sound_file = DemoFile("quack.wav", "audio/x-wav", media.synthesize_quack_wav(state.rng))
    parts = (mime.attachment_part(part, "inline") for part in (picture, sound_file))
    return mime.multipart_part(
        "parallel", text_messages.unencoded_text(state, message_text), *parts
    )


def appledouble_file(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text and a file in two halves (RFC 1740)."""
    head = mime.base64_lines(b"\0\5\x16\x07\0\2\0\0" + bytes(16) + b"\0\0")
    fields = ("Content-Transfer-Encoding: base64",)
    fork = DemoPart("application/applefile", head, parameters=('name="duck.gif"',), fields=fields)
    picture = mime.attachment_part(
        DemoFile("duck.gif", "image/gif", media.draw_badge_gif(state.rng))
    )
    file_part = mime.multipart_part("appledouble", fork, picture)
    return mime.multipart_part(
        "mixed", text_messages.unencoded_text(state, message_text), file_part
    )


def text_with_tnef(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text and a TNEF file (winmail.dat)."""
    inside = file_formats.create_tnef(
        message_text.subject, "duck.gif", media.draw_badge_gif(state.rng)
    )
    return _text_with_files(
        state, message_text, DemoFile("winmail.dat", "application/ms-tnef", inside)
    )


def form_data(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """The data of a web form (RFC 7578)."""
    text_field = replace(
        text_messages.unencoded_text(state, message_text),
        fields=('Content-Disposition: form-data; name="text"',),
    )
    sender_field = mime.text_part(message_text.sender.address, "us-ascii")
    sender_field = replace(sender_field, fields=('Content-Disposition: form-data; name="from"',))
    return mime.multipart_part("form-data", sender_field, text_field)


def text_with_list_footer(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text with the footer of a mailing list as a second part."""
    footer = (
        "_______________________________________________\n"
        "Python-users mailing list -- python-users@lists.example.org\n"
        "To leave: python-users-leave@lists.example.org\n"
    )
    return mime.multipart_part(
        "mixed",
        text_messages.unencoded_text(state, message_text),
        mime.text_part(footer, "us-ascii"),
    )
