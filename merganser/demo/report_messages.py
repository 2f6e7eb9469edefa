"""Messages with reports, signatures, invitations and embedded messages."""

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


def inner(
    state: Desk, message_text: Note, part: Part | None = None, to: Person | None = None
) -> bytes:
    """Serialize a message that is embedded in another one."""
    when = state.when - timedelta(days=state.rng.randint(0, 40), minutes=state.rng.randint(9, 900))
    to, domain = to or state.owner, message_text.sender.address.rsplit("@")[-1]
    fields = [
        f"From: {mime.mailbox(message_text.sender.name, message_text.sender.address)}",
        f"To: {mime.mailbox(to.name, to.address)}",
        f"Subject: {mime.words(message_text.subject, 'utf-8')}",
        f"Date: {format_datetime(when)}",
        f"Message-ID: <{state.rng.getrandbits(60):x}@{domain}>",
    ]
    return mime.letter(fields, part or text_messages.quoted(state, message_text), _token(state))


def _token(state: Desk) -> str:
    return f"=_inner_{state.rng.getrandbits(48):012x}"


def _other(state: Desk) -> Note:
    return with_charset(write(state, state.rng.choice(_GENRES)), "utf-8")


def forward(state: Desk, message_text: Note) -> Part:
    """Text and another message."""
    return mime.multipart(
        "mixed", text_messages.as_is(state, message_text), mime.rfc822(inner(state, _other(state)))
    )


def forward_file(state: Desk, message_text: Note) -> Part:
    """Text and another message, which has the photograph and a name as a file."""
    other = _other(state)
    raw = inner(state, other, attachment_messages.photo(state, other))
    named = ('Content-Disposition: attachment; filename="forwarded.eml"',)
    return mime.multipart(
        "mixed", text_messages.as_is(state, message_text), mime.rfc822(raw, named)
    )


def forward_nested(state: Desk, message_text: Note) -> Part:
    """A message in a message in a message."""
    raw = inner(state, _other(state))
    for _ in range(2):
        other = _other(state)
        whole = mime.multipart("mixed", text_messages.as_is(state, other), mime.rfc822(raw))
        raw = inner(state, other, whole)
    return mime.multipart("mixed", text_messages.as_is(state, message_text), mime.rfc822(raw))


def forward_several(state: Desk, message_text: Note) -> Part:
    """Text and three other messages."""
    letters = (mime.rfc822(inner(state, _other(state))) for _ in range(3))
    return mime.multipart("mixed", text_messages.as_is(state, message_text), *letters)


def forward_bare(state: Desk, _: Note) -> Part:
    """An embedded message without text."""
    return mime.rfc822(inner(state, _other(state)))


def digest(state: Desk, _: Note) -> Part:
    """A digest of messages (RFC 2046 section 5.1.5)."""
    count = state.rng.randint(3, 6)
    return mime.multipart("digest", *(Part("", inner(state, _other(state))) for _ in range(count)))


def digest_framed(state: Desk, message_text: Note) -> Part:
    """A digest between a list of contents and a footer."""
    contents = mime.text(f"Today's topics:\n\n  1. {state.rng.randint(2, 9)} letters\n", "us-ascii")
    end = mime.text("End of Python-users Digest\n", "us-ascii")
    return mime.multipart("mixed", contents, digest(state, message_text), end)


def _status(to: Person, action: str, status: str) -> Part:
    rows = (
        f"Reporting-MTA: dns; {_HOST}",
        "",
        f"Final-Recipient: rfc822; {to.address}",
        f"Action: {action}",
        f"Status: {status}",
    )
    return Part("message/delivery-status", mime.plain_bytes("\n".join(rows) + "\n", "ascii"))


def _stranger(state: Desk) -> Person:
    return Person("", f"nobody{state.rng.randint(10, 999)}@example.net")


def _report(kind: str, *parts: Part) -> Part:
    return mime.multipart("report", *parts, parameters=(f"report-type={kind}",))


def _returned(state: Desk, to: Person) -> bytes:
    mine = write(state, state.rng.choice(_GENRES), "utf-8", state.owner)
    return inner(state, mine, to=to)


def dsn_failed(state: Desk, message_text: Note) -> Part:
    """A bounce with the whole message (RFC 3464)."""
    to = _stranger(state)
    whole = mime.rfc822(_returned(state, to))
    status = _status(to, "failed", "5.1.1")
    return _report("delivery-status", text_messages.as_is(state, message_text), status, whole)


