"""Shapes with rules: reports, signatures, invitations, and letters within letters."""

import gzip
from dataclasses import replace
from datetime import timedelta
from email.utils import format_datetime

from merganser.demo import attachment_messages, file_formats, mime, text_messages
from merganser.demo.file_formats import Event
from merganser.demo.mime import File, Part
from merganser.demo.text_library import Desk, Note, Person, plain, with_charset, write

_HOST = "mx.merganser.example"
_GENRES = ("family", "pond", "club", "team", "list")


def inner(desk: Desk, note: Note, part: Part | None = None, to: Person | None = None) -> bytes:
    """Write a note as a letter of its own, to lie within another."""
    when = desk.when - timedelta(days=desk.rng.randint(0, 40), minutes=desk.rng.randint(9, 900))
    to = to or desk.owner
    fields = [
        f"From: {mime.mailbox(note.sender.name, note.sender.address)}",
        f"To: {mime.mailbox(to.name, to.address)}",
        f"Subject: {mime.words(note.subject, 'utf-8')}",
        f"Date: {format_datetime(when)}",
        f"Message-ID: <{desk.rng.getrandbits(60):x}@{note.sender.address.rsplit('@')[-1]}>",
    ]
    return mime.letter(fields, part or text_messages.quoted(desk, note), _token(desk))


def _token(desk: Desk) -> str:
    return f"=_inner_{desk.rng.getrandbits(48):012x}"


def _other(desk: Desk) -> Note:
    return with_charset(write(desk, desk.rng.choice(_GENRES)), "utf-8")


def forward(desk: Desk, note: Note) -> Part:
    """Text and another letter."""
    return mime.multipart(
        "mixed", text_messages.as_is(desk, note), mime.rfc822(inner(desk, _other(desk)))
    )


def forward_file(desk: Desk, note: Note) -> Part:
    """Text and another letter, which has the photograph and a name as a file."""
    other = _other(desk)
    raw = inner(desk, other, attachment_messages.photo(desk, other))
    named = ('Content-Disposition: attachment; filename="forwarded.eml"',)
    return mime.multipart("mixed", text_messages.as_is(desk, note), mime.rfc822(raw, named))


def forward_nested(desk: Desk, note: Note) -> Part:
    """A letter in a letter in a letter."""
    raw = inner(desk, _other(desk))
    for _ in range(2):
        other = _other(desk)
        whole = mime.multipart("mixed", text_messages.as_is(desk, other), mime.rfc822(raw))
        raw = inner(desk, other, whole)
    return mime.multipart("mixed", text_messages.as_is(desk, note), mime.rfc822(raw))


def forward_several(desk: Desk, note: Note) -> Part:
    """Text and three other letters."""
    letters = (mime.rfc822(inner(desk, _other(desk))) for _ in range(3))
    return mime.multipart("mixed", text_messages.as_is(desk, note), *letters)


def forward_bare(desk: Desk, _: Note) -> Part:
    """A letter that is nothing but another letter."""
    return mime.rfc822(inner(desk, _other(desk)))


def digest(desk: Desk, _: Note) -> Part:
    """Some letters in one (RFC 2046 section 5.1.5)."""
    count = desk.rng.randint(3, 6)
    return mime.multipart("digest", *(Part("", inner(desk, _other(desk))) for _ in range(count)))


def digest_framed(desk: Desk, note: Note) -> Part:
    """A digest between a list of contents and a footer."""
    contents = mime.text(f"Today's topics:\n\n  1. {desk.rng.randint(2, 9)} letters\n", "us-ascii")
    end = mime.text("End of Python-users Digest\n", "us-ascii")
    return mime.multipart("mixed", contents, digest(desk, note), end)


def _status(to: Person, action: str, status: str) -> Part:
    rows = (
        f"Reporting-MTA: dns; {_HOST}",
        "",
        f"Final-Recipient: rfc822; {to.address}",
        f"Action: {action}",
        f"Status: {status}",
    )
    return Part("message/delivery-status", mime.plain_bytes("\n".join(rows) + "\n", "ascii"))


def _stranger(desk: Desk) -> Person:
    return Person("", f"nobody{desk.rng.randint(10, 999)}@example.net")


def _report(kind: str, *parts: Part) -> Part:
    return mime.multipart("report", *parts, parameters=(f"report-type={kind}",))


def _returned(desk: Desk, to: Person) -> bytes:
    mine = write(desk, desk.rng.choice(_GENRES), "utf-8", desk.owner)
    return inner(desk, mine, to=to)


