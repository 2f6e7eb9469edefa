"""Validation and normalization of addresses and usernames."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mail.addresses import address_syntax
from mail.addresses.address_syntax import NormalizedAddress
from models.errors import InvalidInput


@pytest.mark.parametrize(
    ("raw_address", "local", "domain"),
    [
        ("ada@example.org", "ada", "example.org"),
        (" A.d.A+news+more@Example.ORG. ", "ada", "example.org"),
        ("ADÄ@mail.XN--BCHER-KVA.example", "adä", "mail.bücher.example"),
        ("ada@BU\u0308CHER.example", "ada", "bücher.example"),
        ("ada@xn--strae-oqa.xn--bcher-kva", "ada", "straße.bücher"),
        ("ada@ﬁ.example", "ada", "fi.example"),
        ("ada@b。example", "ada", "b.example"),
        ("ada", "ada", ""),
        ("a@b@c", "a@b", "c"),
        ("+x@example.org", "", "example.org"),
        ("x@xn--", "x", "xn--"),
    ],
)
def test_address_is_normalized(raw_address: str, local: str, domain: str) -> None:
    address_part, _, domain_part = raw_address.rpartition("@")
    normalized = address_syntax.normalized_address(
        raw_address if address_part else domain_part + "@"
    )
    assert normalized == NormalizedAddress(local, domain)
    assert address_syntax.normalized_address("@".join(normalized)) == normalized


@pytest.mark.parametrize(
    ("raw_address", "expected"),
    [
        ("Ada.L@Example.org", "Ada.L@example.org"),
        (" o'neil!#$%&*/=?^`{|}~@a-b.example ", "o'neil!#$%&*/=?^`{|}~@a-b.example"),
        ("ada@XN--BCHER-KVA.example", "ada@bücher.example"),
        ("u\u0308@example.org", "ü@example.org"),
        ("x" * 64 + "@localhost", "x" * 64 + "@localhost"),
    ],
)
def test_valid_address_keeps_its_spelling(raw_address: str, expected: str) -> None:
    assert address_syntax.normalize_and_validate_address(raw_address) == expected


@pytest.mark.parametrize(
    "raw_address",
    [
        "", "@", "ada", "ada@", "@example.org", "a b@example.org", "a@b@example.org", "a\0@b.c",
        ".ada@example.org", "ada.@example.org", "a..b@example.org", "a@-b.c", "a@b-.c", "a@b..c",
        "a@_b.d", "a@xn--zzzzzz.d", "x" * 65 + "@b.c", "a@" + "x" * 64 + ".d", "a<b>@c.d",
        "a@" + "x.d" * 100, "\ud800@b.c", "a@\ud800.c", '"a b"@b.c', "a@[127.0.0.1]",
    ],
)  # fmt: skip
def test_invalid_address_is_refused(raw_address: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        address_syntax.normalize_and_validate_address(raw_address, path="to")
    assert raised.value.path == ["to"]


any_texts = st.text() | st.builds("{}@{}".format, st.text(), st.text())
address_like_texts = st.from_regex(r"[a-zäß.+*]{1,6}@(xn--)?[a-zäßﬁ.\-]{1,9}", fullmatch=True)


@given(any_texts | address_like_texts)
@settings(max_examples=400)
def test_address_validation_is_idempotent(text: str) -> None:
    try:
        validated = address_syntax.normalize_and_validate_address(text)
    except InvalidInput:
        return
    assert address_syntax.normalize_and_validate_address(validated) == validated
    assert address_syntax.normalized_address(validated) == address_syntax.normalized_address(text)
    assert address_syntax.ascii_domain(
        address_syntax.normalized_address(validated).domain
    ).isascii()


@given(any_texts)
def test_username_validation_is_idempotent(text: str) -> None:
    try:
        validated = address_syntax.normalize_and_validate_username(text)
    except InvalidInput:
        return
    assert address_syntax.normalize_and_validate_username(validated) == validated
    assert address_syntax.username_key(validated) == address_syntax.username_key(text)
