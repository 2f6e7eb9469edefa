"""Local parts with and without quotes: equal forms, SRS, and the forms that are written."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mail.addresses import address_syntax, quoted_local_part, srs
from mail.autoreply import sender_without_label_and_batv_tag
from mail.envelope.dsn_parameters import decode_xtext, encode_xtext, typed_address
from mail.mime import header_encoding, parse_address_list
from mail.mime.header_encoding import NamedAddress
from mail.outbound.smtp_client import command_address_or_none
from mail.smtp.line_protocol import CommandRejected, parse_address_and_parameters
from models.errors import InvalidInput
from models.runtime.environment import Environment

local_texts = st.one_of(
    st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=64),
    st.text(
        st.characters(min_codepoint=0xA1, categories=("Ll", "Lu", "Nd")), min_size=1, max_size=32
    ),
)


def parse_path(path: str) -> str:
    return parse_address_and_parameters("FROM:", f"FROM:<{path}>")[0]


def escape_every_character(text: str) -> str:
    return "".join(f"\\{character}" for character in text)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ('"robin"@example.org', "robin@example.org"),
        ('"ro\\bin"@example.org', "robin@example.org"),
        ('"r.obin"@example.org', "r.obin@example.org"),
        ('"eve\\ smith"@example.org', '"eve smith"@example.org'),
        ('"a\\"b"@example.org', '"a\\"b"@example.org'),
        ('"a..b"@example.org', '"a..b"@example.org'),
        ('""@example.org', '""@example.org'),
        ("a..b@example.org", "a..b@example.org"),
    ],
)
def test_needless_quotes_are_removed(written: str, expected: str) -> None:
    assert quoted_local_part.remove_needless_quotes(written) == expected
    assert parse_path(written) == expected


@pytest.mark.parametrize("path", ['"a"b@example.org', 'a"b"@example.org', '"a\tb"@example.org'])
def test_invalid_quotes_are_refused(path: str) -> None:
    with pytest.raises(CommandRejected):
        parse_path(path)


@given(local_texts, st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_every_valid_sender_can_be_written_everywhere(
    environment: Environment, text: str, is_escaped: bool
) -> None:
    written_text = escape_every_character(text) if is_escaped else None
    address = quoted_local_part.join_address(text, "origin.example")
    if written_text is not None:
        assert parse_path(f'"{written_text}"@origin.example') == address
    assert parse_path(address) == address
    assert command_address_or_none(address) == address
    assert parse_path(typed_address(address).partition(";")[2]) == address
    if address.isascii():
        assert decode_xtext(encode_xtext(address)) == address
    if not srs.is_srs(text):
        srs_address = srs.rewrite_sender(environment, address, "example.org")
        assert parse_path(srs_address) == srs_address
        assert command_address_or_none(srs_address) == srs_address
        local_part = srs_address.rpartition("@")[0]
        assert srs.is_srs(local_part)
        assert srs.verified_original_sender(environment, local_part) == address
        second = srs.rewrite_sender(environment, srs_address, "second.example")
        assert parse_path(second) == second
        local_part = second.rpartition("@")[0]
        assert srs.verified_original_sender(environment, local_part) == srs_address
        sent = srs.sendable_sender(environment, srs_address, "0123456789abcdef0123")
        assert command_address_or_none(sent) == sent == parse_path(sent)
        assert sent.isascii()
        assert len(sent.rpartition("@")[0]) <= srs.MAX_LOCAL_PART_OCTETS
    for utf8 in (True, header_encoding.needs_smtputf8(address)):  # of a reply, and of a DSN
        field = header_encoding.address_field("To", [NamedAddress(address, "Eve")], utf8=utf8)
        (person,) = parse_address_list(field.decode().partition(":")[2].replace("\r\n", ""))
        assert person.address == address


def quoted_address(text: str) -> str:
    return quoted_local_part.join_address(text, "origin.example")


@pytest.mark.parametrize("text", ["eve smith", "a@b", "x" * 64, "e" * 30 + " " + "f" * 33, "jörg"])
def test_sender_can_be_answered(text: str) -> None:
    address = quoted_address(text)
    assert address_syntax.normalize_and_validate_address(address, allows_quotes=True) == address
    assert sender_without_label_and_batv_tag(address) == address
    assert sender_without_label_and_batv_tag(
        quoted_address(f"prvs=0123abcd={text}"[:64])
    ) == quoted_address(text[: 64 - len("prvs=0123abcd=")])


def test_address_of_an_account_has_no_quotes() -> None:
    validate: Any = address_syntax.normalize_and_validate_address
    assert validate('"robin"@example.org') == "robin@example.org"
    for local in ('"eve smith"', '"a@b"', '"a..b"', '"a"b', '""'):
        with pytest.raises(InvalidInput):
            validate(f"{local}@example.org")
    for local in ('"a"b', '""', f'"{"x" * 64} "', '"a\x01b"'):
        with pytest.raises(InvalidInput):
            validate(f"{local}@example.org", allows_quotes=True)


def test_equal_addresses_have_one_normalized_form() -> None:
    for written in ('"robin"@example.org', '"Ro\\bin"@example.org', '"r.obin+x"@example.org'):
        assert address_syntax.normalized_address(written) == ("robin", "example.org")