def dsn_failed(desk: Desk, note: Note) -> Part:
    """A bounce with the whole letter (RFC 3464)."""
    to = _stranger(desk)
    whole = mime.rfc822(_returned(desk, to))
    status = _status(to, "failed", "5.1.1")
    return _report("delivery-status", text_messages.as_is(desk, note), status, whole)


def dsn_delayed(desk: Desk, note: Note) -> Part:
    """Word of a delay, with the header of the letter."""
    to = _stranger(desk)
    header = _returned(desk, to).split(b"\r\n\r\n")[0] + b"\r\n"
    top = Part("text/rfc822-headers", header)
    status = _status(to, "delayed", "4.4.1")
    return _report("delivery-status", text_messages.as_is(desk, note), status, top)


def dsn_delivered(desk: Desk, note: Note) -> Part:
    """Word that a letter has arrived, without it."""
    status = _status(_stranger(desk), "delivered", "2.0.0")
    return _report("delivery-status", text_messages.as_is(desk, note), status)


def mdn(desk: Desk, note: Note) -> Part:
    """Word that a letter was read (RFC 8098)."""
    rows = (
        "Reporting-UA: duckmail; paddle 2",
        f"Final-Recipient: rfc822;{note.sender.address}",
        f"Original-Message-ID: <{desk.rng.getrandbits(60):x}@merganser.example>",
        "Disposition: manual-action/MDN-sent-manually; displayed",
    )
    body = mime.plain_bytes("\n".join(rows) + "\n", "ascii")
    word = Part("message/disposition-notification", body)
    return _report("disposition-notification", text_messages.as_is(desk, note), word)


def complaint(desk: Desk, note: Note) -> Part:
    """A complaint about a letter (RFC 5965)."""
    rows = (
        "Feedback-Type: abuse",
        "User-Agent: pond-feedback/1.0",
        "Version: 1",
        f"Original-Mail-From: <{desk.owner.address}>",
    )
    word = Part("message/feedback-report", mime.plain_bytes("\n".join(rows) + "\n", "ascii"))
    whole = mime.rfc822(_returned(desk, _stranger(desk)))
    return _report("feedback-report", text_messages.as_is(desk, note), word, whole)


def dmarc(desk: Desk, _: Note) -> Part:
    """An aggregate report and nothing else (RFC 7489)."""
    number = desk.rng.randint(1, 99999)
    content = f"<feedback><report_id>{number}</report_id><count>{number % 90}</count></feedback>\n"
    packed = gzip.compress(content.encode(), mtime=0)
    name = f"example.org!merganser.example!{number}.xml.gz"
    return mime.attachment(File(name, "application/gzip", packed))


def tls_report(desk: Desk, note: Note) -> Part:
    """How often TLS went well (RFC 8460)."""
    content = f'{{"organization-name": "Pond", "count": {desk.rng.randint(1, 9999)}}}'
    packed = gzip.compress(content.encode(), mtime=0)
    report = mime.attachment(File("report.json.gz", "application/tlsrpt+gzip", packed))
    return _report("tlsrpt", text_messages.as_is(desk, note), report)


def _signed(inside: Part, protocol: str, micalg: str, seal: Part) -> Part:
    about = (mime.parameter("protocol", protocol), f"micalg={micalg}")
    return mime.multipart("signed", inside, seal, parameters=about)


def _pgp_seal(desk: Desk) -> Part:
    body = mime.plain_bytes(file_formats.armor("SIGNATURE", desk.rng.randbytes(180)), "ascii")
    fields = ("Content-Description: OpenPGP digital signature",)
    named = ('name="signature.asc"',)
    return Part("application/pgp-signature", body, parameters=named, fields=fields)


def signed_pgp(desk: Desk, note: Note) -> Part:
    """Text with an OpenPGP signature (RFC 3156)."""
    inside = text_messages.quoted(desk, note)
    return _signed(inside, "application/pgp-signature", "pgp-sha256", _pgp_seal(desk))


def signed_mixed(desk: Desk, note: Note) -> Part:
    """Text and the handbook, signed together."""
    inside = attachment_messages.handbook(desk, note)
    return _signed(inside, "application/pgp-signature", "pgp-sha512", _pgp_seal(desk))


def signed_smime(desk: Desk, note: Note) -> Part:
    """Text and page with an S/MIME signature (RFC 8551)."""
    kind = "application/pkcs7-signature"
    seal = mime.attachment(File("smime.p7s", kind, file_formats.pkcs7(desk.rng, 1400)))
    return _signed(text_messages.alternative(desk, note), kind, "sha-256", seal)


