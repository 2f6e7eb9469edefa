"""Addresses of headers: those that RFC 5322 allows, and text that is none."""

import pytest

from mail.authentication import author_domains
from mail.mime import parse_address_list
from tests.conftest import Client, raw_message, receive

PEOPLE = "{ name address }"
ASKED = f"""{{ viewer {{ user {{ messages(first: 50) {{ nodes {{ from {PEOPLE} sender {PEOPLE}
  replyTo {PEOPLE} to {PEOPLE} cc {PEOPLE} bcc {PEOPLE} }} }} }} }} }}"""
ALLOWED = {
    "a@b.example": (None, "a@b.example"),
    "Ann <a@b.example>": ("Ann", "a@b.example"),
    '"a b"@c.example': (None, '"a b"@c.example'),
    'Ann <"a@b"@c.example>': ("Ann", '"a@b"@c.example'),
    "a@[192.0.2.1]": (None, "a@[192.0.2.1]"),
    "<@x.example,@y.example:a@b.example>": (None, "a@b.example"),
    "Ann <a . b @ c . example>": ("Ann", "a.b@c.example"),
    "Ann <a(one)@b.example>": ("Ann", "a@b.example"),
    "a!#$%&'*+-/=?^_`{|}~z@b.example": (None, "a!#$%&'*+-/=?^_`{|}~z@b.example"),
    "jörg@bücher.example": (None, "jörg@bücher.example"),
    '"ceo@bank.example" <a@evil.example>': ("ceo@bank.example", "a@evil.example"),
}
REFUSED = [
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
]


@pytest.mark.parametrize("text", ALLOWED)
def test_an_allowed_address_is_read(text: str) -> None:
    assert [(one.name, one.address) for one in parse_address_list(text)] == [ALLOWED[text]]


@pytest.mark.parametrize("text", REFUSED)
def test_text_that_is_no_address_is_a_name(text: str) -> None:
    found = parse_address_list(text)
    assert [one.address for one in found] in ([""], ["", ""])
    assert " ".join(one.name or "" for one in found)[:1] == text[:1]
    several = parse_address_list(f"x@a.example, {text}, y@a.example")
    assert [one.address for one in several if one.address] == ["x@a.example", "y@a.example"]


async def test_every_address_header_returns_null_and_the_text(ada: Client) -> None:
    bad = "ceo@bank.example:a@evil.example"
    fields = dict.fromkeys(("From", "Reply_To", "To", "Cc", "Bcc"), f"<{bad}>")
    fields["Sender"] = f"Boss <{bad}>"
    await receive(ada, raw_message("Bad", **fields))
    await receive(ada, raw_message("Good"))
    for _ in range(2):
        nodes = (await ada(ASKED))["viewer"]["user"]["messages"]["nodes"]
        good, found = nodes
        assert good["from"] == {"name": "Carol", "address": "carol@example.com"}
        text = {"name": f"<{bad}>", "address": None}
        assert found["from"] == text
        assert found["sender"] == {"name": f"Boss <{bad}>", "address": None}
        assert [found[name] for name in ("replyTo", "to", "cc", "bcc")] == [[text]] * 4


def test_dmarc_judges_every_domain_of_text_that_is_no_address() -> None:
    head = b"From: ceo@bank.example:a@evil.example\r\n"
    assert author_domains(head) == ["bank.example", "evil.example"]
    assert author_domains(b"From: ceo@bank.example\r\n") == ["bank.example"]
