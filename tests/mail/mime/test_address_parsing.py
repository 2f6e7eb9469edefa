"""Parsing of addresses in header fields: valid by RFC 5322, and invalid text."""

import pytest

from mail.authentication import author_domains
from mail.compose.submission_repair import find_ambiguous_recipient
from mail.mime import parse_address_list
from tests.conftest import GraphQLClient, deliver_to, raw_message

FIELDS = "{ name address }"
QUERY = f"""{{ viewer {{ user {{ messages(first: 50) {{ nodes {{ from {FIELDS} sender {FIELDS}
  replyTo {FIELDS} to {FIELDS} cc {FIELDS} bcc {FIELDS} }} }} }} }} }}"""
VALID_ADDRESSES = {
    "a@b.example": (None, "a@b.example"),
    "Ann <a@b.example>": ("Ann", "a@b.example"),
    '"a b"@c.example': (None, '"a b"@c.example'),
    'Ann <"a@b"@c.example>': ("Ann", '"a@b"@c.example'),
    "a@[192.0.2.1]": (None, "a@[192.0.2.1]"),
    "<@x.example,@y.example:a@b.example>": (None, "a@b.example"),
    "Ann <a . b @ c . example>": ("Ann", "a.b@c.example"),
    "Ann <a(one)@b.example>": ("Ann", "a@b.example"),
    "Ann <a (x) . (y) b @ c (z). example (end)>": ("Ann", "a.b@c.example"),
    'Ann <"a . b" (x) @ c.example>': ("Ann", '"a . b"@c.example'),
    'Ann <"a()b"@c.example>': ("Ann", '"a()b"@c.example'),
    "(Ann) a(x)@(y)b.example": ("y", "a@b.example"),
    "a (x) . b @ c . (Ann) example": ("Ann", "a.b@c.example"),
    'a."b c" (Ann) @c.example': ("Ann", '"a.b c"@c.example'),
    'Ann <"a"@b.example>': ("Ann", "a@b.example"),
    '"a\\b".c@b.example': (None, "ab.c@b.example"),
    '"a..b"@c.example': (None, '"a..b"@c.example'),
    "Ann (Annie) a@b.example": ("Ann", "a@b.example"),
    "Ann(Annie)Smith <a@b.example>": ("Ann Smith", "a@b.example"),
    "a!#$%&'*+-/=?^_`{|}~z@b.example": (None, "a!#$%&'*+-/=?^_`{|}~z@b.example"),
    "jörg@bücher.example": (None, "jörg@bücher.example"),
    '"ceo@bank.example" <a@evil.example>': ("ceo@bank.example", "a@evil.example"),
}
INVALID_ADDRESSES = [
    "ceo@bank.example:a@evil.example",
    "<ceo@bank.example:a@evil.example>",
    "Boss <ceo@bank.example:a@evil.example>",
    "ceo@bank.example@evil.example",
    "Boss <ceo@bank.example@evil.example>",
    "ceo@bank.example a@evil.example",
    "Boss <ceo@bank.example a@evil.example>",
    "Boss <ceo bank@evil.example>",
    "a..b@c.example",
    ".a@c.example",
    "a.@c.example",
    "a@.example",
    "a@c..example",
    "a@c.example.",
    "a@",
    "@c.example",
    "Boss <root>",
    "root",
    "a\\b@c.example",
    "Boss <a\x01b@c.example>",
    "a@[192.0.2.1",
    "Boss <ceo@bank.example;a@evil.example>",
    "Boss <ceo@bank.example(x)y@evil.example>",
    "ceo@bank.example(x)evil.example",
    "ceo@bank.example (x) evil.example",
    "Boss <ceo@bank.example(x)evil.example>",
    "Boss <ceo@bank.example((x)y)evil.example>",
    "Boss <ceo(x)bank@evil.example>",
    "ceo(x)bank@evil.example",
    "ceo(x)@bank.example(y)evil.example",
    "ceo @bank.example evil.example",
    "Boss ceo @ bank.example",
    "ceo@bank.example(x)evil.example <>",
    'Boss <"ceo"(x)bank@evil.example>',
    'Boss <"ceo" "bank"@evil.example>',
]


@pytest.mark.parametrize("text", VALID_ADDRESSES)
def test_valid_address_is_parsed(text: str) -> None:
    assert [(address.name, address.address) for address in parse_address_list(text)] == [
        VALID_ADDRESSES[text]
    ]


@pytest.mark.parametrize("text", INVALID_ADDRESSES)
def test_invalid_address_is_returned_as_name(text: str) -> None:
    addresses = parse_address_list(text)
    assert [address.address for address in addresses] in ([""], ["", ""])
    assert " ".join(address.name or "" for address in addresses)[:1] == text[:1]
    mixed_addresses = parse_address_list(f"x@a.example, {text}, y@a.example")
    assert [address.address for address in mixed_addresses if address.address] == [
        "x@a.example",
        "y@a.example",
    ]


async def test_invalid_address_is_null_in_every_address_field(ada: GraphQLClient) -> None:
    invalid_address = "ceo@bank.example:a@evil.example"
    fields = dict.fromkeys(("From", "Reply_To", "To", "Cc", "Bcc"), f"<{invalid_address}>")
    fields["Sender"] = f"Boss <{invalid_address}>"
    await deliver_to(ada, raw_message("Bad", **fields))
    await deliver_to(ada, raw_message("Good"))
    for _ in range(2):
        nodes = (await ada(QUERY))["viewer"]["user"]["messages"]["nodes"]
        good_message, bad_message = nodes
        assert good_message["from"] == {"name": "Carol", "address": "carol@example.com"}
        expected = {"name": f"<{invalid_address}>", "address": None}
        assert bad_message["from"] == expected
        assert bad_message["sender"] == {"name": f"Boss <{invalid_address}>", "address": None}
        assert [bad_message[name] for name in ("replyTo", "to", "cc", "bcc")] == [[expected]] * 4


def test_author_domains_include_every_domain_of_invalid_address() -> None:
    header = b"From: ceo@bank.example:a@evil.example\r\n"
    assert author_domains(header) == ["bank.example", "evil.example"]
    assert author_domains(b"From: ceo@bank.example\r\n") == ["bank.example"]


def test_author_domain_is_not_joined_across_a_comment() -> None:
    header = b"From: Bank <ceo@bank.example(x)evil.example>\r\n"
    assert author_domains(header) == ["bank.example"]


@pytest.mark.parametrize(
    "recipient",
    [
        "anna@good.example(x)evil.example",
        "Anna <anna@good.example(x)evil.example>",
        "anna@good.example((x))evil.example",
        "an(x)na@good.example",
    ],
)
def test_recipient_with_comment_inside_is_ambiguous(recipient: str) -> None:
    raw = f"From: a@b.example\r\nTo: b@b.example, {recipient}\r\n\r\nx".encode()
    assert find_ambiguous_recipient(raw)


@pytest.mark.parametrize(
    "recipient", ["anna@good.example (x)", "(x) Anna <(y)anna(z)@(w)good.example(v)>"]
)
def test_recipient_with_comment_beside_its_parts_is_clear(recipient: str) -> None:
    raw = f"From: a@b.example\r\nTo: {recipient}\r\n\r\nx".encode()
    assert find_ambiguous_recipient(raw) is None
    assert [person.address for person in parse_address_list(recipient)] == ["anna@good.example"]
