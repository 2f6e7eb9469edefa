"""Decoding of header values."""

from datetime import UTC, datetime

import pytest

from mail.mime import (
    base_subject,
    decode_encoded_words_and_drop_controls,
    parse_address_list,
    parse_date_or_none,
    parse_message_ids,
)
from mail.mime.header_parameters import first_filename, parse_value_and_parameters


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("=?utf-8?q?a=C3?= =?UTF-8?B?pA==?= b", "aä b"),
        ("=?utf-8?Q?What?_Really??=", "What? Really?"),
        ("=?bogus?q?x=E4?=", "xä"),
        ("=?utf-8*de?q?a b?=", "a b"),
        ("a=?utf-8?q?b?=c", "abc"),
        ("=?utf-8?b?aGk", "=?utf-8?b?aGk"),
        ("=?utf-8?q?a=00b?=", "ab"),
        ("=?utf-8?q?=EF=BB=BFa?=", "\ufeffa"),
        ("=?utf-8?b?77u/YQ==?= =?us-ascii?q?=EF=BB=BFb?=", "\ufeffa\ufeffb"),
        (
            "=?utf-8?q?=EF=BB=BFone_invalid_octet_=FF_in_many_letters?=",
            "\ufeffone invalid octet \ufffd in many letters",
        ),
    ],
)
def test_encoded_words_are_decoded(value: str, expected: str) -> None:
    assert decode_encoded_words_and_drop_controls(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("ada@example.com (Ada (the) L)", [("Ada (the) L", "ada@example.com")]),
        ("=?utf-8?q?L=C3=A4,_Ada?= <a@b>", [("Lä, Ada", "a@b")]),
        ('"Ada <x@y>" <a@b>', [("Ada <x@y>", "a@b")]),
        ("<@x,@y:a@b>", [(None, "a@b")]),
        ("undisclosed-recipients:;", []),
        ("a@b; c@d", [(None, "a@b"), (None, "c@d")]),
        ("Ada a@b", [("Ada", "a@b")]),
        ('"a b"@c', [(None, '"a b"@c')]),
        ("Ä <ä@b>", [("Ä", "ä@b")]),
        ("MAILER-DAEMON <>", [("MAILER-DAEMON", "")]),
        ('"open <a@b>, c@d', [('"open', "a@b"), (None, "c@d")]),
        ("A <a@b> <c@d>", [("A", "a@b"), (None, "c@d")]),
        ("root", [("root", "")]),
    ],
)
def test_address_list_is_parsed(value: str, expected: list[tuple[str | None, str]]) -> None:
    assert [(address.name, address.address) for address in parse_address_list(value)] == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ('attachment; filename="a;b.txt"', "a;b.txt"),
        ("attachment; filename=my file (1).pdf; size=3", "my file (1).pdf"),
        ("attachment; filename=x; filename*=iso-8859-1''%E4", "ä"),
        ("attachment; filename*1=b; filename*0=a; filename=x", "ab"),
        ("attachment; filename*0*=utf-8''%C3; filename*1*=%A4", "ä"),
        ("attachment; filename*=utf-8''%EF%BB%BFx", "\ufeffx"),
        ('attachment; filename="=?utf-8?q?=C3=A4?=.txt"', "ä.txt"),
        ('attachment; filename="a\\"b"', 'a"b'),
    ],
)
def test_file_names_are_decoded(value: str, expected: str) -> None:
    assert first_filename(parse_value_and_parameters(value)[1].get("filename")) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Tue, 1 Jan 2030 10:00:00 +0100 (CET)", datetime(2030, 1, 1, 9, tzinfo=UTC)),
        ("1 Jan 30 10:00 EST", datetime(2030, 1, 1, 15, tzinfo=UTC)),
        ("Tue Jan  1 10:00:00 2030", datetime(2030, 1, 1, 10, tzinfo=UTC)),
        ("2030-01-01T10:00:00Z", datetime(2030, 1, 1, 10, tzinfo=UTC)),
        ("31 Dec 2029 23:59:60 GMT", datetime(2029, 12, 31, 23, 59, 59, tzinfo=UTC)),
        ("Mon, 1 Jan 0001 00:00:00 +1200", None),
        ("32 Jan 2030 10:00:00 +0000", None),
        ("yesterday", None),
    ],
)
def test_date_is_parsed_in_utc(value: str, expected: datetime | None) -> None:
    assert parse_date_or_none(value) == expected


def test_message_ids_are_parsed_with_and_without_brackets() -> None:
    assert parse_message_ids("<a@b>\t<c @d> junk") == ["<a@b>", "<c@d>"]
    assert parse_message_ids("< a . b @ c >") == ["<a.b@c>"]
    assert parse_message_ids("a@b") == ["<a@b>"]
    assert parse_message_ids("your message of Tuesday") == []


def test_words_of_message_id_are_not_joined() -> None:
    assert parse_message_ids("<a b@c> <d@e f> <g@h>") == ["<g@h>"]


def test_tokens_are_not_joined_across_a_comment() -> None:
    assert parse_value_and_parameters("text(x)/(y)html; charset=utf-8")[0] == "text/html"
    assert parse_value_and_parameters("text/plain(x)html")[0] == "text/plain html"


@pytest.mark.parametrize(
    "value",
    [
        "text/plain (a; charset=x); charset=utf-8",
        "text/plain (a (b; charset=x) c); charset=utf-8",
        r"text/plain (a\); charset=x); charset=utf-8",
        "text/plain (a); charset=utf-8 (b; c)",
    ],
)
def test_comments_have_no_parameters(value: str) -> None:
    main_value, parameters = parse_value_and_parameters(value)
    assert (main_value, parameters["charset"]) == ("text/plain", "utf-8")


def test_comment_without_end_extends_to_the_end() -> None:
    assert parse_value_and_parameters("text/plain (a; charset=x") == ("text/plain", {})


@pytest.mark.parametrize(
    "subject",
    ["Re: x", "AW: WG: x", "RE[2]: [list] Re: x", "x (fwd) (fwd)", "回复\uff1ax", "Fwd: SV: VS: X"],
)
def test_base_subject_has_no_reply_or_forward_prefix(subject: str) -> None:
    assert base_subject(subject) == "x"


def test_base_subject_keeps_lone_tag() -> None:
    assert base_subject("Re: [tag]") == "[tag]"
    assert base_subject("Rest: x") == "rest: x"