def encrypted_pgp(desk: Desk, note: Note) -> Part:
    """Something for the holder of an OpenPGP key (RFC 3156)."""
    version = Part("application/pgp-encrypted", b"Version: 1\r\n")
    size = 300 + len(plain(note))
    hidden = mime.plain_bytes(file_formats.armor("MESSAGE", desk.rng.randbytes(size)), "ascii")
    named = ('name="encrypted.asc"',)
    secret = Part("application/octet-stream", hidden, parameters=named)
    about = ('protocol="application/pgp-encrypted"',)
    return mime.multipart("encrypted", version, secret, parameters=about)


def encrypted_smime(desk: Desk, note: Note) -> Part:
    """Something for the holder of an S/MIME key."""
    content = file_formats.pkcs7(desk.rng, 500 + len(plain(note)))
    part = mime.attachment(File("smime.p7m", "application/pkcs7-mime", content))
    return replace(part, parameters=("smime-type=enveloped-data", *part.parameters))


def _event(desk: Desk, note: Note, method: str) -> bytes:
    when = desk.when.replace(minute=0, second=0, microsecond=0)
    people = (note.sender.address, desk.owner.address)
    event = Event(
        method=method,
        uid=f"{desk.rng.getrandbits(48):012x}@kingfisher.example",
        summary=note.subject,
        stamp=desk.when,
        start=when + timedelta(hours=desk.rng.randint(30, 500)),
        organizer=people[1] if method == "REPLY" else people[0],
        attendee=people[0] if method == "REPLY" else people[1],
        place="The room above the bakery, with the round table",
        sequence=1 if method == "CANCEL" else 0,
    )
    return file_formats.calendar(event)


def _sheet(content: bytes, method: str) -> Part:
    encoding = "quoted-printable"
    part = mime.text(content.decode(), "utf-8", encoding, "text/calendar")
    return replace(part, parameters=(*part.parameters, f"method={method}"))


def invite(desk: Desk, note: Note) -> Part:
    """Text, page or event; and the event again as a file."""
    content = _event(desk, note, "REQUEST")
    page = text_messages.html_only(desk, note)
    choice = (text_messages.as_is(desk, note), page, _sheet(content, "REQUEST"))
    extra = mime.attachment(File("invite.ics", "application/ics", content))
    return mime.multipart("mixed", mime.multipart("alternative", *choice), extra)


def invite_alternative(desk: Desk, note: Note) -> Part:
    """Text or event."""
    sheet = _sheet(_event(desk, note, "REQUEST"), "REQUEST")
    return mime.multipart("alternative", text_messages.as_is(desk, note), sheet)


def cancel(desk: Desk, note: Note) -> Part:
    """An event that does not take place."""
    sheet = _sheet(_event(desk, note, "CANCEL"), "CANCEL")
    page = text_messages.html_only(desk, note)
    return mime.multipart("alternative", text_messages.as_is(desk, note), page, sheet)


def accept(desk: Desk, note: Note) -> Part:
    """An answer to an invitation."""
    sheet = _sheet(_event(desk, note, "REPLY"), "REPLY")
    return mime.multipart("mixed", text_messages.as_is(desk, note), sheet)


def event_only(desk: Desk, note: Note) -> Part:
    """An event and no word about it."""
    return _sheet(_event(desk, note, "REQUEST"), "REQUEST")


def event_file(desk: Desk, note: Note) -> Part:
    """Text and an event as a file."""
    content = _event(desk, note, "PUBLISH")
    extra = mime.attachment(File("dates.ics", "text/calendar", content))
    return mime.multipart("mixed", text_messages.as_is(desk, note), extra)


def elsewhere(desk: Desk, note: Note) -> Part:
    """Text and a file that lies elsewhere (RFC 2046 section 5.2.3)."""
    number = desk.rng.randint(1, 9999)
    about = ("access-type=URL", f'URL="http://example.com/big/{number}.tar.gz"', f"size={number}")
    body = (
        f"Content-Type: application/gzip\r\nContent-ID: <{text_messages.cid(desk, 'big')}>\r\n\r\n"
    )
    far = Part("message/external-body", body.encode(), parameters=about)
    return mime.multipart("mixed", text_messages.as_is(desk, note), far)


def partial(desk: Desk, note: Note) -> Part:
    """The first third of a letter, with that letter's header in it (RFC 2046 section 5.2.2)."""
    about = ("number=1", "total=3", f'id="{desk.rng.getrandbits(40):x}@example.com"')
    body = inner(desk, with_charset(note, "utf-8"))
    return Part("message/partial", body, parameters=about)