def dsn_delayed(state: Desk, message_text: Note) -> Part:
    """A DSN about a delay, with the header of the message (RFC 3464)."""
    to = _stranger(state)
    header = _returned(state, to).split(b"\r\n\r\n")[0] + b"\r\n"
    top = Part("text/rfc822-headers", header)
    status = _status(to, "delayed", "4.4.1")
    return _report("delivery-status", text_messages.as_is(state, message_text), status, top)


def dsn_delivered(state: Desk, message_text: Note) -> Part:
    """A DSN about a successful delivery, without the message (RFC 3464)."""
    status = _status(_stranger(state), "delivered", "2.0.0")
    return _report("delivery-status", text_messages.as_is(state, message_text), status)


def mdn(state: Desk, message_text: Note) -> Part:
    """A message disposition notification (RFC 8098)."""
    rows = (
        "Reporting-UA: duckmail; paddle 2",
        f"Final-Recipient: rfc822;{message_text.sender.address}",
        f"Original-Message-ID: <{state.rng.getrandbits(60):x}@merganser.example>",
        "Disposition: manual-action/MDN-sent-manually; displayed",
    )
    body = mime.plain_bytes("\n".join(rows) + "\n", "ascii")
    word = Part("message/disposition-notification", body)
    return _report("disposition-notification", text_messages.as_is(state, message_text), word)


def complaint(state: Desk, message_text: Note) -> Part:
    """A complaint about a message (RFC 5965)."""
    rows = (
        "Feedback-Type: abuse",
        "User-Agent: pond-feedback/1.0",
        "Version: 1",
        f"Original-Mail-From: <{state.owner.address}>",
    )
    word = Part("message/feedback-report", mime.plain_bytes("\n".join(rows) + "\n", "ascii"))
    whole = mime.rfc822(_returned(state, _stranger(state)))
    return _report("feedback-report", text_messages.as_is(state, message_text), word, whole)


def dmarc(state: Desk, _: Note) -> Part:
    """An aggregate report and nothing else (RFC 7489)."""
    number = state.rng.randint(1, 99999)
    content = f"<feedback><report_id>{number}</report_id><count>{number % 90}</count></feedback>\n"
    packed = gzip.compress(content.encode(), mtime=0)
    name = f"example.org!merganser.example!{number}.xml.gz"
    return mime.attachment(File(name, "application/gzip", packed))


def tls_report(state: Desk, message_text: Note) -> Part:
    """A TLS report (RFC 8460)."""
    content = f'{{"organization-name": "Pond", "count": {state.rng.randint(1, 9999)}}}'
    packed = gzip.compress(content.encode(), mtime=0)
    report = mime.attachment(File("report.json.gz", "application/tlsrpt+gzip", packed))
    return _report("tlsrpt", text_messages.as_is(state, message_text), report)


def _signed(inside: Part, protocol: str, micalg: str, seal: Part) -> Part:
    about = (mime.parameter("protocol", protocol), f"micalg={micalg}")
    return mime.multipart("signed", inside, seal, parameters=about)


def _pgp_seal(state: Desk) -> Part:
    body = mime.plain_bytes(file_formats.armor("SIGNATURE", state.rng.randbytes(180)), "ascii")
    fields = ("Content-Description: OpenPGP digital signature",)
    named = ('name="signature.asc"',)
    return Part("application/pgp-signature", body, parameters=named, fields=fields)


def signed_pgp(state: Desk, message_text: Note) -> Part:
    """Text with an OpenPGP signature (RFC 3156)."""
    inside = text_messages.quoted(state, message_text)
    return _signed(inside, "application/pgp-signature", "pgp-sha256", _pgp_seal(state))


def signed_mixed(state: Desk, message_text: Note) -> Part:
    """Text and the handbook, signed together."""
    inside = attachment_messages.handbook(state, message_text)
    return _signed(inside, "application/pgp-signature", "pgp-sha512", _pgp_seal(state))


def signed_smime(state: Desk, message_text: Note) -> Part:
    """Text and page with an S/MIME signature (RFC 8551)."""
    kind = "application/pkcs7-signature"
    seal = mime.attachment(File("smime.p7s", kind, file_formats.pkcs7(state.rng, 1400)))
    return _signed(text_messages.alternative(state, message_text), kind, "sha-256", seal)


