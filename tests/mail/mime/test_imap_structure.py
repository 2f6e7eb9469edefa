"""IMAP ENVELOPE and BODYSTRUCTURE of a message."""

from mail.mime import facts_from_message_bytes, imap_bodystructure, imap_envelope, parse_structure

RAW_MESSAGE = b"""\
Date: Tue, 1 Jan 2030 10:00:00 +0100
Subject: say "hi" \xc3\xa4
From: =?utf-8?q?=C3=84?= <a@xn--bcher-kva.example>
To: b@example.com, Group: c@example.com;
Message-ID: <m@x>
Content-Type: multipart/mixed; boundary=x

--x
Content-Type: text/plain; charset=utf-8

one
two
--x
Content-Type: message/rfc822
Content-Disposition: attachment; filename=m.eml

Subject: inner

hi
--x--
"""
SENDER = '(("=?utf-8?b?w4Q=?=" NIL "a" "xn--bcher-kva.example"))'


def test_envelope_has_ten_fields() -> None:
    assert imap_envelope(RAW_MESSAGE, parse_structure(RAW_MESSAGE)) == (
        '("Tue, 1 Jan 2030 10:00:00 +0100" "=?utf-8?b?c2F5ICJoaSIgw6Q=?="'
        f' {SENDER} {SENDER} {SENDER} ((NIL NIL "b" "example.com")(NIL NIL "c" "example.com"))'
        ' NIL NIL NIL "<m@x>")'
    )


def test_bodystructure_lists_every_part() -> None:
    inner_structure = (
        '(NIL "inner" NIL NIL NIL NIL NIL NIL NIL NIL) ("text" "plain" NIL NIL NIL "7bit" 2 0'
    )
    assert imap_bodystructure(RAW_MESSAGE, facts_from_message_bytes(RAW_MESSAGE).structure) == (
        '(("text" "plain" ("charset" "utf-8") NIL NIL "7bit" 7 1 NIL NIL NIL NIL)'
        f'("message" "rfc822" NIL NIL NIL "7bit" 18 {inner_structure} NIL NIL NIL NIL) 2'
        ' NIL ("attachment" ("filename" "m.eml")) NIL NIL)'
        ' "mixed" ("boundary" "x") NIL NIL NIL)'
    )
    assert imap_bodystructure(RAW_MESSAGE, parse_structure(RAW_MESSAGE), extended=False).endswith(
        f'{inner_structure}) 2) "mixed")'
    )


def test_envelope_contains_no_control_characters() -> None:
    raw = b'Subject: a\0b\x01\\"\r\n\r\n'
    assert '"a b \\\\\\""' in imap_envelope(raw, parse_structure(raw))
