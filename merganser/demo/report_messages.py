"""Messages with reports, signatures, invitations and embedded messages."""

import gzip
from dataclasses import replace
from datetime import timedelta
from email.utils import format_datetime

from merganser.demo import attachment_messages, file_formats, mime, text_messages
from merganser.demo.file_formats import DemoEvent
from merganser.demo.mime import DemoFile, DemoPart
from merganser.demo.text_library import (
    GeneratorState,
    MessageText,
    Person,
    with_charset,
    wrapped_text,
    write_text,
)

_HOST = "mx.merganser.example"
_GENRES = ("family", "pond", "club", "team", "list")


def embedded_message(
    state: GeneratorState,
    message_text: MessageText,
    part: DemoPart | None = None,
    recipient: Person | None = None,
) -> bytes:
    """Serialize a message that is embedded in another one."""
    sent_at = state.current_time - timedelta(
        days=state.rng.randint(0, 40), minutes=state.rng.randint(9, 900)
    )
    recipient, domain = recipient or state.owner, message_text.sender.address.rsplit("@")[-1]
    fields = [
        f"From: {mime.format_mailbox(message_text.sender.name, message_text.sender.address)}",
        f"To: {mime.format_mailbox(recipient.name, recipient.address)}",
        f"Subject: {mime.encode_words_unless_ascii(message_text.subject, 'utf-8')}",
        f"Date: {format_datetime(sent_at)}",
        f"Message-ID: <{state.rng.getrandbits(60):x}@{domain}>",
    ]
    return mime.serialize_message(
        fields,
        part or text_messages.quoted_printable_text(state, message_text),
        _new_boundary_token(state),
    )


def _new_boundary_token(state: GeneratorState) -> str:
    return f"=_inner_{state.rng.getrandbits(48):012x}"


def _other_text(state: GeneratorState) -> MessageText:
    return with_charset(write_text(state, state.rng.choice(_GENRES)), "utf-8")


