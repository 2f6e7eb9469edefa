"""Address header fields of composed messages."""

from email import message_from_bytes
from email.policy import default

import pytest

from mail.mime.header_encoding import NamedAddress, address_field


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("ada@example.org", "ada@example.org"),
        ("ada+x.y'z@example.org", "ada+x.y'z@example.org"),
        ('"ada b"@example.org', '"ada b"@example.org'),
        ("a,mallory@example.net", '"a,mallory"@example.net'),
        ("a b@example.net", '"a b"@example.net'),
        ('a"b\\c@example.net', '"a\\"b\\\\c"@example.net'),
        ("a<mallory@evil.example>@example.net", '"a<mallory@evil.example>"@example.net'),
    ],
)
def test_unusual_address_is_quoted_as_one_address(address: str, expected: str) -> None:
    field = address_field("To", [NamedAddress(address), NamedAddress("eve@example.org", "Eve")])
    assert field == f"To: {expected}, Eve <eve@example.org>\r\n".encode()
    parsed = message_from_bytes(field + b"\r\n", policy=default)["To"]
    assert [parsed_address.domain for parsed_address in parsed.addresses] == [
        expected.rpartition("@")[2],
        "example.org",
    ]
