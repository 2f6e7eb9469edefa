"""IMAP's own forms of a message."""

from mail.mime import imap_bodystructure, imap_envelope, parse_structure, read_facts

RAW = b"""\
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
ADA = '(("=?utf-8?b?w4Q=?=" NIL "a" "xn--bcher-kva.example"))'


def test_an_envelope_has_its_ten_fields() -> None:
    assert imap_envelope(RAW, parse_structure(RAW)) == (
        '("Tue, 1 Jan 2030 10:00:00 +0100" "=?utf-8?b?c2F5ICJoaSIgw6Q=?="'
        f' {ADA} {ADA} {ADA} ((NIL NIL "b" "example.com")(NIL NIL "c" "example.com"))'
        ' NIL NIL NIL "<m@x>")'
    )


def test_a_body_structure_tells_of_every_part() -> None:
    inner = '(NIL "inner" NIL NIL NIL NIL NIL NIL NIL NIL) ("text" "plain" NIL NIL NIL "7bit" 2 0'
    assert imap_bodystructure(RAW, read_facts(RAW).structure) == (
        '(("text" "plain" ("charset" "utf-8") NIL NIL "7bit" 7 1 NIL NIL NIL NIL)'
        f'("message" "rfc822" NIL NIL NIL "7bit" 18 {inner} NIL NIL NIL NIL) 2'
        ' NIL ("attachment" ("filename" "m.eml")) NIL NIL)'
        ' "mixed" ("boundary" "x") NIL NIL NIL)'
    )
    assert imap_bodystructure(RAW, parse_structure(RAW), extended=False).endswith(
        f'{inner}) 2) "mixed")'
    )


def test_control_characters_never_reach_the_wire() -> None:
    raw = b'Subject: a\0b\x01\\"\r\n\r\n'
    assert '"a b \\\\\\""' in imap_envelope(raw, parse_structure(raw))