def text_with_message(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """Build a part of the text and an embedded message with another, random text."""
    return mime.multipart_part(
        "mixed",
        text_messages.unencoded_text(state, message_text),
        mime.message_part(embedded_message(state, _other_text(state))),
    )


def text_with_eml_file(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text and another message, which has the photograph and a name as a file."""
    other = _other_text(state)
    raw = embedded_message(state, other, attachment_messages.text_with_photo(state, other))
    fields = ('Content-Disposition: attachment; filename="forwarded.eml"',)
    return mime.multipart_part(
        "mixed", text_messages.unencoded_text(state, message_text), mime.message_part(raw, fields)
    )


def nested_messages(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """A message in a message in a message."""
    raw = embedded_message(state, _other_text(state))
    for _ in range(2):
        other = _other_text(state)
        body_part = mime.multipart_part(
            "mixed", text_messages.unencoded_text(state, other), mime.message_part(raw)
        )
        raw = embedded_message(state, other, body_part)
    return mime.multipart_part(
        "mixed", text_messages.unencoded_text(state, message_text), mime.message_part(raw)
    )


def text_with_three_messages(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text and three other messages."""
    message_parts = (
        mime.message_part(embedded_message(state, _other_text(state))) for _ in range(3)
    )
    return mime.multipart_part(
        "mixed", text_messages.unencoded_text(state, message_text), *message_parts
    )


def message_only(state: GeneratorState, _: MessageText) -> DemoPart:
    """An embedded message without text."""
    return mime.message_part(embedded_message(state, _other_text(state)))


def multipart_digest(state: GeneratorState, _: MessageText) -> DemoPart:
    """A digest of messages (RFC 2046 section 5.1.5)."""
    count = state.rng.randint(3, 6)
    return mime.multipart_part(
        "digest", *(DemoPart("", embedded_message(state, _other_text(state))) for _ in range(count))
    )


def digest_with_contents_and_footer(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """A digest between a list of contents and a footer."""
    contents = mime.text_part(
        f"Today's topics:\n\n  1. {state.rng.randint(2, 9)} letters\n", "us-ascii"
    )
    end = mime.text_part("End of Python-users Digest\n", "us-ascii")
    return mime.multipart_part("mixed", contents, multipart_digest(state, message_text), end)


def _delivery_status_part(recipient: Person, action: str, status: str) -> DemoPart:
    rows = (
        f"Reporting-MTA: dns; {_HOST}",
        "",
        f"Final-Recipient: rfc822; {recipient.address}",
        f"Action: {action}",
        f"Status: {status}",
    )
    return DemoPart("message/delivery-status", mime.encode_text("\n".join(rows) + "\n", "ascii"))


def _unknown_recipient(state: GeneratorState) -> Person:
    return Person("", f"nobody{state.rng.randint(10, 999)}@example.net")


def _report_part(kind: str, *parts: DemoPart) -> DemoPart:
    return mime.multipart_part("report", *parts, parameters=(f"report-type={kind}",))


def _original_message(state: GeneratorState, recipient: Person) -> bytes:
    own_text = write_text(state, state.rng.choice(_GENRES), "utf-8", state.owner)
    return embedded_message(state, own_text, recipient=recipient)


def dsn_failed(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """A bounce with the whole message (RFC 3464)."""
    unknown_recipient = _unknown_recipient(state)
    body_part = mime.message_part(_original_message(state, unknown_recipient))
    status = _delivery_status_part(unknown_recipient, "failed", "5.1.1")
    return _report_part(
        "delivery-status", text_messages.unencoded_text(state, message_text), status, body_part
    )


def dsn_delayed(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """A DSN about a delay, with the header of the message (RFC 3464)."""
    unknown_recipient = _unknown_recipient(state)
    header = _original_message(state, unknown_recipient).split(b"\r\n\r\n")[0] + b"\r\n"
    top = DemoPart("text/rfc822-headers", header)
    status = _delivery_status_part(unknown_recipient, "delayed", "4.4.1")
    return _report_part(
        "delivery-status", text_messages.unencoded_text(state, message_text), status, top
    )


def dsn_delivered(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """A DSN about a successful delivery, without the message (RFC 3464)."""
    status = _delivery_status_part(_unknown_recipient(state), "delivered", "2.0.0")
    return _report_part(
        "delivery-status", text_messages.unencoded_text(state, message_text), status
    )


def disposition_notification(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """A message disposition notification (RFC 8098)."""
    rows = (
        "Reporting-UA: duckmail; paddle 2",
        f"Final-Recipient: rfc822;{message_text.sender.address}",
        f"Original-Message-ID: <{state.rng.getrandbits(60):x}@merganser.example>",
        "Disposition: manual-action/MDN-sent-manually; displayed",
    )
    body = mime.encode_text("\n".join(rows) + "\n", "ascii")
    notification = DemoPart("message/disposition-notification", body)
    return _report_part(
        "disposition-notification", text_messages.unencoded_text(state, message_text), notification
    )


def abuse_report(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """A complaint about a message (RFC 5965)."""
    rows = (
        "Feedback-Type: abuse",
        "User-Agent: pond-feedback/1.0",
        "Version: 1",
        f"Original-Mail-From: <{state.owner.address}>",
    )
    report_part = DemoPart(
        "message/feedback-report", mime.encode_text("\n".join(rows) + "\n", "ascii")
    )
    body_part = mime.message_part(_original_message(state, _unknown_recipient(state)))
    return _report_part(
        "feedback-report", text_messages.unencoded_text(state, message_text), report_part, body_part
    )


def dmarc_report(state: GeneratorState, _: MessageText) -> DemoPart:
    """An aggregate report and nothing else (RFC 7489)."""
    number = state.rng.randint(1, 99999)
    content = f"<feedback><report_id>{number}</report_id><count>{number % 90}</count></feedback>\n"
    packed = gzip.compress(content.encode(), mtime=0)
    name = f"example.org!merganser.example!{number}.xml.gz"
    return mime.attachment_part(DemoFile(name, "application/gzip", packed))


def tls_report(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """A TLS report (RFC 8460)."""
    content = f'{{"organization-name": "Pond", "count": {state.rng.randint(1, 9999)}}}'
    packed = gzip.compress(content.encode(), mtime=0)
    report = mime.attachment_part(DemoFile("report.json.gz", "application/tlsrpt+gzip", packed))
    return _report_part("tlsrpt", text_messages.unencoded_text(state, message_text), report)


def _signed_part(inside: DemoPart, protocol: str, micalg: str, signature: DemoPart) -> DemoPart:
    parameters = (mime.encode_parameter("protocol", protocol), f"micalg={micalg}")
    return mime.multipart_part("signed", inside, signature, parameters=parameters)


def _pgp_signature_part(state: GeneratorState) -> DemoPart:
    body = mime.encode_text(file_formats.pgp_armor("SIGNATURE", state.rng.randbytes(180)), "ascii")
    fields = ("Content-Description: OpenPGP digital signature",)
    parameters = ('name="signature.asc"',)
    return DemoPart("application/pgp-signature", body, parameters=parameters, fields=fields)


def pgp_signed_text(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text with an OpenPGP signature (RFC 3156)."""
    inside = text_messages.quoted_printable_text(state, message_text)
    return _signed_part(
        inside, "application/pgp-signature", "pgp-sha256", _pgp_signature_part(state)
    )


def pgp_signed_text_with_handbook(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text and the handbook, signed together."""
    inside = attachment_messages.text_with_handbook(state, message_text)
    return _signed_part(
        inside, "application/pgp-signature", "pgp-sha512", _pgp_signature_part(state)
    )


def smime_signed_text(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text and page with an S/MIME signature (RFC 8551)."""
    kind = "application/pkcs7-signature"
    seal = mime.attachment_part(
        DemoFile("smime.p7s", kind, file_formats.fake_pkcs7(state.rng, 1400))
    )
    return _signed_part(text_messages.text_and_html(state, message_text), kind, "sha-256", seal)


def pgp_encrypted_message(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """A message encrypted by OpenPGP (RFC 3156)."""
    version = DemoPart("application/pgp-encrypted", b"Version: 1\r\n")
    size = 300 + len(wrapped_text(message_text))
    hidden = mime.encode_text(file_formats.pgp_armor("MESSAGE", state.rng.randbytes(size)), "ascii")
    parameters = ('name="encrypted.asc"',)
    secret = DemoPart("application/octet-stream", hidden, parameters=parameters)
    content_parameters = ('protocol="application/pgp-encrypted"',)
    return mime.multipart_part("encrypted", version, secret, parameters=content_parameters)


def smime_encrypted_message(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """A message encrypted by S/MIME (RFC 8551)."""
    content = file_formats.fake_pkcs7(state.rng, 500 + len(wrapped_text(message_text)))
    part = mime.attachment_part(DemoFile("smime.p7m", "application/pkcs7-mime", content))
    return replace(part, parameters=("smime-type=enveloped-data", *part.parameters))


def _calendar_file(state: GeneratorState, message_text: MessageText, method: str) -> bytes:
    start = state.current_time.replace(minute=0, second=0, microsecond=0)
    people = (message_text.sender.address, state.owner.address)
    event = DemoEvent(
        method=method,
        uid=f"{state.rng.getrandbits(48):012x}@kingfisher.example",
        summary=message_text.subject,
        stamp=state.current_time,
        start=start + timedelta(hours=state.rng.randint(30, 500)),
        organizer=people[1] if method == "REPLY" else people[0],
        attendee=people[0] if method == "REPLY" else people[1],
        place="The room above the bakery, with the round table",
        sequence=1 if method == "CANCEL" else 0,
    )
    return file_formats.create_calendar(event)


def _calendar_part(content: bytes, method: str) -> DemoPart:
    encoding = "quoted-printable"
    part = mime.text_part(content.decode(), "utf-8", encoding, "text/calendar")
    return replace(part, parameters=(*part.parameters, f"method={method}"))


def invitation_with_file(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text, page or event; and the event again as a file."""
    content = _calendar_file(state, message_text, "REQUEST")
    page = text_messages.html_only(state, message_text)
    choice = (
        text_messages.unencoded_text(state, message_text),
        page,
        _calendar_part(content, "REQUEST"),
    )
    extra = mime.attachment_part(DemoFile("invite.ics", "application/ics", content))
    return mime.multipart_part("mixed", mime.multipart_part("alternative", *choice), extra)


def text_with_invitation(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """The text, with an invitation to an event as its alternative."""
    sheet = _calendar_part(_calendar_file(state, message_text, "REQUEST"), "REQUEST")
    return mime.multipart_part(
        "alternative", text_messages.unencoded_text(state, message_text), sheet
    )


def cancellation(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """An event that does not take place."""
    sheet = _calendar_part(_calendar_file(state, message_text, "CANCEL"), "CANCEL")
    page = text_messages.html_only(state, message_text)
    return mime.multipart_part(
        "alternative", text_messages.unencoded_text(state, message_text), page, sheet
    )


def invitation_reply(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """An answer to an invitation."""
    sheet = _calendar_part(_calendar_file(state, message_text, "REPLY"), "REPLY")
    return mime.multipart_part("mixed", text_messages.unencoded_text(state, message_text), sheet)


def event_only(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """An event without text."""
    return _calendar_part(_calendar_file(state, message_text, "REQUEST"), "REQUEST")


def text_with_event_file(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text and an event as a file."""
    content = _calendar_file(state, message_text, "PUBLISH")
    extra = mime.attachment_part(DemoFile("dates.ics", "text/calendar", content))
    return mime.multipart_part("mixed", text_messages.unencoded_text(state, message_text), extra)


def text_with_external_body(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """Text and a reference to a file on another server (RFC 2046 section 5.2.3)."""
    number = state.rng.randint(1, 9999)
    parameters = (
        "access-type=URL",
        f'URL="http://example.com/big/{number}.tar.gz"',
        f"size={number}",
    )
    body = (
        "Content-Type: application/gzip\r\nContent-ID: "
        f"<{text_messages.new_content_id(state, 'big')}>\r\n\r\n"
    )
    external_part = DemoPart("message/external-body", body.encode(), parameters=parameters)
    return mime.multipart_part(
        "mixed", text_messages.unencoded_text(state, message_text), external_part
    )


def partial_message(state: GeneratorState, message_text: MessageText) -> DemoPart:
    """The first third of a message, with its header (RFC 2046 section 5.2.2)."""
    parameters = ("number=1", "total=3", f'id="{state.rng.getrandbits(40):x}@example.com"')
    body = embedded_message(state, with_charset(message_text, "utf-8"))
    return DemoPart("message/partial", body, parameters=parameters)