def encrypted_pgp(state: Desk, message_text: Note) -> Part:
    """A message encrypted by OpenPGP (RFC 3156)."""
    version = Part("application/pgp-encrypted", b"Version: 1\r\n")
    size = 300 + len(plain(message_text))
    hidden = mime.plain_bytes(file_formats.armor("MESSAGE", state.rng.randbytes(size)), "ascii")
    named = ('name="encrypted.asc"',)
    secret = Part("application/octet-stream", hidden, parameters=named)
    about = ('protocol="application/pgp-encrypted"',)
    return mime.multipart("encrypted", version, secret, parameters=about)


def encrypted_smime(state: Desk, message_text: Note) -> Part:
    """A message encrypted by S/MIME (RFC 8551)."""
    content = file_formats.pkcs7(state.rng, 500 + len(plain(message_text)))
    part = mime.attachment(File("smime.p7m", "application/pkcs7-mime", content))
    return replace(part, parameters=("smime-type=enveloped-data", *part.parameters))


def _event(state: Desk, message_text: Note, method: str) -> bytes:
    when = state.when.replace(minute=0, second=0, microsecond=0)
    people = (message_text.sender.address, state.owner.address)
    event = Event(
        method=method,
        uid=f"{state.rng.getrandbits(48):012x}@kingfisher.example",
        summary=message_text.subject,
        stamp=state.when,
        start=when + timedelta(hours=state.rng.randint(30, 500)),
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


def invite(state: Desk, message_text: Note) -> Part:
    """Text, page or event; and the event again as a file."""
    content = _event(state, message_text, "REQUEST")
    page = text_messages.html_only(state, message_text)
    choice = (text_messages.as_is(state, message_text), page, _sheet(content, "REQUEST"))
    extra = mime.attachment(File("invite.ics", "application/ics", content))
    return mime.multipart("mixed", mime.multipart("alternative", *choice), extra)


def invite_alternative(state: Desk, message_text: Note) -> Part:
    """Text or event."""
    sheet = _sheet(_event(state, message_text, "REQUEST"), "REQUEST")
    return mime.multipart("alternative", text_messages.as_is(state, message_text), sheet)


def cancel(state: Desk, message_text: Note) -> Part:
    """An event that does not take place."""
    sheet = _sheet(_event(state, message_text, "CANCEL"), "CANCEL")
    page = text_messages.html_only(state, message_text)
    return mime.multipart("alternative", text_messages.as_is(state, message_text), page, sheet)


def accept(state: Desk, message_text: Note) -> Part:
    """An answer to an invitation."""
    sheet = _sheet(_event(state, message_text, "REPLY"), "REPLY")
    return mime.multipart("mixed", text_messages.as_is(state, message_text), sheet)


def event_only(state: Desk, message_text: Note) -> Part:
    """An event without text."""
    return _sheet(_event(state, message_text, "REQUEST"), "REQUEST")


def event_file(state: Desk, message_text: Note) -> Part:
    """Text and an event as a file."""
    content = _event(state, message_text, "PUBLISH")
    extra = mime.attachment(File("dates.ics", "text/calendar", content))
    return mime.multipart("mixed", text_messages.as_is(state, message_text), extra)


def elsewhere(state: Desk, message_text: Note) -> Part:
    """Text and a reference to a file on another server (RFC 2046 section 5.2.3)."""
    number = state.rng.randint(1, 9999)
    about = ("access-type=URL", f'URL="http://example.com/big/{number}.tar.gz"', f"size={number}")
    body = (
        f"Content-Type: application/gzip\r\nContent-ID: <{text_messages.cid(state, 'big')}>\r\n\r\n"
    )
    far = Part("message/external-body", body.encode(), parameters=about)
    return mime.multipart("mixed", text_messages.as_is(state, message_text), far)


def partial(state: Desk, message_text: Note) -> Part:
    """The first third of a message, with its header (RFC 2046 section 5.2.2)."""
    about = ("number=1", "total=3", f'id="{state.rng.getrandbits(40):x}@example.com"')
    body = inner(state, with_charset(message_text, "utf-8"))
    return Part("message/partial", body, parameters=about)
